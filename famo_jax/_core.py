"""What every method shares: the state that weighs the losses, their structure, the training step.

A method is known by the type of its state. It joins by registering that type with
:func:`scalarize`; nothing else here changes for it.
"""

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import flatten_util
from jax.experimental import checkify

Normalizer = Literal["harmonic", "geometric", "arithmetic"] | None

# --- A method: a state that weighs losses ---------------------------------------------------------


@functools.singledispatch
def scalarize(
    state: Any, losses: jax.Array, *, where: jax.Array, normalizer: Normalizer
) -> jax.Array:
    """The scalar of K losses whose gradient is a method's loss weights.

    Each weighting method registers its own for the type of its state; each aggregation method
    registers :func:`needs_task_gradients`.

    Args:
      state: The method's state.
      losses: ``[K]``, at least float32; 1 in place of the losses of absent tasks.
      where: ``[K]``, bool, the tasks that are present. The others contribute no term.
      normalizer: The length of FAMO's gradient. Other methods have no use for it.

    Returns:
      ``[]``
    """
    raise TypeError(f"no method has registered a state of type {type(state).__name__}")


def needs_task_gradients(
    state: Any, losses: jax.Array, *, where: jax.Array, normalizer: Normalizer
) -> jax.Array:
    """What an aggregation method registers with :func:`scalarize`: losses do not suffice for it."""
    raise ValueError(
        f"`state`: {type(state).__name__} belongs to a method that combines the gradients of the "
        "tasks, which no weighted loss can express: use `losses_and_grads`"
    )


def keep_state(
    updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
) -> tuple[optax.Updates, Any]:
    """The ``update`` of a weighting method that learns nothing from the losses."""
    del params, extra_args
    return updates, state


def find_state(state: chex.ArrayTree) -> Any:
    """The one state of a method that ``state`` is or holds, as arrays.

    Args:
      state: A method's own state or any pytree that holds exactly one: an Optax state (nested,
        chained, injected, wrapped), the ``opt_state`` of an NNX optimizer, a train state.

    Raises:
      ValueError: If there is none, or more than one in the containers that Optax builds.
    """
    # Where Optax puts states first. Only without success everywhere: a flattening of the whole
    # tree takes a hundred times as long as the arithmetic when the model is large.
    found = list(_states_among_tuples(state)) or [
        leaf for leaf in jax.tree.leaves(state, is_leaf=_is_method_state) if _is_method_state(leaf)
    ]
    if len(found) != 1:
        got = " and ".join(type(each).__name__ for each in found) or "none"
        raise ValueError(
            "`state`: expected the state of a method, or an optimizer state that holds exactly "
            f"one, got {got} in a {type(state).__name__}"
        )
    return jax.tree.map(_without_variable, found[0], is_leaf=_is_variable)


def _is_method_state(node: Any) -> bool:
    return type(node) in scalarize.registry and type(node) is not object


def _states_among_tuples(node: Any) -> Iterator[Any]:
    """Descends NamedTuples, and containers whose first child is a tuple, as Optax builds them.

    Moments shaped like parameters are so passed over.
    """
    if _is_method_state(node):
        yield node
    elif isinstance(node, tuple | list | dict):
        children = node.values() if isinstance(node, dict) else node
        if hasattr(node, "_fields") or isinstance(next(iter(children), None), tuple):
            for child in children:
                yield from _states_among_tuples(child)


def _is_variable(leaf: Any) -> bool:
    """Whether this is an NNX Variable, in which Flax keeps each leaf of an optimizer state."""
    return hasattr(leaf, "__jax_array__") and not isinstance(leaf, jax.Array)


def _without_variable(leaf: Any) -> Any:
    return leaf.__jax_array__() if _is_variable(leaf) else leaf


# --- The structure of losses ----------------------------------------------------------------------

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
    is_flat = isinstance(tree, list | tuple) or (is_array and arrays[0].ndim == 1)
    if like is not None and not is_flat:
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


