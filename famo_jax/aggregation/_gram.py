"""What the aggregation methods share: task-stacked gradients, their Gram matrix, one solver.

Task-stacked gradients J have a leading axis of K on every leaf. A method looks at J only through
its Gram matrix G = J J^T, so its cost does not grow with the model: one product to form G, one to
combine the gradients, and in between arithmetic on ``[K, K]``.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import _core

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round the factors to 8 or 11 bits otherwise

Shared: TypeAlias = chex.ArrayTree | Callable[[chex.ArrayTree], chex.ArrayTree] | None

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
        _core.flatten_tasks(losses, "losses", num_tasks)
    present = _core.flatten_where(where, where if losses is None else losses, num_tasks)
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
        if _core.dtype_of(flag) not in (bool, jnp.bool_) or jnp.shape(flag) != ():
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
    *,
    heads: Literal["weights", "sum"],
) -> chex.ArrayTree:
    """J^T w on the shared leaves; on the others likewise, or the plain sum over the tasks.

    Args:
      updates: Leaves of ``[K, ...]``.
      weights: ``[K]``
      mask: Structured as ``updates``, True where shared.
      heads: What the leaves that are not shared get.

    Returns:
      Leaves of ``[...]`` in the dtypes of ``updates``.
    """

    def weighted_sum(leaf: jax.Array, is_shared: bool) -> jax.Array:
        own = weights if is_shared or heads == "weights" else jnp.ones_like(weights)
        return jnp.tensordot(own, leaf, axes=1, precision=HIGHEST).astype(leaf.dtype)

    return jax.tree.map(weighted_sum, updates, mask)


def aggregate_by(
    weigh: Callable[..., jax.Array],
    state: Any,
    *,
    shared: Shared,
    heads: Literal["weights", "sum"],
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a method that is a function of the Gram matrix and remembers nothing.

    Args:
      weigh: ``weigh(gram, where=present)`` returns the weights, ``[K]``.
      state: The method's state.
      shared: The leaves over which the Gram matrix is taken.
      heads: What the other leaves get.
    """
    check_shared(shared)

    def init_fn(params: optax.Params) -> Any:
        del params
        return state

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
        updates, present = present_tasks(updates, where, losses, params)
        mask = shared_leaves(shared, updates, params)
        weights = weigh(gram(updates, mask), where=present)
        return combine(updates, weights, mask, heads=heads), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


# --- Gram matrices --------------------------------------------------------------------------------


def weigh(
    solver: Callable[..., jax.Array],
    matrix: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None,
    *args: jax.typing.ArrayLike,
) -> jax.Array:
    """The weights that a method's solver gives to the tasks that are present. Jitted.

    Args:
      solver: ``solver(gram, present, *args)`` returns ``[K]``. It is called with zeros in the rows
        and columns of absent tasks, and with finite values only.
      matrix: A Gram matrix, ``[K, K]``, from the user.
      where: ``[K]``, bool, from the user, or None for all.
      *args: Further arguments of the solver.

    Returns:
      ``[K]``: exactly 0 where absent, and NaN where present if a present gradient is not finite.
    """
    try:
        array = jnp.asarray(matrix)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`gram`: expected an array, got {type(matrix).__name__}") from error
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"`gram`: expected shape (K, K), got {array.shape}")
    if not any(jnp.issubdtype(array.dtype, kind) for kind in _core.REAL):
        raise ValueError(f"`gram`: expected real values, got {array.dtype}")
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    present = _core.flatten_where(where, where, len(array))
    weights: jax.Array = _weigh(solver, array, present, *args)
    return weights


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _weigh(
    solver: Callable[..., jax.Array], matrix: jax.Array, present: jax.Array, *args: jax.Array
) -> jax.Array:
    matrix = among(present, matrix)
    finite = jnp.all(jnp.isfinite(matrix))
    with jax.default_matmul_precision("highest"):
        weights = solver(jnp.where(finite, matrix, 0), present, *args)
    return jnp.where(present, jnp.where(finite, weights, jnp.nan), 0)


def epsilon_of(array: jax.Array) -> float:
    """The relative precision of an array's dtype."""
    return float(np.finfo(array.dtype).eps)


