"""Amortized Nash-MTL: the bargaining weights of Nash-MTL, learned a step at a time."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _change, _checks, _logits, _method, _tasks

LEARNING_RATE = 0.005
LEAST = -1e30  # beside any other logit a weight of 0; alone, unlike -inf, none that is NaN


class AmortizedNashMtlState(NamedTuple):
    """The state of amortized Nash-MTL."""

    logits: jax.Array  # [K], xi
    opt_state: optax.OptState  # of the logits' optimizer
    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    weights: jax.Array  # [K], 1 / abs(l - b) of the first loss, 0 before one was seen
    sizes: jax.Array  # [K], abs(r) when it was last measured, 0 before
    bounds: jax.Array  # [K], b


def amortized_nash_mtl(
    num_tasks: int,
    *,
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    min_losses: chex.ArrayTree = 0.0,
    measure: _change.Measure = "change",
    smoothing: chex.Numeric = 0.0,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Amortized Nash-MTL: learns from the falls of the losses the weights of the Nash bargain.

    .. math:: L = \sum_i w_i (\ell_i - b_i), \quad w_i = \frac{z_i}{|\ell_i(0) - b_i|}, \quad
        z = \mathrm{softmax}(\xi), \qquad
        r_i = w_i (\ell_i - \ell_i'), \quad
        \delta_i = \frac{r_i - \bar r}{\sum_j |r_j|}

    Nash-MTL's weights solve :math:`w_i (G w)_i = 1`: all tasks have the same share :math:`r_i` in
    the fall of the weighted loss, and so they have here where the logits rest. Shares know no
    units: neither a weight nor a step changes when a loss is given in others. There is no gamma: a
    task whose weight is small has a small share, and gains. Nor is there a normalizer: weights
    start at one over the first loss, as :func:`first_loss` holds them, so that L is 1 at first and
    then falls as the losses do, free of units where its length matters (SGD, clipping, decay).

    ``update`` takes ``losses``, ``losses_fn``, ``new_losses`` and ``where`` as FAMO's does,
    one-pass, two-pass or by slope, at FAMO's cost.

    * Losses may have any sign. The first that is finite and not at its bound is a task's unit; one
      far from typical is made good as the logits learn. Until then a task weighs by the loss that
      it has, at the bound as one of 1.
    * A loss that rises has a negative share: its task gains weight.
    * Absent tasks have a share of 0, but count in the sum by the :math:`|r_i|` last measured, so
      that a task that is in few batches weighs more in these, and as much over all as it would in
      full ones. What is not finite, nor its square, counts likewise. A task never seen joins with
      the mean of the others' logits.
    * If no loss changes, nothing is learned.

    Args:
      num_tasks: K, the number of losses.
      learning_rate: Of the logits' Adam: a scalar or a schedule. 0 is :func:`first_loss`.
      min_losses: The lower bounds b, from which the first losses count: one for all, ``[K]``, or a
        pytree of scalars structured as the losses. May be traced.
      measure: ``"change"`` or ``"slope"``: see :func:`famo_jax.famo`.
      smoothing: The decay of an average over steps (:func:`optax.ema`) of delta. At least 0 and
        below 1.
      optimizer: Instead of Adam, without ``learning_rate``.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an
      :class:`AmortizedNashMtlState`.

    Raises:
      ValueError: As :func:`famo_jax.famo` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import amortized_nash_mtl
      >>> tx = amortized_nash_mtl(2)
      >>> losses, new_losses = jnp.array([1.0, 1e6]), jnp.array([0.9, 0.99e6])
      >>> _, state = tx.update((), tx.init(None), losses=losses, new_losses=new_losses)
      >>> shares = loss_weights(losses, state) * losses
      >>> print([f"{share:.4f}" for share in shares])  # the second, whose fall is smaller, gains
      ['0.4975', '0.5025']

    References:
      Navon et al., `Multi-Task Learning as a Bargaining Game
      <https://arxiv.org/abs/2202.01017>`_, ICML 2022, Claim 3.1; to amortize it, Liu et al., `FAMO
      <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, Appendix B, where it needs three passes;
      the balance of shares is this library's own
    """
    _checks.check_num_tasks(num_tasks)
    bounds = _checks.check_bounds(min_losses, num_tasks)
    adam = _checks.adam_unless(optimizer, learning_rate, LEARNING_RATE)
    inner = _logits.logits_optimizer(weight_decay=0.0, optimizer=adam, smoothing=smoothing)

    def init() -> AmortizedNashMtlState:
        fields = _logits.start(num_tasks, inner)
        zeros = jnp.zeros_like(fields["losses"])
        bound = jnp.array(bounds(), zeros.dtype)
        return AmortizedNashMtlState(weights=zeros, sizes=zeros.copy(), bounds=bound, **fields)

    def learn(state: AmortizedNashMtlState, change: _change.Change, present: jax.Array) -> Any:
        weights = _first_weights(state, present, *change.losses)
        seen = weights > 0
        relative = weights * _change.fall(change)
        measured = present & seen & jnp.isfinite(jnp.square(relative))  # so that they add up
        falls = _relative_weights(state, seen) * jnp.where(measured, relative, 0)  # r
        # An absent task counts by what it was: the sum must not depend on who is in the batch.
        sizes = jnp.where(measured, jnp.abs(falls), state.sizes)
        total = jnp.sum(sizes)
        shares = falls / jnp.where(total > 0, total, 1)
        stepped = _logits.step_logits(state, shares - jnp.mean(shares), measured, inner)
        mean = jnp.mean(stepped.logits, where=seen | ~jnp.any(seen))
        logits = jnp.where(seen, stepped.logits, mean)
        losses = _tasks.last_seen(state.losses, present, *change.losses)
        return stepped._replace(logits=logits, losses=losses, weights=weights, sizes=sizes)

    return _change.from_changes(init, learn, measure=measure, check=bounds)


def _first_weights(state: Any, present: jax.Array, *losses: jax.Array) -> jax.Array:
    """One over the first losses: those of the state, and by these losses where it has none."""
    weights = (1 / jnp.abs(each - state.bounds) for each in losses)
    return _tasks.first_seen(state.weights, present, *weights)


def _relative_weights(state: Any, seen: jax.Array) -> jax.Array:
    """The softmax of the logits over the tasks that were seen, z."""
    return jax.nn.softmax(jnp.where(seen, state.logits, LEAST))


@_method.weighting(AmortizedNashMtlState, tasks="logits", last=True)
def scalarize_nash(state: Any, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses weighted by w, ``[]``."""
    first = _first_weights(state, present, jax.lax.stop_gradient(losses))
    first = jnp.where(present & (first == 0), 1, first)
    weights = first * _relative_weights(state, first > 0)
    return jnp.sum(jnp.where(present, weights * (losses - state.bounds), 0))
