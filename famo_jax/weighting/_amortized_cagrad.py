"""Amortized CAGrad: the dual weights of CAGrad, learned a step at a time."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _change, _checks, _logits, _method
from famo_jax.weighting._amortized_mgda import learn


class AmortizedCagradState(NamedTuple):
    """The state of amortized CAGrad."""

    logits: jax.Array  # [K], xi
    opt_state: optax.OptState  # of the logits' optimizer
    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    c: jax.Array  # [], the radius of the ball


def amortized_cagrad(
    num_tasks: int,
    c: chex.Numeric = 0.4,
    *,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    weight_decay: chex.Numeric = 1e-3,
    measure: _change.Measure = "change",
    smoothing: chex.Numeric = 0.0,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Amortized CAGrad: learns from the falls of the losses the weights that CAGrad solves for.

    .. math:: d = g_0 + c \lVert g_0 \rVert \frac{g_z}{\lVert g_z \rVert}, \quad
        g_0 = \tfrac1K \sum_i g_i, \quad g_z = \sum_i z_i g_i, \quad z = \mathrm{softmax}(\xi),
        \quad \delta = J_\mathrm{softmax}(\xi)^\top (\ell - \ell')

    The gradient of CAGrad's dual, :math:`g_z \cdot g_0 + c \lVert g_0 \rVert \lVert g_z \rVert`, in
    z is how fast each loss falls along d: as with :func:`amortized_mgda`, where the logits rest the
    losses of all tasks that have a weight fall equally.

    Two backward passes a step, for :math:`g_0` and :math:`g_z`, whatever K is, and what measuring
    the fall costs: see :func:`famo_jax.famo`, as for what ``update`` takes. The lengths need
    gradients, so that there is no ``weighted_loss``: train by
    :func:`famo_jax.losses_and_grads`. Losses may be negative. Absent tasks are left out of both
    sums, in which the others keep their weights. Where :math:`g_z` is 0, d is :math:`g_0`.

    Args:
      num_tasks: K, the number of losses.
      c: The radius of the ball around :math:`g_0`, in lengths of it. At least 0; 0 is the mean of
        the losses. May be traced.
      learning_rate: Of the logits' Adam: a scalar or a schedule.
      weight_decay: gamma, which pulls the weights to equality.
      measure: ``"change"`` or ``"slope"``: see :func:`famo_jax.famo`.
      smoothing: Likewise.
      optimizer: Instead of Adam, without decay or ``learning_rate``.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an
      :class:`AmortizedCagradState`.

    Raises:
      ValueError: If ``c`` is negative, not finite or no scalar; else as :func:`famo_jax.famo` does.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from famo_jax import losses_and_grads, task_weights
      >>> from famo_jax.weighting import amortized_cagrad
      >>> losses_fn = lambda x: jnp.array([(x - 1) ** 2, 9 * (x - 1) ** 2])
      >>> tx = optax.chain(optax.sgd(1e-3), amortized_cagrad(2, measure="slope"))
      >>> params, opt_state = jnp.array(3.0), tx.init(jnp.array(3.0))
      >>> losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
      >>> print(grads.round(2))  # the mean of 4 and 36, and 0.4 of that
      28.0
      >>> _, opt_state = tx.update(grads, opt_state, params, losses=losses, losses_fn=losses_fn)
      >>> print(task_weights(opt_state).argmax())  # the first falls more slowly
      0

    References:
      Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
      <https://arxiv.org/abs/2110.14048>`_, NeurIPS 2021, eq. 3 and 4; to amortize it, Liu et al.,
      `FAMO <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, Appendix B, where it needs three
      passes; to need one pullback more instead is this library's own
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_rate("c", c)
    inner = _logits.logits_optimizer(learning_rate, weight_decay, optimizer, smoothing=smoothing)

    def init() -> AmortizedCagradState:
        fields = _logits.start(num_tasks, inner)
        return AmortizedCagradState(c=jnp.array(c, fields["losses"].dtype), **fields)

    return _change.from_changes(init, functools.partial(learn, optimizer=inner), measure=measure)


@_method.directing(AmortizedCagradState, tasks="logits", last=True)
def direct_amortized_cagrad(
    state: AmortizedCagradState,
    pull: Callable[[jax.Array], chex.ArrayTree],
    present: jax.Array,
) -> chex.ArrayTree:
    """The direction d."""
    mean = pull(present / present.size)
    weighted = pull(jnp.where(present, jax.nn.softmax(state.logits), 0))
    length = _norm(weighted)
    scale = state.c * _norm(mean) / jnp.where(length > 0, length, 1)
    direction: chex.ArrayTree = jax.tree.map(
        lambda own, other: (own + scale * other).astype(own.dtype), mean, weighted
    )
    return direction


def _norm(tree: chex.ArrayTree) -> jax.Array:
    """In at least float32."""
    wide = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    norm: jax.Array = optax.tree.norm(jax.tree.map(wide, tree))
    return norm