def among(tasks: jax.Array, matrix: jax.Array) -> jax.Array:
    """Zeros in the rows and columns of all other tasks."""
    return jnp.where(tasks & tasks[:, None], matrix, 0)


def correlation(matrix: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The cosines between gradients.

    Systems in them are solved as precisely for gradients of very different lengths as for equal
    ones.

    Args:
      matrix: ``[K, K]``, a Gram matrix.
      present: ``[K]``, bool.

    Returns:
      ``[K, K]``, with rows and columns of the identity for absent tasks and for gradients of zero,
      which have no direction; the norms of the gradients, ``[K]``, 1 for these; and the tasks that
      have a direction, ``[K]``, bool.
    """
    diagonal = jnp.diag(matrix)
    pointed = present & (diagonal != 0)
    norms = jnp.sqrt(jnp.where(pointed, diagonal, 1))
    cosines = among(pointed, matrix) / norms / norms[:, None]
    return jnp.where(jnp.eye(len(matrix), dtype=bool), 1, cosines), norms, pointed


def solve_positive(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """The solution x of A x = b for symmetric positive definite A; NaN where it is not."""
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    solution: jax.Array = jax.scipy.linalg.cho_solve(factor, vector)
    return solution


# --- Nonnegative least squares --------------------------------------------------------------------

Carry: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

MAX_STEPS = 60  # of the interior-point method; 5 to 20 are usual


def nonnegative_least_squares(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    r"""Minimises :math:`\frac12 u^\top A u - b^\top u` over :math:`u \ge 0`.

    Mehrotra's predictor-corrector method: Newton steps on :math:`A u - b = z, \; u_i z_i = \mu`
    with :math:`\mu \to 0`. A need not have full rank. The number of steps is bounded, and hardly
    grows with K.

    Args:
      matrix: A, ``[K, K]``, positive semidefinite.
      vector: b, ``[K]``.

    Returns:
      u, ``[K]``, positive; the entries that should be 0 are so to the precision of the dtype.
    """
    # In units where A has a diagonal of 1 and b entries of at most 1.
    scale = jax.lax.rsqrt(jnp.diag(matrix))
    unit = jnp.max(jnp.abs(vector * scale))
    unit = jnp.where(unit > 0, unit, 1)
    a, b = matrix * scale * scale[:, None], vector * scale / unit
    epsilon = epsilon_of(a)
    num_tasks = b.size
    # Of the order of the rounding in A. It makes the solution bounded and unique.
    a += jnp.diag(jnp.full_like(b, 4 * epsilon))

    def step(carry: Carry) -> Carry:
        u, z, count, _ = carry
        mu = jnp.vdot(u, z) / num_tasks
        factor = jax.scipy.linalg.cho_factor(a + jnp.diag(z / u), lower=True)

        def newton(target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """The step to A u - b = z and u z = target, linearised, and how far u, z >= 0."""
            du = jax.scipy.linalg.cho_solve(factor, b - a @ u + target / u)
            dz = target / u - z - z * du / u
            shrinkage = jnp.max(jnp.maximum(-du / u, -dz / z))
            return du, dz, 1 / jnp.maximum(shrinkage, epsilon)

        du, dz, longest = newton(jnp.zeros_like(u))
        length = jnp.minimum(1, longest)
        affine = jnp.vdot(u + length * du, z + length * dz) / num_tasks
        du, dz, longest = newton(mu * (affine / mu) ** 3 - du * dz)
        length = jnp.minimum(1, jnp.maximum(0.9, 1 - mu) * longest)
        new_u, new_z = u + length * du, z + length * dz
        good = jnp.all((new_u > 0) & (new_z > 0) & jnp.isfinite(new_u) & jnp.isfinite(new_z))
        more = good & (jnp.vdot(new_u, new_z) > 0.1 * epsilon)
        return jnp.where(good, new_u, u), jnp.where(good, new_z, z), count + 1, more

    ones = jnp.ones_like(b)
    carry = ones / num_tasks, ones, jnp.zeros((), int), jnp.array(True)
    u, *_ = jax.lax.while_loop(lambda carry: carry[3] & (carry[2] < MAX_STEPS), step, carry)
    return u * scale * unit
