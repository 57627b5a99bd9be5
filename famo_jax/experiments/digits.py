"""Methods on overlapping handwritten digits: ``python -m famo_jax.experiments.digits``.

The problem is that of :mod:`famo_jax.experiments.problems.digits`, and how methods are trained,
chosen on the validation digits and compared on the test digits stands in ``_comparison``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from famo_jax.experiments import _command, _comparison, _plots, _statistics
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments.problems import digits

FAMO = "famo-ema-no-c"  # the recommended form, and the others that stand beside it
SHOWN = ("stl", *_comparison.SHOWN)


def draw_losses(axes: Any, summary: Any, task: int, shown: Sequence[str], labelled: bool) -> None:
    """The loss of a task over the steps, mean over seeds, of a few methods."""
    methods = summary["methods"]
    curves = {
        name: (np.array(methods[name]["losses"])[:, task], METHODS[name].colour)
        for name in shown
        if name in methods
    }
    single = np.array(methods["stl"]["losses"])[:, task]
    axes.set_yscale("log")
    # The mean of the losses first makes some tasks worse, by far. That would squeeze the rest.
    every = np.array([single, *(values for values, _ in curves.values())])
    if np.isfinite(every).all():
        axes.set_ylim(every.min() / 1.2, max(1.6 * single.max(), 1.2 * every[:, -1].max()))
    _plots.lines(
        axes, _statistics.middles(summary["steps"], len(single)), curves, labelled=labelled
    )
    _plots.plain_numbers(axes.yaxis)
    axes.set_title(summary["tasks"][task]["loss"], fontsize=8)
    axes.set_xlabel("step")


def draw(summary: Any) -> Any:
    """Each task's loss over the steps, the task weights, and delta m of every method."""
    figure: Any
    with _plots.picture(height=5.2) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        for task, axes in enumerate(above.subplots(1, digits.K)):
            draw_losses(axes, summary, task, SHOWN, labelled=task == digits.K - 1)
        left, right = below.subplots(1, 2)
        if FAMO in summary["methods"]:
            curves = np.array(summary["methods"][FAMO]["task_weights"])
            named = zip(summary["tasks"], curves.T, strict=True)
            # Tasks have no colours: these are methods'.
            series = {task["name"]: (curve, "#444444") for task, curve in named}
            steps = _statistics.middles(summary["steps"], len(curves))
            _plots.lines(left, steps, series, _plots.LINES)
        left.set(title=f"task weights of {FAMO}", xlabel="step")
        _comparison.draw_delta_m(right, summary)
    return figure


def draw_problem(summary: Any) -> Any:
    """Why weigh at all: a quiet loss, the loudest, and what becomes of each task's error."""
    methods = summary["methods"]
    shown = [name for name in ("ls", "si", FAMO) if name in methods]
    baseline = np.mean(methods["stl"]["test_by_seed"], axis=0)
    with _plots.picture(height=2.7) as figure:
        quiet, loud, errors = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
        draw_losses(quiet, summary, 1, shown, labelled=False)
        words = {"ls": "mean of the losses", "si": "mean of the logs", FAMO: "FAMO"}
        ends = {
            words[name]: (methods[name]["losses"][-1][1], METHODS[name].colour) for name in shown
        }
        _plots.label_ends(quiet, ends)
        draw_losses(loud, summary, 3, shown, labelled=False)
        series = {}
        for name in shown:
            changes = _statistics.changes(methods[name]["test_by_seed"], baseline).T
            series[name] = (list(map(_statistics.estimate, changes)), METHODS[name].colour)
        names = [task["metric"].rpartition(" (")[0].replace(" ", "\n") for task in summary["tasks"]]
        _plots.over_values(errors, names, series, "", labelled=False, line="none")
        errors.axhline(0, color="black", linewidth=0.8)
        errors.set_title("held-out error over single-task (%)", fontsize=8)
    return figure


STUDY = _comparison.study(
    name="digits",
    title="Multi-task methods on overlapping handwritten digits",
    seconds=122,
    problem=digits.PROBLEM,
    full="--steps 1500 --seeds 5 --batch-size 64 --learning-rate 1e-3 3e-3 1e-2 "
    "--gamma 0 1e-3 1e-2 1e-1 --methods stl ls si frozen " + _comparison.FORMS,
    quick="--steps 200 --seeds 2 --learning-rate 3e-3 --gamma 1e-3",
    pictures={"digits.png": draw, "problem.png": draw_problem},
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
