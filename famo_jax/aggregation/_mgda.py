"""MGDA: the point of least norm in the convex hull of the task gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class MgdaState(NamedTuple):
    """MGDA remembers nothing."""


def mgda(*, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""Multiple-gradient descent: the shortest convex combination of the task gradients.

    .. math:: d = J^\top z, \quad z = \arg\min_{z \in \Delta} \tfrac12 \lVert J^\top z \rVert^2

    so that :math:`g_i \cdot d \ge \lVert d \rVert^2` for every task i, and d = 0 exactly where no
    direction descends on all tasks. With absent tasks the hull is that of the others' gradients.
    The leaves that are not ``shared`` get the same weights.

    Of two equal gradients it does not matter which one weighs. Opposite gradients, a gradient of
    zero, or any others with 0 in their convex hull, as is common with more tasks than parameters,
    give d = 0 to rounding.

    The official code multiplies z by K: ``optax.chain(mgda(), optax.scale(K))``.

    Args:
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`MgdaState`.

    Raises:
      ValueError: If ``shared`` is no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import mgda
      >>> tx = mgda()
      >>> task_gradients = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient.round(3))
      [0.8 0.4]

    References:
      Désidéri, `Multiple-gradient descent algorithm (MGDA) for multiobjective optimization
      <https://doi.org/10.1016/j.crma.2012.03.014>`_, 2012; Sener and Koltun, `Multi-Task Learning
      as Multi-Objective Optimization <https://arxiv.org/abs/1810.04650>`_, NeurIPS 2018, eq. 3
    """
    return _aggregator.from_gram(_weigh, MgdaState, shared=shared, heads="weights")


def mgda_weights(
    gram: jax.typing.ArrayLike, *, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""The weights z of :func:`mgda`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`J J^\top`, ``[K, K]``.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, nonnegative, sum 1, in at least float32. All 0 with all absent.

    Raises:
      ValueError: If ``gram`` is not square or ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import mgda_weights
      >>> print(mgda_weights(jnp.array([[1.0, 0.0], [0.0, 4.0]])).round(3))
      [0.8 0.2]

    References:
      As of :func:`mgda`.
    """
    return _aggregator.gram_weights(_weigh, MgdaState(), gram, where)


def _weigh(gram: jax.Array, present: jax.Array, state: MgdaState) -> tuple[jax.Array, MgdaState]:
    norms2 = jnp.diag(gram)
    # The constraint sum_i z_i = 1 need not be imposed: for any kappa > 0 the u >= 0 that minimises
    # |J^T u|^2 + kappa^2 (sum_i u_i - 1)^2 is z times a length. With kappa as long as the shortest
    # gradient the two terms are of one size.
    largest = jnp.max(norms2)
    kappa2 = jnp.min(jnp.where(present, norms2, largest))
    kappa2 = jnp.maximum(kappa2, _solvers.epsilon_of(gram) * largest)
    kappa2 = jnp.where(kappa2 > 0, kappa2, 1)
    both = present & present[:, None]
    system = jnp.where(both, gram + kappa2, jnp.where(jnp.eye(len(gram), dtype=bool), kappa2, 0))
    u = _solvers.nonnegative_least_squares(system, jnp.where(present, jnp.sqrt(kappa2), 0))
    u = jnp.where(present, u, 0)
    total = jnp.sum(u)
    return u / jnp.where(total > 0, total, 1), state
