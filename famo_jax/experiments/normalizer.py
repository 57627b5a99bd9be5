r"""Which normaliser? ``python -m famo_jax.experiments.normalizer``.

FAMO's gradient is :math:`c \sum_i z_i \nabla \log D_i`, and the normaliser c sets no more than its
length. Here one of four tasks can be fitted ever closer to its lower bound, and what c then does
to the other three is measured, under several optimizers and two schedules.

The tasks are regressions :math:`y_i = w_i^\top x + s_i \varepsilon` on the same Gaussian inputs,
learned by two linear layers, of which the first is shared. The network is wide enough to hold every
:math:`w_i`, so no task stands in the way of another's optimum: what is left undone at the end is
the length of the steps' doing. The noise of task 0 is :math:`s_0^2 = 10^{-k}`, that of the others
is 1. Losses over all inputs have a closed form, :math:`|W a_i - w_i|^2 + s_i^2`, and their optimum
is the noise. A task's *excess* is what its loss has above that, over it.

The model's learning rate is chosen on validation for every cell, so that each normaliser has its
best, and beside it stands what the harmonic mean's best does under another normaliser.
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

import famo_jax
from famo_jax import famo, loss_weights
from famo_jax.experiments import _command, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import Method
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems._problem import Data, Problem, Task

# --- Tasks ----------------------------------------------------------------------------------------

K, FEATURES, WIDTH = 4, 8, 8
BATCH_SIZE = 16
VALIDATION_SIZE = 1000


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


class Batch(NamedTuple):
    """What a step sees."""

    inputs: Any  # [..., FEATURES]
    outputs: Any  # [..., K]


class Seed(NamedTuple):
    """All that is random in a run. Every setting of a seed sees the same."""

    params: Params
    train: Batch  # [steps, BATCH_SIZE]
    truth: Truth


def draw_seed(seed: int, nearness: float, steps: int) -> Seed:
    """Draws tasks, network and batches, where the near task's least loss is 10^-nearness."""
    generators = [np.random.default_rng([seed, stream]) for stream in range(5)]

    def normal(stream: int, *shape: int) -> Array:
        return generators[stream].standard_normal(shape, np.float32)

    targets = normal(0, FEATURES, K)
    targets /= np.linalg.norm(targets, axis=0)
    variances = np.array([10.0**-nearness, *(K - 1) * [1.0]], np.float32)
    params = Params(normal(1, FEATURES, WIDTH) / FEATURES**0.5, normal(2, WIDTH, K) / WIDTH**0.5)
    train, held_out = (
        np.split(normal(stream, *shape, FEATURES + K), [FEATURES], axis=-1)
        for stream, shape in ((3, (steps, BATCH_SIZE)), (4, (VALIDATION_SIZE,)))
    )
    inputs, noise = train
    outputs = inputs @ targets + noise * np.sqrt(variances)
    return Seed(
        Params(*map(np.float32, params)),
        Batch(inputs, outputs),
        Truth(targets, variances, *held_out),
    )


def task_losses(params: Params, batch: Batch) -> jax.Array:
    """The K mean squared errors, ``[K]``."""
    errors = batch.inputs @ params.trunk @ params.heads - batch.outputs
    return jnp.mean(errors**2, axis=0)


def excess(params: Params, truth: Truth) -> Any:
    """What the losses over all inputs have above their least values, over these, ``[K]``."""
    return jnp.sum((params.trunk @ params.heads - truth.targets) ** 2, axis=0) / truth.variances


def metrics(params: Params, _: Any, truth: Truth) -> jax.Array:
    """The excess on the validation draws, then that over all inputs, ``[2K]``."""
    outputs = truth.inputs @ truth.targets + truth.noise * jnp.sqrt(truth.variances)
    held_out = task_losses(params, Batch(truth.inputs, outputs))
    least = jnp.mean(truth.noise**2, axis=0) * truth.variances
    return jnp.concatenate([held_out / least - 1, excess(params, truth)])


