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

Besides the four normalisers of the library some that it does not have are measured: ``floored``,
the harmonic mean of losses none of which counts for less than a tenth of their geometric mean;
``clipped``, 1 until the gradient is longer than 1, as ``optax.clip_by_global_norm(1.0)`` behind
``normalizer=None``; and ``smooth-10`` and ``smooth-100``, the harmonic mean averaged, as a
logarithm, over about so many steps.

The model's learning rate is chosen on validation for every cell, so that each normaliser has its
best, and beside it stands what the harmonic mean's best does under another normaliser.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import famo_jax
from famo_jax import _famo
from famo_jax.experiments import _arguments, _report, _study

Array = npt.NDArray[Any]

# --- Tasks ----------------------------------------------------------------------------------------

K, FEATURES, WIDTH = 4, 8, 8
BATCH_SIZE = 16
VALIDATION_SIZE = 1000


class Params(NamedTuple):
    """Two linear layers."""

    trunk: jax.Array  # [FEATURES, WIDTH], W
    heads: jax.Array  # [WIDTH, K], a


class Draws(NamedTuple):
    """What a seed's batches are made of. Every setting of a seed sees the same."""

    inputs: jax.Array  # [..., FEATURES]
    noise: jax.Array  # [..., K], of variance 1


class Seed(NamedTuple):
    """All that is random in a run."""

    targets: jax.Array  # [FEATURES, K], w, columns of length 1
    params: Params  # the initial ones
    train: Draws  # [steps, BATCH_SIZE]
    validation: Draws  # [VALIDATION_SIZE]


def draw_seeds(seeds: int, steps: int) -> Seed:
    """Draws the tasks, networks and batches of seeds: a leading axis of them on every leaf."""

    def draw(seed: int) -> Seed:
        generators = [np.random.default_rng([seed, stream]) for stream in range(5)]

        def normal(stream: int, *shape: int) -> jax.Array:
            return jnp.asarray(generators[stream].standard_normal(shape, np.float32))

        def draws(stream: int, *shape: int) -> Draws:
            both = normal(stream, *shape, FEATURES + K)
            return Draws(both[..., :FEATURES], both[..., FEATURES:])

        targets = normal(0, FEATURES, K)
        return Seed(
            targets=targets / jnp.linalg.norm(targets, axis=0),
            params=Params(
                normal(1, FEATURES, WIDTH) / FEATURES**0.5, normal(2, WIDTH, K) / WIDTH**0.5
            ),
            train=draws(3, steps, BATCH_SIZE),
            validation=draws(4, VALIDATION_SIZE),
        )

    drawn: Seed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(draw, range(seeds)))
    return drawn


def noise_variances(nearness: jax.typing.ArrayLike) -> jax.Array:
    """The least losses that the tasks can have, ``[K]``: 10^-k for the first, 1 for the others."""
    return jnp.ones(K).at[0].set(10.0 ** -jnp.asarray(nearness, float))


def task_losses(
    params: Params, draws: Draws, targets: jax.Array, variances: jax.Array
) -> jax.Array:
    """The K mean squared errors on ``[B]`` draws, ``[K]``."""
    errors = draws.inputs @ params.trunk @ params.heads - draws.inputs @ targets
    return jnp.mean((errors - draws.noise * jnp.sqrt(variances)) ** 2, axis=0)


def excess(params: Params, targets: jax.Array, variances: jax.Array) -> jax.Array:
    """What the losses over all inputs have above their least values, over these, ``[K]``."""
    return jnp.sum((params.trunk @ params.heads - targets) ** 2, axis=0) / variances


# --- Normalisers ----------------------------------------------------------------------------------

# "None" is the library's normalizer=None. Those after it the library does not have.
MEANS: tuple[Literal["harmonic", "geometric", "arithmetic"], ...] = (
    "harmonic",
    "geometric",
    "arithmetic",
)
LIBRARY = (*MEANS, "None")
MEMORIES = {"smooth-10": 0.9, "smooth-100": 0.99}
NORMALIZERS = (*LIBRARY, "floored", "clipped", *MEMORIES)
COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#0072b2", "#e69f00", "#56b4e9", "black", "#999999")
SHOWN = (*LIBRARY, "smooth-10")  # where all would hide each other
FLOOR = 0.1


