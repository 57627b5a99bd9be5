r"""How much decay the task logits need: ``python -m famo_jax.experiments.gamma``.

FAMO's logits follow optimizer(delta + gamma xi). Two parts:

* **Digits**: the overlapping digits over gamma, the learning rate of the logits and batch sizes,
  one-pass and two-pass, with c and without, against the same with logits that stay at zero. The
  model's learning rate is the one that is best for *si*, so that no form of FAMO has a say in it.
* **Scaling**: where the logits come to rest as the number of tasks and the size of a step grow.
  With Delta_i the decrease of log D_i in a step, delta_i = z_i (Delta_i - z.Delta), so that at rest

  .. math:: \xi_i = -z_i (E[\Delta_i] - z \cdot E[\Delta]) / \gamma

  which is about 1/(K gamma) times the decrease of a step. First with decreases that are given and
  constant, then in training one network on K regression tasks, by a gamma for all K and by one
  that is over K.

Settings are chosen on validation data by some seeds, and reported on test data by others. All
share seeds, so that differences are paired.
"""

import argparse
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

import famo_jax
from famo_jax.experiments import _command, _comparison, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS, Method
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import digits, waves

RATE, GAMMA = 0.025, 1e-3  # the paper's
MODEL_RATES = (5e-3, 1e-2, 2e-2)
NAMES = ("famo-one-pass", "famo-one-pass-no-c", "famo", "famo-no-c")
CONTROL = {name: "si" if METHODS[name].control == "si" else "frozen" for name in NAMES}


def with_rate(name: str) -> Method:
    """A form of FAMO that takes a learning rate of its logits, too."""
    normalizer: Any = None if CONTROL[name] == "si" else "harmonic"

    def make(num_tasks: int, gamma: Any, logits_rate: Any) -> Any:
        return famo_jax.famo(
            num_tasks, learning_rate=logits_rate, weight_decay=gamma, normalizer=normalizer
        )

    return METHODS[name]._replace(make=make, takes=("gamma", "logits_rate"))


# What a scale of gamma means, and what it is chosen from.
SCALES = {"gamma": (1e-4, 1e-3, 1e-2, 1e-1), "gamma/K": (1e-3, 1e-2, 1e-1, 1.0)}
SCALE_COLOURS = {"gamma": "#d55e00", "gamma/K": "#0072b2"}
MODES = {"one-pass": "famo-one-pass", "two-pass": "famo"}
WAVE_RATES = (2e-3, 2e-2)  # of the model
WAVE_BATCH = 32


def decay_of(scale: str, gamma: Any, num_tasks: int) -> Any:
    """The decay that a gamma of this scale means."""
    return gamma / num_tasks if scale == "gamma/K" else gamma


def with_scale(mode: str, scale: str) -> Method:
    """FAMO whose gamma is of this scale."""
    base = METHODS[MODES[mode]]
    return base._replace(make=lambda k, gamma: base.make(k, decay_of(scale, gamma, k)))


# --- Constant decreases ---------------------------------------------------------------------------

STEP_SIZES = (1e-4, 1e-3, 1e-2)  # the mean decrease of a log loss in a step
SPREAD = 9  # of the rates, the fastest over the slowest


def decreases(num_tasks: int, step_size: chex.Numeric) -> jax.Array:
    """Delta, ``[K]``: spread ninefold, of the mean ``step_size``."""
    rates = np.geomspace(1, SPREAD, num_tasks)
    decreases: jax.Array = step_size * jnp.asarray(rates / rates.mean())
    return decreases


def rest(num_tasks: int, gamma: chex.Numeric, step_size: chex.Numeric, steps: int) -> jax.Array:
    """The logits, ``[K]``, after steps in which each log loss falls by its constant decrease."""
    tx = famo_jax.famo(num_tasks, weight_decay=gamma)
    before, after = jnp.ones(num_tasks), jnp.exp(-decreases(num_tasks, step_size))

    def step(state: famo_jax.FamoState, _: None) -> tuple[famo_jax.FamoState, None]:
        return tx.update((), state, losses=before, new_losses=after)[1], None

    state, _ = jax.lax.scan(step, tx.init(None), length=steps)
    logits: jax.Array = state.logits
    return logits