def problem_of(pairs: Sequence[tuple[int, float]]) -> Problem:
    """A problem whose seeds are the numbers of pairs of a seed and a nearness."""

    @functools.cache
    def draw(steps: int) -> Seed:
        drawn = [draw_seed(*pair, steps) for pair in pairs]
        seeds: Seed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
        return seeds

    def load_data(steps: int, _: Sequence[int], __: int) -> Data:
        drawn = draw(steps)
        train = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), drawn.train)
        return Data(train, drawn.truth, drawn.truth, held_out_by_seed=True)

    names = ("near", *(f"other {index}" for index in range(1, K)))
    return Problem(
        tasks=tuple(Task(name, f"{name}, MSE", f"{name} excess", 2) for name in names),
        load_data=load_data,
        init=lambda _: (draw(1).params, ()),
        losses=lambda params, state, batch, _: (task_losses(params, batch), state),
        metrics=metrics,
    )


# --- What is compared -----------------------------------------------------------------------------

NORMALIZERS = {"harmonic": "#d55e00", "geometric": "#009e73", "arithmetic": "#cc79a7"}
NORMALIZERS |= {"none": "#0072b2"}
SGD_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
ADAM_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
TENTHS = tuple(rate / 10 for rate in SGD_RATES), tuple(rate / 10 for rate in ADAM_RATES)
Optimizer = tuple[Callable[..., optax.GradientTransformation], tuple[float, ...]]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": (optax.sgd, SGD_RATES),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), TENTHS[0]),
    "adam": (optax.adam, ADAM_RATES),
    "adam-beta2-0.99": (functools.partial(optax.adam, b2=0.99), ADAM_RATES),
    "adam-beta2-0.9": (functools.partial(optax.adam, b2=0.9), ADAM_RATES),
    "adam-eps-1e-16": (functools.partial(optax.adam, eps=1e-16), ADAM_RATES),
    "adam-frozen": (optax.adam, ADAM_RATES),  # whose logits stay at zero
    "lion": (optax.lion, TENTHS[1]),
}
SCHEDULES = ("constant", "cosine")


