"""The geometric loss strategy."""

import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import famo, loss_weights, weighted_loss
from famo_jax.weighting import gls
from tests.weighting.histories import LOSSES, THEIRS, follow

BOUNDS = np.array([-1.0, 0.2, 0.0])


def test_by_hand(x64):
    """L is the cube root of the product, w its derivative, by differences."""
    weights, values, _ = follow(gls(3, min_losses=BOUNDS), LOSSES)
    product = lambda losses: np.prod(losses - BOUNDS, axis=-1) ** (1 / 3)
    np.testing.assert_allclose(values, product(LOSSES), rtol=1e-12)
    step = 1e-6 * np.eye(3)
    slopes = product(LOSSES[:, None] + step) - product(LOSSES[:, None] - step)
    np.testing.assert_allclose(weights, slopes / 2e-6, rtol=1e-7)


def test_as_libmtl_computes_it(x64):
    weights, _, _ = follow(gls(3), LOSSES)
    np.testing.assert_allclose(weights, THEIRS["gls/weights"], rtol=1e-10)


@pytest.mark.parametrize("num_tasks", [3, 500])
def test_it_is_famo_frozen_at_the_geometric_mean(num_tasks):
    """Whose product of 500 losses of 0.01 underflows."""
    losses = jnp.array(np.random.default_rng(0).uniform(0.005, 0.02, num_tasks), jnp.float32)
    frozen = loss_weights(losses, famo(num_tasks, normalizer="geometric").init(None))
    np.testing.assert_allclose(loss_weights(losses, gls(num_tasks).init(None)), frozen, rtol=1e-4)


def test_a_loss_under_its_bound_shows():
    assert np.isnan(weighted_loss(jnp.array([1.0, 2.0]), gls(2, min_losses=1.5).init(None)))
