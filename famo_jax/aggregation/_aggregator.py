"""The declaration of an aggregation method, from which all else about it follows.

A method that is a function of the Gram matrix G states

    ``weigh(gram, present, state, **parameters) -> (weights, state)``

    * ``gram``: ``[K, K]``, at least float32; finite, and 0 in rows and columns of absent tasks
    * ``present``: ``[K]``, bool
    * ``weights``: ``[K]``; those of absent tasks are set to 0 afterwards

and calls :func:`from_gram`. With ``needs_losses`` it gets ``losses`` besides, ``[K]``, at least
float32 and 1 for absent tasks. One that needs the gradients themselves states

    ``combine(gradients, present, state, **parameters) -> (gradients, state)``

    * ``gradients``: a list of the shared leaves, ``[K, ...]``, 0 in the rows of absent tasks, to
      one of ``[...]``

and calls :func:`from_gradients`. One that remembers task gradients is declared in ``_memory.py``.
The ``state`` is of a type of the method's own, the ``parameters`` are traced.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _task_gradients, _tasks
from famo_jax._task_gradients import Heads, Shared

Weigh: TypeAlias = Callable[..., tuple[jax.Array, Any]]
Combine: TypeAlias = Callable[..., tuple[list[jax.Array], Any]]


def from_gram(
    weigh: Weigh,
    init: Callable[[], Any],
    *,
    shared: Shared,
    heads: Heads,
    num_tasks: int | None = None,
    needs_losses: bool = False,
    **parameters: Any,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a method that is a function of the Gram matrix.

    Args:
      weigh: The method.
      init: Returns its first state, of a type of its own.
      shared: The leaves over which the Gram matrix is taken.
      heads: What the others get: the same weights, the mean over the tasks or their sum. Whichever
        has the scale of the shared direction.
      num_tasks: K, or None where any number will do.
      needs_losses: Whether ``weigh`` gets the losses.
      **parameters: What ``weigh`` gets besides.
    """

    def aggregate(
        updates: chex.ArrayTree,
        mask: chex.ArrayTree,
        present: jax.Array,
        state: Any,
        losses: dict[str, jax.Array],
    ) -> tuple[chex.ArrayTree, Any]:
        gram = _task_gradients.gram(updates, mask)
        weights, state = _weigh(weigh, gram, present, state, parameters | losses)
        others = weights if heads == "weights" else _head_weights(heads, present, weights.dtype)
        return _task_gradients.combine(updates, weights, mask, others), state

    return transformation(
        aggregate, lambda _: init(), shared, num_tasks=num_tasks, needs_losses=needs_losses
    )


def from_gradients(
    combine: Combine, init: Callable[[], Any], *, shared: Shared, heads: Heads, **parameters: Any
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a method that needs the gradients themselves: as :func:`from_gram`."""

    def aggregate(
        updates: chex.ArrayTree,
        mask: chex.ArrayTree,
        present: jax.Array,
        state: Any,
        losses: dict[str, jax.Array],
    ) -> tuple[chex.ArrayTree, Any]:
        del losses
        combined, state = combine(selected(updates, mask), present, state, **parameters)
        others = _head_weights(heads, present, jnp.float32)
        return merge(updates, mask, combined, others), state

    return transformation(aggregate, lambda _: init(), shared)


def selected(tree: chex.ArrayTree, mask: chex.ArrayTree) -> list[jax.Array]:
    """The leaves that the mask selects."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True)
    return [leaf for leaf, flag in pairs if flag]


def merge(
    updates: chex.ArrayTree,
    mask: chex.ArrayTree,
    combined: list[jax.Array],
    head_weights: jax.Array,
) -> chex.ArrayTree:
    """One gradient: what a method combined where shared, the weighted sum elsewhere."""
    gradient = _task_gradients.combine(updates, head_weights, mask, head_weights)
    leaves, treedef = jax.tree.flatten(gradient)
    pending = iter(combined)
    flags = jax.tree.leaves(mask)
    picked = [next(pending) if flag else leaf for flag, leaf in zip(flags, leaves, strict=True)]
    return jax.tree.unflatten(treedef, picked)


def gram_weights(
    weigh: Weigh,
    state: Any,
    gram: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None,
    **parameters: Any,
) -> jax.Array:
    """The weights of a method that remembers nothing, from a Gram matrix of the user's. Jitted.

    Args:
      weigh: The method.
      state: Its state.
      gram: ``[K, K]``
      where: ``[K]``, bool, the tasks present, or None for all.
      **parameters: What ``weigh`` gets besides.

    Returns:
      ``[K]``: exactly 0 where absent, and NaN where present if a present gradient is not finite.
    """
    try:
        array = jnp.asarray(gram)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`gram`: expected an array, got {type(gram).__name__}") from error
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"`gram`: expected shape (K, K), got {array.shape}")
    if not any(jnp.issubdtype(array.dtype, kind) for kind in _tasks.REAL):
        raise ValueError(f"`gram`: expected real values, got {array.dtype}")
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    present = _tasks.flatten_where(where, where, len(array))
    weights: jax.Array = _weigh(weigh, array, present, state, parameters)[0]
    return weights


def transformation(
    aggregate: Callable[..., tuple[Any, Any]],
    init: Callable[[Any], Any],
    shared: Shared,
    *,
    num_tasks: int | None = None,
    needs_losses: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """What all aggregation methods have in common.

    Args:
      aggregate: ``(updates, mask, present, state, losses) -> (gradient, state)``, where ``losses``
        is a dict of this one argument, empty unless ``needs_losses``.
      init: Returns the first state, of the parameters.
      shared: The leaves whose gradients decide.
      num_tasks: K, or None where any number will do.
      needs_losses: Whether ``update`` has to be given ``losses``.
    """
    _task_gradients.check_shared(shared)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        where: chex.ArrayTree | None = None,
        losses: chex.ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        updates, present = _task_gradients.present_tasks(updates, where, losses, params)
        if num_tasks is not None and present.size != num_tasks:
            raise ValueError(
                f"`updates`: expected the gradients of num_tasks = {num_tasks} tasks, got "
                f"{present.size}"
            )
        mask = _task_gradients.shared_leaves(shared, updates, params)
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates)
        _checks.check_state(state, jax.eval_shape(init, first if params is None else params))
        given = {}
        if needs_losses:
            values = _tasks.flatten_tasks(losses, "losses", present.size)
            values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
            given["losses"] = jnp.where(present, values, 1)
        return aggregate(updates, mask, present, state, given)

    return optax.GradientTransformationExtraArgs(init, update_fn)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _weigh(
    weigh: Weigh, gram: jax.Array, present: jax.Array, state: Any, parameters: dict[str, Any]
) -> tuple[jax.Array, Any]:
    gram = jnp.where(present & present[:, None], gram, 0)
    finite = jnp.all(jnp.isfinite(gram))
    with jax.default_matmul_precision("highest"):
        weights, state = weigh(jnp.where(finite, gram, 0), present, state, **parameters)
    return jnp.where(present, jnp.where(finite, weights, jnp.nan), 0), state


def _head_weights(heads: Heads, present: jax.Array, dtype: Any) -> jax.Array:
    ones = present.astype(dtype)
    return ones / jnp.maximum(jnp.sum(ones), 1) if heads == "mean" else ones
