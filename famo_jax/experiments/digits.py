r"""FAMO on overlapping handwritten digits: ``python -m famo_jax.experiments.digits``.

A multi-task problem made as MultiMNIST was, from the 1,797 digits (8 x 8 pixels, 17 grey levels)
that scikit-learn ships. Two digits overlap on a canvas of 10 x 14 pixels under fresh noise, and a
small network tells what the left one is, what the right one is, how the left one looked before the
right one and the noise covered it, and how much ink the right one has. Each task has the loss that
comes naturally and the units that come with it, so the losses are five orders of magnitude apart
at first, and none can be brought to zero: the noise sees to that.

Each method is trained at every setting of its hyperparameters. The setting with the least mean
:math:`\Delta m` on the validation digits is kept, and only that one meets the test digits. Every
method sees the same initial parameters and the same pictures, seed for seed, so that differences
between methods are paired.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import famo_jax
from famo_jax.experiments import _arguments, _report

Array = npt.NDArray[Any]

# --- Pictures -------------------------------------------------------------------------------------

DIGIT, HEIGHT, WIDTH = 8, 10, 14
LEFT_COLUMNS, RIGHT_COLUMNS = (0, 1, 2), (4, 5, 6)  # so 2 to 6 columns of the two frames overlap
ROWS = (0, 1, 2)
NOISE = 0.25  # standard deviation, where a digit's pixels go from 0 to 1
LEVELS = 16  # grey levels of a digit above black
HELD_OUT = 2000  # pictures composed for validation, and as many for the test


class Sources(NamedTuple):
    """Handwritten digits."""

    images: Array  # [N, 8, 8], uint8, grey levels from 0 to 16
    labels: Array  # [N], int32


class Splits(NamedTuple):
    """Three sets of sources that have no digit in common."""

    train: Sources
    validation: Sources
    test: Sources


class Pictures(NamedTuple):
    """Composed pictures and the targets of the four tasks. Small integers: there are many."""

    pixels: jax.Array  # [..., 140], uint8, 0 to 255
    left: jax.Array  # [...], int32, class of the left digit
    right: jax.Array  # [...], int32, class of the right digit
    clean: jax.Array  # [..., 64], uint8, the left digit's grey levels
    ink: jax.Array  # [...], int32, the sum of the right digit's grey levels


def load_splits() -> Splits:
    """Splits the 1,797 digits into 1,200, 297 and 300, each class in proportion."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int32)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=300, stratify=labels, random_state=0
    )
    train, validation = train_test_split(rest, test_size=297, stratify=labels[rest], random_state=0)
    return Splits(*(Sources(images[rows], labels[rows]) for rows in (train, validation, test)))


def compose(key: jax.Array, sources: Sources, size: int) -> Pictures:
    """Draws pictures of two digits each, at random places and under fresh noise.

    Returns:
      ``[size]`` pictures.
    """
    which_key, place_key, noise_key = jax.random.split(key, 3)
    left, right = jax.random.randint(which_key, (2, size), 0, len(sources.labels))
    left_place, right_place = jax.random.randint(
        place_key, (2, size), 0, len(ROWS) * len(LEFT_COLUMNS)
    )
    canvas = jnp.maximum(
        _placed(sources.images, LEFT_COLUMNS)[left, left_place],
        _placed(sources.images, RIGHT_COLUMNS)[right, right_place],
    )
    noisy = canvas / LEVELS + NOISE * jax.random.normal(noise_key, canvas.shape)
    images, labels = jnp.asarray(sources.images), jnp.asarray(sources.labels)
    return Pictures(
        pixels=jnp.round(255 * jnp.clip(noisy, 0, 1)).astype(jnp.uint8),
        left=labels[left],
        right=labels[right],
        clean=images[left].reshape(size, DIGIT * DIGIT),
        ink=images.sum(axis=(1, 2), dtype=jnp.int32)[right],
    )


def _placed(images: Array, columns: Sequence[int]) -> jax.Array:
    """Every digit at every place, ``[N, 9, 140]``: to look one up is faster than to draw it."""
    canvases = [
        np.pad(
            images, [(0, 0), (row, HEIGHT - DIGIT - row), (column, WIDTH - DIGIT - column)]
        ).reshape(-1, HEIGHT * WIDTH)
        for row in ROWS
        for column in columns
    ]
    return jnp.asarray(np.stack(canvases, axis=1))


