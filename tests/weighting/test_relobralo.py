"""Relative loss balancing with random lookback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import loss_weights
from famo_jax.weighting import relobralo
from tests.weighting.histories import LOSSES, THEIRS, follow, softmax

ALPHA, TEMPERATURE = 0.9, 0.5
BOUNDS = np.array([0.0, -1.0, 2.0])


def by_the_equations(history, lookbacks, alpha=ALPHA):
    weights, seen = np.ones(history.shape[1]), []
    for step, losses in enumerate(history):
        balance = lambda other, losses=losses: len(losses) * softmax(losses / other / TEMPERATURE)
        kept = weights if lookbacks[step] else balance(history[0])
        weights = alpha * kept + (1 - alpha) * balance(history[max(step - 1, 0)])
        seen.append(weights)
    return np.array(seen)


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_by_the_paper_s_equations(rho, x64):
    """With what each step's key draws; before the first step all losses are as they are."""
    tx = relobralo(3, key=3, alpha=ALPHA, temperature=TEMPERATURE, rho=rho, min_losses=BOUNDS)
    weights, values, states = follow(tx, LOSSES + BOUNDS)
    lookbacks = [jax.random.bernoulli(state.rng_key, rho) for state in states]
    if rho == 0.5:
        assert 0 < np.sum(lookbacks[:10]) < 10
    expected = by_the_equations(LOSSES, lookbacks)
    np.testing.assert_allclose(weights, expected, rtol=1e-10)
    np.testing.assert_allclose(values, np.sum(expected * LOSSES, axis=1), rtol=1e-10)
    np.testing.assert_allclose(states[-1].weights, expected[-1], rtol=1e-10)


def test_as_the_authors_code_computes_it():
    """What was drawn is given."""
    tx = relobralo(3, key=0, alpha=ALPHA, temperature=TEMPERATURE)
    state, weights = tx.init(None), []
    for losses, drawn in zip(jnp.array(LOSSES), THEIRS["relobralo/rho"], strict=True):
        state = state._replace(rho=jnp.array(drawn))
        weights.append(loss_weights(losses, state))
        _, state = tx.update((), state, losses=losses)
    np.testing.assert_allclose(weights[0], 1, rtol=1e-6)
    np.testing.assert_allclose(weights[1:], THEIRS["relobralo/weights"], rtol=2e-5)


def test_reads_without_consuming_and_advances_by_update():
    tx = relobralo(3, key=jax.random.key(0), alpha=ALPHA, rho=0.5)

    def step(state, losses):
        twice = loss_weights(losses, state), loss_weights(losses, state)
        drawn = jax.random.bernoulli(state.rng_key, 0.5)
        return tx.update((), state, losses=losses)[1], (twice, drawn)

    history = jnp.array(np.random.default_rng(0).uniform(1, 2, (2000, 3)), jnp.float32)
    _, ((first, second), drawn) = jax.lax.scan(step, tx.init(None), history)
    np.testing.assert_array_equal(first, second)
    assert abs(np.mean(drawn) - 0.5) < 0.05
    np.testing.assert_allclose(np.sum(first, axis=1), 3, rtol=1e-5)


def test_of_faults_nothing_is_left():
    tx = relobralo(3, key=0, alpha=0.5, rho=0.5)
    state = tx.init(None)
    for broken in (np.nan, 0.0, -1.0, np.inf, 1e30, 1e-30, 1.0):
        losses = jnp.array([1.0, broken, 2.0])
        weights = loss_weights(losses, state)
        assert np.isfinite(weights).all()
        _, state = tx.update((), state, losses=losses)
        np.testing.assert_allclose(state.weights.sum(), 3, rtol=1e-5)
    assert state.first_losses[1] == jnp.float32(1e30)


def test_a_sweep_over_alpha_temperature_and_rho():
    def final(alpha, temperature, rho):
        tx = relobralo(3, key=0, alpha=alpha, temperature=temperature, rho=rho)
        step = lambda state, losses: (tx.update((), state, losses=losses)[1], None)
        return jax.lax.scan(step, tx.init(None), jnp.array(LOSSES, jnp.float32))[0].weights

    settings = jnp.array([[0.9, 0.5, 1.0], [0.5, 2.0, 0.0]]).T
    swept = jax.vmap(final)(*settings)
    for ours, each in zip(swept, settings.T, strict=True):
        np.testing.assert_allclose(ours, final(*map(float, each)), rtol=1e-5)
