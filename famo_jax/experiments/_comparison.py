r"""A study that compares methods on problems: *columns* of one table, such as two units of losses.

What is compared, and how, was settled before the runs, but for the place of task gradients:

* The figure is :math:`\Delta m` on test: the mean over tasks of the change in percent of a metric
  against single-task networks. These are trained in the last column's units and have, as every
  method, as many settings.
* Each method has the same number of settings. One without hyperparameters has that many learning
  rates, between the same ends.
* Some seeds choose, by the mean :math:`\Delta m` on validation; others report. A seed draws the
  split of the data, the initial parameters and the batches, the same for all methods.
* Learned weights are compared with the *best fixed* ones: of ``FIXED`` that which validation chose.
  Differences are paired by seed, with 95% intervals by Student's t; their p values in a column are
  corrected by Holm for the number of methods shown.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _command, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS, Method, described
from famo_jax.experiments._study import Study, Summary
from famo_jax.experiments.problems._problem import Problem

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

MAX_ROWS = 2**24  # some 200 bytes each
TUNING = 1000  # the first of the seeds that choose, in every part of a run the same
# What needs two batches a step, and what is si by another name, stand aside.
ALL = [name for name, each in METHODS.items() if each.measure != "fresh" and name != "frozen-no-c"]
OWN = "gamma", "logits_rate"  # of methods with logits
FEW = 4  # more tasks than that are not told one by one
FIXED = "ls", "si", "frozen", "first-loss"  # these learn no weights
MAIN = (*FIXED, "uw", "famo", "famo-ema-no-c", "nash-slope", "mgda", "pcgrad", "cagrad", "nash-mtl")
RATES = "--logits-rate 2e-3 1e-2 5e-2"
GRID = f"{RATES} --methods stl {' '.join(MAIN)}"
QUICK = "--seeds 2 --tuning-seeds 1 --methods stl ls si frozen famo famo-one-pass "
QUICK += "--learning-rate 1e-2 --gamma 1e-3"
# What is kept of a run for the tables is little.
CURVES = frozenset({"losses", "task_weights", "test_by_seed", "change"})


def study(
    problems: Mapping[str, Problem],
    full: str,
    facts: Callable[[], Mapping[str, Any]] = dict,
    **about: Any,
) -> Study:
    """A comparison of methods on problems, by the names of their columns, with facts of the data.

    All have the same tasks, or in each column tasks of its own.
    """
    words = "; all: every one; stl, the baseline, is always run"
    return Study(
        full=f"--first-seed 0 --aggregate-at last-layer {full} {GRID}",
        run=functools.partial(run, problems, facts),
        summarize=functools.partial(summarize, problems),
        tables=tables,
        options={"methods": _command.methods_option(["all", *METHODS], words)},
        curves=CURVES,
        epilog=described(METHODS),
        check=check,
        **about,
    )


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold, and adds the baseline."""
    check_rows(parser, options.steps * options.seeds * options.batch_size)
    if options.first_seed + options.seeds > TUNING:
        parser.error(
            f"argument --seeds: expected seeds below {TUNING}, which are those that choose"
        )
    every = ALL if "all" in options.methods else ("stl", *options.methods)
    options.methods = [name for name in METHODS if name in every]
    if {*OWN} <= {own for name in options.methods for own in METHODS[name].takes}:
        check_even(parser, options)


