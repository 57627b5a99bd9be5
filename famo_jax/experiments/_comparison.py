r"""A study that compares methods on one problem.

Each method is trained at every setting of its hyperparameters. The setting with the least mean
:math:`\Delta m` on validation is kept, and only settings that validation chose meet the test.
:math:`\Delta m` is against the mean of single-task learning, which is always run.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _command, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import CONTROLS, METHODS, Method, described
from famo_jax.experiments._study import Study, Summary
from famo_jax.experiments.problems._problem import Problem, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from famo_jax.experiments._train import Arm, Results, Session

MAX_ROWS = 2**24  # some 200 bytes each
LOGITS_RATE = 0.005  # of amortized Nash-MTL, where a study does not choose it


def study(
    name: str,
    title: str,
    seconds: int,
    problem: Problem,
    full: Mapping[str, Any],
    quick: Mapping[str, Any],
    draw: "Callable[[Summary], Figure]",
    facts: Callable[[], Mapping[str, Any]],
    timed: tuple[str, ...] = (),
) -> Study:
    """A comparison of methods on a problem.

    Args:
      name: Of the study.
      title: What it shows.
      seconds: It takes on two cores.
      problem: What is learned.
      full: The options where none are given.
      quick: With ``--quick``.
      draw: Its picture.
      facts: Of the data.
      timed: Methods of which a step is timed even if they are not trained.
    """
    return Study(
        name=name,
        title=title,
        seconds=seconds,
        full={"first_seed": 0, **full},
        quick=quick,
        run=functools.partial(run, problem, facts, timed),
        summarize=functools.partial(summarize, problem.tasks),
        tables=tables,
        pictures={f"{name}.png": draw},
        options={
            "methods": _command.methods_option(list(METHODS), "; stl, the baseline, is always run")
        },
        epilog=described(METHODS),
        check=check,
    )


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold, and adds the baseline."""
    rows = options.steps * options.seeds * options.batch_size
    if rows > MAX_ROWS:
        parser.error(
            "argument --steps: expected steps x seeds x batch size of at most "
            f"{MAX_ROWS:,}, which are held in memory, got {rows:,}"
        )
    options.methods = [name for name in METHODS if name in {"stl", *options.methods}]


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
    timed: Sequence[str],
    options: argparse.Namespace,
    session: "Session",
    even: bool = False,
) -> Runs:
    """Trains every method at all its settings, the same number of each method if ``even``."""
    from famo_jax.experiments import _train

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    grid = {
        "learning_rate": options.learning_rate,
        "gamma": options.gamma,
        "logits_rate": getattr(options, "logits_rate", [LOGITS_RATE]),
        "task": range(len(problem.tasks)),
    }

    def arm(name: str, data: Any) -> "Arm":
        method = METHODS[name]
        settings = settings_of(method, evenly(method, grid) if even else grid)
        return _train.Arm(name, problem, data, options.steps, METHODS[name], settings, seeds)

    def plan(options: argparse.Namespace) -> "Generator[Sequence[Arm], Results, None]":
        data = problem.load_data(options.steps, seeds, options.batch_size)
        yield [arm(name, data) for name in options.methods]

    def timed_arms(arms: "Sequence[Arm]") -> "list[Arm]":
        names = dict.fromkeys(["ls", *options.methods, *timed])
        return [arm(name, arms[0].data)._replace(seeds=seeds[:1]) for name in names]

    runs = _train.run(plan, options, session, timed_arms)
    return runs._replace(facts=runs.facts | {"problem": dict(facts())})


# --- Summaries ------------------------------------------------------------------------------------


