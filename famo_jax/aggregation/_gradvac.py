"""GradVac: task gradients turned towards each other, to the cosines that they usually have."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _aggregator, _solvers
from famo_jax.aggregation._pcgrad import random_orders


@aggregation
class GradvacState(NamedTuple):
    """The state of GradVac."""

    rng_key: jax.Array  # [], typed key
    targets: jax.Array  # [K, K], the averages of the cosines, at first 0


def gradvac(
    num_tasks: int,
    *,
    key: jax.Array | int,
    beta: jax.typing.ArrayLike = 0.01,
    shared: Shared = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient vaccine: cosines below their targets are raised to them.

    For each task i, from :math:`g_i' = g_i`, over all other tasks j in random order, where the
    cosine :math:`\phi_{ij}` between :math:`g_i'` and :math:`g_j` is below its target,

    .. math:: g_i' \leftarrow g_i' + \frac{\lVert g_i' \rVert \big(\hat\phi_{ij}
              \sqrt{1 - \phi_{ij}^2} - \phi_{ij} \sqrt{1 - \hat\phi_{ij}^2}\big)}
              {\lVert g_j \rVert \sqrt{1 - \hat\phi_{ij}^2}} \, g_j

    and :math:`d = \frac1K \sum_i g_i'`. The targets are exponential averages of the cosines,
    :math:`\hat\phi_{ij} \leftarrow (1 - \beta) \hat\phi_{ij} + \beta \phi_{ij}`. They begin at 0,
    so that the first step is that of :func:`pcgrad`, as are all for :math:`\beta = 0`.

    An absent task neither moves nor is moved to, its targets stay, and the mean is that of the
    others. The leaves that are not ``shared`` get the mean over the tasks.

    A gradient of zero has no cosines: it changes nothing, and its targets stay. Nor do they learn
    from a step in which a gradient is not finite. Opposite gradients, and no others, give 0 in the
    first step; later their targets are below 0, and they are left as they are. A target of 1
    cannot be reached by adding a multiple of :math:`g_j`: it counts as 1 less the square root of
    the precision of the dtype.

    The paper applies it to parts of the parameters by themselves too; this is its "whole model".
    TorchJD and LibMTL take the sum, ``optax.chain(gradvac(K, key=0), optax.scale(K))``, and have a
    beta of 0.5.

    Args:
      num_tasks: K, the number of tasks.
      key: The seed of the random orders: an int or a typed key.
      beta: The rate of the averages, at least 0 and below 1. May be traced.
      shared: The leaves whose gradients decide. Default: all.

    Returns:
      An aggregator whose state is a :class:`GradvacState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``key`` neither an int nor a typed key,
        ``beta`` not in [0, 1), or ``shared`` no mask; in ``update``, if there are other than K
        tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import gradvac
      >>> tx = gradvac(2, key=0, beta=0.5)
      >>> alike, apart = jnp.array([[1.0, 0.0], [1.0, 0.1]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> _, state = tx.update(alike, tx.init(None))
      >>> gradient, _ = tx.update(apart, state)
      >>> print([f"{each:.2f}" for each in gradient])  # the mean gives 0.5 and 0.5
      ['0.79', '0.79']

    References:
      Wang et al., `Gradient Vaccine: Investigating and Improving Multi-task Optimization in
      Massively Multilingual Models <https://arxiv.org/abs/2010.05874>`_, ICLR 2021
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_key(key)
    _checks.check_decay("beta", beta)
    init = lambda: GradvacState(_checks.make_key(key), jnp.zeros((num_tasks, num_tasks)))
    return _aggregator.from_gram(
        _weigh, init, shared=shared, heads="mean", num_tasks=num_tasks, beta=beta
    )


def _weigh(
    gram: jax.Array, present: jax.Array, state: GradvacState, *, beta: jax.Array
) -> tuple[jax.Array, GradvacState]:
    """The mean over i of the coefficients of g_i' in terms of the unit gradients."""
    rng_key, order_key = jax.random.split(state.rng_key)
    orders = random_orders(order_key, len(gram))
    cosines, norms, pointed = _solvers.correlation(gram, present)
    tasks = jnp.arange(len(gram))
    highest = 1 - _solvers.epsilon_of(gram) ** 0.5

    def turn(step: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """One more turn of each g_i', towards the next in its order."""
        coefficients, targets = carry
        others = orders[:, step]
        paired = (others != tasks) & pointed & pointed[others]
        dots = jnp.vecdot(coefficients, cosines[others])  # g_i'.u_j
        square = jnp.vecdot(coefficients, coefficients @ cosines)
        length = jnp.sqrt(jnp.maximum(square, 0))
        own = jnp.clip(dots / jnp.where(length > 0, length, 1), -1, 1)
        target = jnp.minimum(targets[tasks, others], highest)
        ratio = target / jnp.sqrt(1 - target**2)
        rise = length * (ratio * jnp.sqrt(1 - own**2) - own)
        learned = target + jnp.asarray(beta, gram.dtype) * (own - target)
        return (
            coefficients.at[tasks, others].add(jnp.where(paired & (own < target), rise, 0)),
            targets.at[tasks, others].set(jnp.where(paired, learned, targets[tasks, others])),
        )

    start = jnp.diag(jnp.where(pointed, norms, 0)), state.targets.astype(gram.dtype)
    coefficients, targets = jax.lax.fori_loop(0, len(gram), turn, start)
    mean = jnp.sum(coefficients, axis=0) / norms / jnp.maximum(jnp.sum(present), 1)
    return mean, GradvacState(rng_key, targets.astype(state.targets.dtype))
