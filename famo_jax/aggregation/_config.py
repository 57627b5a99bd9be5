"""ConFIG: the direction at equal angles to all task gradients, as long as their projections."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers


@aggregation
class ConfigState(NamedTuple):
    """ConFIG remembers nothing."""


def config(*, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""ConFIG: conflict-free inverse gradients.

    .. math:: d = \Big(\sum_i g_i \cdot \hat d\Big) \hat d, \quad
              \hat d = \frac{U^+ \mathbf 1}{\lVert U^+ \mathbf 1 \rVert}, \quad
              U = (u_1, \dots, u_K)^\top, \quad u_i = g_i / \lVert g_i \rVert

    :math:`\hat d` has the same cosine with all task gradients, which is the direction of
    :func:`imtl_g`; d is as long as their projections on it together. It costs one
    eigendecomposition of the K x K cosines. With two tasks it is their bisector, without an
    inverse, which the official code treats by itself.

    With absent tasks both are those of the others. The leaves that are not ``shared`` get the sum
    over the tasks.

    A gradient of zero has no direction and counts for nothing. Linearly dependent gradients, such
    as those of more tasks than parameters, have in general no direction at equal angles: the
    cosines are then as equal as can be in the least-squares sense. Equal gradients count as one in
    the direction, each in the length; opposite ones, or any others whose unit gradients sum to 0,
    give 0.

    This is the scale of the official code and of TorchJD. M-ConFIG, which takes one task's gradient
    a step, is not here.

    Args:
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`ConfigState`.

    Raises:
      ValueError: If ``shared`` is no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import config
      >>> tx = config()
      >>> task_gradients = jnp.array([[1.0, 0.0], [0.0, 3.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient.round(3))
      [2. 2.]

    References:
      Liu et al., `ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks
      <https://arxiv.org/abs/2408.11104>`_, ICLR 2025, eq. 2
    """
    return _aggregator.from_gram(_weigh, ConfigState, shared=shared, heads="sum")


def config_weights(
    gram: jax.typing.ArrayLike, *, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""The weights of :func:`config`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`J J^\top`, ``[K, K]``.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``, in at least float32; they may be negative. 0 for absent tasks and gradients of zero.

    Raises:
      ValueError: If ``gram`` is not square or ``where`` of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import config_weights
      >>> weights = config_weights(jnp.array([[1.0, 0.0], [0.0, 9.0]]))
      >>> print([f"{each:.3f}" for each in weights])
      ['2.000', '0.667']

    References:
      As of :func:`config`.
    """
    return _aggregator.gram_weights(_weigh, ConfigState(), gram, where)


def _weigh(
    gram: jax.Array, present: jax.Array, state: ConfigState
) -> tuple[jax.Array, ConfigState]:
    cosines, norms, pointed = _solvers.correlation(gram, present)
    beta = jnp.where(pointed, _solvers.equal_angles(cosines, pointed), 0)
    projections = cosines @ beta  # on the unit gradients: 1, where they are independent
    square = beta @ projections
    exists = square > _solvers.epsilon_of(gram)  # below it is rounding
    lengths = jnp.where(pointed, norms, 0)
    factor = (lengths @ projections) / jnp.where(exists, square, 1)
    return jnp.where(exists & pointed, factor * beta / norms, 0), state
