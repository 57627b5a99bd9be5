"""Losses, masks and bounds of any structure: one value for each task, ``[K]``."""

import contextlib
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp

REAL = (jnp.floating, jnp.integer)
BOOL = (jnp.bool_,)


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array or a Python number, None of anything else."""
    if isinstance(leaf, bool | int | float | complex):
        return jnp.result_type(leaf)
    return getattr(leaf, "dtype", None)


def flatten_tasks(
    tree: chex.ArrayTree,
    name: str,
    num_tasks: int | None = None,
    *,
    like: chex.ArrayTree | None = None,
    kinds: tuple[Any, ...] = REAL,
    broadcast: bool = False,
) -> jax.Array:
    """One value for each task, from an array of any shape or a pytree of scalars.

    Args:
      tree: An array of K values of any shape, or a pytree of K scalars (in JAX's order: the keys
        of a dict are sorted).
      name: The argument's name, for errors.
      num_tasks: K, or None where any number will do.
      like: The losses whose structure ``tree`` must have, unless it is flat: an array or a
        sequence of K.
      kinds: The kinds of dtype accepted.
      broadcast: Whether one scalar may stand for all tasks.

    Returns:
      ``[K]``, in the dtype of ``tree``; ``[]`` for a scalar that may stand for any number.

    Raises:
      ValueError: If the structure, the number of tasks or the kind of dtype is another one.
    """
    leaves = jax.tree.leaves(tree)
    for leaf in leaves:
        dtype = dtype_of(leaf)
        if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
            expected = " or ".join(kind.__name__.rstrip("_") for kind in kinds)
            got = type(leaf).__name__ if dtype is None else dtype
            raise ValueError(f"`{name}`: expected {expected} values, got {got}")
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    is_array = jax.tree_util.all_leaves([tree])
    shapes = [array.shape for array in arrays]
    if is_array and broadcast and arrays[0].ndim == 0:
        scalar: jax.Array = arrays[0]
        return jnp.full(num_tasks, scalar) if num_tasks else scalar
    if not is_array and any(shapes):
        raise ValueError(f"`{name}`: expected an array or a pytree of scalars, got leaves {shapes}")
    if like is not None and not _is_flat(tree):
        own: object = jax.tree.structure(tree)
        losses = jax.tree.structure(like)
        losses_shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(like)]
        if own != losses or shapes != losses_shapes:
            raise ValueError(
                f"`{name}`: expected the structure of the losses, {losses} of shapes "
                f"{losses_shapes}, or a flat array, got {own} of shapes {shapes}"
            )
    values = arrays[0].ravel() if is_array else jnp.stack(arrays) if arrays else jnp.zeros(0)
    if values.size != (num_tasks or max(values.size, 1)):
        expected = f"num_tasks = {num_tasks} values" if num_tasks else "at least one value"
        raise ValueError(f"`{name}`: expected {expected}, got {values.size} (shapes {shapes})")
    return values


def flatten_where(
    where: chex.ArrayTree | None, losses: chex.ArrayTree, num_tasks: int
) -> jax.Array:
    """The tasks that are present, ``[K]``, bool: all of them where ``where`` is None."""
    where = True if where is None else where
    return flatten_tasks(where, "where", num_tasks, like=losses, kinds=BOOL, broadcast=True)


def flatten_bounds(
    min_losses: chex.ArrayTree, losses: chex.ArrayTree | None = None, *, num_tasks: int | None
) -> jax.Array:
    """The lower bounds, ``[K]`` or one for all, ``[]``; named as the losses, where these are."""
    named = losses is not None and not _is_flat(losses)
    return flatten_tasks(
        min_losses, "min_losses", num_tasks, like=losses if named else None, broadcast=True
    )


def _is_flat(tree: chex.ArrayTree) -> bool:
    """Whether its tasks have places alone: an array ``[K]``, or a sequence."""
    is_array = jax.tree_util.all_leaves([tree])
    return isinstance(tree, list | tuple) or (is_array and jnp.ndim(tree) == 1)


@contextlib.contextmanager
def naming_what_jit_rejects(**arguments: chex.ArrayTree) -> Iterator[None]:
    """Names the argument that is no array at all: jit rejects it before our own checks trace."""
    try:
        yield
    except TypeError:
        for name, tree in arguments.items():
            if tree is not None:
                flatten_tasks(tree, name, kinds=BOOL if name == "where" else REAL)
        raise


def last_seen(losses: jax.Array, present: jax.Array, *seen: jax.Array) -> jax.Array:
    """The last finite loss of each task, ``[K]``: ``losses``, replaced by what was seen since."""
    for each in seen:
        losses = jnp.where(present & jnp.isfinite(each), each.astype(losses.dtype), losses)
    return losses


def first_seen(first: jax.Array, present: jax.Array, *seen: jax.Array) -> jax.Array:
    """The first positive, finite value of each task, ``[K]``: ``first``, where that is not 0."""
    for each in seen:
        fine = present & jnp.isfinite(each) & (each > 0)
        first = jnp.where((first == 0) & fine, each.astype(first.dtype), first)
    return first