class Data(NamedTuple):
    """All that is seen of a study, the same for every method."""

    train: Pictures  # [steps, seeds, batch_size]
    validation: Pictures  # [2000]
    test: Pictures  # [2000]


def load_data(steps: int, seeds: int, batch_size: int) -> Data:
    """Composes the pictures. A seed's do not depend on how many seeds there are."""
    splits = load_splits()
    train_key, validation_key, test_key = jax.random.split(jax.random.key(1), 3)

    def compose_train() -> Pictures:
        seed_keys = jax.vmap(lambda seed: jax.random.fold_in(train_key, seed))(jnp.arange(seeds))

        def one_step(step: jax.Array) -> Pictures:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(seed_keys)
            return jax.vmap(lambda key: compose(key, splits.train, batch_size))(keys)

        pictures: Pictures = jax.lax.map(one_step, jnp.arange(steps))
        return pictures

    return Data(
        train=jax.jit(compose_train)(),
        validation=compose(validation_key, splits.validation, HELD_OUT),
        test=compose(test_key, splits.test, HELD_OUT),
    )


# --- Tasks ----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A task, by how it is reported. Its metric is better when lower."""

    name: str
    loss: str
    metric: str
    decimals: int


TASKS = (
    Task("left", "left class, cross-entropy (nats)", "left error (%)", 1),
    Task("right", "right class, cross-entropy (nats)", "right error (%)", 1),
    Task("clean", "clean left digit, MSE (white = 1)", "clean RMSE (0-1)", 4),
    Task("ink", "right digit's ink, MSE (grey levels²)", "ink MAE (grey)", 1),
)
K = len(TASKS)


class Outputs(NamedTuple):
    """What the network says about pictures."""

    left: jax.Array  # [..., 10], logits of the classes
    right: jax.Array  # [..., 10]
    clean: jax.Array  # [..., 64], from 0 for black to 1 for white
    ink: jax.Array  # [...], grey levels


class Network(nnx.Module):
    """140-96-64, and a linear head for each task. The narrow trunk is what the tasks fight for."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wide = nnx.Linear(HEIGHT * WIDTH, 96, rngs=rngs)
        self.narrow = nnx.Linear(96, 64, rngs=rngs)
        self.heads = nnx.Linear(64, 10 + 10 + DIGIT * DIGIT + 1, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> Outputs:
        """``[..., 140]``, from 0 to 255."""
        hidden = nnx.relu(self.narrow(nnx.relu(self.wide(pixels / 255))))
        left, right, clean, ink = jnp.split(self.heads(hidden), [10, 20, 84], axis=-1)
        return Outputs(left, right, clean, ink[..., 0])


def init_params(seeds: int) -> chex.ArrayTree:
    """The parameters of one network for each seed: a leading axis on every leaf."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    params: chex.ArrayTree = jax.vmap(lambda key: nnx.split(Network(nnx.Rngs(key)))[1])(keys)
    return params


