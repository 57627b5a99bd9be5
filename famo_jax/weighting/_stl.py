"""Single-task learning: one of the losses, the baseline that multi-task methods are measured by."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _core


class StlState(NamedTuple):
    """The state of single-task learning."""

    task: jax.Array  # [], int


def stl(task: int | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Single-task learning: one of the K losses alone.

    .. math:: L = \ell_t

    The same training step so trains the baseline of :func:`famo_jax.delta_m`, one network a task;
    ``jax.vmap`` over ``task`` trains all of them at once. It hands the updates through untouched.

    Under ``where`` the loss is 0 in a batch that lacks the task.

    Args:
      task: t, its index in JAX's order of the losses: the keys of a dict are sorted. May be
        traced. Loss and weights are NaN where there is no such task.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`StlState`.

    Raises:
      ValueError: If ``task`` is no integer of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights, stl
      >>> print(loss_weights(jnp.array([5.0, 7.0, 9.0]), stl(1).init(None)))
      [0. 1. 0.]

    References:
      Liu et al., FAMO, section 5: STL
    """
    dtype = _core.dtype_of(task)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or jnp.ndim(task):
        raise ValueError(f"`task`: expected an integer, got {task!r}")
    if not isinstance(task, jax.core.Tracer) and int(task) < 0:
        raise ValueError(f"`task`: expected an integer of at least 0, got {task!r}")

    def init_fn(params: optax.Params) -> StlState:
        del params
        return StlState(task=jnp.array(task, int))

    return optax.GradientTransformationExtraArgs(init_fn, _core.keep_state)


@_core.scalarize.register
def _(state: StlState, losses: jax.Array, *, where: jax.Array, **_: Any) -> jax.Array:
    unknown = state.task >= losses.size
    chosen = unknown | (jnp.arange(losses.size) == state.task)
    return jnp.sum(jnp.where(where & chosen, jnp.where(unknown, jnp.nan, 1) * losses, 0))
