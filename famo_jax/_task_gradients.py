"""Task gradients as a linear map: pullbacks, rows, their Gram matrix, their combination.

The gradients of K losses are a linear map J from the parameters to the losses. Task-stacked
gradients are its rows, with a leading axis of K on every leaf: what Optax calls per-element
gradients, with the task as the element. A method that looks at J only through its Gram matrix
G = J J^T costs one product to form G, one pullback J^T w, and in between arithmetic on ``[K, K]``,
whatever the size of the model; and it does not matter to it where the rows are taken.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax
from jax import flatten_util
from jax.tree_util import Partial

from famo_jax import _tasks

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round the factors to 8 or 11 bits otherwise

Shared: TypeAlias = chex.ArrayTree | Callable[[chex.ArrayTree], chex.ArrayTree] | None
Heads: TypeAlias = Literal["weights", "mean", "sum"]

# --- The linear map -------------------------------------------------------------------------------


class Jacobian(NamedTuple):
    """The gradients of K losses in some variables, as a linear map."""

    pullbacks: Any  # one of all losses at once, or a tuple with one of each
    losses: chex.ArrayTree  # at which it was taken: their structure


def linearize(
    losses_fn: chex.ArrayTree, *variables: chex.ArrayTree, has_aux: bool
) -> tuple[chex.ArrayTree, Jacobian, Any]:
    """The losses, their Jacobian, and what else their function returns.

    Args:
      losses_fn: A function of the variables that returns K losses, or a pytree of functions that
        return one loss each, which are then pulled back each by itself.
      *variables: Where.
      has_aux: Whether each function returns ``(losses, aux)``.
    """
    functions, treedef = jax.tree.flatten(losses_fn, is_leaf=callable)
    results = [jax.vjp(_with_aux(each, has_aux), *variables, has_aux=True) for each in functions]
    losses, pullbacks, aux = zip(*results, strict=True)
    if callable(losses_fn):
        return losses[0], Jacobian(pullbacks[0], losses[0]), aux[0]
    named = jax.tree.unflatten(treedef, losses)
    _tasks.flatten_tasks(named, "losses_fn", kinds=(jnp.floating,))
    return named, Jacobian(pullbacks, named), jax.tree.unflatten(treedef, aux)


def _with_aux(losses_fn: Callable[..., Any], has_aux: bool) -> Callable[..., tuple[Any, Any]]:
    def with_aux(*variables: chex.ArrayTree) -> tuple[Any, Any]:
        output = losses_fn(*variables)
        if has_aux and not (isinstance(output, tuple) and len(output) == 2):
            got = type(output).__name__
            raise ValueError(f"`losses_fn`: expected (losses, aux) with has_aux, got {got}")
        losses, aux = output if has_aux else (output, None)
        _tasks.flatten_tasks(losses, "losses_fn", kinds=(jnp.floating,))
        return losses, aux

    return with_aux


def encode(
    encoder: Callable[[chex.ArrayTree], chex.ArrayTree], params: chex.ArrayTree
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], chex.ArrayTree], Callable[..., Any]]:
    """The features z of an encoder, as variables.

    Returns:
      The floating leaves of z; what makes z of them; and the pullback from them to the parameters.
    """

    def split(params: chex.ArrayTree) -> tuple[list[jax.Array], list[Any]]:
        leaves, structure = jax.tree.flatten(encoder(params))
        kinds = [jnp.issubdtype(_tasks.dtype_of(leaf), jnp.inexact) for leaf in leaves]
        treedef.append((structure, kinds))
        floating = [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind]
        return floating, [leaf for leaf, kind in zip(leaves, kinds, strict=True) if not kind]

    treedef: list[Any] = []
    floating, pullback, rest = jax.vjp(split, params, has_aux=True)
    structure, kinds = treedef[-1]
    if not _depends(pullback, floating):
        raise ValueError(
            "`encoder`: expected features that depend on the parameters, got "
            f"{[leaf.shape for leaf in floating]} through which no gradient flows"
        )

    def whole(floating: list[jax.Array]) -> chex.ArrayTree:
        pending = {True: iter(floating), False: iter(rest)}
        return jax.tree.unflatten(structure, [next(pending[kind]) for kind in kinds])

    return floating, whole, pullback


def _depends(pullback: Callable[..., Any], cotangents: list[jax.Array]) -> bool:
    """Whether anything that a pullback returns depends on what it gets."""
    jaxpr = jax.make_jaxpr(pullback)(cotangents).jaxpr
    reached = set(map(id, jaxpr.invars))
    for equation in jaxpr.eqns:
        if not reached.isdisjoint(map(id, equation.invars)):
            reached.update(map(id, equation.outvars))
    return not reached.isdisjoint(map(id, jaxpr.outvars))


def pull_back(jacobian: Jacobian, cotangents: chex.ArrayTree) -> tuple[chex.ArrayTree, ...]:
    """J^T w in each of the variables, of weights structured as the losses."""
    if callable(jacobian.pullbacks):
        whole: tuple[chex.ArrayTree, ...] = jacobian.pullbacks(cotangents)
        return whole
    pairs = zip(jacobian.pullbacks, jax.tree.leaves(cotangents), strict=True)
    each = [pullback(cotangent) for pullback, cotangent in pairs]
    total: tuple[chex.ArrayTree, ...] = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *each)
    return total


def like_losses(jacobian: Jacobian, weights: jax.Array) -> chex.ArrayTree:
    """Weights ``[K]``, structured as the losses."""
    values, unravel = flatten_util.ravel_pytree(jacobian.losses)
    structured: chex.ArrayTree = unravel(weights.astype(values.dtype))
    return structured


def gradients(jacobian: Jacobian, weights: jax.Array) -> tuple[chex.ArrayTree, ...]:
    """J^T w in each of the variables, of weights ``[K]``."""
    return pull_back(jacobian, like_losses(jacobian, weights))


def task_rows(
    jacobian: Jacobian, present: jax.Array, chunk_size: int | None
) -> tuple[chex.ArrayTree, ...]:
    """The K task gradients in each of the variables: a leading axis of K on every leaf.

    Args:
      jacobian: J.
      present: ``[K]``, bool. The rows of absent tasks are those of 0 times their loss.
      chunk_size: How many pullbacks of one function run at once, or None for all.
    """
    if not callable(jacobian.pullbacks):
        ones = jax.tree.leaves(jax.tree.map(jnp.ones_like, jacobian.losses))
        triples = zip(jacobian.pullbacks, ones, present, strict=True)
        each = [pullback(jnp.where(own, one, 0)) for pullback, one, own in triples]
        stacked: tuple[chex.ArrayTree, ...] = jax.tree.map(lambda *terms: jnp.stack(terms), *each)
        return stacked
    one_hot = jnp.diag(present.astype(float))
    pull = functools.partial(gradients, jacobian)
    if chunk_size is None:
        return jax.vmap(pull)(one_hot)
    mapped: tuple[chex.ArrayTree, ...] = jax.lax.map(pull, one_hot, batch_size=chunk_size)
    return mapped


# --- What an aggregation method is handed ---------------------------------------------------------


class TaskGradients(NamedTuple):
    """Task gradients that are not laid out over all parameters, as functions that may cross jit."""

    rows: Callable[[], chex.ArrayTree]  # the task gradients where they are compared, [K, ...]
    # Of weights [K], and those of the heads, [K]: the gradient of the parameters. Without it the
    # weights themselves are wanted.
    from_weights: Callable[[jax.Array, jax.Array], chex.ArrayTree] | None = None
    # Of one gradient where they are compared, [...], and weights of the heads: likewise.
    from_rows: Callable[[chex.ArrayTree, jax.Array], chex.ArrayTree] | None = None


def on_parameters(
    jacobian: Jacobian, present: jax.Array, chunk_size: int | None, mask: chex.ArrayTree
) -> TaskGradients:
    """Compared on the leaves of the parameters that the mask selects."""
    flags = tuple(jax.tree.leaves(mask))
    select = functools.partial(_rows_on, flags=flags, chunk_size=chunk_size)
    return TaskGradients(
        rows=Partial(select, jacobian, present), from_weights=Partial(_pull_all, jacobian)
    )


def _rows_on(
    jacobian: Jacobian,
    present: jax.Array,
    *,
    flags: tuple[bool, ...],
    chunk_size: int | None,
) -> chex.ArrayTree:
    (stacked,) = task_rows(jacobian, present, chunk_size)
    return [leaf for leaf, flag in zip(jax.tree.leaves(stacked), flags, strict=True) if flag]


def _pull_all(jacobian: Jacobian, weights: jax.Array, head_weights: jax.Array) -> chex.ArrayTree:
    del head_weights
    return gradients(jacobian, weights)[0]


def at_features(
    features: list[jax.Array],
    encoder_pullback: Callable[..., Any],
    heads: Jacobian,
    present: jax.Array,
    chunk_size: int | None,
) -> TaskGradients:
    """Compared at the features, the variables of ``heads`` being the parameters and these.

    Their rows are laid end to end, ``[K, B d]``, which gathers nothing of features of ``[B, d]``
    whose examples are on several devices.
    """
    return TaskGradients(
        rows=Partial(functools.partial(_rows_at, chunk_size=chunk_size), heads, present),
        from_weights=Partial(_from_weights, encoder_pullback, heads),
        from_rows=Partial(_from_rows, features, encoder_pullback, heads),
    )


def _rows_at(heads: Jacobian, present: jax.Array, *, chunk_size: int | None) -> list[jax.Array]:
    rows = task_rows(heads, present, chunk_size)[1]
    return [leaf.reshape(len(leaf), -1) for leaf in rows]


def _from_weights(
    encoder_pullback: Callable[..., Any],
    heads: Jacobian,
    weights: jax.Array,
    head_weights: jax.Array,
) -> chex.ArrayTree:
    return _through(encoder_pullback, heads, gradients(heads, weights)[1], head_weights)


def _from_rows(
    features: list[jax.Array],
    encoder_pullback: Callable[..., Any],
    heads: Jacobian,
    combined: list[jax.Array],
    head_weights: jax.Array,
) -> chex.ArrayTree:
    at = [leaf.reshape(z.shape) for leaf, z in zip(combined, features, strict=True)]
    return _through(encoder_pullback, heads, at, head_weights)


def _through(
    encoder_pullback: Callable[..., Any],
    heads: Jacobian,
    at: list[jax.Array],
    head_weights: jax.Array,
) -> chex.ArrayTree:
    (through,) = encoder_pullback(at)
    return optax.tree.add(through, gradients(heads, head_weights)[0])


# --- Task-stacked gradients -----------------------------------------------------------------------


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
