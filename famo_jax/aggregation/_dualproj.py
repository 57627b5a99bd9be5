"""DualProj: the mean gradient, projected on the directions that harm no task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class DualprojState(NamedTuple):
    """DualProj remembers nothing."""


def dualproj(*, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""DualProj: of the directions that conflict with no task the one nearest to the mean gradient.

    .. math:: d = \arg\min_{d : J d \ge 0} \lVert d - g_0 \rVert = J^\top w, \quad
              w = \arg\min_{w \ge 1/K} w^\top G w, \quad g_0 = \tfrac1K \sum_i g_i

    It is gradient episodic memory's step, with the mean in place of the newest task's gradient:
    one quadratic program in K unknowns, solved exactly, on the device. Unlike :func:`upgrad` it
    projects once, after the mean, so that long gradients have the more say.

    With absent tasks conflicts and mean are the others'. The leaves that are not ``shared`` get
    the mean over the tasks.

    Where the mean harms no task it is the mean. A gradient of zero changes only its K; opposite
    gradients, and others with 0 inside of their convex hull, give 0. Of linearly dependent
    gradients the weights need not be unique, but the direction is.

    TorchJD has this scale, and adds 1e-4 times the sum of all :math:`\lVert g_i \rVert^2` to the
    diagonal of G.

    Args:
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`DualprojState`.

    Raises:
      ValueError: If ``shared`` is no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import dualproj
      >>> tx = dualproj()
      >>> task_gradients = jnp.array([[4.0, 0.0], [-1.0, 1.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print([f"{each:.2f}" for each in gradient])  # the mean, 1.5 and 0.5, harms one
      ['1.00', '1.00']

    References:
      Lopez-Paz and Ranzato, `Gradient Episodic Memory for Continual Learning
      <https://arxiv.org/abs/1706.08840>`_, NeurIPS 2017, eq. 11
    """
    return _aggregator.from_gram(_weigh, DualprojState, shared=shared, heads="mean")


def dualproj_weights(
    gram: jax.typing.ArrayLike, *, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""The weights of :func:`dualproj`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`J J^\top`, ``[K, K]``.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, at least 1 / K, in at least float32. 0 for absent tasks.

    Raises:
      ValueError: If ``gram`` is not square or ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import dualproj_weights
      >>> weights = dualproj_weights(jnp.array([[16.0, -4.0], [-4.0, 2.0]]))
      >>> print([f"{each:.2f}" for each in weights])
      ['0.50', '1.00']

    References:
      As of :func:`dualproj`.
    """
    return _aggregator.gram_weights(_weigh, DualprojState(), gram, where)


def _weigh(
    gram: jax.Array, present: jax.Array, state: DualprojState
) -> tuple[jax.Array, DualprojState]:
    cosines, norms, _ = _solvers.correlation(gram, present)
    longest = jnp.max(norms)
    mean = jnp.where(present, norms / longest, 0) / jnp.maximum(jnp.sum(present), 1)
    return _solvers.onto_dual_cone(cosines, mean) * longest / norms, state
