"""FairGrad by its equation, its limits and units, and degenerate gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from famo_jax.aggregation import fairgrad, fairgrad_weights, nash_mtl_weights

from .problems import FULL_RANK, METHOD_SETTINGS, POINTED, gram_of, jacobians, tolerance

ALPHAS = st.sampled_from([0.3, 0.5, 1.0, 2.0, 5.0])


@METHOD_SETTINGS
@given(rows=jacobians(POINTED), alpha=ALPHAS)
def test_equation(dtype, rows, alpha):
    """(G w)_i = w_i^(-1/alpha), whatever the rank, as 0 is not in the convex hull."""
    if not np.all(rows > 0):  # those that are lie in one orthant
        rows = np.append(rows, np.linalg.norm(rows, axis=1, keepdims=True) / 3, axis=1)
    given_gram, gram = gram_of(rows, dtype)
    weights = fairgrad_weights(given_gram, alpha)
    assert weights.dtype == dtype
    weights = np.asarray(weights, float)
    assert np.all(weights > 0)
    gains = gram @ weights
    # The rounding of w alone gives a residual that grows with what cancels in G w.
    rounding = 8 * np.finfo(dtype).eps * np.max((np.abs(gram) @ weights) / gains)
    residual = np.max(np.abs(gains * weights ** (1 / alpha) - 1))
    assert residual <= max(tolerance(dtype), rounding), residual


@METHOD_SETTINGS
@given(rows=jacobians(FULL_RANK))
def test_alpha_1_is_nash_mtl(dtype, rows):
    gram, _ = gram_of(rows, dtype)
    expected = nash_mtl_weights(gram)
    np.testing.assert_allclose(fairgrad_weights(gram, 1.0), expected, rtol=3 * tolerance(dtype))


def test_alpha_goes_from_the_mean_to_equal_gains(x64):
    rows = np.random.default_rng(0).normal(size=(4, 60)) + 0.3
    gram = rows @ rows.T
    spread = [np.ptp(np.log(gram @ fairgrad_weights(gram, alpha))) for alpha in (0.1, 1.0, 10.0)]
    assert spread[0] > spread[1] > spread[2]
    direction, mean = rows.T @ fairgrad_weights(gram, 0.05), rows.mean(0)
    cosine = direction @ mean / np.linalg.norm(direction) / np.linalg.norm(mean)
    assert cosine > 0.95
    gains = gram @ fairgrad_weights(gram, 30.0)
    np.testing.assert_allclose(gains, gains.mean(), rtol=0.3)


def test_the_unit_of_the_weights(dtype):
    gram, _ = gram_of(np.random.default_rng(0).normal(size=(10, 60)), dtype)
    for alpha in (0.5, 2.0):
        expected = 1e4 ** (-alpha / (alpha + 1)) * fairgrad_weights(gram, alpha)
        np.testing.assert_allclose(fairgrad_weights(1e4 * gram, alpha), expected, rtol=1e-4)


def test_it_maximises_the_fairness(x64):
    """Of all directions of one length, by random trial around it."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 8))
    direction = rows.T @ fairgrad_weights(rows @ rows.T, 2.0)
    direction /= np.linalg.norm(direction)
    best = -np.sum(1 / (rows @ direction))
    for size in (1e-3, 1e-1, 1.0):
        others = direction + size * rng.normal(size=(500, 8))
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        gains = others @ rows.T
        fairness = -np.sum(1 / np.where(gains > 0, gains, 1e-300), axis=1)
        assert np.all(fairness <= best)


def test_alpha_may_be_traced():
    gram = jnp.array([[1.0, -0.5], [-0.5, 4.0]])
    swept = jax.vmap(lambda alpha: fairgrad_weights(gram, alpha))(jnp.array([0.5, 1.0, 2.0]))
    for row, alpha in zip(swept, [0.5, 1.0, 2.0], strict=True):
        np.testing.assert_allclose(row, fairgrad_weights(gram, alpha), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("rows", "weights"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[1.0], [-3.0], [2.0]], [0.0, 0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[1.0, 0.0], [0.0, 0.0]], [1.0, 0.0]),
        ([[1.0]], [1.0]),
    ],
    ids=str,
)
def test_degenerate(rows, weights, alpha, dtype):
    rows = jnp.array(rows, dtype)
    direction, _ = fairgrad(alpha=alpha).update(rows, fairgrad().init(None))
    np.testing.assert_allclose(direction, rows.T @ jnp.array(weights), atol=1e-5)


def test_equal_gradients_share_their_weight(dtype):
    gram = jnp.full((2, 2), 4.0, dtype)
    alone = fairgrad_weights(jnp.array([[4.0]], dtype), 2.0)[0]
    weights = fairgrad_weights(gram, 2.0)
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-6)
    np.testing.assert_allclose(weights[0], alone * 2 ** (-2 / 3), rtol=1e-5)
