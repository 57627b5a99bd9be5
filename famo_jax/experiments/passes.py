r"""One-pass or two-pass? ``python -m famo_jax.experiments.passes``.

FAMO steps its logits by how much each log loss fell. *One-pass* takes the change from the batch
before to this one, *two-pass* that of one batch before and after the step, and the *oracle*, which
nobody would pay for, that of a batch which the step has not seen. The controls beside them are FAMO
whose logits stay at zero (*frozen*), and the mean of the log losses (*si*), against whose test
metrics every :math:`\Delta m` is taken. Along the trajectory of *frozen* all three are computed: so
it shows what they measure, whatever they would do with it.

At each batch size validation chooses gamma for each variant, and the learning rate of the model
for *si* and for *frozen*. The variants take that of *frozen*, which differs from them in its logits
alone, so that the rate favours the control if anything. All share seeds, so differences are paired.
"""

import argparse
import functools
import importlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import famo_jax
from famo_jax.experiments import _arguments, _report, _study
from famo_jax.experiments._study import Data, Problem, Task

Array = npt.NDArray[Any]

PROBLEMS = ("regression", "digits", "attributes")


def problem_of(name: str) -> Problem:
    """The problem of the study with this name."""
    problem: Problem = importlib.import_module(f"famo_jax.experiments.{name}").PROBLEM
    return problem


# --- Variants -------------------------------------------------------------------------------------

MEASURES = ("one-pass", "two-pass", "oracle")


class Variant(NamedTuple):
    """How the logits are stepped."""

    description: str
    colour: str
    measure: str
    logits_rate: float = 0.025
    smoothing: float = 0.0  # decay of optax.ema before Adam


VARIANTS = {
    "si": Variant("mean of the log losses", "#56b4e9", "one-pass", 0.0),
    "frozen": Variant("logits held at 0", "#0072b2", "one-pass", 0.0),
    "one-pass": Variant("change from batch to batch", "#009e73", "one-pass"),
    "one-pass-ema": Variant("the same behind optax.ema(0.9)", "#cc79a7", "one-pass", smoothing=0.9),
    "two-pass": Variant("change on the batch of the step", "#d55e00", "two-pass"),
    "oracle": Variant("change on a fresh batch", "black", "oracle"),
}
CONTROLS = ("si", "frozen")
LEARNING = tuple(name for name in VARIANTS if name not in CONTROLS)


class Setting(NamedTuple):
    """What a run is told. Scalars, which may be traced."""

    rate: jax.typing.ArrayLike  # of the model's Adam
    gamma: jax.typing.ArrayLike
    measure: jax.typing.ArrayLike  # index into MEASURES
    logits_rate: jax.typing.ArrayLike
    smoothing: jax.typing.ArrayLike
    normalized: jax.typing.ArrayLike  # by the paper's c
    records: jax.typing.ArrayLike  # all measures, not only the one that moves the logits


def setting(name: str, rate: float, gamma: float, normalizer: str) -> Setting:
    """Of the variant with this name. ``si`` is FAMO with c = 1 whose logits stay at zero."""
    variant = VARIANTS[name]
    values = Setting(
        rate=float(rate),
        gamma=float(gamma),
        measure=MEASURES.index(variant.measure),
        logits_rate=variant.logits_rate,
        smoothing=variant.smoothing,
        normalized=name != "si" and normalizer == "harmonic",
        records=name == "frozen",
    )
    return Setting(*map(jnp.asarray, values))


class Trace(NamedTuple):
    """What a step leaves behind."""

    losses: jax.Array  # [K]
    # [3, K], how much each log loss fell by each of MEASURES, NaN by those that are not recorded;
    # 0 by one-pass at the first step
    changes: jax.Array
    task_weights: jax.Array  # [K], z
    logits_range: jax.Array  # []


class Run(NamedTuple):
    """A training run. Those of a setting have a leading axis [seeds]."""

    trace: Trace  # [steps]
    fallen: jax.Array  # [K], how much each log loss fell on the validation data, start to end
    validation: jax.Array  # [K], metrics
    test: jax.Array  # [K]


