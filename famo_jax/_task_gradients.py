"""Task gradients as a linear map: pullbacks and rows, on parameters or at features.

The gradients of K losses are a linear map J from the parameters to the losses. A method that looks
at J only through its Gram matrix G = J J^T costs the rows of J, one product to form G, one pullback
J^T w, and in between arithmetic on ``[K, K]``, whatever the size of the model; and it does not
matter to it where the rows are taken. One pushforward J v, the fall of all losses along a step, is
what ``measure="slope"`` takes in ``_change.py``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import flatten_util
from jax.tree_util import Partial

from famo_jax import _tasks

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
