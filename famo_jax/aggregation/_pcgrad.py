"""PCGrad: task gradients projected off those that they conflict with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator


@aggregation
class PcgradState(NamedTuple):
    """The state of PCGrad."""

    rng_key: jax.Array  # [], typed key


def pcgrad(*, key: jax.Array | int, shared: Shared = None) -> optax.GradientTransformationExtraArgs:
    r"""Gradient surgery: each task's gradient loses what conflicts with the others'.

    For each task i, from :math:`g_i^\text{PC} = g_i`, over all other tasks j in random order

    .. math:: g_i^\text{PC} \leftarrow g_i^\text{PC} - \frac{\min(g_i^\text{PC} \cdot g_j, 0)}
              {\lVert g_j \rVert^2} g_j

    and :math:`d = \frac{1}{K} \sum_i g_i^\text{PC}`: the mean gradient, where there is no conflict.
    Of two tasks each is projected once, and the key does not matter.

    An absent task is neither projected nor projected off, and the mean is that of the others. The
    leaves that are not ``shared`` get the mean over the tasks.

    Opposite gradients, and no others, give 0; a gradient of zero changes nothing. With three tasks
    or more the direction may still conflict with some, and does where none can descend on all.

    The mean is that of the FAMO paper's Appendix A. PCGrad's own paper and code take the sum, on
    the task heads too: ``optax.chain(pcgrad(key=0), optax.scale(K))``.

    Args:
      key: The seed of the random orders: an int or a typed key.
      shared: The leaves whose gradients conflict. Default: all.

    Returns:
      An aggregator. Its state, a :class:`PcgradState`, holds the key.

    Raises:
      ValueError: If ``key`` is neither an int nor a typed key, or ``shared`` no mask.

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
    _checks.check_key(key)
    init = lambda: PcgradState(rng_key=_checks.make_key(key))
    return _aggregator.from_gram(_weigh, init, shared=shared, heads="mean")


def random_orders(key: jax.Array, num_tasks: int) -> jax.Array:
    """For each task an order of all tasks, ``[K, K]``."""
    orders = jnp.broadcast_to(jnp.arange(num_tasks), (num_tasks, num_tasks))
    return jax.random.permutation(key, orders, axis=1, independent=True)


def _weigh(
    gram: jax.Array, present: jax.Array, state: PcgradState
) -> tuple[jax.Array, PcgradState]:
    """The mean over i of the coefficients of g_i^PC in terms of the task gradients."""
    rng_key, order_key = jax.random.split(state.rng_key)
    orders = random_orders(order_key, len(gram))
    norms2 = jnp.where(jnp.diag(gram) > 0, jnp.diag(gram), 1)
    tasks = jnp.arange(len(gram))

    def project(step: int, coefficients: jax.Array) -> jax.Array:
        """One more projection of each g_i^PC, off the next in its order, ``[K, K]``."""
        others = orders[:, step]
        dots = jnp.vecdot(coefficients, gram[others])  # g_i^PC.g_j
        dots = jnp.where(others == tasks, 0, dots)
        return coefficients.at[tasks, others].add(-jnp.minimum(dots, 0) / norms2[others])

    identity = jnp.eye(len(gram), dtype=gram.dtype)
    coefficients = jax.lax.fori_loop(0, len(gram), project, identity)
    mean = jnp.sum(coefficients, axis=0) / jnp.maximum(jnp.sum(present), 1)
    return mean, PcgradState(rng_key)
