"""The declaration of an aggregation method that remembers the gradients of the tasks.

It states

    ``combine(gradients, present, state, **parameters) -> (gradient, weights, state)``

    * ``gradients``: a tuple of the shared leaves, ``[K, ...]``, at least float32, 0 in the rows of
      absent tasks, to one of ``[...]``
    * ``weights``: ``[K]``, what the leaves outside of ``shared`` are weighed by

and calls :func:`from_memory`. Its memory is a tuple of the shared leaves, ``[K, ...]``, at least
float32, and nothing of a gradient that is not finite may enter it.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _stacked
from famo_jax._stacked import HIGHEST, Shared, per_task
from famo_jax.aggregation import _aggregator

Memory: TypeAlias = tuple[jax.Array, ...]


def from_memory(
    combine: Callable[..., tuple[list[jax.Array], jax.Array, Any]],
    init: Callable[[Memory], Any],
    *,
    num_tasks: int,
    shared: Shared,
    needs_losses: bool = False,
    **parameters: Any,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a method that remembers the gradients of the tasks.

    Args:
      combine: The method.
      init: Returns its first state, of a memory of zeros.
      num_tasks: K.
      shared: The leaves that it remembers, and whose gradients decide.
      needs_losses: Whether ``combine`` gets the losses.
      **parameters: What ``combine`` gets besides.
    """

    def init_fn(params: chex.ArrayTree) -> Any:
        if params is None:
            raise ValueError("`params`: expected the parameters, to be remembered of, got None")
        mask = _stacked.shared_leaves(shared, params, params)
        return init(tuple(_zeros(leaf, num_tasks) for leaf in _aggregator.selected(params, mask)))

    def aggregate(
        given: _aggregator.Given, state: Any, **losses: jax.Array
    ) -> tuple[chex.ArrayTree, Any]:
        if not given.stacked or given.from_rows is None:
            raise ValueError(
                f"`updates`: {type(state).__name__} belongs to a method that remembers the task "
                "gradients of the parameters: leave `encoder`, `gram_at` and `periodic` out"
            )
        leaves = _aggregator.selected(given.rows, given.compared)
        rows = tuple(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in leaves)
        with jax.default_matmul_precision("highest"):
            combined, weights, state = combine(rows, given.present, state, **parameters, **losses)
        typed = [each.astype(leaf.dtype) for each, leaf in zip(combined, leaves, strict=True)]
        return given.from_rows(typed, weights), state

    return _aggregator.transformation(
        aggregate, init_fn, shared, num_tasks=num_tasks, needs_losses=needs_losses
    )


def _zeros(leaf: jax.Array, num_tasks: int) -> jax.Array:
    """``[K, ...]``, sharded as the leaf is."""
    stacked = jnp.broadcast_to(leaf, (num_tasks, *jnp.shape(leaf)))
    return jnp.zeros_like(stacked, jnp.promote_types(stacked.dtype, jnp.float32))


def scale(leaves: Memory, factors: jax.Array) -> Memory:
    """The gradient of each task times its factor."""
    return tuple(leaf * per_task(factors, leaf).astype(leaf.dtype) for leaf in leaves)


def norms(leaves: Memory) -> jax.Array:
    """Of the gradient of each task, ``[K]``; NaN or infinite where it is not finite."""
    # In units of the largest entry, whose square need then not be in the range of the dtype.
    finite = [jnp.where(jnp.isfinite(leaf), jnp.abs(leaf), 0) for leaf in leaves]
    largest = jnp.max(jnp.stack([jnp.max(leaf) for leaf in finite]))
    unit = jnp.where(largest > 0, largest, 1)
    squares = [jnp.sum(jnp.square(leaf / unit), axis=range(1, leaf.ndim)) for leaf in leaves]
    return unit * jnp.sqrt(sum(squares[1:], start=squares[0]))


def follow(memory: Memory, gradients: Memory, rates: jax.Array) -> Memory:
    """Moves what is remembered of each task by its rate, ``[K]``, to its gradient; by 0 not at all.

    Whatever the gradient holds then.
    """

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        rate = per_task(rates, old).astype(old.dtype)
        return jnp.where(rate > 0, old + rate * (new - old), old)

    return tuple(moved(old, new) for old, new in zip(memory, gradients, strict=True))


def weighted_sum(leaves: Memory, weights: jax.Array) -> list[jax.Array]:
    """The gradients of the tasks, weighted, ``[K]``, and added."""
    return [jnp.tensordot(weights, leaf, axes=1, precision=HIGHEST) for leaf in leaves]
