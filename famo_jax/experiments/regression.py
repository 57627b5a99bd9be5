"""Methods on eleven properties of molecules: ``python -m famo_jax.experiments.regression``.

The problem is that of :mod:`famo_jax.experiments.problems.molecules`, in natural and standardised
units. How methods are trained, chosen and compared stands in ``_comparison``.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import molecules


def draw(summary: Any) -> Any:
    """Each property's change, from the smallest spread to the greatest, and delta m."""
    names = [task.name for task in molecules.TASKS]

    def label(axes: Any) -> None:
        axes.set_xticks(range(molecules.K), names, rotation=40, ha="right", fontsize=7)

    return _comparison.draw(summary, label)


STUDY = _comparison.study(
    name="regression",
    title="Multi-task methods on eleven properties of small molecules",
    seconds=230,
    problems={"natural": molecules.PROBLEM, "standardised": molecules.STANDARDISED},
    full="--steps 2000 --seeds 10 --tuning-seeds 2 --batch-size 64 --learning-rate "
    "4e-3 1.2e-2 4e-2 --gamma 0 1e-3 1e-2",
    quick="--steps 200 " + _comparison.QUICK,
    pictures={"regression.png": draw},
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
