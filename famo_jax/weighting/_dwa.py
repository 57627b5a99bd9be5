"""Dynamic weight average."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method, _tasks


class DwaState(NamedTuple):
    """The state of dynamic weight average."""

    history: jax.Array  # [2 * window, K], the losses of the last steps, at first +inf, newest last
    temperature: jax.Array  # [], T


def dwa(
    num_tasks: int, *, temperature: chex.Numeric = 2.0, window: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Dynamic weight average: the losses that fell slowest weigh most.

    .. math:: L = \sum_i \lambda_i \ell_i, \quad
              \lambda = K\, \mathrm{softmax}(r / T), \quad
              r_i = \bar\ell_i(t - 1) / \bar\ell_i(t - 2)

    with means over ``window`` steps, the last and those before them; all :math:`\lambda_i` are 1
    until both windows are full. The paper averages over an epoch; the official code of FAMO over a
    sliding window of 25 steps, as here, and takes the mean over tasks in place of the sum, for
    which ``optax.scale(1 / num_tasks)`` stands. It hands the updates through untouched.

    Under ``where`` the term of an absent task is dropped and the others keep their weights; its
    history repeats the last finite loss, and until it was seen in both windows r counts as 1. So
    does a loss that is not finite, and an r that is not.

    Args:
      num_tasks: K, the number of losses.
      temperature: T, above 0; the larger the more equal the weights. May be traced.
      window: How many steps a mean is taken over.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`DwaState`.

    Raises:
      ValueError: If ``num_tasks`` or ``window`` is no int of at least 1, or ``temperature`` not
        above 0; when losses come, if their number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import dwa
      >>> tx = dwa(2)
      >>> state = tx.init(None)
      >>> for losses in (jnp.array([4.0, 1.0]), jnp.array([1.0, 1.0])):  # the second is stuck
      ...     _, state = tx.update((), state, losses=losses)
      >>> print((10 * loss_weights(jnp.ones(2), state)).round())
      [ 8. 12.]

    References:
      Liu et al., `End-to-End Multi-Task Learning with Attention
      <https://arxiv.org/abs/1803.10704>`_, CVPR 2019, eq. 7
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_num_tasks(window, "window")
    _checks.check_positive("temperature", temperature)

    def init() -> DwaState:
        return DwaState(
            history=jnp.full_like(jnp.zeros((2 * window, num_tasks)), jnp.inf),
            temperature=jnp.array(temperature, float),
        )

    def learn(state: DwaState, losses: jax.Array, present: jax.Array) -> DwaState:
        newest = _tasks.last_seen(state.history[-1], present, losses)
        history = jnp.concatenate([state.history[1:], newest[None]])
        return DwaState(history=history, temperature=jnp.array(temperature, float))

    return _method.from_losses(init, learn, num_tasks=num_tasks)


@_method.weighting(DwaState, tasks="history")
def scalarize_dwa(state: DwaState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses by weights from their rates of change."""
    steps, num_tasks = state.history.shape
    older, newer = jnp.mean(state.history.reshape(2, steps // 2, num_tasks), axis=1)
    measured = jnp.isfinite(older) & jnp.isfinite(newer) & (older != 0)
    ratio = jnp.where(measured, newer, 1) / jnp.where(measured, older, 1)
    exponent = ratio / state.temperature
    exponent = jnp.where(jnp.isfinite(exponent), exponent, 1 / state.temperature)
    weights = num_tasks * jax.nn.softmax(exponent)
    return jnp.sum(jnp.where(present, weights * losses, 0))
