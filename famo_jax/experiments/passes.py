r"""One-pass or two-pass? ``python -m famo_jax.experiments.passes``.

FAMO steps its logits by how much each log loss fell. *One-pass* takes the change from the batch
before to this one, *two-pass* that of one batch before and after the step, and *fresh*, which
nobody would pay for, that of a batch which the step has not seen. The controls beside them are FAMO
whose logits stay at zero (*frozen*), and the mean of the log losses (*si*), against whose test
metrics every :math:`\Delta m` is taken. Along the trajectories of these two all three changes are
computed: so they show what the measures measure, whatever is done with it.

At each batch size validation chooses gamma for each form, and the learning rate of the model for
*si* and for *frozen*. The forms take that of *frozen*, or of *si* without c: it differs from them
in its logits alone, so that the rate favours the control if anything. All share seeds, so
differences are paired.
"""

import argparse
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famo_jax.experiments import _command, _comparison, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems._problem import Problem

PROBLEMS = {"regression": "molecules", "digits": "digits", "attributes": "attributes"}
CONDITIONS = {"with c": "", "without c": "-no-c"}
CONTROL = {"with c": "frozen", "without c": "frozen-no-c"}  # the latter is si
FORMS = ("famo-one-pass", "famo-ema", "famo", "famo-fresh")
MEASURES = {"one-pass": "famo-one-pass", "two-pass": "famo", "fresh": "famo-fresh"}
WINDOWS = 10
# What is compared with what, beside the control: the leads, as differences of delta m.
PAIRS = (
    ("famo", ""),
    ("famo-one-pass", ""),
    ("famo-ema", ""),
    ("famo-ema", "famo"),
    ("famo-ema", "famo-one-pass"),
    ("famo-fresh", "famo"),
)


def problem_of(name: str) -> Problem:
    """A problem whose metrics are followed by its held-out losses, ``[2K]``."""
    module = importlib.import_module(f"famo_jax.experiments.problems.{PROBLEMS[name]}")
    problem: Problem = module.PROBLEM

    def metrics(params: Any, state: Any, held_out: Any) -> jax.Array:
        losses, _ = problem.losses(params, state, held_out, jax.random.key(0))
        return jnp.concatenate([problem.metrics(params, state, held_out), losses])

    return problem._replace(metrics=metrics)


def changes_of(problem: Problem) -> Callable[..., jax.Array]:
    """A probe: how much each log loss fell by each measure, ``[3, K]``; 0 by one-pass at first."""

    def probe(batch: Any, fresh: Any, before: Any, after: Any, losses: jax.Array) -> jax.Array:
        def log_losses(carry: Any, rows: Any) -> jax.Array:
            return jnp.log(problem.losses(carry.params, (), rows, jax.random.key(0))[0])

        last, now = jnp.log(before.opt_state[-1].losses), jnp.log(losses)
        one_pass = jnp.where(jnp.isinf(last), 0, last - now)
        two_pass = now - log_losses(after, batch)
        return jnp.stack([one_pass, two_pass, log_losses(before, fresh) - log_losses(after, fresh)])

    return probe


