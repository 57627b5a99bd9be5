r"""A study that compares methods on one problem.

Each method is trained at every setting of its hyperparameters. The setting with the least mean
:math:`\Delta m` on validation is kept, and only settings that validation chose meet the test.
:math:`\Delta m` is against the mean of single-task learning, which is always run.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _command, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import CONTROLS, METHODS, Method, described
from famo_jax.experiments._study import Study, Summary
from famo_jax.experiments.problems._problem import Problem, Task

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

MAX_ROWS = 2**24  # some 200 bytes each
LOGITS_RATE = 0.005  # of amortized Nash-MTL, where a study does not choose it
OWN = "gamma", "logits_rate"  # of methods with logits
FEW = 4  # more tasks than that do not fit into 80 columns
FORMS = "famo famo-no-c famo-one-pass famo-one-pass-no-c famo-ema famo-ema-no-c"
QUICK = "--seeds 2 --methods stl ls si frozen famo famo-one-pass --learning-rate 1e-2 --gamma 1e-3"


def study(
    problem: Problem, full: str, facts: Callable[[], Mapping[str, Any]] = dict, **about: Any
) -> Study:
    """A comparison of methods on a problem, with facts of its data."""
    words = "; stl, the baseline, is always run"
    return Study(
        full=f"--first-seed 0 {full}",
        run=functools.partial(run, problem, facts),
        summarize=functools.partial(summarize, problem.tasks),
        tables=tables,
        options={"methods": _command.methods_option(list(METHODS), words)},
        curves=frozenset({"losses", "task_weights", "test_by_seed"}),
        epilog=described(METHODS),
        check=check,
        **about,
    )


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold, and adds the baseline."""
    check_rows(parser, options.steps * options.seeds * options.batch_size)
    options.methods = [name for name in METHODS if name in {"stl", *options.methods}]


def check_rows(parser: argparse.ArgumentParser, rows: int) -> None:
    """Refuses batches that memory would not hold."""
    if rows > MAX_ROWS:
        parser.error(
            "argument --steps: expected steps x seeds x batch size of at most "
            f"{MAX_ROWS:,}, which are held in memory, got {rows:,}"
        )


def settings_of(method: Method, grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All settings of a method, the model's learning rate moving first."""
    names = [*method.takes, "learning_rate"]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(grid[name] for name in names))
    ]


