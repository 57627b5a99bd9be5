"""Smooth Tchebycheff scalarization."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method, _tasks
from famo_jax.weighting import _memory


class StchState(NamedTuple):
    """The state of smooth Tchebycheff scalarization."""

    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    min_losses: jax.Array  # [K], z*
    weights: jax.Array  # [K], lambda
    mu: jax.Array  # []
    nadir: jax.Array | None  # [K], the mean of the warm-up, at first 0; None without one
    missing: jax.Array | None  # [K], int, how many losses of the warm-up are still to come


def stch(
    num_tasks: int,
    *,
    mu: chex.Numeric = 1.0,
    weights: chex.ArrayTree | None = None,
    min_losses: chex.ArrayTree = 0.0,
    warmup: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Smooth Tchebycheff scalarization: a smooth maximum of the losses.

    .. math:: L = \mu \log \sum_i \exp\Big(\frac{\lambda_i (\ell_i - z^*_i)}{\mu}\Big), \quad
              w = \lambda\, \mathrm{softmax}\Big(\frac{\lambda (\ell - z^*)}{\mu}\Big)

    Every Pareto-optimal solution minimises it for some preference :math:`\lambda`, which of a
    weighted sum is not true. For small :math:`\mu` only the worst task trains, for large
    :math:`\mu` it is the sum by :math:`\lambda`. It hands the updates through untouched, at the
    cost of one backward pass.

    :math:`\mu` has the unit of a loss, so the losses should be on one scale. For others there is
    the form of the authors' experiments: with ``warmup`` = n, n steps minimise
    :math:`\sum_i \log(\ell_i - z^*_i)`, which is K times :func:`si`, and from then on

    .. math:: L = K \mu \log \sum_i \exp\Big(\frac{K \lambda_i}{\mu}
              \log \frac{\ell_i - z^*_i}{\nu_i}\Big)

    where the nadir :math:`\nu_i` is the mean of :math:`\ell_i - z^*_i` over the warm-up. Their code
    warms up for four epochs and takes the mean over a fifth; it has no :math:`\lambda`. Scales are
    those of TorchJD (without a warm-up) and of LibMTL (with one).

    The maximum takes an absent task by its loss last seen, so that the others keep their weights,
    and leaves it out before it was seen. The warm-up ends when one task has been seen n times, and
    others catch up their nadir. With it losses have to be above their bounds.

    Args:
      num_tasks: K, the number of losses.
      mu: How smooth, above 0. May be traced.
      weights: The preference, ``[K]`` or a pytree of scalars structured as the losses. Default:
        1 / K each.
      min_losses: The ideal point z*, what each loss can at best be: one for all, ``[K]``, or a
        pytree of scalars structured as the losses. May be traced.
      warmup: n, at least 0. Default: no warm-up, and no logarithms.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`StchState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``mu`` not above 0, ``warmup`` no int of
        at least 0, or ``weights`` or ``min_losses`` are not K finite numbers; when losses come, if
        their number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import stch
      >>> weights = loss_weights(jnp.array([1.0, 4.0]), stch(2).init(None))
      >>> print([f"{each:.2f}" for each in weights])
      ['0.09', '0.41']

    References:
      Lin et al., `Smooth Tchebycheff Scalarization for Multi-Objective Optimization
      <https://arxiv.org/abs/2402.19078>`_, ICML 2024
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)
    _checks.check_positive("mu", mu)
    if warmup != 0:
        _checks.check_num_tasks(warmup, "warmup")
    preference = 1 / num_tasks if weights is None else weights

    def flat() -> jax.Array:
        return _tasks.flatten_tasks(preference, "weights", num_tasks, broadcast=weights is None)

    jax.eval_shape(flat)  # to check it: before `init` no device is touched
    _checks.check_finite("weights", preference)

    def init() -> StchState:
        return StchState(
            losses=_memory.never(num_tasks),
            min_losses=jnp.array(bounds(), float),
            weights=jnp.array(flat(), float),
            mu=jnp.array(mu, float),
            nadir=jnp.zeros(num_tasks) if warmup else None,
            missing=jnp.full(num_tasks, warmup, int) if warmup else None,
        )

    def learn(state: StchState, losses: jax.Array, present: jax.Array) -> StchState:
        seen = _memory.remember(state, losses, present, mu=mu)
        if state.nadir is None or state.missing is None:
            return seen
        gaps = losses.astype(state.nadir.dtype) - state.min_losses
        taken = present & jnp.isfinite(gaps) & (gaps > 0) & (state.missing > 0)
        missing = state.missing - taken
        step = (gaps - state.nadir) / jnp.maximum(warmup - missing, 1)
        return seen._replace(nadir=state.nadir + jnp.where(taken, step, 0), missing=missing)

    return _method.from_losses(init, learn, num_tasks=num_tasks, check=bounds)


@_method.weighting(StchState, tasks="losses")
def scalarize_stch(state: StchState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The smooth maximum."""
    if state.nadir is None or state.missing is None:
        gaps, counted = _memory.gaps(state, losses, present, signed=True)
        return _maximum(state.weights * gaps, state.mu, counted, present)
    gaps, counted = _memory.gaps(state, losses, present)
    known = jnp.where(state.nadir > 0, state.nadir, jax.lax.stop_gradient(gaps))
    values = losses.size * state.weights * jnp.log(gaps / known)
    maximum = losses.size * _maximum(values, state.mu, counted, present)
    total = jnp.sum(jnp.where(present, jnp.log(gaps), 0))
    return jnp.where(jnp.min(state.missing) > 0, total, maximum)


def _maximum(values: jax.Array, mu: jax.Array, counted: jax.Array, present: jax.Array) -> jax.Array:
    exponents = jnp.where(counted | ~jnp.any(counted), values / mu, -jnp.inf)
    return jnp.where(jnp.any(present), mu * jax.nn.logsumexp(exponents), 0)
