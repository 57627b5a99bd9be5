"""IMTL-G: the direction at equal angles to all task gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class ImtlGState(NamedTuple):
    """IMTL-G remembers nothing."""


def imtl_g(*, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""Impartial multi-task learning: equal projections on the unit gradients of all tasks.

    .. math:: d = J^\top \alpha, \quad u_i \cdot d = u_j \cdot d > 0, \quad
              u_i = g_i / \lVert g_i \rVert, \quad \Big\lvert \sum_i \alpha_i \Big\rvert = 1

    In the paper :math:`\sum_i \alpha_i = 1`, which fixes the sign too, and for correlated
    gradients of different lengths not always the one that descends: the direction can then point
    uphill for every task. Here it has the sign that descends, and the weights then sum to -1.

    With absent tasks the direction is the one at equal angles to the others' gradients. The leaves
    that are not ``shared`` get the same weights.

    A gradient of zero has no direction and weighs 0. Linearly dependent gradients, such as those
    of more tasks than parameters, have in general no direction at equal angles: the projections
    are then as equal as can be in the least-squares sense, with the weights of least norm (after
    multiplication by the lengths of the gradients). Equal gradients so share their weight, and
    opposite ones, or any others whose unit gradients sum to 0, give 0. So do weights that sum
    to 0, which cannot be brought to 1.

    The length is the paper's and the official code's, and unbounded where the weights almost
    cancel: ``optax.clip_by_global_norm`` behind it is a good idea.

    Args:
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`ImtlGState`.

    Raises:
      ValueError: If ``shared`` is no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import imtl_g
      >>> tx = imtl_g()
      >>> task_gradients = jnp.array([[1.0, 0.0], [0.0, 4.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient.round(3))
      [0.8 0.8]

    References:
      Liu et al., `Towards Impartial Multi-task Learning
      <https://openreview.net/forum?id=IMPnRXEWpvr>`_, ICLR 2021, eq. 2 and 3
    """
    return _aggregator.from_gram(_weigh, ImtlGState, shared=shared, heads="weights")


def imtl_g_weights(
    gram: jax.typing.ArrayLike, *, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""The weights :math:`\alpha` of :func:`imtl_g`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`J J^\top`, ``[K, K]``.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, sum 1 or -1, in at least float32. 0 for absent tasks and gradients of zero.

    Raises:
      ValueError: If ``gram`` is not square or ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import imtl_g_weights
      >>> print(imtl_g_weights(jnp.array([[1.0, 0.0], [0.0, 16.0]])).round(3))
      [0.8 0.2]

    References:
      As of :func:`imtl_g`.
    """
    return _aggregator.gram_weights(_weigh, ImtlGState(), gram, where)


def _weigh(gram: jax.Array, present: jax.Array, state: ImtlGState) -> tuple[jax.Array, ImtlGState]:
    cosines, norms, pointed = _solvers.correlation(gram, present)
    # u_i.d = 1 for all i. The length is settled below; this sign descends.
    beta = _solvers.equal_angles(cosines, pointed)
    alpha = jnp.where(pointed, beta / norms, 0)
    total = jnp.abs(jnp.sum(alpha))
    fixed = total > 8 * _solvers.epsilon_of(gram) * jnp.sum(jnp.abs(alpha))
    return jnp.where(fixed, alpha / jnp.where(fixed, total, 1), 0), state
