r"""How much decay the task logits need: ``python -m famo_jax.experiments.gamma``.

FAMO's logits follow optimizer(delta + gamma xi). With Delta_i the decrease of log D_i in a step,
delta_i = z_i (Delta_i - z.Delta), so that at rest

.. math:: \xi_i = -z_i (E[\Delta_i] - z \cdot E[\Delta]) / \gamma

which is about 1/(K gamma) times the decrease of a step: a gamma that serves two tasks holds the
logits of a thousand at zero. First with decreases that are given and constant; then in training, on
the four tasks of the overlapping digits and on K regressions by one network: what forms of FAMO
without c, and fixed weights, gain on the same with its logits at zero, *si*, all in natural units.
See :mod:`famo_jax.experiments._gains`. Settings are chosen on validation data by some seeds, and
reported on test data by others.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import famo_jax
from famo_jax.experiments import _command, _comparison, _gains, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import digits, waves

RATE, GAMMA = 0.025, 1e-3  # the paper's
ADVISED = 0.1  # over K
FORMS = ("famo-no-c", "famo-one-pass-no-c", "famo-ema-no-c")
MODEL_RATES = (5e-3, 1e-2, 2e-2)
WAVE_BATCH = 32
STEP_SIZE = 1e-3  # where decreases are given: their mean
SPREAD = 9  # and the fastest over the slowest
SCALES: dict[str, Callable[[int], float]] = {
    f"gamma {GAMMA:g}": lambda k: GAMMA,
    f"gamma {GAMMA:g}/K": lambda k: GAMMA / k,
}


def decreases(num_tasks: int) -> Array:
    """Delta, ``[K]``: spread ninefold, of the mean ``STEP_SIZE``."""
    rates = np.geomspace(1, SPREAD, num_tasks)
    return np.asarray(STEP_SIZE * rates / rates.mean())


@functools.partial(jax.jit, static_argnums=(0, 2))
def rest(num_tasks: int, gamma: Any, steps: int) -> jax.Array:
    """The logits, ``[K]``, after steps in which each log loss falls by its constant decrease."""
    tx = famo_jax.famo(num_tasks, weight_decay=gamma)
    before, after = jnp.ones(num_tasks), jnp.exp(-jnp.asarray(decreases(num_tasks)))
    step = lambda state, _: (tx.update((), state, losses=before, new_losses=after)[1], None)
    logits: jax.Array = jax.lax.scan(step, tx.init(None), length=steps)[0].logits
    return logits


def predicted(logits: Array, decrease: Array, gamma: float) -> Array:
    """Where logits that weigh the tasks as ``logits`` do would come to rest, ``[K]``."""
    z = np.exp(logits - logits.max())
    z /= z.sum()
    return np.asarray(-z * (decrease - z @ decrease) / gamma)


def rest_row(num_tasks: int, steps: int) -> dict[str, Any]:
    """By scale of gamma: the range of the logits at rest, and the formula's."""
    row = {}
    for scale, gamma_of in SCALES.items():
        logits = np.asarray(rest(num_tasks, gamma_of(num_tasks), steps), np.float64)
        expected = predicted(logits, decreases(num_tasks), gamma_of(num_tasks))
        row[scale] = {"range": np.ptp(logits), "predicted": np.ptp(expected)}
    return row


def cells_of(settings: Any) -> list[_gains.Cell]:
    """The digits by batch size, and the regressions by K."""
    grid: Any = lambda k: {"gamma": sorted({*settings["gamma"], GAMMA, ADVISED / k})}
    rates = {"logits_rate": settings["logits_rate"]}
    pictures = [
        _gains.Cell(f"digits, batch {size}", digits.PROBLEM, size, grid(digits.K) | rates)
        for size in settings["batch_size"]
    ]
    return pictures + [
        _gains.Cell(f"regressions, K {k}", waves.problem_of(k), WAVE_BATCH, grid(k))
        for k in settings["tasks"]
    ]


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Logits at rest, then the training, by seeds of which the last are those that choose."""
    from famo_jax.experiments import _train

    rows = {str(k): rest_row(k, 10 * options.steps) for k in options.tasks}
    seeds, tuning = range(options.seeds + options.tuning_seeds), slice(options.seeds, None)
    cells = cells_of(vars(options))
    plan = _gains.plan(cells, FORMS, MODEL_RATES, seeds, options.steps, tuning)
    runs = _train.run(plan, session)
    return runs._replace(facts=runs.facts | {"rest": rows})


def summarize(runs: Runs) -> dict[str, Any]:
    """By cell and form: the gain as tuned, and at the logits' usual rate at every gamma."""
    settings = runs.facts["settings"]
    seeds, rates = settings["seeds"], settings["logits_rate"]
    usual = RATE if RATE in rates else rates[0]
    found: dict[str, Any] = {}
    for cell in cells_of(settings):
        scores = _gains.scores(runs, cell.name, FORMS, slice(seeds, None), slice(seeds))
        fixed = {name: scores.gain(name, other=_gains.SI) for name in _gains.FIXED}
        found[cell.name] = {"num_tasks": len(cell.problem.tasks), "forms": {}, "fixed": fixed}
        for form in FORMS:
            every = [scores.gain(form, index) for index in range(len(scores.settings[form]))]
            by_gamma = [each for each in every if each.get("logits_rate", usual) == usual]
            own = {"tuned": scores.gain(form), "by_gamma": by_gamma}
            found[cell.name]["forms"][form] = own
    return {"cells": found, "rest": runs.facts["rest"]}


