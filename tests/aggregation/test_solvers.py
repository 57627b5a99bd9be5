"""The solver of nonnegative least squares."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from famo_jax.aggregation import _solvers

from .problems import METHOD_SETTINGS, gram_of, jacobians, tolerance

solve = jax.jit(_solvers.nonnegative_least_squares)


@METHOD_SETTINGS
@given(size=st.sampled_from([1, 2, 5, 20]), rank=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_nonnegative_least_squares(x64, size, rank, seed):
    """SciPy solves the same problem by an active-set method."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(min(rank, size) + 3, size))
    target = rng.normal(size=len(factor))
    u = np.asarray(solve(factor.T @ factor, factor.T @ target))
    assert np.all(u > 0)
    peer, distance = optimize.nnls(factor, target)
    np.testing.assert_allclose(np.linalg.norm(factor @ u - target), distance, atol=1e-7)
    if len(factor) >= size:  # then it is unique
        np.testing.assert_allclose(u, peer, atol=1e-6 * (1 + peer.max()))


onto_dual_cone = jax.jit(_solvers.onto_dual_cone)


@METHOD_SETTINGS
@given(rows=jacobians(), seed=st.integers(0, 10**6))
def test_onto_dual_cone(dtype, rows, seed):
    """KKT: v >= w, A v >= 0, and where v > w there (A v)_i = 0."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines, exact = gram_of(rows, dtype)
    weights = np.random.default_rng(seed).uniform(size=len(rows)).astype(dtype)
    v = np.asarray(onto_dual_cone(cosines, weights), float)
    assert np.all(v >= weights)
    along, rise = exact @ v, v - weights
    # In units of v's own rounding, where weights are large and almost cancel.
    size = np.max(np.abs(exact) @ v)
    assert np.all(along >= -tolerance(dtype) * size)
    assert np.max(np.abs(rise * along)) <= tolerance(dtype) * size * np.max(v)


def test_where_the_guesses_fail_the_interior_point_method_takes_over(x64, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(20, 10))
    rows -= 0.9 * rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines, weights = rows @ rows.T, np.full(20, 0.05)
    expected = rows.T @ onto_dual_cone(cosines, weights)
    monkeypatch.setattr(_solvers, "MAX_EXCHANGES", 0)
    by_inner = rows.T @ jax.jit(lambda *args: _solvers.onto_dual_cone(*args))(cosines, weights)
    np.testing.assert_allclose(by_inner, expected, atol=1e-7)
