"""MoCo: MGDA's weights by small steps, from averaged task gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import projections

from famo_jax import _checks, _stacked
from famo_jax._method import aggregation
from famo_jax._stacked import Shared
from famo_jax.aggregation import _memory


@aggregation
class MocoState(NamedTuple):
    """The state of MoCo."""

    gradients: _memory.Memory  # of [K, ...], y, at first 0
    seen: jax.Array  # [K], bool, the tasks of which something is remembered
    weights: jax.Array  # [K], lambda, at first 1 / K


def moco(
    num_tasks: int,
    *,
    beta: jax.typing.ArrayLike = 0.5,
    gamma: jax.typing.ArrayLike = 0.1,
    rho: jax.typing.ArrayLike = 0.0,
    shared: Shared = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multi-objective gradient correction: MGDA without the bias of noisy gradients.

    .. math:: y_i \leftarrow y_i - \beta (y_i - g_i), \quad
              \lambda \leftarrow \Pi_\Delta \big(\lambda - \gamma (Y Y^\top + \rho I) \lambda\big),
              \quad d = Y^\top \lambda

    where :math:`\Pi_\Delta` projects on the simplex. The average y tracks the gradient without the
    noise of the batch, and :math:`\lambda` descends on :math:`\lVert Y^\top \lambda \rVert^2 / 2`,
    which :func:`mgda` minimises for each batch anew.

    **Memory**: Y, K times the size of the shared parameters, in at least float32.

    ``init`` needs the parameters. What is remembered of a task begins with its first gradient. An
    absent task keeps what is remembered and its share of the weights, and the others' weights are
    divided by their sum in its absence. The leaves that are not ``shared`` get the gradients of
    this step with the same weights.

    :math:`\gamma` has the unit of one over the square of a gradient's length, so that the weights
    move slowly for short gradients and jump for long ones. Equal, opposite and dependent gradients
    need no care; one of zero draws the weight, as in MGDA. A gradient that is not finite gives NaN;
    it is not remembered, and the weights stay.

    LibMTL's, made of the authors' code, lets :math:`\beta` and :math:`\gamma` fall with the root of
    the number of steps, starts Y at 0, brings the gradients to the lengths of the losses first, and
    takes a softmax for :math:`\Pi_\Delta`.

    Args:
      num_tasks: K, the number of tasks.
      beta: The rate of y, above 0; 1 remembers nothing of earlier steps. May be traced.
      gamma: The rate of the weights, at least 0. May be traced.
      rho: How strongly the weights are drawn together, at least 0. May be traced.
      shared: The leaves whose gradients decide, and are remembered. Default: all.

    Returns:
      An aggregator whose state is a :class:`MocoState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``beta``, ``gamma`` or ``rho`` negative,
        not finite or no scalar, ``beta`` above 1, or ``shared`` no mask; in ``init``, without
        parameters; in ``update``, if there are other than K tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax.aggregation import moco
      >>> tx = moco(2)
      >>> task_gradients = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> gradient, _ = tx.update(task_gradients, tx.init(jnp.zeros(2)))
      >>> print([f"{each:.3f}" for each in gradient])
      ['0.575', '0.850']

    References:
      Fernando et al., `Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent
      Approach <https://arxiv.org/abs/2210.12624>`_, ICLR 2023
    """
    _checks.check_num_tasks(num_tasks)
    for name, value in (("beta", beta), ("gamma", gamma), ("rho", rho)):
        _checks.check_rate(name, value)
    if not isinstance(beta, jax.core.Tracer) and not 0 < np.asarray(beta) <= 1:
        raise ValueError(f"`beta`: expected a number above 0 and at most 1, got {beta!r}")

    def init(zeros: _memory.Memory) -> MocoState:
        return MocoState(zeros, jnp.zeros(num_tasks, bool), jnp.full(num_tasks, 1 / num_tasks))

    return _memory.from_memory(
        _combine, init, num_tasks=num_tasks, shared=shared, beta=beta, gamma=gamma, rho=rho
    )


def _combine(
    gradients: _memory.Memory,
    present: jax.Array,
    state: MocoState,
    *,
    beta: jax.Array,
    gamma: jax.Array,
    rho: jax.Array,
) -> tuple[list[jax.Array], jax.Array, MocoState]:
    sound = jnp.isfinite(_memory.norms(gradients))
    rates = jnp.where(present & sound, jnp.where(state.seen, beta, 1), 0)
    y = _memory.follow(state.gradients, gradients, rates)
    gram = _stacked.gram(y, (True,) * len(y))
    total = jnp.sum(state.weights, where=present)
    weights = jnp.where(present, state.weights, 0) / jnp.where(total > 0, total, 1)
    moved = weights - gamma * (gram @ weights + rho * weights)
    # From the largest down, so that the simplex is not lost in the rounding of long gradients.
    moved -= jnp.max(moved, initial=-jnp.inf, where=present)
    projected = projections.projection_simplex(jnp.where(present, moved, -2))
    weights = jnp.where(present, projected, 0)
    broken = jnp.any(present & ~sound)
    kept = jnp.where(present & ~broken & (total > 0), total * weights, state.weights)
    seen = state.seen | (present & sound)
    weights = jnp.where(broken, jnp.nan, weights)
    state = MocoState(y, seen, kept.astype(state.weights.dtype))
    return _memory.weighted_sum(y, weights), weights, state
