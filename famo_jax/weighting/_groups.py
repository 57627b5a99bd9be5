"""Groups of numbers: k-means, exactly."""

from typing import TypeAlias

import jax
import jax.numpy as jnp

Groups: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]  # of each begin: count, mean, cost


def centroids(values: jax.Array, counted: jax.Array, num_groups: jax.Array) -> jax.Array:
    """What k-means puts in the place of numbers, ``[K]``: the mean of each one's group.

    Of all groupings into at most ``num_groups`` it takes one of the least sum of squares.
    """
    scale = jnp.max(jnp.abs(values), where=counted, initial=0)
    order = jnp.argsort(jnp.where(counted, values, jnp.inf))
    tasks = jnp.arange(values.size)

    def extend(groups: Groups, upper: jax.Array) -> tuple[Groups, tuple[jax.Array, jax.Array]]:
        """All groups that begin at one of the sorted numbers, [K], get one more at the end."""
        count, mean, cost = groups
        value = values[order[upper]] / jnp.where(scale > 0, scale, 1)
        joins = (tasks <= upper) & counted[order[upper]]
        count += joins
        change = jnp.where(joins, value - mean, 0)
        mean += change / jnp.maximum(count, 1)
        cost += change * jnp.where(joins, value - mean, 0)
        return (count, mean, cost), (mean, jnp.where(tasks <= upper, cost, jnp.inf))

    zeros = jnp.zeros_like(values)
    _, (means, costs) = jax.lax.scan(extend, (zeros, zeros, zeros), tasks)  # [end, begin]

    def cut(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """One group more: of the numbers up to each end the least cost, and the means."""
        least, places = carry  # [end], [end, K]
        totals = costs + jnp.concatenate([jnp.zeros_like(least[:1]), least[:-1]])
        begin = jnp.argmin(totals, axis=1)
        last = means[tasks, begin]
        places = jnp.where(tasks < begin[:, None], places[begin - 1], last[:, None])
        return totals[tasks, begin], places

    first = costs[:, 0], jnp.broadcast_to(means[:, :1], costs.shape)
    _, places = jax.lax.fori_loop(1, num_groups, cut, first)
    return zeros.at[order].set(places[-1]) * scale
