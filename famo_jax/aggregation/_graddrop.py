"""GradDrop: of each entry of the gradient only the tasks of one sign, drawn at random."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import HIGHEST, Shared
from famo_jax.aggregation import _aggregator


@aggregation
class GraddropState(NamedTuple):
    """The state of GradDrop."""

    rng_key: jax.Array  # [], typed key


def graddrop(
    *, key: jax.Array | int, shared: Shared = None
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient sign dropout: each entry keeps one sign, drawn by how pure the signs are.

    For each entry of the gradient, with U uniform on [0, 1),

    .. math:: P = \frac12 \Big(1 + \frac{\sum_i g_i}{\sum_i |g_i|}\Big), \quad
              d = \sum_i g_i \cdot \begin{cases} {[g_i > 0]} & P > U \\ {[g_i < 0]} & P \le U
              \end{cases}

    P is the sign purity. So d is the sum of the positive entries with probability P and otherwise
    that of the negative ones. Entries on whose sign all tasks agree are summed as they are; where
    all are zero so is d.

    Absent tasks enter neither P nor d. The leaves that are not ``shared`` get the sum over the
    tasks.

    No system is solved, so nothing is special about equal, opposite or dependent gradients. An
    entry that is NaN for a present task is NaN in the result; an infinite one may be.

    The official code takes the mean over the tasks and multiplies it by K, which is this sum. For
    the mean: ``optax.chain(graddrop(key=0), optax.scale(1 / K))``. The paper drops gradients with
    respect to activations, the official multi-task code, as here, those of the parameters.

    Args:
      key: The seed of the draws: an int or a typed key.
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`GraddropState`.

    Raises:
      ValueError: If ``key`` is neither an int nor a typed key, or ``shared`` no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import graddrop
      >>> tx = graddrop(key=0)
      >>> task_gradients = jnp.array([[1.0, 3.0, -1.0], [2.0, -1.0, -1.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient[0], gradient[1] in (3.0, -1.0), gradient[2])
      3.0 True -2.0

    References:
      Chen et al., `Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout
      <https://arxiv.org/abs/2010.06808>`_, NeurIPS 2020, eq. 1 and Algorithm 1
    """
    _checks.check_key(key)
    init = lambda: GraddropState(rng_key=_checks.make_key(key))
    return _aggregator.from_gradients(_combine, init, shared=shared, heads="sum")


def _combine(
    gradients: list[jax.Array], present: jax.Array, state: GraddropState
) -> tuple[list[jax.Array], GraddropState]:
    del present  # the gradients of absent tasks are zero, without a sign
    rng_key, draw_key = jax.random.split(state.rng_key)
    keys = jax.random.split(draw_key, len(gradients))
    picked = [_pick_signs(leaf, leaf_key) for leaf, leaf_key in zip(gradients, keys, strict=True)]
    return picked, GraddropState(rng_key)


def _pick_signs(grads: jax.Array, key: jax.Array) -> jax.Array:
    """The gradients of one leaf, ``[K, ...]``, summed over the sign that is kept, ``[...]``."""
    dtype = jnp.promote_types(grads.dtype, jnp.float32)
    ones = jnp.ones(len(grads), dtype)  # on a CPU this product is five times as fast as `jnp.sum`
    positive = jnp.tensordot(ones, jnp.maximum(grads, 0), axes=1, precision=HIGHEST)
    negative = jnp.tensordot(ones, jnp.minimum(grads, 0), axes=1, precision=HIGHEST)
    # P = (1 + sum g / sum |g|) / 2 is the positive part's share of sum |g|.
    threshold = jax.random.uniform(key, positive.shape, dtype) * (positive - negative)
    return jnp.where(positive > threshold, positive, negative).astype(grads.dtype)