def train(
    problem: Problem,
    setting: Setting,
    params: chex.ArrayTree,
    batches: Any,
    validation: Any,
    test: Any,
) -> Run:
    """Trains one network: one :func:`jax.lax.scan`.

    Args:
      problem: The tasks.
      setting: Scalars.
      params: The initial ones.
      batches: ``[steps, 2 batch_size]``: the first half is for the step, the other for the oracle.
      validation: Held-out data.
      test: Likewise.
    """
    steps = len(jax.tree.leaves(batches)[0])
    adam = optax.adam(optax.cosine_decay_schedule(setting.rate, steps))
    famo = famo_jax.famo(
        len(problem.tasks),
        weight_decay=setting.gamma,
        normalizer=None,
        optimizer=optax.chain(optax.ema(setting.smoothing), optax.adam(setting.logits_rate)),
    )

    def step(carry: Any, both: Any) -> tuple[Any, Trace]:
        params, opt_state, state = carry
        batch, fresh = _halves(both)

        def losses_fn(params: chex.ArrayTree) -> jax.Array:
            return problem.task_losses(params, batch)

        losses, grads = famo_jax.losses_and_grads(losses_fn)(params, state=state)
        c = 1 / jnp.sum(famo_jax.loss_weights(losses, state))
        grads = jax.tree.map(lambda leaf: jnp.where(setting.normalized, c, 1) * leaf, grads)
        updates, opt_state = adam.update(grads, opt_state, params)
        new_params = optax.apply_updates(params, updates)

        def two_pass() -> jax.Array:
            return jnp.stack([losses, losses_fn(new_params)])

        def oracle() -> jax.Array:
            return jnp.stack([problem.task_losses(each, fresh) for each in (params, new_params)])

        # All runs of a call share the setting, so what is not wanted is not computed.
        before_and_after = jnp.stack(
            [jnp.stack([state.losses, losses])]
            + [
                jax.lax.cond(
                    jnp.logical_or(setting.records, setting.measure == MEASURES.index(name)),
                    measure,
                    lambda: jnp.full((2, losses.size), jnp.nan),
                )
                for name, measure in (("two-pass", two_pass), ("oracle", oracle))
            ]
        )
        z = famo_jax.task_weights(state)
        before, after = before_and_after[setting.measure]
        _, state = famo.update({}, state, losses=before, new_losses=after)
        # What one-pass remembers is the batch's losses, whatever moves the logits.
        state = state._replace(losses=losses)
        logs = jnp.log(before_and_after)
        changes = jnp.where(jnp.isinf(logs[:, 0]), 0, logs[:, 0] - logs[:, 1])
        trace = Trace(losses, changes, z, jnp.ptp(state.logits))
        return (new_params, opt_state, state), trace

    start = params, adam.init(params), famo.init(params)
    (end, *_), trace = jax.lax.scan(step, start, batches)
    held_out = [jnp.log(problem.task_losses(each, validation)) for each in (params, end)]
    return Run(
        trace,
        held_out[0] - held_out[1],
        problem.task_metrics(end, validation),
        problem.task_metrics(end, test),
    )


def _halves(both: Any) -> tuple[Any, Any]:
    """Of the first axis of every leaf."""
    size = len(jax.tree.leaves(both)[0]) // 2
    return jax.tree.map(lambda leaf: leaf[:size], both), jax.tree.map(
        lambda leaf: leaf[size:], both
    )


def compile_runs(problem: Problem, data: Data) -> Callable[[Setting], Run]:
    """Compiles the runs of a setting, one for each seed, for any setting."""
    params = problem.init_params(jax.tree.leaves(data.train)[0].shape[1])
    over_seeds = jax.vmap(functools.partial(train, problem), in_axes=(None, 0, 1, None, None))
    compiled = jax.jit(over_seeds).lower(setting("si", 1.0, 0.0, "None"), params, *data).compile()
    return lambda setting: compiled(setting, params, *data)


