"""ExcessMTL by its formula over some steps, and what it remembers."""

import jax.numpy as jnp
import numpy as np

from famo_jax.aggregation import excess_mtl

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(10, 3, 6)) * [[[1e-3], [1.0], [100.0]]]


def test_ten_steps_by_hand(dtype):
    tx = excess_mtl(3, eta=0.5)
    state = tx.init(jnp.zeros(6, dtype))
    squares, weights, first = np.zeros((3, 6)), np.full(3, 1 / 3), None
    for rows in GRADIENTS:
        squares += rows**2
        risks = np.sum(rows**2 / np.sqrt(squares), axis=1)
        first = risks if first is None else first
        weights = weights * np.exp(0.5 * risks / first)
        weights /= weights.sum()
        direction, state = tx.update(jnp.array(rows, dtype), state)
        np.testing.assert_allclose(direction, weights @ rows, rtol=1e-3, atol=1e-5)


def test_what_is_remembered():
    rows = jnp.array(GRADIENTS[0], jnp.float32)
    tx = excess_mtl(3, eta=0.5)
    where = jnp.array([True, False, True])
    _, state = tx.update(rows, tx.init(jnp.zeros(6)), where=where)
    np.testing.assert_array_equal(state.first_risks > 0, where)
    assert state.logits[1] == 0
    gradient, after = tx.update(rows.at[0, 0].set(jnp.nan), state)
    assert np.all(np.isnan(gradient))
    assert after.logits[0] == state.logits[0]
    np.testing.assert_array_equal(after.squares[0][0], state.squares[0][0])
    assert np.all(np.isfinite(after.squares[0]))


def test_a_gradient_of_zero_has_no_risk():
    rows = jnp.array([[0.0, 0.0], [1.0, 2.0]])
    tx = excess_mtl(2)
    state = tx.init(jnp.zeros(2))
    for _ in range(3):
        direction, state = tx.update(rows, state)
        assert np.all(np.isfinite(direction))
    assert state.first_risks[0] == 0