def apply(params: chex.ArrayTree, pictures: Pictures) -> Outputs:
    """The network with these parameters, as a pure function."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))
    outputs: Outputs = nnx.merge(graphdef, params)(pictures.pixels)
    return outputs


def task_losses(params: chex.ArrayTree, pictures: Pictures) -> jax.Array:
    """The K losses, ``[K]``, in the order of ``TASKS``."""
    outputs = apply(params, pictures)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return jnp.stack(
        [
            jnp.mean(cross_entropy(outputs.left, pictures.left)),
            jnp.mean(cross_entropy(outputs.right, pictures.right)),
            jnp.mean((outputs.clean - pictures.clean / LEVELS) ** 2),
            jnp.mean((outputs.ink - pictures.ink) ** 2),
        ]
    )


def task_metrics(params: chex.ArrayTree, pictures: Pictures) -> jax.Array:
    """The K metrics, ``[K]``, in the order and units of ``TASKS``."""
    outputs = apply(params, pictures)
    return jnp.stack(
        [
            100 * jnp.mean(jnp.argmax(outputs.left, axis=-1) != pictures.left),
            100 * jnp.mean(jnp.argmax(outputs.right, axis=-1) != pictures.right),
            jnp.sqrt(jnp.mean((outputs.clean - pictures.clean / LEVELS) ** 2)),
            jnp.mean(jnp.abs(outputs.ink - pictures.ink)),
        ]
    )


# --- Methods --------------------------------------------------------------------------------------


def _famo(gamma: jax.Array) -> optax.GradientTransformationExtraArgs:
    return famo_jax.famo(K, weight_decay=gamma)


def _frozen(_: jax.Array) -> optax.GradientTransformationExtraArgs:
    return famo_jax.famo(K, learning_rate=0.0)


class Method(NamedTuple):
    """How K losses become one update.

    Besides the learning rate of the model a method is trained for each of its ``variants``: the
    values of gamma, or the K tasks of which single-task learning takes one at a time.
    """

    description: str
    colour: str
    # (variant) -> what follows Adam in the chain, and by its state weighs the losses.
    weighting: Callable[[jax.Array], optax.GradientTransformationExtraArgs]
    variants: Literal["none", "gamma", "task"] = "none"
    normalizer: Literal["harmonic"] | None = "harmonic"
    two_pass: bool = False
    control: str | None = None  # the same method with its logits frozen
    aggregates: bool = False  # it combines task gradients, so it stands before Adam


OTHER = "#bbbbbb"  # the colour of the methods that are not run unless named


def _amortized_mgda(gamma: jax.Array) -> optax.GradientTransformationExtraArgs:
    return famo_jax.amortized_mgda(K, weight_decay=gamma)


def _aggregation(
    description: str, make: Callable[[], optax.GradientTransformationExtraArgs]
) -> Method:
    return Method(description, OTHER, lambda _: make(), aggregates=True)


METHODS: dict[str, Method] = {
    "stl": Method("a network for each task", "black", famo_jax.stl, "task"),
    "ls": Method("mean of the losses", "#999999", lambda _: famo_jax.ls()),
    "si": Method("mean of the log losses", "#56b4e9", lambda _: famo_jax.si()),
    "frozen": Method("FAMO, logits held at 0", "#0072b2", _frozen),
    "frozen-no-c": Method("the same without c, which is si", "#56b4e9", _frozen, normalizer=None),
    "famo": Method("FAMO, two-pass", "#d55e00", _famo, "gamma", two_pass=True, control="frozen"),
    "famo-no-c": Method(
        "FAMO, two-pass, without c",
        "#e69f00",
        _famo,
        "gamma",
        two_pass=True,
        normalizer=None,
        control="si",
    ),
    "famo-one-pass": Method("FAMO, one-pass", "#009e73", _famo, "gamma", control="frozen"),
    "famo-one-pass-no-c": Method(
        "FAMO, one-pass, without c", "#cc79a7", _famo, "gamma", normalizer=None, control="si"
    ),
    "rlw": Method("random weights", OTHER, lambda _: famo_jax.rlw(K, key=0)),
    "dwa": Method("weights by rates of change", OTHER, lambda _: famo_jax.dwa(K, window=25)),
    "uw": Method("learned uncertainties", OTHER, lambda _: famo_jax.uw(K)),
    "amortized-mgda": Method("FAMO without logarithms", OTHER, _amortized_mgda, "gamma"),
    "mgda": _aggregation("the least convex combination", lambda: famo_jax.mgda()),
    "pcgrad": _aggregation("conflicts projected away", lambda: famo_jax.pcgrad(key=0)),
    "cagrad": _aggregation("conflict-averse around the mean", lambda: famo_jax.cagrad()),
    "imtl-g": _aggregation("equal projections", lambda: famo_jax.imtl_g()),
    "graddrop": _aggregation("one sign for each entry", lambda: famo_jax.graddrop(key=0)),
    "nash-mtl": _aggregation("the Nash bargaining solution", lambda: famo_jax.nash_mtl()),
}


class Trace(NamedTuple):
    """What a training step leaves behind."""

    losses: jax.Array  # [K]
    task_weights: jax.Array | None  # [K], z, for a method that has logits


def training_step(
    method: Method, learning_rate: optax.ScalarOrSchedule, variant: jax.Array
) -> tuple[Callable[[Any], Any], Callable[[Any, Pictures], tuple[Any, Trace]]]:
    """The training step of any method.

    Returns:
      ``params -> carry`` and ``(carry, batch) -> (carry, trace)``, for :func:`jax.lax.scan`. The
      carry is ``(params, opt_state)``.
    """
    links = [optax.adam(learning_rate), method.weighting(variant)]
    tx = optax.chain(*(reversed(links) if method.aggregates else links))

    def init(params: chex.ArrayTree) -> Any:
        return params, tx.init(params)

    def step(carry: Any, batch: Pictures) -> tuple[Any, Trace]:
        params, opt_state = carry
        losses_fn = functools.partial(task_losses, pictures=batch)
        losses, grads = famo_jax.losses_and_grads(losses_fn, normalizer=method.normalizer)(
            params, state=opt_state
        )
        extra = {"losses_fn": losses_fn} if method.two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        has_logits = method.weighting in (_famo, _frozen, _amortized_mgda)
        task_weights = famo_jax.task_weights(opt_state) if has_logits else None
        return (optax.apply_updates(params, updates), opt_state), Trace(losses, task_weights)

    return init, step


class Run(NamedTuple):
    """A training run. Those of a study have leading axes [variants, rates, seeds]."""

    trace: Trace  # [steps]
    validation: jax.Array  # [K], metrics
    test: jax.Array  # [K]


def train(
    method: Method,
    learning_rate: jax.Array,
    variant: jax.Array,
    params: chex.ArrayTree,
    batches: Pictures,
    validation: Pictures,
    test: Pictures,
) -> Run:
    """Trains one network on ``[steps, batch_size]`` pictures: one :func:`jax.lax.scan`."""
    steps = len(batches.left)
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    init, step = training_step(method, schedule, variant)
    (params, _), trace = jax.lax.scan(step, init(params), batches)
    return Run(trace, task_metrics(params, validation), task_metrics(params, test))


def compile_study(
    method: Method, learning_rates: Sequence[float], gammas: Sequence[float], data: Data
) -> Callable[[], Run]:
    """Compiles all runs of a method, every variant, learning rate and seed, as one call."""
    variants = {"none": jnp.zeros(1), "gamma": jnp.asarray(gammas), "task": jnp.arange(K)}

    def study(rates: jax.Array, variants: jax.Array, params: chex.ArrayTree, data: Data) -> Run:
        # Seeds have pictures of their own, which all settings of one seed share.
        train_one = functools.partial(train, method)
        over_seeds = jax.vmap(train_one, in_axes=(None, None, 0, 1, None, None))
        over_rates = jax.vmap(over_seeds, in_axes=(0, *5 * [None]))
        return jax.vmap(over_rates, in_axes=(None, 0, *4 * [None]))(rates, variants, params, *data)

    params = init_params(data.train.left.shape[1])
    return _compile(study, jnp.asarray(learning_rates), variants[method.variants], params, data)


def compile_steps(method: Method, batches: Pictures) -> Callable[[], Any]:
    """Compiles training steps of one network, ``[steps, 1, batch_size]``, to measure their time."""
    params = jax.tree.map(lambda leaf: leaf[0], init_params(1))
    batches = jax.tree.map(lambda leaf: leaf[:, 0], batches)
    variant = jnp.zeros((), int if method.variants == "task" else float)

    def steps(variant: jax.Array, params: chex.ArrayTree, batches: Pictures) -> Any:
        init, step = training_step(method, 1e-3, variant)
        return jax.lax.scan(step, init(params), batches)

    return _compile(steps, variant, params, batches)


def _compile(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return functools.partial(jax.jit(function).lower(*args).compile(), *args)


# --- The study ------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A method at the setting that validation chose."""

    learning_rate: tuple[float, ...]  # one, or one for each task
    gamma: float | None
    validation: Array  # [variants, rates, seeds, K], metrics at every setting
    test: Array  # [seeds, K], metrics
    losses: Array  # [steps, seeds, K]
    task_weights: Array | None  # [steps, seeds, K]


