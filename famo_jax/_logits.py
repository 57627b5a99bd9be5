"""The task logits xi that FAMO and the amortized methods learn: optimizer, step, weights."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method


def logits_optimizer(
    learning_rate: optax.ScalarOrSchedule = 0.025,
    weight_decay: chex.Numeric = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    *,
    smoothing: chex.Numeric = 0.0,
) -> optax.GradientTransformation:
    r"""The optimizer of the task logits: decay that is coupled, then Adam.

    Algorithm 2 of the paper steps :math:`\xi` by Adam on :math:`\delta + \gamma \xi`; as
    PyTorch's ``Adam(weight_decay=gamma)``, not ``AdamW``.

    Build it once, outside the loop. :func:`update_logits` is compiled for the object that it
    gets, and a new one means to compile again.

    Args:
      learning_rate: Of Adam, a scalar or a schedule. Not with ``optimizer``.
      weight_decay: gamma. Pulls the logits to zero, so the task weights to equality.
      optimizer: What to use instead of Adam, without decay of its own: ``optax.sgd(beta)`` gives
        Algorithm 1.
      smoothing: The decay of an average of delta + gamma xi (:func:`optax.ema`), taken before the
        optimizer. At least 0 and below 1; 0 is the paper.

    Returns:
      A gradient transformation for an array of logits.

    Raises:
      ValueError: If a rate is negative or no scalar, ``smoothing`` not below 1, ``optimizer`` no
        gradient transformation, or given beside a ``learning_rate``.

    Example:
      >>> import jax.numpy as jnp, famo_jax
      >>> optimizer = famo_jax.logits_optimizer()
      >>> state = famo_jax.famo(num_tasks=2).init(None)
      >>> before, after = jnp.array([2.0, 2.0]), jnp.array([1.0, 2.0])  # the second is stuck
      >>> state = famo_jax.update_logits(state, before, after, optimizer)
      >>> print(state.logits.round(3))  # so it gains weight
      [-0.025  0.025]

    References:
      Liu et al., `FAMO <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, Algorithms 1 and 2
    """
    _checks.check_rate("weight_decay", weight_decay)
    _checks.check_decay("smoothing", smoothing)
    links = [optax.add_decayed_weights(weight_decay)]  # coupled: before the moments
    if not isinstance(smoothing, int | float) or smoothing != 0:
        links.append(optax.ema(smoothing))
    return optax.chain(*links, _checks.adam_unless(optimizer, learning_rate))


def start(num_tasks: int, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """The fields of a state before the first update: equal weights, no loss seen."""
    logits = jnp.zeros(num_tasks)
    return {
        "logits": logits,
        "opt_state": optimizer.init(logits),
        "losses": jnp.full_like(logits, jnp.inf),
    }


def step_logits(
    state: Any, delta: jax.Array, measured: jax.Array, optimizer: optax.GradientTransformation
) -> Any:
    """Steps xi against a gradient: xi <- xi + optimizer(delta + gamma xi).

    Args:
      state: With the fields ``logits`` and ``opt_state``.
      delta: ``[K]``
      measured: ``[K]``, bool. If it holds nowhere, the state stays as it is.
      optimizer: Of the logits.

    Returns:
      The next state.
    """
    updates, opt_state = optimizer.update(delta, state.opt_state, state.logits)
    logits = optax.apply_updates(state.logits, updates)
    stepped = state._replace(logits=logits, opt_state=opt_state)
    return optax.tree.where(jnp.any(measured), stepped, state)


def equalize(
    state: Any,
    decrease: jax.Array,
    measured: jax.Array,
    optimizer: optax.GradientTransformation,
) -> Any:
    """Steps xi towards equal decreases.

    Args:
      state: With the fields ``logits`` and ``opt_state``.
      decrease: ``[K]``, of the losses or of a function of them.
      measured: ``[K]``, bool, where it was measured. What is not finite counts as zero.
      optimizer: Of the logits.

    Returns:
      The next state.
    """
    # Adam squares it, and an infinite moment would stay so.
    measured = measured & jnp.isfinite(jnp.square(decrease))
    # delta = J_softmax(xi)^T decrease
    _, pullback = jax.vjp(jax.nn.softmax, state.logits)
    (delta,) = pullback(jnp.where(measured, decrease, 0))
    return step_logits(state, delta, measured, optimizer)


def task_weights(state: chex.ArrayTree) -> jax.Array:
    """The task weights z = softmax(xi).

    Args:
      state: A :class:`FamoState`, or an optimizer state that holds exactly one method's state.

    Returns:
      ``[K]``, in JAX's order of the losses: the keys of a dict are sorted.

    Raises:
      ValueError: If ``state`` holds not one method's state, or that of one without task logits.

    Example:
      >>> from famo_jax import famo, task_weights
      >>> task_weights(famo(num_tasks=4).init(None))
      Array([0.25, 0.25, 0.25, 0.25], dtype=float32)

    References:
      Liu et al., `FAMO <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, section 3.2
    """
    method_state = _method.find_state(state)
    if not hasattr(method_state, "logits"):
        raise ValueError(
            f"`state`: expected one with task logits, got {type(method_state).__name__}, which "
            "learns no task weights; what multiplies the losses is `loss_weights(losses, state)`"
        )
    return jax.nn.softmax(method_state.logits)