class Average(NamedTuple):
    """Means of log c that forget: what the smooth normalisers remember."""

    total: jax.Array  # [2], in the order of MEMORIES
    weight: jax.Array  # [2]


def normalizers(
    losses: jax.Array, state: famo_jax.FamoState, gradient_norm: jax.Array, average: Average
) -> tuple[dict[str, jax.Array], Average]:
    """The value c of every normaliser.

    Args:
      losses: ``[K]``
      state: FAMO's.
      gradient_norm: ``[]``, of the gradient where c is 1.
      average: Of the steps before.

    Returns:
      c, ``[]``, by the names in ``NORMALIZERS``, and the next average.
    """

    def weigh(losses: jax.Array, name: str | None) -> jax.Array:
        at = state._replace(normalizer=_famo.NORMALIZERS[name])
        return jnp.asarray(famo_jax.loss_weights(losses, at))

    at_one = jnp.sum(weigh(losses, None))
    c: dict[str, jax.Array] = {name: jnp.sum(weigh(losses, name)) / at_one for name in MEANS}
    floored = jnp.maximum(losses, FLOOR * c["geometric"])
    memory = jnp.array([*MEMORIES.values()])
    average = Average(
        memory * average.total + (1 - memory) * jnp.log(c["harmonic"]),
        memory * average.weight + (1 - memory),
    )
    c |= {
        "None": jnp.ones(()),
        "floored": 1 / jnp.sum(weigh(floored, None)),
        "clipped": 1 / jnp.maximum(gradient_norm, 1),
        **dict(zip(MEMORIES, jnp.exp(average.total / average.weight), strict=True)),
    }
    return {name: c[name] for name in NORMALIZERS}, average


# --- Training -------------------------------------------------------------------------------------


class Optimizer(NamedTuple):
    """An optimizer of the model, and the learning rates to choose from."""

    make: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    rates: tuple[float, ...]
    logits_rate: float = 0.025  # 0 for logits that stay at zero


SGD_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
ADAM_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(optax.sgd, SGD_RATES),
    "momentum": Optimizer(
        functools.partial(optax.sgd, momentum=0.9), tuple(rate / 10 for rate in SGD_RATES)
    ),
    "adam": Optimizer(optax.adam, ADAM_RATES),
    "adam-beta2-0.99": Optimizer(functools.partial(optax.adam, b2=0.99), ADAM_RATES),
    "adam-beta2-0.9": Optimizer(functools.partial(optax.adam, b2=0.9), ADAM_RATES),
    "adam-eps-1e-16": Optimizer(functools.partial(optax.adam, eps=1e-16), ADAM_RATES),
    "adam-frozen": Optimizer(optax.adam, ADAM_RATES, logits_rate=0.0),
    "lion": Optimizer(optax.lion, tuple(rate / 10 for rate in ADAM_RATES)),
}
SCHEDULES = ("constant", "cosine")


class Run(NamedTuple):
    """A training run. Those of a study have axes [seeds, nearnesses, schedules, c, rates]."""

    validation: jax.Array  # [K], losses over their least values, minus 1
    excess: jax.Array  # [K]
    c: jax.Array  # [steps]
    step_length: jax.Array  # [steps], the norm of the update of the parameters
    logits_range: jax.Array  # [], at the end


