"""Methods on overlapping handwritten digits: ``python -m famo_jax.experiments.digits``.

The problem is that of :mod:`famo_jax.experiments.problems.digits`, and how methods are trained,
chosen on the validation digits and compared on the test digits stands in ``_comparison``.
"""

import functools
from typing import Any

import numpy as np

from famo_jax.experiments import _command, _comparison, _plots, _statistics
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments.problems import digits


def draw(summary: Any) -> Any:
    """Each task's loss over the steps, the task weights, and delta m of every method."""
    figure: Any
    with _plots.picture(height=5.2) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        for task, axes in enumerate(above.subplots(1, digits.K)):
            _comparison.draw_losses(axes, summary, task, labelled=task == digits.K - 1)
        left, right = below.subplots(1, 2)
        _comparison.draw_task_weights(left, summary)
        _comparison.draw_delta_m(right, summary)
    return figure


def draw_problem(summary: Any) -> Any:
    """Why weigh at all: a quiet loss, the loudest, and what becomes of each task's error."""
    methods = summary["methods"]
    shown = [name for name in ("ls", "si", "famo-ema-no-c") if name in methods]
    baseline = np.mean(methods["stl"]["test_by_seed"], axis=0)
    with _plots.picture(height=2.7) as figure:
        quiet, loud, errors = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
        _comparison.draw_losses(quiet, summary, 1, labelled=False, shown=shown)
        _comparison.draw_losses(loud, summary, 3, labelled=True, shown=shown)
        series = {}
        for name in shown:
            changes = _statistics.changes(methods[name]["test_by_seed"], baseline).T
            series[name] = (list(map(_statistics.estimate, changes)), METHODS[name].colour)
        names = [task["metric"].rpartition(" (")[0].replace(" ", "\n") for task in summary["tasks"]]
        _plots.over_values(errors, names, series, "", labelled=False, line="none")
        errors.axhline(0, color="black", linewidth=0.8)
        errors.set_title("held-out error over single-task (%)", fontsize=8)
    return figure


def facts() -> dict[str, Any]:
    """Of the data."""
    splits = digits.load_splits()._asdict()
    return {
        "sources": {name: len(split.labels) for name, split in splits.items()},
        "pictures_held_out": digits.HELD_OUT,
        "noise": digits.NOISE,
    }


STUDY = _comparison.study(
    name="digits",
    title="Multi-task methods on overlapping handwritten digits",
    seconds=122,
    problem=digits.PROBLEM,
    full="--steps 1500 --seeds 5 --batch-size 64 --learning-rate 1e-3 3e-3 1e-2 "
    "--gamma 0 1e-3 1e-2 1e-1 --methods stl ls si frozen " + _comparison.FORMS,
    quick="--steps 200 --seeds 2 --learning-rate 3e-3 --gamma 1e-3",
    pictures={"digits.png": draw, "problem.png": draw_problem},
    facts=facts,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
