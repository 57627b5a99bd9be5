r"""One-pass or two-pass? ``python -m famo_jax.experiments.passes``.

FAMO steps its logits by how much each log loss fell. *One-pass* takes the change from the batch
before to this one, *two-pass* (famo) that of one batch before and after the step, and *fresh*,
which nobody would pay for, that of a batch which the step has not seen; *ema* is one-pass smoothed.
Shown is what each gains on the same with its logits at zero (*frozen*; *si* without c), as
:mod:`famo_jax.experiments._gains` says. Along the trajectories of these controls all three changes
are computed: so they show what the measures measure, whatever is done with it.
"""

import argparse
import functools
import importlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famo_jax.experiments import _command, _comparison, _gains, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems._problem import Problem

PROBLEMS = {"regression": "molecules", "digits": "digits", "attributes": "attributes"}
CONDITIONS = {"with c": "", "without c": "-no-c"}
FORMS = ("famo-one-pass", "famo-ema", "famo", "famo-fresh")
MEASURES = ("one-pass", "two-pass", "fresh")
# Leads of a form on another, beside the gains of all.
LEADS = (("famo-ema", "famo"), ("famo-ema", "famo-one-pass"), ("famo-fresh", "famo"))


def problem_of(name: str) -> Problem:
    """A problem whose metrics are followed by its held-out losses, ``[2K]``."""
    module = importlib.import_module(f"famo_jax.experiments.problems.{PROBLEMS[name]}")
    problem: Problem = module.PROBLEM

    def metrics(params: Any, state: Any, held_out: Any) -> jax.Array:
        losses, _ = problem.losses(params, state, held_out, jax.random.key(0))
        return jnp.concatenate([problem.metrics(params, state, held_out), losses])

    return problem._replace(metrics=metrics)


def changes_of(problem: Problem) -> Any:
    """A probe: how much each log loss fell by each measure, ``[3, K]``; 0 by one-pass at first."""

    def probe(batch: Any, fresh: Any, before: Any, after: Any, losses: jax.Array) -> jax.Array:
        def log_losses(carry: Any, rows: Any) -> jax.Array:
            return jnp.log(problem.losses(carry.params, carry.state, rows, jax.random.key(0))[0])

        last, now = jnp.log(before.opt_state[-1].losses), jnp.log(losses)
        one_pass = jnp.where(jnp.isinf(last), 0, last - now)
        two_pass = now - log_losses(after, batch)
        return jnp.stack([one_pass, two_pass, log_losses(before, fresh) - log_losses(after, fresh)])

    return probe


