"""Methods on overlapping handwritten digits: ``python -m famo_jax.experiments.digits``.

The problem is that of :mod:`famo_jax.experiments.problems.digits`, and how methods are trained,
chosen on the validation digits and compared on the test digits stands in ``_comparison``.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import digits


def draw(summary: Any) -> Any:
    """Each task's loss over the steps, the task weights, and delta m of every method."""
    from famo_jax.experiments import _plots

    figure: Any
    with _plots.picture(height=5.2) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        panels = above.subplots(1, digits.K)
        for task, axes in enumerate(panels):
            _comparison.draw_losses(axes, summary, task, labelled=task == digits.K - 1)
        left, right = below.subplots(1, 2)
        _comparison.draw_task_weights(left, summary, labelled=True)
        _comparison.draw_delta_m(right, summary)
    return figure


def facts() -> dict[str, Any]:
    """Of the data."""
    splits = digits.load_splits()._asdict()
    return {
        "sources": {name: len(split.labels) for name, split in splits.items()},
        "pictures_held_out": digits.HELD_OUT,
        "noise": digits.NOISE,
    }


FULL = {
    "steps": 1500,
    "seeds": 5,
    "batch_size": 64,
    "methods": [
        *("stl", "ls", "si", "frozen"),
        *("famo", "famo-no-c", "famo-one-pass", "famo-one-pass-no-c"),
        *("famo-ema", "famo-ema-no-c"),
    ],
    "learning_rate": [1e-3, 3e-3, 1e-2],
    "gamma": [0.0, 1e-3, 1e-2, 1e-1],
}
STUDY = _comparison.study(
    name="digits",
    title="Multi-task methods on overlapping handwritten digits",
    seconds=122,
    problem=digits.PROBLEM,
    full=FULL,
    quick={"steps": 200, "seeds": 2, "learning_rate": [3e-3], "gamma": [1e-3]},
    draw=draw,
    facts=facts,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
