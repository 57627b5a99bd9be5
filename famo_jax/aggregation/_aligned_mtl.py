"""Aligned-MTL: task gradients whose principal components are all made as long as the shortest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class AlignedMtlState(NamedTuple):
    """Aligned-MTL remembers nothing."""


def aligned_mtl(*, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""Aligned-MTL: the mean of task gradients that are made orthogonal and equally long.

    With :math:`G = V \Lambda V^\top`, over the eigenvalues that are not 0,

    .. math:: d = \frac1K \sum_i \hat g_i = J^\top w, \quad \hat J = B J, \quad
              B = \sqrt{\lambda_{\min}} \, V \Lambda^{-1/2} V^\top, \quad w = \tfrac1K B \mathbf 1

    All singular values of :math:`\hat J` are the smallest of J: of all such matrices it is the one
    nearest to J, up to its length. It costs one eigendecomposition of a K x K matrix.

    With absent tasks it is that of the others, and the mean is theirs. The leaves that are not
    ``shared`` get the mean over the tasks: w may be negative.

    A gradient of zero counts in K alone. Linearly dependent gradients, such as equal and opposite
    ones, or those of more tasks than parameters, have eigenvalues of zero, which are left out;
    those below K times the precision of the dtype, in units of the largest, count as zero. So
    nearly dependent gradients give a short direction, and at that threshold a long one: it is
    scaled by the smallest eigenvalue that counts. Opposite gradients, and no others, give 0.

    TorchJD has this scale; the official code and LibMTL have the sum over the tasks:
    ``optax.chain(aligned_mtl(), optax.scale(K))``. TorchJD's other scales,
    ``scale_mode="median"`` and ``"rmse"``, have the same direction.

    Args:
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is an :class:`AlignedMtlState`.

    Raises:
      ValueError: If ``shared`` is no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import aligned_mtl
      >>> tx = aligned_mtl()
      >>> task_gradients = jnp.array([[1.0, 0.0], [0.0, 200.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient.round(3))
      [0.5 0.5]

    References:
      Senushkin et al., `Independent Component Alignment for Multi-Task Learning
      <https://arxiv.org/abs/2305.19000>`_, CVPR 2023, Algorithm 1
    """
    return _aggregator.from_gram(_weigh, AlignedMtlState, shared=shared, heads="mean")


def aligned_mtl_weights(
    gram: jax.typing.ArrayLike, *, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""The weights of :func:`aligned_mtl`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`G = J J^\top`, ``[K, K]``.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, in at least float32; they may be negative. 0 for absent tasks and gradients of zero.

    Raises:
      ValueError: If ``gram`` is not square or ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import aligned_mtl_weights
      >>> print(aligned_mtl_weights(jnp.array([[1.0, 0.0], [0.0, 16.0]])).round(3))
      [0.5   0.125]

    References:
      As of :func:`aligned_mtl`.
    """
    return _aggregator.gram_weights(_weigh, AlignedMtlState(), gram, where)


def _weigh(
    gram: jax.Array, present: jax.Array, state: AlignedMtlState
) -> tuple[jax.Array, AlignedMtlState]:
    largest = jnp.max(jnp.diag(gram))
    values, vectors = jnp.linalg.eigh(gram / jnp.where(largest > 0, largest, 1))
    kept = values > len(gram) * _solvers.epsilon_of(gram) * values[-1]
    smallest = jnp.min(jnp.where(kept, values, values[-1]))
    ratios = jnp.where(kept, jnp.sqrt(smallest / jnp.where(kept, values, 1)), 0)
    mean = present / jnp.maximum(jnp.sum(present), 1).astype(gram.dtype)
    return vectors @ (ratios * (mean @ vectors)), state
