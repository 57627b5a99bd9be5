"""Nash-MTL by its equation, its symmetries, and degenerate gradients."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from famo_jax.aggregation import imtl_g_weights, nash_mtl, nash_mtl_weights

from .problems import FULL_RANK, METHOD_SETTINGS, POINTED, gram_of, jacobians, tolerance


def unit(vector):
    return np.asarray(vector) / np.linalg.norm(vector)


@METHOD_SETTINGS
@given(rows=jacobians(POINTED))
def test_equation(dtype, rows):
    """G alpha = 1 / alpha, whatever the rank, as 0 is not in the convex hull."""
    if not np.all(rows > 0):  # those that are lie in one orthant
        rows = np.append(rows, np.linalg.norm(rows, axis=1, keepdims=True) / 3, axis=1)
    given_gram, gram = gram_of(rows, dtype)
    alpha = nash_mtl_weights(given_gram)
    assert alpha.dtype == dtype
    alpha = np.asarray(alpha, float)
    assert np.all(alpha > 0)
    # The rounding of alpha alone gives a residual that grows with what cancels in G alpha.
    rounding = 4 * np.finfo(dtype).eps * np.max(alpha * (np.abs(gram) @ alpha))
    assert np.max(np.abs(alpha * (gram @ alpha) - 1)) <= max(tolerance(dtype), rounding)
    np.testing.assert_allclose(alpha @ gram @ alpha, len(rows), rtol=1e-4)


@METHOD_SETTINGS
@given(rows=jacobians(FULL_RANK))
def test_equation_without_help(dtype, rows):
    given_gram, gram = gram_of(rows, dtype)
    alpha = np.asarray(nash_mtl_weights(given_gram), float)
    rounding = 4 * np.finfo(dtype).eps * np.max(alpha * (np.abs(gram) @ alpha))
    assert np.max(np.abs(alpha * (gram @ alpha) - 1)) <= max(tolerance(dtype), rounding)


@pytest.mark.parametrize("num_tasks", [100, 200])
def test_many_tasks(num_tasks, dtype):
    rows = np.random.default_rng(0).normal(size=(num_tasks, 3 * num_tasks))
    given_gram, gram = gram_of(rows, dtype)
    alpha = np.asarray(nash_mtl_weights(given_gram), float)
    assert np.max(np.abs(alpha * (gram @ alpha) - 1)) <= tolerance(dtype)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_length_of_a_gradient_does_not_matter(factor, dtype):
    rows = np.random.default_rng(0).normal(size=(10, 60))
    scaled = rows.copy()
    scaled[3] *= factor
    tx = nash_mtl()
    direction, _ = tx.update(jnp.array(rows, dtype), tx.init(None))
    same, _ = tx.update(jnp.array(scaled, dtype), tx.init(None))
    np.testing.assert_allclose(same, direction, atol=10 * tolerance(dtype))


def test_two_tasks_bisect_as_imtl_g_does_and_three_do_not(x64):
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.normal(size=(2, 5))
        gram = rows @ rows.T
        bisector = unit(unit(rows[0]) + unit(rows[1]))
        np.testing.assert_allclose(unit(rows.T @ nash_mtl_weights(gram)), bisector, atol=1e-11)
        np.testing.assert_allclose(unit(rows.T @ imtl_g_weights(gram)), bisector, atol=1e-11)
    rows = rng.normal(size=(3, 5))
    nash, imtl = (
        unit(rows.T @ weights(rows @ rows.T)) for weights in (nash_mtl_weights, imtl_g_weights)
    )
    assert nash @ imtl < 0.999


def test_it_maximises_the_product_of_gains(x64):
    """Of all directions of one length, by random trial around it."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 8))
    direction = unit(rows.T @ nash_mtl_weights(rows @ rows.T))
    best = np.prod(rows @ direction)
    for size in (1e-3, 1e-1, 1.0):
        others = direction + size * rng.normal(size=(500, 8))
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        gains = others @ rows.T
        assert np.all(np.where(np.all(gains > 0, axis=1), np.prod(gains, axis=1), 0) <= best)


def test_order_of_tasks_does_not_matter(x64):
    rows = np.random.default_rng(0).normal(size=(10, 40))
    order = np.random.default_rng(1).permutation(10)
    gram = rows @ rows.T
    permuted = nash_mtl_weights(gram[order][:, order])
    np.testing.assert_allclose(permuted, nash_mtl_weights(gram)[order], rtol=1e-11)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[1.0], [-3.0], [2.0]], [0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [0.6, 0.8]),
        ([[3.0, 4.0]], [0.6, 0.8]),
        ([[3.0, 4.0], [3.0, 4.0]], [0.6 * 2**0.5, 0.8 * 2**0.5]),
        ([[3.0, 4.0], [30.0, 40.0]], [0.6 * 2**0.5, 0.8 * 2**0.5]),
        ([[1.0], [2.0], [5.0]], [3**0.5]),
    ],
    ids=str,
)
def test_degenerate(rows, expected, dtype):
    tx = nash_mtl()
    direction, _ = tx.update(jnp.array(rows, dtype), tx.init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-5)


def test_into_the_unit_ball_by_clipping():
    rows = jnp.array(np.random.default_rng(0).normal(size=(4, 20)), jnp.float32)
    tx = optax.chain(nash_mtl(), optax.clip_by_global_norm(1.0))
    clipped, _ = tx.update(rows, tx.init(jnp.zeros(20)))
    direction, _ = nash_mtl().update(rows, nash_mtl().init(None))
    np.testing.assert_allclose(np.linalg.norm(direction), 2, rtol=1e-5)
    np.testing.assert_allclose(clipped, direction / 2, rtol=1e-4)


def test_gradients_that_nearly_cancel_in_float32():
    """Opposite to within 1%: the rounding of G is magnified, to a residual of about 1e-2."""
    residuals = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(5, 30))
        rows[1] = -rows[0] + 1e-2 * rng.normal(size=30)
        alpha = np.asarray(nash_mtl_weights((rows @ rows.T).astype(np.float32)), float)
        if np.any(alpha):
            residuals.append(np.max(np.abs(alpha * (rows @ rows.T @ alpha) - 1)))
    assert len(residuals) > 90
    assert 1e-4 < max(residuals) < 2e-2
