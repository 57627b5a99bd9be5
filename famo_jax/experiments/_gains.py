r"""What forms of FAMO gain on the same with its logits frozen, in several *cells*.

A cell is a problem at a batch size. In each, validation chooses the learning rate of the controls,
and then the other settings of each form, which takes the rate of its control: it differs from that
in its logits alone, so that the rate favours the control if anything. All share seeds, so gains are
paired: differences of :math:`\Delta m`, which is against the mean of *si*, as ``frozen-no-c``.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from famo_jax.experiments import _comparison, _plots, _statistics
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments.problems._problem import Problem

if TYPE_CHECKING:
    from famo_jax.experiments import _train

SI = "frozen-no-c"
FIXED = "ls", "first-loss"  # weights that learn nothing either, at rates of their own
ALL = slice(None)


class Cell(NamedTuple):
    """What is trained on, and the settings of the forms to choose from."""

    name: str
    problem: Problem
    batch_size: int
    grid: Mapping[str, Sequence[float]]


def label_of(form: str) -> str:
    """Short, where it is said whether with c or without."""
    return form.removesuffix("-no-c").removeprefix("famo-").replace("famo", "two-pass")


def control_of(form: str) -> str:
    """The method that a form is beside its logits."""
    return SI if form == SI or METHODS[form].control == "si" else "frozen"


def plan(
    cells: Sequence[Cell],
    forms: Sequence[str],
    rates: Sequence[float],
    seeds: range,
    steps: int,
    tuning: slice = ALL,
    **of_controls: Any,
) -> "_train.Plan":
    """Trains controls and fixed weights at all rates of the model, then forms at their control's.

    Controls may be given a ``probe``, made of a cell's problem, and ``keep``: batches are halved.
    """
    from famo_jax.experiments import _train

    halved = bool(of_controls)
    data = {
        cell.name: cell.problem.load_data(steps, seeds, (1 + halved) * cell.batch_size)
        for cell in cells
    }

    def arm(cell: Cell, name: str, grid: Mapping[str, Sequence[float]]) -> _train.Arm:
        method, more = METHODS[name], {}
        if method.control:
            method = method._replace(takes=tuple(each for each in grid if each != "learning_rate"))
        elif halved and name not in FIXED:
            more = of_controls | {"probe": of_controls["probe"](cell.problem)}
        settings = _comparison.settings_of(method, grid)
        return _train.Arm(
            f"{cell.name} {name}", cell.problem, data[cell.name], steps, method, settings, seeds,
            settings_at_once=False, halved=halved, **more,
        )  # fmt: skip

    pairs = itertools.product(cells, sorted({SI, *FIXED, *map(control_of, forms)}))
    done = yield [arm(cell, name, {"learning_rate": rates}) for cell, name in pairs]
    arms = []
    for cell, form in itertools.product(cells, forms):
        rate = rates[chosen_rate(done, cell.name, control_of(form), tuning)]
        arms.append(arm(cell, form, {**cell.grid, "learning_rate": [rate]}))
    yield arms


def metrics_of(arrays: Mapping[str, Any], cell: str, name: str, split: str) -> Array:
    """Of the K tasks, ``[settings, seeds, K]``, without what is measured besides."""
    own = arrays[f"{cell} {name}"]
    return _statistics.finite(own[split])[..., : own["losses"].shape[-1]]


def chosen_rate(arrays: Mapping[str, Any], cell: str, control: str, tuning: slice) -> int:
    """Where the rate is that validation chooses for a control, against *si* at its first rate."""
    found = metrics_of(arrays, cell, control, "validation")[:, tuning]
    first = metrics_of(arrays, cell, SI, "validation")[0, tuning].mean(axis=0)
    return _statistics.choose(_statistics.delta_m(found, first).mean(axis=-1))


class Scores(NamedTuple):
    """Delta m of all forms and controls in a cell; of these at the rate that was chosen."""

    settings: dict[str, list[dict[str, float]]]
    chosen: dict[str, int]
    test: dict[str, Array]  # [settings, seeds that report]

    def gain(self, form: str, index: int | None = None, other: str = "") -> dict[str, float]:
        """What a form is above its control, or another: its setting, the mean, its interval."""
        index, other = self.chosen[form] if index is None else index, other or control_of(form)
        gains = self.test[form][index] - self.test[other][self.chosen[other]]
        return self.settings[form][index] | _statistics.estimate(gains)


def scores(
    runs: Runs, cell: str, forms: Sequence[str], tuning: slice = ALL, reported: slice = ALL
) -> Scores:
    """Of these forms and their controls, by choices on validation."""
    si = chosen_rate(runs.arrays, cell, SI, tuning)
    found = Scores({}, {}, {})
    for name in {SI, *FIXED, *map(control_of, forms), *forms}:
        validation, test = (
            _statistics.delta_m(
                metrics_of(runs.arrays, cell, name, split)[:, which],
                metrics_of(runs.arrays, cell, SI, split)[si, which].mean(axis=0),
            )
            for split, which in (("validation", tuning), ("test", reported))
        )
        own = _statistics.choose(validation.mean(axis=-1))
        is_form = METHODS[name].control
        found.chosen[name] = own if is_form else chosen_rate(runs.arrays, cell, name, tuning)
        found.settings[name] = runs.facts["arms"][f"{cell} {name}"]["settings"]
        found.test[name] = test
    return found


def draw(
    rows: Sequence[Sequence[str]],
    series: Mapping[str, Any],
    values: Mapping[str, Sequence[Any]],
    xlabel: str,
) -> Any:
    """Panels by name of gains over values, as :func:`_plots.over_values` takes them."""
    with _plots.picture(height=2.4 * len(rows)) as figure:
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for panels, names in zip(grid, rows, strict=True):
            for axes, name in zip(panels, names, strict=True):
                axes.axhline(0, color="black", linewidth=0.8)
                ends = [abs(each["mean"]) for own, _ in series[name].values() for each in own]
                if max(ends) > 40:  # one that fails would squeeze the rest
                    axes.set_yscale("symlog", linthresh=10)
                    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                label, last = xlabel if names == rows[-1] else "", name == names[-1]
                _plots.over_values(axes, values[name], series[name], label, labelled=last)
                axes.set_title(name)
        grid[0][0].set_ylabel("Δm (%) over the control's", loc="top")
    return figure
