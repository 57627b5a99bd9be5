r"""How much decay the task logits need: ``python -m famo_jax.experiments.gamma``.

FAMO's logits follow optimizer(delta + gamma xi). Two parts:

* **Digits**: the overlapping digits of :mod:`famo_jax.experiments.digits` over gamma, the
  learning rate of the logits, normalisers, batch sizes, one-pass and two-pass. Learning rate 0
  leaves the logits at zero: *frozen*, the control for all that they do. The model's learning rate
  is the one that validation chooses for *si*, so that no form of FAMO has a say in it. Settings
  are chosen on validation digits and reported on test digits, and all share seeds, so that
  differences are paired.
* **Scaling**: where the logits come to rest as the number of tasks and the size of a step grow.
  With Delta_i the decrease of log D_i in a step, delta_i = z_i (Delta_i - z.Delta), so that at rest

  .. math:: \xi_i = -z_i (E[\Delta_i] - z \cdot E[\Delta]) / \gamma

  which is about 1/(K gamma) times the decrease of a step. First with decreases that are given and
  constant, then in training one network on K regression tasks of frequencies spread ninefold.

Beside the paper's decay stand forms whose gamma has no units, all of plain Optax: *adamw*, decay
after Adam's normalisation in place of before, and *normalized*, delta divided by its root mean
square over the tasks before it meets the decay.
"""

import argparse
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import SymmetricalLogLocator
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import famo_jax
from famo_jax.experiments import _arguments, _report, _study, digits

Array = npt.NDArray[Any]

# --- Settings of the logits' optimizer -----------------------------------------------------------

RATE, GAMMA = 0.025, 1e-3  # the paper's


def _normalized(num_tasks: int, gamma: jax.Array, rate: jax.Array) -> optax.GradientTransformation:
    return optax.chain(
        optax.normalize_by_update_norm(num_tasks**0.5, eps=1e-12),
        optax.add_decayed_weights(gamma),
        optax.adam(rate),
    )


# (K, gamma, learning rate) -> the optimizer of the logits, decay included.
FORMS: dict[str, Callable[[int, jax.Array, jax.Array], optax.GradientTransformation]] = {
    "paper": lambda _, gamma, rate: famo_jax.logits_optimizer(rate, gamma),
    "paper/K": lambda K, gamma, rate: famo_jax.logits_optimizer(rate, gamma / K),  # noqa: N803
    "adamw": lambda _, gamma, rate: optax.adamw(rate, weight_decay=gamma),
    "normalized": _normalized,
}
# What each form's gamma is chosen from where one has to serve everywhere.
GAMMAS = {
    "paper": (1e-4, 1e-3, 1e-2, 1e-1),
    "paper/K": (1e-3, 1e-2, 1e-1, 1.0),
    "adamw": (0.3, 1.0, 3.0),
    "normalized": (1.0, 3.0, 10.0),
}
COLOURS = {"paper": "#d55e00", "paper/K": "#e69f00", "adamw": "#0072b2", "normalized": "#009e73"}


class Setting(NamedTuple):
    """Of the logits' optimizer. With a leading axis on each field: a list of them."""

    form: chex.Numeric  # its position in FORMS
    gamma: chex.Numeric
    rate: chex.Numeric  # the logits' learning rate


FROZEN = Setting(0, 0.0, 0.0)


def setting(form: str, gamma: float, rate: float = RATE) -> Setting:
    """A setting by the name of its form."""
    return Setting(list(FORMS).index(form), gamma, rate)


def stack(settings: Sequence[Setting]) -> Setting:
    """``[S]`` settings, to be mapped over."""
    return Setting(*map(jnp.asarray, zip(*settings, strict=True)))


def weighting(
    num_tasks: int, setting: Setting, normalizer: Any = "harmonic"
) -> optax.GradientTransformationExtraArgs:
    """FAMO at a traced setting: every form steps, and the one that ``setting`` names counts."""
    optimizers = [make(num_tasks, setting.gamma, setting.rate) for make in FORMS.values()]

    def init(logits: jax.Array) -> Any:
        return [optimizer.init(logits) for optimizer in optimizers]

    def update(delta: jax.Array, states: Any, logits: Any = None) -> tuple[jax.Array, Any]:
        pairs = [
            optimizer.update(delta, state, logits)
            for optimizer, state in zip(optimizers, states, strict=True)
        ]
        updates, states = zip(*pairs, strict=True)
        return jnp.stack(updates)[setting.form], list(states)

    optimizer = optax.GradientTransformation(init, update)
    return famo_jax.famo(num_tasks, weight_decay=0.0, normalizer=normalizer, optimizer=optimizer)


# --- Training -------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """Of a training run. Those of a study have leading axes [settings, seeds]."""

    validation: jax.Array  # [K], metrics
    test: jax.Array  # [K]
    spread: jax.Array  # [], the range of the logits, mean over the steps


class Measures(NamedTuple):
    """What a network is trained on, and what it is judged by. Both ``(params, data) -> [K]``."""

    losses: Callable[[chex.ArrayTree, Any], jax.Array]
    metrics: Callable[[chex.ArrayTree, Any], jax.Array]