def cells_of(settings: Any) -> list[_gains.Cell]:
    """The problems at the batch sizes."""
    problems = {name: problem_of(name) for name in settings["problems"]}
    grid = {"gamma": settings["gamma"]}
    pairs = itertools.product(problems.items(), settings["batch_size"])
    return [_gains.Cell(f"{name} {size}", own, size, grid) for (name, own), size in pairs]


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Trains controls, fixed weights and forms, both with c and without."""
    from famo_jax.experiments import _train

    seeds, cells = range(options.seeds), cells_of(vars(options))
    keep = lambda probed: {"changes": np.asarray(probed, np.float64).sum(axis=2)}
    forms = [form + c for c in CONDITIONS.values() for form in FORMS]
    plan = _gains.plan(
        cells, forms, options.learning_rate, seeds, options.steps, probe=changes_of, keep=keep
    )
    runs = _train.run(plan, session)
    for cell in cells:  # from where held-out losses fell
        data = cell.problem.load_data(1, seeds, 1)
        over_seeds = jax.vmap(cell.problem.metrics)
        start = jax.jit(over_seeds)(*cell.problem.init(seeds), data.validation)
        for control in ("frozen", _gains.SI):
            own = runs.arrays[f"{cell.name} {control}"]
            own["validation_start"] = np.broadcast_to(start, own["validation"].shape)
    return runs


def summarize(runs: Runs) -> dict[str, Any]:
    """The gains in each cell, and what the measures add up to, with c and without."""
    found: dict[str, Any] = {condition: {} for condition in CONDITIONS}
    cells = cells_of(runs.facts["settings"])
    for (condition, c), cell in itertools.product(CONDITIONS.items(), cells):
        scores = _gains.scores(runs, cell.name, [form + c for form in FORMS])
        control = _gains.control_of(f"famo{c}")
        own = runs.arrays[f"{cell.name} {control}"]
        found[condition][cell.name] = {
            "gains": {form: scores.gain(form + c) for form in FORMS},
            "leads": [scores.gain(form + c, other=other + c) for form, other in LEADS],
            "fixed": {name: scores.gain(name, other=control) for name in _gains.FIXED},
            "sums": sums({name: each[scores.chosen[control]] for name, each in own.items()}),
        }
    return found


@np.errstate(invalid="ignore", divide="ignore")  # a loss at its bound is log 0, what follows NaN
def sums(own: dict[str, Array]) -> dict[str, Any]:
    """What each measure adds up to in a run, mean over tasks, and how much held-out losses fell.

    And on how many tasks a measure is above that, by its 95% interval. Of the arrays of a control,
    ``changes [seeds, 3, K]`` and ``validation`` and ``validation_start [seeds, 2K]``, metrics and
    then losses.
    """
    k = own["changes"].shape[-1]
    fallen = np.log(own["validation_start"][:, k:]) - np.log(own["validation"][:, k:])
    found: dict[str, Any] = {"held-out": fallen.mean()}
    for measure, total in zip(MEASURES, np.moveaxis(own["changes"], 1, 0), strict=True):
        above = [_statistics.estimate(task)["low"] > 0 for task in (total - fallen).T]
        found[measure] = {"mean": total.mean(), "tasks_above": sum(above)}
    return found


def tables(summary: Summary) -> list[Any]:
    """With c and without: gains; leads with their intervals, and sums of the measures."""
    short = _gains.label_of
    leads = [f"{short(form)}\n- {short(other)}" for form, other in LEADS]
    gains_title = "Δm (%) over the control's, lower is better; below it gamma"
    more_title = "Differences of Δm; fall of log losses, by measure (tasks above)"
    parts: list[Any] = []
    for condition, cells in summary.items():
        headers = [*map(short, FORMS), *(name.replace("-", "\n") for name in _gains.FIXED)]
        gains = _tables.new(f"{condition}: {gains_title}", ["batch"], headers)
        more = _tables.new(
            f"{condition}: {more_title}", ["batch"], [*leads, "held\nout", *MEASURES]
        )
        for cell, own in cells.items():
            each = own["gains"].values()
            gains.add_row(
                cell,
                *(f"{_tables.with_interval(e)}\n{e['gamma']:g}" for e in each),
                *map(_tables.in_points, own["fixed"].values()),
            )
            fallen = [own["sums"][name] for name in MEASURES]
            told = [f"{each['mean']:.2g} ({each['tasks_above']})" for each in fallen]
            differences = map(_tables.with_interval, own["leads"])
            more.add_row(cell, *differences, f"{own['sums']['held-out']:.2g}", *told)
        parts += [gains, more]
    return [*parts, "Means over seeds and tasks; ± and counts by 95% intervals."]


def draw(summary: Summary) -> Any:
    """The gains over the batch size: a column for each problem, with c and without."""
    cells = [cell.split() for cell in summary["with c"]]
    problems, sizes = (list(dict.fromkeys(each)) for each in zip(*cells, strict=True))
    series = {
        f"{problem}, {condition}": {
            _gains.label_of(form): (
                [summary[condition][f"{problem} {size}"]["gains"][form] for size in sizes],
                METHODS[form + c].colour,
            )
            for form in FORMS
        }
        for (condition, c), problem in itertools.product(CONDITIONS.items(), problems)
    }
    rows = [[f"{problem}, {condition}" for problem in problems] for condition in CONDITIONS]
    return _gains.draw(rows, series, dict.fromkeys(series, sizes), "batch size")


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses what is too much for memory."""
    options.batch_size.sort()
    _comparison.check_rows(parser, 2 * options.steps * options.seeds * max(options.batch_size))


STUDY = Study(
    name="passes",
    title="FAMO by the change between batches, on one batch, or on a fresh one",
    seconds=401,
    full="--steps 800 --seeds 10 --batch-size 8 32 128 --problems regression digits attributes "
    "--learning-rate 1e-3 3e-3 1e-2 --gamma 0 1e-4 1e-3 1e-2 1e-1",
    quick="--steps 40 --seeds 2 --batch-size 8 --problems regression --learning-rate 3e-3 "
    "--gamma 0 1e-2",
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
