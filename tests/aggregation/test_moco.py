"""MoCo by its formula over some steps, its limit, and what it remembers."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from famo_jax.aggregation import mgda_weights, moco

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(10, 3, 6)) * [[[0.3], [1.0], [3.0]]]


def onto_simplex(point):
    """By search for the shift."""
    total = lambda shift: np.sum(np.maximum(point - shift, 0)) - 1
    return np.maximum(point - optimize.brentq(total, point.min() - 1, point.max(), xtol=1e-15), 0)


def test_ten_steps_by_hand(dtype):
    tx = moco(3, beta=0.3, gamma=0.05, rho=0.2)
    state, y, weights = tx.init(jnp.zeros(6, dtype)), GRADIENTS[0], np.full(3, 1 / 3)
    for rows in GRADIENTS:
        y = y - 0.3 * (y - rows)
        weights = onto_simplex(weights - 0.05 * (y @ y.T @ weights + 0.2 * weights))
        direction, state = tx.update(jnp.array(rows, dtype), state)
        np.testing.assert_allclose(state.weights, weights, atol=1e-5)
        np.testing.assert_allclose(direction, y.T @ weights, atol=1e-5)


def test_of_gradients_that_stay_it_finds_mgda(x64):
    rows = GRADIENTS[0] / np.linalg.norm(GRADIENTS[0], axis=1, keepdims=True)
    tx = moco(3, gamma=0.5)
    step = lambda state, _: (tx.update(rows, state)[1], None)
    state, _ = jax.lax.scan(step, tx.init(jnp.zeros(6)), length=3000)
    np.testing.assert_allclose(state.weights, mgda_weights(rows @ rows.T), atol=1e-6)


def test_it_averages_the_noise_out():
    """The mean of noisy gradients decides: MGDA on each batch is biased."""
    mean = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    noise = 2 * jax.random.normal(jax.random.key(0), (5000, 2, 2))
    tx = moco(2, beta=0.01, gamma=0.01)

    def step(state, each):
        _, state = tx.update(mean + each, state)
        return state, state.weights

    _, weights = jax.lax.scan(step, tx.init(jnp.zeros(2)), noise)
    np.testing.assert_allclose(weights[1000:].mean(0), 0.5, atol=0.15)


def test_what_is_remembered():
    rows = jnp.array(GRADIENTS[0], jnp.float32)
    tx = moco(3)
    _, state = tx.update(rows, tx.init(jnp.zeros(6)), where=jnp.array([True, False, True]))
    np.testing.assert_array_equal(state.seen, [True, False, True])
    np.testing.assert_allclose(state.weights[1], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(state.weights.sum(), 1, rtol=1e-6)
    gradient, after = tx.update(rows.at[0, 0].set(jnp.nan), state)
    assert np.all(np.isnan(gradient))
    np.testing.assert_array_equal(after.weights, state.weights)
    np.testing.assert_array_equal(after.gradients[0][0], state.gradients[0][0])
    assert np.all(np.isfinite(after.gradients[0]))


def test_long_gradients_stay_on_the_simplex():
    rows = jnp.array([[1e18, 0.0], [0.0, 2e18], [1e18, 1e18]])
    tx = moco(3)
    state = tx.init(jnp.zeros(2))
    for _ in range(5):
        direction, state = tx.update(rows, state)
        np.testing.assert_allclose(state.weights.sum(), 1, rtol=1e-6)
        assert np.all(np.isfinite(direction))
