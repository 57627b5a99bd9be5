"""How much a method's own rate matters: who chooses the model's rate, what is compared, files."""

import json

import numpy as np
import pytest

from famo_jax.experiments import _comparison, amortize

GAMMAS, RATES, MODEL = [0.0, 1e-3, 0.1], [1e-3, 1e-2, 0.1], [1e-3, 1e-2]
GRID = ["--steps", "6", "--seeds", "3", "--tuning-seeds", "2", "--batch-size", "4", "16"]
GRID += ["--gamma", *map(str, GAMMAS), "--logits-rate", *map(str, RATES)]
GRID += ["--learning-rate", *map(str, MODEL)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("amortize")
    return folder, *run_study("amortize", folder, *GRID)


@pytest.fixture(scope="module")
def arrays(whole_run):
    with np.load(whole_run[0] / "runs.npz") as flat:
        return dict(flat)


def test_the_models_rate_is_chosen_at_the_middle_value_by_other_seeds(whole_run, arrays):
    arms = json.loads((whole_run[0] / "study.json").read_text())["arms"]
    for size in ("4", "16"):
        first = arrays[f"{size} first-loss choosing/validation"][0].mean(axis=0)
        for name, own in {"first-loss": None, **amortize.OPEN}.items():
            tried, told = arms[f"{size} {name} choosing"], arms[f"{size} {name}"]
            assert tried["seeds"] == [_comparison.TUNING, _comparison.TUNING + 1]
            assert told["seeds"] == [0, 1, 2]
            assert [each["learning_rate"] for each in tried["settings"]] == MODEL
            scores = (arrays[f"{size} {name} choosing/validation"] / first).mean(axis=(1, 2))
            (rate,) = {each["learning_rate"] for each in told["settings"]}
            assert scores[MODEL.index(rate)] == pytest.approx(scores.min(), rel=1e-6)
            if own:
                values = GAMMAS if own == "gamma" else RATES
                assert {each[own] for each in tried["settings"]} == {values[1]}
                assert [each[own] for each in told["settings"]] == values


def test_gains_are_over_the_control_and_paired(whole_run, arrays):
    for size, methods in whole_run[2]["batches"].items():
        control = arrays[f"{size} first-loss/test"][0]
        for name, each in methods.items():
            own = arrays[f"{size} {name}/test"]
            gains = 100 * ((own - control) / control.mean(axis=0)).mean(axis=-1)  # [values, seeds]
            found = [gain["mean"] for gain in each["gains"]]
            np.testing.assert_allclose(found, gains.mean(axis=1), atol=1e-2)
            errors = gains.std(axis=1, ddof=1) / 3**0.5
            np.testing.assert_allclose([gain["se"] for gain in each["gains"]], errors, atol=1e-2)
            assert each["range"] == pytest.approx(np.ptp(found), abs=1e-2)


def test_it_prints_a_row_for_each_and_draws_what_it_prints(whole_run):
    folder, printed, summary = whole_run
    assert "…" not in printed
    rows = [line.split() for line in printed.splitlines()]
    for name, each in summary["batches"]["16"].items():
        short = name.replace("amortized-nash-mtl", "nash-one-pass")
        row = next(row for row in reversed(rows) if short in row)
        shown = [float(cell.partition("±")[0]) for cell in row[row.index(short) + 1 :][:3]]
        np.testing.assert_allclose(shown, [gain["mean"] for gain in each["gains"]], atol=0.51)
    panels = amortize.draw(summary).get_axes()
    assert [axes.get_title(loc="left") for axes in panels] == ["batches of 4", "batches of 16"]
    for axes, methods in zip(panels, summary["batches"].values(), strict=True):
        for bars in axes.containers:
            means = [gain["mean"] for gain in methods[bars.get_label()]["gains"]]
            np.testing.assert_allclose(bars.lines[0].get_ydata(), means)
        assert axes.get_xticklabels()[1].get_text() == "0.001\n0.01"
    assert (folder / "amortize.png").read_bytes().startswith(b"\x89PNG")
