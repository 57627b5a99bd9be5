"""Any aggregation method on the logarithms of the losses."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _tasks
from famo_jax.aggregation import _aggregator


class LogLossesState(NamedTuple):
    """The state of a method on log losses."""

    method: Any  # the method's own state
    min_losses: jax.Array  # [] or [K], b


def log_losses(
    method: optax.GradientTransformationExtraArgs, *, min_losses: chex.ArrayTree = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Combines the gradients of the log losses, which know no units, in place of the losses'.

    .. math:: \nabla \log(\ell_i - b_i) = \frac{g_i}{\ell_i - b_i}, \quad
              \text{so} \quad G_{ij} \leftarrow \frac{G_{ij}}{(\ell_i - b_i)(\ell_j - b_j)}

    and the method's weights are divided by :math:`\ell_i - b_i`. No further pass is needed. As with
    :func:`famo_jax.weighting.si`, a loss counts by the rate at which it falls. Nash-MTL and other
    methods that do not see the lengths of gradients have the same direction with and without.

    It stands where ``method`` would, and ``update`` must be given ``losses``. A loss at or under
    its bound, or that is not finite, gives NaN.

    Args:
      method: An aggregation method, :func:`periodic` among them.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses.

    Returns:
      An aggregator whose state is a :class:`LogLossesState`.

    Raises:
      ValueError: If ``method`` is no gradient transformation or ``min_losses`` are not finite
        numbers; in ``update``, if they are not as many as the losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import log_losses, mgda
      >>> tx = log_losses(mgda())
      >>> task_gradients, losses = jnp.array([[1.0, 0.0], [0.0, 200.0]]), jnp.array([1.0, 200.0])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None), losses=losses)
      >>> print(gradient.round(3))  # of the losses it is [1. 0.005]
      [0.5 0.5]

    References:
      Liu et al., `FAMO: Fast Adaptive Multitask Optimization
      <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, eq. 6, for MGDA
    """
    _aggregator.check_method(method)
    bounds = _checks.check_bounds(min_losses, None)

    def init_fn(params: optax.Params) -> LogLossesState:
        bound = jnp.array(bounds(), float)
        return LogLossesState(method=method.init(params), min_losses=bound)

    def update_fn(
        updates: optax.Updates,
        state: LogLossesState,
        params: optax.Params | None = None,
        *,
        losses: chex.ArrayTree,
        where: chex.ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LogLossesState]:
        values = _tasks.flatten_tasks(losses, "losses")
        bounds(losses, num_tasks=values.size)
        present = _tasks.flatten_where(where, losses, values.size)
        gap = jnp.where(present, values.astype(state.min_losses.dtype) - state.min_losses, 1)
        scale = jnp.where(gap > 0, 1 / gap, jnp.nan)
        gradient, own = method.update(
            _aggregator.scale_tasks(updates, scale),
            state.method,
            params,
            losses=losses,
            where=where,
            **extra_args,
        )
        return gradient, state._replace(method=own)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
