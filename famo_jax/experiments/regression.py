"""Methods on eleven properties of molecules: ``python -m famo_jax.experiments.regression``.

The problem is that of :mod:`famo_jax.experiments.problems.molecules`, and how methods are trained,
chosen and compared stands in ``_comparison``.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import molecules


def draw(summary: Any) -> Any:
    """Each task's change against single-task learning, the task weights, gamma, delta m."""
    from famo_jax.experiments import _plots

    figure: Any
    with _plots.picture(height=6.2) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.5))
        axes = above.subplots()
        _comparison.draw_changes(axes, summary, range(molecules.K))
        names = [task["name"].replace(" ", "\n") for task in summary["tasks"]]
        axes.set_xticks(range(molecules.K), names)
        axes.set_title("each property against single-task networks, from the smallest spread")
        left, right = below.subplots(1, 2)
        _comparison.draw_gamma(left, summary)
        _comparison.draw_delta_m(right, summary)
    return figure


def facts() -> dict[str, Any]:
    """Of the data."""
    splits = molecules.load_splits()
    spread = splits.train.properties.std(axis=0)
    return {
        "molecules": {name: len(split.counts) for name, split in splits._asdict().items()},
        "spread": dict(zip((task.name for task in molecules.TASKS), spread, strict=True)),
    }


FULL = {
    "steps": 3000,
    "seeds": 10,
    "batch_size": 64,
    "methods": [
        *("stl", "ls", "si", "frozen", "rlw", "dwa", "uw"),
        *("famo", "famo-no-c", "famo-one-pass", "famo-one-pass-no-c"),
        *("famo-ema", "famo-ema-no-c"),
    ],
    "learning_rate": [3e-3, 1e-2, 3e-2, 1e-1],
    "gamma": [0.0, 1e-3, 1e-2, 1e-1],
}
STUDY = _comparison.study(
    name="regression",
    title="Multi-task methods on eleven properties of small molecules",
    seconds=178,
    problem=molecules.PROBLEM,
    full=FULL,
    quick={
        "steps": 200,
        "seeds": 2,
        "methods": ["stl", "ls", "si", "frozen", "famo", "famo-one-pass"],
        "learning_rate": [1e-2],
        "gamma": [1e-3],
    },
    draw=draw,
    facts=facts,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