def select(
    method: Method,
    run: Run,
    learning_rates: Sequence[float],
    gammas: Sequence[float],
    baseline: Array | None,
) -> Result:
    """Chooses the setting by the mean over seeds on validation.

    Args:
      method: Which.
      run: All its runs, ``[variants, rates, seeds]``.
      learning_rates: The rates.
      gammas: The values of gamma.
      baseline: ``[K]``, the single-task metrics on validation. None for single-task learning,
        where each task goes by its own metric.
    """
    validation, test, losses = map(_finite, (run.validation, run.test, run.trace.losses))
    z = run.trace.task_weights
    if baseline is None:
        rates = [_argmin(validation[task, :, :, task].mean(axis=1)) for task in range(K)]
        own = [(task, rate, ..., task) for task, rate in enumerate(rates)]
        return Result(
            learning_rate=tuple(learning_rates[rate] for rate in rates),
            gamma=None,
            validation=validation,
            test=np.stack([test[index] for index in own], axis=-1),
            losses=np.stack([losses[index] for index in own], axis=-1).swapaxes(0, 1),
            task_weights=None,
        )
    scores = _delta_m(validation.mean(axis=2), baseline)
    variant, rate = divmod(_argmin(scores), len(learning_rates))
    return Result(
        learning_rate=(learning_rates[rate],),
        gamma=gammas[variant] if method.variants == "gamma" else None,
        validation=validation,
        test=test[variant, rate],
        losses=losses[variant, rate].swapaxes(0, 1),
        task_weights=None if z is None else _finite(z[variant, rate]).swapaxes(0, 1),
    )