def train(
    measures: Measures,
    method: optax.GradientTransformationExtraArgs,
    two_pass: bool,
    learning_rate: jax.Array,
    params: chex.ArrayTree,
    data: _study.Data,
) -> Outcome:
    """Trains one network by Adam with cosine decay on ``[steps, batch_size]`` rows."""
    steps = len(jax.tree.leaves(data.train)[0])
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    tx = optax.chain(optax.adam(schedule), method)

    def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        losses, grads = famo_jax.losses_and_grads(measures.losses)(params, batch, state=opt_state)
        extra = {"losses_fn": lambda params: measures.losses(params, batch)} if two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        state = opt_state[-1]
        spread = jnp.ptp(state.logits) if isinstance(state, famo_jax.FamoState) else jnp.zeros(())
        return (optax.apply_updates(params, updates), opt_state), spread

    (params, _), spread = jax.lax.scan(step, (params, tx.init(params)), data.train)
    return Outcome(
        validation=measures.metrics(params, data.validation),
        test=measures.metrics(params, data.test),
        spread=jnp.mean(spread),
    )


def train_all(
    train_one: Callable[[Any, chex.ArrayTree, _study.Data], Outcome],
    settings: Any,
    params: chex.ArrayTree,
    data: _study.Data,
) -> Callable[[], Outcome]:
    """Compiles the runs of all settings and seeds as one call.

    Args:
      train_one: Trains one network at one setting.
      settings: ``[S, ...]``, any pytree. One after the other, as their networks would not fit into
        a cache together.
      params: ``[seeds, ...]``
      data: Training data ``[steps, seeds, ...]``.

    Returns:
      What runs it, and returns outcomes ``[S, seeds]``.
    """
    axes = (None, 0, _study.Data(train=1, validation=None, test=None))

    def study(settings: Any, params: chex.ArrayTree, data: _study.Data) -> Outcome:
        over_seeds = jax.vmap(train_one, in_axes=axes)
        outcomes: Outcome = jax.lax.map(lambda each: over_seeds(each, params, data), settings)
        return outcomes

    compiled = jax.jit(study).lower(settings, params, data).compile()
    return functools.partial(compiled, settings, params, data)


def choose(validation: Array) -> int:
    """The position of the least mean over seeds of ``[S, seeds]``; NaN is never the least."""
    means = validation.mean(axis=-1)
    return int(np.argmin(np.where(np.isfinite(means), means, np.inf)))


def _delta_m(values: Any, baseline: Array) -> Array:
    """Of metrics that are all better when lower, ``[..., K]``."""
    return np.asarray(famo_jax.delta_m(values, baseline, higher_is_better=False), np.float64)


# --- Digits ---------------------------------------------------------------------------------------

DIGITS = Measures(digits.task_losses, digits.task_metrics)
MODEL_RATES = (5e-3, 1e-2, 2e-2)
NORMALIZERS = ("harmonic", "geometric", "arithmetic", None)
MODES = {"one-pass": False, "two-pass": True}


class Cell(NamedTuple):
    """What is compiled by itself."""

    batch_size: int
    mode: str
    normalizer: Any


class Reference(NamedTuple):
    """What FAMO is compared with, at one batch size."""

    learning_rate: float  # of the model, chosen for si
    stl_learning_rates: list[float]  # [K]
    stl_validation: Array  # [K], metrics
    stl_test: Array  # [K]
    si_validation: Array  # [seeds], delta m
    si: Array  # [seeds], delta m on test


def digits_settings(gammas: Sequence[float], rates: Sequence[float]) -> list[Setting]:
    """Frozen, the grid, and what has to serve without tuning, in this order."""
    grid = [setting("paper", gamma, rate) for rate in rates for gamma in gammas]
    free = [setting(form, gamma) for form in ("adamw", "normalized") for gamma in GAMMAS[form]]
    return [FROZEN, *grid, *free]


def train_reference(
    params: chex.ArrayTree, data: _study.Data, rates: Sequence[float] = MODEL_RATES
) -> Reference:
    """Trains a network for each task, and si, and chooses their learning rates on validation."""
    learning_rates = jnp.asarray(rates)

    def single(each: Any, params: chex.ArrayTree, data: _study.Data) -> Outcome:
        task, rate = each
        return train(DIGITS, famo_jax.weighting.stl(task), False, rate, params, data)

    def si(rate: jax.Array, params: chex.ArrayTree, data: _study.Data) -> Outcome:
        return train(DIGITS, famo_jax.weighting.si(), False, rate, params, data)

    tasks = jnp.repeat(jnp.arange(digits.K), len(rates))
    pairs = (tasks, jnp.tile(learning_rates, digits.K))
    singles = train_all(single, pairs, params, data)()
    own = np.arange(digits.K)
    # [K, rates, seeds]: each task by its own metric.
    validation, test = (
        np.asarray(metrics).reshape(digits.K, len(rates), -1, digits.K)[own, ..., own]
        for metrics in singles[:2]
    )
    best = [choose(of_task) for of_task in validation]
    baselines = [each[own, best].mean(axis=-1) for each in (validation, test)]
    outcome = train_all(si, learning_rates, params, data)()
    validation_si, test_si = map(_delta_m, outcome[:2], baselines)
    chosen = choose(validation_si)
    return Reference(
        learning_rate=rates[chosen],
        stl_learning_rates=[rates[index] for index in best],
        stl_validation=baselines[0],
        stl_test=baselines[1],
        si_validation=validation_si[chosen],
        si=test_si[chosen],
    )


