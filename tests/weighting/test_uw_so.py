"""Soft optimal uncertainty weighting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import loss_weights
from famo_jax.weighting import imtl_l, si, uw_so
from tests.weighting.histories import LOSSES, THEIRS, follow


@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
def test_by_the_paper_s_equations(temperature, x64):
    """w_i = exp(1 / (T l_i)) / sum_j exp(1 / (T l_j)), constant to differentiation."""
    weights, values, _ = follow(uw_so(3, temperature=temperature), LOSSES)
    for losses, ours, value in zip(LOSSES, weights, values, strict=True):
        exponentials = np.exp(1 / (temperature * losses))
        expected = exponentials / exponentials.sum()
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        np.testing.assert_allclose(value, expected @ losses, rtol=1e-12)


def test_as_the_authors_code_computes_it(x64):
    """Which adds 1e-8 to the losses."""
    weights, _, _ = follow(uw_so(3, temperature=2.0, min_losses=-1e-8), LOSSES)
    np.testing.assert_allclose(weights, THEIRS["uw_so/weights"], rtol=1e-10)


def test_bounds_are_taken_off(x64):
    bounds = np.array([-2.0, 0.1, 0.5])
    shifted, _, _ = follow(uw_so(3, min_losses=bounds), LOSSES + bounds)
    np.testing.assert_allclose(shifted, follow(uw_so(3), LOSSES)[0], rtol=1e-10)


def test_between_the_mean_and_the_smallest_loss():
    losses = jnp.array([0.5, 2.0, 8.0])
    weights = lambda temperature: loss_weights(losses, uw_so(3, temperature=temperature).init(None))
    np.testing.assert_allclose(weights(1e6), 1 / 3, rtol=1e-5)
    np.testing.assert_array_equal(weights(1e-6), [1, 0, 0])
    swept = jax.vmap(weights)(jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(swept[1], weights(1.0), rtol=1e-6)


def test_a_scheduled_temperature():
    schedule = optax.linear_schedule(1.0, 3.0, 2)
    tx = optax.inject_hyperparams(uw_so, static_args=("num_tasks",))(2, temperature=schedule)
    state = tx.init(None)
    for _ in range(3):
        _, state = tx.update((), state, losses=jnp.ones(2))
    assert state.inner_state.temperature == 3


def test_its_unsoftened_weights_are_those_that_uncertainty_weighting_learns():
    """1 / l: K times those of SI, and IMTL-L's at rest."""
    losses = jnp.array([0.5, 4.0])
    tx = imtl_l(2, learning_rate=0.1)
    state = tx.init(None)
    for _ in range(300):
        _, state = tx.update((), state, losses=losses)
    by_si = 2 * loss_weights(losses, si().init(None))
    np.testing.assert_allclose(loss_weights(losses, state), by_si, rtol=1e-2)
