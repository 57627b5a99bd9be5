r"""Which normaliser? ``python -m famo_jax.experiments.normalizer``.

FAMO's gradient is :math:`c \sum_i z_i \nabla \log D_i`, and the normaliser c sets no more than its
length. Here one of four tasks can be fitted ever closer to its lower bound, and what c then does
to the other three is measured, under several optimizers and two schedules.

The tasks are regressions :math:`y_i = w_i^\top x + s_i \varepsilon` on the same Gaussian inputs by
two linear layers, wide enough to hold every :math:`w_i`: what is left undone is the length of the
steps' doing. The noise of task 0 is :math:`s_0^2 = 10^{-k}`, that of the others 1. Losses over all
inputs are :math:`|W a_i - w_i|^2 + s_i^2`; a task's *excess* is what it has above its noise, over
it. All are in one unit, the variance of an output; beside FAMO stand methods that learn no weights.
The model's learning rate is chosen on validation for every cell.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import famo
from famo_jax.experiments import _command, _comparison, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS, Method
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems._problem import Data, Problem, Task

K, FEATURES, WIDTH = 4, 8, 8
BATCH_SIZE, VALIDATION_SIZE = 16, 1000


class Params(NamedTuple):
    """Two linear layers."""

    trunk: Any  # [FEATURES, WIDTH], W
    heads: Any  # [WIDTH, K], a


class Truth(NamedTuple):
    """What a run is judged by: it is told of its own tasks, and of draws for validation."""

    targets: Any  # [FEATURES, K], w, columns of length 1
    variances: Any  # [K], the least losses that the tasks can have
    inputs: Any  # [VALIDATION_SIZE, FEATURES]
    noise: Any  # [VALIDATION_SIZE, K], of variance 1


def draw_seed(seed: int, nearness: float, steps: int) -> tuple[Params, Truth, tuple[Array, Array]]:
    """Network, tasks and batches ``[steps, BATCH_SIZE, ...]`` of inputs and outputs.

    The near task's least loss is 10^-nearness.
    """
    generators = [np.random.default_rng([seed, stream]) for stream in range(5)]

    def normal(stream: int, *shape: int) -> Array:
        return generators[stream].standard_normal(shape, np.float32)

    targets = normal(0, FEATURES, K)
    targets /= np.linalg.norm(targets, axis=0)
    variances = np.array([10.0**-nearness, *(K - 1) * [1.0]], np.float32)
    trunk, heads = normal(1, FEATURES, WIDTH) / FEATURES**0.5, normal(2, WIDTH, K) / WIDTH**0.5
    (inputs, noise), held_out = (
        np.split(normal(stream, *shape, FEATURES + K), [FEATURES], axis=-1)
        for stream, shape in ((3, (steps, BATCH_SIZE)), (4, (VALIDATION_SIZE,)))
    )
    outputs = inputs @ targets + noise * np.sqrt(variances)
    params = Params(np.float32(trunk), np.float32(heads))
    return params, Truth(targets, variances, *held_out), (inputs, outputs)


def task_losses(params: Params, batch: Any) -> jax.Array:
    """The K mean squared errors of inputs and outputs, ``[K]``."""
    inputs, outputs = batch
    return jnp.mean((inputs @ params.trunk @ params.heads - outputs) ** 2, axis=0)


def metrics(params: Params, truth: Truth, _: Any = None) -> jax.Array:
    """The excess on the validation draws, then that over all inputs, ``[2K]``."""
    outputs = truth.inputs @ truth.targets + truth.noise * jnp.sqrt(truth.variances)
    least = jnp.mean(truth.noise**2, axis=0) * truth.variances
    held_out = task_losses(params, (truth.inputs, outputs)) / least - 1
    above = jnp.sum((params.trunk @ params.heads - truth.targets) ** 2, axis=0) / truth.variances
    return jnp.concatenate([held_out, above])


def problem_of(pairs: Sequence[tuple[int, float]]) -> Problem:
    """A problem whose seeds are pairs of a seed and a nearness. Its models carry their truths."""

    @functools.cache
    def draw(steps: int) -> Any:
        drawn = [draw_seed(*pair, steps) for pair in pairs]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)

    def load_data(steps: int, _: Sequence[int], __: int) -> Data:
        return Data(jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), draw(steps)[2]), (), ())

    names = ("near", *(f"other {index}" for index in range(1, K)))
    return Problem(
        tasks=tuple(Task(name, f"{name}, MSE", f"{name} excess", 2) for name in names),
        load_data=load_data,
        init=lambda _: draw(1)[:2],
        losses=lambda params, truth, batch, _: (task_losses(params, batch), truth),
        metrics=metrics,
    )


NORMALIZERS = {"harmonic": "#d55e00", "geometric": "#009e73", "arithmetic": "#cc79a7"}
NORMALIZERS |= {"none": "#e69f00"}
WEIGHTS = *NORMALIZERS, *_comparison.FIXED
SGD_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
ADAM_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "sgd": (optax.sgd, SGD_RATES),
    "adam": (optax.adam, ADAM_RATES),
    "adam-beta2-0.9": (functools.partial(optax.adam, b2=0.9), ADAM_RATES),
    "lion": (optax.lion, tuple(rate / 10 for rate in ADAM_RATES)),
}
SCHEDULES = ("constant", "cosine")


def schedule_of(setting: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Constant or cosine, as the setting says."""
    cosine = optax.cosine_decay_schedule(1.0, steps)
    shape: Any = lambda count: jnp.where(setting["schedule"] == 0, 1.0, cosine(count))
    return lambda count: setting["learning_rate"] * shape(count)


