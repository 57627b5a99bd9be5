r"""What forms of FAMO gain on the same with its logits frozen, in several *cells*.

A cell is a problem at a batch size. In each, validation chooses the learning rate of the controls,
and then the other settings of each form, which takes the rate of its control: it differs from that
in its logits alone, so that the rate favours the control if anything. All share seeds, so gains are
paired: differences of :math:`\Delta m`, which is against the mean of *si*, as ``frozen-no-c``.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from famo_jax.experiments import _comparison, _plots, _statistics
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments.problems._problem import Problem

if TYPE_CHECKING:
    from famo_jax.experiments import _train

SI = "frozen-no-c"


class Cell(NamedTuple):
    """What is trained on, and the settings of the forms to choose from."""

    name: str
    problem: Problem
    batch_size: int
    grid: Mapping[str, Sequence[float]]


class Seeds(NamedTuple):
    """All seeds of a run, and which of them choose and which report."""

    all: range
    tuning: slice = slice(None)
    reported: slice = slice(None)


def control_of(form: str) -> str:
    """The method that a form is beside its logits."""
    return SI if form == SI or METHODS[form].control == "si" else "frozen"


def plan(
    cells: Sequence[Cell], forms: Sequence[str], rates: Sequence[float], seeds: Seeds, **more: Any
) -> "_train.Plan":
    """Trains the controls at all rates, then the forms at the rate of theirs.

    Args:
      cells: Where.
      forms: Names in the table of methods.
      rates: Of the model.
      seeds: All, and which of them choose.
      **more: What the arms get besides: ``steps``, and functions of the cell and the method.
    """
    from famo_jax.experiments import _train

    steps = more.pop("steps")
    scale = 2 if more.get("halved") else 1
    data = {
        cell.name: cell.problem.load_data(steps, seeds.all, scale * cell.batch_size)
        for cell in cells
    }

    def arm(cell: Cell, name: str, grid: Mapping[str, Sequence[float]]) -> _train.Arm:
        method = METHODS[name]
        if method.control:
            method = method._replace(takes=tuple(each for each in grid if each != "learning_rate"))
        own = {key: value(cell, name) if callable(value) else value for key, value in more.items()}
        return _train.Arm(
            f"{cell.name} {name}", cell.problem, data[cell.name], steps, method,
            _comparison.settings_of(method, grid), seeds.all, settings_at_once=False, **own,
        )  # fmt: skip

    controls = sorted({SI, *map(control_of, forms)})
    pairs = itertools.product(cells, controls)
    done = yield [arm(cell, name, {"learning_rate": rates}) for cell, name in pairs]
    arms = []
    for cell, form in itertools.product(cells, forms):
        rate = rates[chosen_rate(done, cell.name, control_of(form), seeds)]
        arms.append(arm(cell, form, {**cell.grid, "learning_rate": [rate]}))
    yield arms


def metrics_of(arrays: Mapping[str, Any], cell: str, name: str, split: str) -> Array:
    """Of the K tasks, ``[settings, seeds, K]``, without what is measured besides."""
    values = _statistics.finite(arrays[f"{cell} {name}"][split])
    return values[..., : arrays[f"{cell} {name}"]["losses"].shape[-1]]


def chosen_rate(arrays: Mapping[str, Any], cell: str, control: str, seeds: Seeds) -> int:
    """Where the rate is that validation chooses for a control.

    What a mean over tasks of relative differences is against is *si* at its first rate.
    """
    found = metrics_of(arrays, cell, control, "validation")[:, seeds.tuning]
    first = metrics_of(arrays, cell, SI, "validation")[0, seeds.tuning].mean(axis=0)
    return _statistics.choose(_statistics.delta_m(found, first).mean(axis=-1))


class Scores(NamedTuple):
    """Delta m of all forms and controls in a cell; of these at the rate that was chosen."""

    settings: dict[str, list[dict[str, float]]]
    chosen: dict[str, int]
    test: dict[str, Array]  # [settings, seeds that report]

    def gain(self, form: str, index: int | None = None, other: str = "") -> dict[str, float]:
        """What a form, at what was chosen or another setting, is above another or its control."""
        other = other or control_of(form)
        own = self.test[form][self.chosen[form] if index is None else index]
        return _statistics.estimate(own - self.test[other][self.chosen[other]])


def scores(runs: Runs, cell: str, names: Sequence[str], seeds: Seeds) -> Scores:
    """Of these forms and controls, by choices on validation."""
    si = chosen_rate(runs.arrays, cell, SI, seeds)
    of = functools.partial(metrics_of, runs.arrays, cell)
    found = Scores({}, {}, {})
    for name in {SI: 0, **dict.fromkeys(names)}:

        def delta_m(split: str, which: slice, name: str = name) -> Array:
            baseline = of(SI, split)[si, which].mean(axis=0)
            return _statistics.delta_m(of(name, split)[:, which], baseline)

        validation = delta_m("validation", seeds.tuning).mean(axis=-1)
        found.settings[name] = runs.facts["arms"][f"{cell} {name}"]["settings"]
        found.chosen[name] = (
            _statistics.choose(validation) if METHODS[name].control
            else chosen_rate(runs.arrays, cell, name, seeds)
        )  # fmt: skip
        found.test[name] = delta_m("test", seeds.reported)
    return found


def draw_panels(
    figure: Any, rows: Sequence[Sequence[str]], series: Mapping[str, Any], values: Any, xlabel: str
) -> Iterator[Any]:
    """Panels of gains by name: at 0 is the control. Yields the axes, to add to them.

    Args:
      figure: What to draw on.
      rows: The names of the panels.
      series: By panel what :func:`_plots.over_values` draws.
      values: By panel those of the horizontal axis.
      xlabel: What they are.
    """
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for panels, names in zip(grid, rows, strict=True):
        for axes, name in zip(panels, names, strict=True):
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_yscale("symlog", linthresh=10)  # one that fails would squeeze the rest
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            last, below = name == names[-1], names == rows[-1]
            _plots.over_values(axes, values[name], series[name], xlabel if below else "", last)
            axes.set_title(name)
            yield axes
