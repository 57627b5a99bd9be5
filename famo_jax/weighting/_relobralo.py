"""Relative loss balancing with random lookback."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method, _tasks
from famo_jax.weighting import _memory


class RelobraloState(NamedTuple):
    """The state of relative loss balancing with random lookback."""

    weights: jax.Array  # [K], lambda of the last step, at first 1
    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    first_losses: jax.Array  # [K], the first above its bound, less that, 0 before it
    min_losses: jax.Array  # [K], b
    rng_key: jax.Array  # [], a key: what this step's lookback is drawn with
    alpha: jax.Array  # []
    temperature: jax.Array  # [], T
    rho: jax.Array  # []


def relobralo(
    num_tasks: int,
    *,
    key: jax.Array | int,
    alpha: chex.Numeric = 0.999,
    temperature: chex.Numeric = 1.0,
    rho: chex.Numeric = 0.999,
    min_losses: chex.ArrayTree = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""ReLoBRaLo: the losses that fell least, since the last step and since the first, weigh most.

    .. math:: L = \sum_i \lambda_i(t) \ell_i(t), \quad
              \lambda(t) = \alpha \big(\varrho \lambda(t - 1) + (1 - \varrho) \hat\lambda(t, 0)\big)
              + (1 - \alpha) \hat\lambda(t, t - 1)

    .. math:: \hat\lambda(t, t') = K\, \mathrm{softmax}\Big(\frac{\ell(t)}{T \ell(t')}\Big), \quad
              \varrho \sim \mathrm{Bernoulli}(\rho)

    with the losses above their bounds, and :math:`\lambda` constant to differentiation, 1 at first.
    Made for the terms of a physics-informed network. It hands the updates through untouched, at
    the cost of one backward pass.

    To weigh losses draws from the key without consuming it, so that the weighted loss, its gradient
    and :func:`loss_weights` agree within a step; ``update`` advances the key. The authors' code
    takes :math:`\alpha` as 1 in the first step and 0 in the second, and the second step's losses
    for :math:`\ell(0)`; its default of :math:`\rho` is 1, without lookback.

    An absent task counts in the softmax by its loss last seen, so that the others keep their
    weights, and takes no part before it was seen. A ratio of losses that is not finite, or has a
    loss not above its bound below the line, counts as 1.

    Args:
      num_tasks: K, the number of losses.
      key: A typed key, or an int to make one of.
      alpha: From 0 to 1: how much of the weights is kept. May be traced.
      temperature: T, above 0; the larger the more equal the weights. May be traced.
      rho: From 0 to 1: how likely they are kept from the last step, in place of those since the
        first. May be traced.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. May be traced.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`RelobraloState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``key`` no key, ``alpha`` or ``rho`` not
        from 0 to 1, ``temperature`` not above 0, or ``min_losses`` are not finite numbers; when
        losses come, if their number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import relobralo
      >>> tx = relobralo(2, key=0, alpha=0.5, rho=1.0)
      >>> _, state = tx.update((), tx.init(None), losses=jnp.array([2.0, 4.0]))
      >>> weights = loss_weights(jnp.array([1.0, 4.0]), state)  # the second is stuck
      >>> print([f"{each:.2f}" for each in weights])
      ['0.88', '1.12']

    References:
      Bischof and Kraus, `Multi-Objective Loss Balancing for Physics-Informed Deep Learning
      <https://arxiv.org/abs/2110.09813>`_, 2021; CMAME 439, 2025
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)
    _checks.check_key(key)
    _checks.check_fraction("alpha", alpha)
    _checks.check_positive("temperature", temperature)
    _checks.check_fraction("rho", rho)
    settings = {"alpha": alpha, "temperature": temperature, "rho": rho}

    def init() -> RelobraloState:
        return RelobraloState(
            weights=jnp.ones(num_tasks),
            losses=_memory.never(num_tasks),
            first_losses=jnp.zeros(num_tasks),
            min_losses=jnp.array(bounds(), float),
            rng_key=_checks.make_key(key),
            **{name: jnp.array(value, float) for name, value in settings.items()},
        )

    def learn(state: RelobraloState, losses: jax.Array, present: jax.Array) -> RelobraloState:
        gaps, counted = _memory.gaps(state, losses.astype(state.losses.dtype), present)
        seen = _memory.remember(state, losses, present, **settings)
        return seen._replace(
            weights=_weights(state, gaps, counted),
            first_losses=_tasks.first_seen(state.first_losses, present, gaps),
            rng_key=jax.random.split(state.rng_key, 1)[0],
        )

    return _method.from_losses(init, learn, num_tasks=num_tasks, check=bounds)


def _weights(state: RelobraloState, gaps: jax.Array, counted: jax.Array) -> jax.Array:
    """Those of this step, ``[K]``."""

    def balance(before: jax.Array) -> jax.Array:
        ratios = gaps / before
        measured = (before > 0) & jnp.isfinite(before) & jnp.isfinite(ratios)
        exponents = jnp.where(measured, ratios, 1) / state.temperature
        return jnp.sum(counted) * _memory.softmax(exponents, counted)

    kept = jax.random.bernoulli(state.rng_key, state.rho)
    history = jnp.where(kept, state.weights, balance(state.first_losses))
    recent = balance(state.losses - state.min_losses)
    weights = state.alpha * history + (1 - state.alpha) * recent
    return jnp.where(counted, weights, state.weights).astype(state.weights.dtype)


@_method.weighting(RelobraloState, tasks="weights")
def scalarize_relobralo(state: RelobraloState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses by weights from their ratios."""
    gaps, counted = _memory.gaps(state, losses, present)
    weights = _weights(state, jax.lax.stop_gradient(gaps), counted)
    return jnp.sum(jnp.where(present, weights * gaps, 0))
