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
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _stacked, _tasks
from famo_jax._stacked import Heads, Shared
from famo_jax._task_gradients import TaskGradients
from famo_jax.aggregation import _solvers

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

    def aggregate(given: Given, state: Any, **losses: jax.Array) -> tuple[chex.ArrayTree, Any]:
        gram = _stacked.gram(given.rows, given.compared)
        weights, state = _weigh(weigh, gram, given.present, state, parameters | losses)
        others = weights if heads == "weights" else _head_weights(heads, given.present)
        return given.from_weights(weights, others), state

    return transformation(
        aggregate, lambda _: init(), shared, num_tasks=num_tasks, needs_losses=needs_losses
    )


def from_gradients(
    combine: Combine, init: Callable[[], Any], *, shared: Shared, heads: Heads, **parameters: Any
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a method that needs the gradients themselves: as :func:`from_gram`."""

    def aggregate(given: Given, state: Any) -> tuple[chex.ArrayTree, Any]:
        if given.from_rows is None:
            raise ValueError(
                f"`updates`: {type(state).__name__} belongs to a method that needs the gradients "
                "themselves, where a Gram matrix does not suffice: leave `gram_at` and `periodic` "
                "out, or give an `encoder`"
            )
        compared = selected(given.rows, given.compared)
        combined, state = combine(compared, given.present, state, **parameters)
        return given.from_rows(combined, _head_weights(heads, given.present)), state

    return transformation(aggregate, lambda _: init(), shared)


def selected(tree: chex.ArrayTree, mask: chex.ArrayTree) -> list[jax.Array]:
    """The leaves that the mask selects."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True)
    return [leaf for leaf, flag in pairs if flag]


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


def check_method(method: Any) -> None:
    """Raises ValueError unless it is what an aggregation method's factory returns."""
    if not isinstance(method, optax.GradientTransformationExtraArgs):
        raise ValueError(
            f"`method`: expected an aggregation method, as `mgda()`, got {type(method).__name__}"
        )


def scale_tasks(updates: optax.Updates, scale: jax.Array) -> optax.Updates:
    """The task gradients, wherever they are taken, of losses that are scaled each."""
    if not isinstance(updates, TaskGradients):
        return _scaled(updates, scale)
    of_weights, at_features = updates.from_weights, updates.from_rows
    return TaskGradients(
        rows=lambda: _scaled(updates.rows(), scale),
        from_weights=of_weights and (lambda w, others: of_weights(w * scale, others * scale)),
        from_rows=at_features and (lambda at, others: at_features(at, others * scale)),
    )


def _scaled(rows: chex.ArrayTree, scale: jax.Array) -> chex.ArrayTree:
    def scaled(leaf: jax.Array) -> jax.Array:
        return (leaf * _stacked.per_task(scale, leaf)).astype(leaf.dtype)

    return jax.tree.map(scaled, rows)


class Given(NamedTuple):
    """What an update was given, wherever the task gradients were taken."""

    rows: chex.ArrayTree  # the task gradients, [K, ...], zeros in those of absent tasks
    compared: chex.ArrayTree  # structured as the rows, True where the method compares or combines
    present: jax.Array  # [K], bool
    # Of weights, [K], and those of the heads, [K]: the gradient.
    from_weights: Callable[[jax.Array, jax.Array], Any]
    # Of the compared leaves, combined, and the weights of the heads: the gradient.
    from_rows: Callable[[list[jax.Array], jax.Array], Any] | None
    stacked: bool = False  # whether the rows are those of the parameters, all of them


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
      aggregate: ``(given, state) -> (gradient, state)``; if ``needs_losses`` it gets ``losses=``.
      init: Returns the first state, of the parameters.
      shared: The leaves whose gradients decide.
      num_tasks: K, or None where any number will do.
      needs_losses: Whether ``update`` has to be given ``losses``.
    """
    _stacked.check_shared(shared)

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
        like = params
        if isinstance(updates, TaskGradients):
            rows, present = _stacked.present_tasks(updates.rows(), where, losses, None)
            given = _given_by(updates, rows, present, shared, params)
        else:
            rows, present = _stacked.present_tasks(updates, where, losses, params)
            mask = _stacked.shared_leaves(shared, rows, params)
            given = _given_stacked(rows, present, mask)
            if params is None:
                first = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
                like = jax.tree.map(first, rows)
        if num_tasks is not None and present.size != num_tasks:
            raise ValueError(
                f"`updates`: expected the gradients of num_tasks = {num_tasks} tasks, got "
                f"{present.size}"
            )
        _checks.check_state(state, jax.eval_shape(init, like))
        if not needs_losses:
            return aggregate(given, state)
        values = _tasks.flatten_tasks(losses, "losses", present.size)
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        return aggregate(given, state, losses=jnp.where(present, values, 1))

    return optax.GradientTransformationExtraArgs(init, update_fn)


def _given_stacked(rows: chex.ArrayTree, present: jax.Array, mask: chex.ArrayTree) -> Given:
    """Task gradients laid out over all parameters."""

    def from_weights(weights: jax.Array, others: jax.Array) -> chex.ArrayTree:
        return _stacked.combine(rows, weights, mask, others)

    def from_rows(combined: list[jax.Array], others: jax.Array) -> chex.ArrayTree:
        pending = iter(combined)
        own = lambda flag, leaf: next(pending) if flag else leaf
        return jax.tree.map(own, mask, from_weights(others, others))

    return Given(rows, mask, present, from_weights, from_rows, stacked=True)


def _given_by(
    taken: TaskGradients,
    rows: chex.ArrayTree,
    present: jax.Array,
    shared: Shared,
    params: optax.Params | None,
) -> Given:
    """Task gradients taken on some parameters, at features, or for the weights alone."""
    everywhere = jax.tree.map(lambda _: True, rows)
    at_features, of_weights = taken.from_rows, taken.from_weights
    if shared is not None and (at_features is not None or of_weights is None):
        raise ValueError(
            "`shared`: expected None with `encoder` and in `periodic`, got a mask: what is not "
            "shared are the parameters of the heads"
        )
    if at_features is not None:
        treedef = jax.tree.structure(rows)

        def from_rows(combined: list[jax.Array], others: jax.Array) -> chex.ArrayTree:
            return at_features(jax.tree.unflatten(treedef, combined), others)

        # Of the rows and not of the weights: so nothing of an absent task reaches the encoder.
        def through(weights: jax.Array, others: jax.Array) -> chex.ArrayTree:
            at = _stacked.combine(rows, weights, everywhere, weights)
            return at_features(at, others)

        return Given(rows, everywhere, present, through, from_rows)
    if of_weights is None:
        return Given(rows, everywhere, present, lambda *weights: weights, None)
    mask = _stacked.shared_leaves(shared, params, params)

    def on_parameters(weights: jax.Array, others: jax.Array) -> chex.ArrayTree:
        gradient = of_weights(weights, others)
        if all(jax.tree.leaves(mask)):
            return gradient
        pick = lambda is_shared, own, other: own if is_shared else other
        return jax.tree.map(pick, mask, gradient, of_weights(others, others))

    return Given(rows, everywhere, present, on_parameters, None)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _weigh(
    weigh: Weigh, gram: jax.Array, present: jax.Array, state: Any, parameters: dict[str, Any]
) -> tuple[jax.Array, Any]:
    gram = _solvers.among(present, gram)
    finite = jnp.all(jnp.isfinite(gram))
    with jax.default_matmul_precision("highest"):
        weights, state = weigh(jnp.where(finite, gram, 0), present, state, **parameters)
    return jnp.where(present, jnp.where(finite, weights, jnp.nan), 0), state


def _head_weights(heads: Heads, present: jax.Array) -> jax.Array:
    ones = present.astype(float)
    return ones / jnp.maximum(jnp.sum(ones), 1) if heads == "mean" else ones
