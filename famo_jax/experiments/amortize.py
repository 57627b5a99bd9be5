"""How much a method's own rate matters: ``python -m famo_jax.experiments.amortize``.

FAMO leaves its decay gamma open; amortized Nash-MTL has no gamma, but logits that move at a rate.
On the overlapping digits in their natural units each is trained at five values of what it leaves
open, by batch size. The model's learning rate is chosen for each on validation, at the middle value
and by seeds of their own. The figure is delta m against weights of 1 / first loss held fixed, which
learn nothing, at their best rate; below 0 learning gains something, and the flatter the better.
"""

import argparse
import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _command, _comparison, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments._study import Study, Summary
from famo_jax.experiments.problems import digits

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

CONTROL = "first-loss"
OPEN = {  # what each leaves open
    "famo-ema-no-c": "gamma",
    "famo-no-c": "gamma",
    "amortized-nash-mtl": "logits_rate",
    "nash-slope": "logits_rate",
}


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold, and values that do not pair up."""
    _comparison.check_rows(parser, options.steps * options.seeds * max(options.batch_size))
    _comparison.check_even(parser, options)


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Chooses the model's rates, then trains at all values of what is left open."""
    from famo_jax.experiments import _train

    choosing = range(_comparison.TUNING, _comparison.TUNING + options.tuning_seeds)
    reporting = range(options.seeds)
    pairs = list(itertools.product(options.batch_size, (CONTROL, *OPEN)))
    load = functools.cache(digits.PROBLEM.load_data)

    def arm(size: int, name: str, grid: Mapping[str, Any], seeds: range, label: str) -> _train.Arm:
        method = METHODS[name]
        settings = _comparison.settings_of(method, grid)
        data = load(options.steps, seeds, size)
        return _train.Arm(f"{size} {name}{label}", digits.PROBLEM, data, options.steps, method,
                          settings, seeds)  # fmt: skip

    def plan() -> _train.Plan:
        values: dict[str, list[float]] = {own: getattr(options, own) for own in set(OPEN.values())}
        middle = {own: [sorted(each)[len(each) // 2]] for own, each in values.items()}
        rates = {"learning_rate": options.learning_rate}
        done = yield [arm(*pair, middle | rates, choosing, " choosing") for pair in pairs]
        arms = []
        for size, name in pairs:
            found = [options.learning_rate[_best(done, size, name)]]
            arms.append(arm(size, name, values | {"learning_rate": found}, reporting, ""))
        yield arms

    return _train.run(plan(), session)


def _best(arrays: Mapping[str, Mapping[str, Any]], size: int, name: str) -> int:
    """Which rate is best on validation, against the control's at its first rate."""
    first = _statistics.finite(arrays[f"{size} {CONTROL} choosing"]["validation"])[0].mean(axis=0)
    own = _statistics.finite(arrays[f"{size} {name} choosing"]["validation"])
    return _statistics.choose(_statistics.delta_m(own, first).mean(axis=-1))


def summarize(runs: Runs) -> dict[str, Any]:
    """By batch size and method: delta m against the control at every value."""
    settings = runs.facts["settings"]

    def figures(size: int, name: str) -> dict[str, Any]:
        control = _statistics.finite(runs.arrays[f"{size} {CONTROL}"]["test"][0])
        tests = _statistics.finite(runs.arrays[f"{size} {name}"]["test"])  # [values, seeds, K]
        gains: Array = _statistics.delta_m(tests, control.mean(axis=0))
        gains = gains - _statistics.delta_m(control, control.mean(axis=0))
        estimates = list(map(_statistics.estimate, gains))
        means = [each["mean"] for each in estimates]
        arms = runs.facts["arms"][f"{size} {name}"]["settings"]
        return {
            "values": [each[OPEN[name]] for each in arms],
            "learning_rate": arms[0]["learning_rate"],
            "gains": estimates,
            "range": np.ptp(means),
        }

    sizes = settings["batch_size"]
    return {"batches": {str(size): {name: figures(size, name) for name in OPEN} for size in sizes}}


def tables(summary: Summary) -> list[Any]:
    """A row for each batch size and method."""
    first = next(iter(summary["batches"].values()))
    count = len(next(iter(first.values()))["values"])
    headers = [*(f"value {place}" for place in range(1, count + 1)), "range"]
    table = _tables.new(None, ["batch", "method"], headers)
    for size, methods in summary["batches"].items():
        for name, each in methods.items():
            cells = map(_tables.with_interval, each["gains"])
            label = "" if name != next(iter(methods)) else size
            short = name.replace("amortized-nash-mtl", "nash-one-pass")
            table.add_row(label, short, *cells, f"{each['range']:.0f}")
    told = {own: first[name]["values"] for name, own in OPEN.items()}
    values = "; ".join(
        f"of {own.replace('_', ' ')} {', '.join(f'{value:g}' for value in each)}"
        for own, each in told.items()
    )
    return [
        table,
        "Δm (%) against weights of 1 / first loss held fixed, lower is better; ± by 95% intervals, "
        f"paired by seed. Values: {values}. Range: the greatest less the least.",
    ]


def draw(summary: Summary) -> Any:
    """A panel for each batch size, a line for each method."""
    with _plots.picture(height=2.8) as figure:
        panels = figure.subplots(1, len(summary["batches"]), squeeze=False, sharey=True)[0]
        for axes, (size, methods) in zip(panels, summary["batches"].items(), strict=True):
            values = {own: methods[name]["values"] for name, own in OPEN.items()}
            pairs = zip(*values.values(), strict=True)
            labels = ["\n".join(f"{value:g}" for value in pair) for pair in pairs]
            series = {name: (each["gains"], METHODS[name].colour) for name, each in methods.items()}
            axes.axhline(0, color="black", linewidth=0.8)
            told = "gamma of FAMO, above\nrate of Nash-MTL, below"
            _plots.over_values(axes, labels, series, told, labelled=axes is panels[-1])
            axes.set_title(f"batches of {size}")
        panels[0].set_ylabel("Δm (%) over 1 / first loss")
    return figure


STUDY = Study(
    name="amortize",
    title="How much FAMO's gamma and the rate of amortized Nash-MTL matter",
    seconds=420,
    full="--steps 1500 --seeds 8 --tuning-seeds 2 --batch-size 8 64 256 "
    "--learning-rate 1.5e-3 5e-3 --gamma 0 1e-4 1e-3 1e-2 1e-1 "
    "--logits-rate 1e-3 3e-3 1e-2 3e-2 1e-1",
    quick="--steps 60 --seeds 2 --tuning-seeds 1 --batch-size 16 --learning-rate 5e-3 "
    "--gamma 0 1e-2 --logits-rate 1e-3 1e-2",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"amortize.png": draw},
    options={"batch_size": _command.OPTIONS["batch_size"]._replace(several=True)},
    check=check,
)

main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
