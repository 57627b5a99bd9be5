"""Single-task learning: one of the losses, the baseline that multi-task methods are measured by."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _method, _tasks


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
        traced. Where there is no such task, ``update`` says so, and loss and weights are NaN.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`StlState`.

    Raises:
      ValueError: If ``task`` is no integer of at least 0; in ``update``, if it is not traced and
        there are no more tasks than that.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import stl
      >>> print(loss_weights(jnp.array([5.0, 7.0, 9.0]), stl(1).init(None)))
      [0. 1. 0.]

    References:
      Liu et al., FAMO, section 5: STL
    """
    dtype = _tasks.dtype_of(task)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or jnp.ndim(task):
        raise ValueError(f"`task`: expected an integer, got {task!r}")
    if not isinstance(task, jax.core.Tracer) and int(task) < 0:
        raise ValueError(f"`task`: expected an integer of at least 0, got {task!r}")

    def check(losses: chex.ArrayTree, num_tasks: int) -> None:
        del losses
        if not isinstance(task, jax.core.Tracer) and int(task) >= num_tasks:
            raise ValueError(f"`task`: expected one of {num_tasks}, from 0 on, got {task!r}")

    init = lambda: StlState(task=jnp.array(task, int))
    return _method.from_losses(init, _method.learn_nothing, needs_losses=False, check=check)


@_method.weighting(StlState)
def scalarize_stl(state: StlState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The loss of one task."""
    unknown = state.task >= losses.size
    chosen = unknown | (jnp.arange(losses.size) == state.task)
    return jnp.sum(jnp.where(present & chosen, jnp.where(unknown, jnp.nan, 1) * losses, 0))
