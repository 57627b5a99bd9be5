r"""One-pass or two-pass? ``python -m famo_jax.experiments.passes``.

FAMO steps its logits by how much each log loss fell. *One-pass* takes the change from the batch
before to this one, *two-pass* that of one batch before and after the step, and *fresh*, which
nobody would pay for, that of a batch which the step has not seen; *ema* is one-pass smoothed.
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

from famo_jax.experiments import _command, _comparison, _gains, _plots, _statistics, _tables
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
            return jnp.log(problem.losses(carry.params, (), rows, jax.random.key(0))[0])

        last, now = jnp.log(before.opt_state[-1].losses), jnp.log(losses)
        one_pass = jnp.where(jnp.isinf(last), 0, last - now)
        two_pass = now - log_losses(after, batch)
        return jnp.stack([one_pass, two_pass, log_losses(before, fresh) - log_losses(after, fresh)])

    return probe


def cells_of(settings: Any) -> list[tuple[str, int]]:
    """The problems at the batch sizes."""
    return list(itertools.product(settings["problems"], settings["batch_size"]))


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Trains controls and forms, both with c and without."""
    from famo_jax.experiments import _train

    problems = {name: problem_of(name) for name in options.problems}
    seeds = _gains.Seeds(range(options.seeds))
    cells = [
        _gains.Cell(f"{name} {size}", problems[name], size, {"gamma": options.gamma})
        for name, size in cells_of(vars(options))
    ]
    probe = lambda cell, name: None if METHODS[name].control else changes_of(cell.problem)
    forms = [form + ending for ending in CONDITIONS.values() for form in FORMS]
    plan = _gains.plan(
        cells, forms, options.learning_rate, seeds, steps=options.steps, halved=True, probe=probe,
        keep=lambda *_: lambda probed: {"changes": np.asarray(probed, np.float64).sum(axis=2)},
    )  # fmt: skip
    runs = _train.run(plan, session)
    for cell in cells:  # from where held-out losses fell
        data = cell.problem.load_data(1, seeds.all, 1)
        over_seeds = jax.vmap(cell.problem.metrics, in_axes=(0, 0, None))
        start = jax.jit(over_seeds)(*cell.problem.init(seeds.all), data.validation)
        for control in ("frozen", _gains.SI):
            own = runs.arrays[f"{cell.name} {control}"]
            own["validation_start"] = np.broadcast_to(start, own["validation"].shape)
    return runs


# --- What is shown --------------------------------------------------------------------------------


@np.errstate(invalid="ignore", divide="ignore")  # a loss at its bound is log 0, what follows NaN
def summarize(runs: Runs) -> dict[str, Any]:
    """The gains in each cell, and what the measures add up to, with c and without."""
    found: dict[str, Any] = {condition: {} for condition in CONDITIONS}
    for (condition, c), pair in itertools.product(
        CONDITIONS.items(), cells_of(runs.facts["settings"])
    ):
        cell = f"{pair[0]} {pair[1]}"
        control = _gains.control_of(f"famo{c}")
        names = [control, *(form + c for form in FORMS)]
        scores = _gains.scores(runs, cell, names, _gains.Seeds(range(0)))
        own = runs.arrays[f"{cell} {control}"]
        own = {name: values[scores.chosen[control]] for name, values in own.items()}
        found[condition][cell] = {
            "gains": {
                form: scores.gain(form + c)
                | {"gamma": scores.settings[form + c][scores.chosen[form + c]]["gamma"]}
                for form in FORMS
            },
            "leads": {
                f"{form} - {other}": scores.gain(form + c, other=other + c) for form, other in LEADS
            },
            "sums": sums(own["changes"].astype(np.float64), own),
        }
    return found


def sums(totals: Array, own: Any) -> dict[str, Any]:
    """What each measure adds up to in a run, beside how much held-out log losses fell.

    Args:
      totals: ``[seeds, 3, K]``
      own: ``validation`` and ``validation_start``, ``[seeds, 2K]``, metrics and then losses.
    """
    k = totals.shape[-1]
    fallen = np.log(own["validation_start"][..., k:]) - np.log(own["validation"][..., k:])
    found: dict[str, Any] = {"held-out": {"mean": fallen.mean()}}
    for measure, total in zip(MEASURES, np.moveaxis(totals, 1, 0), strict=True):
        beyond = [_statistics.estimate(task)["low"] > 0 for task in (total - fallen).T]
        found[measure] = {"mean": total.mean(), "tasks_beyond_held_out": sum(beyond)}
    return found


def tables(summary: Summary) -> list[Any]:
    """With c and without: gains and leads with their intervals; sums of the measures."""
    parts: list[Any] = []
    short = lambda form: form.removeprefix("famo-")
    for condition, cells in summary.items():
        leads = [f"{short(form)}\n- {short(other)}" for form, other in LEADS]
        gains = _tables.new(
            f"{condition}. Δm (%) over the control's: lower is better; below it gamma",
            ["problem, batch"],
            [*map(short, FORMS), *leads],
        )
        for cell, own in cells.items():
            gains.add_row(
                cell,
                *(
                    f"{_tables.with_interval(each)}\n{each['gamma']:g}"
                    for each in own["gains"].values()
                ),
                *map(_tables.with_interval, own["leads"].values()),
            )
        parts.append(gains)
    headers = ["held-out", *MEASURES]
    title = "Fall of the log losses in a run of the control, by each measure (on how many tasks\n"
    table = _tables.new(
        f"{title}it is more than on held-out data)", ["problem, batch", ""], headers
    )
    for condition, cells in summary.items():
        for cell, own in cells.items():
            told = (
                f"{own['sums'][name]['mean']:.2f} ({own['sums'][name]['tasks_beyond_held_out']})"
                for name in MEASURES
            )
            table.add_row(cell, condition, f"{own['sums']['held-out']['mean']:.2f}", *told)
    return [*parts, table, "Means over seeds and tasks; ± and counts by 95% intervals."]


def draw(summary: Summary) -> Any:
    """The gains over the batch size: a column for each problem, with c and without."""
    cells = [cell.split() for cell in summary["with c"]]
    problems = list(dict.fromkeys(problem for problem, _ in cells))
    sizes = list(dict.fromkeys(size for _, size in cells))
    series = {
        f"{problem}, {condition}": {
            (form + c).removeprefix("famo-"): (
                [summary[condition][f"{problem} {size}"]["gains"][form] for size in sizes],
                METHODS[form + c].colour,
            )
            for form in FORMS
        }
        for (condition, c), problem in itertools.product(CONDITIONS.items(), problems)
    }
    rows = [[f"{problem}, {condition}" for problem in problems] for condition in CONDITIONS]
    with _plots.picture(height=4.8) as figure:
        values = dict.fromkeys(series, sizes)
        first, *_ = _gains.draw_panels(figure, rows, series, values, "batch size")
        first.set_ylabel("Δm (%) over that of equal weights", loc="top")
    return figure


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
    quick="--steps 40 --seeds 2 --batch-size 8 --problems regression --learning-rate 3e-3 --gamma 0 1e-2",
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
