"""Soft optimal uncertainty weighting."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method
from famo_jax.weighting import _memory


class UwSoState(NamedTuple):
    """The state of soft optimal uncertainty weighting."""

    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    min_losses: jax.Array  # [K], b
    temperature: jax.Array  # [], T


def uw_so(
    num_tasks: int, *, temperature: chex.Numeric = 1.0, min_losses: chex.ArrayTree = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Soft optimal uncertainty weighting: the smaller a loss, the larger its weight.

    .. math:: L = \sum_i w_i (\ell_i - b_i), \quad
              w = \mathrm{softmax}\Big(\frac{1}{T (\ell - b)}\Big)

    with w constant to differentiation. :math:`1 / \ell_i` is the weight that :func:`uw` and
    :func:`imtl_l` learn, at its optimum and so without learning (the paper's UW-O, whose gradient
    is K times that of :func:`si`); the softmax takes the outliers out of it. The authors' code adds
    1e-8 to the losses. It hands the updates through untouched, at the cost of one backward pass.

    T has the unit of one over a loss. Choose it on validation, on a logarithmic grid: with T far
    below :math:`1 / \ell` the task of the smallest loss gets all the weight, and with T far above
    it is :func:`ls`.

    Losses have to be above their bounds. The softmax takes an absent task by its loss last seen, so
    that the others keep their weights, and leaves it out before it was seen.

    Args:
      num_tasks: K, the number of losses.
      temperature: T, above 0; the larger the more equal the weights. May be traced.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. May be traced.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`UwSoState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``temperature`` not above 0, or
        ``min_losses`` are not finite numbers; when losses come, if their number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import uw_so
      >>> weights = loss_weights(jnp.array([1.0, 4.0]), uw_so(2, temperature=0.5).init(None))
      >>> print([f"{each:.2f}" for each in weights])
      ['0.82', '0.18']

    References:
      Kirchdorfer et al., `Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning
      <https://arxiv.org/abs/2408.07985>`_, GCPR 2024
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)
    _checks.check_positive("temperature", temperature)

    def init() -> UwSoState:
        return UwSoState(
            losses=_memory.never(num_tasks),
            min_losses=jnp.array(bounds(), float),
            temperature=jnp.array(temperature, float),
        )

    def learn(state: UwSoState, losses: jax.Array, present: jax.Array) -> UwSoState:
        return _memory.remember(state, losses, present, temperature=temperature)

    return _method.from_losses(init, learn, num_tasks=num_tasks, check=bounds)


@_method.weighting(UwSoState, tasks="losses")
def scalarize_uw_so(state: UwSoState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses by the softmax of their inverses."""
    gaps, counted = _memory.gaps(state, losses, present)
    weights = jax.lax.stop_gradient(_memory.softmax(1 / gaps / state.temperature, counted))
    return jnp.sum(jnp.where(present, weights * gaps, 0))
