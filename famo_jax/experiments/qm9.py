r"""QM-9, eleven properties of 130,831 molecules: ``python -m famo_jax.experiments.qm9``.

The problem is that of :mod:`famo_jax.experiments.problems.qm9`. As in the official code a network
is validated after each epoch, by :math:`\Delta m` against the single-task networks' errors that the
code holds, and tested as it was at its best epoch. There are three presets:

* ``small``, the default: a narrower network on 6,000 molecules, for two CPU cores;
* ``paper``: the official settings, for a GPU;
* ``converged``: smaller batches and more patience, by which all methods gain (NTKMTL).

Every method is trained at every learning rate; validation chooses, on the mean over seeds.
"""

import argparse
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax import weighting
from famo_jax.experiments import _command, _methods, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import Method, described
from famo_jax.experiments._study import Option, Study, Summary

if TYPE_CHECKING:
    from famo_jax.experiments._train import Arm, Session

# --- Settings -------------------------------------------------------------------------------------

METHODS: dict[str, Method] = {
    **{
        name: method
        for name, method in _methods.METHODS.items()
        if name != "stl" and method.measure != "fresh"
    },
    # Its learning rate follows the model's, as in the official code.
    "uw": _methods.METHODS["uw"]._replace(
        make=lambda k, scale: weighting.uw(k, learning_rate=0.025 * scale), takes=("scale",)
    ),
    "imtl-g": _methods.METHODS["imtl-g"]._replace(colour="#ee8866"),
}
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "width": 32,
        "edge_units": 32,
        "molecules": 6000,
        "validation": 1000,
        "batch_size": 100,
        "epochs": 40,
        "patience": 0,
        "learning_rate": [5e-3, 1e-2],
    },
    "paper": {
        "width": 64,
        "edge_units": 128,
        "molecules": 0,
        "validation": 10_000,
        "batch_size": 120,
        "epochs": 300,
        "patience": 5,
        "learning_rate": [1e-3],
    },
}
PRESETS["converged"] = PRESETS["paper"] | {"batch_size": 60, "patience": 10}
TEST = 10_000


def number_of(what: str, kind: Any = _command.positive_int) -> Option:
    """An option that the preset gives where it is not given."""
    return Option(kind, f"{what}; by the preset")


