"""Scale-invariant scalarization: the mean of the logarithms of the losses."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method


class SiState(NamedTuple):
    """The state of scale-invariant scalarization."""

    min_losses: jax.Array  # [] or [K], b


def si(*, min_losses: chex.ArrayTree = 0.0) -> optax.GradientTransformationExtraArgs:
    r"""Scale-invariant scalarization: the mean of the logarithms of the losses.

    .. math:: L = \frac{1}{K} \sum_i \log(\ell_i - b_i), \quad w_i = \frac{1}{K (\ell_i - b_i)}

    The gradient does not change when a loss is scaled. It is FAMO with its logits frozen and
    ``normalizer=None``, so the control beside any result of FAMO's. It hands the updates through
    untouched. A loss under its bound propagates as NaN, one at its bound as infinity.

    Args:
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. Every loss must stay above its bound.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`SiState`.

    Raises:
      ValueError: If ``min_losses`` are not finite; when losses come, if there are more or fewer.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import si
      >>> print(loss_weights(jnp.array([1.0, 4.0]), si().init(None)))
      [0.5   0.125]

    References:
      Liu et al., FAMO, Appendix A: SI
    """
    bounds = _checks.check_bounds(min_losses, None)
    init = lambda: SiState(min_losses=jnp.array(bounds(), float))
    return _method.from_losses(init, _method.learn_nothing, needs_losses=False, check=bounds)


@_method.weighting(SiState, tasks="min_losses")
def scalarize_si(state: SiState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The mean of the log losses."""
    log_losses = jnp.log(jnp.where(present, losses - state.min_losses, 1))
    return jnp.sum(log_losses) / losses.size
