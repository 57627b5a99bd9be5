"""Weights of one over the first loss of each task, held fixed."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method, _tasks


class FirstLossState(NamedTuple):
    """The state of weights by the first loss."""

    weights: jax.Array  # [K], w, 0 before a task was seen
    min_losses: jax.Array  # [K], b


def first_loss(
    num_tasks: int, *, min_losses: chex.ArrayTree = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Weights of one over the first loss of each task, held fixed: units removed, nothing learned.

    .. math:: L = \sum_i w_i (\ell_i - b_i), \quad w_i = \frac{1}{K (\ell_i(0) - b_i)}

    The control beside any method that learns: what it gains over this it has not from units alone.
    Its first step is that of :func:`si`, whose weights then follow the losses; these do not. It
    hands the updates through untouched, at the cost of one backward pass.

    :math:`\ell_i(0)` is the first loss of task i that is present, finite and above its bound. Until
    ``update`` has seen one, a task is weighed by the loss it has, and by 0 where that will not do:
    a loss at 0, or negative without a bound below it, is not taken. Afterwards losses may be
    anything: one that is not finite changes no weight. A first loss far from typical stays in its
    weight. Under ``where`` the term of an absent task is dropped and the others keep their weights.

    Args:
      num_tasks: K, the number of losses.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. May be traced.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`FirstLossState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1 or ``min_losses`` are not finite numbers;
        when losses come, if their number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import first_loss
      >>> tx = first_loss(2)
      >>> _, state = tx.update((), tx.init(None), losses=jnp.array([1.0, 4.0]))
      >>> _, state = tx.update((), state, losses=jnp.array([0.1, 0.1]))
      >>> print(loss_weights(jnp.ones(2), state))
      [0.5   0.125]

    References:
      A baseline of this library's own
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)

    def init() -> FirstLossState:
        weights = jnp.zeros(num_tasks)
        return FirstLossState(weights=weights, min_losses=jnp.array(bounds(), weights.dtype))

    def learn(state: FirstLossState, losses: jax.Array, present: jax.Array) -> FirstLossState:
        losses = losses.astype(state.weights.dtype)
        return state._replace(weights=_weights(state, losses, present))

    return _method.from_losses(init, learn, num_tasks=num_tasks, check=bounds)


def _weights(state: FirstLossState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """Those of the state, and by these losses where it has none."""
    weights = 1 / (losses - state.min_losses) / losses.size
    return _tasks.first_seen(state.weights, present, weights)


@_method.weighting(FirstLossState, tasks="weights")
def scalarize_first_loss(state: FirstLossState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses over their first ones."""
    weights = jax.lax.stop_gradient(_weights(state, losses, present))
    terms = weights * (losses - state.min_losses)
    return jnp.sum(jnp.where(present & (weights > 0), terms, 0))
