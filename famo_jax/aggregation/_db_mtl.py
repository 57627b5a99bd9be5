"""DB-MTL: averaged gradients of the log losses, all as long as the longest."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _tasks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _memory

EPSILON = 1e-8


@aggregation
class DbMtlState(NamedTuple):
    """The state of DB-MTL."""

    gradients: _memory.Memory  # of [K, ...], the averages, at first 0
    seen: jax.Array  # [K], bool, the tasks of which something is remembered


def db_mtl(
    num_tasks: int,
    *,
    beta: jax.typing.ArrayLike = 0.1,
    min_losses: chex.ArrayTree = 0.0,
    shared: Shared = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Dual balancing: of the losses by logarithms, of the gradients by their norms.

    .. math:: d = \sum_i \alpha_i \hat g_i, \quad
              \alpha_i = \frac{\max_j \lVert \hat g_j \rVert}{\lVert \hat g_i \rVert}, \quad
              \hat g_i \leftarrow \beta \hat g_i + (1 - \beta) \nabla \log(\ell_i - b_i + \epsilon)

    with :math:`\epsilon` = 1e-8. Its first half, the logarithms alone, is
    :func:`famo_jax.weighting.si`, which takes one backward pass; with ``beta=0.0`` nothing is
    remembered of earlier steps, though the memory is there.

    **Memory**: :math:`\hat g`, K times the size of the shared parameters, in at least float32.

    ``update`` needs ``losses``, and ``init`` the parameters. What is remembered of a task begins
    with its first gradient. An absent task keeps what is remembered, and has no part in the sum
    and the maximum. The leaves that are not ``shared`` get the gradients of the log losses, not
    averaged, with the same :math:`\alpha_i`.

    A task whose averaged gradient is zero weighs 0. No system is solved, so nothing is special
    about equal, opposite or dependent gradients. A loss not above its bound or a gradient that is
    not finite gives NaN, and is not remembered.

    As a loss nears its bound the gradient of its logarithm grows, and with it, by the maximum, the
    step of every other task too; a large :math:`\beta` remembers that for long.

    LibMTL, the authors' code, has :math:`\beta` = 0.9, lets it fall with the steps if asked to, and
    begins its averages at 0, so that the first steps are shorter by :math:`1 - \beta^t`.

    Args:
      num_tasks: K, the number of tasks.
      beta: The decay of the averages, at least 0 and below 1. May be traced.
      min_losses: The lower bounds b of the losses: one for all, or K.
      shared: The leaves whose gradients decide, and are remembered. Default: all.

    Returns:
      An aggregator whose state is a :class:`DbMtlState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``beta`` not in [0, 1), ``min_losses``
        not one or K finite numbers, or ``shared`` no mask; in ``init``, without parameters; in
        ``update``, if there are other than K tasks or no ``losses``.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import db_mtl
      >>> tx = db_mtl(2)
      >>> task_gradients, losses = jnp.array([[1.0, 0.0], [0.0, 3.0]]), jnp.array([0.5, 1.0])
      >>> gradient, _ = tx.update(task_gradients, tx.init(jnp.zeros(2)), losses=losses)
      >>> print(gradient)  # those of the logarithms are 2 and 3 long
      [3. 3.]

    References:
      Lin et al., `Dual-Balancing for Multi-Task Learning <https://arxiv.org/abs/2308.12029>`_,
      2023, Algorithm 1
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_decay("beta", beta)
    _checks.check_bounds(min_losses, num_tasks)
    return _memory.from_memory(
        _combine,
        lambda zeros: DbMtlState(zeros, jnp.zeros(num_tasks, bool)),
        num_tasks=num_tasks,
        shared=shared,
        needs_losses=True,
        beta=beta,
        min_losses=min_losses,
    )


def _combine(
    gradients: _memory.Memory,
    present: jax.Array,
    state: DbMtlState,
    *,
    losses: jax.Array,
    beta: jax.Array,
    min_losses: chex.ArrayTree,
) -> tuple[list[jax.Array], jax.Array, DbMtlState]:
    bounded = losses - _tasks.flatten_bounds(min_losses, num_tasks=losses.size) + EPSILON
    slopes = jnp.where(present, 1 / jnp.where(bounded > 0, bounded, jnp.nan), 0)
    logs = _memory.scale(gradients, slopes)
    sound = present & jnp.isfinite(_memory.norms(logs)) & (slopes > 0)
    rates = jnp.where(sound, jnp.where(state.seen, 1 - beta, 1), 0)
    averages = _memory.follow(state.gradients, logs, rates)
    norms = jnp.where(present, _memory.norms(averages), 0)
    alphas = jnp.where(norms > 0, jnp.max(norms) / jnp.where(norms > 0, norms, 1), 0)
    alphas = jnp.where(jnp.any(present & ~sound), jnp.nan, 1) * alphas
    combined = _memory.weighted_sum(averages, alphas)
    return combined, alphas * slopes, DbMtlState(averages, state.seen | sound)
