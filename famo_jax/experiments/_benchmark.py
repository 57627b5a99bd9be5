r"""A benchmark of the paper: training by epochs, summed up beside the paper's rows.

Every method is trained at every learning rate; validation chooses, on the mean over seeds.
:math:`\Delta m` is against the single-task networks' figures that the official code holds or,
with the method "stl", against those of the run's own.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax import weighting
from famo_jax.experiments import _command, _methods, _statistics
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import Method
from famo_jax.experiments._study import Option

if TYPE_CHECKING:
    from famo_jax.experiments import _train
    from famo_jax.experiments.problems._problem import Problem, Task

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
# Of a summary: what no table needs.
CURVES = frozenset(
    {"losses", "validation_curve", "scale", "task_weights", "test_by_seed", "chosen"}
)
# Options by which figures differ: what is odd about the official code, and what is left open.
SWITCHES = ("statistics", "stl_statistics", "inverse_depth", "scale_by", "tested", "last",
            "held_out", "augment", "aggregate_at")  # fmt: skip
EPOCHS = Option(_command.whole, "of a training; by the preset. 0: only a step is timed")
STL = "stl"  # a network for each task, an arm each: "stl-TASK"


def number_of(what: str, kind: Any = _command.positive_int) -> Option:
    """An option that the preset gives where it is not given."""
    return Option(kind, f"{what}; by the preset")


LEARNING_RATE = Option(
    _command.positive_float, "to choose from; by the preset", several=True, metavar="RATE"
)


def fill_in(options: argparse.Namespace, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """What the preset says, where it is not given."""
    for name, value in presets[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def settings_of(method: Method, options: argparse.Namespace) -> list[dict[str, float]]:
    """All that a method is trained at: by default as many for each."""
    lists = {"scale": [1.0], "gamma": options.gamma, "logits_rate": options.logits_rate}
    names = [*method.takes, "learning_rate"]
    every = itertools.product(*(lists[name] for name in method.takes), options.learning_rate)
    return [dict(zip(names, values, strict=True)) for values in every]


# --- Data in a folder -----------------------------------------------------------------------------


def facts_of(folder: str) -> dict[str, Any]:
    """Its name, and whether what it holds was drawn by this project."""
    from famo_jax.experiments.make import _write

    return {"data": folder, "made": (Path(folder) / _write.FACTS).exists()}


def data(problem: Mapping[str, Any]) -> str:
    """What is to be said of it."""
    made = ": drawings, which say nothing about the real ones" if problem.get("made") else ""
    return f"Data: {problem['data']}{made}."


# --- The run --------------------------------------------------------------------------------------


def train(
    options: argparse.Namespace,
    session: "_train.Session",
    problem: "Problem",
    trained_by: Callable[..., Any],
    metrics: Sequence["Task"],
    stl: Sequence[float],
    facts: Mapping[str, Any],
    *,
    of_task: "Callable[[str], Problem] | None" = None,
    at_once: int | None = None,
    **more: Any,
) -> Runs:
    """Trains every method at every learning rate and seed.

    Args:
      options: Of the command line.
      session: What is reported to.
      problem: With all tasks.
      trained_by: See :class:`_train.Arm`.
      metrics: What is measured.
      stl: That of the official single-task networks.
      facts: To be told of the problem.
      of_task: Returns the problem of one task by its name, for the method "stl".
      at_once: How many methods are trained beside each other. None: all.
      more: Of the arms.
    """
    from famo_jax.experiments import _train

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    data = problem.load_data(0, seeds, options.batch_size)
    assert data.epoch
    steps = max(options.epochs, 1) * data.epoch

    def arm(name: str, method: str, own: "Problem") -> _train.Arm:
        settings = settings_of(METHODS[method], options)
        return _train.Arm(
            name, own, data, steps, METHODS[method], settings, seeds, trained_by=trained_by, **more
        )

    arms = [arm(name, name, problem) for name in options.methods if name != STL]
    if STL in options.methods:
        assert of_task
        arms += [arm(f"{STL}-{task.name}", "ls", of_task(task.name)) for task in problem.tasks]

    def plan() -> "_train.Plan":
        size = at_once or len(arms)
        for start in range(0, len(arms), size):
            yield arms[start : start + size]

    runs = _train.run(plan(), session) if options.epochs else Runs({"arms": {}}, {})
    times = {}
    if not options.quick or not options.epochs:
        tell = session.row("time of a step")
        tell("measuring")
        names = dict.fromkeys(["ls", *(name for name in options.methods if name != STL)])
        timed = [arm(name, name, problem) for name in names]
        of_call = 1 if problem.step_by_step or not options.epochs else 4
        times = _train.measure_steps(timed, of_call, rounds=9 if options.epochs else 2)
        tell("done")
    of_problem = {
        **facts,
        "steps": steps,
        "tasks": [metric._asdict() for metric in metrics],
        "losses": [task.name for task in problem.tasks],
        "stl": dict(zip((metric.name for metric in metrics), stl, strict=True)),
    }
    return runs._replace(facts=runs.facts | {"problem": of_problem, "times": times})


# --- Summaries ------------------------------------------------------------------------------------

# Of a method what the paper prints: its metrics, or delta m alone.
Paper = Mapping[str, Sequence[float] | float]
OPPONENTS = ("ls", "si", "frozen", "first-loss", "uw", "famo")


def summarize(paper: Paper, runs: Runs) -> dict[str, Any]:
    """The figures of each method, beside the paper's where the data are the paper's.

    Methods share seeds, so that differences between two are paired.
    """
    arms, problem, times = runs.facts["arms"], runs.facts["problem"], runs.facts["times"]
    settings = runs.facts["settings"]
    if problem.get("made"):
        paper = {}
    names = [task["name"] for task in problem["tasks"]]
    higher = np.array([task["higher_is_better"] for task in problem["tasks"]])
    delta_m = functools.partial(_statistics.delta_m, higher_is_better=higher)
    official = np.array([problem["stl"][name] for name in names])
    # What was measured besides stands behind that.
    values = {
        name: {split: _statistics.finite(runs.arrays[name][split]) for split in
               ("validation", "test", "validation_curve")} for name in arms
    }  # fmt: skip
    singles = [name for name in arms if name.startswith(f"{STL}-")]
    own_stl, own_settings = _single_tasks([values[name] for name in singles], higher)
    stl = own_stl or {"validation": official, "test": official}
    tests, scores = {}, {}
    chosen = dict(zip(singles, own_settings, strict=True))
    for name in [each for each in arms if each not in singles]:
        validation = values[name]["validation"][..., : len(names)]
        scores[name] = delta_m(validation, stl["validation"]).mean(axis=1)  # [settings]
        chosen[name] = _statistics.choose(scores[name])
        tests[name] = values[name]["test"][chosen[name]][:, : len(names)]  # [seeds, M]
    order = [name for name in METHODS if name in tests]
    by_seed = {name: delta_m(test, stl["test"]) for name, test in tests.items()}
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

    # Of each seed against the mean of ls, which is fixed: so differences are linear. What is 0
    # there, as F1 of what is never found, has no change.
    over_ls, base = {}, tests["ls"].mean(axis=0) if "ls" in tests else np.zeros(len(names))
    if (known := (base != 0) & np.isfinite(base)).any():
        base = np.where(known, base, np.nan)
        over_ls = {name: _statistics.changes(test, base, higher) for name, test in tests.items()}
    means = {name: each[:, known].mean(axis=1) for name, each in over_ls.items()}

    def figures(name: str) -> dict[str, Any]:
        own, index = runs.arrays[name], chosen[name]
        curve = values[name]["validation_curve"][index][..., : len(names)]
        found: dict[str, Any] = {
            "description": METHODS[name].description,
            "seeds": seeds[name],
            "test": dict(zip(names, tests[name].mean(axis=0), strict=True)),
            "test_by_seed": tests[name],
            "delta_m": _statistics.estimate(by_seed[name]),
            "delta_m_by_seed": by_seed[name],
            "validation_delta_m": scores[name],
            "setting": arms[name]["settings"][index],
            "edges": _statistics.edges([arms[name]["settings"][index]], settings),
            "best_epoch": own["best_epoch"][index],
            "losses": own["losses"][index].mean(axis=0),
            "validation_curve": delta_m(curve, stl["validation"]).mean(axis=0),
            "scale": own["scale"][index].mean(axis=0),
        }
        besides = values[name]["test"][index][:, len(names) :].mean(axis=0)
        if besides.size:
            found["pooled"] = dict(zip(names, besides, strict=True))
        if name in times:
            found["step_seconds"] = times[name]
            found["step_relative_to_ls"] = times[name]["median"] / times["ls"]["median"]
        if over_ls:
            found["over_ls_by_seed"] = means[name]
            found["against"] = {
                other: paired(means, name, other) for other in OPPONENTS if other in tests
            }
            found["change_over_ls"] = paired(over_ls, name, "ls")
        if name in paper:
            printed = np.array(paper[name])
            if printed.ndim:
                found["paper"] = dict(zip(names, printed, strict=True))
            found["paper_delta_m"] = float(delta_m(printed, official) if printed.ndim else printed)
        if METHODS[name].has_logits:
            found["logit_range"] = own["logit_range"][index].mean(axis=0)
            found["task_weights"] = own["task_weights"][index].mean(axis=0)
        return found

    return {
        "problem": problem,
        "preset": settings["preset"],
        "switches": {name: settings[name] for name in SWITCHES if name in settings},
        "epochs": settings["epochs"],
        "stl": dict(zip(names, stl["test"], strict=True)) if own_stl else {},
        "steps": {} if tests else times,
        "chosen": chosen,  # settings of all arms
        "methods": {name: figures(name) for name in order},
    }


def _single_tasks(
    singles: Sequence[Mapping[str, Array]], higher: Array
) -> tuple[dict[str, Array], list[int]]:
    """Of each task's network the metrics that it has, ``[M]``, at the setting best for them.

    That setting stands beside them. Without such networks there are no metrics.
    """
    settings: list[int] = []
    if not singles:
        return {}, settings
    found: dict[str, Array] = {"validation": np.full(len(higher), np.nan)}
    found["test"] = found["validation"].copy()
    for own in singles:
        means = {split: own[split][..., : len(higher)].mean(axis=1) for split in found}
        at = np.isfinite(means["validation"]).any(axis=0)
        validation = means["validation"][:, at]
        scores = _statistics.delta_m(validation, validation.mean(axis=0), higher[at])
        settings.append(best := _statistics.choose(scores))
        for split in found:
            found[split][at] = means[split][best, at]
    return found, settings