OPTIONS = {
    "preset": Option(_command.one_of(list(PRESETS)), " or ".join(PRESETS), metavar="NAME"),
    "methods": _command.methods_option(list(METHODS)),
    "learning_rate": Option(
        _command.positive_float, "to choose from; by the preset", several=True, metavar="RATE"
    ),
    "width": number_of("of the network"),
    "edge_units": number_of("hidden units of an edge"),
    "molecules": number_of("to train on, 0 for all that are left", _command.whole),
    "validation": number_of("molecules to validate on"),
    "test": Option(_command.positive_int, "molecules to test on"),
    "batch_size": number_of("molecules of a step"),
    "epochs": number_of("of a training"),
    "patience": number_of(
        "epochs without progress before the learning rate falls, 0 for a cosine", _command.whole
    ),
    "scale_by": Option(
        _command.one_of(["all", "train"]),
        "molecules whose mean and deviation scale the targets; all is official",
        metavar="WHICH",
    ),
    "data": Option(
        str, "the official raw folder; without it the installed qm9pack", metavar="FOLDER"
    ),
    "split": Option(
        str,
        "a permutation of the molecules (.npy or text), test first, for all seeds",
        metavar="FILE",
    ),
}


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fills in what the preset says, and refuses data that are not there."""
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.source:
        return
    from famo_jax.experiments.problems import _qm9_files

    try:
        _qm9_files.find(options.data)
    except FileNotFoundError as error:
        parser.error(f"argument --data: expected {error}")
    if options.split is not None:
        try:
            read_split(Path(options.split))
        except (OSError, ValueError, EOFError) as error:
            parser.error(f"argument --split: expected a permutation in a file, got {error}")


def read_split(path: Path) -> Array:
    """The numbers of all molecules, each once.

    Raises:
      OSError: It cannot be read.
      ValueError: It holds something else.
    """
    split = np.load(path) if path.suffix == ".npy" else np.loadtxt(path)
    if split.ndim != 1 or not np.array_equal(np.sort(split), np.arange(len(split))):
        raise ValueError(f"{path} with shape {split.shape} or numbers that are not each once")
    return np.asarray(split, np.int64)


# --- The run --------------------------------------------------------------------------------------


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Trains every method at every learning rate and seed."""
    from famo_jax.experiments import _epochs, _train
    from famo_jax.experiments.problems import _qm9_files, qm9

    tell = session.row("molecules")
    tell("reading")
    source = _qm9_files.find(options.data)
    table = _qm9_files.load(source)
    tell("done")
    size, seeds = len(table.counts), range(options.first_seed, options.first_seed + options.seeds)
    split = read_split(Path(options.split)) if options.split is not None else None
    if split is not None and len(split) != size:
        raise OSError(f"{options.split}: expected {size} molecules, got {len(split)}")
    held_out, wanted = options.test + options.validation, max(options.molecules, 1)
    if size < held_out + wanted:
        raise OSError(f"expected at least {held_out + wanted} molecules, got {size}")
    plan = qm9.Plan(
        options.molecules or None, options.validation, options.test, options.scale_by, split
    )
    problem = qm9.problem(
        table,
        plan,
        seeds,
        options.batch_size,
        options.epochs,
        width=options.width,
        edge_units=options.edge_units,
    )
    trained_by = functools.partial(
        _epochs.train,
        score=lambda metrics: 100 * (metrics / qm9.STL - 1).mean(),
        reduce=_epochs.plateau(patience=options.patience) if options.patience else None,
    )

    data = problem.load_data(0, seeds, options.batch_size)
    assert data.epoch
    steps = options.epochs * data.epoch
    more: dict[str, Any] = {"trained_by": trained_by}
    if options.patience:
        more["schedule"] = lambda setting, steps: setting["learning_rate"]

    def arm(name: str) -> "Arm":
        settings = settings_of(METHODS[name], options)
        return _train.Arm(name, problem, data, steps, METHODS[name], settings, seeds, **more)

    runs = _train.run(iter([[arm(name) for name in options.methods]]), session)
    times = {}
    if not options.quick:
        tell = session.row("time of a step")
        tell("measuring")
        timed = [arm(name) for name in dict.fromkeys(["ls", *options.methods])]
        times = _train.measure_steps(timed, steps=4, rounds=9)
        tell("done")
    facts = {
        "molecules": size,
        "trained_on": len(plan.rows(seeds[0], size)[0]),
        "source": source.name,
        "bonds": source.bonds,
        "parameters": qm9.count_parameters(options.width, options.edge_units),
        "steps": steps,
        "tasks": [task._asdict() for task in qm9.TASKS],
        "stl": dict(zip((task.name for task in qm9.TASKS), qm9.STL, strict=True)),
    }
    return runs._replace(facts=runs.facts | {"problem": facts, "times": times})


def settings_of(method: Method, options: argparse.Namespace) -> list[dict[str, float]]:
    """All that a method is trained at: by default as many for each."""
    lists = {"scale": [1.0], "gamma": options.gamma, "logits_rate": options.logits_rate}
    names = [*method.takes, "learning_rate"]
    every = itertools.product(*(lists[name] for name in method.takes), options.learning_rate)
    return [dict(zip(names, values, strict=True)) for values in every]


# --- Summaries ------------------------------------------------------------------------------------

# Table 2 of the paper, with the decimals of the Nash-MTL paper's Table 6 where that has them.
PAPER = {
    "ls": (0.106, 0.325, 73.57, 89.67, 5.19, 14.06, 143.4, 144.2, 144.6, 140.3, 0.128),
    "si": (0.309, 0.345, 149.8, 135.7, 1.00, 4.50, 55.3, 55.75, 55.82, 55.27, 0.112),
    "rlw": (0.113, 0.340, 76.95, 92.76, 5.86, 15.46, 156.3, 157.1, 157.6, 153.0, 0.137),
    "dwa": (0.107, 0.325, 74.06, 90.61, 5.09, 13.99, 142.3, 143.0, 143.4, 139.3, 0.125),
    "uw": (0.386, 0.425, 166.2, 155.8, 1.06, 4.99, 66.4, 66.78, 66.80, 66.24, 0.122),
    "mgda": (0.217, 0.368, 126.8, 104.6, 3.22, 5.69, 88.37, 89.4, 89.32, 88.01, 0.120),
    "pcgrad": (0.106, 0.293, 75.85, 88.33, 3.94, 9.15, 116.36, 116.8, 117.2, 114.5, 0.110),
    "cagrad": (0.118, 0.321, 83.51, 94.81, 3.21, 6.93, 113.99, 114.3, 114.5, 112.3, 0.116),
    "imtl-g": (0.136, 0.287, 98.31, 93.96, 1.75, 5.69, 101.4, 102.4, 102.0, 100.1, 0.096),
    "nash-mtl": (0.102, 0.248, 82.95, 81.89, 2.42, 5.38, 74.5, 75.02, 75.10, 74.16, 0.093),
    "famo": (0.15, 0.30, 94.0, 95.2, 1.63, 4.95, 70.82, 71.2, 71.2, 70.3, 0.10),
}


