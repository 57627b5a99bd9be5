"""The study of learned weights: its problems, its settings, its figures."""

import numpy as np
import pytest

from famo_jax import loss_weights
from famo_jax.experiments import _comparison, _methods, amortize
from famo_jax.experiments.problems import molecules

NAMES = [
    "stl",
    "ls",
    "first-loss",
    "famo-slope",
    "nash-slope",
    "amortized-nash-mtl",
    "cagrad-slope",
]
GRID = "--steps 6 --seeds 2 --batch-size 16 --learning-rate 1e-3 1e-2 --gamma 0 0.01"
GRID += " --logits-rate 0.005 0.05"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("amortize")
    arguments = [*GRID.split(), "--problem", "standardised", "--methods", *NAMES]
    return folder, *run_study("amortize", folder, *arguments)


def test_every_method_has_as_many_settings(whole_run):
    folder, _, summary = whole_run
    order = [name for name in _methods.METHODS if name in NAMES]
    assert list(summary["methods"]) == order
    with np.load(folder / "runs.npz") as arrays:
        for name in order:
            count = 2 * molecules.K if name == "stl" else 4
            assert arrays[f"{name}/test"].shape == (count, 2, molecules.K)
    chosen = {name: each["learning_rate"] for name, each in summary["methods"].items()}
    finer = np.geomspace(1e-3, 1e-2, 4)
    for name in ("ls", "first-loss"):
        np.testing.assert_allclose(np.abs(finer - chosen[name]).min(), 0, atol=1e-9)
    assert summary["methods"]["nash-slope"]["logits_rate"] in (0.005, 0.05)


def test_one_rate_stays_one():
    grid = {"learning_rate": [0.01], "gamma": [0.0, 0.1]}
    assert _comparison.evenly(_methods.METHODS["ls"], grid) == grid
    grid["learning_rate"] = [0.01, 0.1]
    assert _comparison.evenly(_methods.METHODS["famo"], grid) == grid
    assert len(_comparison.evenly(_methods.METHODS["ls"], grid)["learning_rate"]) == 4


def test_it_prints_rows_and_paired_differences(whole_run):
    _, printed, summary = whole_run
    assert "…" not in printed
    lines = printed.partition("Differences of")[2].splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    assert rows["method"][:2] == ["-", "first"]
    for name in ("famo-slope", "nash-slope", "amortized-nash-mtl"):
        mean = summary["methods"][name]["against"]["first-loss"]["mean"]
        assert float(rows[name][0].partition("±")[0]) == pytest.approx(mean, abs=0.51)


def test_its_picture_shows_delta_m_over_cost(whole_run):
    folder, _, summary = whole_run
    assert (folder / "amortize.png").read_bytes().startswith(b"\x89PNG")
    axes = amortize.draw(summary).get_axes()[0]
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    shown = [each for name, each in summary["methods"].items() if name != "stl"]
    for each, dot in zip(shown, dots, strict=True):
        assert dot.get_xdata() == [each["step_relative_to_ls"]]
        assert dot.get_ydata() == [each["delta_m"]["mean"]]


def test_frozen_amortized_nash_mtl_is_its_control():
    losses = np.array([1.0, 20.0])
    frozen = _methods.METHODS["nash-slope"].make(2, logits_rate=0.0)
    control = _methods.METHODS[_methods.METHODS["nash-slope"].control].make(2)
    weights = (loss_weights(losses, tx.init(None)) for tx in (frozen, control))
    np.testing.assert_allclose(*weights, rtol=1e-6)
