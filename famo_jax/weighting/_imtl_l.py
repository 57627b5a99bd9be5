"""Impartial multi-task learning, its balance of losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method
from famo_jax.weighting import _uw


class ImtlLState(NamedTuple):
    """The state of IMTL-L."""

    log_scales: jax.Array  # [K], s
    opt_state: optax.OptState  # of the log-scales' optimizer


def imtl_l(
    num_tasks: int,
    *,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""IMTL-L: learns a scale for each loss, so that all scaled losses come to be equal.

    .. math:: L = \sum_i (e^{s_i} \ell_i - s_i)

    is minimised by the model, and by the log-scales s (zeros at first) through an optimizer of
    their own. It is twice :func:`uw` at :math:`-s`, with weights of :math:`1 / \ell_i` at rest.
    Scale and sign are those of TorchJD's and LibMTL's. It hands the updates through untouched, at
    the cost of one backward pass. Losses are meant to be positive: below 0 a scale grows forever.

    Absent tasks and losses that are not finite or too large are treated as in :func:`uw`.

    Args:
      num_tasks: K, the number of losses.
      learning_rate: Of Adam on s: a scalar or a schedule. Not with ``optimizer``.
      optimizer: Instead of Adam.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`ImtlLState`.

    Raises:
      ValueError: As :func:`uw` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import imtl_l
      >>> tx = imtl_l(2, learning_rate=0.1)
      >>> state = tx.init(None)
      >>> for _ in range(300):
      ...     _, state = tx.update((), state, losses=jnp.array([0.5, 4.0]))
      >>> print(loss_weights(jnp.ones(2), state).round(2))  # 1 / loss
      [2.   0.25]

    References:
      Liu et al., `Towards Impartial Multi-task Learning
      <https://openreview.net/forum?id=IMPnRXEWpvr>`_, ICLR 2021
    """
    _checks.check_num_tasks(num_tasks)
    inner = _checks.adam_unless(optimizer, learning_rate)

    def init() -> ImtlLState:
        log_scales = jnp.zeros(num_tasks)
        return ImtlLState(log_scales=log_scales, opt_state=inner.init(log_scales))

    def learn(state: ImtlLState, losses: jax.Array, present: jax.Array) -> ImtlLState:
        return ImtlLState(*_uw.step_scales(*state, losses, present, inner, _objective))

    return _method.from_losses(init, learn, num_tasks=num_tasks)


def _objective(log_scales: jax.Array, losses: jax.Array, present: jax.Array) -> jax.Array:
    return 2 * _uw.objective(-log_scales, losses, present)


@_method.weighting(ImtlLState, tasks="log_scales")
def scalarize_imtl_l(state: ImtlLState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the scaled losses."""
    return _objective(state.log_scales, losses, present)
