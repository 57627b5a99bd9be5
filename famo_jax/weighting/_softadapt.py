"""SoftAdapt: the losses that fall slowest weigh most."""

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import _checks, _method, _tasks


class Original(NamedTuple):
    """The weights by the slopes."""


class Normalized(NamedTuple):
    """By the slopes over the sum of their sizes."""


class LossWeighted(NamedTuple):
    """By the slopes, times the losses."""


# A node without leaves: every transformation, and every format of files, keeps it in a state.
Variant: TypeAlias = Original | Normalized | LossWeighted
VARIANTS: dict[Any, Variant] = {
    "original": Original(),
    "normalized": Normalized(),
    "loss_weighted": LossWeighted(),
}


class SoftadaptState(NamedTuple):
    """The state of SoftAdapt."""

    history: jax.Array  # [order, K], the losses of the last steps, at first +inf, newest last
    beta: jax.Array  # []
    variant: Variant = Original()  # no array


def softadapt(
    num_tasks: int,
    *,
    beta: chex.Numeric = 0.1,
    order: int = 1,
    variant: Literal["original", "normalized", "loss_weighted"] = "original",
) -> optax.GradientTransformationExtraArgs:
    r"""SoftAdapt: weights by the slopes of the losses over the last steps.

    .. math:: L = \sum_i w_i \ell_i, \quad w = \mathrm{softmax}(\beta s), \quad
              s_i = \sum_{k=0}^{n} c_k \ell_i(t - n + k)

    with s the derivative by finite differences of order n, over the last n losses and this step's:
    :math:`\ell_i(t) - \ell_i(t - 1)` for n = 1. The w are constant to differentiation. It hands the
    updates through untouched, at the cost of one backward pass.

    ================== ======================================================
    ``variant``        w, up to its sum of 1
    ================== ======================================================
    ``original``       exp(beta s_i)
    ``normalized``     exp(beta s_i / sum_j abs(s_j))
    ``loss_weighted``  m_i exp(beta s_i), m_i the mean of these n + 1 losses
    ================== ======================================================

    The authors advise the last. :math:`\beta` has the unit of one over a loss, but in
    ``normalized``. Their code has the derivative at the oldest of the losses, as here, divides in
    ``normalized`` by the sum of the slopes with their signs, so that the order of the weights turns
    round where the sum is negative, and has weights of 1 until it has n + 1 losses.

    Under ``where`` the term of an absent task is dropped, and the others keep their weights; its
    loss last seen counts as this step's. Until n + 1 finite losses are there a slope counts as 0,
    and so does one that is not finite. ``loss_weighted`` wants losses above 0.

    Args:
      num_tasks: K, the number of losses.
      beta: At least 0; the smaller the more equal the weights. May be traced.
      order: n, the order of the finite differences.
      variant: What is made of the slopes.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`SoftadaptState`.

    Raises:
      ValueError: If ``num_tasks`` or ``order`` is no int of at least 1, ``beta`` not finite and at
        least 0, or ``variant`` none of those above; when losses come, if their number is another.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import softadapt
      >>> tx = softadapt(2, beta=1.0)
      >>> _, state = tx.update((), tx.init(None), losses=jnp.array([2.0, 2.0]))
      >>> weights = loss_weights(jnp.array([1.0, 2.0]), state)  # the second is stuck
      >>> print([f"{each:.2f}" for each in weights])
      ['0.27', '0.73']

    References:
      Heydari et al., `SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with
      Multi-Part Loss Functions <https://arxiv.org/abs/1912.12355>`_, 2019, section 3.1
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_num_tasks(order, "order")
    _checks.check_rate("beta", beta)
    _checks.check_one_of("variant", variant, VARIANTS)

    def init() -> SoftadaptState:
        return SoftadaptState(
            history=jnp.full_like(jnp.zeros((order, num_tasks)), jnp.inf),
            beta=jnp.array(beta, float),
            variant=VARIANTS[variant],
        )

    def learn(state: SoftadaptState, losses: jax.Array, present: jax.Array) -> SoftadaptState:
        newest = _tasks.last_seen(state.history[-1], present, losses)
        history = jnp.concatenate([state.history[1:], newest[None]])
        return state._replace(history=history, beta=jnp.array(beta, float))

    return _method.from_losses(init, learn, num_tasks=num_tasks)


@_method.weighting(SoftadaptState, tasks="history")
def scalarize_softadapt(state: SoftadaptState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses by weights from their slopes."""
    newest = jnp.where(present, jax.lax.stop_gradient(losses), state.history[-1])
    points = jnp.concatenate([state.history, newest[None]])
    order = len(state.history)
    ends = [-sum(1 / k for k in range(1, order + 1))]
    stencil = ends + [(-1) ** (k + 1) * math.comb(order, k) / k for k in range(1, order + 1)]
    slopes = jnp.array(stencil, points.dtype) @ points
    measured = jnp.all(jnp.isfinite(points), axis=0) & jnp.isfinite(slopes)
    slopes = jnp.where(measured, slopes, 0)
    size = jnp.sum(jnp.abs(slopes)) if isinstance(state.variant, Normalized) else 1.0
    # From the largest down, so that it is exactly 0: huge ones are so not rounded to above it.
    exponents = state.beta * (slopes - jnp.max(slopes)) / jnp.where(size > 0, size, 1)
    if isinstance(state.variant, LossWeighted):
        known = jnp.isfinite(points)
        total = jnp.sum(points, axis=0, where=known)
        mean = total / jnp.maximum(jnp.sum(known, axis=0), 1)
        exponents += jnp.log(jnp.maximum(mean, np.finfo(points.dtype).tiny))
    weights = jax.nn.softmax(exponents)
    return jnp.sum(jnp.where(present, weights * losses, 0))