def summarize(tasks: Sequence[Task], runs: Runs) -> dict[str, Any]:
    """The figures of each method. Methods share seeds, so differences between two are paired."""
    options, arms = runs.facts["settings"], runs.facts["arms"]
    names = [task.name for task in tasks]
    higher = np.array([task.higher_is_better for task in tasks])
    rates = options["learning_rate"]
    stl_test, on_validation, stl_rates, stl_losses = _single_task(runs, tasks, rates)
    baseline = stl_test.mean(axis=0)
    delta_m = functools.partial(_statistics.delta_m, higher_is_better=higher)
    chosen = {"stl": 0}
    tests = {"stl": stl_test}
    for name in arms:
        if name != "stl":
            validation = _statistics.finite(runs.arrays[name]["validation"]).mean(axis=1)
            chosen[name] = _statistics.choose(delta_m(validation, on_validation))
            tests[name] = _statistics.finite(runs.arrays[name]["test"][chosen[name]])
    by_seed = {name: delta_m(test, baseline) for name, test in tests.items()}
    means = np.stack([test.mean(axis=0) for test in tests.values()])
    ranks = dict(zip(tests, _statistics.mean_ranks(means, higher), strict=True))
    times = runs.facts["times"]

    def against(values: Array, name: str, others: Sequence[str]) -> dict[str, Any]:
        return {
            other: _statistics.estimate(values - by_seed[other])
            for other in others
            if other in by_seed and other != name
        }

    def figures(name: str) -> dict[str, Any]:
        own = runs.arrays[name]
        settings, index = arms[name]["settings"], chosen[name]
        test = tests[name].mean(axis=0)
        found: dict[str, Any] = {
            "description": METHODS[name].description,
            "test": dict(zip(names, test, strict=True)),
            "change": dict(zip(names, _statistics.changes(test, baseline, higher), strict=True)),
            "delta_m": _statistics.estimate(by_seed[name]),
            "mean_rank": ranks[name],
            "learning_rate": stl_rates if name == "stl" else [settings[index]["learning_rate"]],
            "against": against(by_seed[name], name, opponents(name)),
            "delta_m_by_seed": by_seed[name],
            "test_by_seed": tests[name],
            "losses": stl_losses if name == "stl" else own["losses"][index].mean(axis=0),
        }
        if name in times:
            # Single-task learning steps K networks where the others step one.
            networks = len(tasks) if name == "stl" else 1
            found["step_seconds_of_one_network"] = times[name]
            found["step_relative_to_ls"] = networks * times[name]["median"] / times["ls"]["median"]
        if name != "stl":
            scores = delta_m(_statistics.finite(own["validation"]).mean(axis=1), on_validation)
            found["validation_delta_m"] = scores
            found["edges"] = _statistics.edges(settings[index], options)
        else:
            lists = {"learning_rate": rates}
            every = [_statistics.edges({"learning_rate": rate}, lists) for rate in stl_rates]
            found["edges"] = list(dict.fromkeys(itertools.chain(*every)))
        if METHODS[name].has_logits:
            found["logit_range"] = _range(own["logit_range"][index])
            found["task_weights"] = own["task_weights"][index].mean(axis=0)
        if "logits_rate" in METHODS[name].takes:
            found["logits_rate"] = settings[index]["logits_rate"]
        if "gamma" in METHODS[name].takes:
            found["gamma"] = settings[index]["gamma"]
            found["by_gamma"] = []
            for row, gamma in enumerate(options["gamma"]):
                # Settings go through all learning rates at each gamma.
                best = row * len(rates) + _statistics.choose(
                    scores[row * len(rates) : (row + 1) * len(rates)]
                )
                values = delta_m(_statistics.finite(own["test"][best]), baseline)
                found["by_gamma"].append(
                    {
                        "gamma": gamma,
                        "learning_rate": settings[best]["learning_rate"],
                        "validation_delta_m": scores[best],
                        "delta_m": _statistics.estimate(values),
                        "against": against(values, name, CONTROLS),
                        "logit_range": _range(own["logit_range"][best]),
                    }
                )
        return found

    return {
        "tasks": [task._asdict() for task in tasks],
        "steps": options["steps"],
        "problem": runs.facts["problem"],
        "methods": {name: figures(name) for name in METHODS if name in arms},
        "step_relative_to_ls_of_methods_not_trained": {
            name: time["median"] / times["ls"]["median"]
            for name, time in times.items()
            if name not in arms and name != "ls"
        },
    }


def _single_task(
    runs: Runs, tasks: Sequence[Task], rates: Sequence[float]
) -> tuple[Array, Array, list[float], Array]:
    """Of single-task learning each task at the rate that is best for its own metric.

    Returns:
      The metrics on test ``[seeds, K]`` and, mean over seeds, on validation ``[K]``, the rates, and
      the losses ``[points, K]``.
    """
    own, k = runs.arrays["stl"], len(tasks)
    each = np.arange(k)

    def of_own_task(metrics: Array) -> Array:  # [K, rates, seeds]
        return _statistics.finite(metrics).reshape(k, len(rates), -1, k)[each, :, :, each]

    validation, test = of_own_task(own["validation"]), of_own_task(own["test"])
    signs = np.array([-1 if task.higher_is_better else 1 for task in tasks])
    best = [
        _statistics.choose(sign * scores.mean(axis=-1))
        for sign, scores in zip(signs, validation, strict=True)
    ]
    losses = own["losses"].reshape(k, len(rates), *own["losses"].shape[1:-1])[each, best]
    return (
        test[each, best].T,
        validation[each, best].mean(axis=-1),
        [rates[index] for index in best],
        losses.mean(axis=1).T,
    )


def _range(ranges: Array) -> dict[str, float]:
    """Means over seeds of ``[seeds, 3]``."""
    return dict(zip(("end", "most", "mean"), ranges.mean(axis=0), strict=True))


