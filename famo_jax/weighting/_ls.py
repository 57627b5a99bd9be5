"""Linear scalarization: the mean of the losses."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method, _tasks


class LsState(NamedTuple):
    """The state of linear scalarization."""

    weights: jax.Array | None  # [K], or None: 1 / K each


def ls(weights: chex.ArrayTree | None = None) -> optax.GradientTransformationExtraArgs:
    r"""Linear scalarization: a fixed weighted sum of the losses, by default their mean.

    .. math:: L = \sum_i w_i \ell_i, \quad w_i = 1 / K

    Beside other methods it is what training did before: ``weighted_loss(losses, ls_state)`` is
    ``jnp.mean(losses)``. It hands the updates through untouched.

    Under ``where`` the term of an absent task is dropped and the others keep their weights.

    Args:
      weights: Fixed weights w, ``[K]`` or a pytree of scalars structured as the losses. Nothing
        normalises them. Default: 1 / K each.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`LsState`.

    Raises:
      ValueError: If ``weights`` are not finite numbers; when losses are weighed, if their
        number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import weighted_loss
      >>> from famo_jax.weighting import ls
      >>> print(weighted_loss(jnp.array([1.0, 3.0]), ls().init(None)))
      2.0
      >>> print(weighted_loss(jnp.array([1.0, 3.0]), ls([1.0, 0.1]).init(None)).round(2))
      1.3

    References:
      Liu et al., FAMO, Appendix A: LS
    """

    def fixed() -> jax.Array | None:
        return None if weights is None else _tasks.flatten_tasks(weights, "weights").astype(float)

    jax.eval_shape(fixed)  # to check it: before `init` no device is touched
    _checks.check_finite("weights", weights)

    # A copy: states are donated.
    init = lambda: LsState(weights=jax.tree.map(jnp.copy, fixed()))
    num_tasks = None if weights is None else jax.eval_shape(fixed).size
    return _method.from_losses(init, _method.learn_nothing, num_tasks=num_tasks, needs_losses=False)


@_method.weighting(LsState, tasks="weights")
def scalarize_ls(state: LsState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The weighted sum of the losses."""
    if state.weights is None:
        return jnp.sum(jnp.where(present, losses, 0)) / losses.size
    return jnp.sum(jnp.where(present, state.weights * losses, 0))
