"""DualProj by the optimality conditions of its problem, and degenerate gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from famo_jax.aggregation import dualproj, dualproj_weights

from .problems import METHOD_SETTINGS, gram_of, jacobians, tolerance


@METHOD_SETTINGS
@given(rows=jacobians())
def test_optimality(dtype, rows):
    """KKT: w >= 1/K, no conflict, and a weight of 1/K for all that gain."""
    given_gram, gram = gram_of(rows, dtype)
    weights = dualproj_weights(given_gram)
    assert weights.dtype == dtype
    weights = np.asarray(weights, float)
    small, mean = tolerance(dtype), 1 / len(rows)
    assert np.all(weights >= (1 - small) * mean)
    lengths = np.sqrt(np.diag(gram))
    size = np.sum(weights * lengths)  # where weights are large and almost cancel
    gains, rise = gram @ weights / lengths, (weights - mean) * lengths
    assert np.all(gains >= -small * size)
    assert np.max(np.abs(rise * gains)) <= small * size**2


def test_without_conflict_it_is_the_mean():
    rows = np.abs(np.random.default_rng(0).normal(size=(10, 30))).astype(np.float32)
    direction, _ = dualproj().update(rows, dualproj().init(None))
    np.testing.assert_allclose(direction, rows.mean(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[4.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]], [2 / 3, 2 / 3]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [1.5, 2.0]),
        ([[3.0, 4.0]], [3.0, 4.0]),
        ([[3.0, 4.0], [3.0, 4.0]], [3.0, 4.0]),
    ],
    ids=str,
)
def test_degenerate(rows, expected, dtype):
    direction, _ = dualproj().update(jnp.array(rows, dtype), dualproj().init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-5)