def predicted(logits: Array, decrease: Array, gamma: float) -> Array:
    """Where logits that weigh the tasks as ``logits`` do would come to rest, ``[K]``."""
    z = np.exp(logits - logits.max())
    z /= z.sum()
    return np.asarray(-z * (decrease - z @ decrease) / gamma)


def rest_rows(num_tasks: int, steps: int) -> list[dict[str, Any]]:
    """For each scale and step size: the range of the logits at rest, measured and predicted."""
    rows = []
    run = jax.jit(lambda gamma, size: rest(num_tasks, gamma, size, steps))
    for scale, size in itertools.product(SCALES, STEP_SIZES):
        gamma = decay_of(scale, GAMMA, num_tasks)
        logits = np.asarray(run(gamma, size), np.float64)
        decrease = np.asarray(decreases(num_tasks, size), np.float64)
        row = {"num_tasks": num_tasks, "scale": scale, "step_size": size}
        ranges = np.ptp(logits), np.ptp(predicted(logits, decrease, gamma))
        rows.append(row | dict(zip(("range", "predicted"), ranges, strict=True)))
    return rows


# --- The run --------------------------------------------------------------------------------------


def run(options: argparse.Namespace, session: Any) -> Runs:
    """First what chooses the model's rate, then all else."""
    from famo_jax.experiments import _train

    seeds = range(options.seeds + options.tuning_seeds)  # those to choose by come last
    grids = {"gamma": options.gamma, "logits_rate": options.logits_rate}

    def arm(name: str, problem: Any, data: Any, method: Method, settings: Any) -> "_train.Arm":
        own = name.startswith("K = ")
        return _train.Arm(
            name, problem, data, options.steps, method, settings,
            range(options.seeds_of_waves + options.tuning_seeds) if own else seeds,
            settings_at_once=False,
        )  # fmt: skip

    def plan(options: argparse.Namespace) -> Any:
        data = {size: digits.load_data(options.steps, seeds, size) for size in options.batch_size}
        first = {"task": range(digits.K), "learning_rate": MODEL_RATES}
        done = yield [
            arm(
                f"batch {size} {name}", digits.PROBLEM, own, METHODS[name],
                _comparison.settings_of(METHODS[name], first),
            )
            for size, own in data.items()
            for name in ("stl", "si")
        ]  # fmt: skip
        arms = []
        for size, own in data.items():
            rate = {"learning_rate": [reference_of(done, size, options.seeds).learning_rate]}
            for name in ("frozen", *NAMES):
                method = METHODS[name] if name == "frozen" else with_rate(name)
                settings = _comparison.settings_of(method, grids | rate)
                arms.append(arm(f"batch {size} {name}", digits.PROBLEM, own, method, settings))
        for num_tasks in sorted(options.tasks):
            problem = waves.problem_of(num_tasks)
            all_seeds = range(options.seeds_of_waves + options.tuning_seeds)
            own = problem.load_data(options.steps, all_seeds, WAVE_BATCH)
            methods = {"frozen": (METHODS["frozen"], ())} | {
                f"{mode} {scale}": (with_scale(mode, scale), gammas)
                for mode, (scale, gammas) in itertools.product(MODES, SCALES.items())
            }
            for name, (method, gammas) in methods.items():
                settings = _comparison.settings_of(
                    method, {"gamma": gammas, "learning_rate": WAVE_RATES}
                )
                arms.append(arm(f"K = {num_tasks} {name}", problem, own, method, settings))
        yield arms

    runs = _train.run(plan, options, session)
    tell = session.row("constant decreases")
    tell("training")
    rows = [rest_rows(num_tasks, 10 * options.steps) for num_tasks in sorted(options.tasks)]
    tell("done")
    return runs._replace(facts=runs.facts | {"rest": list(itertools.chain(*rows))})