# --- Arguments of the methods' factories ----------------------------------------------------------


def check_num_tasks(value: Any, name: str = "num_tasks") -> None:
    """Raises ValueError unless it is an int of at least 1."""
    if isinstance(value, jax.Array):
        raise ValueError(
            f"`{name}`: expected an int, got an array; under optax.inject_hyperparams give "
            f'static_args=("{name}",)'
        )
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"`{name}`: expected an int of at least 1, got {value!r}")


def check_rate(name: str, rate: Any) -> None:
    """Raises ValueError unless it is a scalar, and if not traced finite and at least 0."""
    dtype = dtype_of(rate)
    real = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in REAL)
    if not real or jnp.ndim(rate):
        raise ValueError(f"`{name}`: expected a scalar, got {rate!r}")
    if not isinstance(rate, jax.core.Tracer) and not 0 <= float(rate) < math.inf:
        raise ValueError(f"`{name}`: expected a finite number of at least 0, got {rate!r}")


def check_finite(name: str, tree: chex.ArrayTree) -> None:
    """Raises ValueError unless all numbers are finite that are not traced."""
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.core.Tracer) and not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError(f"`{name}`: expected finite values, got {leaf!r}")


def check_state(state: Any, kind: type, **shapes: tuple[int, ...]) -> None:
    """Raises ValueError unless it is of this kind, with fields of these shapes."""
    expected = f"{kind.__name__}, as `init` returns it"
    if not isinstance(state, kind):
        raise ValueError(f"`state`: expected {expected}, got {type(state).__name__}")
    for name, shape in shapes.items():
        own = jnp.shape(getattr(state, name))
        if own != shape:
            raise ValueError(f"`state`: expected {expected}, {name} of shape {shape}, got {own}")