def method_of(name: str) -> Method:
    """FAMO, two-pass with the paper's gamma, by the name of its normaliser; or fixed weights."""
    own: Any = None if name == "none" else name
    by_normalizer = METHODS["famo"]._replace(make=lambda k: famo(k, normalizer=own), takes=())
    return by_normalizer if name in NORMALIZERS else METHODS[name]


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Trains under every optimizer."""
    from famo_jax.experiments import _train

    pairs = list(itertools.product(range(options.seeds), options.nearness))
    problem = problem_of(pairs)

    def arm(optimizer: str, name: str) -> _train.Arm:
        make, rates = OPTIMIZERS[optimizer]
        settings = itertools.product(range(len(SCHEDULES)), rates)
        return _train.Arm(
            f"{optimizer} {name}", problem, problem.load_data(options.steps, (), 0),
            options.steps, method_of(name),
            [{"schedule": index, "learning_rate": rate} for index, rate in settings],
            range(len(pairs)), make, schedule_of,
        )  # fmt: skip

    arms = [arm(*each) for each in itertools.product(options.optimizers, WEIGHTS)]
    return _train.run(iter([arms]), session)


QUANTITIES = ("other tasks", "near task", "all tasks")  # of which the excess is told


def select(arrays: Mapping[str, Array], seeds: int) -> dict[str, Array]:
    """What came of an arm at its best rates, ``[schedules, nearnesses, seeds]``."""
    validation, test = (
        each.reshape(len(SCHEDULES), -1, seeds, each.shape[1] // seeds, *each.shape[2:])
        for each in (arrays[name].astype(np.float64) for name in ("validation", "test"))
    )
    found = test[..., K:]
    with np.errstate(invalid="ignore"):
        # By the least log of loss over least loss, mean of all tasks and seeds.
        scores = np.log1p(validation[..., :K]).mean(axis=(2, -1))
        every = np.expm1(np.log1p(found).mean(axis=-1))
    best = [[_statistics.choose(rates) for rates in schedule.T] for schedule in scores]
    places = np.array(best)[:, :, None, None]
    values = found[..., 1:].mean(axis=-1), found[..., 0], every
    return {
        name: np.take_along_axis(np.moveaxis(each, 3, 1), places, axis=2)[:, :, 0]
        for name, each in zip(QUANTITIES, values, strict=True)
    }


def summarize(runs: Runs) -> dict[str, Any]:
    """By optimizer, schedule and weights the excess over nearnesses, and over harmonic's."""
    options, geometric = runs.facts["settings"], _statistics.geometric
    summary: dict[str, Any] = {}
    for optimizer, name in itertools.product(options["optimizers"], WEIGHTS):
        own, base = (
            select(runs.arrays[f"{optimizer} {each}"], options["seeds"])
            for each in (name, "harmonic")
        )
        for index, schedule in enumerate(SCHEDULES):
            pairs = {each: (own[each][index], base[each][index]) for each in QUANTITIES}
            summary.setdefault(f"{optimizer}, {schedule}", {})[name] = {
                "excess": {
                    each: list(map(geometric, values)) for each, (values, _) in pairs.items()
                },
                "over_harmonic": {  # at the last nearness
                    each: geometric(values[-1] / theirs[-1])
                    for each, (values, theirs) in pairs.items()
                },
            }
    return {"nearness": options["nearness"], "seeds": options["seeds"], "cells": summary}


