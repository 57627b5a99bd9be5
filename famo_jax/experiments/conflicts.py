"""Where weights might matter in fair units: ``python -m famo_jax.experiments.conflicts``.

The problems are those of :mod:`famo_jax.experiments.problems.conflicts`, a column each. How methods
are trained, chosen and compared stands in ``_comparison``.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import conflicts


def draw(summary: Any) -> Any:
    """Each task's change, and delta m, problem by problem."""
    names = [str(k) for k in range(1, conflicts.K + 1)]

    def label(axes: Any) -> None:
        axes.set_xticks(range(conflicts.K), names)
        axes.set_xlabel("task")

    return _comparison.draw(summary, label)


STUDY = _comparison.study(
    name="conflicts",
    title="Multi-task methods where tasks conflict, differ, drift, start late or come rarely",
    seconds=720,
    problems=conflicts.PROBLEMS,
    full="--steps 1500 --seeds 10 --tuning-seeds 3 --batch-size 32 --learning-rate "
    "5e-3 2e-2 8e-2 --gamma 0 1e-3 1e-2",
    quick="--steps 100 " + _comparison.QUICK,
    pictures={"conflicts.png": draw},
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
