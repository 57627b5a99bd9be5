"""How a method learns from what the losses do in a step, and how that is measured."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _tasks

Measure: TypeAlias = Literal["change", "slope"]


class Change(NamedTuple):
    """What K losses do in a step."""

    # [K] each: before and after it or, where the slope was taken, before it alone.
    losses: tuple[jax.Array, ...]
    slope: jax.Array | None = None  # [K], the derivative of the losses along the step


def fall(change: Change, of: Callable[[jax.Array], jax.Array] = lambda losses: losses) -> jax.Array:
    """How far a function of each loss falls in the step, ``[K]``."""
    if change.slope is not None:
        slope: jax.Array = jax.jvp(of, change.losses, (change.slope,))[1]
        return -slope
    before, after = change.losses
    return of(before) - of(after)


def from_changes(
    init: Callable[[], Any],
    learn: Callable[[Any, Change, jax.Array], Any],
    *,
    measure: Measure = "change",
    check: Callable[[chex.ArrayTree], Any] = lambda losses: None,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a weighting method that learns from the change of the losses.

    Args:
      init: Returns the first state, with the field ``losses``: ``[K]``, those last seen.
      learn: ``learn(state, change, present)``, the change in the dtype of ``losses``, the tasks
        present ``[K]``, returns the next state.
      measure: What is taken of ``losses_fn``: the losses after the step, or their slope along it.
      check: Gets the losses as they were given, and raises where they do not fit.
    """
    _checks.check_one_of("measure", measure, ("change", "slope"))
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
        if losses_fn is not None and not callable(losses_fn):
            raise ValueError(f"`losses_fn`: expected a function, got {type(losses_fn).__name__}")
        num_tasks = state.losses.size
        now = _tasks.flatten_tasks(losses, "losses", num_tasks)
        if measure == "slope":
            slope = _slope(updates, params, losses, losses_fn, new_losses, num_tasks)
            change = Change((now,), slope)
        else:
            after = _after(updates, params, losses, losses_fn, new_losses, num_tasks)
            change = Change((state.losses, now) if after is None else (now, after))
        check(losses)
        present = _tasks.flatten_where(where, losses, num_tasks)
        change = jax.tree.map(lambda leaf: leaf.astype(state.losses.dtype), change)
        return updates, learn(state, change, present)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _after(
    updates: optax.Updates,
    params: optax.Params | None,
    losses: chex.ArrayTree,
    losses_fn: Callable[[optax.Params], chex.ArrayTree] | None,
    new_losses: chex.ArrayTree | None,
    num_tasks: int,
) -> jax.Array | None:
    """The losses after the step, ``[K]``, of two-pass; None of one-pass."""
    if losses_fn is None and new_losses is None:
        return None
    if losses_fn is not None:
        if new_losses is not None:
            raise ValueError("expected one of `losses_fn` and `new_losses`, got both")
        _check_step(updates, params)
        try:
            after = optax.apply_updates(params, updates)
        except (ValueError, TypeError) as error:
            raise _misfit(updates, params) from error
        new_losses = losses_fn(after)
    name = "new_losses" if losses_fn is None else "losses_fn"
    return _tasks.flatten_tasks(new_losses, name, num_tasks, like=losses)


def _slope(
    updates: optax.Updates,
    params: optax.Params | None,
    losses: chex.ArrayTree,
    losses_fn: Callable[[optax.Params], chex.ArrayTree] | None,
    new_losses: chex.ArrayTree | None,
    num_tasks: int,
) -> jax.Array:
    """The derivative of the losses along the updates, ``[K]``."""
    if losses_fn is None or new_losses is not None:
        got = "none" if new_losses is None else "`new_losses`"
        raise ValueError(
            '`losses_fn`: expected a function of the parameters, which measure="slope" '
            f"differentiates along the updates, got {got}"
        )
    _check_step(updates, params)

    def evaluate(params: optax.Params) -> jax.Array:
        values = losses_fn(params)
        return _tasks.flatten_tasks(
            values, "losses_fn", num_tasks, like=losses, kinds=(jnp.floating,)
        )

    leaves, treedef = jax.tree.flatten(params)
    steps = jax.tree.leaves(updates)
    if [jnp.shape(leaf) for leaf in leaves] != [jnp.shape(step) for step in steps]:
        raise _misfit(updates, params)
    for leaf in leaves:
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.inexact):
            raise ValueError(f"`params`: expected floating values, got {dtype}")
    # A step is applied in the dtype of its parameter.
    pairs = zip(steps, leaves, strict=True)
    tangents = [jnp.asarray(step, jnp.result_type(leaf)) for step, leaf in pairs]
    slope: jax.Array
    _, slope = jax.jvp(evaluate, (params,), (jax.tree.unflatten(treedef, tangents),))
    return slope


def _check_step(updates: optax.Updates, params: optax.Params | None) -> None:
    """Raises ValueError where a step cannot be made of them."""
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


def _misfit(updates: optax.Updates, params: optax.Params) -> ValueError:
    own, other = (jax.tree.map(jnp.shape, tree) for tree in (updates, params))
    return ValueError(f"`params`: expected the shapes of the updates, {own}, got {other}")
