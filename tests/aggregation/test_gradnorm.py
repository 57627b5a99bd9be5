"""GradNorm by the paper's equations on three tasks, by hand, and what its state learns from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax.aggregation import gradnorm

ROWS = jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 6.0]])
NORMS = np.array([1.0, 2.0, 6.0])
FIRST = jnp.array([1.0, 10.0, 4.0])


def test_three_tasks_by_hand(dtype):
    """Rates 0.5, 1 and 2, over their mean 7/6, with alpha 1 and plain steps of 0.01."""
    tx = gradnorm(3, alpha=1.0, optimizer=optax.sgd(0.01))
    rows = ROWS.astype(dtype)
    direction, state = tx.update(rows, tx.init(None), losses=FIRST)
    np.testing.assert_allclose(direction, NORMS)
    # All rates are 1: norms of 1, 2 and 6 go to their mean, 3.
    weights = np.array([1 + 0.01, 1 + 0.02, 1 - 0.06])
    weights *= 3 / weights.sum()
    np.testing.assert_allclose(state.weights, weights, rtol=1e-6)
    np.testing.assert_array_equal(state.first_losses, FIRST)
    direction, state = tx.update(rows, state, losses=FIRST * jnp.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(direction, weights * NORMS, rtol=1e-6)
    targets = (weights * NORMS).mean() * np.array([0.5, 1.0, 2.0]) * 6 / 7
    signs = np.sign(weights * NORMS - targets)
    assert list(signs) == [-1, -1, 1]
    weights = weights - 0.01 * signs * NORMS
    np.testing.assert_allclose(state.weights, 3 * weights / weights.sum(), rtol=1e-6)


def test_alpha_pulls_slow_tasks_up():
    """In the end the weighted norms stand as r^alpha."""
    tx = gradnorm(3, alpha=1.5, learning_rate=optax.exponential_decay(0.05, 100, 0.7))
    rates = jnp.array([0.5, 1.0, 2.0])

    def step(state, _):
        return tx.update(ROWS, state, losses=FIRST * rates)[1], None

    _, state = tx.update(ROWS, tx.init(None), losses=FIRST)
    state, _ = jax.lax.scan(step, state, length=2000)
    lengths = np.asarray(state.weights) * NORMS
    expected = (np.asarray(rates) / rates.mean()) ** 1.5
    # The sum of the powers is not K, so that not all can be met: the deviations are the least.
    assert lengths[0] < lengths[1] < lengths[2]
    deviations = np.sum(np.abs(lengths / lengths.mean() - expected))
    np.testing.assert_allclose(deviations, abs(expected.sum() - 3), atol=0.01)
    np.testing.assert_allclose(state.weights.sum(), 3, rtol=1e-5)


def test_what_is_absent_keeps_its_weight_and_begins_later():
    tx = gradnorm(3, optimizer=optax.sgd(0.01))
    where = jnp.array([True, True, False])
    _, state = tx.update(ROWS, tx.init(None), losses=FIRST.at[2].set(jnp.nan), where=where)
    np.testing.assert_array_equal(state.first_losses, [1.0, 10.0, 0.0])
    assert state.weights[2] == 1
    np.testing.assert_allclose(state.weights.sum(), 3, rtol=1e-6)
    _, state = tx.update(ROWS, state, losses=FIRST * 7)
    np.testing.assert_array_equal(state.first_losses, [1.0, 10.0, 28.0])


@pytest.mark.parametrize("loss", [np.nan, np.inf, 0.0, -1.0])
def test_nothing_is_learned_from_a_bad_loss(loss):
    tx = gradnorm(3)
    _, state = tx.update(ROWS, tx.init(None), losses=FIRST)
    _, after = tx.update(ROWS, state, losses=FIRST.at[1].set(loss))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_weights_stay_nonnegative_and_rise_again():
    tx = gradnorm(3, optimizer=optax.sgd(10.0))
    state = tx.init(None)
    seen = []
    for _ in range(20):
        _, state = tx.update(ROWS, state, losses=FIRST)
        assert np.all(np.isfinite(state.weights) & (state.weights >= 0))
        np.testing.assert_allclose(state.weights.sum(), 3, rtol=1e-5)
        seen.append(np.asarray(state.weights) > 0)
    assert np.all(np.any(seen, axis=0))


def test_hyperparameters_may_be_traced():
    def second(alpha, rate):
        tx = gradnorm(3, alpha=alpha, learning_rate=rate)
        state = tx.init(None)
        for factor in (1.0, 0.5):
            losses = FIRST.at[0].multiply(factor)
            _, state = tx.update(ROWS, state, losses=losses)
        return state.weights

    alphas, rates = jnp.array([0.0, 1.5]), jnp.array([0.025, 0.1])
    swept = jax.jit(jax.vmap(second))(alphas, rates)
    for row, alpha, rate in zip(swept, alphas, rates, strict=True):
        np.testing.assert_allclose(row, second(float(alpha), float(rate)), rtol=1e-5)