# --- The study ------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A variant at one batch size, for each gamma and at the one that validation chose."""

    rate: float
    gammas: tuple[float, ...]  # one for a control
    scores: Array  # [gammas], mean delta m on validation
    chosen: int  # index into gammas
    delta_m: Array  # [gammas, seeds], on test, less that of si with the same seed
    logits_range: Array  # [gammas, seeds], at the end
    most_range: Array  # [gammas, seeds], the widest of any step
    run: Run  # the chosen one's, on the host

    @property
    def best(self) -> Array:
        """Delta m of the chosen gamma on test, ``[seeds]``."""
        return np.asarray(self.delta_m[self.chosen])


def run_study(
    problem: Problem,
    normalizer: str,
    rates: Sequence[float],
    gammas: Sequence[float],
    call: Callable[[Setting], Run],
    advance: Callable[[], None],
) -> dict[str, Result]:
    """Trains every variant at all its settings, and chooses one for each."""

    def runs(name: str, rates: Sequence[float], gammas: Sequence[float]) -> list[Run]:
        def one(each: tuple[float, float]) -> Run:
            run: Run = jax.tree.map(np.asarray, call(setting(name, *each, normalizer)))
            advance()
            return run

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, [(rate, gamma) for rate in rates for gamma in gammas]))

    controls = {name: runs(name, rates, [0.0]) for name in CONTROLS}
    # What a mean over tasks of relative differences is against: si at its first rate, to choose
    # its rate, and after that si.
    first = controls["si"][0]
    chosen = {
        name: _argmin([_score(problem, run.validation, first.validation) for run in each])
        for name, each in controls.items()
    }
    si = controls["si"][chosen["si"]]
    noise = _delta_m(problem, si.test, si.test)  # of a seed, which all variants share

    def result(name: str) -> Result:
        control = name if name in CONTROLS else "frozen"
        rate = rates[chosen[control]]
        own_gammas = (0.0,) if name in CONTROLS else tuple(gammas)
        own = [controls[name][chosen[name]]] if name in CONTROLS else runs(name, [rate], gammas)
        scores = [_score(problem, run.validation, si.validation) for run in own]
        best = _argmin(scores)
        return Result(
            rate,
            own_gammas,
            np.array(scores),
            best,
            np.stack([_delta_m(problem, run.test, si.test) - noise for run in own]),
            np.stack([run.trace.logits_range[:, -1] for run in own]),
            np.stack([run.trace.logits_range.max(axis=1) for run in own]),
            own[best],
        )

    return {name: result(name) for name in VARIANTS}


def _delta_m(problem: Problem, metrics: Any, baseline: Any) -> Array:
    """Of ``[seeds, K]`` against the mean of another's: ``[seeds]``."""
    values = np.where(np.isfinite(metrics), metrics, np.nan).astype(np.float64)
    return _study.delta_m(problem.tasks, values, np.asarray(baseline, np.float64).mean(axis=0))


def _score(problem: Problem, metrics: Any, baseline: Any) -> float:
    return float(_delta_m(problem, metrics, baseline).mean())


def _argmin(values: Sequence[float]) -> int:
    """Where the least value is. NaN is never the least."""
    return int(np.argmin(np.where(np.isnan(values), np.inf, values)))


# --- What the changes measure ---------------------------------------------------------------------


def sums(run: Run) -> dict[str, Array]:
    """What each measure adds up to over a run, and how much the held-out log losses fell.

    Returns:
      ``[seeds, K]`` for each of the three measures and for ``"held-out"``.
    """
    totals = np.asarray(run.trace.changes, np.float64).sum(axis=1)
    return dict(zip(MEASURES, np.moveaxis(totals, 1, 0), strict=True)) | {
        "held-out": np.asarray(run.fallen, np.float64)
    }


WINDOWS = 10


