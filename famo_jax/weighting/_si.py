"""Scale-invariant scalarization: the mean of the logarithms of the losses."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _core


class SiState(NamedTuple):
    """The state of scale-invariant scalarization."""

    min_losses: jax.Array  # [] or [K], b


def si(*, min_losses: chex.ArrayTree = 0.0) -> optax.GradientTransformationExtraArgs:
    r"""Scale-invariant scalarization: the mean of the logarithms of the losses.

    .. math:: L = \frac{1}{K} \sum_i \log(\ell_i - b_i), \quad w_i = \frac{1}{K (\ell_i - b_i)}

    The gradient does not change when a loss is scaled. It is FAMO with its logits frozen and
    ``normalizer=None``, so the control beside any result of FAMO's. It hands the updates through
    untouched. A loss under its bound propagates as NaN, one at its bound as infinity.

    Under ``where`` the term of an absent task is dropped and the others keep their weights.

    Args:
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. Every loss must stay above its bound.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`SiState`.

    Raises:
      ValueError: If ``min_losses`` are not finite numbers; when losses are weighed, if their
        number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights, si
      >>> print(loss_weights(jnp.array([1.0, 4.0]), si().init(None)))
      [0.5   0.125]

    References:
      Liu et al., FAMO, Appendix A: SI
    """

    def bounds() -> jax.Array:
        return _core.flatten_tasks(min_losses, "min_losses", broadcast=True)

    jax.eval_shape(bounds)  # to check it: before `init` no device is touched
    _core.check_finite("min_losses", min_losses)

    def init_fn(params: optax.Params) -> SiState:
        del params
        return SiState(min_losses=jnp.array(bounds(), float))

    return optax.GradientTransformationExtraArgs(init_fn, _core.keep_state)


@_core.scalarize.register
def _(state: SiState, losses: jax.Array, *, where: jax.Array, **_: Any) -> jax.Array:
    if state.min_losses.ndim:
        losses = _core.flatten_tasks(losses, "losses", state.min_losses.size)
    log_losses = jnp.log(jnp.where(where, losses - state.min_losses, 1))
    return jnp.sum(log_losses) / losses.size
