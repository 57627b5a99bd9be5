"""NTKMTL by its formula on three tasks, and degenerate gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax.aggregation import ntkmtl, ntkmtl_weights


def test_three_tasks_by_hand(dtype):
    gram = jnp.diag(jnp.array([1.0, 4.0, 20.0], dtype)) + 0.5  # what is beside it does not matter
    gram -= jnp.diag(jnp.full(3, 0.5, dtype))
    weights = ntkmtl_weights(gram)
    assert weights.dtype == dtype
    np.testing.assert_allclose(weights, [5.0, 2.5, np.sqrt(1.25)], rtol=1e-6)
    np.testing.assert_allclose(ntkmtl_weights(gram, 1.0), [25.0, 6.25, 1.25], rtol=1e-6)
    np.testing.assert_allclose(ntkmtl_weights(gram, 0.0), 1, rtol=1e-6)


def test_weighted_gradients_are_of_one_length():
    rows = np.random.default_rng(0).normal(size=(10, 30)) * 10 ** np.linspace(-3, 3, 10)[:, None]
    weights = ntkmtl_weights((rows @ rows.T).astype(np.float32))
    np.testing.assert_allclose(
        weights * np.linalg.norm(rows, axis=1), np.linalg.norm(rows), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [3.0, 4.0]),
        ([[3.0, 4.0]], [3.0, 4.0]),
    ],
    ids=str,
)
def test_degenerate(rows, expected):
    direction, _ = ntkmtl().update(jnp.array(rows), ntkmtl().init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-6)
