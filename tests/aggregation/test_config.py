"""ConFIG by its defining conditions, and degenerate gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from famo_jax.aggregation import config, config_weights, imtl_g_weights

from .problems import FULL_RANK, METHOD_SETTINGS, gram_of, jacobians, tolerance


@METHOD_SETTINGS
@given(rows=jacobians(FULL_RANK))
def test_equal_cosines_and_the_length(dtype, rows):
    given_gram, gram = gram_of(rows, dtype)
    weights = config_weights(given_gram)
    assert weights.dtype == dtype
    weights = np.asarray(weights, float)
    lengths = np.sqrt(np.diag(gram))
    size = np.sum(np.abs(weights) * lengths)  # where the weights are large and almost cancel
    projections = gram @ weights / lengths
    assert np.ptp(projections) <= tolerance(dtype) * size
    assert np.all(projections > -tolerance(dtype) * size)
    # |d| = sum_i g_i.d / |d|
    square = weights @ gram @ weights
    error = abs(square - np.sum(gram @ weights))
    assert error <= 10 * tolerance(dtype) * size * max(size, lengths.sum())


def test_the_direction_is_that_of_imtl_g(x64):
    rng = np.random.default_rng(0)
    for num_tasks in (2, 3, 10):
        rows = rng.normal(size=(num_tasks, 40)) * 10 ** rng.uniform(-2, 2, (num_tasks, 1))
        gram = rows @ rows.T
        directions = [rows.T @ method(gram) for method in (config_weights, imtl_g_weights)]
        units = [each / np.linalg.norm(each) for each in directions]
        np.testing.assert_allclose(*units, atol=1e-10)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [3.0, 4.0]),
        ([[3.0, 4.0]], [3.0, 4.0]),
        ([[3.0, 4.0], [3.0, 4.0]], [6.0, 8.0]),
        ([[1.0, 0.0], [0.0, 3.0]], [2.0, 2.0]),
        ([[1.0], [2.0], [5.0]], [8.0]),
    ],
    ids=str,
)
def test_degenerate(rows, expected, dtype):
    direction, _ = config().update(jnp.array(rows, dtype), config().init(None))
    np.testing.assert_allclose(direction, expected, atol=2e-5)
