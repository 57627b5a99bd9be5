"""Loss discrepancy control."""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import _checks, _method, _tasks
from famo_jax.weighting import _memory, _uw


class Logarithmic(NamedTuple):
    """What is weighed: the logarithms of the losses over their first ones."""


class LdcMtlState(NamedTuple):
    """The state of loss discrepancy control."""

    scores: jax.Array  # [K], s, at first 1
    opt_state: optax.OptState  # of the scores' optimizer
    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    min_losses: jax.Array  # [K], b
    first_losses: jax.Array  # [K], the first above its bound, less that, 0 before it; or ones
    penalty: jax.Array  # [], lambda
    scale: Logarithmic | None  # no array: a node without leaves, which every file format keeps


def ldc_mtl(
    num_tasks: int,
    *,
    penalty: chex.Numeric = 0.05,
    normalization: Literal["rescaled", "logarithmic"] | None = "rescaled",
    learning_rate: optax.ScalarOrSchedule = _checks.LEARNING_RATE,
    min_losses: chex.ArrayTree = 0.0,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Loss discrepancy control: weights by which the weighted losses come near each other.

    .. math:: L = \sum_i \frac{\sigma_i t_i}{\sum_j \sigma_j} + \lambda \sum_{i=1}^{K-1}
              \lvert \sigma_i t_i - \sigma_{i+1} t_{i+1} \rvert, \quad
              \sigma_i = \frac{1}{1 + e^{-s_i}}

    is minimised by the model, and by the scores s through an optimizer of their own, with the sum
    in the denominator constant to differentiation. It hands the updates through untouched, at the
    cost of one backward pass. t are the losses after normalization, with :math:`\ell_i(0)` the
    first loss above its bound:

    ================= ==================================================== ======================
    ``normalization`` t_i                                                  in the authors' code
    ================= ==================================================== ======================
    ``None``          the loss                                             CelebA, CityScapes
    ``"rescaled"``    the loss times min_j l_j(0) / l_i(0)                 NYU-v2
    ``"logarithmic"`` log(l_i / l_i(0))                                    QM9, anew each epoch
    ================= ==================================================== ======================

    **Weights may be negative**: where a weighted loss is below its neighbours', the penalty of more
    than :math:`1 / (2 \sum_j \sigma_j)` lets it rise. And they depend on the order of the tasks,
    since only neighbours are compared.

    The authors have such scores for CelebA and QM9, and a small network on the features for images.
    There the scores learn at the rate of the model, the sum in the denominator is differentiated
    for NYU-v2, and for CityScapes the penalty is on the losses without weights.

    An absent task is compared with its neighbours by its loss last seen, so that the others keep
    their weights, and its score gets a gradient of 0. A pair in which one was never seen is left
    out. Of a loss that is not finite or not above its bound no score learns, nor of one so large
    that Adam's square of its gradient is not finite.

    Args:
      num_tasks: K, the number of losses.
      penalty: lambda, at least 0. May be traced.
      normalization: How losses are brought to a scale.
      learning_rate: Of Adam on s: a scalar or a schedule. Not with ``optimizer``.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. May be traced.
      optimizer: Instead of Adam.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`LdcMtlState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1, ``penalty`` or a rate negative,
        ``normalization`` none of those above, ``min_losses`` are not finite numbers, or
        ``optimizer`` is no gradient transformation; when losses come, if their number is another.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import ldc_mtl
      >>> tx = ldc_mtl(2, penalty=0.1, normalization=None)
      >>> weights = loss_weights(jnp.array([1.0, 4.0]), tx.init(None))
      >>> print([f"{each:.3f}" for each in weights])
      ['0.427', '0.573']

    References:
      Xiao et al., `LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control
      <https://arxiv.org/abs/2502.08585>`_, 2025; the authors' code, of which this is the form
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)
    _checks.check_rate("penalty", penalty)
    _checks.check_one_of("normalization", normalization, (None, "rescaled", "logarithmic"))
    inner = _checks.adam_unless(optimizer, learning_rate)

    def init() -> LdcMtlState:
        scores = jnp.ones(num_tasks)
        return LdcMtlState(
            scores=scores,
            opt_state=inner.init(scores),
            losses=_memory.never(num_tasks),
            min_losses=jnp.array(bounds(), float),
            first_losses=jnp.zeros_like(scores) if normalization else jnp.ones_like(scores),
            penalty=jnp.array(penalty, float),
            scale=Logarithmic() if normalization == "logarithmic" else None,
        )

    def learn(state: LdcMtlState, losses: jax.Array, present: jax.Array) -> LdcMtlState:
        losses = losses.astype(state.scores.dtype)
        sound = present & jnp.isfinite(losses) & (losses > state.min_losses)
        objective = lambda scores, *seen: scalarize_ldc_mtl(state._replace(scores=scores), *seen)
        learned = _uw.step_scales(state.scores, state.opt_state, losses, sound, inner, objective)
        first = _tasks.first_seen(state.first_losses, sound, losses - state.min_losses)
        state = state._replace(scores=learned[0], opt_state=learned[1], first_losses=first)
        return _memory.remember(state, losses, present, penalty=penalty)

    return _method.from_losses(init, learn, num_tasks=num_tasks, check=bounds)


@_method.weighting(LdcMtlState, tasks="scores")
def scalarize_ldc_mtl(state: LdcMtlState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The weighted mean of the losses, and how far neighbours are apart."""
    gaps, counted = _memory.gaps(state, losses, present)
    first = _tasks.first_seen(state.first_losses, counted, jax.lax.stop_gradient(gaps))
    known = jnp.where(first > 0, first, jnp.maximum(jnp.max(first), 1))
    values = jnp.log(gaps / known) if state.scale is not None else gaps / known * jnp.min(known)
    fixed = jax.lax.stop_gradient(state.scores)
    log_gates = jax.nn.log_sigmoid(jnp.where(present, state.scores, fixed))
    shares = jax.lax.stop_gradient(_memory.softmax(log_gates, counted))
    shares *= jnp.exp(log_gates - jax.lax.stop_gradient(log_gates))  # 1, and its derivative
    mean = jnp.sum(jnp.where(present, shares * values, 0))
    weighted = jnp.exp(log_gates) * values
    apart = weighted[:-1] - weighted[1:]
    # What rounding takes apart is equal, as all are at first. (That of jnp.abs at 0 would be 1.)
    rounding = 8 * np.finfo(apart.dtype).eps * jnp.abs(weighted[1:])
    compared = counted[:-1] & counted[1:] & (present[:-1] | present[1:])
    signs = jnp.where(compared & (jnp.abs(apart) > rounding), jnp.sign(apart), 0)
    return mean + state.penalty * jnp.sum(jax.lax.stop_gradient(signs) * apart)