def signal_to_noise(run: Run) -> dict[str, Array]:
    """How far a step's changes of the tasks differ, over how far noise moves that.

    The signal of a task in a stretch of steps is its change less the mean of all tasks', averaged
    over steps and seeds of the oracle, which no batch biases. The noise is the standard deviation
    of the same, a step at a time, by each measure. Both are root mean squares over tasks.

    Returns:
      ``[WINDOWS]`` for each of the three measures; NaN where a seed diverged.
    """
    changes = np.asarray(run.trace.changes, np.float64)[:, 1:]  # [seeds, steps, 3, K]
    contrasts = changes - changes.mean(axis=-1, keepdims=True)

    def ratio(window: Array, measure: int) -> float:
        signal = window[:, :, MEASURES.index("oracle")].mean(axis=(0, 1))
        noise = window[:, :, measure].std(axis=(0, 1))
        return float(np.sqrt(np.mean(signal**2) / np.mean(noise**2)))

    windows = np.array_split(contrasts, WINDOWS, axis=1)
    return {
        name: np.array([ratio(window, measure) for window in windows])
        for measure, name in enumerate(MEASURES)
    }


# --- The report -----------------------------------------------------------------------------------

# What is compared with what: the leads, as differences of delta m, paired by seed.
PAIRS = (
    ("two-pass", "frozen"),
    ("one-pass", "frozen"),
    ("one-pass", "two-pass"),
    ("one-pass-ema", "one-pass"),
    ("one-pass-ema", "two-pass"),
    ("oracle", "two-pass"),
)

Results = Mapping[str, Mapping[int, Mapping[str, Result]]]  # by problem, batch size, variant


@np.errstate(invalid="ignore")  # a loss at its bound is log 0, and what follows NaN
def summarize(tasks: Sequence[Task], results: Mapping[str, Result]) -> dict[str, Any]:
    """The figures of a problem at a batch size."""
    frozen = results["frozen"].run
    totals, ratios = sums(frozen), signal_to_noise(frozen)

    def paired(name: str, other: str) -> dict[str, Any]:
        difference = results[name].best - results[other].best
        return {"mean": difference.mean(), "interval": _study.interval(difference)}

    def total(name: str) -> dict[str, Any]:
        beyond = totals[name] - totals["held-out"]
        return {
            "mean": totals[name].mean(axis=0),
            "beyond_held_out": beyond.mean(axis=0),
            "beyond_held_out_interval": [_study.interval(task) for task in beyond.T],
        }

    return {
        "tasks": [task.name for task in tasks],
        "variants": {
            name: {
                "description": VARIANTS[name].description,
                "learning_rate": result.rate,
                "gamma": result.gammas[result.chosen],
                "delta_m": result.best.mean(),
                "delta_m_interval": _study.interval(result.best),
                "delta_m_by_seed": result.best,
                "against": {other: paired(name, other) for other in CONTROLS if other != name},
                "by_gamma": [
                    {
                        "gamma": gamma,
                        "validation_delta_m": score,
                        "delta_m": values.mean(),
                        "delta_m_interval": _study.interval(values),
                        "logits_range": drift.mean(),
                        "most_logits_range": most.mean(),
                    }
                    for gamma, score, values, drift, most in zip(
                        result.gammas,
                        result.scores,
                        result.delta_m,
                        result.logits_range,
                        result.most_range,
                        strict=True,
                    )
                ],
                "test": np.mean(result.run.test, axis=0),
                "task_weights": np.mean(result.run.trace.task_weights[:, -1], axis=0),
            }
            for name, result in results.items()
        },
        "pairs": {f"{name} - {other}": paired(name, other) for name, other in PAIRS},
        "sums_of_frozen": {name: total(name) for name in totals},
        "signal_to_noise_of_frozen": ratios,
    }


Summary = Mapping[str, Mapping[int, Any]]  # by problem and batch size


def _table(
    title: str, columns: Sequence[str], summary: Summary, cells: Callable[..., Any]
) -> Table:
    """A row for each problem and batch size."""
    rows = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        title_justify="left",
    )
    rows.add_column("problem, batch", no_wrap=True)
    for column in columns:
        rows.add_column(column, justify="right", no_wrap=True)
    for problem, sizes in summary.items():
        for size, figures in sizes.items():
            rows.add_row(f"{problem} {size}", *cells(figures))
    return rows


