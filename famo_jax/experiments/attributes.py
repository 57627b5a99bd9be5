"""Methods on forty attributes of a picture: ``python -m famo_jax.experiments.attributes``.

The problem is that of :mod:`famo_jax.experiments.problems.attributes`, and how methods are trained,
chosen and compared stands in ``_comparison``.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import attributes, digits


def draw(summary: Any) -> Any:
    """Each attribute's change over its base rate, and delta m."""

    def label(axes: Any) -> None:
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.03, 0.1, 0.3, 0.9], ["1%", "3%", "10%", "30%", "90%"])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("how many pictures have the attribute")

    rates = list(summary["problem"]["base_rates"].values())
    return _comparison.draw_overview(summary, rates, label, "error of each attribute")


def facts() -> dict[str, Any]:
    """Of the data."""
    rates = attributes.load_base_rates()
    return {
        "pictures_held_out": attributes.HELD_OUT,
        "noise": digits.NOISE,
        "base_rates": dict(zip(attributes.ATTRIBUTES, rates, strict=True)),
    }


STUDY = _comparison.study(
    name="attributes",
    title="Multi-task methods on forty attributes of overlapping handwritten digits",
    seconds=242,
    problem=attributes.PROBLEM,
    full="--steps 400 --seeds 10 --batch-size 256 --learning-rate 1e-2 3e-2 1e-1 "
    "--gamma 0 1e-4 1e-3 --methods stl ls si frozen rlw dwa uw " + _comparison.FORMS,
    quick="--steps 100 " + _comparison.QUICK,
    pictures={"attributes.png": draw},
    facts=facts,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
