"""GradDrop: of each entry of the gradient only the tasks of one sign, drawn at random."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _core
from famo_jax.aggregation import _gram


class GraddropState(NamedTuple):
    """The state of GradDrop."""

    rng_key: jax.Array  # [], typed key


_core.scalarize.register(GraddropState, _core.needs_task_gradients)


def graddrop(
    *, key: jax.Array | int, shared: _gram.Shared = None
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient sign dropout: each entry keeps one sign, drawn by how pure the signs are.

    For each entry of the gradient, with U uniform on [0, 1),

    .. math:: P = \frac12 \Big(1 + \frac{\sum_i g_i}{\sum_i |g_i|}\Big), \quad
              d = \sum_i g_i \cdot \begin{cases} [g_i > 0] & P > U \\ [g_i < 0] & P \le U
              \end{cases}

    P is the sign purity. So d is the sum of the positive entries with probability P and otherwise
    that of the negative ones. Entries on whose sign all tasks agree are summed as they are; where
    all are zero so is d.

    It stands first in its chain and takes task-stacked gradients, as :func:`losses_and_grads`
    gives them. ``update(updates, state, params=None, *, where=None, losses=None)``: ``where`` are
    the tasks present, one boolean, ``[K]``, or structured as ``losses``. Absent tasks enter
    neither P nor d, whatever their gradients hold. With all absent the gradient is 0.

    No system is solved, so nothing is special about equal, opposite or dependent gradients. An
    entry that is NaN for a present task is NaN in the result; an infinite one may be.

    The official code takes the mean over the tasks and multiplies it by K, which is this sum. For
    the mean: ``optax.chain(graddrop(key=0), optax.scale(1 / K))``. The paper drops gradients with
    respect to activations, the official multi-task code, as here, those of the parameters.

    Args:
      key: The seed of the draws: an int or a typed key.
      shared: The leaves in which signs are dropped: a pytree of booleans (a prefix of the
        parameters will do) or a function of the parameters that returns one. The others, such as
        task heads, get the plain sum over the tasks. Default: all.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`GraddropState`. Its
      updates have no leading axis of K.

    Raises:
      ValueError: If ``key`` is neither an int nor a typed key; if ``shared`` is no mask, or does
        not fit; if the updates are not task-stacked.

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
    _core.check_key(key)
    _gram.check_shared(shared)

    def init_fn(params: optax.Params) -> GraddropState:
        del params
        return GraddropState(rng_key=_core.make_key(key))

    def update_fn(
        updates: optax.Updates,
        state: GraddropState,
        params: optax.Params | None = None,
        *,
        where: chex.ArrayTree | None = None,
        losses: chex.ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GraddropState]:
        del extra_args
        _core.check_state(state, GraddropState)
        updates, _ = _gram.present_tasks(updates, where, losses, params)
        mask = _gram.shared_leaves(shared, updates, params)
        rng_key, draw_key = jax.random.split(state.rng_key)
        leaves, treedef = jax.tree.flatten(updates)
        keys = jax.random.split(draw_key, len(leaves))
        combined = [
            _pick_signs(leaf, leaf_key) if is_shared else jnp.sum(leaf, axis=0)
            for leaf, is_shared, leaf_key in zip(leaves, jax.tree.leaves(mask), keys, strict=True)
        ]
        return jax.tree.unflatten(treedef, combined), GraddropState(rng_key)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _pick_signs(grads: jax.Array, key: jax.Array) -> jax.Array:
    """The gradients of one leaf, ``[K, ...]``, summed over the sign that is kept, ``[...]``."""
    dtype = jnp.promote_types(grads.dtype, jnp.float32)
    ones = jnp.ones(len(grads), dtype)  # on a CPU this product is five times as fast as `jnp.sum`
    positive = jnp.tensordot(ones, jnp.maximum(grads, 0), axes=1, precision=_gram.HIGHEST)
    negative = jnp.tensordot(ones, jnp.minimum(grads, 0), axes=1, precision=_gram.HIGHEST)
    # P = (1 + sum g / sum |g|) / 2 is the positive part's share of sum |g|.
    threshold = jax.random.uniform(key, positive.shape, dtype) * (positive - negative)
    return jnp.where(positive > threshold, positive, negative).astype(grads.dtype)
