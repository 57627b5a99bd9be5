"""GradVac by its sequential definition, its targets, and degenerate gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from famo_jax.aggregation import _pcgrad, gradvac, pcgrad

from .problems import METHOD_SETTINGS, jacobians


def vaccinate(rows, orders, targets, beta):
    """Algorithm 1 of the paper, on the gradients themselves, and the mean in place of the sum."""
    targets, total = targets.copy(), np.zeros(rows.shape[1])
    norm = np.linalg.norm
    for i, order in enumerate(orders):
        turned = rows[i].copy()
        for j in order:
            if j == i:
                continue
            cosine, target = turned @ rows[j] / norm(turned) / norm(rows[j]), targets[i, j]
            if cosine < target:
                rise = target * np.sqrt(1 - cosine**2) - cosine * np.sqrt(1 - target**2)
                turned += norm(turned) * rise / (norm(rows[j]) * np.sqrt(1 - target**2)) * rows[j]
            targets[i, j] = (1 - beta) * target + beta * cosine
        total += turned
    return total / len(rows), targets


def next_orders(state, num_tasks):
    return np.asarray(_pcgrad.random_orders(jax.random.split(state.rng_key)[1], num_tasks))


@METHOD_SETTINGS
@given(rows=jacobians(("random", "scaled", "conflicting")), seed=st.integers(0, 10**6))
def test_sequential_definition(x64, rows, seed):
    tx = gradvac(len(rows), key=seed, beta=0.3)
    rng = np.random.default_rng(seed)
    # As after some steps on correlated gradients. (A cosine of -1 would be on the verge.)
    state = tx.init(None)._replace(targets=jnp.array(rng.uniform(-0.2, 0.3, (len(rows),) * 2)))
    direction, after = tx.update(jnp.asarray(rows), state)
    orders = next_orders(state, len(rows))
    expected, targets = vaccinate(rows, orders, np.asarray(state.targets), 0.3)
    np.testing.assert_allclose(direction, expected, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(after.targets, targets, atol=1e-10)


def test_two_tasks_are_turned_to_the_target(x64):
    rows = jnp.array([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    tx = gradvac(2, key=0)
    targets = jnp.array([[0.0, 0.6], [0.8, 0.0]])
    direction, _ = tx.update(rows, tx.init(None)._replace(targets=targets))
    # tan of the new angle to g_j is sqrt(1 - t^2) / t.
    first, second = np.array([1.0, 0.75, 0]), np.array([4.0, 3.0, 0])
    np.testing.assert_allclose(direction, (first + second) / 2, atol=1e-12)


def test_without_learning_it_is_pcgrad(x64):
    rows = jnp.array(np.random.default_rng(0).normal(size=(10, 7)))
    expected, _ = pcgrad(key=5).update(rows, pcgrad(key=5).init(None))
    tx = gradvac(10, key=5, beta=0.0)
    direction, state = tx.update(rows, tx.init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-12)
    np.testing.assert_array_equal(state.targets, 0)


def test_targets_of_absent_and_zero_gradients_stay():
    rows = jnp.array(np.random.default_rng(0).normal(size=(4, 7)), jnp.float32).at[1].set(0)
    tx = gradvac(4, key=0, beta=0.5)
    _, state = tx.update(rows, tx.init(None), where=jnp.array([True, True, True, False]))
    learned = np.zeros((4, 4), bool)
    learned[0, 2] = learned[2, 0] = True
    np.testing.assert_array_equal(state.targets != 0, learned)
    _, again = tx.update(rows.at[0, 0].set(jnp.nan), state)
    np.testing.assert_array_equal(again.targets, state.targets)


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
    tx = gradvac(len(rows), key=0, beta=0.9)
    direction, state = tx.update(jnp.array(rows, dtype), tx.init(None))
    np.testing.assert_allclose(direction, expected, atol=1e-6)
    for _ in range(30):  # targets go to 1 and -1
        direction, state = tx.update(jnp.array(rows, dtype), state)
        assert np.all(np.abs(direction) <= 10 * np.max(np.abs(rows)))
