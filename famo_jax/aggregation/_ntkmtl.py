"""NTKMTL: task gradients weighed by what their neural tangent kernels say of their speed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator


@aggregation
class NtkmtlState(NamedTuple):
    """NTKMTL remembers nothing."""


def ntkmtl(
    *, exponent: jax.typing.ArrayLike = 0.5, shared: Shared = None
) -> optax.GradientTransformationExtraArgs:
    r"""NTKMTL: the slower a task converges by its neural tangent kernel, the more it weighs.

    .. math:: d = \sum_i w_i g_i, \quad
              w_i = \Big( \sum_j \lambda_j \Big/ \lambda_i \Big)^{1/2}, \quad
              \lambda_i = \lVert g_i \rVert^2

    The paper's :math:`\lambda_i` is the largest eigenvalue of the task's kernel over n mini-batches
    of the batch. This is its n = 1, where the kernel is one number: with an exponent of 1/2 all
    :math:`w_i g_i` are of one length, that of all gradients laid end to end, and whether they
    conflict is not looked at. It costs the diagonal of the Gram matrix.

    With absent tasks the sums are over the others. The leaves that are not ``shared`` get the same
    weights.

    A gradient of zero weighs 0. No system is solved, so nothing is special about equal, opposite
    or dependent gradients.

    The official code multiplies it by K and clips its norm at 1, on the shared parameters:
    ``optax.clip_by_global_norm(1.0)`` behind it does so.

    Args:
      exponent: 1/2 in the paper; up to 3/4 gives slow tasks more (official code). May be traced.
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is an :class:`NtkmtlState`.

    Raises:
      ValueError: If ``exponent`` is negative, not finite or no scalar, or ``shared`` no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import ntkmtl
      >>> tx = ntkmtl()
      >>> task_gradients = jnp.array([[3.0, 0.0], [0.0, 4.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient.round(3))
      [5. 5.]

    References:
      Qin et al., `NTKMTL: Mitigating Task Imbalance in Multi-Task Learning from Neural Tangent
      Kernel Perspective <https://arxiv.org/abs/2510.18258>`_, NeurIPS 2025
    """
    _checks.check_rate("exponent", exponent)
    return _aggregator.from_gram(
        _weigh, NtkmtlState, shared=shared, heads="weights", exponent=exponent
    )


def ntkmtl_weights(
    gram: jax.typing.ArrayLike,
    exponent: jax.typing.ArrayLike = 0.5,
    *,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    r"""The weights of :func:`ntkmtl`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`J J^\top`, ``[K, K]``, of which the diagonal is looked at.
      exponent: 1/2 in the paper.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, in at least float32. 0 for absent tasks and gradients of zero.

    Raises:
      ValueError: If ``gram`` is not square, ``exponent`` negative, infinite or no scalar, or
        ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import ntkmtl_weights
      >>> print(ntkmtl_weights(jnp.array([[9.0, 0.0], [0.0, 16.0]])).round(3))
      [1.667 1.25 ]

    References:
      As of :func:`ntkmtl`.
    """
    _checks.check_rate("exponent", exponent)
    return _aggregator.gram_weights(_weigh, NtkmtlState(), gram, where, exponent=exponent)


def _weigh(
    gram: jax.Array, present: jax.Array, state: NtkmtlState, *, exponent: jax.Array
) -> tuple[jax.Array, NtkmtlState]:
    del present  # the gradients of absent tasks are zero
    eigenvalues = jnp.diag(gram)
    largest = jnp.max(eigenvalues)
    relative = eigenvalues / jnp.where(largest > 0, largest, 1)
    ratios = jnp.sum(relative) / jnp.where(relative > 0, relative, 1)
    return jnp.where(relative > 0, ratios ** jnp.asarray(exponent, gram.dtype), 0), state
