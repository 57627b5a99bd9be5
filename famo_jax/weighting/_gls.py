"""Geometric loss strategy."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method
from famo_jax.weighting import _memory


class GlsState(NamedTuple):
    """The state of the geometric loss strategy."""

    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    min_losses: jax.Array  # [K], b


def gls(
    num_tasks: int, *, min_losses: chex.ArrayTree = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Geometric loss strategy: the geometric mean of the losses.

    .. math:: L = \Big(\prod_i (\ell_i - b_i)\Big)^{1 / K}, \quad
              w_i = \frac{L}{K (\ell_i - b_i)}

    It has the direction of :func:`si`, and a step that falls with the losses: that of
    :func:`famo_jax.famo` with ``normalizer="geometric"`` and its logits frozen. It hands the
    updates through untouched, at the cost of one backward pass.

    L is found by logarithms, so that many small losses do not underflow. Losses have to be above
    their bounds; one under it propagates as NaN. The mean takes an absent task by its loss last
    seen, so that the others keep their weights, and leaves it out before it was seen.

    Args:
      num_tasks: K, the number of losses.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. May be traced.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`GlsState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1 or ``min_losses`` are not finite numbers;
        when losses come, if their number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights, weighted_loss
      >>> from famo_jax.weighting import gls
      >>> state = gls(2).init(None)
      >>> print(weighted_loss(jnp.array([1.0, 4.0]), state).round(3))
      2.0
      >>> print(loss_weights(jnp.array([1.0, 4.0]), state).round(3))
      [1.   0.25]

    References:
      Chennupati et al., `MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy
      for Multi-Task Learning <https://arxiv.org/abs/1904.08492>`_, CVPR workshops 2019
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)
    init = lambda: GlsState(losses=_memory.never(num_tasks), min_losses=jnp.array(bounds(), float))
    return _method.from_losses(init, _memory.remember, num_tasks=num_tasks, check=bounds)


@_method.weighting(GlsState, tasks="losses")
def scalarize_gls(state: GlsState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The geometric mean."""
    gaps, counted = _memory.gaps(state, losses, present)
    mean = jnp.sum(jnp.log(gaps)) / jnp.maximum(jnp.sum(counted), 1)
    return jnp.where(jnp.any(present), jnp.exp(mean), 0)
