"""The solver of nonnegative least squares."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from famo_jax.aggregation import _solvers

from .problems import METHOD_SETTINGS

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
