"""Task-stacked gradients: their checks, their Gram matrix, their combination.

They have a leading axis of K on every leaf: what Optax calls per-element gradients, with the task
as the element.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _tasks

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round the factors to 8 or 11 bits otherwise

Shared: TypeAlias = chex.ArrayTree | Callable[[chex.ArrayTree], chex.ArrayTree] | None
Heads: TypeAlias = Literal["weights", "mean", "sum"]


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

    without_absent = lambda leaf: jnp.where(per_task(present, leaf), leaf, 0)
    return jax.tree.map(without_absent, updates), present


def per_task(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """Values of ``[K]`` that broadcast against a leaf of ``[K, ...]``."""
    return values.reshape(-1, *[1] * (leaf.ndim - 1))


def _nodes(tree: chex.ArrayTree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))


def check_shared(shared: Shared, name: str = "shared") -> None:
    """Refuses a mask that is none, before anything is traced."""
    if shared is not None and not callable(shared):
        _booleans(shared, name)


def shared_leaves(
    shared: Shared,
    updates: chex.ArrayTree,
    params: chex.ArrayTree | None,
    name: str = "shared",
) -> chex.ArrayTree:
    """The mask of shared leaves in full: the structure of ``updates``, True where shared.

    Args:
      shared: A pytree of booleans, a prefix of the parameters, or a function of the parameters
        that returns one. None: all are shared.
      updates: Task-stacked gradients, or anything of the structure of the parameters.
      params: The parameters, for the function. Without them it gets the first task's gradients.
      name: The argument's name, for errors.
    """
    if shared is None:
        return jax.tree.map(lambda _: True, updates)
    if callable(shared):
        first = jax.tree.map(lambda leaf: leaf[0], updates) if params is None else params
        shared = shared(first)
    mask = _booleans(shared, name)
    try:
        full = jax.tree.map(lambda flag, tree: jax.tree.map(lambda _: flag, tree), mask, updates)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`{name}`: expected a prefix of the structure {jax.tree.structure(updates)}, got "
            f"{jax.tree.structure(mask)}"
        ) from error
    if not any(jax.tree.leaves(full)):
        raise ValueError(f"`{name}`: expected at least one leaf, got none")
    return full


def _booleans(mask: chex.ArrayTree, name: str) -> chex.ArrayTree:
    for flag in jax.tree.leaves(mask):
        if _tasks.dtype_of(flag) not in (bool, jnp.bool_) or jnp.shape(flag) != ():
            raise ValueError(f"`{name}`: expected a pytree of booleans, got a leaf {flag!r}")
    return jax.tree.map(bool, mask)


def gram(updates: chex.ArrayTree, mask: chex.ArrayTree) -> jax.Array:
    """G = J J^T over the leaves that the mask selects, ``[K, K]``, at least float32."""
    leaves = jax.tree.leaves(updates)
    dtype = jnp.result_type(*leaves, jnp.float32)
    total = jnp.zeros(2 * leaves[0].shape[:1], dtype)
    for leaf, selected in zip(leaves, jax.tree.leaves(mask), strict=True):
        if selected:
            total += _inner_products(leaf, dtype)
    return total


def _inner_products(leaf: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Of the rows of one leaf, ``[K, K]``.

    One matrix product contracts the longest axis, and its results are added over the others. No
    axes are laid end to end: that gathers what is sharded over the last of them. Nor does one
    product contract several: a CPU copies the leaf for that, as it does unless K and the
    contracted axis come last.
    """
    if leaf.ndim == 1:
        leaf = leaf[:, None]
    longest = max(range(1, leaf.ndim), key=lambda axis: leaf.shape[axis])
    rows = jnp.moveaxis(leaf, (0, longest), (-2, -1))  # [..., K, longest]
    others = tuple(range(rows.ndim - 2))
    products = jax.lax.dot_general(
        rows,
        rows,
        (((rows.ndim - 1,), (rows.ndim - 1,)), (others, others)),
        precision=HIGHEST,
        preferred_element_type=dtype,
        out_sharding=_without_tasks(rows),
    )
    return jnp.sum(products, axis=others)


def _without_tasks(rows: jax.Array) -> jax.sharding.NamedSharding | None:
    """The sharding of products ``[..., K, K]``, which a mesh of explicit axes wants to be told."""
    sharding = jax.typeof(rows).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    spec = jax.sharding.PartitionSpec(*sharding.spec[:-2], None, None)
    return jax.sharding.NamedSharding(sharding.mesh, spec)


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
