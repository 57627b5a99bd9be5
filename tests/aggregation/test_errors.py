"""Bad input and what it is told: the argument, what was expected, what came."""

import jax
import jax.numpy as jnp
import optax
import pytest

from famo_jax.aggregation import (
    cagrad,
    cagrad_weights,
    graddrop,
    imtl_g,
    imtl_g_weights,
    mgda,
    mgda_weights,
    nash_mtl,
    nash_mtl_weights,
    pcgrad,
)

ROWS = jnp.ones((2, 3))
METHODS = {
    "mgda": mgda,
    "pcgrad": lambda **kwargs: pcgrad(key=0, **kwargs),
    "cagrad": cagrad,
    "imtl_g": imtl_g,
    "graddrop": lambda **kwargs: graddrop(key=0, **kwargs),
    "nash_mtl": nash_mtl,
}


def update(method, updates, shared=None, params=None, **kwargs):
    tx = method(shared=shared)
    return tx.update(updates, tx.init(None), params, **kwargs)


UPDATES = {
    "no leaves": ({}, r"`updates`: expected task-stacked gradients.*\[\]"),
    "scalar leaf": ({"a": ROWS, "b": 1.0}, r"`updates`: expected task-stacked.*\(2, 3\), \(\)"),
    "two Ks": ({"a": ROWS, "b": ROWS.T}, r"`updates`: .*\[\(2, 3\), \(3, 2\)\]"),
    "no tasks": (jnp.ones((0, 3)), r"`updates`: expected at least one task"),
    "integers": (jnp.ones((2, 3), int), "`updates`: expected floating values, got int32"),
    "complex": (jnp.ones((2, 3), complex), "`updates`: expected floating values, got complex64"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", UPDATES)
def test_updates(method, bad):
    updates, message = UPDATES[bad]
    with pytest.raises(ValueError, match=message):
        update(METHODS[method], updates)


WHERE = {
    "too long": ([True] * 3, "`where`: expected num_tasks = 2 values, got 3"),
    "no booleans": ([1, 0], "`where`: expected bool"),
    "no array": ("both", "`where`: expected bool.* got str"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", WHERE)
def test_where(method, bad):
    where, message = WHERE[bad]
    with pytest.raises(ValueError, match=message):
        update(METHODS[method], ROWS, where=where)


@pytest.mark.parametrize("method", METHODS)
def test_where_of_another_structure(method):
    with pytest.raises(ValueError, match="`where`: expected the structure of the losses"):
        update(
            METHODS[method],
            ROWS,
            losses={"a": 1.0, "b": 1.0},
            where={"a": True, "c": True},
        )


SHARED = {
    "another structure": ({"b": True}, "`shared`: expected a prefix of the structure"),
    "deeper": ({"a": {"b": True}}, "`shared`: expected a prefix of the structure"),
    "no booleans": ({"a": 1}, "`shared`: expected a pytree of booleans, got a leaf 1"),
    "arrays": ({"a": jnp.array([True, False])}, "`shared`: expected a pytree of booleans"),
    "nothing shared": ({"a": False}, "`shared`: expected at least one shared leaf"),
    "a function of no mask": (lambda params: params, "`shared`: expected a pytree of booleans"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", SHARED)
def test_shared(method, bad):
    shared, message = SHARED[bad]
    with pytest.raises(ValueError, match=message):
        update(METHODS[method], {"a": ROWS}, shared=shared)


@pytest.mark.parametrize("method", [pcgrad, graddrop])
@pytest.mark.parametrize("key", [1.5, "seed", None, True, [1, 2], jnp.ones(2)], ids=repr)
def test_key(method, key):
    with pytest.raises(ValueError, match="`key`: expected an int or a typed key"):
        method(key=key)
    with pytest.raises(ValueError, match=r"`key`: expected one key, got keys of shape \(2,\)"):
        method(key=jax.random.split(jax.random.key(0)))


C = {
    "negative": (-0.1, "`c`: expected at least 0, got -0.1"),
    "nan": (float("nan"), "`c`: expected at least 0, got nan"),
    "array": (jnp.ones(2), r"`c`: expected a scalar, got shape \(2,\)"),
    "no number": ("0.4", "`c`: expected a real number, got str"),
    "complex": (1j, "`c`: expected a real number, got complex"),
}


@pytest.mark.parametrize("bad", C)
def test_c(bad):
    c, message = C[bad]
    with pytest.raises(ValueError, match=message):
        cagrad(c=c)
    with pytest.raises(ValueError, match=message):
        cagrad_weights(jnp.eye(2), c)


GRAM = {
    "no matrix": (jnp.ones(3), r"`gram`: expected shape \(K, K\), got \(3,\)"),
    "a Jacobian": (ROWS, r"`gram`: expected shape \(K, K\), got \(2, 3\)"),
    "empty": (jnp.ones((0, 0)), r"`gram`: expected shape \(K, K\), got \(0, 0\)"),
    "ragged": ([[1.0], [1.0, 2.0]], "`gram`: expected an array, got list"),
    "no array": ("gram", "`gram`: expected"),
    "complex": (jnp.ones((2, 2), complex), "`gram`: expected real values, got complex64"),
}


@pytest.mark.parametrize(
    "weights", [mgda_weights, cagrad_weights, imtl_g_weights, nash_mtl_weights]
)
@pytest.mark.parametrize("bad", GRAM)
def test_gram(weights, bad):
    gram, message = GRAM[bad]
    with pytest.raises(ValueError, match=message):
        weights(gram)
    with pytest.raises(ValueError, match="`where`: expected num_tasks = 2 values, got 3"):
        weights(jnp.eye(2), where=[True, True, False])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_gradient_that_is_not_task_stacked(method):
    """The gradient of one loss, whose first axis would be taken for the tasks."""
    tx, params = method(), {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"`updates`: expected a leading axis of K before"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"`losses`: expected num_tasks = 4 values, got 3"):
        tx.update(params, tx.init(params), losses=jnp.ones(3))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_inside_of_masked(method):
    tx = optax.masked(method(), {"w": True, "b": False})
    params = {"w": jnp.ones(3), "b": jnp.ones(4)}
    stacked = {"w": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}
    with pytest.raises(ValueError, match=r"outside of optax\.masked and optax\.partition"):
        tx.update(stacked, tx.init(params), params)
