"""Methods on forty attributes of a picture: ``python -m famo_jax.experiments.attributes``.

The problem is that of :mod:`famo_jax.experiments.problems.attributes`, and how methods are trained,
chosen and compared stands in ``_comparison``. Here a method that needs a backward pass for each
task is dear: a step of these is timed, too.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import attributes, digits


def draw(summary: Any) -> Any:
    """Each attribute's change over its base rate, gamma, delta m."""
    from famo_jax.experiments import _plots

    figure: Any
    with _plots.picture(height=6.2) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.5))
        axes = above.subplots()
        rates = list(summary["problem"]["base_rates"].values())
        _comparison.draw_changes(axes, summary, rates)
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.03, 0.1, 0.3, 0.9], ["1%", "3%", "10%", "30%", "90%"])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("how many pictures have the attribute")
        axes.set_title("each attribute's error against single-task networks")
        left, right = below.subplots(1, 2)
        _comparison.draw_gamma(left, summary)
        _comparison.draw_delta_m(right, summary)
    return figure


def facts() -> dict[str, Any]:
    """Of the data."""
    rates = attributes.load_base_rates()
    return {
        "pictures_held_out": attributes.HELD_OUT,
        "noise": digits.NOISE,
        "base_rates": dict(zip(attributes.ATTRIBUTES, rates, strict=True)),
    }


FULL = {
    "steps": 400,
    "seeds": 10,
    "batch_size": 256,
    "methods": [
        *("stl", "ls", "si", "frozen", "rlw", "dwa", "uw"),
        *("famo", "famo-no-c", "famo-one-pass", "famo-one-pass-no-c"),
        *("famo-ema", "famo-ema-no-c"),
    ],
    "learning_rate": [1e-2, 3e-2, 1e-1],
    "gamma": [0.0, 1e-4, 1e-3],
}
STUDY = _comparison.study(
    name="attributes",
    title="Multi-task methods on forty attributes of overlapping handwritten digits",
    seconds=242,
    problem=attributes.PROBLEM,
    full=FULL,
    quick={
        "steps": 100,
        "seeds": 2,
        "methods": ["stl", "ls", "si", "frozen", "famo", "famo-one-pass"],
        "learning_rate": [1e-2],
        "gamma": [1e-3],
    },
    draw=draw,
    facts=facts,
    timed=("mgda", "pcgrad", "cagrad", "imtl-g", "graddrop", "nash-mtl"),
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
