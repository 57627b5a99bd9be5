"""UPGrad: the mean of the task gradients, each projected on the directions that harm no task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class UpgradState(NamedTuple):
    """UPGrad remembers nothing."""


def upgrad(*, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""UPGrad: the mean of the task gradients, each projected where it conflicts with none.

    .. math:: d = \frac1K \sum_i \pi_J(g_i), \quad
              \pi_J(x) = \arg\min_{y : J y \ge 0} \lVert y - x \rVert = J^\top v, \quad
              v = \arg\min_{v \ge u} v^\top G v \quad \text{for } x = J^\top u

    So :math:`g_i \cdot d \ge 0` for all tasks. Where no two gradients conflict it is the mean
    gradient; unlike :func:`pcgrad` it conflicts with none of more than two tasks either, and
    depends on no order. It costs K quadratic programs in K unknowns, which are solved together and
    exactly, on the device.

    With absent tasks the others are projected, and the mean is theirs. The leaves that are not
    ``shared`` get the mean over the tasks.

    A gradient of zero changes only the K of the mean. Equal gradients are as one; opposite ones,
    and others with 0 inside of their convex hull, give 0. Of linearly dependent gradients the
    weights need not be unique, but the direction is.

    The official code, TorchJD, and LibMTL have this scale, and add 1e-4 times the sum of all
    :math:`\lVert g_i \rVert^2` to the diagonal of G, so that their direction may conflict a little
    with short gradients.

    Args:
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is an :class:`UpgradState`.

    Raises:
      ValueError: If ``shared`` is no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import upgrad
      >>> tx = upgrad()
      >>> task_gradients = jnp.array([[2.0, 0.0], [-1.0, 1.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print([f"{each:.2f}" for each in gradient])
      ['0.50', '1.00']

    References:
      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
      <https://arxiv.org/abs/2406.16232>`_, 2024, eq. 3 and Proposition 1
    """
    return _aggregator.from_gram(_weigh, UpgradState, shared=shared, heads="mean")


def upgrad_weights(
    gram: jax.typing.ArrayLike, *, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""The weights of :func:`upgrad`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`J J^\top`, ``[K, K]``.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, at least 1 / K, in at least float32. 0 for absent tasks.

    Raises:
      ValueError: If ``gram`` is not square or ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import upgrad_weights
      >>> weights = upgrad_weights(jnp.array([[4.0, -2.0], [-2.0, 2.0]]))
      >>> print([f"{each:.2f}" for each in weights])
      ['0.75', '1.00']

    References:
      As of :func:`upgrad`.
    """
    return _aggregator.gram_weights(_weigh, UpgradState(), gram, where)


def _weigh(
    gram: jax.Array, present: jax.Array, state: UpgradState
) -> tuple[jax.Array, UpgradState]:
    cosines, norms, _ = _solvers.correlation(gram, present)
    shares = norms / jnp.maximum(jnp.sum(present), 1)
    projected = _solvers.onto_dual_cone(cosines, jnp.diag(shares))
    return jnp.sum(projected, axis=0) / norms, state