def _finite(values: jax.Array) -> Array:
    """On the host, with NaN for all that a run which diverged left behind."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _delta_m(values: Array, baseline: Array) -> Array:
    """Of metrics that are all better when lower, ``[..., K]``."""
    return np.asarray(famo_jax.delta_m(values, baseline, higher_is_better=False), np.float64)


def _argmin(values: Array) -> int:
    """Where the least value is, counted flat. NaN is never the least."""
    return int(np.argmin(np.where(np.isnan(values), np.inf, values)))


def baseline_of(stl: Result, learning_rates: Sequence[float]) -> Array:
    """The single-task metrics on validation, ``[K]``, at the rate chosen for each task."""
    chosen = [learning_rates.index(rate) for rate in stl.learning_rate]
    means = stl.validation.mean(axis=2)
    return np.array([means[task, rate, task] for task, rate in enumerate(chosen)])


def run_study(
    names: Sequence[str],
    learning_rates: Sequence[float],
    gammas: Sequence[float],
    data: Data,
    progress: Progress,
) -> dict[str, Result]:
    """Trains every method at all its settings, and chooses one setting for each.

    Methods run beside each other on threads: one compiles while another trains.
    """
    rows = {name: progress.add_task(name, status="waiting", start=False) for name in names}

    def study(name: str) -> Run:
        progress.start_task(rows[name])
        progress.update(rows[name], status="compiling")
        call = compile_study(METHODS[name], learning_rates, gammas, data)
        progress.update(rows[name], status="training")
        run: Run = jax.block_until_ready(call())
        progress.update(rows[name], status="done", completed=1, total=1)
        return run

    # The longest first, so that none is left alone at the end.
    order = sorted(names, key=lambda name: METHODS[name].variants != "gamma")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = dict(zip(order, pool.map(study, order), strict=True))
    stl = select(METHODS["stl"], runs["stl"], learning_rates, gammas, None)
    baseline = baseline_of(stl, learning_rates)
    return {
        name: stl
        if name == "stl"
        else select(METHODS[name], runs[name], learning_rates, gammas, baseline)
        for name in names
    }


def measure_steps(names: Sequence[str], data: Data, steps: int = 20) -> dict[str, list[float]]:
    """The time of a training step of one network, in seconds: [first quartile, median, third]."""
    batches = jax.tree.map(lambda leaf: leaf[:steps, :1], data.train)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(lambda name: compile_steps(METHODS[name], batches), names)
        calls = dict(zip(names, compiled, strict=True))
    counted = len(batches.left)
    seconds = _report.interleaved_seconds(calls)
    return {
        name: [value / counted for value in _report.quartiles(times)]
        for name, times in seconds.items()
    }


# --- The report -----------------------------------------------------------------------------------


def summarize(
    results: Mapping[str, Result],
    step_seconds: Mapping[str, list[float]],
    learning_rates: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """The figures of each method, those of the table first.

    Delta m is against the mean of single-task learning over its seeds. Its standard error is over
    the method's own seeds. Methods share seeds, so differences between two are paired.
    """
    stl = results["stl"]
    baseline = stl.test.mean(axis=0)
    on_validation = baseline_of(stl, learning_rates)
    means = np.stack([result.test.mean(axis=0) for result in results.values()])
    ranks = famo_jax.mean_rank(means, higher_is_better=False)
    delta_m = {name: _delta_m(result.test, baseline) for name, result in results.items()}

    def against(name: str, other: str | None) -> dict[str, Any] | None:
        if other is None or other not in results or other == name:
            return None
        paired = delta_m[name] - delta_m[other]
        return {"method": other, "delta_m": paired.mean(), "se": _report.standard_error(paired)}

    return {
        name: {
            "description": METHODS[name].description,
            "test": dict(zip(_task_names(), result.test.mean(axis=0), strict=True)),
            "delta_m": delta_m[name].mean(),
            "delta_m_se": _report.standard_error(delta_m[name]),
            "mean_rank": float(rank),
            "learning_rate": result.learning_rate,
            "gamma": result.gamma,
            # Single-task learning steps K networks where the others step one.
            "step_relative_to_ls": (K if name == "stl" else 1)
            * step_seconds[name][1]
            / step_seconds["ls"][1],
            "step_seconds_of_one_network": dict(
                zip(("q1", "median", "q3"), step_seconds[name], strict=True)
            ),
            "against_control": against(name, METHODS[name].control),
            "against_ls": against(name, "ls"),
            "delta_m_by_seed": delta_m[name],
            "test_by_seed": result.test,
            "validation_by_seed": result.validation,
            "validation_delta_m": None
            if name == "stl"
            else _delta_m(result.validation.mean(axis=2), on_validation),
            "losses": _thin(result.losses.mean(axis=1)),
            "task_weights": None
            if result.task_weights is None
            else _thin(result.task_weights.mean(axis=1)),
        }
        for (name, result), rank in zip(results.items(), ranks, strict=True)
    }


def _task_names() -> list[str]:
    return [task.name for task in TASKS]


def _thin(curve: Array, points: int = 200) -> Array:
    """Means over at most ``points`` stretches of steps of equal length, ``[points, ...]``."""
    return np.stack([part.mean(axis=0) for part in np.array_split(curve, min(points, len(curve)))])


def table(summary: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each method, 80 columns wide."""
    rows = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    rows.add_column("method", no_wrap=True)
    metrics = [task.metric.replace(" ", "\n") for task in TASKS]
    for header in (
        *metrics,
        "Δm\n± s.e.\n(%)",
        "mean\nrank",
        "learn.\nrate",
        "gamma",
        "step\n/ ls",
    ):
        rows.add_column(header, justify="right", no_wrap=True)
    for name, figures in summary.items():
        rate, gamma = figures["learning_rate"], figures["gamma"]
        rows.add_row(
            name,
            *(f"{figures['test'][task.name]:.{task.decimals}f}" for task in TASKS),
            _plus_minus(figures["delta_m"], figures["delta_m_se"]),
            f"{figures['mean_rank']:.2f}",
            f"{rate[0]:g}" if len(rate) == 1 else "below",
            "" if gamma is None else f"{gamma:g}",
            f"{figures['step_relative_to_ls']:.2f}",
        )
    return rows