def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of each method. Methods share seeds, so differences between two are paired."""
    arms, problem, times = runs.facts["arms"], runs.facts["problem"], runs.facts["times"]
    names = [task["name"] for task in problem["tasks"]]
    stl = np.array([problem["stl"][name] for name in names])
    chosen, tests, scores = {}, {}, {}
    for name in arms:
        validation = _statistics.finite(runs.arrays[name]["validation"])
        scores[name] = _statistics.delta_m(validation, stl).mean(axis=1)  # [settings]
        chosen[name] = _statistics.choose(scores[name])
        tests[name] = _statistics.finite(runs.arrays[name]["test"][chosen[name]])  # [seeds, K]
    order = [name for name in METHODS if name in arms]
    by_seed = {name: _statistics.delta_m(test, stl) for name, test in tests.items()}
    seeds = {name: list(arms[name]["seeds"]) for name in arms}

    def paired(values: Mapping[str, Array], name: str, other: str) -> Any:
        """Over the seeds that both have."""
        both = [seed for seed in seeds[name] if seed in seeds[other]]
        if name == other or not both:
            return None
        own, others = (
            values[each][[seeds[each].index(seed) for seed in both]] for each in (name, other)
        )
        difference = own - others
        if difference.ndim == 1:
            return _statistics.estimate(difference)
        return [_statistics.estimate(task) for task in difference.T]

    # Of each seed against the mean of ls, which is fixed: so differences are linear.
    over_ls = {}
    if "ls" in tests:
        base = tests["ls"].mean(axis=0)
        over_ls = {name: _statistics.changes(test, base) for name, test in tests.items()}
    means = {name: each.mean(axis=1) for name, each in over_ls.items()}

    def figures(name: str) -> dict[str, Any]:
        own, index = runs.arrays[name], chosen[name]
        found: dict[str, Any] = {
            "description": METHODS[name].description,
            "seeds": seeds[name],
            "test": dict(zip(names, tests[name].mean(axis=0), strict=True)),
            "test_by_seed": tests[name],
            "delta_m": _statistics.estimate(by_seed[name]),
            "delta_m_by_seed": by_seed[name],
            "validation_delta_m": scores[name],
            "setting": arms[name]["settings"][index],
            "edges": _statistics.edges([arms[name]["settings"][index]], runs.facts["settings"]),
            "best_epoch": own["best_epoch"][index],
            "losses": own["losses"][index].mean(axis=0),
            "validation_curve": _statistics.delta_m(
                _statistics.finite(own["validation_curve"][index]), stl
            ).mean(axis=0),
            "scale": own["scale"][index].mean(axis=0),
        }
        if name in times:
            found["step_seconds"] = times[name]
            found["step_relative_to_ls"] = times[name]["median"] / times["ls"]["median"]
        if over_ls:
            found["over_ls_by_seed"] = means[name]
            found["against"] = {
                other: paired(means, name, other)
                for other in ("ls", "si", "frozen", "first-loss", "uw", "famo")
                if other in tests
            }
            found["change_over_ls"] = paired(over_ls, name, "ls")
        if name in PAPER:
            paper = np.array(PAPER[name])
            found["paper"] = dict(zip(names, paper, strict=True))
            found["paper_delta_m"] = float(_statistics.delta_m(paper, stl))
        if METHODS[name].has_logits:
            found["logit_range"] = own["logit_range"][index].mean(axis=0)
            found["task_weights"] = own["task_weights"][index].mean(axis=0)
        return found

    return {
        "problem": problem,
        "preset": runs.facts["settings"]["preset"],
        "epochs": runs.facts["settings"]["epochs"],
        "methods": {name: figures(name) for name in order},
    }


# --- Tables ---------------------------------------------------------------------------------------


def tables(summary: Summary) -> list[Any]:
    """Errors beside the paper's, delta m, changes against the mean of the losses."""
    parts = [notes(summary), errors_table(summary), delta_m_table(summary)]
    if "ls" in summary["methods"]:
        parts.append(changes_table(summary))
    return parts


