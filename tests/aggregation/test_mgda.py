"""MGDA by its optimality conditions, its closed form for two tasks, and degenerate gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from famo_jax.aggregation import mgda, mgda_weights

from .problems import METHOD_SETTINGS, gram_of, jacobians, tolerance


@METHOD_SETTINGS
@given(rows=jacobians())
def test_no_task_gains_less_than_the_squared_length(dtype, rows):
    """KKT: g_i.d >= |d|^2, which holds at the point of least norm of the hull and nowhere else."""
    given_gram, gram = gram_of(rows, dtype)
    z = mgda_weights(given_gram)
    assert z.dtype == dtype
    z = np.asarray(z, float)
    assert np.all(z >= 0)
    np.testing.assert_allclose(z.sum(), 1, rtol=1e-6 if dtype == "float32" else 1e-14)
    along = gram @ z
    assert z @ along - along.min() <= tolerance(dtype) * np.diag(gram).max()


@pytest.mark.parametrize("num_tasks", [100, 200])
def test_many_tasks(num_tasks, dtype):
    rows = np.random.default_rng(0).normal(size=(num_tasks, 300))
    given_gram, gram = gram_of(rows, dtype)
    z = np.asarray(mgda_weights(given_gram), float)
    along = gram @ z
    assert z @ along - along.min() <= tolerance(dtype) * np.diag(gram).max()


def test_two_tasks_by_the_closed_form(dtype):
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.normal(size=(2, 3)) * 10 ** rng.uniform(-1, 1, (2, 1))
        first, second = rows
        share = (second - first) @ second / np.sum((second - first) ** 2)
        expected = np.clip([share, 1 - share], 0, 1)
        z = mgda_weights(gram_of(rows, dtype)[0])
        np.testing.assert_allclose(z, expected, atol=1e-4 if dtype == "float32" else 1e-10)


def test_order_of_tasks_does_not_matter(x64):
    rows = np.random.default_rng(0).normal(size=(10, 40))
    order = np.random.default_rng(1).permutation(10)
    gram = rows @ rows.T
    permuted = mgda_weights(gram[order][:, order])
    np.testing.assert_allclose(permuted, mgda_weights(gram)[order], atol=1e-12)


def test_the_shortest_of_aligned_gradients_wins():
    rows = jnp.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    direction, _ = mgda().update(rows, mgda().init(None))
    np.testing.assert_allclose(direction, [1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "rows",
    [[[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [0.0, 0.0]], [[0.0], [0.0]], [[1.0], [-3.0], [2.0]]],
    ids=["opposite", "one zero", "all zero", "more tasks than parameters"],
)
def test_no_direction_where_0_is_in_the_hull(rows, dtype):
    rows = jnp.array(rows, dtype)
    direction, _ = mgda().update(rows, mgda().init(None))
    np.testing.assert_allclose(direction, 0, atol=3 * np.sqrt(np.finfo(dtype).eps))


def test_one_task():
    assert mgda_weights([[7.0]]) == 1
    assert mgda_weights([[0.0]]) in (0, 1)
