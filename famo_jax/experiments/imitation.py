"""Methods on ten robots that imitate experts: ``python -m famo_jax.experiments.imitation``.

The problem is that of :mod:`famo_jax.experiments.problems.robots` (extra ``metaworld``), and how
methods are trained, chosen on validation and compared on the test stands in ``_comparison``. What
was chosen is then rolled out: its success on goals of neither training nor validation.
"""

import argparse
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _command, _comparison, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS, described
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import _metaworld

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session
    from famo_jax.experiments.problems import robots

COLUMN = "robots"
MOST_TASKS = 5  # that are told one by one


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold, and more goals than there are."""
    rows = options.batch_size * len(options.tasks)
    _comparison.check_rows(parser, options.steps * options.seeds * rows)
    for name in ("demonstrations", "goals"):
        value = getattr(options, name)
        if value > _metaworld.GOALS:
            parser.error(f"argument --{name}: expected at most {_metaworld.GOALS}, got {value}")
    _comparison.check(parser, options)


# --- The run --------------------------------------------------------------------------------------


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Records demonstrations, trains every method, and rolls out what validation chose."""
    from famo_jax.experiments.problems import robots

    _metaworld.require()
    tell = session.row("demonstrations")
    tell("reading")
    shown = robots.demonstrate(options.tasks, options.demonstrations, tell)
    tell("done")
    problem = robots.problem(options.tasks, shown)
    facts = lambda: {
        "demonstrations": dict(zip(options.tasks, shown.lengths[0].sum(axis=-1), strict=True)),
        "shown": dict(zip(options.tasks, shown.success[0].mean(axis=-1), strict=True)),
        "expert": dict(zip(options.tasks, shown.expert.mean(axis=-1), strict=True)),
    }
    runs = _comparison.run({COLUMN: problem}, facts, options, session, keeps_params=True)
    return rolled_out(runs, options, session, robots.scale_of(shown))


def rolled_out(
    runs: Runs, options: argparse.Namespace, session: "Session", scale: "robots.Scale"
) -> Runs:
    """With success of what validation chose, ``[1, seeds, K]``, in place of its parameters."""
    from famo_jax.experiments.problems import robots

    k, jobs = len(options.tasks), {}
    tell = session.row("success")
    tell("rolling out")
    with _metaworld.processes() as pool:
        for name, own in runs.arrays.items():
            for seed, task in np.ndindex(own.get("params", np.empty((1, 0))).shape[1], k):
                # Of single-task learning the task's own.
                params = own["params"][task % len(own["params"]), seed]
                layers = robots.layers_of(params, k, task, scale)
                goals = options.tasks[task], robots.SPLITS[-1], options.goals
                jobs[name, seed, task] = pool.submit(_metaworld.roll_out, *goals, layers)
        success = {}
        for index, (network, job) in enumerate(jobs.items()):
            success[network] = np.mean(job.result())
            tell(f"{index + 1} of {len(jobs)} networks")
    tell("done")
    arrays = {}
    for name, own in runs.arrays.items():
        arrays[name] = {key: each for key, each in own.items() if key != "params"}
        if "params" in own:
            shape = 1, own["params"].shape[1], k
            found = [success[name, seed, task] for _, seed, task in np.ndindex(shape)]
            arrays[name]["success"] = np.reshape(found, shape).astype(np.float32)
    return runs._replace(arrays=arrays)


# --- What came of it ------------------------------------------------------------------------------


def summarize(runs: Runs) -> dict[str, Any]:
    """That of a comparison, and success in percent, by task and on average."""
    from famo_jax.experiments.problems import robots

    settings = runs.facts["settings"]
    names = settings["tasks"]
    summary = _comparison.summarize({COLUMN: robots.named(names)}, runs)
    column = summary["columns"][COLUMN]
    by_task = {
        name: 100 * _statistics.finite(runs.arrays[f"{COLUMN} {name}"]["success"][0])
        for name in column["methods"]
    }
    by_seed = {name: each.mean(axis=1) for name, each in by_task.items()}
    for name, figures in column["methods"].items():
        figures["success_by_task"] = dict(zip(names, by_task[name].mean(axis=0), strict=True))
        figures["success"] = _statistics.estimate(by_seed[name])
        figures["success_by_seed"] = by_seed[name]
        if "gain" in figures:
            difference = by_seed[name] - by_seed[column["fixed"]]
            figures["success_gain"] = _statistics.difference(difference)
        if (control := METHODS[name].control) in by_seed:
            difference = by_seed[name] - by_seed[control]
            figures["success_over_control"] = _statistics.estimate(difference)
        if "task_weights" in figures:
            weights = figures["task_weights"].mean(axis=0)
            figures["mean_task_weights"] = dict(zip(names, weights, strict=True))
    return summary | {"goals": settings["goals"], "episodes": settings["demonstrations"]}