def notes(summary: Summary) -> str:
    """What was run."""
    problem, methods = summary["problem"], summary["methods"]
    seeds = sorted({len(each["seeds"]) for each in methods.values()})
    counted = "a seed" if seeds == [1] else f"{' or '.join(map(str, seeds))} seeds"
    lines = [
        f"Preset {summary['preset']}: {problem['parameters']:,} parameters, "
        f"{problem['trained_on']:,} molecules, {problem['steps']:,} steps, {counted}. Data: "
        f"{problem['source']}; bonds: {problem['bonds']}."
    ]
    lines += [
        f"{name}: at the end of its list: {', '.join(each['edges'])}."
        for name, each in methods.items()
        if each["edges"]
    ]
    return "\n".join(lines)


def short(value: float) -> str:
    """Three digits in at most five characters."""
    if not np.isfinite(value):
        return "nan"
    text = f"{value:#.3g}"
    return f"{value:.0f}" if "e" in text or value >= 100 else text.removeprefix("0")


def errors_table(summary: Summary) -> Any:
    """A row a method; below it the paper's, and by how much ours is above that."""
    tasks = [task["name"] for task in summary["problem"]["tasks"]]
    table = _tables.new("Mean absolute error on test (meV for energies)", ["method"], tasks)
    for name, each in summary["methods"].items():
        table.add_row(name, *(short(each["test"][task]) for task in tasks))
        if "paper" in each:
            table.add_row("  paper", *(short(each["paper"][task]) for task in tasks))
            more = (100 * (each["test"][task] / each["paper"][task] - 1) for task in tasks)
            table.add_row("  ours +%", *(f"{change:+.0f}" for change in more))
    return table


def delta_m_table(summary: Summary) -> Any:
    """Against the official single-task networks, and against others of this run."""
    methods = summary["methods"]
    others = [name for name in ("ls", "si", "first-loss") if name in methods]
    headers = ("Δm to\nofficial\nstl (%)", "paper's\nΔm")
    more = ("best\nepoch", "learn.\nrate", "logit\nrange", "step\n/ ls")
    table = _tables.new(
        "Δm, and the mean change of the errors against others, paired by seed: mean±95%",
        ["method"],
        (*headers, *(f"-{name}\n(%)" for name in others if "ls" in methods), *more),
    )
    for name, each in methods.items():
        step, ranges = each.get("step_relative_to_ls"), each.get("logit_range")
        against = [each["against"].get(other) for other in others] if "ls" in methods else []
        table.add_row(
            name,
            _tables.with_error(each["delta_m"], space=""),
            f"{each['paper_delta_m']:.1f}" if "paper_delta_m" in each else "",
            *map(_told, against),
            f"{np.mean(each['best_epoch']):.0f}",
            f"{each['setting']['learning_rate']:g}",
            f"{ranges[0]:.2f}" if ranges else "",
            f"{step:.2f}" if step else "",
        )
    return table


def _told(estimate: Any) -> str:
    """Of a single seed there is no interval."""
    if not isinstance(estimate, Mapping):
        return ""
    if not np.isfinite(estimate["se"]):
        return f"{estimate['mean']:+.1f}"
    return _tables.with_interval(estimate)


def changes_table(summary: Summary) -> Any:
    """Of each error against that of the mean of the losses; a star where 95% leave out 0."""
    tasks = [task["name"] for task in summary["problem"]["tasks"]]
    table = _tables.new(
        "Change of each error against ls (%), *: zero is outside of its 95%", ["method"], tasks
    )
    for name, each in summary["methods"].items():
        if isinstance(each["change_over_ls"], list):
            table.add_row(
                name,
                *(
                    f"{task['mean']:+.0f}{'*' if task['low'] * task['high'] > 0 else ''}"
                    for task in each["change_over_ls"]
                ),
            )
    return table


