"""The problems in which weights might matter: what makes each of them what it is."""

import jax
import numpy as np
import pytest

from famo_jax.experiments import _comparison
from famo_jax.experiments import conflicts as study
from famo_jax.experiments.problems import conflicts

STEPS, SEEDS = 400, [0, 3]


@pytest.fixture(scope="module")
def data():
    return {kind: conflicts.load_data(kind, STEPS, SEEDS, 8) for kind in conflicts.KINDS}


@pytest.mark.parametrize("kind", conflicts.KINDS)
def test_targets_are_in_one_unit_and_each_seed_draws_its_own(kind, data):
    for held_out in (data[kind].validation, data[kind].test):
        assert held_out.y.shape == (2, conflicts.HELD_OUT, conflicts.K)
        np.testing.assert_allclose(held_out.y.mean(axis=1), 0, atol=0.15)
        np.testing.assert_allclose(held_out.y.std(axis=1), 1, atol=0.15)
        assert held_out.present.all()
    one, other = np.asarray(data[kind].test.x)
    assert not np.allclose(one, other)
    again = conflicts.load_data(kind, STEPS, [3], 8)
    np.testing.assert_array_equal(again.test.y[0], data[kind].test.y[1])
    np.testing.assert_array_equal(again.train.y[:, 0], data[kind].train.y[:, 1])


def test_every_second_task_is_mostly_its_neighbours_negation(data):
    for kind in conflicts.KINDS:
        y = np.asarray(data[kind].test.y[0])
        correlations = np.corrcoef(y.T)[np.arange(0, 6, 2), np.arange(1, 6, 2)]
        if kind == "conflict":
            np.testing.assert_allclose(correlations, -conflicts.NEGATED, atol=0.2)
        else:
            assert np.abs(correlations).max() < 0.5
    sizes = {kind: conflicts.PROBLEMS[kind].init([0])[0]["heads"] for kind in conflicts.KINDS}
    shared = {kind: heads["kernel"].get_value().shape[1] for kind, heads in sizes.items()}
    assert shared.pop("conflict") == conflicts.NARROW
    assert set(shared.values()) == {conflicts.SHARED}


def test_noise_goes_from_hardly_any_to_twice_the_signal():
    one = conflicts.draw(jax.random.key(0), "noise").train
    clean = conflicts.draw(jax.random.key(0), "drift").train
    # The same functions and the same draws: the difference is noise alone.
    np.testing.assert_array_equal(one[0], clean[0])
    draws = (one[1] - clean[1]) / (np.geomspace(0.05, 2, conflicts.K) - conflicts.NOISE)
    np.testing.assert_allclose(np.std(draws, axis=0), 1, rtol=0.08)


def test_half_of_the_tasks_drift_a_hundredfold(data):
    scale = np.asarray(data["drift"].train.scale)
    np.testing.assert_allclose(scale[0, 0], [1, 0.1, 1, 0.1, 1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(scale[-1, 0], [1, 10, 1, 10, 1, 10], rtol=1e-5)
    ratios = scale[1:, 0, 1] / scale[:-1, 0, 1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
    np.testing.assert_array_equal(data["drift"].test.scale, scale[-1])
    problem = conflicts.PROBLEMS["drift"]
    (params, _), rows = problem.init(SEEDS), data["drift"].test
    one = jax.tree.map(lambda leaf: leaf[0], (params, rows))
    errors = np.asarray(problem.losses(one[0], (), one[1], None)[0]) ** 0.5 / scale[-1, 0]
    np.testing.assert_allclose(problem.metrics(one[0], (), one[1]), errors, rtol=1e-5)


def test_tasks_come_late_or_rarely(data):
    late = np.asarray(data["late"].train.present)
    assert late[:, :, ::2].all()
    np.testing.assert_array_equal(late[:, 0, 1], np.arange(STEPS) >= STEPS // 2)
    rare = np.asarray(data["rare"].train.present).mean(axis=(0, 1))
    share = 0.5 ** np.arange(conflicts.K)
    assert np.all(np.abs(rare - share) <= 4 * np.sqrt(share * (1 - share) / (2 * STEPS)))
    for kind in ("conflict", "noise", "drift"):
        assert data[kind].train.present.all()


def test_absent_tasks_teach_nothing(tmp_path, run_study):
    """A single network of a task that has not begun stays as it was."""
    options = "--steps 9 --seeds 1 --tuning-seeds 1 --learning-rate 1e-2 --gamma 0 --methods ls"
    options += " famo first-loss"
    printed, summary = run_study("conflicts", tmp_path, *options.split())
    assert "…" not in printed
    assert list(summary["columns"]) == list(conflicts.KINDS)
    methods = summary["columns"]["late"]["methods"]
    single = np.array(methods["stl"]["losses"])
    assert single.shape == (9, conflicts.K)
    with np.load(tmp_path / "runs.npz") as arrays:
        own = arrays["late stl/losses"][1, 0, :, 0]
    rows = conflicts.load_data("late", 9, [0], 32).train
    problem = conflicts.PROBLEMS["late"]
    params = jax.tree.map(lambda leaf: leaf[0], problem.init([0])[0])
    untouched = [
        problem.losses(params, (), jax.tree.map(lambda leaf, t=t: leaf[t, 0], rows), None)[0][1]
        for t in range(5)
    ]
    np.testing.assert_allclose(own[:5], untouched, rtol=1e-5)
    axes = study.draw(summary).get_axes()
    assert [each.get_title(loc="left") for each in axes[:5]] == list(conflicts.KINDS)
    assert set(summary["columns"]["rare"]["methods"]) <= {"stl", *_comparison.MAIN}