def adam_unless(
    optimizer: optax.GradientTransformation | None, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The optimizer given for what a method learns, or Adam."""
    if not callable(learning_rate):
        check_rate("learning_rate", learning_rate)
    if optimizer is None:
        return optax.adam(learning_rate)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "`optimizer`: expected an optax.GradientTransformation or None, got "
            f"{type(optimizer).__name__}"
        )
    return optimizer


def check_key(key: Any) -> None:
    """Raises ValueError unless it is a typed key or an int, of which to make one."""
    dtype = dtype_of(key)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if is_key and jnp.ndim(key):
        raise ValueError(f"`key`: expected one key, got keys of shape {jnp.shape(key)}")
    is_int = dtype is not None and jnp.issubdtype(dtype, jnp.integer) and not jnp.ndim(key)
    # Of an int, as of a seed, JAX takes 64 bits.
    if (not is_key and not is_int) or (isinstance(key, int) and not -(2**63) <= key < 2**63):
        raise ValueError(f"`key`: expected an int or a typed key (jax.random.key), got {key!r}")


def make_key(key: jax.Array | int) -> jax.Array:
    """A typed key, of its own memory: states are donated."""
    if jnp.issubdtype(dtype_of(key), jax.dtypes.prng_key):
        clone: jax.Array = jax.random.clone(key)
        return clone
    return jax.random.key(key)


# --- Losses -> weighted loss -> gradient ----------------------------------------------------------


def weighted_loss(
    losses: chex.ArrayTree,
    state: chex.ArrayTree,
    *,
    where: chex.ArrayTree | None = None,
    normalizer: Normalizer = "harmonic",
) -> jax.Array:
    r"""The scalar to differentiate instead of the mean of the losses.

    For FAMO (paper, eq. 11 and Algorithm 2)

    .. math:: L = c \sum_i z_i \log D_i, \quad D_i = \ell_i - b_i + \epsilon, \quad
              c = \Big(\sum_i z_i / D_i\Big)^{-1}

    with :math:`z` and :math:`c` constant to differentiation. Its *gradient* is what the method is
    about; its value goes up and down with the weights and is comparable to no other step's. Log
    the losses instead, and steer no scheduler or line search by this.

    Jitted. Non-finite losses, and losses under their bound, propagate into the result.

    Args:
      losses: K losses: an array of any shape, or a pytree of scalars such as a dict of named
        losses. Real numbers of any dtype; the arithmetic is in at least float32.
      state: The state of a weighting method, or an optimizer state that holds exactly one.
      where: Booleans, the tasks that are present in this batch: one, ``[K]``, or structured as
        the losses. The gradient with respect to an absent task's loss is exactly 0, whatever that
        loss is. Default: all.
      normalizer: What FAMO multiplies the sum of :math:`z_i \log D_i` with, so the length of the
        gradient, never its direction: the ``"harmonic"`` (as the paper has it), ``"geometric"`` or
        ``"arithmetic"`` mean of D weighted by z, or 1 with None. Other methods ignore it.

    Returns:
      ``[]``, in the dtype to which the losses' dtype and float32 promote.

    Raises:
      ValueError: If an argument has another structure, number of tasks or kind of values, if
        ``state`` holds no method's state or several, or if its method needs task gradients.

    Example:
      >>> import jax, jax.numpy as jnp, famo_jax
      >>> state = famo_jax.famo(num_tasks=2).init(None)
      >>> losses = jnp.array([1.0, 4.0])
      >>> jax.grad(famo_jax.weighted_loss)(losses, state)  # proportional to 1 / losses
      Array([0.8, 0.2], dtype=float32)

    References:
      Liu et al., `FAMO: Fast Adaptive Multitask Optimization
      <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023
    """
    loss: jax.Array = _call(_weighted_loss, losses, state, where, normalizer)
    return loss


def loss_weights(
    losses: chex.ArrayTree,
    state: chex.ArrayTree,
    *,
    where: chex.ArrayTree | None = None,
    normalizer: Normalizer = "harmonic",
) -> chex.ArrayTree:
    r"""The gradient of :func:`weighted_loss` with respect to the losses.

    A weighting is a cotangent: ``losses, pullback = jax.vjp(losses_fn, params)`` and then
    ``grads, = pullback(loss_weights(losses, state))`` is the gradient of the weighted loss. For
    FAMO :math:`w_i = c z_i / D_i`, a convex combination (paper, eq. 11).

    Args:
      losses: As :func:`weighted_loss` takes them.
      state: Likewise.
      where: Likewise. Absent tasks weigh exactly 0.
      normalizer: Likewise.

    Returns:
      One weight for each task, in the structure, shapes and dtypes of the losses.

    Raises:
      ValueError: As :func:`weighted_loss` does.

    Example:
      >>> import famo_jax
      >>> state = famo_jax.famo(num_tasks=2).init(None)
      >>> weights = famo_jax.loss_weights({"depth": 1.0, "normals": 4.0}, state)
      >>> print({name: round(float(weight), 3) for name, weight in weights.items()})
      {'depth': 0.8, 'normals': 0.2}

    References:
      FAMO's: `the paper <https://arxiv.org/abs/2306.03792>`_, eq. 11. Another method's: its own.
    """
    return _call(_loss_weights, losses, state, where, normalizer)


def _scalar(
    losses: chex.ArrayTree, state: Any, where: chex.ArrayTree | None, normalizer: Normalizer
) -> jax.Array:
    values = flatten_tasks(losses, "losses")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    present = flatten_where(where, losses, values.size)
    # With a constant in its place nothing of an absent task's loss can reach value or gradient.
    values = jnp.where(present, values, 1)
    return scalarize(state, values, where=present, normalizer=normalizer).astype(values.dtype)


_weighted_loss = jax.jit(_scalar, static_argnames="normalizer", inline=True)


@functools.partial(jax.jit, static_argnames="normalizer", inline=True)
def _loss_weights(
    losses: chex.ArrayTree, state: Any, where: chex.ArrayTree | None, normalizer: Normalizer
) -> chex.ArrayTree:
    losses = jax.tree.map(lambda loss: jnp.asarray(loss, jnp.result_type(loss, float)), losses)
    weights: chex.ArrayTree = jax.grad(_scalar)(losses, state, where, normalizer)
    return weights


def _call(
    jitted: Callable[..., Any],
    losses: chex.ArrayTree,
    state: chex.ArrayTree,
    where: chex.ArrayTree | None,
    normalizer: Normalizer,
) -> Any:
    """Finds the state outside ``jit``, which would take long over a whole optimizer state."""
    _check_normalizer(normalizer)
    method_state = find_state(state)
    with naming_what_jit_rejects(losses=losses, where=where):
        return jitted(losses, method_state, where, normalizer=normalizer)


def _check_normalizer(normalizer: Normalizer) -> None:
    names = ("harmonic", "geometric", "arithmetic")
    if normalizer is not None and not (isinstance(normalizer, str) and normalizer in names):
        raise ValueError(
            "`normalizer`: expected 'harmonic', 'geometric', 'arithmetic' or None, got "
            f"{normalizer!r}"
        )


def losses_and_grads(
    losses_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    normalizer: Normalizer = "harmonic",
) -> Callable[..., Any]:
    """Like :func:`jax.value_and_grad`, for K losses and any method: only the state tells which.

    A weighting method takes one backward pass. An aggregation method takes one for each task, and
    gets task-stacked gradients, which its own transformation then combines.

    Args:
      losses_fn: ``losses_fn(params, *args, **kwargs)`` returns the losses, as an array of K or a
        pytree of K scalars, or ``(losses, aux)``.
      has_aux: Whether it returns ``(losses, aux)``.
      chunk_size: How many of the K backward passes of an aggregation method run at once. Default:
        all; fewer need less memory, but a loop, in which convolutions on a CPU are many times
        slower.
      normalizer: As in :func:`weighted_loss`.

    Returns:
      A function ``(params, *args, state, where=None, **kwargs) -> (losses, grads)``, or
      ``((losses, aux), grads)``. ``state`` is a method's state or an optimizer state that holds
      one; ``where`` are the tasks present, as in :func:`weighted_loss`. ``grads`` are structured
      as ``params``, with a leading axis of K on every leaf for an aggregation method, where the
      rows of absent tasks hold the gradient of 0 times their loss.

    Raises:
      ValueError: If ``losses_fn`` is no function, ``chunk_size`` no int of at least 1 or
        ``normalizer`` unknown; when called, as :func:`weighted_loss` does, and if parameters or
        losses are not floating: no gradient flows through integers.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from famo_jax import famo, losses_and_grads
      >>> losses_fn = lambda x: {"a": jnp.sum((x - 1) ** 2), "b": jnp.sum((x + 1) ** 2)}
      >>> tx = optax.chain(optax.sgd(0.1), famo(num_tasks=2))
      >>> params = jnp.array([2.0])
      >>> opt_state = tx.init(params)
      >>> losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
      >>> updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
      >>> print(losses["a"], grads.round(1))
      1.0 [2.4]
    """
    _check_normalizer(normalizer)
    if not callable(losses_fn):
        raise ValueError(f"`losses_fn`: expected a function, got {type(losses_fn).__name__}")
    if chunk_size is not None:
        check_num_tasks(chunk_size, "chunk_size")

    def losses_and_grads_fn(
        params: chex.ArrayTree,
        *args: Any,
        state: chex.ArrayTree,
        where: chex.ArrayTree | None = None,
        **kwargs: Any,
    ) -> Any:
        def with_aux(params: chex.ArrayTree) -> Any:
            output = losses_fn(params, *args, **kwargs)
            if has_aux and not (isinstance(output, tuple) and len(output) == 2):
                got = type(output).__name__
                raise ValueError(f"`losses_fn`: expected (losses, aux) with has_aux, got {got}")
            losses, aux = output if has_aux else (output, None)
            flatten_tasks(losses, "losses_fn", kinds=(jnp.floating,))
            return losses, aux

        method_state = find_state(state)
        for leaf in jax.tree.leaves(params):
            dtype = dtype_of(leaf)
            if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
                got = type(leaf).__name__ if dtype is None else dtype
                raise ValueError(f"`params`: expected floating values, got {got}")
        losses, pullback, aux = jax.vjp(with_aux, params, has_aux=True)
        if scalarize.dispatch(type(method_state)) is needs_task_gradients:
            grads = _task_gradients(losses, pullback, where, chunk_size)
        else:
            weights = loss_weights(losses, method_state, where=where, normalizer=normalizer)
            (grads,) = pullback(weights)
        return ((losses, aux), grads) if has_aux else (losses, grads)

    return losses_and_grads_fn


def _task_gradients(
    losses: chex.ArrayTree,
    pullback: Callable[..., Any],
    where: chex.ArrayTree | None,
    chunk_size: int | None,
) -> chex.ArrayTree:
    """The pullbacks of the K unit cotangents: a leading axis of K on every leaf."""
    values, unravel = flatten_util.ravel_pytree(losses)
    present = flatten_where(where, losses, flatten_tasks(losses, "losses").size)
    cotangents = jnp.diag(present.astype(values.dtype))

    def task_gradient(cotangent: jax.Array) -> chex.ArrayTree:
        return pullback(unravel(cotangent))[0]

    if chunk_size is None:
        return jax.vmap(task_gradient)(cotangents)
    return jax.lax.map(task_gradient, cotangents, batch_size=chunk_size)


def check_losses(
    losses: chex.ArrayTree, state: chex.ArrayTree, *, where: chex.ArrayTree | None = None
) -> None:
    """Names the task whose loss is not finite or not above its bound, under ``checkify``.

    Call it where the losses are weighed. Transformed by
    :func:`jax.experimental.checkify.checkify` the function around it reports the first such task;
    otherwise nothing is checked, yet each call of a jitted function around it takes some tens of
    microseconds longer. That is why :func:`weighted_loss` does not call it.

    Args:
      losses: As :func:`weighted_loss` takes them.
      state: Likewise.
      where: Likewise. Absent tasks are not checked.

    Raises:
      ValueError: As :func:`weighted_loss` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.experimental import checkify
      >>> from famo_jax import check_losses, famo, weighted_loss
      >>> state = famo(num_tasks=2).init(None)
      >>> def loss_fn(losses):
      ...     check_losses(losses, state)
      ...     return weighted_loss(losses, state)
      >>> error, _ = checkify.checkify(loss_fn)({"depth": 1.0, "normals": jnp.nan})
      >>> print(error.get().split(" (")[0])
      the loss of task ['normals'] is nan, not finite and above its bound 0.0
    """
    method_state = find_state(state)
    bounds = jnp.asarray(getattr(method_state, "min_losses", -jnp.inf))
    values = flatten_tasks(losses, "losses", bounds.size if bounds.ndim else None)
    bounds = jnp.broadcast_to(bounds, values.shape)
    present = flatten_where(where, losses, values.size)
    fine = (jnp.isfinite(values) & (values > bounds)) | ~present
    message = "the loss of task {} is {}, not finite and above its bound {}"
    paths = [path for path, _ in jax.tree.leaves_with_path(losses)]
    if paths == [()]:
        task = jnp.argmin(fine)
        checkify.debug_check(jnp.all(fine), message, task, values[task], bounds[task])
    else:
        for path, ok, value, bound in zip(paths, fine, values, bounds, strict=True):
            named = message.replace("{}", jax.tree_util.keystr(path), 1)
            checkify.debug_check(ok, named, value, bound)