# --- The run --------------------------------------------------------------------------------------


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Trains the controls at all rates, then the forms at the rate of theirs and every gamma."""
    from famo_jax.experiments import _train

    seeds = range(options.seeds)
    cells = list(itertools.product(options.problems, options.batch_size))
    problems = {name: problem_of(name) for name in options.problems}
    data: dict[tuple[str, int], Any] = {}

    def arm(cell: tuple[str, int], name: str, grid: Mapping[str, Sequence[Any]]) -> "_train.Arm":
        problem, method = problems[cell[0]], METHODS[name]
        probe = changes_of(problem) if name in CONTROL.values() else None
        return _train.Arm(
            f"{cell[0]} {cell[1]} {name}", problem, data[cell], options.steps, method,
            _comparison.settings_of(method, grid), seeds, settings_at_once=False, halved=True,
            probe=probe, keep=lambda probed: {"changes": np.asarray(probed, np.float32)},
        )  # fmt: skip

    def plan(options: argparse.Namespace) -> Any:
        for cell in cells:
            data[cell] = problems[cell[0]].load_data(options.steps, seeds, 2 * cell[1])
        rates = {"learning_rate": options.learning_rate}
        done = yield [arm(cell, name, rates) for cell in cells for name in CONTROL.values()]
        arms = []
        for cell, (condition, ending) in itertools.product(cells, CONDITIONS.items()):
            chosen = choose_rates(done, cell)[CONTROL[condition]]
            grid = {"learning_rate": [options.learning_rate[chosen]], "gamma": options.gamma}
            arms += [arm(cell, form + ending, grid) for form in FORMS]
        yield arms

    def timed(arms: "Sequence[_train.Arm]") -> "list[_train.Arm]":
        largest = str(options.batch_size[-1])
        return [arm for arm in arms if arm.name.split()[1] == largest and "-no-c" not in arm.name]

    runs = _train.run(plan, options, session, timed)
    for name, size in cells:  # from where held-out losses fell
        variables = problems[name].init(seeds)
        over_seeds = jax.vmap(problems[name].metrics, in_axes=(0, 0, None))
        start = jax.jit(over_seeds)(*variables, data[name, size].validation)
        for control in CONTROL.values():
            own = runs.arrays[f"{name} {size} {control}"]
            own["validation_start"] = np.broadcast_to(start, own["validation"].shape)
    tasks = {name: [task._asdict() for task in problem.tasks] for name, problem in problems.items()}
    return runs._replace(facts=runs.facts | {"tasks": tasks})


def choose_rates(arrays: Mapping[str, Any], cell: tuple[str, int]) -> dict[str, int]:
    """Where the rate is that validation chooses for each control.

    What a mean over tasks of relative differences is against is *si* at its first rate.
    """
    found = {name: arrays[f"{cell[0]} {cell[1]} {name}"] for name in CONTROL.values()}
    first = metrics_of(found["frozen-no-c"]["validation"])[0].mean(axis=0)
    return {
        name: _statistics.choose(
            _statistics.delta_m(metrics_of(each["validation"]), first).mean(axis=-1)
        )
        for name, each in found.items()
    }


def metrics_of(both: Array) -> Array:
    """Without the losses, ``[..., K]``."""
    return _statistics.finite(both[..., : both.shape[-1] // 2])


# --- Summaries ------------------------------------------------------------------------------------


@np.errstate(invalid="ignore", divide="ignore")  # a loss at its bound is log 0, what follows NaN
def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of each problem at each batch size, with c and without."""
    options = runs.facts["settings"]
    found: dict[str, Any] = {condition: {} for condition in CONDITIONS}
    cells = list(itertools.product(options["problems"], options["batch_size"]))
    for condition, cell in itertools.product(CONDITIONS, cells):
        own = found[condition].setdefault(cell[0], {})
        own[str(cell[1])] = summarize_cell(runs, cell, condition)
    steps = {
        arm: time["median"]
        / runs.facts["times"][f"{arm.split()[0]} {arm.split()[1]} frozen"]["median"]
        for arm, time in runs.facts["times"].items()
    }
    return {"results": found, "step_relative_to_frozen": steps}