def train(
    optimizer: Optimizer,
    seed: Seed,
    nearness: jax.Array,
    schedule: jax.Array,
    normalizer: jax.Array,
    rate: jax.Array,
) -> Run:
    """Trains one network, two-pass, with the paper's gamma: one :func:`jax.lax.scan`.

    Args:
      optimizer: The model's.
      seed: Its draws.
      nearness: k, ``[]``
      schedule: Index into ``SCHEDULES``, ``[]``
      normalizer: Index into ``NORMALIZERS``, ``[]``
      rate: The first learning rate, ``[]``
    """
    steps = len(seed.train.noise)
    variances = noise_variances(nearness)
    cosine = optax.cosine_decay_schedule(1.0, steps)
    tx = optax.chain(
        optimizer.make(lambda count: rate * jnp.where(schedule == 0, 1.0, cosine(count))),
        famo_jax.famo(K, learning_rate=optimizer.logits_rate, normalizer=None),
    )

    def step(carry: Any, draws: Draws) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        params, opt_state, average = carry
        losses_fn = lambda params: task_losses(params, draws, seed.targets, variances)
        losses, grads = famo_jax.losses_and_grads(losses_fn)(params, state=opt_state)
        every, average = normalizers(losses, opt_state[-1], optax.tree.norm(grads), average)
        c = jnp.stack([*every.values()])[normalizer]
        updates, opt_state = tx.update(
            jax.tree.map(lambda leaf: c * leaf, grads),
            opt_state,
            params,
            losses=losses,
            losses_fn=losses_fn,
        )
        carry = optax.apply_updates(params, updates), opt_state, average
        return carry, (c, optax.tree.norm(updates))

    start = seed.params, tx.init(seed.params), Average(jnp.zeros(2), jnp.zeros(2))
    (params, opt_state, _), (c, step_length) = jax.lax.scan(step, start, seed.train)
    held_out = task_losses(params, seed.validation, seed.targets, variances)
    least = jnp.mean(seed.validation.noise**2, axis=0) * variances
    return Run(
        validation=held_out / least - 1,
        excess=excess(params, seed.targets, variances),
        c=c,
        step_length=step_length,
        logits_range=jnp.ptp(opt_state[-1].logits),
    )


def compile_study(
    optimizer: Optimizer, nearnesses: Sequence[float], drawn: Seed
) -> Callable[[], Run]:
    """Compiles all runs of an optimizer as one call."""
    study = functools.partial(train, optimizer)
    for axis in (4, 3, 2, 1, 0):
        study = jax.vmap(study, in_axes=[0 if index == axis else None for index in range(5)])
    arguments = (
        jax.tree.map(jnp.asarray, drawn),
        jnp.asarray(nearnesses, float),
        jnp.arange(len(SCHEDULES)),
        jnp.arange(len(NORMALIZERS)),
        jnp.asarray(optimizer.rates),
    )
    return functools.partial(jax.jit(study).lower(*arguments).compile(), *arguments)


# --- The study ------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """A normaliser at one learning rate for each nearness and schedule."""

    rate: Array  # [nearnesses, schedules]
    every: Array  # [seeds, nearnesses, schedules], excess, what rates are chosen by on validation
    others: Array  # [seeds, nearnesses, schedules], mean excess of the tasks whose noise is 1
    near: Array  # [seeds, nearnesses, schedules], excess of the task that nears its bound
    c_decades: Array  # [seeds, nearnesses, schedules], log10 of the largest c over the least
    c: Array  # [steps, nearnesses, schedules], geometric mean over seeds
    step_length: Array  # [steps, nearnesses, schedules], likewise
    logits_range: Array  # [seeds, nearnesses, schedules]


class Result(NamedTuple):
    """A normaliser under an optimizer."""

    best: Outcome  # each at its own best rate
    common: Outcome  # all at the harmonic mean's best rate


