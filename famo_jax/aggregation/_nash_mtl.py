"""Nash-MTL: the Nash bargaining solution among the tasks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class NashMtlState(NamedTuple):
    """Nash-MTL remembers nothing."""


def nash_mtl(*, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""Nash-MTL: the direction that the tasks would agree on in a bargaining game.

    It maximises :math:`\sum_i \log g_i \cdot d` among all d of one length, which is

    .. math:: d = J^\top \alpha, \quad J J^\top \alpha = 1 / \alpha, \quad \alpha > 0

    The direction does not depend on the length of any task's gradient. The equation is solved
    exactly, on the device. The length is :math:`\lVert d \rVert = \sqrt{K}`; for the unit ball::

        tx = optax.chain(nash_mtl(), optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    as in the FAMO paper's Appendix A and the official code, which clips the gradient of the
    shared parameters and re-uses the weights for some steps. (Put
    ``optax.masked(optax.clip_by_global_norm(1.0), shared)`` there to clip those alone.)

    With absent tasks the others bargain among themselves, so that K is their number. The leaves
    that are not ``shared`` get the same weights.

    A gradient of zero has no say and weighs 0. There is a solution if and only if 0 is not in the
    convex hull of the others. If it is (opposite gradients; often with more tasks than
    parameters), or so near to it that the precision of the dtype cannot tell, no direction
    descends on all tasks and the gradient is 0.
    The equation is solved for the Gram matrix as rounded in its dtype, and gradients that nearly
    cancel magnify that rounding: in float32 two that are opposite to within 1% leave a residual
    :math:`\lvert \alpha_i (G \alpha)_i - 1 \rvert` of up to 1e-2.

    Args:
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`NashMtlState`.

    Raises:
      ValueError: If ``shared`` is no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import nash_mtl
      >>> tx = nash_mtl()
      >>> task_gradients = jnp.array([[1.0, 0.0], [0.0, 200.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient.round(3))
      [1. 1.]

    References:
      Navon et al., `Multi-Task Learning as a Bargaining Game
      <https://arxiv.org/abs/2202.01017>`_, ICML 2022, Claim 3.1
    """
    return _aggregator.from_gram(_weigh, NashMtlState, shared=shared, heads="weights")


def nash_mtl_weights(
    gram: jax.typing.ArrayLike, *, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""The weights :math:`\alpha` of :func:`nash_mtl`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`G = J J^\top`, ``[K, K]``.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, with :math:`G \alpha = 1 / \alpha`, in at least float32. 0 for absent tasks and
      gradients of zero; all 0 where there is no solution.

    Raises:
      ValueError: If ``gram`` is not square or ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import nash_mtl_weights
      >>> print(nash_mtl_weights(jnp.array([[1.0, 0.0], [0.0, 4.0]])).round(3))
      [1.  0.5]

    References:
      As of :func:`nash_mtl`.
    """
    return _aggregator.gram_weights(_weigh, NashMtlState(), gram, where)


def _weigh(
    gram: jax.Array, present: jax.Array, state: NashMtlState
) -> tuple[jax.Array, NashMtlState]:
    # With beta = alpha |g| the equation sees only cosines: it is FairGrad's for alpha = 1.
    cosines, norms, pointed = _solvers.correlation(gram, present)
    beta, solved = _solvers.fair_weights(cosines, jnp.ones_like(norms), 1)
    return jnp.where(solved & pointed, beta / norms, 0), state