def tables(summary: Summary) -> list[Any]:
    """The logits at rest, and the gains in training."""
    title = f"Range of the logits at rest (formula), log losses falling by {STEP_SIZE:g}"
    rest_table = _tables.new(title, ["K"], SCALES, padding=8)
    for num_tasks, row in summary["rest"].items():
        cells = (f"{each['range']:.3g} ({each['predicted']:.3g})" for each in row.values())
        rest_table.add_row(f"{int(num_tasks):,}", *cells)
    gains = _tables.new(
        "Δm (%) over that of si, lower is better; tuned by other seeds' validation",
        ["", "form"],
        ["tuned", "gamma", "rate", f"gamma\n{GAMMA:g}", f"gamma\n{ADVISED:g}/K"],
        padding=1,
    )
    for name, cell in summary["cells"].items():
        for form, own in cell["forms"].items():
            at = {each["gamma"]: each for each in own["by_gamma"]}
            advised = min(at, key=lambda gamma: abs(gamma - ADVISED / cell["num_tasks"]))
            tuned = own["tuned"]
            gains.add_row(
                name.removeprefix("regressions, ") if form == FORMS[0] else "",
                _gains.label_of(form),
                _tables.with_interval(tuned),
                f"{tuned['gamma']:g}",
                f"{tuned.get('logits_rate', RATE):g}",
                _tables.with_interval(at[GAMMA]),
                _tables.with_interval(at[advised]),
            )
        for form, gain in cell["fixed"].items():
            gains.add_row("", form, _tables.with_interval(gain))
    return [
        rest_table,
        gains,
        "On test, FAMO without c; ± by 95% intervals, paired by seed. K: of regressions.",
    ]


def draw(summary: Summary) -> Any:
    """Over gamma, at the paper's rate of the logits: what each form gains in each cell."""
    cells = dict(list(summary["cells"].items())[:6])
    series = {
        name: {
            _gains.label_of(form): (own["by_gamma"], METHODS[form].colour)
            for form, own in cell["forms"].items()
        }
        for name, cell in cells.items()
    }
    shown: Any = lambda gamma: f"{gamma:g}".replace("0.0001", "1e-4")
    values = {
        name: [shown(each["gamma"]) for each in cell["forms"][FORMS[0]]["by_gamma"]]
        for name, cell in cells.items()
    }
    names = list(cells)
    rows = [names[:3], names[3:]] if len(names) == 6 else [names]
    return _gains.draw(rows, series, values, "gamma")


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold."""
    options.batch_size.sort()
    options.tasks.sort()
    rows = options.steps * (options.seeds + options.tuning_seeds) * sum(options.batch_size)
    _comparison.check_rows(parser, rows)


STUDY = Study(
    name="gamma",
    title="How much decay FAMO's task logits need",
    seconds=397,
    full="--steps 500 --seeds 10 --tuning-seeds 5 --batch-size 16 128 --tasks 2 10 40 1000 "
    "--gamma 0 1e-4 1e-3 1e-2 1e-1 --logits-rate 0.005 0.025 0.1 0.25",
    quick="--steps 30 --seeds 2 --tuning-seeds 1 --batch-size 8 --tasks 2 10 --gamma 0 1e-3 1e-2 "
    "--logits-rate 0.025",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"gamma.png": draw},
    options={
        "batch_size": _command.OPTIONS["batch_size"]._replace(several=True),
        "tasks": Option(_command.positive_int, "numbers of tasks of the regressions", True, "K"),
    },
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
