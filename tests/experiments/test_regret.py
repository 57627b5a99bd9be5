"""Regret, from the figures of other studies."""

import json

import numpy as np
import pytest

from famo_jax.experiments import regret

GAIN = {"mean": -10.4, "low": -14.6, "high": -6.2, "p": 0.003}
FIGURES = {
    "digits": {"natural": {"ls": 90.0, "si": 20.0, "famo": 30.0, "uw": 1.0},
               "standardised": {"ls": 5.0, "si": 9.0, "famo": 6.0}},
    "attributes": {"cross-entropies": {"ls": 10.0, "si": 40.0, "famo": 15.0}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name, columns in FIGURES.items():
        of = lambda methods: {
            each: {"delta_m": {"mean": value}, "step_relative_to_ls": 1 + value / 100}
            for each, value in ({"stl": 0.0} | methods).items()
        }
        summary = {
            "columns": {
                label: {"methods": of(own), "fixed": "si"} for label, own in columns.items()
            }
        }
        if name == "digits":
            summary["columns"]["natural"]["methods"]["famo"]["gain"] = GAIN
            more = {"gain": GAIN | {"mean": 3.0, "p": 0.04}, "delta_m": {"mean": 0.0}}
            summary["columns"]["natural"]["methods"]["uw"] |= more
        own = tmp_path / name if name == "digits" else tmp_path  # as a run leaves it, or kept
        own.mkdir(exist_ok=True)
        (own / f"{name}.json").write_text(json.dumps({"summary": summary}))
    return tmp_path


def test_regret_is_above_the_best_of_the_methods_that_all_studies_ran(folder, tmp_path, run_study):
    options = ["--runs", str(folder), "--studies", "digits", "attributes"]
    printed, summary = run_study("regret", tmp_path / "out", *options)
    found = {name: each["regrets"] for name, each in summary["methods"].items()}
    # Uncertainty weighting was the best where it was run, but not run everywhere.
    assert found == {"famo": [10, 1, 5], "si": [0, 4, 30], "ls": [70, 0, 0]}
    assert list(found) == ["famo", "si", "ls"]  # by the worst
    assert summary["methods"]["famo"]["worst"] == 10
    assert summary["methods"]["famo"]["median"] == 5
    assert summary["best"] == ["si", "ls", "ls"]
    rows = [line.split() for line in printed.splitlines()]
    assert ["famo", "10", "5", "10", "1", "5"] in rows
    assert ["ls", "70", "0", "70", "0", "0"] in rows
    # Twice p of the lesser is 0.006, and that of the other stays 0.04.
    assert ["digits", "nat", "si", "+3±4*", "-10±4*"] in rows
    assert ["digits", "std", "si"] in rows
    axes, cost = regret.draw(summary).get_axes()
    dots = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"][:9]
    dots = np.ravel(dots)
    np.testing.assert_allclose(dots, [10, 1, 5, 0, 4, 30, 70, 0, 0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["famo", "si", "ls"]
    # Of digits in natural units, and of attributes, the mean of the two.
    assert summary["methods"]["famo"]["step"] == pytest.approx(1.225)
    dots = {line.get_xdata()[0]: line.get_ydata()[0] for line in cost.get_lines()}
    steps = {"famo": (1.225, 5), "si": (1.3, 4), "ls": (1.5, 0)}
    assert {round(x, 3): y for x, y in dots.items()} == dict(steps.values())


def test_what_diverged_is_the_worst(folder, tmp_path, run_study):
    path = folder / "attributes.json"
    path.write_text(path.read_text().replace("40.0", "null"))
    options = ["--runs", str(folder), "--studies", "digits", "attributes"]
    printed, summary = run_study("regret", tmp_path / "out", *options)
    assert list(summary["methods"])[-1] == "si"
    assert any(line.split()[:2] == ["si", "-"] for line in printed.splitlines())


def test_a_study_that_was_not_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        regret.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")])
    assert exit_info.value.code == 2
    assert "python -m famo_jax.experiments.digits writes" in capsys.readouterr().err