def select(run: Run, rates: Sequence[float]) -> dict[str, Result]:
    """Chooses the rates on validation: the least log of loss over least loss, mean of all tasks.

    Args:
      run: All of an optimizer's, ``[seeds, nearnesses, schedules, normalisers, rates]``.
      rates: The rates.
    """
    with np.errstate(invalid="ignore"):
        scores = np.log1p(np.asarray(run.validation, np.float64)).mean(axis=(0, -1))
    chosen = np.where(np.isfinite(scores), scores, np.inf).argmin(axis=-1)

    def outcome(normalizer: int, chosen: Array) -> Outcome:
        def pick(field: jax.Array) -> Array:
            own = np.asarray(field[:, :, :, normalizer], np.float64)
            index = chosen.reshape(1, *chosen.shape, *(1,) * (own.ndim - 3))
            return np.take_along_axis(own, index, axis=3).squeeze(3)

        excess, c = pick(run.excess), pick(run.c)
        return Outcome(
            rate=np.asarray(rates)[chosen],
            every=np.expm1(np.log1p(excess).mean(axis=-1)),
            others=excess[..., 1:].mean(axis=-1),
            near=excess[..., 0],
            c_decades=np.log10(c.max(axis=-1) / c.min(axis=-1)),
            c=np.moveaxis(_geometric_mean(c), -1, 0),
            step_length=np.moveaxis(_geometric_mean(pick(run.step_length)), -1, 0),
            logits_range=pick(run.logits_range),
        )

    return {
        name: Result(outcome(index, chosen[..., index]), outcome(index, chosen[..., 0]))
        for index, name in enumerate(NORMALIZERS)
    }


def _geometric_mean(values: Array) -> Array:
    """Over the first axis. A zero makes it zero, what diverged makes it NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Array = np.exp(np.mean(np.log(values), axis=0))
    return mean


def run_study(
    names: Sequence[str],
    nearnesses: Sequence[float],
    seeds: int,
    steps: int,
    progress: Progress,
) -> dict[str, dict[str, Result]]:
    """Trains under every optimizer; one compiles while another trains."""
    drawn = draw_seeds(seeds, steps)
    rows = {name: progress.add_task(name, status="waiting", start=False) for name in names}

    def study(name: str) -> dict[str, Result]:
        progress.start_task(rows[name])
        progress.update(rows[name], status="compiling")
        call = compile_study(OPTIMIZERS[name], nearnesses, drawn)
        progress.update(rows[name], status="training")
        results = select(jax.block_until_ready(call()), OPTIMIZERS[name].rates)
        progress.update(rows[name], status="done", completed=1, total=1)
        return results

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(study, names), strict=True))


# --- The report -----------------------------------------------------------------------------------

Results = Mapping[str, Mapping[str, Result]]
QUANTITIES = ("every", "others", "near")  # of which tasks the excess is told


def ratio(values: Array, others: Array) -> list[float]:
    """How many times ``values [seeds]`` is ``others``, paired by seed: mean, and 95% interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values / others)
        return [float(value) for value in np.exp([logs.mean(), *_study.interval(logs)])]


def summarize(results: Results) -> dict[str, Any]:
    """The figures of every optimizer, schedule and normaliser; lists are over nearnesses."""

    def figures(outcome: Outcome, harmonic: Outcome, schedule: int) -> dict[str, Any]:
        own, base = (
            {name: values[..., schedule] for name, values in each._asdict().items()}
            for each in (outcome, harmonic)
        )
        against = {
            name: [ratio(a, b) for a, b in zip(own[name].T, base[name].T, strict=True)]
            for name in QUANTITIES
        }
        return {
            "learning_rate": own["rate"],
            **{name: _geometric_mean(own[name]) for name in QUANTITIES},
            **{f"{name}_over_harmonic": against[name] for name in QUANTITIES},
            **{f"{name}_by_seed": own[name].T for name in QUANTITIES},
            "c_decades": own["c_decades"].mean(axis=0),
            "logits_range": own["logits_range"].mean(axis=0),
            "c": _thin(own["c"]).T,
            "step_length": _thin(own["step_length"]).T,
        }

    return {
        optimizer: {
            schedule: {
                normalizer: {
                    "best": figures(result.best, each["harmonic"].best, index),
                    "common": figures(result.common, each["harmonic"].best, index),
                }
                for normalizer, result in each.items()
            }
            for index, schedule in enumerate(SCHEDULES)
        }
        for optimizer, each in results.items()
    }