def _plus_minus(values: tuple[float, tuple[float, float]], sign: str) -> str:
    mean, (low, high) = values
    decimals = 0 if abs(mean) >= 100 and "+" in sign else 1
    return f"{mean:{sign}.{decimals}f}±{(high - low) / 2:.{decimals}f}"


def tables(summary: Summary) -> list[Table]:
    """Delta m of each variant, what the leads come to, and what the measures measure."""

    def scores(figures: Mapping[str, Any]) -> Iterator[str]:
        for name, own in figures["variants"].items():
            if name != "si":
                cell = _plus_minus((own["delta_m"], own["delta_m_interval"]), "z")
                if name in LEARNING:
                    drift = next(
                        each["most_logits_range"]
                        for each in own["by_gamma"]
                        if each["gamma"] == own["gamma"]
                    )
                    cell += f"\n{own['gamma']:g}; {drift:.2f}"
                yield cell

    def leads(figures: Mapping[str, Any]) -> Iterator[str]:
        for own in figures["pairs"].values():
            yield _plus_minus((own["mean"], own["interval"]), "+z")

    def measures(figures: Mapping[str, Any]) -> Iterator[str]:
        sums = figures["sums_of_frozen"]
        yield f"{np.mean(sums['held-out']['mean']):.2f}"
        for name in MEASURES:
            intervals = sums[name]["beyond_held_out_interval"]
            above = sum(low > 0 for low, _ in intervals)
            ratios = figures["signal_to_noise_of_frozen"][name]
            yield (
                f"{np.mean(sums[name]['mean']):.2f}; {above}/{len(intervals)}"
                f"\n{ratios[0]:.2g}; {ratios[-1]:.2g}"
            )

    return [
        _table(
            "Δm against si (%), lower is better: mean, 95% interval;\n"
            "below it gamma, and the widest range of the logits",
            [name for name in VARIANTS if name != "si"],
            summary,
            scores,
        ),
        _table(
            "Differences of Δm, paired by seed: mean, 95% interval",
            [f"{name}\n- {other}".replace("one-pass-ema", "ema") for name, other in PAIRS],
            summary,
            leads,
        ),
        _table(
            "Sums of each measure in a run of frozen, mean over tasks;\n"
            "on how many tasks they are above held-out data's (95%);\n"
            "below: signal to noise of a step, first tenth and last",
            ["held-out", *MEASURES],
            summary,
            measures,
        ),
    ]


# --- The figure -----------------------------------------------------------------------------------

LINES: tuple[Literal[":", "--", "-"], ...] = (":", "--", "-")  # of the batch sizes


