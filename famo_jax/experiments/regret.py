"""Which method one need not think about: ``python -m famo_jax.experiments.regret``.

Regret is how far a method's mean delta m is from the least of any method on the same problem in the
same units. Nothing is trained here: the figures are those that other studies left, and methods are
judged that all of them ran. The method to take unseen is the one whose worst regret is least.
Beside it stands what learned weights gain on the best fixed ones, problem by problem.
"""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _command, _comparison, _files, _plots, _tables
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments._study import Option, Study, Summary

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

STUDIES = ("digits", "regression", "attributes", "conflicts")
UNITS = ("natural", "standardised")  # which fair units leave to one column
LEARNED = ("uw", "famo", "famo-ema-no-c", "nash-slope", "nash-mtl")  # whose gains are shown


def path_of(folder: Path, name: str) -> Path:
    """Where a study's figures are: in a folder of its own, as it writes them, or beside others'."""
    own = folder / name / f"{name}.json"
    return own if own.exists() else folder / f"{name}.json"


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses a folder that lacks a study's figures."""
    for name in [] if options.source else options.studies:
        path = path_of(Path(options.runs), name)
        if not path.is_file():
            parser.error(
                f"argument --runs: expected {path}, which python -m famo_jax.experiments.{name} "
                "writes"
            )


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Reads delta m of each method in each column of each study, and gains on fixed weights."""
    tell = session.row("reading")
    tell("figures")
    found: dict[str, dict[str, float]] = {}
    gains: dict[str, Any] = {}
    steps: dict[str, dict[str, float]] = {}  # where networks are large enough to tell
    for name in options.studies:
        summary = _files.read_summary(path_of(Path(options.runs), name))["summary"]
        if name != "conflicts":
            first = next(iter(summary["columns"].values()))["methods"]
            steps[name] = {
                each: own.get("step_relative_to_ls", np.nan) for each, own in first.items()
            }
        for label, column in summary["columns"].items():
            methods = {each: own["delta_m"]["mean"] for each, own in column["methods"].items()}
            found[f"{name}, {label}"] = methods
            certain = _comparison.stars(column["methods"], _comparison.MAIN)
            gains[f"{name}, {label}"] = {"fixed": column["fixed"]} | {
                each: column["methods"][each]["gain"] | {"certain": each in certain}
                for each in LEARNED
                if "gain" in column["methods"].get(each, {})
            }
    tell("done")
    return Runs({"arms": {}, "delta_m": found, "gains": gains, "steps": steps}, {})


def summarize(runs: Runs) -> dict[str, Any]:
    """Of each method its regrets, their worst and their median."""
    columns = runs.facts["delta_m"]
    common = set.intersection(*map(set, columns.values())) - {"stl"}
    names = [name for name in METHODS if name in common]
    rows = [[column[name] for column in columns.values()] for name in names]
    values = np.array(rows, np.float64)  # None is NaN
    values = np.where(np.isfinite(values), values, np.inf)  # what diverged
    regrets = values - values.min(axis=0)
    order = np.argsort(regrets.max(axis=1), kind="stable")
    own = [[step.get(name, np.nan) for step in runs.facts["steps"].values()] for name in names]
    steps = np.median(np.array(own, np.float64), axis=1)
    return {
        "columns": list(columns),
        "best": [names[index] for index in values.argmin(axis=0)],
        "methods": {
            names[index]: {
                "regrets": regrets[index],
                "worst": regrets[index].max(),
                "median": np.median(regrets[index]),
                "step": steps[index],
            }
            for index in order
        },
        "gains": runs.facts["gains"],
    }


def tables(summary: Summary) -> list[Any]:
    """Worst and median regret, and the regret in every column."""
    headers = ["\n".join(_brief(column, 4)) for column in summary["columns"]]
    table = _tables.new(None, ["method"], ["worst\n", "med-\nian", *headers])
    for name, each in summary["methods"].items():
        cells = [each["worst"], each["median"], *each["regrets"]]
        table.add_row(name, *("-" if np.isnan(cell) else f"{cell:.0f}" for cell in cells))
    best = dict.fromkeys(summary["best"])
    title = "Learned weights over the best fixed ones: Δm, 95% intervals"
    headers = ["best\nfixed", *(name.replace("-", "\n", 1) for name in LEARNED)]
    gains = _tables.new(title, ["problem"], headers)
    for column, own in summary["gains"].items():
        shown = (
            _tables.in_points(own[name]) + "*" * bool(own[name]["certain"]) if name in own else ""
            for name in LEARNED
        )
        gains.add_row(" ".join(_brief(column, 10)), own["fixed"], *shown)
    return [
        table,
        gains,
        "Regret: Δm, in percentage points, above that of the best of these methods in the same "
        f"column; the least worst regret first. Best in some column: {', '.join(best)}. Fixed "
        "weights: which of ls, si, frozen and first-loss validation chose. *: p < 0.05 for the "
        "difference, paired by seed, by Holm's correction for the methods of a study.",
    ]


def _brief(column: str, letters: int) -> tuple[str, str]:
    """Problem and units, in at most so many letters."""
    study, _, label = column.partition(", ")
    words = {"digits": "digits", "regression": "molecules", "attributes": "attributes"}
    unit = {"natural": "nat", "standardised": "std"}.get(label, "")
    return words.get(study, label)[: letters - bool(unit)], unit


def draw(summary: Summary) -> Any:
    """Of each method a dot for each column and a bar up to the worst; and what it costs."""
    with _plots.picture(height=0.27 * len(summary["methods"]) + 1.1) as figure:
        axes, cost = figure.subplots(1, 2, width_ratios=(1.4, 1))
        _draw_cost(cost, summary["methods"])
        kinds = list(dict.fromkeys(map(_kind, summary["columns"])))
        colours = dict(zip(kinds, ("#d55e00", "#0072b2", "#009e73"), strict=False))
        for place, each in enumerate(summary["methods"].values()):
            axes.plot([0, each["worst"]], [place, place], color=_plots.PALE, linewidth=4, zorder=1)
            for column, regret in zip(summary["columns"], each["regrets"], strict=True):
                kind = _kind(column)
                axes.plot(regret, place, "o", color=colours[kind], markersize=4, alpha=0.8)
        for kind in kinds:
            axes.plot([], [], "o", color=colours[kind], markersize=4, label=kind)
        axes.set_yticks(range(len(summary["methods"])), list(summary["methods"]))
        axes.set_ylim(len(summary["methods"]) - 0.5, -0.5)
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(-0.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.set_xlabel("Δm (percentage points) above the best of a problem")
        axes.set_title("Regret: a dot a problem, a bar up to the worst")
        figure.legend(loc="outside upper left", ncols=len(kinds))
    return figure


def _draw_cost(axes: Any, methods: Mapping[str, Any]) -> None:
    """Median regret over the time of a step."""
    shown = {name: each for name, each in methods.items() if np.isfinite(each["step"])}
    most = max((each["median"] for each in shown.values()), default=1)
    places = _plots.apart({name: each["median"] for name, each in shown.items()}, most / 20)
    for name, place in places.items():
        each, colour = shown[name], METHODS[name].colour
        axes.plot(each["step"], each["median"], "o", color=colour, markersize=5)
        axes.annotate(name, (each["step"], place), xytext=(5, 0), textcoords="offset points",
                      color=colour, va="center")  # fmt: skip
    axes.set(xscale="log", ylim=(-most / 30, 1.1 * most + 1))
    axes.margins(x=0.25)
    _plots.plain_numbers(axes.xaxis)
    axes.set_xlabel("time of a step over that of ls")
    axes.set_title("Median regret (points) over cost")


def _kind(column: str) -> str:
    label = column.partition(", ")[2]
    return f"{label} units" if label in UNITS else "no units to choose"


STUDY = Study(
    name="regret",
    title="Which method one need not think about, from the figures of other studies",
    seconds=5,
    full="--runs results --studies " + " ".join(STUDIES),
    quick="",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"regret.png": draw},
    options={
        "runs": Option(str, "the folder of the studies' figures", metavar="FOLDER"),
        "studies": Option(
            _command.one_of(STUDIES), "whose figures are read", several=True, metavar="NAME"
        ),
    },
    saves=False,
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
