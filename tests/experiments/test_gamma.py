"""The gamma study: where logits rest, its scales of gamma, its choices, its command line."""

import jax
import numpy as np
import pytest
import scipy.optimize

from famo_jax.experiments import _files, _gains, _methods, _statistics, _tables, gamma
from famo_jax.experiments.problems import digits, waves

# --- The logits at rest ---------------------------------------------------------------------------


def fixed_point(decrease, decay, num_tasks):
    """Where decay * xi = -J_softmax(xi)^T decrease, in float64, from the Jacobian written out."""

    def residual(logits):
        z = scipy.special.softmax(logits)
        jacobian = np.diag(z) - np.outer(z, z)
        return decay * logits + jacobian.T @ decrease

    solution = scipy.optimize.root(residual, np.zeros(num_tasks), tol=1e-14)
    assert np.abs(residual(solution.x)).max() < 1e-10
    return solution.x


@pytest.mark.parametrize(("num_tasks", "decay"), [(2, 1e-3), (5, 3e-4)])
def test_logits_come_to_rest_where_a_root_finder_says(num_tasks, decay):
    logits = gamma.rest(num_tasks, decay, 6000)
    decrease = gamma.decreases(num_tasks)
    expected = fixed_point(decrease, decay, num_tasks)
    np.testing.assert_allclose(logits, expected, atol=0.01 * np.ptp(expected))
    again = gamma.predicted(expected, decrease, decay)
    np.testing.assert_allclose(again, expected, atol=1e-6)


def test_decreases_are_spread_ninefold_around_the_step_size():
    for num_tasks in (2, 40):
        decrease = gamma.decreases(num_tasks)
        np.testing.assert_allclose(decrease.max() / decrease.min(), 9, rtol=1e-5)
        np.testing.assert_allclose(decrease.mean(), gamma.STEP_SIZE, rtol=1e-5)


# --- Choices --------------------------------------------------------------------------------------


def synthetic(values):
    """Validation and test metrics ``[settings, seeds, K]``, the same on all tasks."""
    metrics = np.repeat(np.array(values, float)[..., None], digits.K, axis=-1)
    return {"validation": metrics, "test": metrics, "losses": np.ones(metrics.shape)}


def test_settings_are_chosen_by_other_seeds_than_those_that_report():
    """Seeds 0 and 1 report, 2 chooses; the control's rate too."""
    cell = "digits, batch 8"
    usual = [{"gamma": g, "logits_rate": 0.025} for g in (0.0, 1e-3, 0.025)]
    arrays = {
        f"{cell} {name}": synthetic([[1.0, 1.0, 4.0], [3.0, 3.0, 2.0]])
        for name in ("frozen-no-c", "first-loss")
    }
    arrays[f"{cell} ls"] = synthetic([[6.0, 9.0, 2.0], [1.0, 1.0, 4.0]])
    forms = dict(zip(gamma.FORMS, ([6, 3, 3], [9, 3, 3], [3, 3, 9]), strict=True))
    for form, second in forms.items():
        arrays[f"{cell} {form}"] = synthetic([[3.3, 3.3, 5.0], second, [1.0, 1.0, 8.0]])
    arms = {name: {"settings": usual} for name in arrays}
    settings = {"seeds": 2, "gamma": [0.0, 1e-3], "logits_rate": [0.025], "batch_size": [8]}
    facts = {"arms": arms, "settings": settings | {"tasks": []}, "rest": {}}
    runs = _files.Runs(facts, arrays)
    whole = gamma.summarize(runs)["cells"][cell]
    assert whole["fixed"]["first-loss"]["mean"] == 0  # the same at the same rate
    assert whole["fixed"]["ls"]["mean"] == pytest.approx(150)  # its first rate, by seed 2: 7.5 to 3
    found = whole["forms"]
    scores = _gains.scores(runs, cell, gamma.FORMS, slice(2, None), slice(2))
    assert scores.chosen["frozen-no-c"] == 1  # by seed 2; by the others 0
    for form, second, chosen in zip(gamma.FORMS, forms.values(), (1, 1, 0), strict=True):
        values = second if chosen else [3.3, 3.3]
        for gain in (scores.gain(form), found[form]["tuned"]):
            assert gain["gamma"] == usual[chosen]["gamma"]
            assert gain["mean"] == pytest.approx(100 * (np.mean(values[:2]) - 3) / 3)  # si's: 3
        assert [each["gamma"] for each in found[form]["by_gamma"]] == [0.0, 1e-3, 0.025]
    lead = scores.gain(gamma.FORMS[0], other=gamma.FORMS[1])
    assert lead["mean"] == pytest.approx(100 * (4.5 - 6) / 3)


# --- Regressions ----------------------------------------------------------------------------------


def test_regressions_are_noisy_only_in_training_and_share_their_tasks():
    clean = waves.make_waves(jax.random.key(0), 3, noise=0.0)
    noisy = waves.make_waves(jax.random.key(0), 3, noise=0.1)
    np.testing.assert_array_equal(clean.x, noisy.x)
    assert np.std(noisy.y - clean.y) == pytest.approx(0.1, rel=0.05)
    # A line through a sine: the higher its frequency, the less of it there is.
    unexplained = []
    for y in np.asarray(clean.y).T:
        design = np.column_stack([clean.x, np.ones(len(y))])
        unexplained.append(
            np.linalg.lstsq(design, y, rcond=None)[1][0] / np.sum((y - y.mean()) ** 2)
        )
    assert unexplained == sorted(unexplained)


# --- The command line -----------------------------------------------------------------------------


def test_a_quick_run(tmp_path, run_study):
    arguments = ["--quick", "--steps", "10", "--gamma", "0", "1e-3", "--tasks", "2"]
    printed, summary = run_study("gamma", tmp_path, *arguments)
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    assert list(summary["cells"]) == ["digits, batch 8", "regressions, K 2"]
    panels = gamma.draw(summary).get_axes()
    for axes, (name, cell) in zip(panels, summary["cells"].items(), strict=True):
        assert axes.get_title(loc="left") == name
        gammas = {"0", "0.001", f"{0.1 / cell['num_tasks']:g}"}
        assert {label.get_text() for label in axes.get_xticklabels()} == gammas
        for (form, own), bars in zip(cell["forms"].items(), axes.containers, strict=True):
            means = [each["mean"] for each in own["by_gamma"]]
            np.testing.assert_allclose(bars.lines[0].get_ydata(), means)
            assert bars.lines[0].get_color() == _methods.METHODS[form].colour


def test_the_table_says_what_is_at_which_gamma():
    def own(shift):
        at = [{"gamma": g, **_statistics.estimate([g + shift, g + shift])} for g in (0, 1e-3, 0.05)]
        return {"tuned": at[2] | {"logits_rate": 0.1}, "by_gamma": at}

    forms = {form: own(10 * index) for index, form in enumerate(gamma.FORMS)}
    fixed = {"first-loss": _statistics.estimate([7.0, 7.0])}
    summary = {"rest": {}, "cells": {"cell": {"num_tasks": 2, "forms": forms, "fixed": fixed}}}
    rows = [line.split() for line in _tables.text(gamma.tables(summary)).splitlines()]
    names = "two-pass", "one-pass", "ema"
    found = {name: row[row.index(name) + 1 :] for name in names for row in rows if name in row}
    for index, name in enumerate(names):
        shown = [f"+{10 * index + value:.1f}±0.0" for value in (0.05, 1e-3, 0.05)]
        assert found[name] == [shown[0], "0.05", "0.1", *shown[1:]]
    assert ["first-loss", "+7.0±0.0"] in rows
