"""Smooth Tchebycheff scalarization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import loss_weights, weighted_loss
from famo_jax.weighting import ls, si, stch
from tests.weighting.histories import LOSSES, THEIRS, follow, softmax

PREFERENCE, IDEAL = np.array([0.5, 0.2, 0.3]), np.array([0.1, -1.0, 0.0])


@pytest.mark.parametrize("mu", [0.05, 1.0])
def test_by_the_paper_s_equations(mu, x64):
    """Its gradient by hand: lambda_i times the share of task i in the sum of exponentials."""
    tx = stch(3, mu=mu, weights=PREFERENCE, min_losses=IDEAL)
    weights, values, _ = follow(tx, LOSSES - 1)  # of both signs
    terms = PREFERENCE * (LOSSES - 1 - IDEAL) / mu
    np.testing.assert_allclose(values, mu * np.log(np.exp(terms).sum(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(weights, PREFERENCE * softmax(terms), rtol=1e-10)


def test_between_the_weighted_sum_and_the_maximum():
    losses = jnp.array([0.5, 2.0, 8.0])
    weights = lambda mu: loss_weights(losses, stch(3, mu=mu).init(None))
    np.testing.assert_array_equal(weights(1e-3), jnp.array([0, 0, 1 / 3], jnp.float32))
    np.testing.assert_allclose(3 * weights(1e6), loss_weights(losses, ls().init(None)), rtol=1e-5)
    assert weighted_loss(losses, stch(3, mu=1e-3).init(None)) == 8 / jnp.float32(3)
    swept = jax.vmap(weights)(jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(swept[1], weights(1.0), rtol=1e-6)


def test_no_exponential_overflows():
    losses = jnp.array([1e30, -1e30, 1e29])
    assert weighted_loss(losses, stch(3, mu=1e-3).init(None)) == jnp.float32(1e30) / 3


def test_the_warm_up_as_libmtl_computes_it(x64):
    """K times SI for three steps, of which the nadir is the mean; then on logarithms."""
    weights, _, states = follow(stch(3, mu=0.5, warmup=3), LOSSES)
    np.testing.assert_allclose(weights, THEIRS["stch/weights"], rtol=1e-10)
    by_si = 3 * follow(si(), LOSSES)[0]
    np.testing.assert_allclose(weights[:3], by_si[:3], rtol=1e-12)
    np.testing.assert_allclose(states[-1].nadir, LOSSES[:3].mean(axis=0), rtol=1e-12)
    terms = np.log(LOSSES[3:] / LOSSES[:3].mean(axis=0)) / 0.5
    np.testing.assert_allclose(weights[3:], 3 * softmax(terms) / LOSSES[3:], rtol=1e-10)


def test_a_preference_after_the_warm_up(x64):
    """K lambda / mu in the exponent: it is then the largest of preferred log losses."""
    weights, values, _ = follow(stch(3, mu=0.5, weights=PREFERENCE, warmup=2), LOSSES)
    terms = 3 * PREFERENCE * np.log(LOSSES[2:] / LOSSES[:2].mean(axis=0)) / 0.5
    expected = 3 * 0.5 * np.log(np.exp(terms).sum(axis=1))
    np.testing.assert_allclose(values[2:], expected, rtol=1e-10)
    expected = 3 * softmax(terms) * 3 * PREFERENCE / LOSSES[2:]
    np.testing.assert_allclose(weights[2:], expected, rtol=1e-10)


def test_a_task_that_missed_the_warm_up_catches_up():
    """Its nadir is at first the loss it comes with, then the mean of its first two."""
    tx, state = stch(2, warmup=2), stch(2, warmup=2).init(None)
    for loss in (1.0, 3.0):
        where = jnp.array([True, False])
        _, state = tx.update((), state, losses=jnp.array([loss, np.nan]), where=where)
    np.testing.assert_array_equal(state.nadir, [2, 0])
    weights = loss_weights(jnp.array([2.0, 10.0]), state)  # both are at their nadir
    np.testing.assert_allclose(weights, [0.5, 0.1], rtol=1e-6)
    for loss in (10.0, np.inf, 4.0, 100.0):
        _, state = tx.update((), state, losses=jnp.array([2.0, loss]))
    np.testing.assert_array_equal(state.nadir, [2, 7])