def train_cell(
    cell: Cell,
    settings: Sequence[Setting],
    learning_rate: float,
    params: chex.ArrayTree,
    data: _study.Data,
) -> Outcome:
    """All runs of a cell, ``[S, seeds]``."""

    def train_one(
        each: tuple[Setting, jax.Array], params: chex.ArrayTree, data: _study.Data
    ) -> Outcome:
        setting, rate = each
        method = weighting(digits.K, setting, cell.normalizer)
        two_pass = MODES[cell.mode]
        return train(DIGITS, method, two_pass, rate, params, data)

    rates = jnp.full(len(settings), learning_rate)
    outcome: Outcome = jax.block_until_ready(
        train_all(train_one, (stack(settings), rates), params, data)()
    )
    return outcome


def compare(values: Array, control: Array) -> dict[str, Any]:
    """A paired difference, ``[seeds]``: its mean, standard error and 95% interval."""
    difference = values - control
    return {
        "mean": float(difference.mean()),
        "se": _report.standard_error(difference),
        "interval": _study.interval(difference) if len(difference) > 1 else [math.nan] * 2,
    }


def _mean(values: Array) -> dict[str, float]:
    return {"mean": float(values.mean()), "se": _report.standard_error(values)}


def summarize_digits(
    outcomes: Mapping[Cell, Outcome],
    references: Mapping[int, Reference],
    settings: Sequence[Setting],
) -> list[dict[str, Any]]:
    """The figures of each cell: every setting's, the chosen one's, and the untuned ones'."""
    validation = {
        cell: _delta_m(outcome.validation, references[cell.batch_size].stl_validation)
        for cell, outcome in outcomes.items()
    }
    test = {
        cell: _delta_m(outcome.test, references[cell.batch_size].stl_test)
        for cell, outcome in outcomes.items()
    }
    forms = [list(FORMS)[each.form] for each in settings]
    # For all cells at once: the least mean difference from frozen on validation.
    gains = np.concatenate([scores - scores[0] for scores in validation.values()], axis=-1)

    def candidates(form: str) -> list[int]:
        return [index for index, name in enumerate(forms) if index and name == form]

    untuned = {
        form: rows[choose(gains[rows])]
        for form in dict.fromkeys(forms)
        if (rows := candidates(form))
    }
    if setting("paper", GAMMA) in settings:
        untuned["default"] = settings.index(setting("paper", GAMMA))

    summary = []
    for cell, outcome in outcomes.items():
        reference, scores = references[cell.batch_size], test[cell]
        grid = candidates("paper")
        chosen = grid[choose(validation[cell][grid])]

        def against(index: int, scores: Array = scores, si: Array = reference.si) -> dict[str, Any]:
            return {
                "gamma": float(settings[index].gamma),
                "rate": float(settings[index].rate),
                "delta_m": float(scores[index].mean()),
                "se": _report.standard_error(scores[index]),
                "minus_frozen": compare(scores[index], scores[0]),
                "minus_si": compare(scores[index], si),
            }

        summary.append(
            cell._asdict()
            | {
                "learning_rate": reference.learning_rate,
                "si": {
                    "delta_m": float(reference.si.mean()),
                    "se": _report.standard_error(reference.si),
                },
                "validation_si": _mean(reference.si_validation),
                "validation_frozen": _mean(validation[cell][0]),
                "frozen": against(0),
                "tuned": against(chosen),
                "untuned": {name: against(index) for name, index in untuned.items()},
                "settings": [
                    each._asdict() | {"form": form}
                    for form, each in zip(forms, settings, strict=True)
                ],
                "validation_delta_m_by_seed": validation[cell],
                "test_delta_m_by_seed": scores,
                "test_metrics": np.asarray(outcome.test).mean(axis=1),
                "logits_range": np.asarray(outcome.spread).mean(axis=1),
            }
        )
    return summary


# --- Scaling --------------------------------------------------------------------------------------

STEP_SIZES = (1e-4, 1e-3, 1e-2)  # the mean decrease of a log loss in a step
SPREAD = 9  # of the rates, the fastest over the slowest


def decreases(num_tasks: int, step_size: chex.Numeric) -> jax.Array:
    """Delta, ``[K]``: spread ninefold, of the mean ``step_size``."""
    rates = np.geomspace(1, SPREAD, num_tasks)
    decreases: jax.Array = step_size * jnp.asarray(rates / rates.mean())
    return decreases


def rest(num_tasks: int, setting: Setting, step_size: chex.Numeric, steps: int) -> jax.Array:
    """The logits, ``[K]``, after steps in which each log loss falls by its constant decrease."""
    tx = weighting(num_tasks, setting)
    before = jnp.ones(num_tasks)
    after = jnp.exp(-decreases(num_tasks, step_size))

    def step(state: famo_jax.FamoState, _: None) -> tuple[famo_jax.FamoState, None]:
        _, state = tx.update((), state, losses=before, new_losses=after)
        return state, None

    state, _ = jax.lax.scan(step, tx.init(None), length=steps)
    logits: jax.Array = state.logits
    return logits


def predicted(logits: Array, decrease: Array, gamma: float) -> Array:
    """Where logits that weigh the tasks as ``logits`` do would come to rest, ``[K]``."""
    z = np.exp(logits - logits.max())
    z /= z.sum()
    return np.asarray(-z * (decrease - z @ decrease) / gamma)


