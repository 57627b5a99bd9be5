"""DB-MTL by its formula over some steps, and what it remembers."""

import jax
import jax.numpy as jnp
import numpy as np

from famo_jax import losses_and_grads
from famo_jax.aggregation import db_mtl
from famo_jax.weighting import si

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(10, 3, 6)) * [[[1e-3], [1.0], [100.0]]]
LOSSES = RNG.uniform(0.5, 2.0, (10, 3)) * [1e-2, 1.0, 1e3]


def test_ten_steps_by_hand(dtype):
    tx = db_mtl(3, beta=0.9, min_losses=[0.0, 0.1, 0.0])
    params = {"a": jnp.zeros(2, dtype), "b": jnp.zeros((2, 2), dtype)}
    state, average = tx.init(params), None
    for rows, losses in zip(GRADIENTS, LOSSES, strict=True):
        logs = rows / (losses - [0.0, 0.1, 0.0] + 1e-8)[:, None]
        average = logs if average is None else 0.9 * average + 0.1 * logs
        norms = np.linalg.norm(average, axis=1)
        expected = (norms.max() / norms) @ average
        grads = {"a": jnp.array(rows[:, :2], dtype), "b": jnp.array(rows[:, 2:], dtype)}
        grads["b"] = grads["b"].reshape(3, 2, 2)
        gradient, state = tx.update(grads, state, params, losses=jnp.array(losses, dtype))
        direction = np.append(gradient["a"], gradient["b"])
        np.testing.assert_allclose(direction, expected, rtol=1e-4)


def test_the_loss_half_is_si():
    """Of tasks whose log losses have gradients of one length, nothing else is left."""
    losses_fn = lambda x: jnp.stack([jnp.exp(x[0]), 5 * jnp.exp(x[1])])
    params = jnp.array([0.3, -1.0])
    _, by_si = losses_and_grads(losses_fn)(params, state=si().init(params))
    tx = db_mtl(2)
    state = tx.init(params)
    losses, grads = losses_and_grads(losses_fn)(params, state=state)
    gradient, _ = tx.update(grads, state, params, losses=losses)
    np.testing.assert_allclose(gradient, 2 * by_si, rtol=1e-5)  # a sum, not a mean


def test_what_is_remembered():
    rows, losses = jnp.array(GRADIENTS[0], jnp.float32), jnp.ones(3)
    tx = db_mtl(3, beta=0.5)
    start = tx.init(jnp.zeros(6))
    _, state = tx.update(rows, start, losses=losses, where=jnp.array([True, False, True]))
    np.testing.assert_array_equal(state.seen, [True, False, True])
    np.testing.assert_array_equal(state.gradients[0][1], 0)
    for bad_rows, bad_losses in (
        (rows.at[0, 0].set(jnp.inf), losses),
        (rows, losses.at[0].set(jnp.nan)),
        (rows, losses.at[0].set(-1.0)),
    ):
        gradient, after = tx.update(bad_rows, state, losses=bad_losses)
        assert np.all(np.isnan(gradient))
        np.testing.assert_array_equal(after.gradients[0][0], state.gradients[0][0])
        np.testing.assert_allclose(after.gradients[0][1], rows[1], rtol=1e-6)  # its first
        assert np.all(np.isfinite(after.gradients[0]))


def test_memory_is_of_the_shared_leaves_in_float32():
    params = {"trunk": jnp.zeros((4, 2), jnp.bfloat16), "head": jnp.zeros(3)}
    state = db_mtl(3, shared={"trunk": True, "head": False}).init(params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), state.gradients) == (
        ((3, 4, 2), "float32"),
    )
