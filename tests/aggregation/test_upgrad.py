"""UPGrad by another solver's projections, its symmetries, and degenerate gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy import optimize

from famo_jax.aggregation import dualproj_weights, pcgrad, upgrad, upgrad_weights

from .problems import FULL_RANK, METHOD_SETTINGS, gram_of, jacobians, tolerance


def projections(rows):
    """Of each gradient on {d: J d >= 0}, by SciPy's active sets."""
    # The polar cone is spanned by -g_j: what is left of g_i beside its nearest point there.
    return np.stack([row + rows.T @ optimize.nnls(-rows.T, row)[0] for row in rows])


@METHOD_SETTINGS
@given(rows=jacobians())
def test_never_conflicting(dtype, rows):
    given_gram, gram = gram_of(rows, dtype)
    weights = upgrad_weights(given_gram)
    assert weights.dtype == dtype
    weights = np.asarray(weights, float)
    small = tolerance(dtype)
    assert np.all(weights >= (1 - small) / len(rows))
    lengths = np.sqrt(np.diag(gram))
    size = lengths * np.sum(weights * lengths)  # where weights are large and almost cancel
    assert np.all(gram @ weights >= -small * size)


@METHOD_SETTINGS
@given(rows=jacobians((*FULL_RANK, "conflicting")))
def test_the_mean_of_the_projections(x64, rows):
    direction = rows.T @ upgrad_weights(rows @ rows.T)
    expected = projections(rows).mean(0)
    np.testing.assert_allclose(direction, expected, atol=1e-8 * np.abs(rows).max())


def test_of_two_tasks_it_is_pcgrad(x64):
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = jnp.array(rng.normal(size=(2, 4)))
        tx = pcgrad(key=0)
        expected, _ = tx.update(rows, tx.init(None))
        np.testing.assert_allclose(rows.T @ upgrad_weights(rows @ rows.T), expected, atol=1e-12)


def test_order_and_common_length_do_not_matter(x64):
    rows = np.random.default_rng(0).normal(size=(10, 40))
    order = np.random.default_rng(1).permutation(10)
    gram = rows @ rows.T
    weights = upgrad_weights(gram)
    np.testing.assert_allclose(upgrad_weights(gram[order][:, order]), weights[order], atol=1e-12)
    np.testing.assert_allclose(upgrad_weights(1e-12 * gram), weights, rtol=1e-10)
    assert not np.allclose(weights, dualproj_weights(gram))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[1.0], [-3.0], [2.0]], [0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [1.5, 2.0]),
        ([[3.0, 4.0]], [3.0, 4.0]),
        ([[3.0, 4.0], [3.0, 4.0]], [3.0, 4.0]),
    ],
    ids=str,
)
def test_degenerate(rows, expected, dtype):
    direction, _ = upgrad().update(jnp.array(rows, dtype), upgrad().init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-5)
