"""Methods on forty attributes of a picture: ``python -m famo_jax.experiments.attributes``.

The problem is that of :mod:`famo_jax.experiments.problems.attributes`: cross-entropies, which have
no units to be chosen. How methods are trained, chosen and compared stands in ``_comparison``.
"""

import functools
from typing import Any

import numpy as np

from famo_jax.experiments import _command, _comparison
from famo_jax.experiments.problems import attributes


def draw(summary: Any) -> Any:
    """Each attribute's change over its base rate, and delta m."""
    rates = list(summary["problem"]["base_rates"].values())
    order = np.argsort(rates)
    shown = [0, 3, 12, 24, 30, 36, 39]

    def label(axes: Any) -> None:
        axes.set_xticks(shown, [f"{100 * rates[order[place]]:.0f}%" for place in shown])
        axes.set_xlabel("attributes, by how many pictures have them")

    return _comparison.draw(summary, label, order.tolist())


def facts() -> dict[str, Any]:
    """Of the data."""
    rates = attributes.load_base_rates(0)
    return {"base_rates": dict(zip(attributes.ATTRIBUTES, rates, strict=True))}


STUDY = _comparison.study(
    name="attributes",
    title="Multi-task methods on forty attributes of overlapping handwritten digits",
    seconds=320,
    problems={"cross-entropies": attributes.PROBLEM},
    full="--steps 400 --seeds 8 --tuning-seeds 2 --batch-size 256 --learning-rate "
    "1e-2 3e-2 1e-1 --gamma 0 1e-4 1e-3",
    quick="--steps 100 " + _comparison.QUICK,
    pictures={"attributes.png": draw},
    facts=facts,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