def tables(summary: Summary) -> list[Any]:
    """By schedule: the excess over the harmonic mean's, at the last nearness."""
    cells: Any = summary["cells"]
    parts: list[Any] = []
    for schedule in SCHEDULES:
        own = [cell for cell in cells if cell.endswith(schedule)]
        headers = [cell.partition(",")[0].replace("-beta2-", "\nbeta2 ") for cell in own]
        title = f"{schedule} rate: others' excess over the harmonic mean's,\n"
        table = _tables.new(title + "below it the near task's (95% factor)", ["c"], headers)
        for name in WEIGHTS[1:]:
            ratios = [cells[cell][name]["over_harmonic"] for cell in own]
            shown = ("\n".join(_tables.ratio(each[which]) for which in QUANTITIES[:2])
                     for each in ratios)  # fmt: skip
            table.add_row(name, *shown)
        parts.append(table)
    return [
        *parts,
        f"Geometric means over {summary['seeds']} seeds, paired, where the near task's least loss "
        f"is 1e-{summary['nearness'][-1]:g}; each at its best rate. Excess: loss over least loss, "
        "minus 1. harmonic, geometric, arithmetic, none: two-pass FAMO's c; then fixed weights.",
    ]


def draw(summary: Summary) -> Any:
    """Where the tasks end over the near task's least loss: the others above, the near one below."""
    cells = [name for name in summary["cells"] if name.endswith("cosine") and "beta2" not in name]
    cells = cells or list(summary["cells"])[:1]
    values = [f"1e-{near:g}" for near in summary["nearness"]]
    with _plots.picture(height=4.6) as figure:
        rows = figure.subplots(2, len(cells), sharey="row", sharex=True, squeeze=False)
        for row, quantity in zip(rows, QUANTITIES[:2], strict=True):
            for axes, cell in zip(row, cells, strict=True):
                axes.set_yscale("log")
                excess = {name: each["excess"] for name, each in summary["cells"][cell].items()}
                series = {name: (excess[name][quantity], NORMALIZERS[name]) for name in NORMALIZERS}
                label = "near task's least loss" if quantity == QUANTITIES[1] else ""
                _plots.over_values(axes, values, series, label, labelled=axes is row[-1])
                axes.set_title(f"{quantity}, {cell.partition(',')[0]}")
            row[0].set_ylabel("excess loss")
    return figure


STUDY = Study(
    name="normalizer",
    title="What FAMO's normaliser does as one loss nears its bound",
    seconds=40,
    full="--steps 1000 --seeds 10 --nearness 0 2 4 6 8 --optimizers sgd adam adam-beta2-0.9 lion",
    quick="--steps 50 --seeds 2 --nearness 0 6 --optimizers sgd adam",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"normalizer.png": draw},
    curves=frozenset({"excess"}),
    options={
        "nearness": Option(
            _command.non_negative_float, "the near task's least loss is 10^-K", True, "K"
        ),
        "optimizers": Option(_command.one_of([*OPTIMIZERS]), "of the model", True, "NAME"),
    },
    check=lambda _, options: options.nearness.sort(),
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
