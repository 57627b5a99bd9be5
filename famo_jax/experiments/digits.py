"""Methods on overlapping handwritten digits: ``python -m famo_jax.experiments.digits``.

The problem is that of :mod:`famo_jax.experiments.problems.digits`, with the ink in grey levels and
standardised. How methods are trained, chosen and compared stands in ``_comparison``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from famo_jax.experiments import _command, _comparison, _plots, _statistics
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments.problems import digits

FAMO = "famo-ema-no-c"  # the recommended form


def draw(summary: Any) -> Any:
    """What becomes of each task, and delta m of every method."""
    names = [task.metric.rpartition(" (")[0].replace(" ", "\n") for task in digits.TASKS]
    return _comparison.draw(summary, lambda axes: axes.set_xticks(range(digits.K), names))


def draw_losses(axes: Any, summary: Any, task: int, shown: Sequence[str]) -> None:
    """The loss of a task over the steps, mean over seeds, of a few methods."""
    column = summary["columns"]["natural"]
    curves = {
        name: (np.array(column["methods"][name]["losses"])[:, task], METHODS[name].colour)
        for name in shown
    }
    points = len(column["methods"]["stl"]["losses"])
    axes.set_yscale("log")
    _plots.lines(axes, _statistics.middles(summary["steps"], points), curves, labelled=False)
    _plots.plain_numbers(axes.yaxis)
    axes.set_title(column["tasks"][task]["loss"], fontsize=8)
    axes.set_xlabel("step")


def draw_problem(summary: Any) -> Any:
    """Why weigh at all: a quiet loss, the loudest, and what becomes of each task's error."""
    methods = summary["columns"]["natural"]["methods"]
    words = {"ls": "mean of the losses", "si": "mean of the logs", FAMO: "FAMO"}
    shown = [name for name in words if name in methods]
    with _plots.picture(height=2.7) as figure:
        quiet, loud, errors = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
        draw_losses(quiet, summary, 1, shown)
        ends = {
            words[name]: (methods[name]["losses"][-1][1], METHODS[name].colour) for name in shown
        }
        _plots.label_ends(quiet, ends)
        draw_losses(loud, summary, 3, shown)
        series = {words[name]: (methods[name], METHODS[name].colour) for name in shown}
        fair = summary["columns"]["standardised"]["methods"].get("ls")
        if fair:  # units alone mend most of it
            series["mean, ink standardised"] = fair, "#000000"
        baseline = np.mean(summary["columns"]["standardised"]["methods"]["stl"]["test_by_seed"], 0)
        estimates = {
            name: (
                [_statistics.estimate(task) for task in
                 _statistics.changes(each["test_by_seed"], baseline).T],
                colour,
            )
            for name, (each, colour) in series.items()
        }  # fmt: skip
        names = [task.metric.rpartition(" (")[0].replace(" ", "\n") for task in digits.TASKS]
        _plots.over_values(errors, names, estimates, "", labelled=False, line="none")
        if series:
            errors.legend(fontsize=7)
        errors.axhline(0, color="black", linewidth=0.8)
        errors.set_title("held-out error over single-task (%)", fontsize=8)
    return figure


STUDY = _comparison.study(
    name="digits",
    title="Multi-task methods on overlapping handwritten digits",
    seconds=290,
    problems={"natural": digits.PROBLEM, "standardised": digits.STANDARDISED},
    full="--steps 1500 --seeds 8 --tuning-seeds 2 --batch-size 64 --learning-rate "
    "1.5e-3 5e-3 1.5e-2 --gamma 0 1e-3 1e-2",
    quick="--steps 200 " + _comparison.QUICK,
    pictures={"digits.png": draw, "problem.png": draw_problem},
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