def opponents(name: str) -> tuple[str, ...]:
    """What a method is compared with: of the forms of FAMO those with the same c."""
    c = "-no-c" if name.endswith("-no-c") else ""
    return ("ls", *CONTROLS, "first-loss", "uw", f"famo{c}", f"famo-one-pass{c}")


# --- Tables ---------------------------------------------------------------------------------------

MOST_COLUMNS = 4  # more tasks than that do not fit into 80 columns


def tables(summary: Summary) -> list[Any]:
    """The methods, what the table leaves out, and the differences of FAMO's forms."""
    parts: list[Any] = [methods_table(summary), *notes(summary)]
    if any(METHODS[name].control for name in summary["methods"]):
        parts.append(differences(summary))
    if untrained := summary["step_relative_to_ls_of_methods_not_trained"]:
        steps = ", ".join(f"{name} {ratio:.1f}" for name, ratio in untrained.items())
        parts.append(f"A step over that of ls, not trained: {steps}.")
    return parts


def methods_table(summary: Summary) -> Any:
    """A row for each method: each task, or how they are spread if there are many.

    Then ``worst`` is the greatest change of a metric against single-task learning, counted up where
    it is worse, and ``better`` is how many tasks are better than by single-task learning.
    """
    tasks, rows = summary["tasks"], summary["methods"].values()
    few = len(tasks) <= MOST_COLUMNS
    spread = ("worst\ntask\n(%)", f"better\nof {len(tasks)}")
    own = "gamma" if not any("logits_rate" in each for each in rows) else "gamma\nor ξ\nrate"
    headers = (
        *((task["metric"].replace(" ", "\n") for task in tasks) if few else spread),
        *("Δm\n± s.e.\n(%)", "mean\nrank", "learn.\nrate", own),
        *(() if few else ("logit\nrange",)),
        "step\n/ ls",
    )
    table = _tables.new(None, ["method"], headers)
    for name, figures in summary["methods"].items():
        rate = figures["learning_rate"]
        changes = np.array(list(figures["change"].values()))
        drift, step = figures.get("logit_range"), figures.get("step_relative_to_ls")
        cells = (
            [f"{figures['test'][task['name']]:.{task['decimals']}f}" for task in tasks]
            if few
            else [f"{changes.max():z.0f}", f"{np.sum(changes < 0)}"]
        )
        table.add_row(
            name,
            *cells,
            _tables.with_error(figures["delta_m"]),
            f"{figures['mean_rank']:.2f}",
            f"{rate[0]:.2g}" if len(rate) == 1 else "below",
            next((f"{figures[key]:g}" for key in ("gamma", "logits_rate") if key in figures), ""),
            *(() if few else (f"{drift['end']:.2f}" if drift else "",)),
            "" if step is None else f"{step:.2f}",
        )
    return table


def differences(summary: Summary) -> Any:
    """Of the forms of FAMO from their controls, from one another and from learned uncertainties."""
    forms = {name: each for name, each in summary["methods"].items() if METHODS[name].control}
    columns = {
        label: [
            other for name in forms for other in others(name) if other in forms[name]["against"]
        ]
        for label, others in _COLUMNS.items()
    }
    columns = {label: found for label, found in columns.items() if found}
    table = _tables.new(
        "Differences of Δm, paired by seed: mean±95%", ["method"], [f"- {each}" for each in columns]
    )
    for name, figures in forms.items():
        cells = []
        for label in columns:
            (other,) = _COLUMNS[label](name)
            cells.append(_tables.with_interval(figures["against"].get(other)))
        table.add_row(name, *cells)
    return table


# What a column of differences shows for a form of FAMO.
_COLUMNS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "si": lambda _: ("si",),
    "frozen": lambda _: ("frozen",),
    "first": lambda _: ("first-loss",),
    "uw": lambda _: ("uw",),
    "two-pass": lambda name: (opponents(name)[-2],),
    "one-pass": lambda name: (opponents(name)[-1],),
}


def notes(summary: Summary) -> list[str]:
    """What the table leaves out."""
    tasks, methods = [task["name"] for task in summary["tasks"]], summary["methods"]
    stl = methods["stl"]
    few = len(tasks) <= MOST_COLUMNS
    own = stl["learning_rate"]
    rates = (
        ", ".join(f"{task} {rate:g}" for task, rate in zip(tasks, own, strict=True))
        if few
        else ", ".join(f"{rate:g} for {own.count(rate)} tasks" for rate in sorted(set(own)))
    )
    seeds = len(stl["delta_m_by_seed"])
    lines = [
        f"Means over {seeds} seeds, everything better when lower. Δm ± its standard error: against "
        f"the mean of stl, whose learning rates are: {rates}. stl steps {len(tasks)} networks."
    ]
    if not few:
        lines.append(
            "Worst task: its change against stl, up is worse. Logit range: over tasks, at the end, "
            "mean over seeds."
        )
    if seeds > 1:
        told = (f"{name} {_tables.between(each['delta_m'])}" for name, each in methods.items())
        lines.append(f"Δm with 95% confidence: {', '.join(told)}.")
    return lines + [
        f"{name}: at the end of its list: {', '.join(each['edges'])}."
        for name, each in methods.items()
        if each["edges"]
    ]