# --- The picture ----------------------------------------------------------------------------------


def draw(summary: Summary) -> Any:
    """Changes against ls by task and on average, validation over epochs, task weights."""
    from matplotlib import colormaps

    from famo_jax.experiments import _plots

    methods = summary["methods"]
    tasks = [task["name"] for task in summary["problem"]["tasks"]]
    epochs = np.arange(1, summary["epochs"] + 1)
    figure: Any
    with _plots.picture(height=8.4) as figure:
        above, middle, below = figure.subfigures(3, 1, height_ratios=(1, 1.1, 1))
        _draw_changes(above.subplots(), methods, tasks)
        left, right = middle.subplots(1, 2)
        _draw_means(left, methods)
        curves = {
            name: (np.array(each["validation_curve"]), METHODS[name].colour)
            for name, each in methods.items()
        }
        right.set_yscale("log")
        _plots.lines(right, epochs, curves)
        _plots.plain_numbers(right.yaxis)
        right.set_title("Δm on validation, against the official STL (%)")
        right.set_xlabel("epoch")
        forms = [
            name for name in ("famo", "famo-ema-no-c") if "task_weights" in methods.get(name, {})
        ]
        forms = forms or [name for name, each in methods.items() if "task_weights" in each][:2]
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(tasks)))
        for axes, name in zip(
            np.atleast_1d(below.subplots(1, max(len(forms), 1))), forms, strict=False
        ):
            weights = np.array(methods[name]["task_weights"])
            series = dict(zip(tasks, zip(weights.T, colours, strict=True), strict=True))
            _plots.lines(axes, epochs, series)
            axes.set_title(f"task weights of {name}")
            axes.set_xlabel("epoch")
    return figure


def _draw_changes(axes: Any, methods: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """Of each error against ls, a point a method, with its 95%."""
    shown = {
        name: each["change_over_ls"]
        for name, each in methods.items()
        if isinstance(each.get("change_over_ls"), list)
    }
    for place, (name, changes) in enumerate(shown.items()):
        x = np.arange(len(tasks)) + 0.07 * (place - (len(shown) - 1) / 2)
        means = np.array([task["mean"] for task in changes])
        half = np.array([(task["high"] - task["low"]) / 2 for task in changes])
        axes.errorbar(
            x,
            means,
            half if np.isfinite(half).all() else None,
            fmt="o",
            color=METHODS[name].colour,
            markersize=3.5,
            linewidth=1,
            label=name,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_ylabel("change (%)")
    axes.set_title("each error against ls")
    if shown:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=min(len(shown), 6))


def _draw_means(axes: Any, methods: Mapping[str, Any]) -> None:
    """The mean over tasks."""
    from famo_jax.experiments import _plots

    rows = {}
    for name, each in methods.items():
        if isinstance(each.get("against", {}).get("ls"), Mapping):
            ls = np.array(methods["ls"]["over_ls_by_seed"])
            own = np.array(each["over_ls_by_seed"])
            if len(own) == len(ls):
                own = own - ls
            rows[name] = (each["against"]["ls"], METHODS[name].colour, own.tolist())
    axes.set_title("their mean, lower is better")
    axes.axvline(0, color="black", linewidth=0.8)
    if rows:
        _plots.estimates(axes, rows, "against ls (%): mean, 95%, each seed")


METHODS_SHOWN = "ls si frozen first-loss uw famo famo-ema-no-c nash-slope imtl-g"
FULL = "--preset small --seeds 3 --first-seed 0 --gamma 1e-3 --logits-rate 5e-3 --scale-by all "
FULL += f"--test {TEST} --methods {METHODS_SHOWN}"
STUDY = Study(
    name="qm9",
    title="QM-9: eleven properties of real molecules, as in the paper",
    seconds=5400,
    full=FULL,
    quick="--seeds 1 --methods ls si famo famo-ema-no-c --learning-rate 3e-3 --molecules 1000 "
    "--epochs 3 --test 2000",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"qm9.png": draw},
    options=OPTIONS,
    curves=frozenset({"losses", "validation_curve", "scale", "task_weights", "test_by_seed"}),
    epilog=f"{described(METHODS)}\n\nmethods that aggregate do so at the features",
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
