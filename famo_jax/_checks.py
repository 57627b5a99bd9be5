"""The arguments of the methods' factories, and the states that their updates get."""

import functools
import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import _tasks

LEARNING_RATE = 0.025  # the paper's, of whatever a method learns about the tasks


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
    dtype = _tasks.dtype_of(rate)
    real = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in _tasks.REAL)
    if not real or jnp.ndim(rate):
        raise ValueError(f"`{name}`: expected a scalar, got {rate!r}")
    if not isinstance(rate, jax.core.Tracer) and not 0 <= float(rate) < math.inf:
        raise ValueError(f"`{name}`: expected a finite number of at least 0, got {rate!r}")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless it is a scalar, and if not traced finite and above 0."""
    check_rate(name, value)
    if not isinstance(value, jax.core.Tracer) and float(value) == 0:
        raise ValueError(f"`{name}`: expected a number above 0, got {value!r}")


def check_fraction(name: str, value: Any) -> None:
    """Raises ValueError unless it is a scalar, and if not traced in [0, 1]."""
    check_rate(name, value)
    if not isinstance(value, jax.core.Tracer) and float(value) > 1:
        raise ValueError(f"`{name}`: expected a number from 0 to 1, got {value!r}")


def check_decay(name: str, decay: Any) -> None:
    """Raises ValueError unless it is a scalar, and if not traced in [0, 1)."""
    check_rate(name, decay)
    if not isinstance(decay, jax.core.Tracer) and float(decay) >= 1:
        raise ValueError(f"`{name}`: expected a number of at least 0 and below 1, got {decay!r}")


def check_one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises ValueError unless it is one of the choices."""
    known = value is None or isinstance(value, str)
    if not known or value not in choices:
        *first, last = map(repr, choices)
        raise ValueError(f"`{name}`: expected {', '.join(first)} or {last}, got {value!r}")


def check_finite(name: str, tree: chex.ArrayTree) -> None:
    """Raises ValueError unless all numbers are finite that are not traced."""
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.core.Tracer) and not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError(f"`{name}`: expected finite values, got {leaf!r}")


def check_bounds(min_losses: chex.ArrayTree, num_tasks: int | None) -> Callable[..., jax.Array]:
    """Raises ValueError unless they are finite bounds of so many losses, or None of any number.

    Returns:
      What makes an array of them, ``[K]``, and raises where losses that it gets do not fit.
    """
    bounds = functools.partial(_tasks.flatten_bounds, min_losses, num_tasks=num_tasks)
    jax.eval_shape(bounds)  # before `init` no device is touched
    check_finite("min_losses", min_losses)
    return bounds


def check_state(state: Any, expected: Any) -> None:
    """Raises ValueError unless it has the type, the shapes and the settings of ``expected``.

    Args:
      state: What ``update`` was given.
      expected: A NamedTuple, the shapes of what ``init`` returns.
    """
    told = f"`state`: expected {type(expected).__name__}, as `init` returns it"
    if type(state) is not type(expected):
        raise ValueError(f"{told}, got {type(state).__name__}")
    for name, field in expected._asdict().items():
        own = getattr(state, name)
        # A setting, such as FAMO's normalizer, is a NamedTuple without fields.
        if getattr(field, "_fields", None) == () and type(own) is not type(field):
            raise ValueError(f"{told}, {name} {field!r}, got {own!r}")
    whole: object = jax.tree.structure(expected)
    if jax.tree.structure(state) != whole:
        raise ValueError(f"{told}, of structure {whole}, got {jax.tree.structure(state)}")
    leaves = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(state), strict=True)
    for (path, leaf), own in leaves:
        if jnp.shape(own) != leaf.shape:
            name = jax.tree_util.keystr(path).lstrip(".")
            raise ValueError(f"{told}, {name} of shape {leaf.shape}, got {jnp.shape(own)}")


def adam_unless(
    optimizer: optax.GradientTransformation | None,
    learning_rate: optax.ScalarOrSchedule,
    default: float = LEARNING_RATE,
) -> optax.GradientTransformation:
    """The optimizer given for what a method learns, or Adam, whose rate has this default."""
    if not callable(learning_rate):
        check_rate("learning_rate", learning_rate)
    if optimizer is None:
        return optax.adam(learning_rate)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "`optimizer`: expected an optax.GradientTransformation or None, got "
            f"{type(optimizer).__name__}"
        )
    traced = isinstance(learning_rate, jax.core.Tracer)
    if not traced and (callable(learning_rate) or np.float32(learning_rate) != np.float32(default)):
        raise ValueError(
            "expected one of `learning_rate` and `optimizer`, got both: the optimizer given has a "
            f"rate of its own, so {learning_rate!r} would be unused"
        )
    return optimizer


def check_optimizer(
    optimizer: optax.GradientTransformation, opt_state: optax.OptState, params: jax.Array
) -> None:
    """Raises ValueError unless it is one whose state has this structure."""
    own: object = jax.tree.structure(opt_state)
    if own != jax.tree.structure(jax.eval_shape(optimizer.init, params)):
        raise ValueError(
            "`optimizer`: expected the one that `state.opt_state` belongs to, as `famo` and "
            f"`logits_optimizer` build it from the same arguments, got another than that of {own}"
        )


def check_key(key: Any) -> None:
    """Raises ValueError unless it is a typed key or an int, of which to make one."""
    dtype = _tasks.dtype_of(key)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if is_key and jnp.ndim(key):
        raise ValueError(f"`key`: expected one key, got keys of shape {jnp.shape(key)}")
    is_int = dtype is not None and jnp.issubdtype(dtype, jnp.integer) and not jnp.ndim(key)
    # Of an int, as of a seed, JAX takes 64 bits.
    if (not is_key and not is_int) or (isinstance(key, int) and not -(2**63) <= key < 2**63):
        raise ValueError(f"`key`: expected an int or a typed key (jax.random.key), got {key!r}")


def make_key(key: jax.Array | int) -> jax.Array:
    """A typed key, of its own memory: states are donated."""
    if jnp.issubdtype(_tasks.dtype_of(key), jax.dtypes.prng_key):
        clone: jax.Array = jax.random.clone(key)
        return clone
    return jax.random.key(key)