def tables(summary: Summary) -> list[Any]:
    """Errors as in a comparison; then success, on the tasks in which it differs most."""
    problem, methods = summary["problem"], summary["columns"][COLUMN]["methods"]
    names = list(problem["expert"])
    rates = np.array([list(each["success_by_task"].values()) for each in methods.values()])
    widest = np.argsort(-np.ptp(rates, axis=0), kind="stable")[:MOST_TASKS]
    shown = [names[task] for task in sorted(widest)]
    table = _tables.new(
        f"Success (%) on {summary['goals']} unseen goals a task",
        ["method"],
        [*(_metaworld.TASKS[name] for name in shown), "mean\n± s.e.", "\n- fixed", "\n- control"],
    )
    gains = {
        name: {"gain": each["success_gain"]}
        for name, each in methods.items()
        if "success_gain" in each
    }
    certain = _comparison.stars(gains, list(gains))
    for name, each in methods.items():
        table.add_row(
            name,
            *(f"{each['success_by_task'][task]:.0f}" for task in shown),
            _tables.with_error(each["success"], space=""),
            _tables.with_interval(each.get("success_gain")) + ("*" if name in certain else ""),
            _tables.with_interval(each.get("success_over_control")),
        )
    expert = [100 * value for value in problem["expert"].values()]
    cells = (f"{100 * problem['expert'][task]:.0f}" for task in shown)
    table.add_row("expert", *cells, f"{np.mean(expert):.1f}")
    counts = list(problem["demonstrations"].values())
    succeed = [100 * value for value in problem["shown"].values()]
    others = np.delete(rates, widest, axis=1)
    told = (
        "- control: from the same method with its logits held at 0, which are frozen, si and, of "
        f"Nash-MTL, first-loss. {summary['episodes']} demonstrations a task, {min(counts):,} to "
        f"{max(counts):,} steps; {min(succeed):.0f} to {max(succeed):.0f}% succeed under the noise."
    )
    if others.size:
        told = f"On the other tasks every method succeeds in {others.min():.0f}% at least. {told}"
    headers = [_metaworld.TASKS[name] for name in names]
    changes = _tables.new("Held-out error of each task above stl's (%)", ["method"], headers)
    weights = _tables.new("Task weights (%), mean over training", ["method"], headers)
    for name, each in methods.items():
        if name != "stl":
            changes.add_row(name, *(f"{change:+.0f}" for change in each["change"].values()))
        if METHODS[name].learns:
            own = each["mean_task_weights"].values()
            weights.add_row(name, *(f"{100 * weight:.1f}" for weight in own))
    learned = [weights] if weights.row_count else []
    return [*_comparison.tables(summary), changes, *learned, table, told]


def draw(summary: Summary) -> Any:
    """Errors by task and a method's weights; below them delta m and success of every method."""
    from matplotlib import colormaps

    column = summary["columns"][COLUMN]
    methods = column["methods"]
    names = [task["name"] for task in column["tasks"]]
    figure: Any
    with _plots.picture(height=6.6) as figure:
        (left, right), (below, success) = figure.subplots(2, 2, height_ratios=(1, 1.1))
        _draw_changes(left, methods, names)
        shown = next((name for name in methods if METHODS[name].learns), None)
        right.set_visible(shown is not None)
        if shown:
            curves = np.array(methods[shown]["task_weights"])
            colours = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
            series = dict(zip(names, zip(curves.T, colours, strict=True), strict=True))
            _plots.lines(right, _statistics.middles(summary["steps"], len(curves)), series)
            right.set(title=f"task weights of {shown}", xlabel="step")
        _comparison.draw_delta_m(below, methods)
        rows = {
            name: (each["success"], METHODS[name].colour, each["success_by_seed"])
            for name, each in methods.items()
        }
        _plots.estimates(success, rows, "success (%): mean, 95%, each seed")
        success.axvline(100 * np.mean(list(summary["problem"]["expert"].values())), color="black",
                        linewidth=0.8)  # fmt: skip
        success.set_title("success on unseen goals (line: the expert)")
    return figure


def _draw_changes(axes: Any, methods: Mapping[str, Any], names: list[str]) -> None:
    """Of each task's error over single-task networks'."""
    places: Array = np.arange(len(names))
    for name in _comparison.SHOWN:
        if name in methods:
            changes = list(methods[name]["change"].values())
            axes.plot(changes, places, "o", color=METHODS[name].colour, markersize=4, alpha=0.85,
                      label=name)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xscale("symlog", linthresh=10)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(lambda change, _: f"{change:g}")
    axes.grid(axis="x", color="#eeeeee")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=4, columnspacing=1)
    axes.set_title("held-out error over single-task networks' (%)")


EVERY = list(_metaworld.TASKS)
OPTIONS = {
    "methods": _command.methods_option(["all", *METHODS], "; stl, the baseline, is always run"),
    "tasks": Option(
        _command.one_of(EVERY), f"robots, of {', '.join(EVERY)}", several=True, metavar="TASK"
    ),
    "batch_size": Option(_command.positive_int, "rows of each task in a step"),
    "demonstrations": Option(_command.positive_int, "episodes of each task that experts show"),
    "goals": Option(_command.positive_int, "unseen goals of each task to roll out on"),
}
STUDY = Study(
    name="imitation",
    title="Multi-task methods on ten robots that imitate experts (Meta-World)",
    seconds=1655,
    full=f"--tasks {' '.join(EVERY)} --demonstrations 50 --goals 50 --steps 2500 --seeds 5 "
    "--tuning-seeds 2 --first-seed 0 --batch-size 32 --aggregate-at parameters "
    f"--learning-rate 3e-3 1e-2 3e-2 --gamma 0 1e-3 1e-2 {_comparison.RATES} --methods stl ls si "
    "frozen first-loss uw famo famo-no-c famo-one-pass famo-one-pass-no-c famo-ema famo-ema-no-c "
    "famo-slope famo-slope-no-c nash-slope nash-mtl",
    quick="--demonstrations 5 --goals 2 --steps 300 --tasks reach drawer-close window-open "
    + _comparison.QUICK,
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"imitation.png": draw},
    options=OPTIONS,
    curves=_comparison.CURVES - {"change"},
    epilog=described(METHODS),
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
