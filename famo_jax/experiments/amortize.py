"""What learned weights gain over fixed ones: ``python -m famo_jax.experiments.amortize``.

FAMO and the methods that amortize MGDA, CAGrad and Nash-MTL likewise, by one pass, two or the
slope, beside the exact methods and weights that learn nothing. One problem a run, ``--problem``:
the overlapping digits, the molecules in natural or in standardised units, the forty attributes. How
methods are trained, chosen and compared stands in ``_comparison``; here all have the same number of
settings.
"""

import argparse
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import METHODS, described
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import attributes, digits, molecules

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

PROBLEMS = {
    "digits": digits.PROBLEM,
    "molecules": molecules.PROBLEM,
    "standardised": molecules.STANDARDISED,
    "attributes": attributes.PROBLEM,
}


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Trains every method on the problem, at as many settings each."""
    return _comparison.run(PROBLEMS[options.problem], dict, options, session, even=True)


def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of each method."""
    problem = PROBLEMS[runs.facts["settings"]["problem"]]
    return _comparison.summarize(problem.tasks, runs)


LABELLED = ("ls", "si", "first-loss", "famo-slope", "amortized-nash-mtl", "nash-slope", "nash-mtl")


def draw(summary: Summary) -> Any:
    """Delta m over the time of a step, and of every method with its seeds."""
    from famo_jax.experiments import _plots

    figure: Any
    with _plots.picture(height=5.2) as figure:
        left, right = figure.subplots(1, 2)
        shown = {name: each for name, each in summary["methods"].items() if name != "stl"}
        for name, each in shown.items():
            x = each["step_relative_to_ls"]
            y, low, high = (each["delta_m"][key] for key in ("mean", "low", "high"))
            colour = METHODS[name].colour
            left.plot(x, y, "o", color=colour, markersize=5)
            if np.isfinite([low, high]).all():
                left.plot([x, x], [low, high], color=colour, linewidth=1)
            if name in LABELLED:
                left.annotate(name, (x, y), xytext=(4, 2), textcoords="offset points", color=colour)
        left.set_xscale("log")
        _plots.plain_numbers(left.xaxis)
        left.set_xlabel("time of a step over that of ls")
        left.set_title("Δm (%) over cost: below and left is better")
        _comparison.draw_delta_m(right, summary)
    return figure


METHODS_SHOWN = (
    "stl ls si frozen first-loss uw famo famo-no-c famo-slope famo-slope-no-c famo-one-pass "
    "famo-one-pass-no-c famo-ema famo-ema-no-c nash-slope nash-two-pass amortized-nash-mtl "
    "nash-ema cagrad-slope mgda-slope mgda cagrad nash-mtl log-mgda log-cagrad"
)
STUDY = Study(
    name="amortize",
    title="What learned weights gain over fixed ones, and at what cost",
    seconds=1700,  # counted from the steps and seconds of digits, not timed yet
    full="--problem digits --first-seed 0 --steps 1500 --seeds 10 --batch-size 64 "
    "--learning-rate 1e-3 3e-3 1e-2 3e-2 --gamma 0 1e-3 1e-2 1e-1 "
    "--logits-rate 1e-3 5e-3 2.5e-2 1e-1 --methods " + METHODS_SHOWN,
    quick="--steps 60 --seeds 2 --learning-rate 1e-2 --gamma 1e-3 --logits-rate 5e-3 --methods "
    "stl ls si first-loss famo famo-slope nash-slope nash-two-pass amortized-nash-mtl cagrad-slope",
    run=run,
    summarize=summarize,
    tables=_comparison.tables,
    pictures={"amortize.png": draw},
    options={
        "problem": Option(
            _command.one_of([*PROBLEMS]), f"one of {', '.join(PROBLEMS)}", metavar="NAME"
        ),
        "methods": _command.methods_option(list(METHODS), "; stl, the baseline, is always run"),
    },
    curves=frozenset({"losses", "task_weights", "test_by_seed"}),
    epilog=described(METHODS),
    check=_comparison.check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