def _thin(curve: Array, points: int = 50) -> Array:
    """Geometric means over at most ``points`` stretches of steps of equal length."""
    return np.stack(
        [_geometric_mean(part) for part in np.array_split(curve, min(points, len(curve)))]
    )


TABLES = (
    ("best", "every", "Excess (%), mean of all tasks, each normaliser at its best rate"),
    ("best", "others", "Excess (%), other tasks, each normaliser at its best rate"),
    ("best", "near", "Excess (%), near task, each normaliser at its best rate"),
    ("common", "every", "Excess (%), mean of all tasks, all at the harmonic mean's best rate"),
    ("common", "others", "Excess (%), other tasks, all at the harmonic mean's best rate"),
)
HEADERS = ("harm", "geom", "arith", "None", "floor", "clip", "s-10", "s-100")


def table(summary: Mapping[str, Any], kind: str, quantity: str, title: str) -> Table:
    """A row for each optimizer and schedule, a column for each normaliser, at the last nearness."""
    rows = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    rows.add_column("optimizer", no_wrap=True)
    rows.add_column("", no_wrap=True)
    for header in HEADERS:
        rows.add_column(header, justify="right", no_wrap=True)
    for optimizer, schedules in summary.items():
        for schedule, cells in schedules.items():
            values = [cells[name][kind][quantity][-1] for name in NORMALIZERS]
            rows.add_row(optimizer, schedule[:5], *map(_short, values))
    return rows


def _short(value: float) -> str:
    """A number above 0 as percent, in at most six characters."""
    percent = 100 * value
    if percent < 100:
        return f"{percent:.2g}" if percent >= 0.01 else f"{percent:.0e}"
    return f"{percent:.0f}" if percent < 10_000 else f"{percent:.0e}"


MAIN = ("sgd", "momentum", "adam", "lion")


def notes(summary: Mapping[str, Any], nearness: float, seeds: int) -> list[str]:
    """What the tables leave out."""
    lines = [
        f"Geometric means over {seeds} seeds of the excess, loss over least loss minus 1, where "
        f"that of the near task is 1e-{nearness:g}; all tasks: by mean log(1 + excess). "
        "Ratios are paired by seed, with 95% intervals."
    ]
    for optimizer in (name for name in MAIN if name in summary):
        cells = summary[optimizer]["cosine"]
        decades = ", ".join(
            f"{name} {cells[name]['common']['c_decades'][-1]:.1f}" for name in NORMALIZERS
        )
        lines.append(f"{optimizer}, cosine: c spans, in decades: {decades}.")
        for name in ("geometric", "None", *MEMORIES):
            told = ", ".join(
                f"{quantity} {_interval(cells[name]['best'][f'{quantity}_over_harmonic'][-1])}"
                for quantity in QUANTITIES
            )
            lines.append(f"{optimizer}, cosine, {name} / harmonic: {told}.")
    return lines


def _interval(figures: Sequence[float]) -> str:
    mean, low, high = figures
    return f"{mean:.2g} ({low:.2g} to {high:.2g})"


def edges(results: Results) -> list[str]:
    """The cells whose best rate is at the end of its list: a better one may lie beyond."""
    return [
        f"{optimizer}, {schedule}, {normalizer}"
        for optimizer, each in results.items()
        for index, schedule in enumerate(SCHEDULES)
        for normalizer, result in each.items()
        if set(result.best.rate[:, index])
        & {OPTIMIZERS[optimizer].rates[0], OPTIMIZERS[optimizer].rates[-1]}
    ]


# --- The figure -----------------------------------------------------------------------------------


STYLES: tuple[Literal[":", "-"], ...] = (":", "-")  # of the schedules
MARKERS = "osDv"  # of the optimizers