def summarize_cell(runs: Runs, cell: tuple[str, int], condition: str) -> dict[str, Any]:
    """Of a problem at a batch size: each form at the gamma that validation chose."""
    ending, control = CONDITIONS[condition], CONTROL[condition]
    rates = choose_rates(runs.arrays, cell)
    arms = {
        name: (f"{cell[0]} {cell[1]} {name}", name)
        for name in (*CONTROL.values(), *(form + ending for form in FORMS))
    }
    of = {name: runs.arrays[arm] for name, (arm, _) in arms.items()}
    si = {
        split: metrics_of(of["frozen-no-c"][split][rates["frozen-no-c"]])
        for split in ("validation", "test")
    }
    # What a seed has in itself, which all share, is taken off.
    luck = _statistics.delta_m(si["test"], si["test"].mean(axis=0))

    def scores(name: str, split: str) -> Array:
        return _statistics.delta_m(metrics_of(of[name][split]), si[split].mean(axis=0))

    variants: dict[str, Any] = {}
    by_seed: dict[str, Array] = {}
    for name, (arm, _) in arms.items():
        settings = runs.facts["arms"][arm]["settings"]
        index = (
            rates[name] if name in rates else
            _statistics.choose(scores(name, "validation").mean(axis=-1))
        )  # fmt: skip
        deltas = scores(name, "test") - luck
        by_seed[name] = deltas[index]
        most = of[name]["logit_range"][..., 1].mean(axis=1)
        variants[name] = {
            **settings[index],
            "delta_m": _statistics.estimate(deltas[index]),
            "delta_m_by_seed": deltas[index],
            "most_logit_range": most[index],
            "by_setting": [
                setting | {"delta_m": _statistics.estimate(values), "most_logit_range": drift}
                for setting, values, drift in zip(settings, deltas, most, strict=True)
            ],
        }
    own = {name: values[rates[control]] for name, values in of[control].items()}
    changes = own["changes"].astype(np.float64)  # [seeds, steps, 3, K]
    half = own["validation"].shape[-1] // 2
    fallen = np.log(own["validation_start"][..., half:]) - np.log(own["validation"][..., half:])
    return {
        "variants": variants,
        "pairs": {
            f"{form} - {other or 'control'}": _statistics.estimate(
                by_seed[form + ending] - by_seed[other + ending if other else control]
            )
            for form, other in PAIRS
        },
        "sums": sums(changes, fallen),
        "signal_to_noise": signal_to_noise(changes),
    }


def sums(changes: Array, fallen: Array) -> dict[str, Any]:
    """What each measure adds up to over a run, and how much held-out log losses fell.

    Args:
      changes: ``[seeds, steps, 3, K]``
      fallen: ``[seeds, K]``
    """
    totals = dict(zip(MEASURES, np.moveaxis(changes.sum(axis=1), 1, 0), strict=True))
    return {
        name: {
            "mean": total.mean(axis=0),
            "beyond_held_out": [_statistics.estimate(task) for task in (total - fallen).T],
        }
        for name, total in (totals | {"held-out": fallen}).items()
    }


def signal_to_noise(changes: Array) -> dict[str, Array]:
    """How far a step's changes of the tasks differ, over how far noise moves that.

    The signal of a task in a stretch of steps is its change less the mean of all tasks', averaged
    over steps and seeds of the fresh batches, which no batch biases. The noise is the standard
    deviation of the same, a step at a time, by each measure. Both are root mean squares over tasks.

    Args:
      changes: ``[seeds, steps, 3, K]``

    Returns:
      ``[WINDOWS]`` for each of the three measures; NaN where a seed diverged.
    """
    contrasts = (changes - changes.mean(axis=-1, keepdims=True))[:, 1:]
    ratios = []
    for window in np.array_split(contrasts, WINDOWS, axis=1):
        signal = window[:, :, list(MEASURES).index("fresh")].mean(axis=(0, 1))
        noise = window.std(axis=(0, 1))  # [3, K]
        ratios.append(np.sqrt(np.mean(signal**2) / np.mean(noise**2, axis=-1)))
    return dict(zip(MEASURES, np.stack(ratios, axis=-1), strict=True))


# --- Tables and the picture -----------------------------------------------------------------------


