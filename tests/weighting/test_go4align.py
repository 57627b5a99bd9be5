"""GO4Align, and the k-means in it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import loss_weights
from famo_jax.weighting import _groups, go4align
from tests.weighting.histories import LOSSES, THEIRS, follow

ETA = 0.05


def groupings(num_tasks, most):
    """All ways to put tasks in at most so many groups, as labels."""
    for labels in itertools.product(range(most), repeat=num_tasks):
        if list(dict.fromkeys(labels)) == sorted(set(labels)):  # each grouping under one name
            yield np.array(labels)


def grouped(values, labels):
    """The mean of each one's group, and the sum of squares."""
    means = np.array([values[labels == label].mean() for label in labels])
    return means, np.sum((values - means) ** 2)


def best(values, most):
    return min(
        (grouped(values, labels) for labels in groupings(len(values), most)), key=lambda g: g[1]
    )


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_by_the_formula(num_groups, x64):
    """p and v of each step, and of all groupings the best."""
    bounds = np.array([0.0, -1.0, 2.0])
    tx = go4align(3, num_groups=num_groups, step_size=ETA, min_losses=bounds)
    weights, values, states = follow(tx, LOSSES + bounds)
    p = np.full(3, 1 / 3)
    for losses, ours, value, state in zip(LOSSES, weights, values, states[1:], strict=True):
        p = p * np.exp(-ETA * losses)
        p /= p.sum()
        expected, _ = best(losses.sum() / losses * p, num_groups)
        np.testing.assert_allclose(ours, expected, rtol=1e-10)
        np.testing.assert_allclose(value, expected @ losses, rtol=1e-10)
        np.testing.assert_allclose(jax.nn.softmax(state.log_risks), p, rtol=1e-10)


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_as_the_authors_code_computes_it(num_groups):
    weights, _, states = follow(go4align(3, num_groups=num_groups, step_size=ETA), LOSSES)
    np.testing.assert_allclose(weights, THEIRS[f"go4align/{num_groups}/weights"], rtol=1e-5)
    p = jax.nn.softmax(jnp.array([state.log_risks for state in states[1:]]))
    np.testing.assert_allclose(p, THEIRS["go4align/probabilities"], rtol=1e-5)


@pytest.mark.parametrize("num_groups", [2, 5])
def test_on_forty_tasks_it_groups_at_least_as_well(num_groups):
    """As scikit-learn's k-means, whose result hangs on where it starts."""
    history = THEIRS["forty_losses"]
    tx = go4align(40, num_groups=num_groups, step_size=ETA)
    single = go4align(40, num_groups=40, step_size=ETA)
    (weights, _, _), (values, _, _) = follow(tx, history), follow(single, history)
    theirs = THEIRS[f"go4align/forty/{num_groups}/weights"]
    ours, cost = (np.sum((values - each) ** 2, axis=1) for each in (weights, theirs))
    assert np.all(ours <= cost * (1 + 1e-4))
    np.testing.assert_allclose(weights.sum(axis=1), values.sum(axis=1), rtol=1e-5)
    assert {len(np.unique(each)) for each in weights} == {num_groups}


@pytest.mark.parametrize("seed", range(8))
def test_no_grouping_of_numbers_is_better(seed, x64):
    rng = np.random.default_rng(seed)
    values, counted = rng.normal(size=7) * 10 ** rng.uniform(-9, 9), rng.random(7) < 0.8
    values[1] = values[2]
    for most in (1, 2, 3, 4, 9):
        ours = np.asarray(_groups.centroids(jnp.array(values), jnp.array(counted), most))[counted]
        _, cost = best(values[counted], min(most, 4))
        if most == 9:
            cost = 0
            np.testing.assert_allclose(ours, values[counted], rtol=1e-12)
        scale = np.max(np.abs(values)) ** 2
        assert np.sum((values[counted] - ours) ** 2) <= cost + 1e-14 * scale


def test_groups_of_very_different_weights_in_float32():
    """Of small numbers beside large ones: no sums of squares are subtracted."""
    values = jnp.array([1e4, 1e4 + 10, 1e4 + 11, 1e4 - 20])
    ours = _groups.centroids(values, jnp.ones(4, bool), 3)
    np.testing.assert_allclose(ours, [1e4, 1e4 + 10.5, 1e4 + 10.5, 1e4 - 20], rtol=1e-7)


def test_a_sweep_over_groups_and_steps():
    def weights(num_groups, step_size):
        tx = go4align(3, num_groups=num_groups, step_size=step_size)
        _, state = tx.update((), tx.init(None), losses=jnp.array([1.0, 4.0, 5.0]))
        return loss_weights(jnp.array([1.0, 4.0, 5.0]), state)

    swept = jax.vmap(weights)(jnp.array([1, 2, 3]), jnp.array([0.0, 0.1, 0.2]))
    for ours, groups, eta in zip(swept, (1, 2, 3), (0.0, 0.1, 0.2), strict=True):
        np.testing.assert_allclose(ours, weights(groups, eta), rtol=1e-5)
    assert [len(np.unique(np.round(each, 5))) for each in swept] == [1, 2, 3]
