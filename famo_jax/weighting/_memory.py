"""What methods share whose weight of one task depends on the losses of all: the losses last seen.

Their states have the fields ``losses``, ``[K]``, the last finite ones, +inf before the first, and
``min_losses``, ``[K]``. An absent task is weighed by its loss last seen, so that the others keep
their weights; before it was seen it takes no part.
"""

from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp

from famo_jax import _tasks

S = TypeVar("S")  # a state


def never(num_tasks: int) -> jax.Array:
    """The losses of tasks that were never seen, ``[K]``."""
    return jnp.full_like(jnp.zeros(num_tasks), jnp.inf)


def gaps(
    state: Any, losses: jax.Array, present: jax.Array, *, signed: bool = False
) -> tuple[jax.Array, jax.Array]:
    """How far the losses are above their bounds.

    Args:
      state: With the fields ``losses`` and ``min_losses``.
      losses: ``[K]``
      present: ``[K]``, bool.
      signed: Whether a loss last seen may be under its bound.

    Returns:
      D, ``[K]``, of the tasks present, and by the losses last seen of those absent; and the tasks
      that have one, ``[K]``, bool. D is 1 for the others.
    """
    last = state.losses - state.min_losses
    counted = present | (jnp.isfinite(last) & (signed | (last > 0)))
    return jnp.where(present, losses - state.min_losses, jnp.where(counted, last, 1)), counted


def remember(state: S, losses: jax.Array, present: jax.Array, **settings: chex.Numeric) -> S:
    """The state, with what was seen of the losses, and settings as they are now: ``[]``, float."""
    fields: Any = state
    scalars = {name: jnp.array(value, float) for name, value in settings.items()}
    new: S = fields._replace(losses=_tasks.last_seen(fields.losses, present, losses), **scalars)
    return new


def softmax(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Over the tasks that are counted, ``[K]``, and 0 of the others."""
    # With all of them where there is none: the result does not matter, but is finite.
    return jax.nn.softmax(jnp.where(counted | ~jnp.any(counted), values, -jnp.inf))
