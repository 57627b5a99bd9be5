"""Amortized MGDA: what FAMO is without logarithms."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _change, _checks, _logits, _method, _tasks


class AmortizedMgdaState(NamedTuple):
    """The state of amortized MGDA."""

    logits: jax.Array  # [K], xi
    opt_state: optax.OptState  # of the logits' optimizer
    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first


def amortized_mgda(
    num_tasks: int,
    *,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    weight_decay: chex.Numeric = 1e-3,
    measure: _change.Measure = "change",
    smoothing: chex.Numeric = 0.0,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Amortized MGDA: learns from the losses alone the weights that MGDA solves for.

    .. math:: L = \sum_i z_i \ell_i, \quad z = \mathrm{softmax}(\xi), \quad
        \delta = J_\mathrm{softmax}(\xi)^\top (\ell - \ell')

    It is :func:`famo_jax.famo` on the losses instead of their logarithms, and equalises how much,
    not by what factor, each loss falls: losses on different scales do not balance. ``update``
    takes ``losses``, ``losses_fn``, ``new_losses`` and ``where`` as FAMO's does, one-pass, two-pass
    or by slope, at FAMO's cost, and treats what is not finite likewise, a change among it whose
    square is not. Losses may be negative.

    Args:
      num_tasks: K, the number of losses.
      learning_rate: Of the logits' Adam: a scalar or a schedule.
      weight_decay: gamma, which pulls the weights to equality.
      measure: ``"change"`` or ``"slope"``: see :func:`famo_jax.famo`.
      smoothing: Likewise.
      optimizer: Instead of Adam, without decay or ``learning_rate``.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an
      :class:`AmortizedMgdaState`.

    Raises:
      ValueError: As :func:`famo_jax.famo` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import task_weights
      >>> from famo_jax.weighting import amortized_mgda
      >>> tx = amortized_mgda(2)
      >>> losses, new_losses = jnp.array([9.0, 1.0]), jnp.array([8.0, 0.9])
      >>> _, state = tx.update((), tx.init(None), losses=losses, new_losses=new_losses)
      >>> print(task_weights(state).argmax())  # the second fell by less
      1

    References:
      Liu et al., `FAMO: Fast Adaptive Multitask Optimization
      <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, Appendix B
    """
    _checks.check_num_tasks(num_tasks)
    inner = _logits.logits_optimizer(learning_rate, weight_decay, optimizer, smoothing=smoothing)

    def init() -> AmortizedMgdaState:
        return AmortizedMgdaState(**_logits.start(num_tasks, inner))

    return _change.from_changes(init, functools.partial(learn, optimizer=inner), measure=measure)


def learn(
    state: Any,
    change: _change.Change,
    present: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
) -> Any:
    """Steps the logits of a state towards equal falls of the losses."""
    stepped = _logits.equalize(state, _change.fall(change), present, optimizer)
    return stepped._replace(losses=_tasks.last_seen(state.losses, present, *change.losses))


@_method.weighting(AmortizedMgdaState, tasks="logits", last=True)
def scalarize_amortized_mgda(
    state: AmortizedMgdaState, losses: jax.Array, present: jax.Array
) -> jax.Array:
    """The sum of the losses weighted by z, ``[]``."""
    weights = jax.nn.softmax(state.logits)
    return jnp.sum(jnp.where(present, weights * losses, 0))
