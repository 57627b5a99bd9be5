"""Aligned-MTL by the singular values that it makes, its symmetries, and degenerate gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from famo_jax.aggregation import aligned_mtl, aligned_mtl_weights

from .problems import METHOD_SETTINGS, gram_of, jacobians, tolerance


@METHOD_SETTINGS
@given(rows=jacobians(("random", "aligned", "conflicting")))
def test_aligned_singular_values(dtype, rows):
    """All are the smallest of J, and d is the mean of the aligned gradients nearest to J."""
    given_gram, _ = gram_of(rows, dtype)
    weights = aligned_mtl_weights(given_gram)
    assert weights.dtype == dtype
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    kept = singular > singular[0] * np.sqrt(len(rows) * np.finfo(dtype).eps)
    aligned = singular[kept][-1] * left[:, kept] @ right[kept]  # the polar factor, scaled
    condition = (singular[0] / singular[kept][-1]) ** 2
    error = np.linalg.norm(rows.T @ np.asarray(weights, float) - aligned.mean(0))
    length = singular[kept][-1]
    assert error <= tolerance(dtype) * condition * length, (error / length, condition)


@METHOD_SETTINGS
@given(rows=jacobians(("random", "aligned", "dependent")))
def test_the_balance_makes_them(x64, rows):
    """B, column by column: each is the weights of one task alone, times K."""
    gram = rows @ rows.T
    values = np.linalg.eigvalsh(gram)
    values = values[values > 1e-10 * values[-1]]
    # B e_i is seen through linearity: the weights are B 1 / K for any Gram matrix, so through G
    # itself: w' G w = lambda_min |P 1|^2 / K^2, P the projection on what J spans.
    weights = np.asarray(aligned_mtl_weights(gram))
    span = np.linalg.svd(rows)[0][:, : len(values)]
    expected = values[0] * np.sum((span.T @ np.ones(len(rows))) ** 2) / len(rows) ** 2
    np.testing.assert_allclose(weights @ gram @ weights, expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_a_common_length_does_not_matter(factor, dtype):
    gram, _ = gram_of(np.random.default_rng(0).normal(size=(10, 60)), dtype)
    scaled = aligned_mtl_weights((factor**2 * gram).astype(dtype))
    np.testing.assert_allclose(scaled, aligned_mtl_weights(gram), rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [1.5, 2.0]),
        ([[3.0, 4.0]], [3.0, 4.0]),
        ([[3.0, 4.0], [3.0, 4.0]], [3.0, 4.0]),
        ([[1.0, 0.0], [0.0, 200.0]], [0.5, 0.5]),
    ],
    ids=str,
)
def test_degenerate(rows, expected, dtype):
    tx = aligned_mtl()
    direction, _ = jax.jit(tx.update)(jnp.array(rows, dtype), tx.init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-5)