def check_even(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses to give FAMO and amortized Nash-MTL unequal numbers of values to choose from."""
    if len(options.gamma) != len(options.logits_rate):
        parser.error(
            "argument --gamma: expected as many values as of --logits-rate, "
            f"{len(options.logits_rate)}, got {len(options.gamma)}"
        )


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
    if set(OWN) & set(method.takes) or len(rates) == 1:
        return grid
    finer = np.geomspace(min(rates), max(rates), len(rates) * len(grid["gamma"]))
    return {**grid, "learning_rate": finer.tolist()}


def columns_of(problems: Mapping[str, Problem], names: Sequence[str]) -> list[tuple[str, str]]:
    """What is trained. Where columns share their tasks single tasks are learned in the last."""
    shared = len({problem.tasks for problem in problems.values()}) == 1
    own = {column: [*problems][-1] if shared else column for column in problems}
    return [
        (column, name)
        for column, name in itertools.product(problems, names)
        if name != "stl" or own[column] == column
    ]


def run(
    problems: Mapping[str, Problem],
    facts: Callable[[], Mapping[str, Any]],
    options: argparse.Namespace,
    session: "Session",
    **of_reporting: Any,
) -> Runs:
    """Trains each method at all its settings on some seeds, and as these choose on the others.

    The arms of the latter may be told more.
    """
    from famo_jax.experiments import _train

    place: Any = options.aggregate_at.replace("-", " ")
    problems = {name: each._replace(place=place) for name, each in problems.items()}
    reporting = range(options.first_seed, options.first_seed + options.seeds)
    choosing = range(TUNING, TUNING + options.tuning_seeds)

    @functools.cache
    def load(loader: Any, seeds: range) -> Any:
        return loader(options.steps, seeds, options.batch_size)

    def arm(column: str, name: str, settings: Any, seeds: range, **more: Any) -> _train.Arm:
        problem, method = problems[column], METHODS[name]
        data = load(problem.load_data, seeds)
        label = f"{column} {name}" + (" choosing" if seeds == choosing else "")
        return _train.Arm(label, problem, data, options.steps, method, settings, seeds, **more)

    def plan() -> _train.Plan:
        pairs = columns_of(problems, options.methods)
        every = {}
        for column, name in pairs:
            own = {"task": range(len(problems[column].tasks))} | vars(options)
            every[column, name] = settings_of(METHODS[name], evenly(METHODS[name], own))
        done = yield [arm(*pair, every[pair], choosing) for pair in pairs]
        arms = []
        for pair in pairs:
            found = chosen(done, problems, *pair)
            settings = [every[pair][index] for index in found]
            arms.append(arm(*pair, settings, reporting, **of_reporting))
        yield arms

    first = next(iter(problems))  # a step costs the same in all columns
    runs = _train.run(plan(), session, timed=f"{first} [^ ]+|.* stl", rounds=25)
    return runs._replace(facts=runs.facts | {"problem": dict(facts())})


def _higher(problem: Problem) -> Array:
    return np.array([task.higher_is_better for task in problem.tasks])


def _baseline(
    arrays: Mapping[str, Mapping[str, Any]], problems: Mapping[str, Problem], column: str
) -> tuple[str, list[int], Array]:
    """Of single-task learning the column, each task's best setting, and validation there, [K]."""
    column = column if f"{column} stl choosing" in arrays else [*problems][-1]
    own = _statistics.finite(arrays[f"{column} stl choosing"]["validation"])
    return column, *single_tasks(own, _higher(problems[column]))


def single_tasks(validation: Array, higher_is_better: Any = False) -> tuple[list[int], Array]:
    """Of single-task learning where each task's best rate is, and what it has there, ``[K]``.

    Args:
      validation: ``[K x rates, seeds, K]``: of each task all rates.
      higher_is_better: Of each metric, ``[K]``.
    """
    k = validation.shape[-1]
    each = np.arange(k)
    by_task = validation.reshape(k, -1, *validation.shape[1:])[each, ..., each].mean(axis=-1)
    signs = np.broadcast_to(np.where(higher_is_better, -1, 1), k)[:, None]
    best = list(map(_statistics.choose, signs * by_task))  # [K, rates], each by its own metric
    return (each * by_task.shape[1] + best).tolist(), by_task[each, best]


def scores_of(
    arrays: Mapping[str, Mapping[str, Any]],
    problems: Mapping[str, Problem],
    column: str,
    name: str,
) -> Array:
    """Delta m on validation of all settings of a method, ``[settings]``."""
    _, _, baseline = _baseline(arrays, problems, column)
    own = _statistics.finite(arrays[f"{column} {name} choosing"]["validation"])
    by_seed = _statistics.delta_m(own, baseline, _higher(problems[column]))
    return np.asarray(by_seed.mean(axis=-1))


def chosen(
    arrays: Mapping[str, Mapping[str, Any]],
    problems: Mapping[str, Problem],
    column: str,
    name: str,
) -> list[int]:
    """Which settings of a method validation chose: one, or one for each single task."""
    if name == "stl":
        return _baseline(arrays, problems, column)[1]
    return [_statistics.choose(scores_of(arrays, problems, column, name))]


def summarize(problems: Mapping[str, Problem], runs: Runs) -> dict[str, Any]:
    """The figures of each method in each column."""
    arms = runs.facts["arms"]
    counts = {
        len(own["settings"])
        for name, own in arms.items()
        if name.endswith(" choosing") and " stl " not in name
    }
    return {
        "steps": runs.facts["settings"]["steps"],
        # One number, but where there is one learning rate alone.
        "budget": counts.pop() if len(counts) == 1 else f"{min(counts)} to {max(counts)}",
        "problem": runs.facts["problem"],
        "columns": {column: _column(problems, column, runs) for column in problems},
    }


def _column(problems: Mapping[str, Problem], column: str, runs: Runs) -> dict[str, Any]:
    options, arms, times = (runs.facts[key] for key in ("settings", "arms", "times"))
    problem = problems[column]
    names = [task.name for task in problem.tasks]
    delta_m = functools.partial(_statistics.delta_m, higher_is_better=_higher(problem))
    where, _, _ = _baseline(runs.arrays, problems, column)
    each = np.arange(len(names))
    single = runs.arrays[f"{where} stl"]
    tests = {"stl": _statistics.finite(single["test"])[each, :, each].T}
    labels = {"stl": f"{where} stl"}
    for name in METHODS:
        label = f"{column} {name}"
        if label in arms and name != "stl":
            tests[name] = _statistics.finite(runs.arrays[label]["test"][0])
            labels[name] = label
    baseline = tests["stl"].mean(axis=0)
    by_seed = {name: delta_m(test, baseline) for name, test in tests.items()}
    means = {name: test.mean(axis=0) for name, test in tests.items()}
    ranks = _statistics.mean_ranks(np.stack(list(means.values())), _higher(problem))
    fixed = [name for name in FIXED if name in tests]
    scores = [scores_of(runs.arrays, problems, column, name) for name in fixed]
    # Of each at its best setting, and of what never was finite none.
    least = [np.nanmin([*own, np.inf]) for own in scores]
    best = fixed[_statistics.choose(least)] if fixed else ""
    first = next(iter(problems))
    plain = times.get(f"{first} ls")

    def figures(name: str, rank: float) -> dict[str, Any]:
        own, settings = runs.arrays[labels[name]], arms[labels[name]]["settings"]
        changes = _statistics.changes(means[name], baseline, _higher(problem))
        losses = own["losses"].mean(axis=1)
        found: dict[str, Any] = {
            "test": dict(zip(names, means[name], strict=True)) if len(names) <= FEW else {},
            "change": dict(zip(names, changes, strict=True)),
            "worst": np.max(changes),
            "delta_m": _statistics.estimate(by_seed[name]),
            "mean_rank": rank,
            "learning_rate": [setting["learning_rate"] for setting in settings],
            "edges": _statistics.edges(settings, options),
            "delta_m_by_seed": by_seed[name],
            "test_by_seed": tests[name],
            # Of single tasks the losses are [K, points, 1], of others [1, points, K].
            "losses": losses[..., 0].T if name == "stl" else losses[0],
        }
        if name not in ("stl", *FIXED) and best:
            found["gain"] = _statistics.difference(by_seed[name] - by_seed[best])
        time = times.get(f"{first} {name}") or times.get(labels[name])
        if plain and time:
            networks = len(names) if name == "stl" else 1
            found["step_relative_to_ls"] = networks * time["median"] / plain["median"]
        if METHODS[name].has_logits:
            ranges = own["logit_range"][0].mean(axis=0)
            found["logit_range"] = dict(zip(("end", "most", "mean"), ranges, strict=True))
            found["task_weights"] = own["task_weights"][0].mean(axis=0)
        return found | {key: settings[0][key] for key in OWN if key in settings[0]}

    methods = {name: figures(name, rank) for name, rank in zip(means, ranks, strict=True)}
    return {
        "tasks": [task._asdict() for task in problem.tasks],
        "fixed": best,
        "units_of_stl": where,
        "methods": {name: methods[name] for name in METHODS if name in methods},
    }


def tables(summary: Summary) -> list[Any]:
    """The main methods, then all others, column by column."""
    columns = summary["columns"]
    every = [*dict.fromkeys(name for column in columns.values() for name in column["methods"])]
    main = [name for name in MAIN if name in every]
    others = [name for name in every if name not in {"stl", *MAIN}]
    seeds = len(next(iter(columns.values()))["methods"]["stl"]["delta_m_by_seed"])
    parts: list[Any] = [_table(None, summary, main)] if main else []
    if others:
        parts.append(_table("Other methods" if main else None, summary, others))
    of = {label: f" ({label})" if len(columns) > 1 else "" for label in columns}
    fixed = [f"{column['fixed']}{of[name]}" for name, column in columns.items() if column["fixed"]]
    baselines = {column["units_of_stl"] for column in columns.values()}
    parts.append(
        f"Mean over {seeds} seeds of Δm, in percent, ± its standard error; lower is better. Each "
        "seed has a split, parameters and batches of its own; other seeds chose the settings, of "
        f"{summary['budget']} for each method. 0 is stl, a network for each task"
        + (f" ({', '.join(baselines)})" if len(baselines) < len(columns) else "")
        + "."
        + (f" Best fixed weights: {', '.join(fixed)}." if fixed else "")
        + (" - fixed: difference from these, with its 95% interval, paired by seed."
           if fixed and len(columns) <= 2 else "")
        + (" *: p < 0.05 for that difference, by Holm's correction within a column of a table."
           if fixed else "")
    )  # fmt: skip
    edges = {
        f"{name} {', '.join(each['edges'])}{of[label]}": None
        for label, column in columns.items()
        for name, each in column["methods"].items()
        if each["edges"] and name in {"stl", *MAIN}
    }
    if edges:
        chosen = "Of the main methods, chosen" if main and others else "Chosen"
        parts.append(f"{chosen} at the end of a list: {'; '.join(edges)}.")
    return parts


def _table(title: str | None, summary: Summary, names: Sequence[str]) -> Any:
    columns, wide = summary["columns"], len(summary["columns"]) <= 2
    several = len(columns) > 1
    headers = []
    for label in columns:
        above = f"{label}\n" if several else ""
        headers += [f"{above}Δm", *([f"{'' if not several else chr(10)}- fixed"] if wide else [])]
    if wide:
        headers.append("\nstep\n/ ls" if several else "step\n/ ls")
    certain = {label: stars(column["methods"], names) for label, column in columns.items()}
    table = _tables.new(title, ["method"], headers)
    for name in names:
        cells = []
        for label, column in columns.items():
            each = column["methods"].get(name)
            star = "*" if name in certain[label] else ""
            cells.append(_tables.with_error(each["delta_m"]) + star * (not wide) if each else "")
            if wide:
                gain = each.get("gain") if each else None
                cells.append(_tables.with_interval(gain) + star)
        times = [column["methods"].get(name, {}) for column in columns.values()]
        time = next((each["step_relative_to_ls"] for each in times
                     if "step_relative_to_ls" in each), None)  # fmt: skip
        table.add_row(name, *cells, *([f"{time:.2f}" if time else ""] if wide else []))
    return table


def stars(methods: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    """Those whose difference from the best fixed weights is certain, of those in a table."""
    gains = {name: methods[name]["gain"]["p"] for name in names if "gain" in methods.get(name, {})}
    adjusted = _statistics.holm(list(gains.values()))
    return {name for name, p in zip(gains, adjusted, strict=True) if p < 0.05}


SHOWN = ("ls", "si", "first-loss", "famo", "famo-ema-no-c")  # few enough to be told apart


def draw(
    summary: Summary,
    label: Callable[[Any], None] = lambda axes: None,
    order: Sequence[int] | None = None,
) -> Any:
    """A column each: how the tasks change, at places on an axis to be labelled, and delta m."""
    columns = summary["columns"]
    figure: Any
    with _plots.picture(height=5.6) as figure:
        grid = figure.subplots(2, len(columns), height_ratios=(1, 1.25), squeeze=False)
        for (name, column), above, below in zip(columns.items(), *grid, strict=True):
            _draw_tasks(above, column["methods"], order)
            above.set_title(f"{name}: each task's change against stl (%)"
                            if len(columns) <= 2 else name)  # fmt: skip
            label(above)
            draw_delta_m(below, column["methods"])
            if len(columns) > 2:  # too narrow for more
                below.set(xlabel="")
                below.set_title("Δm (%)")
            if below is not grid[1][0]:
                below.set_yticklabels([])
        handles, labels = grid[0][0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _draw_tasks(axes: Any, methods: Mapping[str, Any], order: Sequence[int] | None) -> None:
    shown = [name for name in SHOWN if name in methods]
    for name in shown:
        values = list(methods[name]["change"].values())
        places = np.arange(len(values)) if order is None else np.argsort(order)
        colour = METHODS[name].colour
        axes.plot(places, values, "o", color=colour, markersize=4, alpha=0.85, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter(lambda change, _: f"{change:g}")
    axes.grid(axis="y", color="#eeeeee")
    axes.margins(y=0.08)


def draw_delta_m(axes: Any, methods: Mapping[str, Any]) -> None:
    """Of the main methods, as far as they were run, or of all."""
    from matplotlib.ticker import FixedLocator

    names = [name for name in MAIN if name in methods] or [*methods]
    rows = {
        name: (methods[name]["delta_m"], METHODS[name].colour, methods[name]["delta_m_by_seed"])
        for name in names
        if name != "stl"
    }
    _plots.estimates(axes, rows, "mean, 95%, each seed")
    axes.axvline(0, color="black", linewidth=0.8)
    every = np.concatenate([seeds for _, _, seeds in rows.values()])
    if np.nanmax(every, initial=0) > 200:  # what fails would squeeze the rest
        axes.set_xscale("symlog", linthresh=50)
        axes.xaxis.set_major_locator(FixedLocator([-50, 0, 50, 200, 1000]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("Δm (%), lower is better")