CONSTANT = (
    setting("paper", GAMMA),
    setting("paper/K", GAMMA),
    setting("adamw", 1.0),
    setting("normalized", 1.0),
)


def study_rest(num_tasks: int, steps: int) -> list[dict[str, Any]]:
    """Of each form and step size: the range of the logits after ``steps`` updates."""
    pairs = list(itertools.product(CONSTANT, STEP_SIZES))
    settings = stack([pair[0] for pair in pairs])
    sizes = jnp.array([pair[1] for pair in pairs])
    over_pairs = jax.vmap(lambda setting, size: rest(num_tasks, setting, size, steps))
    figures = []
    for (each, size), logits in zip(pairs, jax.jit(over_pairs)(settings, sizes), strict=True):
        form = list(FORMS)[each.form]
        figure = {
            "num_tasks": num_tasks,
            "form": form,
            "gamma": each.gamma,
            "step_size": size,
            "range": float(jnp.ptp(logits)),
        }
        if form.startswith("paper"):
            gamma = each.gamma / (num_tasks if form == "paper/K" else 1)
            decrease = np.asarray(decreases(num_tasks, size), np.float64)
            at_zero = predicted(np.zeros(num_tasks), decrease, gamma)
            at_rest = predicted(np.asarray(logits, np.float64), decrease, gamma)
            figure |= {"predicted": np.ptp(at_rest), "predicted_first_order": np.ptp(at_zero)}
        figures.append(figure)
    return figures


INPUTS, HIDDEN, ROWS, BATCH, NOISE = 8, 32, 1024, 32, 0.1
WAVE_RATES = (2e-3, 2e-2)  # of the model


class Waves(NamedTuple):
    """Rows of K regression tasks."""

    x: jax.Array  # [n, INPUTS]
    y: jax.Array  # [n, K]


def make_waves(key: jax.Array, num_tasks: int, noise: float) -> Waves:
    """Task i is a sine of a projection, of frequencies spread ninefold: the lowest is easiest."""
    x_key, noise_key = jax.random.split(key)
    direction_key, phase_key = jax.random.split(jax.random.key(4))
    directions = jax.random.normal(direction_key, (INPUTS, num_tasks))
    directions /= jnp.linalg.norm(directions, axis=0)
    phases = jax.random.uniform(phase_key, (num_tasks,), maxval=2 * jnp.pi)
    x = jax.random.normal(x_key, (ROWS, INPUTS))
    frequencies = jnp.asarray(np.geomspace(1 / 3, 3, num_tasks))
    y = jnp.sin(x @ directions * frequencies + phases)
    return Waves(x, y + noise * jax.random.normal(noise_key, y.shape))


