"""Linear scalarization: the mean of the losses."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _core


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
      >>> from famo_jax import ls, weighted_loss
      >>> print(weighted_loss(jnp.array([1.0, 3.0]), ls().init(None)))
      2.0
      >>> print(weighted_loss(jnp.array([1.0, 3.0]), ls([1.0, 0.1]).init(None)).round(2))
      1.3

    References:
      Liu et al., FAMO, Appendix A: LS
    """

    def fixed() -> jax.Array | None:
        return None if weights is None else _core.flatten_tasks(weights, "weights").astype(float)

    jax.eval_shape(fixed)  # to check it: before `init` no device is touched
    _core.check_finite("weights", weights)

    def init_fn(params: optax.Params) -> LsState:
        del params
        return LsState(weights=jax.tree.map(jnp.copy, fixed()))  # a copy: states are donated

    return optax.GradientTransformationExtraArgs(init_fn, _core.keep_state)


@_core.scalarize.register
def _(state: LsState, losses: jax.Array, *, where: jax.Array, **_: Any) -> jax.Array:
    if state.weights is None:
        return jnp.sum(jnp.where(where, losses, 0)) / losses.size
    losses = _core.flatten_tasks(losses, "losses", state.weights.size)
    return jnp.sum(jnp.where(where, state.weights * losses, 0))