# --- Parts of the pictures ------------------------------------------------------------------------

# Where lines are shown: few enough to be told apart.
SHOWN = ("ls", "si", "famo", "famo-ema-no-c", "stl")
RECOMMENDED = ("famo-ema-no-c", "famo-ema", "famo-one-pass", "famo")


def draw_delta_m(axes: Any, summary: Summary) -> None:
    """Of every method, but where it would squeeze the others."""
    from famo_jax.experiments import _plots

    rows = {
        name: (each["delta_m"], METHODS[name].colour, each["delta_m_by_seed"])
        for name, each in summary["methods"].items()
        if name != "stl"
    }
    _plots.estimates(axes, rows, "Δm against single-task networks (%): mean, 95%, each seed")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title("Δm, lower is better")


def draw_task_weights(axes: Any, summary: Summary, labelled: bool) -> None:
    """Of the form that is recommended, or the next that was run."""
    from famo_jax.experiments import _plots

    axes.set_xlabel("step")
    found = [name for name in RECOMMENDED if name in summary["methods"]]
    if not found:
        axes.set_title("no FAMO was run")
        return
    curves = np.array(summary["methods"][found[0]]["task_weights"])
    x = _statistics.middles(summary["steps"], len(curves))
    names = [task["name"] for task in summary["tasks"]]
    colours = len(names) * ["#444444"] if labelled else _plots.task_colours(len(names))
    series = dict(zip(names, zip(curves.T, colours, strict=True), strict=True))
    axes.set_title(f"task weights of {found[0]}")
    _plots.lines(axes, x, series, _plots.LINES if labelled else ("-",), labelled)


def draw_losses(axes: Any, summary: Summary, task: int, labelled: bool) -> None:
    """The loss of a task over the steps, mean over seeds, of the methods that are ``SHOWN``."""
    from famo_jax.experiments import _plots

    axes.set_yscale("log")
    curves = {
        name: (np.array(each["losses"])[:, task], METHODS[name].colour)
        for name, each in summary["methods"].items()
        if name in SHOWN
    }
    x = _statistics.middles(summary["steps"], len(curves["stl"][0]))
    # The mean of the losses first makes some tasks worse, by far. That would squeeze the rest.
    tops = [values.max() for name, (values, _) in curves.items() if name == "stl"]
    ends = [values[-1] for values, _ in curves.values() if np.isfinite(values[-1])]
    if np.isfinite(tops[0]):
        low = min(np.nanmin(values) for values, _ in curves.values())
        axes.set_ylim(low / 1.2, max(1.6 * tops[0], 1.2 * max(ends)))
    _plots.lines(axes, x, curves, labelled=labelled)
    _plots.plain_numbers(axes.yaxis)
    axes.set_title(summary["tasks"][task]["loss"], fontsize=8)
    axes.set_xlabel("step")


def draw_gamma(axes: Any, summary: Summary) -> None:
    """Delta m over gamma of FAMO's forms without c, each at its own learning rate."""
    from famo_jax.experiments import _plots

    methods = summary["methods"]
    forms = {name: each for name, each in methods.items() if "by_gamma" in each}
    forms = {name: each for name, each in forms.items() if name.endswith("-no-c")} or forms
    series = {
        name: ([each["delta_m"] for each in own["by_gamma"]], METHODS[name].colour)
        for name, own in forms.items()
    }
    for control in CONTROLS[:1]:
        if control in methods:
            colour = METHODS[control].colour
            _plots.band(axes, methods[control]["delta_m"], colour, control)
    if series:
        gammas = [each["gamma"] for each in next(iter(forms.values()))["by_gamma"]]
        _plots.over_values(axes, gammas, series, "gamma")
    axes.set_title("Δm (%) over gamma")


def draw_changes(axes: Any, summary: Summary, places: Sequence[float]) -> None:
    """How much worse each task's metric is than that of single-task learning, a point a method."""
    names = [name for name in SHOWN if name in summary["methods"] and name != "stl"]
    for name in names:
        values = list(summary["methods"][name]["change"].values())
        colour = METHODS[name].colour
        axes.plot(places, values, "o", color=colour, markersize=4, alpha=0.85, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter(lambda change, _: f"{change:g}")
    axes.grid(axis="y", color="#eeeeee")
    axes.set_ylabel("change (%)")
    axes.margins(y=0.08)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), columnspacing=1)
