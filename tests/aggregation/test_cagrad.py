"""CAGrad by the optimality conditions of its problem, its limits, and degenerate gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from famo_jax.aggregation import cagrad, cagrad_weights, mgda_weights

from .problems import FULL_RANK, METHOD_SETTINGS, gram_of, jacobians, tolerance


def parts(gram, weights):
    """w on the simplex, the gains g_i.d, the distance |d - g_0| and |g_0|."""
    mean = np.full(len(gram), 1 / len(gram))
    to_mean = np.asarray(weights, float) - mean
    distance = np.sqrt(max(to_mean @ gram @ to_mean, 0))
    return to_mean / to_mean.sum(), gram @ weights, distance, np.sqrt(mean @ gram @ mean)


@METHOD_SETTINGS
@given(
    rows=jacobians((*FULL_RANK, "equal in pairs", "conflicting")),
    c=st.sampled_from([0.01, 0.4, 1.0, 10.0]),
)
def test_optimality(dtype, rows, c):
    """KKT: d on the ball; w >= 0; only the tasks that gain least carry weight."""
    given_gram, gram = gram_of(rows, dtype)
    largest = np.diag(gram).max()
    weights = cagrad_weights(given_gram, c)
    assert weights.dtype == dtype
    w, gains, distance, mean_length = parts(gram, weights)
    small = tolerance(dtype) * (1 + c)
    assert abs(distance - c * mean_length) <= small * np.sqrt(largest)
    # (w is recovered from weights of the size of 1/K + c w |g_0|/|g_w|, so rounded as they are.)
    rounding = np.finfo(dtype).eps * (1 + np.abs(weights).max()) / abs(np.sum(weights) - 1)
    assert np.all(w >= -4 * rounding)
    assert np.all(w * (gains - gains.min()) <= small * largest * (1 + rounding * len(w)))


@METHOD_SETTINGS
@given(rows=jacobians(), c=st.sampled_from([0.4, 1.5]))
def test_no_dual_point_bounds_the_gain_lower(dtype, rows, c):
    """Also where no direction helps all tasks: min g_i.d reaches its best upper bound."""
    given_gram, gram = gram_of(rows, dtype)
    largest = np.diag(gram).max()
    weights = np.asarray(cagrad_weights(given_gram, c), float)
    _, gains, distance, mean_length = parts(gram, weights + 1e-30)
    assert distance <= c * mean_length + 4 * np.sqrt(np.finfo(dtype).eps * largest)
    # An upper bound by subgradient steps is slow: every vertex, the mean and MGDA's point do.
    candidates = [*np.eye(len(gram)), np.full(len(gram), 1 / len(gram))]
    candidates.append(np.asarray(mgda_weights(given_gram), float))
    bounds = [
        v @ gram.mean(0) + c * mean_length * np.sqrt(max(v @ gram @ v, 0)) for v in candidates
    ]
    assert gains.min() <= min(bounds) + 4 * np.sqrt(np.finfo(dtype).eps) * largest


def test_without_a_ball_it_is_the_mean(dtype):
    rows = np.random.default_rng(0).normal(size=(10, 40))
    np.testing.assert_allclose(cagrad_weights(gram_of(rows, dtype)[0], 0.0), 0.1, rtol=1e-6)
    small = cagrad_weights(gram_of(rows, dtype)[0], 1e-5)
    np.testing.assert_allclose(small, 0.1, atol=1e-4)


def test_in_a_large_ball_it_is_mgda(x64):
    rows = np.random.default_rng(0).normal(size=(10, 40))
    gram = rows @ rows.T
    direction = rows.T @ cagrad_weights(gram, 1e8)
    shortest = rows.T @ mgda_weights(gram)
    cosine = direction @ shortest / np.linalg.norm(direction) / np.linalg.norm(shortest)
    np.testing.assert_allclose(cosine, 1, atol=1e-12)


def test_two_tasks_by_search(x64):
    """The dual is one-dimensional."""
    rng = np.random.default_rng(0)
    shares = np.linspace(0, 1, 200_001)
    for _ in range(10):
        rows = rng.normal(size=(2, 3)) * 10 ** rng.uniform(-1, 1, (2, 1))
        points = shares[:, None] * rows[0] + (1 - shares[:, None]) * rows[1]
        mean = rows.mean(0)
        dual = points @ mean + 0.4 * np.linalg.norm(mean) * np.linalg.norm(points, axis=1)
        best = points[dual.argmin()]
        expected = mean + 0.4 * np.linalg.norm(mean) * best / np.linalg.norm(best)
        direction = rows.T @ cagrad_weights(rows @ rows.T, 0.4)
        np.testing.assert_allclose(direction, expected, atol=1e-4 * np.abs(expected).max())
        assert (rows @ direction).min() >= (rows @ expected).min() - 1e-12


def test_order_of_tasks_does_not_matter(x64):
    rows = np.random.default_rng(0).normal(size=(10, 40))
    order = np.random.default_rng(1).permutation(10)
    gram = rows @ rows.T
    permuted = cagrad_weights(gram[order][:, order])
    np.testing.assert_allclose(permuted, cagrad_weights(gram)[order], atol=1e-11)


@pytest.mark.parametrize(
    ("rows", "c", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], 0.4, [0.0, 0.0]),
        ([[3.0, 0.0], [-1.0, 0.0]], 2.0, [0.0, 0.0]),  # opposite, and 0 within the ball
        ([[1.0, 0.0], [-1.5, 0.0], [0.0, 1.0]], 0.5, [0.0, 1 / 3]),  # the nearest without harm
        ([[0.0, 0.0], [0.0, 0.0]], 0.4, [0.0, 0.0]),
        ([[1.0, 2.0], [0.0, 0.0]], 0.4, [0.5, 1.0]),  # the mean harms nobody
        ([[1.0, 2.0], [1.0, 2.0]], 0.4, [1.4, 2.8]),
        ([[1.0, 2.0]], 0.4, [1.4, 2.8]),
    ],
    ids=str,
)
def test_degenerate(rows, c, expected, dtype):
    direction, _ = cagrad(c=c).update(jnp.array(rows, dtype), cagrad().init(None))
    np.testing.assert_allclose(direction, expected, atol=3 * np.sqrt(np.finfo(dtype).eps))


def test_c_may_be_traced():
    gram = jnp.array([[1.0, -0.5], [-0.5, 4.0]])
    swept = jax.vmap(lambda c: cagrad_weights(gram, c))(jnp.array([0.0, 0.4, 1.0]))
    for row, c in zip(swept, [0.0, 0.4, 1.0], strict=True):
        np.testing.assert_allclose(row, cagrad_weights(gram, c), rtol=1e-4)
