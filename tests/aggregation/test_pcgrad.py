"""PCGrad against its sequential definition, its closed form for two tasks, and its randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from famo_jax.aggregation import _pcgrad, pcgrad

from .problems import METHOD_SETTINGS, jacobians, tolerance


def surgery(rows, orders):
    """Algorithm 1 of the paper, on the gradients themselves, and the mean in place of the sum."""
    total = np.zeros(rows.shape[1])
    for i, order in enumerate(orders):
        projected = rows[i].copy()
        for j in order:
            if j != i and projected @ rows[j] < 0:
                projected -= projected @ rows[j] / (rows[j] @ rows[j]) * rows[j]
        total += projected
    return total / len(rows)


def next_orders(state, num_tasks):
    return np.asarray(_pcgrad.random_orders(jax.random.split(state.rng_key)[1], num_tasks))


@METHOD_SETTINGS
@given(rows=jacobians(("random", "scaled", "conflicting")))
def test_sequential_definition(x64, rows):
    tx = pcgrad(key=3)
    state = tx.init(None)
    direction, _ = tx.update(jnp.asarray(rows), state)
    expected = surgery(rows, next_orders(state, len(rows)))
    np.testing.assert_allclose(direction, expected, atol=1e-10 * np.abs(rows).max() * len(rows))


def test_two_tasks_by_the_closed_form(dtype):
    rng = np.random.default_rng(0)
    for seed in range(20):
        first, second = rng.normal(size=(2, 3))
        conflict = min(first @ second, 0)
        expected = (
            first + second - conflict * (second / (second @ second) + first / (first @ first))
        )
        tx = pcgrad(key=seed)
        direction, _ = tx.update(jnp.array([first, second], dtype), tx.init(None))
        np.testing.assert_allclose(direction, expected / 2, atol=10 * tolerance(dtype))


def test_without_conflict_nothing_changes():
    rows = np.abs(np.random.default_rng(0).normal(size=(10, 30))).astype(np.float32)
    direction, _ = pcgrad(key=0).update(rows, pcgrad(key=0).init(None))
    np.testing.assert_allclose(direction, rows.mean(0), rtol=1e-6)


def test_orders_are_permutations_each_as_likely():
    orders = jax.vmap(lambda key: _pcgrad.random_orders(key, 3))(
        jax.random.split(jax.random.key(0), 2000)
    )
    assert np.all(np.sort(orders, axis=-1) == np.arange(3))
    code = np.asarray(orders @ jnp.array([9, 3, 1]))
    for task in range(3):
        counts = np.unique(code[:, task], return_counts=True)[1]
        assert len(counts) == 6
        assert np.all(np.abs(counts - 2000 / 6) < 5 * np.sqrt(2000 / 6))
    assert np.corrcoef(code.T)[0, 1] < 0.1


def test_the_key_advances():
    rows = jnp.array(np.random.default_rng(0).normal(size=(10, 3)), jnp.float32)
    tx = pcgrad(key=jax.random.key(7))
    first, state = tx.update(rows, tx.init(None))
    second, _ = tx.update(rows, state)
    again, _ = pcgrad(key=7).update(rows, pcgrad(key=7).init(None))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[3.0, 4.0], [0.0, 0.0]], [1.5, 2.0]),
        ([[3.0, 4.0]], [3.0, 4.0]),
        ([[3.0, 4.0], [3.0, 4.0]], [3.0, 4.0]),
    ],
    ids=str,
)
def test_degenerate(rows, expected, dtype):
    direction, _ = pcgrad(key=0).update(jnp.array(rows, dtype), pcgrad(key=0).init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-6)
