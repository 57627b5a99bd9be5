"""FairGrad: the gains of all tasks, shared by alpha-fairness."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class FairgradState(NamedTuple):
    """FairGrad remembers nothing."""


def fairgrad(
    *, alpha: jax.typing.ArrayLike = 2.0, shared: Shared = None
) -> optax.GradientTransformationExtraArgs:
    r"""FairGrad: the direction whose gains are the fairest, by the measure of :math:`\alpha`.

    It maximises :math:`\sum_i (g_i \cdot d)^{1 - \alpha} / (1 - \alpha)`, for 1 the sum of the
    logarithms, among all d of one length, which is

    .. math:: d = J^\top w, \quad (J J^\top w)_i = w_i^{-1 / \alpha}, \quad w > 0

    As :math:`\alpha` grows from 0 it goes from the mean gradient to equal gains for all;
    1 is :func:`nash_mtl`, 2 the harmonic mean. The equation is solved exactly, on the device, by
    Newton's method.

    With absent tasks the others share among themselves. The leaves that are not ``shared`` get the
    same weights.

    A gradient of zero has no say and weighs 0. There is a solution if and only if 0 is not in the
    convex hull of the others. If it is (opposite gradients; often with more tasks than
    parameters), or so near to it that the precision of the dtype cannot tell, no direction
    descends on all tasks and the gradient is 0. Equal gradients share their weight.

    Gradients of lengths L give weights of about :math:`L^{-2 \alpha / (\alpha + 1)}`: but for
    :math:`\alpha = 1` the lengths of the direction and of a gradient are not of one unit. The
    official code clips its norm at 1 (as ``optax.clip_by_global_norm(1.0)`` behind it does) after
    multiplying it by K; TorchJD and LibMTL have this scale.

    Args:
      alpha: The measure of fairness, above 0. Up to about 10 the equation is solved to the
        precision of the dtype. May be traced.
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`FairgradState`.

    Raises:
      ValueError: If ``alpha`` is not above 0, not finite or no scalar, or ``shared`` no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import fairgrad
      >>> tx = fairgrad(alpha=2.0)
      >>> task_gradients = jnp.array([[1.0, 0.0], [0.0, 8.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient.round(3))
      [1.  0.5]

    References:
      Ban and Ji, `Fair Resource Allocation in Multi-Task Learning
      <https://arxiv.org/abs/2402.15638>`_, ICML 2024, eq. 4 and Algorithm 1
    """
    _checks.check_positive("alpha", alpha)
    return _aggregator.from_gram(_weigh, FairgradState, shared=shared, heads="weights", alpha=alpha)


def fairgrad_weights(
    gram: jax.typing.ArrayLike,
    alpha: jax.typing.ArrayLike = 2.0,
    *,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    r"""The weights of :func:`fairgrad`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`G = J J^\top`, ``[K, K]``.
      alpha: The measure of fairness, above 0.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, with :math:`(G w)_i = w_i^{-1 / \alpha}`, in at least float32. 0 for absent tasks and
      gradients of zero; all 0 where there is no solution.

    Raises:
      ValueError: If ``gram`` is not square, ``alpha`` not above 0, not finite or no scalar, or
        ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import fairgrad_weights
      >>> print(fairgrad_weights(jnp.array([[1.0, 0.0], [0.0, 64.0]]), 2.0).round(4))
      [1.     0.0625]

    References:
      As of :func:`fairgrad`.
    """
    _checks.check_positive("alpha", alpha)
    return _aggregator.gram_weights(_weigh, FairgradState(), gram, where, alpha=alpha)


def _weigh(
    gram: jax.Array, present: jax.Array, state: FairgradState, *, alpha: jax.Array
) -> tuple[jax.Array, FairgradState]:
    alpha = jnp.asarray(alpha, gram.dtype)
    cosines, norms, pointed = _solvers.correlation(gram, present)
    # With beta = w |g|, and lengths in units of the longest, the equation sees cosines.
    longest = jnp.max(jnp.where(pointed, norms, 0))
    longest = jnp.where(longest > 0, longest, 1)
    lengths = jnp.where(pointed, norms / longest, 1)
    beta, solved = _solvers.fair_weights(cosines, lengths ** (1 / alpha - 1), alpha)
    weights = beta / lengths * longest ** (-2 * alpha / (alpha + 1))
    return jnp.where(solved & pointed, weights, 0), state
