"""PCGrad: task gradients projected off those that they conflict with."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _core
from famo_jax.aggregation import _gram


class PcgradState(NamedTuple):
    """The state of PCGrad."""

    rng_key: jax.Array  # [], typed key


_core.scalarize.register(PcgradState, _core.needs_task_gradients)


def pcgrad(
    *, key: jax.Array | int, shared: _gram.Shared = None
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient surgery: each task's gradient loses what conflicts with the others'.

    For each task i, from :math:`g_i^\text{PC} = g_i`, over all other tasks j in random order

    .. math:: g_i^\text{PC} \leftarrow g_i^\text{PC} - \frac{\min(g_i^\text{PC} \cdot g_j, 0)}
              {\lVert g_j \rVert^2} g_j

    and :math:`d = \frac{1}{K} \sum_i g_i^\text{PC}`: the mean gradient, where there is no conflict.
    Of two tasks each is projected once, and the key does not matter.

    It stands first in its chain and takes task-stacked gradients, as :func:`losses_and_grads`
    gives them. ``update(updates, state, params=None, *, where=None, losses=None)``: ``where`` are
    the tasks present, one boolean, ``[K]``, or structured as ``losses``. An absent task is neither
    projected nor projected off, whatever its gradient holds, and the mean is that of the others.
    With all absent the gradient is 0.

    Opposite gradients, and no others, give 0; a gradient of zero changes nothing. With three tasks
    or more the direction may still conflict with some, and does where none can descend on all. A
    present gradient that is not finite gives NaN.

    The mean is that of the FAMO paper's Appendix A. PCGrad's own paper and code take the sum:
    ``optax.chain(pcgrad(key=0), optax.scale(K))``.

    Args:
      key: The seed of the random orders: an int or a typed key.
      shared: The leaves whose gradients conflict: a pytree of booleans (a prefix of the parameters
        will do) or a function of the parameters that returns one. The others, such as task heads,
        get the plain sum over the tasks. Default: all.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`PcgradState`. Its
      updates have no leading axis of K.

    Raises:
      ValueError: If ``key`` is neither an int nor a typed key; if ``shared`` is no mask, or does
        not fit; if the updates are not task-stacked.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import pcgrad
      >>> tx = pcgrad(key=0)
      >>> task_gradients = jnp.array([[2.0, 0.0], [-1.0, 1.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(None))
      >>> print(gradient)
      [0.5 1. ]

    References:
      Yu et al., `Gradient Surgery for Multi-Task Learning <https://arxiv.org/abs/2001.06782>`_,
      NeurIPS 2020, Algorithm 1; Liu et al., FAMO, Appendix A
    """
    _core.check_key(key)
    _gram.check_shared(shared)

    def init_fn(params: optax.Params) -> PcgradState:
        del params
        return PcgradState(rng_key=_core.make_key(key))

    def update_fn(
        updates: optax.Updates,
        state: PcgradState,
        params: optax.Params | None = None,
        *,
        where: chex.ArrayTree | None = None,
        losses: chex.ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PcgradState]:
        del extra_args
        _core.check_state(state, PcgradState)
        updates, present = _gram.present_tasks(updates, where, losses, params)
        mask = _gram.shared_leaves(shared, updates, params)
        rng_key, order_key = jax.random.split(state.rng_key)
        orders = _random_orders(order_key, present.size)
        weights = _gram.weigh(_solve, _gram.gram(updates, mask), present, orders)
        return _gram.combine(updates, weights, mask, heads="sum"), PcgradState(rng_key)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _random_orders(key: jax.Array, num_tasks: int) -> jax.Array:
    """For each task an order of all tasks, ``[K, K]``."""
    orders = jnp.broadcast_to(jnp.arange(num_tasks), (num_tasks, num_tasks))
    return jax.random.permutation(key, orders, axis=1, independent=True)


def _solve(gram: jax.Array, present: jax.Array, orders: jax.Array) -> jax.Array:
    """The mean over i of the coefficients of g_i^PC in terms of the task gradients, ``[K]``.

    Args:
      gram: ``[K, K]``. The gradients of absent tasks are zero, so without conflict.
      present: ``[K]``, bool
      orders: ``[K, K]``, row i the order in which task i is projected.
    """
    norms2 = jnp.where(jnp.diag(gram) > 0, jnp.diag(gram), 1)
    tasks = jnp.arange(len(gram))

    def project(step: int, coefficients: jax.Array) -> jax.Array:
        """One more projection of each g_i^PC, ``[K, K]``."""
        others = orders[:, step]
        dots = jnp.vecdot(coefficients, gram[others])  # g_i^PC.g_j
        dots = jnp.where(others == tasks, 0, dots)
        return coefficients.at[tasks, others].add(-jnp.minimum(dots, 0) / norms2[others])

    identity = jnp.eye(len(gram), dtype=gram.dtype)
    coefficients = jax.lax.fori_loop(0, len(gram), project, identity)
    return jnp.sum(coefficients, axis=0) / jnp.maximum(jnp.sum(present), 1)