def draw(
    results: Results,
    summary: Mapping[str, Any],
    nearnesses: Sequence[float],
    path: Path,
) -> None:
    """What c does over the steps, and where the tasks end."""
    with _study.style():
        figure = Figure(figsize=(8.5, 8.8), dpi=200, layout="constrained")
        grid = figure.add_gridspec(4, 1, height_ratios=(1, 1, 1, 1.15))
        rows = [figure.add_subfigure(grid[row]) for row in range(4)]
        first = next(iter(results))
        adam = "adam" if "adam" in results else first
        sgd = "sgd" if "sgd" in results else first
        over_steps = (
            (adam, "c", "c"),
            (adam, "step_length", "length"),
            (sgd, "step_length", "length"),
        )
        for axes, (optimizer, quantity, label) in zip(
            rows[0].subplots(1, 3), over_steps, strict=True
        ):
            _draw_curves(axes, results[optimizer], quantity)
            axes.set_title(f"{label} of each step, {optimizer}, cosine")
        rows[0].suptitle(
            f"At the harmonic mean's best rate, near task's least loss 1e-{nearnesses[-1]:g}",
            fontsize=8,
        )
        shown = [name for name in MAIN if name in results] or [first]
        for row, quantity, label in (
            (rows[1], "others", "excess, other tasks"),
            (rows[2], "near", "excess, near task"),
        ):
            panels = row.subplots(1, len(shown), sharey=True, squeeze=False)[0]
            for axes, optimizer in zip(panels, shown, strict=True):
                _draw_ends(axes, summary[optimizer], quantity, nearnesses)
                axes.set_title(f"{optimizer}, each at its best rate")
            panels[0].set_ylabel(label)
        left, right = rows[3].subplots(1, 2, width_ratios=(1.6, 1))
        _draw_adam(left, summary)
        left.set_title(f"Adam's part, near task's least loss 1e-{nearnesses[-1]:g}, cosine")
        _draw_trade(right, {name: summary[name] for name in shown})
        right.set_title("filled: cosine, open: constant")
        handles = [
            Line2D([], [], color=colour, marker=".", label=name)
            for name, colour in zip(NORMALIZERS, COLOURS, strict=True)
        ] + [
            Line2D([], [], color="black", linestyle=style, label=schedule)
            for schedule, style in zip(SCHEDULES, STYLES, strict=True)
        ]
        handles += [
            Line2D([], [], color="black", linestyle="", marker=marker, markersize=4, label=name)
            for name, marker in zip(shown, MARKERS, strict=False)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=7)
        figure.savefig(path, pil_kwargs={"optimize": True})


def _draw_curves(axes: Axes, each: Mapping[str, Result], quantity: str) -> None:
    for name, colour in zip(NORMALIZERS, COLOURS, strict=True):
        curve = getattr(each[name].common, quantity)[:, -1, SCHEDULES.index("cosine")]
        thinned = _thin(curve)
        axes.plot(_study.middles(len(curve), len(thinned)), thinned, color=colour)
    axes.set_yscale("log")
    axes.set_xlabel("step")


def _draw_ends(
    axes: Axes, schedules: Mapping[str, Any], quantity: str, nearnesses: Sequence[float]
) -> None:
    for name in SHOWN:
        colour = COLOURS[NORMALIZERS.index(name)]
        for schedule, style in zip(SCHEDULES, STYLES, strict=True):
            values = schedules[schedule][name]["best"][quantity]
            axes.plot(nearnesses, values, style, color=colour, marker=".")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("k, near task's least loss 10$^{-k}$")