def wave_params(key: jax.Array, num_tasks: int) -> list[dict[str, jax.Array]]:
    """A network of two hidden layers, with one output for each task."""
    sizes = [INPUTS, HIDDEN, HIDDEN, num_tasks]
    return [
        {"kernel": jax.random.normal(key, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
        for key, n, m in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    ]


def wave_losses(params: Any, waves: Waves) -> jax.Array:
    """Mean squared errors, ``[K]``."""
    hidden = waves.x
    for layer in params[:-1]:
        hidden = jnp.tanh(hidden @ layer["kernel"] + layer["bias"])
    return jnp.mean((hidden @ params[-1]["kernel"] + params[-1]["bias"] - waves.y) ** 2, axis=0)


WAVES = Measures(wave_losses, lambda params, waves: jnp.sqrt(wave_losses(params, waves)))
WAVE_SETTINGS = [FROZEN] + [setting(form, gamma) for form in FORMS for gamma in GAMMAS[form]]


def train_waves(num_tasks: int, mode: str, steps: int, seeds: int) -> Outcome:
    """All runs, ``[rates, S, seeds]``: every setting at both learning rates of the model."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    params = jax.vmap(lambda key: wave_params(key, num_tasks))(keys)
    noise = (NOISE, 0.0, 0.0)
    train_rows, *held_out = (
        make_waves(jax.random.key(split), num_tasks, noise[split]) for split in range(3)
    )
    # Rows are looked up in the scan: all batches of a thousand tasks would not fit into memory.
    batches = jax.random.randint(jax.random.key(3), (steps, seeds, BATCH), 0, ROWS)

    def on_batch(params: Any, batch: jax.Array) -> jax.Array:
        return wave_losses(params, Waves(train_rows.x[batch], train_rows.y[batch]))

    def train_one(each: Any, params: chex.ArrayTree, data: _study.Data) -> Outcome:
        setting, rate = each
        measures = Measures(on_batch, WAVES.metrics)
        method = weighting(num_tasks, setting)
        return train(measures, method, MODES[mode], rate, params, data)

    pairs = list(itertools.product(WAVE_RATES, WAVE_SETTINGS))
    settings = (stack([pair[1] for pair in pairs]), jnp.array([pair[0] for pair in pairs]))
    outcome = train_all(train_one, settings, params, _study.Data(batches, *held_out))()
    shape = (len(WAVE_RATES), len(WAVE_SETTINGS))
    return Outcome(*(field.reshape(*shape, *field.shape[1:]) for field in outcome))


def summarize_waves(outcomes: Mapping[tuple[int, str], Outcome]) -> list[dict[str, Any]]:
    """Each form at the one gamma that serves best over all: delta m against frozen, on test."""

    def relative(metrics: Any) -> Array:
        """``[rates, S, seeds]``: each seed against its own frozen."""
        return _delta_m(metrics, metrics[:, :1])

    validation = {key: relative(outcome.validation) for key, outcome in outcomes.items()}
    test = {key: relative(outcome.test) for key, outcome in outcomes.items()}
    pooled = np.concatenate(
        [scores.swapaxes(0, 1).reshape(len(WAVE_SETTINGS), -1) for scores in validation.values()],
        axis=-1,
    )
    figures = []
    for form, position in zip(FORMS, range(len(FORMS)), strict=True):
        rows = [i for i, each in enumerate(WAVE_SETTINGS) if i and each.form == position]
        served = rows[choose(pooled[rows])]
        for (num_tasks, mode), scores in test.items():
            for rate_index, rate in enumerate(WAVE_RATES):
                tuned = rows[choose(validation[num_tasks, mode][rate_index, rows])]
                figures += [
                    {
                        "num_tasks": num_tasks,
                        "mode": mode,
                        "learning_rate": rate,
                        "form": form,
                        "chosen": chosen,
                        "gamma": WAVE_SETTINGS[row].gamma,
                        "minus_frozen": compare(scores[rate_index, row], 0 * scores[0, 0]),
                        "logits_range": float(
                            outcomes[num_tasks, mode].spread[rate_index, row].mean()
                        ),
                    }
                    for chosen, row in (("for all", served), ("here", tuned))
                ]
    return figures


# --- The study ------------------------------------------------------------------------------------


class Results(NamedTuple):
    """All that is reported."""

    digits: list[dict[str, Any]]
    references: dict[int, Reference]
    rest: list[dict[str, Any]]
    waves: list[dict[str, Any]]


def run_study(options: argparse.Namespace, progress: Progress) -> Results:
    """Everything, on threads: one call compiles while another trains."""
    settings = digits_settings(options.gamma, options.logits_rate)
    sizes = sorted(options.batch_size)
    params = digits.init_params(options.seeds)

    def shown(name: str, call: Callable[..., Any], *args: Any) -> Any:
        row = progress.add_task(name)
        result = jax.block_until_ready(call(*args))
        progress.update(row, completed=1, total=1)
        return result

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        data = {
            size: shown(
                f"pictures, batch {size}", digits.load_data, options.steps, options.seeds, size
            )
            for size in sizes
        }
        started = {
            size: pool.submit(shown, f"stl and si, batch {size}", train_reference, params, own)
            for size, own in data.items()
        }
        references: dict[int, Reference] = {
            size: future.result() for size, future in started.items()
        }
        waves = {
            (num_tasks, mode): pool.submit(
                shown,
                f"{num_tasks:,} regressions, {mode}",
                train_waves,
                num_tasks,
                mode,
                options.steps,
                options.wave_seeds,
            )
            for num_tasks in sorted(options.tasks, reverse=True)
            for mode in MODES
        }
        cells = list(itertools.starmap(Cell, itertools.product(sizes, MODES, options.normalizer)))
        # The longest first, so that none is left alone at the end.
        running = {
            cell: pool.submit(
                shown,
                f"digits, batch {cell.batch_size}, {cell.mode}, {cell.normalizer or 'no'} c",
                train_cell,
                cell,
                settings,
                references[cell.batch_size].learning_rate,
                params,
                data[cell.batch_size],
            )
            for cell in reversed(cells)
        }
        at_rest = [
            pool.submit(
                shown, f"{num_tasks:,} constant rates", study_rest, num_tasks, 10 * options.steps
            )
            for num_tasks in sorted(options.tasks)
        ]
        outcomes = {cell: running[cell].result() for cell in cells}
        return Results(
            digits=summarize_digits(outcomes, references, settings),
            references=references,
            rest=[figure for future in at_rest for figure in future.result()],
            waves=summarize_waves({key: waves[key].result() for key in sorted(waves)}),
        )


# --- The report -----------------------------------------------------------------------------------


def _plus_minus(figure: Mapping[str, Any], key: str = "mean", sign: str = "") -> str:
    """The mean and its standard error, which a single seed does not have."""
    error = f"±{figure['se']:.1f}" if math.isfinite(figure["se"]) else ""
    return f"{figure[key]:{sign}.1f}{error}"


def _new_table(title: str, names: Sequence[str], headers: Sequence[str]) -> Table:
    table = Table(
        title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left"
    )
    for name in names:
        table.add_column(name, no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _cell_names(figures: Mapping[str, Any]) -> list[str]:
    return [str(figures["batch_size"]), figures["mode"], str(figures["normalizer"])]


def tuned_table(summary: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each cell: the controls, and FAMO where validation says."""
    table = _new_table(
        "Digits: Δm on test, FAMO tuned on validation",
        ["batch", "mode", "normalizer"],
        ["si", "frozen", "FAMO", "gamma", "rate", "- frozen", "- si"],
    )
    for figures in summary:
        tuned = figures["tuned"]
        table.add_row(
            *_cell_names(figures),
            f"{figures['si']['delta_m']:.1f}",
            f"{figures['frozen']['delta_m']:.1f}",
            _plus_minus(tuned, "delta_m"),
            f"{tuned['gamma']:g}",
            f"{tuned['rate']:g}",
            _plus_minus(tuned["minus_frozen"], sign="+"),
            _plus_minus(tuned["minus_si"], sign="+"),
        )
    return table


UNTUNED = ("default", "paper", "adamw", "normalized")


def untuned_table(summary: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each cell: one setting of each form for all cells, against frozen."""
    names = [name for name in UNTUNED if name in summary[0]["untuned"]]
    chosen = summary[0]["untuned"]
    headers = [f"{name}\n{chosen[name]['gamma']:g}\n{chosen[name]['rate']:g}" for name in names]
    table = _new_table(
        "Digits: Δm - frozen's on test, one gamma and rate for all rows",
        ["batch", "mode", "normalizer"],
        [*headers, "tuned"],
    )
    for figures in summary:
        forms = [figures["untuned"][name] for name in names] + [figures["tuned"]]
        table.add_row(
            *_cell_names(figures),
            *(_plus_minus(form["minus_frozen"], sign="+") for form in forms),
        )
    return table


def rest_table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each K and step size: the range of the logits of each form."""
    table = _new_table(
        "Constant rates: range of the logits at rest (predicted)",
        ["K", "step"],
        [f"{form}\n{gamma:g}" for form, gamma in _distinct(figures, "form", "gamma")],
    )
    for num_tasks, size in _distinct(figures, "num_tasks", "step_size"):
        own = [
            each for each in figures if (each["num_tasks"], each["step_size"]) == (num_tasks, size)
        ]
        table.add_row(
            f"{num_tasks:,}",
            f"{size:g}",
            *(
                f"{each['range']:.3g}"
                + (f" ({each['predicted']:.3g})" if "predicted" in each else "")
                for each in own
            ),
        )
    return table


def _distinct(figures: Sequence[Mapping[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(each[key] for key in keys) for each in figures))


def waves_table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each K, mode and learning rate: each form at its one gamma, against frozen."""
    served = [each for each in figures if each["chosen"] == "for all"]
    table = _new_table(
        "K regressions: Δm against frozen on test, one gamma for all rows",
        ["K", "mode", "model's rate"],
        [f"{form}\n{gamma:g}" for form, gamma in _distinct(served, "form", "gamma")],
    )
    keys = "num_tasks", "mode", "learning_rate"
    for row in _distinct(served, *keys):
        own = [each for each in served if tuple(each[key] for key in keys) == row]
        table.add_row(
            f"{row[0]:,}",
            row[1],
            f"{row[2]:g}",
            *(_plus_minus(each["minus_frozen"], sign="+") for each in own),
        )
    return table


def draw_grid(summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Heat maps over gamma and the logits' rate at the middle batch size."""
    sizes = sorted({figures["batch_size"] for figures in summary})
    size = sizes[len(sizes) // 2]
    cells = [figures for figures in summary if figures["batch_size"] == size]
    normalizers = list(dict.fromkeys(figures["normalizer"] for figures in cells))
    grids = [_grid(figures) for figures in cells]
    # Some runs go astray at high rates. They would squeeze the rest: the colours end before them.
    bound = float(np.nanquantile(np.abs([grid.difference for grid in grids]), 0.6)) or 1.0
    with _study.style():
        figure = Figure(figsize=(8.5, 2.1 * len(normalizers) + 0.7), dpi=200, layout="constrained")
        axes = figure.subplots(len(normalizers), len(MODES), squeeze=False)
        for figures, grid in zip(cells, grids, strict=True):
            panel = axes[
                normalizers.index(figures["normalizer"]), list(MODES).index(figures["mode"])
            ]
            image = _draw_cell(panel, figures, grid, bound)
        for panel in axes[-1]:
            panel.set_xlabel("gamma")
        for panel in axes[:, 0]:
            panel.set_ylabel("logits' learning rate")
        figure.colorbar(
            image,
            ax=axes,
            location="bottom",
            extend="both",
            aspect=60,
            label="Δm minus that of frozen logits, paired by seed: negative is better",
        )
        figure.suptitle(
            f"Δm on validation (%) ± standard error, batch size {size}; boxed: chosen", fontsize=9
        )
        figure.savefig(path)


class Grid(NamedTuple):
    """The paper's form over its grid, ``[rates, gammas]``, frozen last."""

    gammas: list[float]
    rates: list[float]
    mean: Array
    se: Array
    difference: Array


def _grid(figures: Mapping[str, Any]) -> Grid:
    scores = figures["validation_delta_m_by_seed"]
    rows = [
        (each["rate"], each["gamma"], own)
        for each, own in zip(figures["settings"], scores, strict=True)
        if each["form"] == "paper" and each["rate"] > 0
    ]
    rates = sorted({rate for rate, _, _ in rows})
    gammas = sorted({gamma for _, gamma, _ in rows})
    table = np.full((len(rates), len(gammas), scores.shape[1]), np.nan)
    for rate, gamma, own in rows:
        table[rates.index(rate), gammas.index(gamma)] = own
    se = np.apply_along_axis(_report.standard_error, -1, table)
    return Grid(gammas, rates, table.mean(axis=-1), se, (table - scores[0]).mean(axis=-1))


def _draw_cell(axes: Axes, figures: Mapping[str, Any], grid: Grid, bound: float) -> Any:
    image = axes.imshow(
        grid.difference, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto", origin="lower"
    )
    tuned = figures["tuned"]
    for (row, column), mean in np.ndenumerate(grid.mean):
        dark = abs(grid.difference[row, column]) > 0.65 * bound
        axes.text(
            column,
            row,
            f"{mean:.1f}\n± {grid.se[row, column]:.1f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
            linespacing=0.95,
        )
        if (grid.rates[row], grid.gammas[column]) == (tuned["rate"], tuned["gamma"]):
            corner = (column - 0.47, row - 0.47)
            axes.add_patch(
                Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.5)
            )
    axes.set_xticks(range(len(grid.gammas)), [f"{gamma:g}" for gamma in grid.gammas])
    axes.set_yticks(range(len(grid.rates)), [f"{rate:g}" for rate in grid.rates])
    frozen, si = (figures[name] for name in ("validation_frozen", "validation_si"))
    axes.set_title(
        f"{figures['mode']}, {figures['normalizer'] or 'c = 1'}: "
        f"frozen {_plus_minus(frozen)}, si {_plus_minus(si)}"
    )
    return image


SIZE_COLOURS = ("#0072b2", "#e69f00", "#cc79a7", "#009e73", "#56b4e9", "#000000")


def draw_batches(summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Over gamma at the paper's rate, or the lowest: Δm against frozen at each batch size."""
    normalizers = list(dict.fromkeys(figures["normalizer"] for figures in summary))
    sizes = sorted({figures["batch_size"] for figures in summary})
    with _study.style():
        figure = Figure(figsize=(8.5, 2.4 * len(normalizers) + 0.4), dpi=200, layout="constrained")
        axes = figure.subplots(
            len(normalizers), len(MODES), squeeze=False, sharey=True, sharex=True
        )
        for figures in summary:
            panel = axes[
                normalizers.index(figures["normalizer"]), list(MODES).index(figures["mode"])
            ]
            _draw_curve(panel, figures, sizes.index(figures["batch_size"]))
        for (row, column), panel in np.ndenumerate(axes):
            panel.axhline(0, color="black", linewidth=0.8)
            panel.set_title(f"{list(MODES)[column]}, {normalizers[row] or 'c = 1'}")
            panel.set_yscale("symlog", linthresh=10)  # where runs fail intervals are wide
            panel.yaxis.set_major_locator(
                SymmetricalLogLocator(base=10, linthresh=10, subs=[1, 2, 5])
            )
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            if row == len(normalizers) - 1:
                panel.set_xlabel("gamma")
            if not column:
                panel.set_ylabel("test Δm minus frozen's (%)\n(logarithmic beyond 10)")
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(sizes)
        )
        figure.savefig(path)


def _draw_curve(axes: Axes, figures: Mapping[str, Any], position: int) -> None:
    scores = figures["test_delta_m_by_seed"]
    rates = [each["rate"] for each in figures["settings"] if each["rate"] > 0]
    rate = RATE if RATE in rates else min(rates)
    rows = [
        (each["gamma"], compare(own, scores[0]))
        for each, own in zip(figures["settings"], scores, strict=True)
        if each["form"] == "paper" and each["rate"] == rate
    ]
    gammas, curve = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    mean = np.array([each["mean"] for each in curve])
    low, high = np.array([each["interval"] for each in curve]).T
    colour = SIZE_COLOURS[position % len(SIZE_COLOURS)]
    label = f"batch {figures['batch_size']}"
    # so that intervals do not cover each other
    places = np.arange(len(gammas)) + 0.08 * (position - 1)
    error = [mean - low, high - mean] if np.all(np.isfinite(low)) else None
    axes.errorbar(places, mean, error, color=colour, label=label, marker="o", markersize=3)
    axes.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])


def draw_scaling(results: Results, path: Path) -> None:
    """The logits at rest over K, and what each form is worth over K in training."""
    with _study.style():
        figure = Figure(figsize=(8.5, 5.2), dpi=200, layout="constrained")
        grid = figure.subfigures(2, 1, squeeze=False)
        above, below = grid[:, 0]
        panels = above.subplots(1, len(STEP_SIZES), sharey=True)
        for panel, size in zip(panels, STEP_SIZES, strict=True):
            for form, gamma in _distinct(results.rest, "form", "gamma"):
                own = [
                    each
                    for each in results.rest
                    if (each["form"], each["step_size"]) == (form, size)
                ]
                tasks = [each["num_tasks"] for each in own]
                ranges = [each["range"] for each in own]
                label = f"{form} {gamma:g}"
                panel.plot(tasks, ranges, "o-", markersize=3, color=COLOURS[form], label=label)
                if "predicted" in own[0]:
                    expected = [each["predicted"] for each in own]
                    panel.plot(
                        tasks, expected, "x--", markersize=6, color=COLOURS[form], linewidth=0.8
                    )
            panel.set_yscale("log")
            _label_tasks(panel, tasks)
            panel.set_title(f"losses fall by {100 * size:g}% a step, given")
        panels[0].set_ylabel("range of the logits at rest\n(x: predicted)")
        panels[0].legend(frameon=False, fontsize=7)

        served = [each for each in results.waves if each["chosen"] == "for all"]
        settings = _distinct(served, "mode", "learning_rate")
        panels = below.subplots(1, len(settings), sharey=True)
        for panel, (mode, rate) in zip(panels, settings, strict=True):
            for position, (form, gamma) in enumerate(_distinct(served, "form", "gamma")):
                own = [
                    each
                    for each in served
                    if (each["form"], each["mode"], each["learning_rate"]) == (form, mode, rate)
                ]
                mean = np.array([each["minus_frozen"]["mean"] for each in own])
                low, high = np.array([each["minus_frozen"]["interval"] for each in own]).T
                panel.errorbar(
                    np.array([each["num_tasks"] for each in own]) * 1.12 ** (position - 1.5),
                    mean,
                    [mean - low, high - mean] if np.all(np.isfinite(low)) else None,
                    marker="o",
                    markersize=3,
                    color=COLOURS[form],
                    label=f"{form} {gamma:g}",
                )
            panel.axhline(0, color="black", linewidth=0.8)
            panel.set_yscale("symlog", linthresh=1)
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            _label_tasks(panel, [each["num_tasks"] for each in own])
            panel.set_title(f"{mode}, model's rate {rate:g}")
        panels[0].set_ylabel("test Δm against frozen (%)")
        panels[0].legend(frameon=False, fontsize=7, loc="lower left")
        figure.savefig(path)


def _label_tasks(axes: Axes, tasks: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(tasks, [f"{num_tasks:,}" for num_tasks in tasks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("number of tasks K")


FULL = {
    "steps": 500,
    "seeds": 10,
    "wave_seeds": 5,
    "batch_size": [16, 32, 128],
    "normalizer": list(NORMALIZERS),
    "gamma": [0.0, 1e-5, 1e-3, 1e-2, 1e-1],
    "logits_rate": [0.005, 0.025, 0.1, 0.25],
    "tasks": [2, 10, 40, 1000],
}
QUICK = FULL | {
    "steps": 30,
    "seeds": 2,
    "wave_seeds": 2,
    "batch_size": [8],
    "normalizer": ["harmonic", None],
    "gamma": [0.0, 1e-3, 1e-2],
    "logits_rate": [0.025],
    "tasks": [2, 10],
}
MAX_PICTURES = 2**24  # 220 bytes each


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    parser = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.gamma",
        description="How much decay FAMO's task logits need.",
        allow_abbrev=False,
    )
    count = functools.partial(parser.add_argument, type=_arguments.positive_int, metavar="N")
    count("--steps", help="training steps (500)")
    count("--seeds", help="seeds of every setting on the digits (10)")
    count("--wave-seeds", help="seeds of every setting on the regressions (5)")
    count("--batch-size", nargs="+", help="pictures of a step (16 32 128)")
    parser.add_argument(
        "--gamma",
        nargs="+",
        type=_arguments.non_negative_float,
        metavar="GAMMA",
        help="decay of the logits, to choose from (0 1e-5 1e-3 1e-2 1e-1)",
    )
    parser.add_argument(
        "--logits-rate",
        nargs="+",
        type=_arguments.positive_float,
        metavar="RATE",
        help="learning rate of the logits, to choose from (0.005 0.025 0.1 0.25)",
    )
    count("--tasks", nargs="+", help="numbers of tasks of the scaling part (2 10 40 1000)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/gamma"), help="output folder (%(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="30 steps, 2 seeds, and less of all that is not given"
    )
    options = parser.parse_args(arguments)
    options.normalizer = None
    for name, default in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for option in ("batch_size", "gamma", "logits_rate", "tasks"):
        flag = "--" + option.replace("_", "-")
        _arguments.check_distinct(parser, flag, getattr(options, option))
    pictures = options.steps * options.seeds * sum(options.batch_size)
    if pictures > MAX_PICTURES:
        parser.error(
            "argument --steps: expected steps x seeds x batch sizes of at most "
            f"{MAX_PICTURES:,}, which are held in memory, got {pictures:,}"
        )
    _arguments.output_folder(parser, "--out", options.out, *FILES)
    return options


FILES = "gamma.png", "gamma_batches.png", "gamma_scaling.png", "gamma.json"


@_arguments.command
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, prints its tables, and writes three figures and ``gamma.json``."""
    options = parse(arguments)
    start = time.perf_counter()
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description:45}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        results = run_study(options, progress)
    for table in (
        tuned_table(results.digits),
        untuned_table(results.digits),
        rest_table(results.rest),
        waves_table(results.waves),
    ):
        console.print(table)
        console.print()
    console.print(
        f"Means over {options.seeds} seeds ({options.wave_seeds} of the regressions) ± standard "
        "error. Δm in %, lower is better. Differences are paired by seed. Below a form's name: its "
        "gamma, and the logits' rate.",
        highlight=False,
    )
    paths = [options.out / name for name in FILES]
    draw_grid(results.digits, paths[0])
    draw_batches(results.digits, paths[1])
    draw_scaling(results, paths[2])
    seconds = time.perf_counter() - start
    _report.write_json(
        paths[3],
        {
            "settings": {**vars(options), "out": str(options.out)},
            "environment": _report.environment(),
            "axes": {
                "validation_delta_m_by_seed": "settings (frozen first), seeds",
                "test_delta_m_by_seed": "settings (frozen first), seeds",
                "test_metrics": "settings, tasks: mean over seeds",
                "logits_range": "settings: mean over steps and seeds",
                "minus_frozen, minus_si": "paired by seed; interval: 95%, Student's t",
            },
            "digits": results.digits,
            "references": {
                size: reference._asdict() for size, reference in results.references.items()
            },
            "constant_rates": results.rest,
            "regressions": results.waves,
            "seconds": seconds,
        },
    )
    console.print(f"{options.out}: {', '.join(FILES)}, {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
