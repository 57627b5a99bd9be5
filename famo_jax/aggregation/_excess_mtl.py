"""ExcessMTL: tasks weighed by how far they are from converged, in units of where they began."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _memory


@aggregation
class ExcessMtlState(NamedTuple):
    """The state of ExcessMTL."""

    squares: _memory.Memory  # of [K, ...], the sums of the squared gradients
    first_risks: jax.Array  # [K], 0 until the task was there
    logits: jax.Array  # [K], log w up to a constant, at first 0


def excess_mtl(
    num_tasks: int, *, eta: jax.typing.ArrayLike = 0.01, shared: Shared = None
) -> optax.GradientTransformationExtraArgs:
    r"""Robust multi-task learning with excess risks: what has not converged weighs more.

    .. math:: d = \sum_i w_i g_i, \quad w_i \propto w_i \, e^{\eta E_i / E_i(0)}, \quad
              E_i = g_i^\top H_i^{-1} g_i, \quad H_i = \mathrm{diag}\Big(\sum_t g_i g_i^\top
              \Big)^{1/2}

    with weights that sum to 1. E estimates the excess risk, how far a loss is above its optimum: a
    noisy task, whose loss stays high, is not mistaken for a slow one.

    **Memory**: the sums of squares, K times the size of the shared parameters, in at least
    float32. They only grow, and E falls as they do.

    ``init`` needs the parameters. E(0) is that of the task's first step. An absent task keeps its
    weight against the mean of the others, which sum to 1 without it. The leaves that are not
    ``shared`` get the same weights.

    A gradient of zero has a risk of 0; a task counts as begun with its first gradient that is not.
    No system is solved, so nothing is special about equal, opposite or dependent gradients. A
    gradient that is not finite gives NaN, and nothing of its task is learned.

    TorchJD has this scale; the authors' code and LibMTL have weights that sum to K. All three
    make the first step's E an exponent undivided or none; here E / E(0) is 1 then, and the weights
    are equal.

    Args:
      num_tasks: K, the number of tasks.
      eta: The rate of the weights, at least 0. May be traced.
      shared: The leaves whose gradients decide, and are remembered. Default: all.

    Returns:
      An aggregator whose state is an :class:`ExcessMtlState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``eta`` negative, not finite or no
        scalar, or ``shared`` no mask; in ``init``, without parameters; in ``update``, if there
        are other than K tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import excess_mtl
      >>> tx = excess_mtl(2, eta=1.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> for rows in ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.1]]):  # the second converges
      ...     gradient, state = tx.update(jnp.array(rows), state)
      >>> print([f"{each:.3f}" for each in gradient])
      ['0.668', '0.033']

    References:
      He et al., `Robust Multi-Task Learning with Excess Risks
      <https://arxiv.org/abs/2402.02009>`_, ICML 2024, eq. 6, 7 and 9
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_rate("eta", eta)

    def init(zeros: _memory.Memory) -> ExcessMtlState:
        return ExcessMtlState(zeros, jnp.zeros(num_tasks), jnp.zeros(num_tasks))

    return _memory.from_memory(_combine, init, num_tasks=num_tasks, shared=shared, eta=eta)


def _combine(
    gradients: _memory.Memory, present: jax.Array, state: ExcessMtlState, *, eta: jax.Array
) -> tuple[list[jax.Array], jax.Array, ExcessMtlState]:
    sound = jnp.isfinite(_memory.norms(gradients))
    learns = present & sound
    grown = tuple(old + jnp.square(new) for old, new in zip(state.squares, gradients, strict=True))
    squares = _memory.follow(state.squares, grown, learns.astype(float))
    # g^T H^(-1) g = |H^(-1/2) g|^2, and g is 0 where H is.
    halves = tuple(
        new * jnp.where(total > 0, total, 1) ** -0.25
        for new, total in zip(gradients, squares, strict=True)
    )
    risks = jnp.where(learns, jnp.square(_memory.norms(halves)), 0)
    first = jnp.where(learns & (state.first_risks == 0), risks, state.first_risks)
    ratios = jnp.where(first > 0, risks / jnp.where(first > 0, first, 1), 1)
    mean = jnp.sum(ratios, where=learns) / jnp.maximum(jnp.sum(learns), 1)
    logits = state.logits + jnp.where(learns, eta * (ratios - mean), 0)
    weights = jax.nn.softmax(logits, where=present)
    weights = jnp.where(jnp.any(present & ~sound), jnp.nan, jnp.where(present, weights, 0))
    kinds = state.first_risks.dtype, state.logits.dtype
    state = ExcessMtlState(squares, first.astype(kinds[0]), logits.astype(kinds[1]))
    return _memory.weighted_sum(gradients, weights), weights, state
