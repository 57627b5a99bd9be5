"""Task gradients: how they are taken, how they are stacked, their Gram matrix, their combination.

Task-stacked gradients J have a leading axis of K on every leaf: they are what Optax calls
per-element gradients, with the task as the element. A method that looks at J only through its Gram
matrix G = J J^T costs one product to form G, one to combine the gradients, and in between
arithmetic on ``[K, K]``, whatever the size of the model.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax
from jax import flatten_util

from famo_jax import _tasks

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round the factors to 8 or 11 bits otherwise

Shared: TypeAlias = chex.ArrayTree | Callable[[chex.ArrayTree], chex.ArrayTree] | None
Heads: TypeAlias = Literal["weights", "mean", "sum"]


def stack(
    losses: chex.ArrayTree,
    pullback: Callable[..., Any],
    where: chex.ArrayTree | None,
    chunk_size: int | None,
) -> chex.ArrayTree:
    """The pullbacks of the K unit cotangents: a leading axis of K on every leaf."""
    values, unravel = flatten_util.ravel_pytree(losses)
    present = _tasks.flatten_where(where, losses, values.size)
    cotangents = jnp.diag(present.astype(values.dtype))

    def task_gradient(cotangent: jax.Array) -> chex.ArrayTree:
        return pullback(unravel(cotangent))[0]

    if chunk_size is None:
        return jax.vmap(task_gradient)(cotangents)
    return jax.lax.map(task_gradient, cotangents, batch_size=chunk_size)


def present_tasks(
    updates: chex.ArrayTree,
    where: chex.ArrayTree | None,
    losses: chex.ArrayTree | None,
    params: chex.ArrayTree | None,
) -> tuple[chex.ArrayTree, jax.Array]:
    """Checks task-stacked gradients and takes the absent tasks out.

    Args:
      updates: Leaves of ``[K, ...]``.
      where: The tasks that are present: one boolean, ``[K]`` or structured as ``losses``.
      losses: The losses, for their structure and number, or None.
      params: The parameters, for their shapes, or None.

    Returns:
      The gradients with zeros in the rows of absent tasks, whatever stood there, and the tasks
      that are present, ``[K]``, bool.
    """
    if any(isinstance(node, optax.MaskedNode) for node in _nodes(updates)):
        raise ValueError(
            "`updates`: expected the gradients of all parameters, got some masked: aggregation "
            "stands outside of optax.masked and optax.partition; use `shared`"
        )
    leaves = jax.tree.leaves(updates)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if not leaves or not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "`updates`: expected task-stacked gradients, one leading axis of K on every leaf, got "
            f"leaves of shapes {shapes}"
        )
    if shapes[0][0] == 0:
        raise ValueError(f"`updates`: expected at least one task, got leaves of shapes {shapes}")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"`updates`: expected floating values, got {jnp.result_type(leaf)}")
    updates = jax.tree.map(jnp.asarray, updates)
    num_tasks = shapes[0][0]
    unstacked = [shape[1:] for shape in shapes]
    if params is not None and unstacked != [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]:
        raise ValueError(
            "`updates`: expected a leading axis of K before the shapes of the parameters, as "
            f"`losses_and_grads` gives, got leaves of shapes {shapes}"
        )
    if losses is not None:
        _tasks.flatten_tasks(losses, "losses", num_tasks)
    present = _tasks.flatten_where(where, where if losses is None else losses, num_tasks)
    if where is None:
        return updates, present

    def without_absent(leaf: jax.Array) -> jax.Array:
        return jnp.where(present.reshape(-1, *[1] * (jnp.ndim(leaf) - 1)), leaf, 0)

    return jax.tree.map(without_absent, updates), present


def _nodes(tree: chex.ArrayTree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))


def check_shared(shared: Shared) -> None:
    """Refuses a mask that is none, before anything is traced."""
    if shared is not None and not callable(shared):
        _booleans(shared)


def shared_leaves(
    shared: Shared, updates: chex.ArrayTree, params: chex.ArrayTree | None
) -> chex.ArrayTree:
    """The mask of shared leaves in full: the structure of ``updates``, True where shared.

    Args:
      shared: A pytree of booleans, a prefix of the parameters, or a function of the parameters
        that returns one. None: all are shared.
      updates: Task-stacked gradients.
      params: The parameters, for the function. Without them it gets the first task's gradients.
    """
    if shared is None:
        return jax.tree.map(lambda _: True, updates)
    if callable(shared):
        first = jax.tree.map(lambda leaf: leaf[0], updates) if params is None else params
        shared = shared(first)
    mask = _booleans(shared)
    try:
        full = jax.tree.map(lambda flag, tree: jax.tree.map(lambda _: flag, tree), mask, updates)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`shared`: expected a prefix of the structure {jax.tree.structure(updates)}, got "
            f"{jax.tree.structure(mask)}"
        ) from error
    if not any(jax.tree.leaves(full)):
        raise ValueError("`shared`: expected at least one shared leaf, got none")
    return full


def _booleans(mask: chex.ArrayTree) -> chex.ArrayTree:
    for flag in jax.tree.leaves(mask):
        if _tasks.dtype_of(flag) not in (bool, jnp.bool_) or jnp.shape(flag) != ():
            raise ValueError(f"`shared`: expected a pytree of booleans, got a leaf {flag!r}")
    return jax.tree.map(bool, mask)


def gram(updates: chex.ArrayTree, mask: chex.ArrayTree) -> jax.Array:
    """G = J J^T over the leaves that the mask selects, ``[K, K]``, at least float32."""
    leaves = jax.tree.leaves(updates)
    dtype = jnp.result_type(*leaves, jnp.float32)
    total = jnp.zeros(2 * leaves[0].shape[:1], dtype)
    for leaf, selected in zip(leaves, jax.tree.leaves(mask), strict=True):
        if selected:
            # A reshape gathers a leaf whose last axis is sharded. Where none can be, rows are
            # faster: a CPU copies what it contracts over several axes.
            rows = leaf.reshape(len(leaf), -1) if jax.device_count() == 1 else leaf
            axes = range(1, rows.ndim)
            total += jax.lax.dot_general(
                rows,
                rows,
                ((axes, axes), ((), ())),
                precision=HIGHEST,
                preferred_element_type=dtype,
                out_sharding=_replicated(rows),
            )
    return total


def _replicated(rows: jax.Array) -> jax.sharding.NamedSharding | None:
    """The sharding of a Gram matrix, which a mesh of explicit axes wants to be told."""
    mesh = jax.typeof(rows).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return None
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None))


def combine(
    updates: chex.ArrayTree,
    weights: jax.Array,
    mask: chex.ArrayTree,
    head_weights: jax.Array,
) -> chex.ArrayTree:
    """J^T w, with weights of their own for the leaves that are not shared.

    Args:
      updates: Leaves of ``[K, ...]``.
      weights: ``[K]``
      mask: Structured as ``updates``, True where shared.
      head_weights: ``[K]``

    Returns:
      Leaves of ``[...]`` in the dtypes of ``updates``.
    """

    def weighted_sum(leaf: jax.Array, is_shared: bool) -> jax.Array:
        own = weights if is_shared else head_weights
        return jnp.tensordot(own, leaf, axes=1, precision=HIGHEST).astype(leaf.dtype)

    return jax.tree.map(weighted_sum, updates, mask)