def evenly(method: Method, grid: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """The grid in which a method without hyperparameters has as many settings as the others.

    It is chosen from learning rates that lie as much closer to each other.
    """
    rates = grid["learning_rate"]
    if method.takes or len(rates) == 1:
        return grid
    finer = np.geomspace(min(rates), max(rates), len(rates) * len(grid["gamma"]))
    return {**grid, "learning_rate": finer.tolist()}


def run(
    problem: Problem,
    facts: Callable[[], Mapping[str, Any]],
    options: argparse.Namespace,
    session: "Session",
    even: bool = False,
    **of_arms: Any,
) -> Runs:
    """Trains every method at all its settings, the same number of each method if ``even``."""
    from famo_jax.experiments import _train

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    own = {"logits_rate": [LOGITS_RATE], "task": range(len(problem.tasks))}
    grid = own | vars(options)

    def arm(name: str, data: Any) -> _train.Arm:
        method = METHODS[name]
        settings = settings_of(method, evenly(method, grid) if even else grid)
        return _train.Arm(name, problem, data, options.steps, method, settings, seeds, **of_arms)

    def plan() -> _train.Plan:
        data = problem.load_data(options.steps, seeds, options.batch_size)
        yield [arm(name, data) for name in METHODS if name in options.methods]

    runs = _train.run(plan(), session, timed=".*", rounds=5 if options.quick else 25)
    return runs._replace(facts=runs.facts | {"problem": dict(facts())})


def summarize(tasks: Sequence[Task], runs: Runs) -> dict[str, Any]:
    """The figures of each method. Methods share seeds, so differences between two are paired."""
    options, arms, times = (runs.facts[key] for key in ("settings", "arms", "times"))
    names = [task.name for task in tasks]
    higher = np.array([task.higher_is_better for task in tasks])
    delta_m = functools.partial(_statistics.delta_m, higher_is_better=higher)
    chosen = choices(tasks, runs)
    tests = {name: of_chosen(runs, chosen, name, "test") for name in arms}
    baseline = tests["stl"].mean(axis=0)
    by_seed = {name: delta_m(test, baseline) for name, test in tests.items()}
    means = {name: test.mean(axis=0) for name, test in tests.items()}
    ranks = _statistics.mean_ranks(np.stack(list(means.values())), higher)

    def figures(name: str, rank: float) -> dict[str, Any]:
        own, settings = runs.arrays[name], [arms[name]["settings"][at] for at in chosen[name]]
        first, setting = chosen[name][0], settings[0]
        changes = _statistics.changes(means[name], baseline, higher)
        found: dict[str, Any] = {
            "test": dict(zip(names, means[name], strict=True)) if len(names) <= FEW else {},
            "change": dict(zip(names, changes, strict=True)),
            "delta_m": _statistics.estimate(by_seed[name]),
            "mean_rank": rank,
            "learning_rate": [each["learning_rate"] for each in settings],
            "edges": _statistics.edges(settings, options),
            "against": {
                other: _statistics.estimate(by_seed[name] - by_seed[other])
                for other in opponents(name)
                if other in by_seed and other != name
            },
            "delta_m_by_seed": by_seed[name],
            "test_by_seed": tests[name],
            "losses": own["losses"][first].mean(axis=0),
        }
        networks = len(settings)  # single-task learning steps K where the others step one
        if name == "stl":
            found["losses"] = own["losses"][chosen[name]].mean(axis=1)[..., 0].T
        if "ls" in times:
            found["step_relative_to_ls"] = networks * times[name]["median"] / times["ls"]["median"]
        if METHODS[name].has_logits:
            ranges = own["logit_range"][first].mean(axis=0)
            found["logit_range"] = dict(zip(("end", "most", "mean"), ranges, strict=True))
            found["task_weights"] = own["task_weights"][first].mean(axis=0)
        return found | {key: setting[key] for key in OWN if key in setting}

    by_name = {name: figures(name, rank) for name, rank in zip(means, ranks, strict=True)}
    return {
        "tasks": [task._asdict() for task in tasks],
        "steps": options["steps"],
        "problem": runs.facts["problem"],
        "methods": {name: by_name[name] for name in METHODS if name in by_name},
    }


def choices(tasks: Sequence[Task], runs: Runs) -> dict[str, list[int]]:
    """The setting of each method that validation chooses; of single-task learning one a task.

    That is what is best for the task's own metric.
    """
    k, chosen = len(tasks), {}
    higher = np.array([task.higher_is_better for task in tasks])
    means = {
        name: _statistics.finite(own["validation"]).mean(axis=1)
        for name, own in runs.arrays.items()
    }
    single = means["stl"].reshape(k, -1, k)  # [K, rates, K]: tasks are the slower of its settings
    best = [
        _statistics.choose(np.where(higher[task], -1, 1) * single[task, :, task])
        for task in range(k)
    ]
    baseline = np.array([single[task, rate, task] for task, rate in enumerate(best)])
    for name, validation in means.items():
        chosen[name] = [_statistics.choose(_statistics.delta_m(validation, baseline, higher))]
    return chosen | {"stl": [task * single.shape[1] + rate for task, rate in enumerate(best)]}


def of_chosen(runs: Runs, chosen: Mapping[str, Sequence[int]], name: str, field: str) -> Array:
    """What a method's chosen setting has brought: of each seed and task, ``[seeds, K]``."""
    found = _statistics.finite(runs.arrays[name][field][chosen[name]])
    return np.diagonal(found, axis1=0, axis2=2) if len(found) > 1 else found[0]


def opponents(name: str) -> tuple[str, ...]:
    """What a method is compared with: of the forms of FAMO those with the same c."""
    c = "-no-c" if name.endswith("-no-c") else ""
    return ("ls", *CONTROLS, "first-loss", "uw", f"famo{c}", f"famo-one-pass{c}")


def tables(summary: Summary) -> list[Any]:
    """The methods, each task or how they are spread; and the differences of FAMO's forms."""
    tasks, methods = summary["tasks"], summary["methods"]
    few = len(tasks) <= FEW
    both = any("logits_rate" in each for each in methods.values())
    own = "gamma\nor ξ\nrate" if both else "gamma"
    headers = [task["metric"].replace(" ", "\n") for task in tasks]
    headers = headers if few else ["worst\ntask\n(%)", f"better\nof {len(tasks)}", "logit\nrange"]
    headers += ["Δm\n± s.e.\n(%)", "mean\nrank", "learn.\nrate", own, "step\n/ ls"]
    table = _tables.new(None, ["method"], headers)
    for name, figures in methods.items():
        rate, changes = figures["learning_rate"], list(figures["change"].values())
        each = [f"{figures['test'][task['name']]:.{task['decimals']}f}" for task in tasks if few]
        drift = f"{figures['logit_range']['end']:.2f}" if "logit_range" in figures else ""
        spread = [f"{max(changes):z.0f}", f"{sum(change < 0 for change in changes)}", drift]
        table.add_row(
            name,
            *(each if few else spread),
            _tables.with_error(figures["delta_m"]),
            f"{figures['mean_rank']:.2f}",
            f"{rate[0]:.2g}" if len(rate) == 1 else "below",
            next((f"{figures[key]:g}" for key in OWN if key in figures), ""),
            f"{figures['step_relative_to_ls']:.2f}" if "step_relative_to_ls" in figures else "",
        )
    own = methods["stl"]["learning_rate"]
    rates = ", ".join(f"{rate:g} for {own.count(rate)} tasks" for rate in sorted(set(own)))
    lines = [
        f"Means over {len(methods['stl']['delta_m_by_seed'])} seeds, everything better when lower. "
        f"Δm ± its standard error: against the mean of stl, whose learning rates are {rates}, and "
        f"which steps {len(tasks)} networks."
        + ("" if few else " Worst: its change against stl. Logit range: over tasks, at the end.")
    ]
    edges = {name: ", ".join(each["edges"]) for name, each in methods.items() if each["edges"]}
    if edges:
        told = "; ".join(f"{name} {values}" for name, values in edges.items())
        lines.append(f"At the end of their lists: {told}.")
    forms = {name: each for name, each in methods.items() if METHODS[name].control}
    return [table, *lines, *([differences(forms)] if forms else [])]


# What a column of differences shows for a form of FAMO.
_COLUMNS: dict[str, Callable[[str], str]] = {
    "si": lambda _: "si",
    "frozen": lambda _: "frozen",
    "first": lambda _: "first-loss",
    "uw": lambda _: "uw",
    "two-pass": lambda name: opponents(name)[-2],
    "one-pass": lambda name: opponents(name)[-1],
}


def differences(forms: Mapping[str, Any], of: str = "Δm", key: str = "against") -> Any:
    """Of the forms of FAMO from their controls, from one another and from learned uncertainties."""
    cells = {
        label: [each[key].get(other(name)) for name, each in forms.items()]
        for label, other in _COLUMNS.items()
    }
    columns = {f"- {label}": found for label, found in cells.items() if any(found)}
    table = _tables.new(f"Differences of {of}, paired by seed: mean±95%", ["method"], columns)
    for name, *row in zip(forms, *columns.values(), strict=True):
        table.add_row(name, *map(_tables.with_interval, row))
    return table


SHOWN = ("ls", "si", "famo", "famo-ema-no-c")  # few enough to be told apart


def draw_overview(summary: Summary, places: Any, label: Callable[[Any], Any], title: str) -> Any:
    """How each of many tasks changes, at places on an axis to be labelled, and below it delta m."""
    names = [name for name in SHOWN if name in summary["methods"]]
    with _plots.picture(height=5.6) as figure:
        above, below = figure.subplots(2, 1, height_ratios=(1, 1.1))
        for name in names:
            values = list(summary["methods"][name]["change"].values())
            colour = METHODS[name].colour
            above.plot(places, values, "o", color=colour, markersize=4, alpha=0.85, label=name)
        above.axhline(0, color="black", linewidth=0.8)
        above.set_yscale("symlog", linthresh=10)
        above.yaxis.set_major_formatter(lambda change, _: f"{change:g}")
        above.grid(axis="y", color="#eeeeee")
        above.margins(y=0.08)
        above.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), columnspacing=1)
        label(above)
        above.set_title(f"{title} against single-task networks' (%)")
        draw_delta_m(below, summary)
    return figure


def draw_delta_m(axes: Any, summary: Summary) -> None:
    """Of every method."""
    rows = {
        name: (each["delta_m"], METHODS[name].colour, each["delta_m_by_seed"])
        for name, each in summary["methods"].items()
        if name != "stl"
    }
    _plots.estimates(axes, rows, "Δm against single-task networks (%): mean, 95%, each seed")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title("Δm, lower is better")
