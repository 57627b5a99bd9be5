"""Uncertainty weighting."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method


class UwState(NamedTuple):
    """The state of uncertainty weighting."""

    log_variances: jax.Array  # [K], s
    opt_state: optax.OptState  # of the log-variances' optimizer


def uw(
    num_tasks: int,
    *,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Uncertainty weighting: learns a log-variance for each task along with the model.

    .. math:: L = \frac{1}{2} \sum_i (e^{-s_i} \ell_i + s_i)

    is minimised by the model, and by the log-variances s (zeros at first) through an optimizer of
    their own. It hands the updates through untouched.

    Under ``where`` the term of an absent task is dropped, so that its log-variance gets a gradient
    of 0. A loss that is not finite, or so large that Adam's square of its gradient is not, gives
    its log-variance a gradient of 0 too; where no task has a finite loss, log-variances and
    optimizer stay as they are.

    Args:
      num_tasks: K, the number of losses.
      learning_rate: Of Adam on s: a scalar or a schedule. Not with ``optimizer``.
      optimizer: Instead of Adam.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`UwState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, a rate negative, or ``optimizer`` no
        gradient transformation; when losses come, if their number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import uw
      >>> tx = uw(2, learning_rate=0.1)
      >>> state = tx.init(None)
      >>> for _ in range(300):
      ...     _, state = tx.update((), state, losses=jnp.array([0.5, 4.0]))
      >>> print(loss_weights(jnp.ones(2), state).round(2))  # 1 / (2 * loss)
      [1.   0.12]

    References:
      Kendall et al., `Multi-Task Learning Using Uncertainty to Weigh Losses
      <https://arxiv.org/abs/1705.07115>`_, CVPR 2018; the authors' code, of which this is the form
    """
    _checks.check_num_tasks(num_tasks)
    inner = _checks.adam_unless(optimizer, learning_rate)

    def init() -> UwState:
        log_variances = jnp.zeros(num_tasks)
        return UwState(log_variances=log_variances, opt_state=inner.init(log_variances))

    def learn(state: UwState, losses: jax.Array, present: jax.Array) -> UwState:
        return UwState(*step_scales(*state, losses, present, inner, objective))

    return _method.from_losses(init, learn, num_tasks=num_tasks)


def step_scales(
    scales: jax.Array,
    opt_state: optax.OptState,
    losses: jax.Array,
    present: jax.Array,
    optimizer: optax.GradientTransformation,
    objective: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, optax.OptState]:
    """One step of what is learned along with the model, ``[K]``, down its objective."""
    losses = losses.astype(scales.dtype)
    # Adam squares what it gets, and an infinite moment would stay so.
    terms = jax.grad(objective)(scales, losses, present)
    present &= jnp.isfinite(losses) & jnp.isfinite(jnp.square(terms))
    grads = jax.grad(objective)(scales, jnp.where(present, losses, 1), present)
    steps, stepped = optimizer.update(grads, opt_state, scales)
    new = optax.apply_updates(scales, steps), stepped
    kept: tuple[jax.Array, optax.OptState] = optax.tree.where(
        jnp.any(present), new, (scales, opt_state)
    )
    return kept


def objective(log_variances: jax.Array, losses: jax.Array, present: jax.Array) -> jax.Array:
    terms = jnp.exp(-log_variances) * losses + log_variances
    return 0.5 * jnp.sum(jnp.where(present, terms, 0))


@_method.weighting(UwState, tasks="log_variances")
def scalarize_uw(state: UwState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses over their variances."""
    return objective(state.log_variances, losses, present)