def draw(results: Results, summary: Summary, path: Path) -> None:
    """A column for each problem."""
    with _study.style():
        figure = Figure(figsize=(8.5, 9.5), dpi=200, layout="constrained")
        panels = figure.subplots(5, len(results), squeeze=False)
        for column, (problem, sizes) in zip(panels.T, summary.items(), strict=True):
            middle = sorted(sizes)[len(sizes) // 2]
            column[0].set_title(f"{problem}, gamma by validation")
            _draw_by_size(column[0], sizes)
            for axes, quantity in zip(column[1:3], ("delta_m", "most_logits_range"), strict=True):
                axes.set_title(f"{problem}, batch {middle}")
                _draw_by_gamma(axes, sizes[middle], quantity)
            column[3].set_title(f"{problem}, batch {middle}, frozen")
            _draw_totals(column[3], results[problem][middle]["frozen"].run)
            column[4].set_title(f"{problem}, frozen")
            _draw_ratios(column[4], sizes)
        labels = [*2 * ["Δm against si (%)"], "widest range of the logits"]
        labels += ["sum of changes, mean of tasks", "signal to noise of a step"]
        for axes, label in zip(panels[:, 0], labels, strict=True):
            axes.set_ylabel(label)
        handles = [
            Line2D([], [], color=variant.colour, marker=".", label=name)
            for name, variant in VARIANTS.items()
        ]
        handles.append(
            Line2D([], [], color="#0072b2", marker="D", linestyle="", label="fall of held-out loss")
        )
        figure.legend(handles=handles, loc="outside upper center", ncols=7, columnspacing=1)
        sizes = max(summary.values(), key=len)
        panels[4, 0].legend(
            handles=[
                Line2D([], [], color="black", linestyle=line, label=f"batch {size}")
                for size, line in zip(sizes, itertools.cycle(LINES), strict=False)
            ]
        )
        figure.savefig(path, pil_kwargs={"optimize": True})


def _draw_by_size(axes: Axes, sizes: Mapping[int, Any]) -> None:
    for place, (name, variant) in enumerate(VARIANTS.items()):
        own = [figures["variants"][name] for figures in sizes.values()]
        half = [(each["delta_m_interval"][1] - each["delta_m_interval"][0]) / 2 for each in own]
        # Side by side, so that intervals do not hide each other.
        x = np.arange(len(sizes)) + (place - 2.5) / 12
        axes.errorbar(
            x, [each["delta_m"] for each in own], half, color=variant.colour, marker=".", capsize=2
        )
    axes.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
    axes.set_xlabel("batch size")


def _draw_by_gamma(axes: Axes, figures: Mapping[str, Any], quantity: str) -> None:
    gammas = [each["gamma"] for each in figures["variants"][LEARNING[0]]["by_gamma"]]
    for name, variant in VARIANTS.items():
        values = [each[quantity] for each in figures["variants"][name]["by_gamma"]]
        if name in LEARNING:
            axes.plot(range(len(gammas)), values, color=variant.colour, marker=".")
        elif quantity == "delta_m":
            axes.axhline(values[0], color=variant.colour)
    axes.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    axes.set_xlabel("gamma")


def _draw_totals(axes: Axes, run: Run) -> None:
    changes = np.asarray(run.trace.changes, np.float64)  # [seeds, steps, 3, K]
    totals = np.cumsum(changes, axis=1).mean(axis=(0, 3))
    x = np.arange(1, len(totals) + 1)
    for measure, name in enumerate(MEASURES):
        axes.plot(x, totals[:, measure], color=VARIANTS[name].colour)
    axes.plot(x[-1], np.mean(run.fallen), "D", color="#0072b2", markersize=5)
    axes.set_xlabel("step")


def _draw_ratios(axes: Axes, sizes: Mapping[int, Any]) -> None:
    for figures, line in zip(sizes.values(), itertools.cycle(LINES), strict=False):
        for name, values in figures["signal_to_noise_of_frozen"].items():
            x = (np.arange(len(values)) + 0.5) / len(values)
            axes.plot(x, values, line, color=VARIANTS[name].colour)
    axes.set_yscale("log")
    axes.set_xlabel("part of the run")


# --- The command ----------------------------------------------------------------------------------

NORMALIZERS = {"harmonic": "passes.png", "None": "passes_no_c.png"}
FULL = {
    "steps": 800,
    "seeds": 10,
    "batch_size": [8, 32, 128],
    "problems": [*PROBLEMS],
    "normalizer": [*NORMALIZERS],
    "learning_rate": [1e-3, 3e-3, 1e-2],
    "gamma": [0.0, 1e-4, 1e-3, 1e-2, 1e-1],
}
QUICK = FULL | {
    "steps": 40,
    "seeds": 2,
    "batch_size": [8],
    "problems": ["regression"],
    "learning_rate": [3e-3],
    "gamma": [0.0, 1e-2],
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    described = "\n".join(f"  {name:20}{variant.description}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.passes",
        description="FAMO by the change between batches, on one batch, or on a fresh one.",
        epilog=f"variants:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name: str, kind: Callable[[str], Any], what: str, several: bool = True) -> None:
        default = FULL[name]
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            nargs="+" if several else None,
            metavar="VALUE",
            help=f"{what} ({shown})",
        )

    add("steps", _arguments.positive_int, "training steps", several=False)
    add("seeds", _arguments.positive_int, "seeds of every setting", several=False)
    add("batch_size", _arguments.positive_int, "batch sizes")
    add("problems", _arguments.one_of(PROBLEMS), f"any of {', '.join(PROBLEMS)}")
    add("normalizer", _arguments.one_of(list(NORMALIZERS)), f"c, any of {', '.join(NORMALIZERS)}")
    add("learning_rate", _arguments.positive_float, "of the model's Adam, to choose from")
    add("gamma", _arguments.non_negative_float, "decay of the logits, to choose from")
    parser.add_argument(
        "--out", type=Path, default=Path("results/passes"), help="output folder (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a small run of one problem")
    options = parser.parse_args(arguments)
    for name, default in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        if isinstance(default, list):
            flag = "--" + name.replace("_", "-")
            _arguments.check_distinct(parser, flag, getattr(options, name))
    if options.steps < WINDOWS + 1:
        parser.error(f"argument --steps: expected at least {WINDOWS + 1}, got {options.steps}")
    rows = 2 * options.steps * options.seeds * max(options.batch_size)
    if rows > _study.MAX_ROWS:
        parser.error(
            "argument --steps: expected 2 x steps x seeds x batch size of at most "
            f"{_study.MAX_ROWS:,}, which are held in memory, got {rows:,}"
        )
    files = *(NORMALIZERS[name] for name in options.normalizer), "passes.json"
    _arguments.output_folder(parser, "--out", options.out, *files)
    options.batch_size = sorted(options.batch_size)
    return options


TIMED = {"si": "si", "frozen": "frozen", "one-pass": "famo-one-pass", "two-pass": "famo"}


@_arguments.command
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, prints its tables, and writes a figure for each c and ``passes.json``."""
    options = parse(arguments)
    start = time.perf_counter()
    console = Console()
    rates, gammas = options.learning_rate, options.gamma
    # By normalizer, problem and batch size.
    results: Any = {each: {name: {} for name in options.problems} for each in options.normalizer}
    summary: Any = {each: {name: {} for name in options.problems} for each in options.normalizer}
    steps: dict[str, dict[str, float]] = {}
    runs_each = len(CONTROLS) * len(rates) + len(LEARNING) * len(gammas)
    total = runs_each * len(options.normalizer) * len(options.problems) * len(options.batch_size)
    with Progress(console=console) as progress:
        bar = progress.add_task("", total=total)
        for name in options.problems:
            problem = problem_of(name)
            for size in options.batch_size:
                progress.update(bar, description=f"{name}, batch {size}")
                data = problem.load_data(options.steps, options.seeds, 2 * size)
                call = compile_runs(problem, data)
                if size == options.batch_size[-1]:
                    times = _study.measure_steps(problem, list(TIMED.values()), data)
                    steps[name] = {
                        own: times[other][1] / times["si"][1] for own, other in TIMED.items()
                    }
                for each in options.normalizer:
                    own = run_study(
                        problem, each, rates, gammas, call, lambda: progress.advance(bar)
                    )
                    results[each][name][size] = own
                    summary[each][name][size] = summarize(problem.tasks, own)
    for each in options.normalizer:
        console.print(f"\nnormalizer={each}", highlight=False)
        for rows in tables(summary[each]):
            console.print(rows, highlight=False)
    for name, relative in steps.items():
        told = ", ".join(f"{variant} {ratio:.2f}" for variant, ratio in relative.items())
        console.print(f"{name}: a step over that of si: {told}", highlight=False)
    for each in options.normalizer:
        draw(results[each], summary[each], options.out / NORMALIZERS[each])
    elapsed = time.perf_counter() - start
    _report.write_json(
        options.out / "passes.json",
        {
            "settings": {**vars(options), "out": str(options.out)},
            "environment": _report.environment(),
            "axes": "results: by normalizer, problem and batch size",
            "results": summary,
            "step_relative_to_si_at_the_last_batch_size": steps,
            "seconds": elapsed,
        },
    )
    files = ", ".join([*(NORMALIZERS[each] for each in options.normalizer), "passes.json"])
    console.print(f"{options.out}: {files}, {elapsed:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
