"""The Gram matrix, the combination of gradients, the mask of shared leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import _change, _stacked, _task_gradients
from famo_jax.aggregation import mgda

RNG = np.random.default_rng(0)
GRADS = {
    "trunk": {"kernel": RNG.normal(size=(3, 4, 5)), "bias": RNG.normal(size=(3,))},
    "head": RNG.normal(size=(3, 6)),
}
ALL = {"trunk": {"kernel": True, "bias": True}, "head": True}
TRUNK = {"trunk": {"kernel": True, "bias": True}, "head": False}


def flat(tree):
    return np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(tree)], axis=1)


def test_gram_is_over_the_selected_leaves(x64):
    grads = jax.tree.map(jnp.asarray, GRADS)
    for mask, tree in ((ALL, GRADS), (TRUNK, GRADS["trunk"])):
        np.testing.assert_allclose(
            _stacked.gram(grads, mask), flat(tree) @ flat(tree).T, rtol=1e-13
        )


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_float32(half):
    rows = jnp.array(RNG.normal(size=(4, 5000)), half)
    gram = _stacked.gram(rows, True)
    assert gram.dtype == jnp.float32
    exact = np.asarray(rows, float) @ np.asarray(rows, float).T
    np.testing.assert_allclose(gram, exact, atol=1e-5 * np.max(exact))
    weights = jnp.array([0.1, 0.2, 0.3, 0.4])
    combined = _stacked.combine(rows, weights, True, weights)
    assert combined.dtype == half
    expected = jnp.asarray(np.asarray(weights, float) @ np.asarray(rows, float), half)
    np.testing.assert_allclose(
        np.asarray(combined, float), np.asarray(expected, float), rtol=0.01, atol=1e-3
    )


def test_gradients_keep_their_dtypes_and_structure(x64):
    grads = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones((2,)), "c": jnp.ones((2, 0))}
    gradient, _ = mgda().update(grads, mgda().init(None))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), gradient)
    assert shapes == {
        "a": ((3,), jnp.bfloat16),
        "b": ((), jnp.float64),
        "c": ((0,), jnp.float64),
    }


def test_shared_as_optax_masks_take_it():
    grads = jax.tree.map(jnp.asarray, GRADS)
    params = jax.tree.map(lambda leaf: leaf[0], grads)
    masks = (
        TRUNK,
        {"trunk": True, "head": False},
        lambda tree: {"trunk": True, "head": False},
        lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) != 1, tree),
    )
    for mask in masks:
        for given_params in (params, None):
            assert _stacked.shared_leaves(mask, grads, given_params) == TRUNK
    assert _stacked.shared_leaves(None, grads, None) == ALL
    assert _stacked.shared_leaves(np.True_, grads, None) == ALL


@pytest.mark.parametrize("num_tasks", [1, 2, 10, 40, 200])
def test_a_pullback_and_a_pushforward_make_a_product_with_the_gram_matrix(num_tasks, x64):
    """G w = J (J^T w), the slope of all losses along minus a gradient step: without any row."""
    rng = np.random.default_rng(num_tasks)
    matrix, targets = jnp.array(rng.normal(size=(30, num_tasks))), jnp.array(rng.normal(size=30))
    losses_fn = lambda params: jnp.sin(params["a"] * targets) @ matrix + params["b"] ** 2
    params = {"a": jnp.array(rng.normal(size=30)), "b": jnp.array(1.5)}
    weights = jnp.array(rng.normal(size=num_tasks))
    losses, jacobian, _ = _task_gradients.linearize(losses_fn, params, has_aux=False)
    (direction,) = _task_gradients.gradients(jacobian, weights)
    product = _change._slope(direction, params, losses, losses_fn, None, num_tasks)
    rows = jax.tree.leaves(jax.jacrev(losses_fn)(params))
    stacked = np.concatenate([np.reshape(leaf, (num_tasks, -1)) for leaf in rows], axis=1)
    expected = stacked @ (stacked.T @ np.asarray(weights))
    np.testing.assert_allclose(product, expected, rtol=1e-12, atol=1e-12 * abs(expected).max())