def _plus_minus(mean: float, error: float, sign: str = "") -> str:
    """The mean and its standard error, which a single seed does not have."""
    return f"{mean:{sign}z.1f}" + (f" ± {error:.1f}" if np.isfinite(error) else "")


def notes(
    summary: Mapping[str, Mapping[str, Any]],
    learning_rates: Sequence[float],
    gammas: Sequence[float],
) -> list[str]:
    """What the table leaves out."""
    stl = summary["stl"]["learning_rate"]
    rates = ", ".join(f"{task.name} {rate:g}" for task, rate in zip(TASKS, stl, strict=True))
    seeds = len(summary["stl"]["delta_m_by_seed"])
    lines = [
        f"Means over {seeds} seeds, everything better when lower. Δm ± its standard error: against "
        f"the mean of stl, whose learning rates are: {rates}. stl steps {K} networks."
    ]
    for name, figures in summary.items():
        against = figures["against_control"]
        if against:
            lines.append(
                f"{name} - {against['method']}, its control: Δm "
                f"{_plus_minus(against['delta_m'], against['se'], '+')}, paired by seed."
            )
    # A better setting may lie beyond the end of a list. Below a gamma of 0 there is none.
    for name, figures in summary.items():
        chosen = [("learning rate", rate, learning_rates) for rate in figures["learning_rate"]]
        chosen += [("gamma", figures["gamma"], gammas)] if figures["gamma"] else []
        edges = [
            f"{hyperparameter} {value:g}"
            for hyperparameter, value, values in chosen
            if len(values) > 1 and value in (min(values), max(values))
        ]
        if edges:
            lines.append(f"{name}: at the end of its list: {', '.join(dict.fromkeys(edges))}.")
    return lines