def tables(summary: Summary) -> list[Any]:
    """With c and without: delta m, what the leads come to, and what the measures measure."""

    def delta_m(own: Any) -> Iterator[str]:
        for name, each in own["variants"].items():
            if name != "frozen-no-c":
                cell = _tables.with_interval(each["delta_m"], "")
                if "gamma" in each:
                    cell += f"\n{each['gamma']:g}; {each['most_logit_range']:.2f}"
                yield cell

    def leads(own: Any) -> Iterator[str]:
        return (_tables.with_interval(each) for each in own["pairs"].values())

    def measures(own: Any) -> Iterator[str]:
        yield f"{np.mean(own['sums']['held-out']['mean']):.2f}"
        for name in MEASURES:
            beyond = own["sums"][name]["beyond_held_out"]
            above = sum(each["low"] > 0 for each in beyond)
            ratios = own["signal_to_noise"][name]
            yield (
                f"{np.mean(own['sums'][name]['mean']):.2f}; {above}/{len(beyond)}"
                f"\n{ratios[0]:.2g}; {ratios[-1]:.2g}"
            )

    parts: list[Any] = []
    for condition, problems in summary["results"].items():
        forms = [name.removeprefix("famo-") for name in FORMS]
        control = CONTROL[condition].replace("frozen-no-c", "si")
        pairs = [f"{a}\n- {b or control}".replace("famo-", "") for a, b in PAIRS]
        for title, columns, cells in (
            (
                "Δm against si (%), lower is better: mean, 95% interval;\n"
                "below it gamma, and the widest range of the logits",
                ["frozen", *forms],
                delta_m,
            ),
            ("Differences of Δm, paired by seed: mean, 95% interval", pairs, leads),
            (
                "Sums of each measure in a run of the control, mean over tasks;\n"
                "on how many tasks they are above held-out data's (95%);\n"
                "below: signal to noise of a step, first tenth and last",
                ["held-out", *MEASURES],
                measures,
            ),
        ):
            table = _tables.new(f"{condition}. {title}", ["problem, batch"], columns)
            for problem, sizes in problems.items():
                for size, own in sizes.items():
                    table.add_row(f"{problem} {size}", *cells(own))
            parts.append(table)
    steps = ", ".join(
        f"{arm} {ratio:.2f}" for arm, ratio in summary["step_relative_to_frozen"].items()
    )
    return [*parts, f"A step over that of frozen: {steps}."]


def draw(summary: Summary) -> Any:
    """Delta m of the forms over the batch size: a column for each problem, with c and without."""
    from famo_jax.experiments import _plots

    results = summary["results"]
    problems = list(results["with c"])
    with _plots.picture(height=5.0) as figure:
        rows = figure.subplots(len(results), len(problems), squeeze=False, sharex="col")
        for row, (condition, own) in zip(rows, results.items(), strict=True):
            names = [CONTROL[condition], *(form + CONDITIONS[condition] for form in FORMS)]
            for axes, problem in zip(row, problems, strict=True):
                series = {
                    name.replace("frozen-no-c", "si"): (
                        [each["variants"][name]["delta_m"] for each in own[problem].values()],
                        METHODS[name].colour,
                    )
                    for name in names
                }
                axes.set_yscale("symlog", linthresh=20)  # one that fails would squeeze the rest
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                last = problem == problems[-1]
                sizes = list(own[problem])
                words = "batch size" if row is rows[-1] else ""
                _plots.over_values(axes, sizes, series, words, labelled=last)
                axes.axhline(0, color="black", linewidth=0.8)
                axes.set_title(f"{problem}, {condition}")
            row[0].set_ylabel("Δm against si (%)")
    return figure


FULL = {
    "steps": 800,
    "seeds": 10,
    "batch_size": [8, 32, 128],
    "problems": [*PROBLEMS],
    "learning_rate": [1e-3, 3e-3, 1e-2],
    "gamma": [0.0, 1e-4, 1e-3, 1e-2, 1e-1],
}


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses what is too short to be told about, or too much for memory."""
    options.batch_size.sort()
    if options.steps < WINDOWS + 1:
        parser.error(f"argument --steps: expected at least {WINDOWS + 1}, got {options.steps}")
    rows = 2 * options.steps * options.seeds * max(options.batch_size)
    if rows > _comparison.MAX_ROWS:
        parser.error(
            "argument --steps: expected 2 x steps x seeds x batch size of at most "
            f"{_comparison.MAX_ROWS:,}, which are held in memory, got {rows:,}"
        )


STUDY = Study(
    name="passes",
    title="FAMO by the change between batches, on one batch, or on a fresh one",
    seconds=401,
    full=FULL,
    quick={
        "steps": 40,
        "seeds": 2,
        "batch_size": [8],
        "problems": ["regression"],
        "learning_rate": [3e-3],
        "gamma": [0.0, 1e-2],
    },
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"passes.png": draw},
    options={
        "batch_size": _command.OPTIONS["batch_size"]._replace(several=True),
        "problems": Option(_command.one_of([*PROBLEMS]), "what is learned", True, "NAME"),
    },
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
