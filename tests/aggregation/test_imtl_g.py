"""IMTL-G by its defining condition, its symmetries, and degenerate gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from famo_jax.aggregation import imtl_g, imtl_g_weights

from .problems import FULL_RANK, METHOD_SETTINGS, gram_of, jacobians, tolerance


@METHOD_SETTINGS
@given(rows=jacobians(FULL_RANK))
def test_equal_projections_downhill(dtype, rows):
    given_gram, gram = gram_of(rows, dtype)
    alpha = imtl_g_weights(given_gram)
    assert alpha.dtype == dtype
    alpha = np.asarray(alpha, float)
    lengths = np.sqrt(np.diag(gram))
    # In units of alpha's own rounding, where the weights are large and almost cancel.
    size = np.sum(np.abs(alpha) * lengths)
    projections = gram @ alpha / lengths
    assert np.ptp(projections) <= tolerance(dtype) * size
    assert np.all(projections > -tolerance(dtype) * size)
    small = 10 * tolerance(dtype) * np.sum(np.abs(alpha))
    np.testing.assert_allclose(abs(alpha.sum()), 1, atol=small)


def test_never_uphill_where_the_closed_form_is(x64):
    """Correlated gradients of different lengths: the paper's sign is the wrong one in some."""
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(100):
        rows = rng.normal(size=(40, 200)) + 2 * rng.normal(size=200)
        rows *= 10 ** rng.uniform(-3, 3, (40, 1))
        alpha = np.asarray(imtl_g_weights(rows @ rows.T))
        flipped += alpha.sum() < 0
        assert np.all(rows @ (rows.T @ alpha) > 0)
    assert 1 <= flipped <= 30


def test_the_papers_closed_form(x64):
    """Equation 3: alpha_2..K = g_1 U^T (D U^T)^-1, alpha_1 = 1 - sum."""
    rows = np.random.default_rng(0).normal(size=(5, 12))
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    differences, unit_differences = rows[0] - rows[1:], units[0] - units[1:]
    rest = rows[0] @ unit_differences.T @ np.linalg.inv(differences @ unit_differences.T)
    expected = np.array([1 - rest.sum(), *rest])
    expected *= np.sign(units[0] @ (expected @ rows))
    np.testing.assert_allclose(imtl_g_weights(rows @ rows.T), expected, rtol=1e-10)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_direction_does_not_depend_on_the_length_of_a_gradient(factor, dtype):
    rows = np.random.default_rng(0).normal(size=(10, 60))
    scaled = rows.copy()
    scaled[3] *= factor
    units = []
    for each in (rows, scaled):
        direction, _ = imtl_g().update(jnp.array(each, dtype), imtl_g().init(None))
        units.append(direction / np.linalg.norm(direction))
    np.testing.assert_allclose(*units, atol=10 * tolerance(dtype))


def test_order_of_tasks_does_not_matter(x64):
    rows = np.random.default_rng(0).normal(size=(10, 40))
    order = np.random.default_rng(1).permutation(10)
    gram = rows @ rows.T
    permuted = imtl_g_weights(gram[order][:, order])
    np.testing.assert_allclose(permuted, imtl_g_weights(gram)[order], rtol=1e-10)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [3.0, 4.0]),
        ([[3.0, 4.0]], [3.0, 4.0]),
        ([[3.0, 4.0], [3.0, 4.0]], [3.0, 4.0]),
        ([[3.0], [1.0]], [1.5]),
    ],
    ids=str,
)
def test_degenerate(rows, expected, dtype):
    tx = imtl_g()
    direction, _ = tx.update(jnp.array(rows, dtype), tx.init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-5)


def test_more_tasks_than_parameters_by_least_squares(x64):
    """The projections are as equal as can be."""
    rows = np.random.default_rng(0).normal(size=(7, 3)) + 1
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    nearest = np.linalg.lstsq(units @ units.T, np.ones(7), rcond=1e-12)[0]
    direction = rows.T @ imtl_g_weights(rows @ rows.T)
    expected = units.T @ nearest
    cosine = direction @ expected / np.linalg.norm(direction) / np.linalg.norm(expected)
    np.testing.assert_allclose(cosine, 1, atol=1e-12)