def _draw_adam(axes: Axes, summary: Mapping[str, Any]) -> None:
    names = [name for name in summary if name.startswith("adam")] or list(summary)
    for place, normalizer in enumerate(SHOWN):
        colour = COLOURS[NORMALIZERS.index(normalizer)]
        cells = [summary[name]["cosine"][normalizer] for name in names]
        x = np.arange(len(names)) + (place - 2) / 8
        for kind, fill in (("best", colour), ("common", "none")):
            ends = [cell[kind]["others"][-1] for cell in cells]
            axes.plot(x, ends, "o", color=colour, markerfacecolor=fill)
    for fill, label in (("black", "best rate"), ("none", "harmonic mean's best rate")):
        axes.plot([], [], "o", color="black", markerfacecolor=fill, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(range(len(names)), [name.replace("-", "\n", 1) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(top=4 * axes.get_ylim()[1])  # room for the legend
    axes.set_ylabel("excess, other tasks")
    axes.legend(loc="upper center", ncols=2)


def _draw_trade(axes: Axes, summary: Mapping[str, Any]) -> None:
    for schedules, marker in zip(summary.values(), MARKERS, strict=False):
        for name, colour in zip(NORMALIZERS, COLOURS, strict=True):
            for schedule, fill in zip(SCHEDULES, ("none", colour), strict=True):
                best = schedules[schedule][name]["best"]
                point = best["others"][-1], best["near"][-1]
                axes.plot(*point, marker, color=colour, markerfacecolor=fill, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="excess, other tasks", ylabel="excess, near task")
    axes.xaxis.set_minor_formatter("")


# --- The command ----------------------------------------------------------------------------------

FULL = {
    "steps": 1000,
    "seeds": 10,
    "nearness": [0.0, 2.0, 4.0, 6.0, 8.0],
    "optimizers": [*OPTIMIZERS],
}
QUICK = {"steps": 50, "seeds": 2, "nearness": [0.0, 6.0], "optimizers": ["sgd", "adam"]}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    parser = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.normalizer",
        description="What FAMO's normaliser does as one loss nears its bound.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    count = functools.partial(add, type=_arguments.positive_int, metavar="N")
    count("--steps", help=f"training steps ({FULL['steps']})")
    count("--seeds", help=f"seeds of every setting ({FULL['seeds']})")
    add(
        "--nearness",
        nargs="+",
        type=_arguments.non_negative_float,
        metavar="K",
        help="the near task's least loss is 10^-K (0 2 4 6 8)",
    )
    add(
        "--optimizers",
        nargs="+",
        type=_arguments.one_of(list(OPTIMIZERS)),
        metavar="NAME",
        help=f"of the model (all: {', '.join(OPTIMIZERS)})",
    )
    add("--out", type=Path, default=Path("results/normalizer"), help="output folder (%(default)s)")
    add("--quick", action="store_true", help="50 steps, 2 seeds, 2 losses, sgd and adam")
    options = parser.parse_args(arguments)
    for name, default in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for option in ("nearness", "optimizers"):
        _arguments.check_distinct(parser, f"--{option}", getattr(options, option))
    _arguments.output_folder(parser, "--out", options.out, "normalizer.png", "normalizer.json")
    options.nearness = sorted(options.nearness)
    return options


@_arguments.command
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, prints its tables, writes ``normalizer.png`` and ``normalizer.json``."""
    options = parse(arguments)
    start = time.perf_counter()
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description:20}{task.fields[status]:40}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        results = run_study(
            options.optimizers, options.nearness, options.seeds, options.steps, progress
        )
    summary = summarize(results)
    for kind, quantity, title in TABLES:
        console.print(table(summary, kind, quantity, title))
    for line in notes(summary, options.nearness[-1], options.seeds):
        console.print(line, highlight=False)
    figure_path, json_path = options.out / "normalizer.png", options.out / "normalizer.json"
    draw(results, summary, options.nearness, figure_path)
    seconds = time.perf_counter() - start
    _report.write_json(
        json_path,
        {
            "settings": {**vars(options), "out": str(options.out)},
            "environment": _report.environment(),
            "learning_rates": {name: OPTIMIZERS[name].rates for name in options.optimizers},
            "axes": "lists are over nearnesses; then over seeds, [mean, low, high] of the 95% "
            "interval of a ratio paired by seed, or stretches of steps of equal length",
            "results": summary,
            "best_rate_at_the_end_of_its_list": edges(results),
            "seconds": seconds,
        },
    )
    console.print(f"{figure_path} and {json_path}, {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
