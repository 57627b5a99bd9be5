"""Methods on eleven properties of molecules: ``python -m famo_jax.experiments.regression``.

The problem is that of :mod:`famo_jax.experiments.problems.molecules`, and how methods are trained,
chosen and compared stands in ``_comparison``.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import molecules


def draw(summary: Any) -> Any:
    """Each property's change, from the smallest spread to the greatest, and delta m."""
    names = [task["name"].replace(" ", "\n") for task in summary["tasks"]]
    label = lambda axes: axes.set_xticks(range(molecules.K), names)
    title = "each property's error"
    return _comparison.draw_overview(summary, range(molecules.K), label, title)


STUDY = _comparison.study(
    name="regression",
    title="Multi-task methods on eleven properties of small molecules",
    seconds=178,
    problem=molecules.PROBLEM,
    full="--steps 3000 --seeds 10 --batch-size 64 --learning-rate 3e-3 1e-2 3e-2 1e-1 "
    "--gamma 0 1e-3 1e-2 1e-1 --methods stl ls si frozen rlw dwa uw " + _comparison.FORMS,
    quick="--steps 200 " + _comparison.QUICK,
    pictures={"regression.png": draw},
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
