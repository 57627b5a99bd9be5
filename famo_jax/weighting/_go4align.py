"""GO4Align: groups of tasks that share a weight."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method
from famo_jax.weighting import _groups, _memory


class Go4alignState(NamedTuple):
    """The state of GO4Align."""

    log_risks: jax.Array  # [K], log p up to a constant
    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    min_losses: jax.Array  # [K], b
    step_size: jax.Array  # [], eta
    num_groups: jax.Array  # [], int


def go4align(
    num_tasks: int,
    *,
    num_groups: int | jax.Array = 2,
    step_size: chex.Numeric = 1e-4,
    min_losses: chex.ArrayTree = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""GO4Align: tasks at a like stage of training form a group, and share its weight.

    .. math:: p \leftarrow \frac{p\, e^{-\eta \ell}}{\sum_j p_j e^{-\eta \ell_j}}, \quad
              v_i = \frac{\sum_j \ell_j}{\ell_i} p_i, \quad
              L = \sum_i w_i \ell_i

    with the losses above their bounds, and as :math:`w_i` the mean of v over the group of task i.
    The groups are those of k-means of the K numbers v. p begins at 1 / K and remembers the losses;
    equal losses have weights of 1. The w are constant to differentiation. It hands the updates
    through untouched, at the cost of one backward pass.

    The formula is that of the authors' code, whose k-means starts at random. Here the groups are
    the best there are, which for numbers can be found exactly: m groups are m - 1 cuts of the
    sorted numbers. It takes of the order of m K^2 operations, and K^2 numbers of memory.

    Losses have to be above their bounds. An absent task counts in groups and in p by its loss last
    seen, so that the others keep their weights, and takes no part before it was seen. Nor does a
    loss that is not finite, or not above its bound, change p.

    Args:
      num_tasks: K, the number of losses.
      num_groups: m, at least 1, at most how many groups there are. May be traced.
      step_size: eta, at least 0. May be traced.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. May be traced.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`Go4alignState`.

    Raises:
      ValueError: If ``num_tasks`` or ``num_groups`` is no int of at least 1, ``step_size`` not
        finite and at least 0, or ``min_losses`` are not finite numbers; when losses come, if their
        number is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import go4align
      >>> state = go4align(3, num_groups=2).init(None)
      >>> weights = loss_weights(jnp.array([1.0, 4.0, 5.0]), state)
      >>> print([f"{each:.2f}" for each in weights])
      ['3.33', '0.75', '0.75']

    References:
      Shen et al., `GO4Align: Group Optimization for Multi-Task Alignment
      <https://arxiv.org/abs/2404.06486>`_, NeurIPS 2024
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)
    if not isinstance(num_groups, jax.core.Tracer):
        _checks.check_num_tasks(num_groups, "num_groups")
    _checks.check_rate("step_size", step_size)

    def init() -> Go4alignState:
        return Go4alignState(
            log_risks=jnp.zeros(num_tasks),
            losses=_memory.never(num_tasks),
            min_losses=jnp.array(bounds(), float),
            step_size=jnp.array(step_size, float),
            num_groups=jnp.array(num_groups, int),
        )

    def learn(state: Go4alignState, losses: jax.Array, present: jax.Array) -> Go4alignState:
        log_risks = _log_risks(state, *_memory.gaps(state, losses, present))
        seen = _memory.remember(state, losses, present, step_size=step_size)
        return seen._replace(log_risks=log_risks.astype(state.log_risks.dtype))

    return _method.from_losses(init, learn, num_tasks=num_tasks, check=bounds)


def _log_risks(state: Go4alignState, gaps: jax.Array, counted: jax.Array) -> jax.Array:
    stepped = state.log_risks - jnp.where(counted & (gaps > 0), state.step_size * gaps, 0)
    stepped = jnp.where(jnp.isfinite(stepped), stepped, state.log_risks)
    return stepped - jnp.max(stepped)


@_method.weighting(Go4alignState, tasks="losses")
def scalarize_go4align(state: Go4alignState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses by the weights of their groups."""
    gaps, counted = _memory.gaps(state, losses, present)
    constant = jax.lax.stop_gradient(gaps)
    risks = _memory.softmax(_log_risks(state, constant, counted), counted)
    values = jnp.sum(constant, where=counted) / constant * risks
    weights = _groups.centroids(values, counted, state.num_groups)
    return jnp.sum(jnp.where(present, weights * gaps, 0))
