"""How a method learns from the change of the losses, and between what it is measured."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _tasks


def from_changes(
    init: Callable[[], Any],
    learn: Callable[[Any, jax.Array, jax.Array, jax.Array], Any],
    *,
    check: Callable[[chex.ArrayTree], Any] = lambda losses: None,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a weighting method that learns from the change of the losses.

    Args:
      init: Returns the first state, with the field ``losses``: ``[K]``, those last seen.
      learn: ``learn(state, before, after, present)``, all ``[K]``, returns the next state.
      check: Gets the losses as they were given, and raises where they do not fit.
    """
    expected = jax.eval_shape(init)  # before `init` no device is touched

    def init_fn(params: optax.Params) -> Any:
        del params
        return init()

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        losses: chex.ArrayTree,
        losses_fn: Callable[[optax.Params], chex.ArrayTree] | None = None,
        new_losses: chex.ArrayTree | None = None,
        where: chex.ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        _checks.check_state(state, expected)
        before, after = _before_and_after(
            updates, state.losses, params, losses, losses_fn, new_losses
        )
        check(losses)
        present = _tasks.flatten_where(where, losses, state.losses.size)
        return updates, learn(state, before, after, present)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _before_and_after(
    updates: optax.Updates,
    last_losses: jax.Array,
    params: optax.Params | None,
    losses: chex.ArrayTree,
    losses_fn: Callable[[optax.Params], chex.ArrayTree] | None,
    new_losses: chex.ArrayTree | None,
) -> tuple[jax.Array, jax.Array]:
    """The losses between which an update measures the change: two-pass or one-pass. ``[K]``."""
    if losses_fn is not None:
        if new_losses is not None:
            raise ValueError("expected one of `losses_fn` and `new_losses`, got both")
        if not callable(losses_fn):
            raise ValueError(f"`losses_fn`: expected a function, got {type(losses_fn).__name__}")
        new_losses = losses_fn(_params_after(updates, params))
    num_tasks = last_losses.size
    now = _tasks.flatten_tasks(losses, "losses", num_tasks)
    if losses_fn is None and new_losses is None:
        return last_losses, now
    name = "new_losses" if losses_fn is None else "losses_fn"
    return now, _tasks.flatten_tasks(new_losses, name, num_tasks, like=losses)


def _params_after(updates: optax.Updates, params: optax.Params | None) -> optax.Params:
    if params is None:
        raise ValueError(
            "`params`: expected the parameters, at which `losses_fn` is evaluated, got None"
        )
    nodes = jax.tree.leaves(
        (updates, params), is_leaf=lambda node: isinstance(node, optax.MaskedNode)
    )
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise ValueError(
            "`losses_fn`: expected all parameters, got some masked: famo stands outside of "
            "optax.masked and optax.partition, last in a chain with them"
        )
    try:
        return optax.apply_updates(params, updates)
    except (ValueError, TypeError) as error:
        own, other = (jax.tree.map(jnp.shape, tree) for tree in (updates, params))
        raise ValueError(f"`params`: expected the shapes of the updates, {own}, got {other}") from (
            error
        )
