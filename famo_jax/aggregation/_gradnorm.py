"""GradNorm: loss weights that bring the norms of the weighted gradients to a common scale."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator


@aggregation
class GradnormState(NamedTuple):
    """The state of GradNorm."""

    weights: jax.Array  # [K], w, at first 1
    first_losses: jax.Array  # [K], 0 until the task was there
    opt_state: optax.OptState  # of the optimizer of the weights


def gradnorm(
    num_tasks: int,
    *,
    alpha: jax.typing.ArrayLike = 1.5,
    learning_rate: optax.ScalarOrSchedule = _checks.LEARNING_RATE,
    optimizer: optax.GradientTransformation | None = None,
    shared: Shared = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient normalization: the slower a task trains, the longer its weighted gradient.

    .. math:: d = \sum_i w_i g_i, \quad L_\text{grad} = \sum_i \big\lvert w_i \lVert g_i \rVert
              - \bar G r_i^\alpha \big\rvert, \quad \bar G = \tfrac1K \sum_i w_i \lVert g_i \rVert,
              \quad r_i = \frac{\ell_i / \ell_i(0)}{\tfrac1K \sum_j \ell_j / \ell_j(0)}

    r is the relative inverse training rate. After each step the weights descend on
    :math:`L_\text{grad}`, with :math:`\bar G r_i^\alpha` constant to differentiation, and are
    brought back to a sum of K. A weight that would fall below 0 stops there, from where it can
    rise. It costs the diagonal of the Gram matrix; the paper takes it on the last shared layer.

    ``update`` needs ``losses``. The first loss of a task, :math:`\ell_i(0)`, is that of the first
    batch in which it is present. Rates and means are of the tasks present; an absent task keeps its
    weight, and the sum of the others' weights stays what it was. The leaves that are not ``shared``
    get the same weights.

    Losses have to be above 0. The weights, first losses and moments do not learn from a step in
    which a loss of a task present is not, or a gradient is not finite, or all are zero. A single
    gradient of zero lets its weight grow. No system is solved, so nothing is special about equal,
    opposite or dependent gradients.

    LibMTL learns logits of a softmax in place of the weights, and takes a mean over the first
    epoch for :math:`\ell_i(0)`.

    Args:
      num_tasks: K, the number of tasks.
      alpha: How strongly tasks are brought to a common rate, at least 0. May be traced.
      learning_rate: Of the weights, as in the paper: a number, which may be traced, or a schedule.
      optimizer: In place of Adam, with a learning rate of its own.
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`GradnormState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``alpha`` or ``learning_rate`` negative,
        not finite or no scalar, ``optimizer`` none of Optax or given beside a rate, or ``shared``
        no mask; in ``update``, if there are other than K tasks or no ``losses``.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import gradnorm
      >>> tx = gradnorm(2, learning_rate=0.1)
      >>> task_gradients, state = jnp.array([[1.0, 0.0], [0.0, 3.0]]), tx.init(None)
      >>> for _ in range(2):
      ...     gradient, state = tx.update(task_gradients, state, losses=jnp.ones(2))
      >>> print(gradient.round(2))  # the first step's: 1 and 3
      [1.1 2.7]

    References:
      Chen et al., `GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
      Networks <https://arxiv.org/abs/1711.02257>`_, ICML 2018, eq. 2
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_rate("alpha", alpha)
    tx = _checks.adam_unless(optimizer, learning_rate)

    def init() -> GradnormState:
        weights = jnp.ones(num_tasks)
        return GradnormState(weights, jnp.zeros(num_tasks), tx.init(weights))

    return _aggregator.from_gram(
        functools.partial(_weigh, tx),
        init,
        shared=shared,
        heads="weights",
        num_tasks=num_tasks,
        needs_losses=True,
        alpha=alpha,
    )


def _weigh(
    tx: optax.GradientTransformation,
    gram: jax.Array,
    present: jax.Array,
    state: GradnormState,
    *,
    losses: jax.Array,
    alpha: jax.Array,
) -> tuple[jax.Array, GradnormState]:
    norms = jnp.sqrt(jnp.diag(gram))
    positive = jnp.all(jnp.isfinite(losses) & (losses > 0))
    learns = jnp.any(norms > 0) & positive  # NaN in a gradient is shown as zeros in all
    unseen = present & (state.first_losses == 0)
    first = jnp.where(unseen, losses, state.first_losses).astype(state.first_losses.dtype)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(values, where=present) / jnp.maximum(jnp.sum(present), 1)

    ratios = losses / jnp.where(present, first, 1)
    rates = ratios / mean(ratios)
    lengths = state.weights * norms
    excess = lengths - mean(lengths) * rates**alpha
    grads = jnp.where(present, jnp.sign(excess) * norms, 0).astype(state.weights.dtype)
    updates, opt_state = tx.update(grads, state.opt_state, state.weights)
    weights = jnp.maximum(jnp.where(present, state.weights + updates, 0), 0)
    before, total = jnp.sum(state.weights, where=present), jnp.sum(weights)
    weights *= before / jnp.where(total > 0, total, 1)
    weights = jnp.where(present & (total > 0), weights, state.weights)
    learned = GradnormState(weights, first, opt_state)
    return state.weights.astype(gram.dtype), optax.tree.where(learns, learned, state)