# --- Summaries ------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """What FAMO is compared with, at one batch size; all chosen by the tuning seeds."""

    learning_rate: float  # of the model: the best for si
    validation: Array  # [K], metrics of single-task networks
    test: Array  # [K]


def reference_of(arrays: Mapping[str, Any], size: int, seeds: int) -> Reference:
    """Of the arms ``stl`` and ``si``, whose first seeds are those that report."""
    stl, si = (arrays[f"batch {size} {name}"] for name in ("stl", "si"))
    own = np.arange(digits.K)
    shape = digits.K, len(MODEL_RATES), -1, digits.K
    validation, test = (
        _statistics.finite(stl[split]).reshape(shape)[own, :, :, own]  # [K, rates, seeds]
        for split in ("validation", "test")
    )
    tuning = validation[:, :, seeds:].mean(axis=-1)
    best = [_statistics.choose(scores) for scores in tuning]
    baseline = tuning[own, best]
    scores = _statistics.delta_m(_statistics.finite(si["validation"][:, seeds:]), baseline)
    rate = MODEL_RATES[_statistics.choose(scores.mean(axis=-1))]
    return Reference(rate, baseline, test[own, best, :seeds].mean(axis=-1))


def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of both parts."""
    options = runs.facts["settings"]
    return {
        "digits": [
            row
            for size in options["batch_size"]
            for row in summarize_digits(runs, size, options["seeds"])
        ],
        "rest": runs.facts["rest"],
        "waves": summarize_waves(runs, options["seeds_of_waves"]),
    }


def summarize_digits(runs: Runs, size: int, seeds: int) -> list[dict[str, Any]]:
    """A row for each form of FAMO, as tuned and as the paper has it, against its control."""
    reference = reference_of(runs.arrays, size, seeds)
    of = {name: runs.arrays[f"batch {size} {name}"] for name in ("si", "frozen", *NAMES)}

    def scores(name: str, split: str) -> Array:  # [settings, seeds]
        baseline = reference.validation if split == "validation" else reference.test
        own = slice(seeds, None) if split == "validation" else slice(seeds)
        values = _statistics.finite(of[name][split][:, own])
        found = _statistics.delta_m(values, baseline)
        return found[[MODEL_RATES.index(reference.learning_rate)]] if name == "si" else found

    rows = []
    for name in NAMES:
        settings = runs.facts["arms"][f"batch {size} {name}"]["settings"]
        validation, test = scores(name, "validation"), scores(name, "test")
        before = scores(CONTROL[name], "validation")
        chosen = _statistics.choose(validation.mean(axis=-1))
        default = [
            index
            for index, each in enumerate(settings)
            if (each["gamma"], each["logits_rate"]) == (GAMMA, RATE)
        ]

        def against(
            index: int, control: str, test: Array = test, settings: Any = settings
        ) -> dict[str, Any]:
            both = {each: settings[index][each] for each in ("gamma", "logits_rate")}
            return both | _statistics.estimate(test[index] - scores(control, "test")[0])

        rows.append(
            {
                "batch_size": size,
                "form": name,
                "learning_rate": reference.learning_rate,
                "control": _statistics.estimate(scores(CONTROL[name], "test")[0]),
                "delta_m": _statistics.estimate(test[chosen]),
                "minus_control": against(chosen, CONTROL[name]),
                "minus_si": against(chosen, "si"),
                "default_minus_control": against(default[0], CONTROL[name]) if default else {},
                "settings": settings,
                "validation_minus_control": [
                    _statistics.estimate(values - before[0]) for values in validation
                ],
            }
        )
    return rows


def summarize_waves(runs: Runs, seeds: int) -> list[dict[str, Any]]:
    """Each scale at the one gamma that serves best over all: delta m against frozen."""
    tasks = sorted(runs.facts["settings"]["tasks"])
    cells = list(itertools.product(tasks, MODES, range(len(WAVE_RATES))))

    def scores(cell: tuple[int, str, int], scale: str, split: str) -> Array:  # [gammas, seeds]
        num_tasks, mode, rate = cell
        own, frozen = (
            _statistics.finite(runs.arrays[f"K = {num_tasks} {name}"][split])
            for name in (f"{mode} {scale}", "frozen")
        )
        return _statistics.delta_m(own[rate :: len(WAVE_RATES)], frozen[rate])

    rows = []
    for scale, gammas in SCALES.items():
        tuning = [scores(cell, scale, "validation")[:, seeds:] for cell in cells]
        served = _statistics.choose(np.concatenate(tuning, axis=-1).mean(axis=-1))
        for cell in cells:
            ranges = runs.arrays[f"K = {cell[0]} {cell[1]} {scale}"]["logit_range"]
            rows.append(
                {
                    "num_tasks": cell[0],
                    "mode": cell[1],
                    "learning_rate": WAVE_RATES[cell[2]],
                    "scale": scale,
                    "gamma": gammas[served],
                    "minus_frozen": _statistics.estimate(
                        scores(cell, scale, "test")[served, :seeds]
                    ),
                    "logit_range": ranges[cell[2] :: len(WAVE_RATES)][served, :seeds, 2].mean(),
                }
            )
    return rows


# --- Tables and pictures --------------------------------------------------------------------------


def tables(summary: Summary) -> list[Any]:
    """The digits, the logits at rest, and the regressions."""
    digits_table = _tables.new(
        "Digits: Δm on test, gamma and the logits' rate by other seeds' validation; 95%",
        ["batch", "form"],
        ["control", "tuned", "gamma", "rate", "- control", "- si", "default\n- control"],
    )
    for row in summary["digits"]:
        tuned = row["minus_control"]
        digits_table.add_row(
            str(row["batch_size"]),
            row["form"],
            f"{row['control']['mean']:.1f}",
            f"{row['delta_m']['mean']:.1f}",
            f"{tuned['gamma']:g}",
            f"{tuned['logits_rate']:g}",
            *(_tables.with_interval(each) for each in (tuned, row["minus_si"])),
            _tables.with_interval(row["default_minus_control"]),
        )
    rest_table = _tables.new(
        f"Constant rates: range of the logits at rest (predicted), {GAMMA:g}", ["K", "step"], SCALES
    )
    for num_tasks, size in _tables.distinct(summary["rest"], "num_tasks", "step_size"):
        own = _at(summary["rest"], num_tasks=num_tasks, step_size=size)
        cells = (f"{each['range']:.3g} ({each['predicted']:.3g})" for each in own)
        rest_table.add_row(f"{num_tasks:,}", f"{size:g}", *cells)
    chosen = _tables.distinct(summary["waves"], "scale", "gamma")
    waves_table = _tables.new(
        "K regressions: Δm against frozen on test, one gamma for all rows; 95%",
        ["K", "mode", "model's rate"],
        [f"{scale}\n{gamma:g}" for scale, gamma in chosen],
    )
    keys = "num_tasks", "mode", "learning_rate"
    for cell in _tables.distinct(summary["waves"], *keys):
        own = _at(summary["waves"], **dict(zip(keys, cell, strict=True)))
        cells = (_tables.with_interval(each["minus_frozen"]) for each in own)
        waves_table.add_row(f"{cell[0]:,}", cell[1], f"{cell[2]:g}", *cells)
    return [digits_table, rest_table, waves_table]


def _at(rows: Sequence[Mapping[str, Any]], **values: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def draw_digits(summary: Summary) -> Any:
    """Over gamma, at the paper's rate or the lowest: what each form gains at each batch size."""
    from famo_jax.experiments import _plots

    sizes = [size for (size,) in _tables.distinct(summary["digits"], "batch_size")]
    with _plots.picture(height=3.0) as figure:
        panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
        for axes, size in zip(panels, sizes, strict=True):
            series = {}
            for row in _at(summary["digits"], batch_size=size):
                rates = {each["logits_rate"] for each in row["settings"]}
                rate = RATE if RATE in rates else min(rates)
                pairs = zip(row["settings"], row["validation_minus_control"], strict=True)
                own = {each["gamma"]: gain for each, gain in pairs if each["logits_rate"] == rate}
                gammas = sorted(own)
                colour = METHODS[row["form"]].colour
                series[row["form"]] = ([own[gamma] for gamma in gammas], colour)
            axes.set_yscale("symlog", linthresh=10)  # where runs fail intervals are wide
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            _plots.over_values(axes, gammas, series, "gamma", labelled=size == sizes[-1])
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_title(f"digits, batch size {size}")
        panels[0].set_ylabel("Δm minus that of equal weights (%)")
    return figure