TASK_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def draw(
    results: Mapping[str, Result], summary: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Losses and task weights over the steps, and delta m of every method."""
    # As wide as a README shows it, at 100 pixels an inch: so 8 points are 8 points there.
    with rc_context({"font.size": 8, "axes.titlesize": 8, "lines.linewidth": 1.2}):
        figure = Figure(figsize=(8.5, 7), dpi=200, layout="constrained")
        grid = figure.add_gridspec(3, 3)
        panels = [figure.add_subplot(grid[divmod(index, 3)]) for index in range(6)]
        for task, axes in enumerate(panels[:K]):
            _draw_losses(axes, results, task)
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(SHOWN)
        )
        _draw_task_weights(panels[4], results, ("famo", "famo-no-c"))
        _draw_task_weights(panels[5], results, ("famo-one-pass", "famo-one-pass-no-c"))
        _draw_delta_m(figure.add_subplot(grid[2, :]), summary)
        figure.savefig(path)


SHOWN = ("ls", "si", "frozen", "famo-no-c", "famo", "famo-one-pass", "stl")


def _draw_losses(axes: Axes, results: Mapping[str, Result], task: int) -> None:
    curves = {
        name: _thin(results[name].losses[:, :, task].mean(axis=1), 100)
        for name in SHOWN
        if name in results
    }
    for name, curve in curves.items():
        steps = _middles(len(results[name].losses), len(curve))
        axes.plot(steps, curve, label=name, color=METHODS[name].colour)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
    axes.yaxis.set_minor_formatter(lambda loss, _: f"{loss:g}" if f"{loss:e}"[0] in "25" else "")
    # The mean of the losses first makes three tasks worse, by far. That would squeeze the rest.
    top = 2 * curves["stl"].max()
    if np.isfinite(top):
        axes.set_ylim(top=top)
    axes.set_title(TASKS[task].loss)
    axes.set_xlabel("step")


def _draw_task_weights(axes: Axes, results: Mapping[str, Result], names: Sequence[str]) -> None:
    """Of the first of the methods that was run: the mean over seeds, and their range."""
    axes.set_ylabel("task weights z")
    axes.set_xlabel("step")
    name = next((name for name in names if name in results), names[0])
    z = results[name].task_weights if name in results else None
    if z is None:
        axes.set_title(f"{name} was not run")
        return
    thin = _thin(z, 100)
    steps = _middles(len(z), len(thin))
    for task, colour in enumerate(TASK_COLOURS):
        seeds = thin[:, :, task]
        axes.fill_between(
            steps, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(steps, seeds.mean(axis=1), label=TASKS[task].name, color=colour)
    axes.set_title(f"{name}, gamma {results[name].gamma:g}")
    axes.set_ylim(0, 1.35 * thin.max())  # room for the legend
    axes.legend(loc="upper center", ncols=2, frameon=False)


def _middles(steps: int, points: int) -> Array:
    """Where the points of a thinned curve are on the axis of the steps, ``[points]``."""
    return np.array([part.mean() for part in np.array_split(np.arange(steps), points)])


def _draw_delta_m(axes: Axes, summary: Mapping[str, Mapping[str, Any]]) -> None:
    for row, (name, figures) in enumerate(summary.items()):
        seeds = figures["delta_m_by_seed"]
        error = figures["delta_m_se"]
        axes.barh(row, figures["delta_m"], color=METHODS[name].colour, alpha=0.6)
        axes.errorbar(
            figures["delta_m"],
            row,
            xerr=error if np.isfinite(error) else None,
            color="black",
            capsize=2.5,
        )
        axes.plot(seeds, np.full(len(seeds), row), ".", color="black", markersize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(summary)), list(summary))
    axes.invert_yaxis()
    axes.set_xlabel("Δm against stl (%), lower is better: mean, its standard error, each seed")


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    described = "\n".join(f"  {name:20}{method.description}" for name, method in METHODS.items())
    options = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.digits",
        description="Multi-task methods on overlapping handwritten digits.",
        epilog=f"methods (c is FAMO's normaliser):\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    count = functools.partial(add, type=_arguments.positive_int, metavar="N")
    count("--steps", help="training steps (1500)")
    count("--seeds", help="seeds of every setting (5)")
    count("--batch-size", help="pictures of a step (64)")
    add(
        "--methods",
        nargs="+",
        type=_arguments.one_of(list(METHODS)),
        metavar="NAME",
        help="what to compare; stl, the baseline, is always run (stl, ls, si, frozen and famo*)",
    )
    add(
        "--learning-rate",
        nargs="+",
        type=_arguments.positive_float,
        metavar="RATE",
        help="of the model's Adam, to choose from (1e-3 3e-3 1e-2)",
    )
    add(
        "--gamma",
        nargs="+",
        type=_arguments.non_negative_float,
        metavar="GAMMA",
        help="decay of FAMO's logits, to choose from (0 1e-3 1e-2 1e-1)",
    )
    add("--out", type=Path, default=Path("results/digits"), help="output folder (%(default)s)")
    add("--quick", action="store_true", help="200 steps, 2 seeds, 1 rate, 1 gamma where not given")
    return options


FULL = {
    "steps": 1500,
    "seeds": 5,
    "batch_size": 64,
    "methods": [name for name in METHODS if name.startswith(("stl", "ls", "si", "famo"))]
    + ["frozen"],
    "learning_rate": [1e-3, 3e-3, 1e-2],
    "gamma": [0.0, 1e-3, 1e-2, 1e-1],
}
QUICK = FULL | {"steps": 200, "seeds": 2, "learning_rate": [3e-3], "gamma": [1e-3]}
MAX_PICTURES = 2**24  # 220 bytes each


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    for name, default in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for option in ("methods", "learning_rate", "gamma"):
        flag = "--" + option.replace("_", "-")
        _arguments.check_distinct(options_parser, flag, getattr(options, option))
    pictures = options.steps * options.seeds * options.batch_size
    if pictures > MAX_PICTURES:
        options_parser.error(
            "argument --steps: expected steps x seeds x batch size of at most "
            f"{MAX_PICTURES:,}, which are held in memory, got {pictures:,}"
        )
    _arguments.output_folder(options_parser, "--out", options.out)
    options.methods = [name for name in METHODS if name in {"stl", *options.methods}]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, prints its table, and writes ``digits.png`` and ``digits.json``."""
    options = parse(arguments)
    start = time.perf_counter()
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description:20}{task.fields[status]:40}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        phase = functools.partial(progress.add_task, total=1)
        composing = phase("pictures", status="composing")
        data = jax.block_until_ready(load_data(options.steps, options.seeds, options.batch_size))
        progress.update(composing, status="done", completed=1)
        results = run_study(options.methods, options.learning_rate, options.gamma, data, progress)
        timing = phase("time of a step", status="measuring")
        step_seconds = measure_steps(list(dict.fromkeys(["ls", *options.methods])), data)
        progress.update(timing, status="done", completed=1)
        summary = summarize(results, step_seconds, options.learning_rate)

    figure_path, json_path = options.out / "digits.png", options.out / "digits.json"
    draw(results, summary, figure_path)
    seconds = time.perf_counter() - start
    _report.write_json(
        json_path,
        {
            "settings": {**vars(options), "out": str(options.out)},
            "environment": _report.environment(),
            "sources": {name: len(split.labels) for name, split in load_splits()._asdict().items()},
            "pictures_held_out": HELD_OUT,
            "noise": NOISE,
            "tasks": [task._asdict() for task in TASKS],
            "axes": {
                "test_by_seed": "seeds, tasks",
                "validation_by_seed": "gammas (stl: tasks), learning rates, seeds, tasks",
                "validation_delta_m": "gammas, learning rates",
                "losses": "stretches of steps of equal length, tasks: mean over steps and seeds",
                "task_weights": "likewise",
            },
            "methods": summary,
            "seconds": seconds,
        },
    )
    console.print(table(summary))
    for line in notes(summary, options.learning_rate, options.gamma):
        console.print(line, highlight=False)
    console.print(f"{figure_path} and {json_path}, {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
