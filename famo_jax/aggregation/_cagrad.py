"""CAGrad: the direction near the mean gradient that helps the worst task most."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers
from famo_jax.aggregation._mgda import mgda_weights

MAX_STEPS = 30  # of the search for the worst task's gain; 2 to 7 are usual


Carry: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@aggregation
class CagradState(NamedTuple):
    """CAGrad remembers nothing."""


def cagrad(
    *, c: jax.typing.ArrayLike = 0.4, shared: Shared = None
) -> optax.GradientTransformationExtraArgs:
    r"""Conflict-averse gradient descent: the best for the worst task, near the mean gradient.

    .. math:: d = \arg\max_d \min_i g_i \cdot d \quad \text{subject to} \quad
              \lVert d - g_0 \rVert \le c \lVert g_0 \rVert, \quad g_0 = \tfrac1K \sum_i g_i

    By duality :math:`d = g_0 + c \lVert g_0 \rVert \, g_w / \lVert g_w \rVert` where
    :math:`g_w = J^\top w` and w minimises
    :math:`g_w \cdot g_0 + c \lVert g_0 \rVert \lVert g_w \rVert` on the simplex. It is solved
    exactly, on the device. With c = 0 it is the mean gradient, and as c grows it takes the
    direction of :func:`mgda`.

    With absent tasks mean and minimum are over the others. The leaves that are not ``shared`` get
    the mean over the tasks.

    Where 0 is in the convex hull of the task gradients (opposite gradients, a gradient of zero;
    often with more tasks than parameters) no direction helps all tasks. The solution need not then
    be unique nor lie on the boundary of the ball: of those with :math:`g_i \cdot d \ge 0` it is
    the one nearest to the mean, so 0 where there is no other. If the gradients sum to 0, so is d.

    The official code multiplies all of this by K, and divides it by :math:`1 + c^2` on the shared
    parameters: behind ``cagrad(c=c, shared=shared)`` stand ``optax.scale(K)`` and
    ``optax.masked(optax.scale(1 / (1 + c**2)), shared)``.

    Args:
      c: The radius of the ball, in lengths of the mean gradient. At least 0; below 1 the average
        loss converges to a stationary point. May be traced.
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`CagradState`.

    Raises:
      ValueError: If ``c`` is negative, not finite or no scalar, or ``shared`` no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import cagrad
      >>> tx = cagrad(c=0.5)
      >>> task_gradients = jnp.array([[2.0, 0.0], [-1.0, 1.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> gains = task_gradients @ gradient  # the mean gradient gives 1 and 0
      >>> print([f"{gain:.2f}" for gain in gains])
      ['0.50', '0.50']

    References:
      Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
      <https://arxiv.org/abs/2110.14048>`_, NeurIPS 2021, eq. 3 and 4
    """
    _checks.check_rate("c", c)
    return _aggregator.from_gram(_weigh, CagradState, shared=shared, heads="mean", c=c)


def cagrad_weights(
    gram: jax.typing.ArrayLike,
    c: jax.typing.ArrayLike = 0.4,
    *,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    r"""The weights of :func:`cagrad`, from the Gram matrix of the task gradients.

    Args:
      gram: :math:`J J^\top`, ``[K, K]``.
      c: The radius of the ball, in lengths of the mean gradient.
      where: ``[K]``, bool, the tasks present. Default: all.

    Returns:
      ``[K]``: 1 / K for the mean gradient, plus :math:`w_i` times a length. In at least float32;
      0 for absent tasks.

    Raises:
      ValueError: If ``gram`` is not square, ``c`` negative, infinite or no scalar, or ``where`` of
        another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import cagrad_weights
      >>> print(cagrad_weights(jnp.array([[1.0, 0.0], [0.0, 4.0]]), c=0.0).round(3))
      [0.5 0.5]

    References:
      As of :func:`cagrad`.
    """
    _checks.check_rate("c", c)
    return _aggregator.gram_weights(_weigh, CagradState(), gram, where, c=c)


def _weigh(
    gram: jax.Array, present: jax.Array, state: CagradState, *, c: jax.Array
) -> tuple[jax.Array, CagradState]:
    c = jnp.asarray(c, gram.dtype)
    epsilon = _solvers.epsilon_of(gram)
    largest = jnp.max(jnp.diag(gram))
    gram = gram / jnp.where(largest > 0, largest, 1)
    lengths = jnp.sqrt(jnp.diag(gram))
    pointed = lengths > 0

    def norm(weights: jax.Array) -> jax.Array:
        """|J^T w|, and 0 where rounding in the Gram matrix may be all there is."""
        square = weights @ gram @ weights
        noise = 4 * epsilon * jnp.square(jnp.sum(weights * lengths))
        return jnp.where(square > noise, jnp.sqrt(jnp.maximum(square, 0)), 0)

    mean = present / jnp.maximum(jnp.sum(present), 1).astype(gram.dtype)
    along_mean = gram @ mean  # g_i.g_0
    radius = c * norm(mean)

    def bound(weights: jax.Array) -> jax.Array:
        """The dual objective g_w.g_0 + c |g_0| |g_w|: no direction gives the worst task more."""
        return along_mean @ weights + radius * norm(weights)

    # The gain t = min_i g_i.d is at most t wherever the nearest point to g_0 with all g_i.d >= t,
    # g_0 + J^T y, is not within the ball. By duality w = y / sum_i y_i then bounds the gain better,
    # which is a Newton step on a convex function of t: from above it falls to the solution.
    eye = jnp.eye(len(gram), dtype=bool)
    system = jnp.where(eye & ~pointed, 1, gram)

    def nearest(gain: jax.Array) -> jax.Array:
        """Gives y for the point nearest to the mean gradient where every task gains this."""
        y = _solvers.nonnegative_least_squares(system, jnp.where(pointed, gain - along_mean, -1))
        return jnp.where(pointed, y, 0)

    alone = jnp.where(present, along_mean + radius * lengths, jnp.inf)  # the bounds of unit vectors
    z = mgda_weights(gram, where=present)
    highest = jnp.minimum(jnp.minimum(bound(mean), bound(z)), jnp.min(alone))
    tolerance = 4 * epsilon * (lengths @ z) * (norm(mean) + radius)  # the rounding in a bound

    def step(carry: Carry) -> Carry:
        gain, *_, count = carry
        y = nearest(gain)
        total = jnp.sum(y)
        new_gain = bound(y / jnp.where(total > 0, total, 1))
        inside = new_gain > highest + 16 * tolerance
        new_gain = jnp.minimum(new_gain, highest)
        return new_gain, jnp.abs(new_gain - gain) > tolerance, y, inside, count + 1

    # Just under the bound, where y exists even if no direction helps all tasks.
    _, _, y, inside, _ = jax.lax.while_loop(
        lambda carry: carry[1] & (carry[4] < MAX_STEPS),
        step,
        (
            highest - tolerance,
            jnp.array(True),
            jnp.zeros_like(mean),
            jnp.array(False),
            jnp.zeros((), int),
        ),
    )
    # Onto the boundary of the ball exactly, unless the largest gain is reached inside.
    distance = norm(y)
    length = radius / jnp.where(distance > 0, distance, 1)
    return mean + y * jnp.where(inside, jnp.minimum(length, 1), length), state