def draw_scaling(summary: Summary) -> Any:
    """The logits at rest over K, and what each scale of gamma is worth over K in training."""
    from famo_jax.experiments import _plots

    with _plots.picture(height=3.0) as figure:
        first, *panels = figure.subplots(1, 1 + len(MODES))
        for scale, colour in SCALE_COLOURS.items():
            own = _at(summary["rest"], scale=scale, step_size=STEP_SIZES[1])
            tasks = [row["num_tasks"] for row in own]
            first.plot(tasks, [row["predicted"] for row in own], "x", color=colour, markersize=7)
            first.plot(tasks, [row["range"] for row in own], color=colour)
            last = own[-1]["num_tasks"], own[-1]["range"]
            first.annotate(f"{scale} = {GAMMA:g}", last, color=colour, ha="right", va="bottom")
        first.set(xscale="log", yscale="log", xlabel="number of tasks K")
        first.set_xticks(tasks, [f"{k:,}" for k in tasks])
        first.set_xticks([], minor=True)
        first.set_title("range of logits at rest (x: formula)")
        for axes, mode in zip(panels, MODES, strict=True):
            own = _at(summary["waves"], mode=mode, learning_rate=WAVE_RATES[-1])
            series = {
                f"{scale} {_at(own, scale=scale)[0]['gamma']:g}": (
                    [row["minus_frozen"] for row in _at(own, scale=scale)],
                    colour,
                )
                for scale, colour in SCALE_COLOURS.items()
            }
            counts = [f"{k:,}" for (k,) in _tables.distinct(own, "num_tasks")]
            last_panel = axes is panels[-1]
            _plots.over_values(axes, counts, series, "number of tasks K", labelled=last_panel)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_title(f"Δm against frozen (%), {mode}")
    return figure


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold."""
    options.batch_size.sort()
    rows = options.steps * (options.seeds + options.tuning_seeds) * sum(options.batch_size)
    if rows > _comparison.MAX_ROWS:
        parser.error(
            "argument --steps: expected steps x seeds x batch sizes of at most "
            f"{_comparison.MAX_ROWS:,}, which are held in memory, got {rows:,}"
        )


STUDY = Study(
    name="gamma",
    title="How much decay FAMO's task logits need",
    seconds=363,
    full={
        "steps": 500,
        "seeds": 10,
        "tuning_seeds": 5,
        "seeds_of_waves": 5,
        "batch_size": [16, 32, 128],
        "gamma": [0.0, 1e-5, 1e-3, 1e-2, 1e-1],
        "logits_rate": [0.005, 0.025, 0.1, 0.25],
        "tasks": [2, 10, 40, 1000],
    },
    quick={
        "steps": 30,
        "seeds": 2,
        "tuning_seeds": 1,
        "seeds_of_waves": 2,
        "batch_size": [8],
        "gamma": [0.0, 1e-3, 1e-2],
        "logits_rate": [0.025],
        "tasks": [2, 10],
    },
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"gamma.png": draw_digits, "gamma_scaling.png": draw_scaling},
    options={
        "seeds_of_waves": Option(_command.positive_int, "seeds that report the regressions"),
        "batch_size": _command.OPTIONS["batch_size"]._replace(several=True),
        "tasks": Option(_command.positive_int, "numbers of tasks of the scaling part", True, "K"),
    },
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