def schedule_of(setting: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Constant or cosine, as the setting says."""
    cosine = optax.cosine_decay_schedule(1.0, steps)
    return lambda count: (
        setting["learning_rate"] * jnp.where(setting["schedule"] == 0, 1.0, cosine(count))
    )


def measure(_: Any, __: Any, before: Any, after: Any, losses: jax.Array) -> jax.Array:
    """The c of a step, and the norm of what it adds to the parameters, ``[2]``."""
    state: famo_jax.FamoState = before.opt_state[-1]
    at_one = famo(K, normalizer=None).init(None)._replace(logits=state.logits)
    c = jnp.sum(loss_weights(losses, state)) / jnp.sum(loss_weights(losses, at_one))
    return jnp.stack([c, optax.tree.norm(jax.tree.map(jnp.subtract, after.params, before.params))])


def keep(measured: Any) -> dict[str, Array]:
    """Of every run the decades that c spans, and the means of both logarithms over stretches."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(measured, np.float64))
        decades = np.ptp(logs[..., 0], axis=2) / np.log(10)
        return {"c_decades": decades, "logs": _statistics.thin(logs, 50, axis=2)}


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Trains under every optimizer, two-pass, with the paper's gamma."""
    from famo_jax.experiments import _train

    pairs = list(itertools.product(range(options.seeds), options.nearness))
    problem = problem_of(pairs)

    def arm(optimizer: str, normalizer: str, data: Data) -> "_train.Arm":
        rate = 0.0 if optimizer == "adam-frozen" else 0.025
        name: Any = None if normalizer == "none" else normalizer
        method = Method(
            f"FAMO, normaliser {normalizer}",
            NORMALIZERS[normalizer],
            lambda k: famo(k, learning_rate=rate, normalizer=name),
            measure="two-pass",
            has_logits=True,
        )
        make, rates = OPTIMIZERS[optimizer]
        settings = [
            {"schedule": index, "learning_rate": rate}
            for index, rate in itertools.product(range(len(SCHEDULES)), rates)
        ]
        return _train.Arm(
            f"{optimizer} {normalizer}", problem, data, options.steps, method, settings,
            range(len(pairs)), make, schedule_of, probe=measure, keep=keep,
        )  # fmt: skip

    def plan(options: argparse.Namespace) -> Any:
        data = problem.load_data(options.steps, (), BATCH_SIZE)
        yield [arm(*each, data) for each in itertools.product(options.optimizers, NORMALIZERS)]

    return _train.run(plan, options, session)


# --- Summaries ------------------------------------------------------------------------------------

QUANTITIES = ("every", "others", "near")  # of which tasks the excess is told


def select(arrays: Mapping[str, Array], options: Mapping[str, Any]) -> dict[str, Any]:
    """What came of an arm, ``[schedules, rates, seeds, nearnesses, ...]``."""
    seeds, nearnesses = options["seeds"], len(options["nearness"])
    of_all = {
        name: values.reshape(len(SCHEDULES), -1, seeds, nearnesses, *values.shape[2:])
        for name, values in arrays.items()
    }
    found = of_all["test"][..., K:].astype(np.float64)
    validation = of_all["validation"][..., :K].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return {
            # By the least log of loss over least loss, mean of all tasks and seeds.
            "scores": np.log1p(validation).mean(axis=(2, -1)),
            "every": np.expm1(np.log1p(found).mean(axis=-1)),
            "others": found[..., 1:].mean(axis=-1),
            "near": found[..., 0],
            "c_decades": of_all["c_decades"],
            "logits_range": of_all["logit_range"][..., 0],
            "logs": of_all["logs"],
        }


def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of every optimizer, schedule and normaliser; lists are over nearnesses."""
    options = runs.facts["settings"]
    nearnesses = range(len(options["nearness"]))

    def figures(own: Any, base: Any, schedule: int, rates: Sequence[int], others: Any) -> Any:
        def pick(of: Any, name: str, chosen: Sequence[int]) -> list[Array]:
            return [of[name][schedule, chosen[near], :, near] for near in nearnesses]

        return {
            "learning_rate": [own["rates"][index] for index in rates],
            "c_decades": [values.mean() for values in pick(own, "c_decades", rates)],
            "logits_range": [values.mean() for values in pick(own, "logits_range", rates)],
            "c": [np.exp(logs.mean(axis=0))[:, 0] for logs in pick(own, "logs", rates)],
            "step_length": [np.exp(logs.mean(axis=0))[:, 1] for logs in pick(own, "logs", rates)],
            **{
                name: [
                    _statistics.geometric(values) | {"by_seed": values}
                    for values in pick(own, name, rates)
                ]
                for name in QUANTITIES
            },
            **{
                f"{name}_over_harmonic": [
                    _statistics.geometric(values / theirs)
                    for values, theirs in zip(
                        pick(own, name, rates), pick(base, name, others), strict=True
                    )
                ]
                for name in QUANTITIES
            },
        }

    summary: dict[str, Any] = {}
    for optimizer in options["optimizers"]:
        cells = {
            name: select(runs.arrays[f"{optimizer} {name}"], options)
            | {"rates": np.array(OPTIMIZERS[optimizer][1])}
            for name in NORMALIZERS
        }
        summary[optimizer] = {}
        for index, schedule in enumerate(SCHEDULES):
            best = {
                name: [_statistics.choose(scores) for scores in own["scores"][index].T]
                for name, own in cells.items()
            }
            common = best["harmonic"]
            base = cells["harmonic"]
            summary[optimizer][schedule] = {
                name: {
                    "best": figures(own, base, index, best[name], common),
                    "common": figures(own, base, index, common, common),
                    "edge": bool({0, len(own["rates"]) - 1} & set(best[name])),
                }
                for name, own in cells.items()
            }
    return {"nearness": options["nearness"], "seeds": options["seeds"], "optimizers": summary}


TABLES = (
    ("best", "every", "Excess (%), mean of all tasks, each normaliser at its best rate"),
    ("best", "others", "Excess (%), other tasks, each normaliser at its best rate"),
    ("best", "near", "Excess (%), near task, each normaliser at its best rate"),
    ("common", "others", "Excess (%), other tasks, all at the harmonic mean's best rate"),
)
MAIN = ("sgd", "momentum", "adam", "lion")


def tables(summary: Summary) -> list[Any]:
    """A row for each optimizer and schedule, at the last nearness; then what they leave out."""
    parts: list[Any] = []
    for kind, quantity, title in TABLES:
        table = _tables.new(title, ["optimizer", ""], NORMALIZERS, padding=1)
        for optimizer, schedules in summary["optimizers"].items():
            for schedule, cells in schedules.items():
                means = [cell[kind][quantity][-1]["mean"] for cell in cells.values()]
                table.add_row(optimizer, schedule, *(_short(100 * mean) for mean in means))
        parts.append(table)
    parts.append(
        f"Geometric means over {summary['seeds']} seeds of the excess, loss over least loss minus "
        f"1, where that of the near task is 1e-{summary['nearness'][-1]:g}; all tasks: by mean "
        "log(1 + excess). Ratios are paired by seed, with 95% intervals."
    )
    for optimizer in (name for name in MAIN if name in summary["optimizers"]):
        cells = summary["optimizers"][optimizer]["cosine"]
        decades = ", ".join(
            f"{name} {cell['common']['c_decades'][-1]:.1f}" for name, cell in cells.items()
        )
        parts.append(f"{optimizer}, cosine: c spans, in decades: {decades}.")
        for name in ("geometric", "none"):
            told = ", ".join(
                f"{each} {_tables.ratio(cells[name]['best'][f'{each}_over_harmonic'][-1])}"
                for each in QUANTITIES
            )
            parts.append(f"{optimizer}, cosine, {name} / harmonic: {told}.")
    return parts


def _short(percent: float) -> str:
    """In at most six characters."""
    if percent < 100:
        return f"{percent:.2g}" if percent >= 0.01 else f"{percent:.0e}"
    return f"{percent:.0f}" if percent < 10_000 else f"{percent:.0e}"


def draw(summary: Summary) -> Any:
    """Where the tasks end over the near task's least loss: the others above, the near one below."""
    from famo_jax.experiments import _plots

    shown = [name for name in ("sgd", "adam", "lion") if name in summary["optimizers"]]
    shown = shown or list(summary["optimizers"])[:3]
    near = summary["nearness"]
    with _plots.picture(height=4.6) as figure:
        rows = figure.subplots(2, len(shown), sharey="row", sharex=True, squeeze=False)
        for row, quantity, words in zip(
            rows, ("others", "near"), ("the other tasks", "the near task"), strict=True
        ):
            for axes, optimizer in zip(row, shown, strict=True):
                axes.set_yscale("log")
                cells = summary["optimizers"][optimizer]["cosine"]
                curves = {
                    name: (
                        100 * np.array([each["mean"] for each in cell["best"][quantity]]),
                        NORMALIZERS[name],
                    )
                    for name, cell in cells.items()
                }
                _plots.lines(axes, np.array(near), curves, labelled=optimizer == shown[-1])
                axes.set_title(f"{words}, {optimizer}")
            row[0].set_ylabel("excess loss (%)")
        for axes in rows[-1]:
            axes.set_xlabel("k: near task's least loss is 10$^{-k}$")
    return figure


STUDY = Study(
    name="normalizer",
    title="What FAMO's normaliser does as one loss nears its bound",
    seconds=83,
    full={
        "steps": 1000,
        "seeds": 10,
        "nearness": [0.0, 2.0, 4.0, 6.0, 8.0],
        "optimizers": [*OPTIMIZERS],
    },
    quick={"steps": 50, "seeds": 2, "nearness": [0.0, 6.0], "optimizers": ["sgd", "adam"]},
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"normalizer.png": draw},
    options={
        "nearness": Option(
            _command.non_negative_float, "the near task's least loss is 10^-K", True, "K"
        ),
        "optimizers": Option(
            _command.one_of([*OPTIMIZERS]), "of the model", several=True, metavar="NAME"
        ),
    },
    check=lambda _, options: options.nearness.sort(),
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
