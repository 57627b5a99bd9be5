"""GradDrop by Algorithm 1: which sums are possible, and how often each is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax.aggregation import graddrop

ROWS = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)


def test_entries_are_sums_over_the_sign_that_was_kept():
    tx = graddrop(key=0)
    direction, _ = tx.update({"a": ROWS[:, :10], "b": ROWS[:, 10:].reshape(5, 6, 5)}, tx.init(None))
    direction = np.append(direction["a"], direction["b"])
    positive, negative = np.where(ROWS > 0, ROWS, 0).sum(0), np.where(ROWS < 0, ROWS, 0).sum(0)
    kept = np.isclose(direction, positive), np.isclose(direction, negative)
    assert np.all(kept[0] | kept[1])
    assert np.any(kept[0])
    assert np.any(kept[1])


def test_the_positive_sign_is_kept_as_often_as_the_purity_says():
    draws = 4000
    tx = graddrop(key=0)

    def step(state, _):
        direction, state = tx.update(ROWS, state)
        return state, direction > 0

    _, kept = jax.lax.scan(step, tx.init(None), length=draws)
    purity = (1 + ROWS.sum(0) / np.abs(ROWS).sum(0)) / 2
    error = np.sqrt(purity * (1 - purity) / draws)
    assert np.all(np.abs(np.mean(kept, axis=0) - purity) <= 4.5 * error + 1e-9)
    # Entries are drawn independently.
    mixed = (purity > 0.05) & (purity < 0.95)
    correlation = np.corrcoef(np.asarray(kept[:, mixed], float).T)
    assert np.max(np.abs(correlation - np.eye(len(correlation)))) < 5 / np.sqrt(draws)


def test_where_all_tasks_agree_nothing_is_dropped():
    signs = np.where(np.arange(40) % 2, 1, -1)
    rows = np.abs(ROWS) * signs
    for key in range(20):
        direction, _ = graddrop(key=key).update(rows, graddrop(key=key).init(None))
        np.testing.assert_allclose(direction, rows.sum(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "possible"),
    [
        ([[1.0], [-1.0]], (1.0, -1.0)),
        ([[0.0], [0.0]], (0.0,)),
        ([[2.0], [0.0]], (2.0,)),
        ([[-2.0]], (-2.0,)),
        ([[2.0], [2.0]], (4.0,)),
    ],
    ids=str,
)
def test_degenerate(rows, possible):
    seen = {
        float(graddrop(key=key).update(jnp.array(rows), graddrop(key=key).init(None))[0][0])
        for key in range(12)
    }
    assert seen == set(possible)


def test_leaves_get_draws_of_their_own():
    rows = jnp.array(np.tile([[1.0], [-1.0]], (1, 200)))
    direction, state = graddrop(key=0).update({"a": rows, "b": rows}, graddrop(key=0).init(None))
    assert not np.array_equal(direction["a"], direction["b"])
    again, _ = graddrop(key=0).update({"a": rows, "b": rows}, state)
    assert not np.array_equal(direction["a"], again["a"])
