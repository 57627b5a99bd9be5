r"""How a study compares methods on a multi-task problem, whatever the problem is.

Each method is trained at every setting of its hyperparameters, all settings and seeds in one
compiled call. The setting with the least mean :math:`\Delta m` on validation is kept, and only
settings that validation chose meet the test. Every method sees the same initial parameters and the
same batches, seed for seed, so that differences between methods are paired.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
import scipy.stats
from flax import nnx
from matplotlib import rc_context
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import famo_jax
from famo_jax.experiments import _arguments, _checkpoint, _report

Array = npt.NDArray[Any]

# --- Problems -------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A task, by how it is reported."""

    name: str
    loss: str
    metric: str
    decimals: int
    higher_is_better: bool = False  # of the metric


class Data(NamedTuple):
    """All that is seen of a study, the same for every method. Any pytrees of arrays."""

    train: Any  # [steps, seeds, batch_size, ...]
    validation: Any
    test: Any


class Problem(NamedTuple):
    """K tasks, what they are learned from, and the network that learns them."""

    name: str  # of the study and of its files
    title: str
    rows: str  # what a batch holds
    tasks: tuple[Task, ...]
    load_data: Callable[[int, int, int], Data]  # of (steps, seeds, batch_size)
    init_params: Callable[[int], chex.ArrayTree]  # of (seeds), a leading axis on every leaf
    task_losses: Callable[[chex.ArrayTree, Any], jax.Array]  # of (params, batch), [K]
    task_metrics: Callable[[chex.ArrayTree, Any], jax.Array]  # of (params, held-out data), [K]
    facts: Callable[[], Mapping[str, Any]]  # of the data, for the JSON file
    full: Mapping[str, Any]  # the options where none are given
    quick: Mapping[str, Any]
    timed: tuple[str, ...] = ()  # methods of which a step is timed even if they are not trained


def init_params(network: Callable[[nnx.Rngs], nnx.Module], seeds: int) -> chex.ArrayTree:
    """The parameters of one network for each seed: a leading axis on every leaf."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    params: chex.ArrayTree = jax.vmap(lambda key: nnx.split(network(nnx.Rngs(key)))[1])(keys)
    return params


def apply(network: Callable[[nnx.Rngs], Any], params: chex.ArrayTree, inputs: jax.Array) -> Any:
    """The network with these parameters, as a pure function."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: network(nnx.Rngs(0))))
    return nnx.merge(graphdef, params)(inputs)


# --- Methods --------------------------------------------------------------------------------------


class Method(NamedTuple):
    """How K losses become one update.

    Besides the learning rate of the model a method is trained for each of its ``variants``: the
    values of gamma or of a weight, or the K tasks of which single-task learning takes one at a
    time.
    """

    description: str
    colour: str
    # (K, variant) -> what follows Adam in the chain, and by its state weighs the losses.
    weighting: Callable[[int, jax.Array], optax.GradientTransformationExtraArgs]
    variants: Literal["none", "gamma", "weight", "task"] = "none"
    has_logits: bool = False
    smooth_c: bool = False  # scaled by an average of c instead
    two_pass: bool = False
    control: str | None = None  # the same method with its logits frozen
    aggregates: bool = False  # it combines task gradients, so it stands before Adam


OTHER = "#bbbbbb"  # the colour of the methods that are beside the point


Weighting = Callable[[int, jax.Array], optax.GradientTransformationExtraArgs]


def _famo(**settings: Any) -> Weighting:
    return lambda num_tasks, gamma: famo_jax.famo(num_tasks, weight_decay=gamma, **settings)


def _frozen(**settings: Any) -> Weighting:
    return lambda num_tasks, _: famo_jax.famo(num_tasks, learning_rate=0.0, **settings)


def _amortized_mgda(num_tasks: int, gamma: jax.Array) -> optax.GradientTransformationExtraArgs:
    return famo_jax.weighting.amortized_mgda(num_tasks, weight_decay=gamma)


def _aggregation(
    description: str, make: Callable[[], optax.GradientTransformationExtraArgs]
) -> Method:
    return Method(description, OTHER, lambda *_: make(), aggregates=True)


METHODS: dict[str, Method] = {
    "stl": Method(
        "a network for each task", "black", lambda _, task: famo_jax.weighting.stl(task), "task"
    ),
    "ls": Method("mean of the losses", "#999999", lambda *_: famo_jax.weighting.ls()),
    "si": Method("mean of the log losses", "#56b4e9", lambda *_: famo_jax.weighting.si()),
    "frozen": Method("FAMO, logits held at 0", "#0072b2", _frozen(), has_logits=True),
    "frozen-no-c": Method(
        "the same without c, which is si", "#56b4e9", _frozen(normalizer=None), has_logits=True
    ),
    "famo": Method(
        "FAMO, two-pass",
        "#d55e00",
        _famo(),
        "gamma",
        has_logits=True,
        two_pass=True,
        control="frozen",
    ),
    "famo-no-c": Method(
        "FAMO, two-pass, without c",
        "#e69f00",
        _famo(normalizer=None),
        "gamma",
        has_logits=True,
        two_pass=True,
        control="si",
    ),
    "famo-one-pass": Method(
        "FAMO, one-pass", "#009e73", _famo(), "gamma", has_logits=True, control="frozen"
    ),
    "famo-one-pass-no-c": Method(
        "FAMO, one-pass, without c",
        "#cc79a7",
        _famo(normalizer=None),
        "gamma",
        has_logits=True,
        control="si",
    ),
    "famo-ema": Method(
        "FAMO, one-pass, smoothed",
        "#8c510a",
        _famo(smoothing=0.9),
        "gamma",
        has_logits=True,
        control="frozen",
    ),
    "famo-ema-no-c": Method(
        "the same without c",
        "#bf812d",
        _famo(smoothing=0.9, normalizer=None),
        "gamma",
        has_logits=True,
        control="si",
    ),
    "famo-smooth-c": Method(
        "FAMO, two-pass, log c averaged over some ten steps",
        "#666666",
        _famo(normalizer=None),
        "gamma",
        has_logits=True,
        two_pass=True,
        smooth_c=True,
        control="frozen",
    ),
    "rlw": Method("random weights", OTHER, lambda k, _: famo_jax.weighting.rlw(k, key=0)),
    "dwa": Method(
        "weights by rates of change", OTHER, lambda k, _: famo_jax.weighting.dwa(k, window=25)
    ),
    "uw": Method("learned uncertainties", OTHER, lambda k, _: famo_jax.weighting.uw(k)),
    "amortized-mgda": Method(
        "FAMO without logarithms", OTHER, _amortized_mgda, "gamma", has_logits=True
    ),
    "mgda": _aggregation("the least convex combination", lambda: famo_jax.aggregation.mgda()),
    "pcgrad": _aggregation("conflicts projected away", lambda: famo_jax.aggregation.pcgrad(key=0)),
    "cagrad": _aggregation(
        "conflict-averse around the mean", lambda: famo_jax.aggregation.cagrad()
    ),
    "imtl-g": _aggregation("equal projections", lambda: famo_jax.aggregation.imtl_g()),
    "graddrop": _aggregation(
        "one sign for each entry", lambda: famo_jax.aggregation.graddrop(key=0)
    ),
    "nash-mtl": _aggregation(
        "the Nash bargaining solution", lambda: famo_jax.aggregation.nash_mtl()
    ),
}
CONTROLS = ("si", "frozen")  # they learn no weights: what FAMO's are worth is beyond them


def opponents(name: str) -> dict[str, str]:
    """What a form of FAMO is compared with: among other methods the forms with the same c."""
    c = "-no-c" if name.endswith("-no-c") else ""
    forms = {"two_pass": f"famo{c}", "one_pass": f"famo-one-pass{c}"}
    return {other: other for other in ("ls", *CONTROLS, "uw")} | forms


class Trace(NamedTuple):
    """What a training step leaves behind."""

    losses: jax.Array  # [K]
    task_weights: jax.Array | None  # [K], z, for a method that has logits


def scale_by_smooth_c(decay: float = 0.9) -> optax.GradientTransformationExtraArgs:
    """Scales the gradient of c = 1 by the paper's c, whose logarithm is averaged over steps."""
    average = optax.ema(decay)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, *, log_c: jax.Array, **_: Any
    ) -> tuple[optax.Updates, Any]:
        del params
        smooth, state = average.update(log_c, state)
        return jax.tree.map(lambda leaf: leaf * jnp.exp(smooth), updates), state

    return optax.GradientTransformationExtraArgs(lambda _: average.init(jnp.zeros(())), update)


def training_step(
    problem: Problem, method: Method, learning_rate: optax.ScalarOrSchedule, variant: jax.Array
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], tuple[Any, Trace]]]:
    """The training step of any method.

    Returns:
      ``params -> carry`` and ``(carry, batch) -> (carry, trace)``, for :func:`jax.lax.scan`. The
      carry is ``(params, opt_state)``.
    """
    links = [optax.adam(learning_rate), method.weighting(len(problem.tasks), variant)]
    if method.smooth_c:
        links.insert(0, scale_by_smooth_c())
    tx = optax.chain(*(reversed(links) if method.aggregates else links))

    def init(params: chex.ArrayTree) -> Any:
        return params, tx.init(params)

    def step(carry: Any, batch: Any) -> tuple[Any, Trace]:
        params, opt_state = carry
        losses_fn = lambda params: problem.task_losses(params, batch)
        losses, grads = famo_jax.losses_and_grads(losses_fn)(params, state=opt_state)
        extra: dict[str, Any] = {"losses_fn": losses_fn} if method.two_pass else {}
        if method.smooth_c:
            extra["log_c"] = -jnp.log(famo_jax.loss_weights(losses, opt_state).sum())  # sum z / D
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        task_weights = famo_jax.task_weights(opt_state) if method.has_logits else None
        return (optax.apply_updates(params, updates), opt_state), Trace(losses, task_weights)

    return init, step


class Run(NamedTuple):
    """A training run. Those of a study have leading axes [variants, rates, seeds]."""

    trace: Trace  # [steps]
    validation: jax.Array  # [K], metrics
    test: jax.Array  # [K]


class Phases(NamedTuple):
    """The start, some steps and the end of all training runs of a method at once."""

    begin: Callable[..., Any]  # (rate, variant, params) -> carry
    advance: Callable[..., tuple[Any, Trace]]  # (rate, variant, carry, batches) -> carry, trace
    finish: Callable[..., tuple[jax.Array, jax.Array]]  # (carry, validation, test) -> metrics


def phases(problem: Problem, method: Method, steps: int) -> Phases:
    """Functions over all variants, rates and seeds of runs of so many steps in all."""

    def step_of(rate: jax.Array, variant: jax.Array) -> tuple[Callable[..., Any], Any]:
        return training_step(problem, method, optax.cosine_decay_schedule(rate, steps), variant)

    def begin(rate: jax.Array, variant: jax.Array, params: chex.ArrayTree) -> Any:
        return step_of(rate, variant)[0](params)

    def advance(rate: jax.Array, variant: jax.Array, carry: Any, batches: Any) -> tuple[Any, Trace]:
        return jax.lax.scan(step_of(rate, variant)[1], carry, batches)

    def finish(carry: Any, validation: Any, test: Any) -> tuple[jax.Array, jax.Array]:
        params, _ = carry
        return problem.task_metrics(params, validation), problem.task_metrics(params, test)

    def over_all(function: Any, seeds: Any, rates: Any, variants: Any) -> Any:
        for axes in (seeds, rates, variants):
            function = jax.vmap(function, in_axes=axes)
        return function

    # Seeds have batches of their own, which all settings of one seed share.
    return Phases(
        over_all(begin, (None, None, 0), (0, None, None), (None, 0, None)),
        over_all(advance, (None, None, 0, 1), (0, None, 0, None), (None, 0, 0, None)),
        over_all(finish, *3 * [(0, None, None)]),
    )


def _settings(
    problem: Problem,
    method: Method,
    learning_rates: Sequence[float],
    gammas: Sequence[float],
    data: Data,
) -> tuple[jax.Array, jax.Array, chex.ArrayTree]:
    """The rates, the variants and the initial parameters of each seed."""
    variants = {
        "none": jnp.zeros(1),
        "gamma": jnp.asarray(gammas),
        "task": jnp.arange(len(problem.tasks)),
    }
    params = problem.init_params(jax.tree.leaves(data.train)[0].shape[1])
    return jnp.asarray(learning_rates), variants[method.variants], params


def compile_study(
    problem: Problem,
    method: Method,
    learning_rates: Sequence[float],
    gammas: Sequence[float],
    data: Data,
) -> Callable[[], Run]:
    """Compiles all runs of a method, every variant, learning rate and seed, as one call."""
    begin, advance, finish = phases(problem, method, len(jax.tree.leaves(data.train)[0]))

    def study(rates: jax.Array, variants: jax.Array, params: chex.ArrayTree, data: Data) -> Run:
        carry = begin(rates, variants, params)
        carry, trace = advance(rates, variants, carry, data.train)
        return Run(trace, *finish(carry, data.validation, data.test))

    return _compile(study, *_settings(problem, method, learning_rates, gammas, data), data)


SEGMENTS = 10  # of a training that is saved after each


def train_resumably(
    problem: Problem,
    method: Method,
    learning_rates: Sequence[float],
    gammas: Sequence[float],
    data: Data,
    saved: _checkpoint.Saved | None,
    save: Callable[[int, Any], None],
) -> Run:
    """What :func:`compile_study` compiles, in segments.

    Args:
      problem: What is learned.
      method: Which.
      learning_rates: The rates.
      gammas: The values of gamma.
      data: All batches.
      saved: Where an earlier process came to.
      save: Called with the number of steps made and the state, after each segment.
    """
    steps = len(jax.tree.leaves(data.train)[0])
    begin, advance, finish = map(jax.jit, phases(problem, method, steps))
    rates, variants, params = _settings(problem, method, learning_rates, gammas, data)
    carry: Any = begin(rates, variants, params)
    trace: Any = None
    done = 0
    if saved:
        done = saved.steps
        past = jax.tree.map(lambda leaf: leaf[:done], data.train)
        like = carry, jax.eval_shape(advance, rates, variants, carry, past)[1]
        carry, trace = _checkpoint.restore(saved, like)
    length = -(-steps // SEGMENTS)
    for first in range(done, steps, length):
        segment = jax.tree.map(lambda leaf, first=first: leaf[first : first + length], data.train)
        carry, new = advance(rates, variants, carry, segment)
        # Behind the axes of variants, rates and seeds is that of the steps.
        trace = (
            jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=3), trace, new)
            if trace
            else new
        )
        save(min(first + length, steps), (carry, trace))
    return Run(trace, *finish(carry, data.validation, data.test))


def compile_steps(problem: Problem, method: Method, batches: Any) -> Callable[[], Any]:
    """Compiles training steps of one network, ``[steps, 1, batch_size]``, to measure their time."""
    params = jax.tree.map(lambda leaf: leaf[0], problem.init_params(1))
    batches = jax.tree.map(lambda leaf: leaf[:, 0], batches)
    variant = jnp.zeros((), int if method.variants == "task" else float)

    def steps(variant: jax.Array, params: chex.ArrayTree, batches: Any) -> Any:
        init, step = training_step(problem, method, 1e-3, variant)
        return jax.lax.scan(step, init(params), batches)

    return _compile(steps, variant, params, batches)


def _compile(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return functools.partial(jax.jit(function).lower(*args).compile(), *args)


# --- The study ------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A method at one of its variants, and at the learning rate that validation chose for it."""

    learning_rate: float
    score: float  # delta m on validation
    test: Array  # [seeds, K], metrics
    logit_range: Array | None  # [2, seeds], over tasks: at the end of training, and at most


class Result(NamedTuple):
    """A method at the setting that validation chose."""

    learning_rate: tuple[float, ...]  # one, or one for each task
    gamma: float | None
    validation: Array  # [variants, rates, seeds, K], metrics at every setting
    test: Array  # [seeds, K], metrics
    losses: Array  # [steps, seeds, K]
    task_weights: Array | None  # [steps, seeds, K]
    settings: tuple[Setting, ...]  # for each variant; empty for single-task learning


def select(
    tasks: Sequence[Task],
    method: Method,
    run: Run,
    learning_rates: Sequence[float],
    gammas: Sequence[float],
    baseline: Array | None,
) -> Result:
    """Chooses the setting by the mean over seeds on validation.

    Args:
      tasks: The K tasks.
      method: Which.
      run: All its runs, ``[variants, rates, seeds]``.
      learning_rates: The rates.
      gammas: The values of gamma.
      baseline: ``[K]``, the single-task metrics on validation. None for single-task learning,
        where each task goes by its own metric.
    """
    validation, test, losses = _finite(run.validation), _finite(run.test), run.trace.losses
    if baseline is None:
        signs = np.where(higher_is_better(tasks), -1, 1)
        rates = [
            _argmin(sign * validation[task, :, :, task].mean(axis=1))
            for task, sign in enumerate(signs)
        ]
        own = [(task, rate, ..., task) for task, rate in enumerate(rates)]
        return Result(
            learning_rate=tuple(learning_rates[rate] for rate in rates),
            gamma=None,
            validation=validation,
            test=np.stack([test[index] for index in own], axis=-1),
            losses=np.stack([_finite(losses[index]) for index in own], axis=-1).swapaxes(0, 1),
            task_weights=None,
            settings=(),
        )
    scores = delta_m(tasks, validation.mean(axis=2), baseline)
    rates = [_argmin(each) for each in scores]
    variant = _argmin(scores[np.arange(len(rates)), rates])
    chosen = variant, rates[variant]
    z = run.trace.task_weights
    return Result(
        learning_rate=(learning_rates[chosen[1]],),
        gamma=gammas[variant] if method.variants == "gamma" else None,
        validation=validation,
        test=test[chosen],
        losses=_finite(losses[chosen]).swapaxes(0, 1),
        task_weights=None if z is None else _finite(z[chosen]).swapaxes(0, 1),
        settings=tuple(
            Setting(
                learning_rates[rate],
                scores[index],
                test[index],
                None if z is None else _logit_range(_finite(z[index])),
            )
            for rate, index in zip(rates, enumerate(rates), strict=True)
        ),
    )


def _finite(values: jax.Array) -> Array:
    """On the host, with NaN for all that a run which diverged left behind."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _logit_range(z: Array) -> Array:
    """Of task weights ``[seeds, steps, K]``: of softmax's logits they give the differences."""
    with np.errstate(divide="ignore"):  # a weight of 0 is an infinite range
        ranges = np.log(z.max(axis=-1)) - np.log(z.min(axis=-1))
    return np.stack([ranges[:, -1], ranges.max(axis=-1)])


def delta_m(tasks: Sequence[Task], values: Array, baseline: Array) -> Array:
    """Of metrics ``[..., K]`` against ``[K]``, in percent."""
    return np.asarray(famo_jax.delta_m(values, baseline, higher_is_better(tasks)), np.float64)


def changes(tasks: Sequence[Task], values: Array, baseline: Array) -> Array:
    """How much worse each metric is than its baseline, ``[K]``, in percent."""
    columns = (column[:, None] for column in (values, baseline, higher_is_better(tasks)))
    return np.asarray(famo_jax.delta_m(*columns), np.float64)


def higher_is_better(tasks: Sequence[Task]) -> Array:
    """Of the metrics, ``[K]``."""
    return np.array([task.higher_is_better for task in tasks])


def _argmin(values: Array) -> int:
    """Where the least value is. NaN is never the least."""
    return int(np.argmin(np.where(np.isnan(values), np.inf, values)))


def baseline_of(stl: Result, learning_rates: Sequence[float]) -> Array:
    """The single-task metrics on validation, ``[K]``, at the rate chosen for each task."""
    chosen = [learning_rates.index(rate) for rate in stl.learning_rate]
    means = stl.validation.mean(axis=2)
    return np.array([means[task, rate, task] for task, rate in enumerate(chosen)])


def run_study(
    problem: Problem,
    names: Sequence[str],
    learning_rates: Sequence[float],
    gammas: Sequence[float],
    data: Data,
    progress: Progress,
    checkpoint_dir: Path | None = None,
    saved: Mapping[str, _checkpoint.Saved] | None = None,
) -> dict[str, Result]:
    """Trains every method at all its settings, and chooses one setting for each.

    Methods run beside each other on threads: one compiles while another trains. With a
    ``checkpoint_dir`` they are saved there now and then, and go on from what is ``saved``.
    """
    saved = saved or {}
    rows = {name: progress.add_task(name, status="waiting", start=False) for name in names}

    def study(name: str) -> Run:
        run: Run
        progress.start_task(rows[name])
        progress.update(rows[name], status="compiling")
        settings = problem, METHODS[name], learning_rates, gammas, data
        if checkpoint_dir:

            def save(steps: int, state: Any) -> None:
                _checkpoint.save(checkpoint_dir, name, steps, state)
                progress.update(rows[name], status=f"{steps} steps saved")

            run = jax.block_until_ready(train_resumably(*settings, saved.get(name), save))
        else:
            call = compile_study(*settings)
            progress.update(rows[name], status="training")
            run = jax.block_until_ready(call())
        progress.update(rows[name], status="done", completed=1, total=1)
        return run

    # The longest first, so that none is left alone at the end.
    settings = {"task": len(problem.tasks), "gamma": len(gammas), "none": 1}
    order = sorted(names, key=lambda name: -settings[METHODS[name].variants])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = dict(zip(order, pool.map(study, order), strict=True))
    stl = select(problem.tasks, METHODS["stl"], runs["stl"], learning_rates, gammas, None)
    baseline = baseline_of(stl, learning_rates)
    return {
        name: stl
        if name == "stl"
        else select(problem.tasks, METHODS[name], runs[name], learning_rates, gammas, baseline)
        for name in names
    }


def measure_steps(
    problem: Problem, names: Sequence[str], data: Data, steps: int = 20, rounds: int = 25
) -> dict[str, list[float]]:
    """The time of a training step of one network, in seconds: [first quartile, median, third]."""
    batches = jax.tree.map(lambda leaf: leaf[:steps, :1], data.train)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(lambda name: compile_steps(problem, METHODS[name], batches), names)
        calls = dict(zip(names, compiled, strict=True))
    counted = len(jax.tree.leaves(batches)[0])
    seconds = _report.interleaved_seconds(calls, rounds)
    return {
        name: [value / counted for value in _report.quartiles(times)]
        for name, times in seconds.items()
    }


# --- The report -----------------------------------------------------------------------------------


def interval(values: Array) -> list[float]:
    """Of the mean of ``[n]`` values, 95% by Student's t; NaN for a single one."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * _report.standard_error(values)
    return [float(values.mean() - half), float(values.mean() + half)]


def summarize(
    tasks: Sequence[Task],
    results: Mapping[str, Result],
    step_seconds: Mapping[str, list[float]],
    learning_rates: Sequence[float],
    gammas: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """The figures of each method, those of the table first.

    Delta m is against the mean of single-task learning over its seeds. Its standard error is over
    the method's own seeds. Methods share seeds, so differences between two are paired.
    """
    stl = results["stl"]
    baseline = stl.test.mean(axis=0)
    on_validation = baseline_of(stl, learning_rates)
    means = np.stack([result.test.mean(axis=0) for result in results.values()])
    ranks = famo_jax.mean_rank(means, higher_is_better(tasks))
    by_seed = {name: delta_m(tasks, result.test, baseline) for name, result in results.items()}
    names = [task.name for task in tasks]

    def against(name: str, other: str | None, values: Array | None = None) -> Any:
        if other is None or other not in results or other == name:
            return None
        paired = (by_seed[name] if values is None else values) - by_seed[other]
        return {
            "method": other,
            "delta_m": paired.mean(),
            "se": _report.standard_error(paired),
            "interval": interval(paired),
        }

    def at_gamma(name: str, gamma: float, setting: Setting) -> dict[str, Any]:
        values = delta_m(tasks, setting.test, baseline)
        return {
            "gamma": gamma,
            "learning_rate": setting.learning_rate,
            "validation_delta_m": setting.score,
            "delta_m": values.mean(),
            "delta_m_interval": interval(values),
            **{f"against_{other}": against(name, other, values) for other in CONTROLS},
            "logit_range": _range_figures(setting.logit_range),
        }

    def figures(name: str, result: Result, rank: float) -> dict[str, Any]:
        has_gamma = result.gamma is not None
        chosen = gammas.index(result.gamma) if has_gamma else 0
        test = result.test.mean(axis=0)
        return {
            "description": METHODS[name].description,
            "test": dict(zip(names, test, strict=True)),
            "change": dict(zip(names, changes(tasks, test, baseline), strict=True)),
            "delta_m": by_seed[name].mean(),
            "delta_m_se": _report.standard_error(by_seed[name]),
            "delta_m_interval": interval(by_seed[name]),
            "mean_rank": rank,
            "learning_rate": result.learning_rate,
            "gamma": result.gamma,
            # Single-task learning steps K networks where the others step one.
            "step_relative_to_ls": (len(tasks) if name == "stl" else 1)
            * step_seconds[name][1]
            / step_seconds["ls"][1],
            "step_seconds_of_one_network": _quartile_figures(step_seconds[name]),
            "logit_range": _range_figures(result.settings[chosen].logit_range)
            if result.settings
            else None,
            "against_control": against(name, METHODS[name].control),
            **{
                f"against_{label}": against(name, other) for label, other in opponents(name).items()
            },
            "by_gamma": list(map(functools.partial(at_gamma, name), gammas, result.settings))
            if has_gamma
            else None,
            "delta_m_by_seed": by_seed[name],
            "test_by_seed": result.test,
            "validation_by_seed": result.validation,
            "validation_delta_m": None
            if name == "stl"
            else delta_m(tasks, result.validation.mean(axis=2), on_validation),
            "losses": thin(result.losses.mean(axis=1)),
            "task_weights": None
            if result.task_weights is None
            else thin(result.task_weights.mean(axis=1)),
        }

    return {
        name: figures(name, result, float(rank))
        for (name, result), rank in zip(results.items(), ranks, strict=True)
    }


def _range_figures(ranges: Array | None) -> dict[str, float] | None:
    """Means over seeds of ``[2, seeds]``."""
    return None if ranges is None else dict(zip(("end", "most"), ranges.mean(axis=1), strict=True))


def _quartile_figures(quartiles: Sequence[float]) -> dict[str, float]:
    return dict(zip(("q1", "median", "q3"), quartiles, strict=True))


def thin(curve: Array, points: int = 200) -> Array:
    """Means over at most ``points`` stretches of steps of equal length, ``[points, ...]``."""
    return np.stack([part.mean(axis=0) for part in np.array_split(curve, min(points, len(curve)))])


MOST_COLUMNS = 4  # more tasks than that do not fit into 80 columns


def table(tasks: Sequence[Task], summary: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each method, 80 columns wide: each task, or how they are spread if there are many.

    Then ``worst`` is the greatest change of a metric against single-task learning, counted up where
    it is worse, and ``better`` is how many tasks are better than by single-task learning.
    """
    few = len(tasks) <= MOST_COLUMNS
    rows = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    rows.add_column("method", no_wrap=True)
    spread = ("worst\ntask\n(%)", f"better\nof {len(tasks)}")
    for header in (
        *(task.metric.replace(" ", "\n") for task in tasks if few),
        *(() if few else spread),
        "Δm\n± s.e.\n(%)",
        "mean\nrank",
        "learn.\nrate",
        "gamma",
        *(() if few else ("logit\nrange",)),
        "step\n/ ls",
    ):
        rows.add_column(header, justify="right", no_wrap=True)
    for name, figures in summary.items():
        rate, gamma, drift = figures["learning_rate"], figures["gamma"], figures["logit_range"]
        changes = np.array(list(figures["change"].values()))
        rows.add_row(
            name,
            *(f"{figures['test'][task.name]:.{task.decimals}f}" for task in tasks if few),
            *(() if few else (f"{changes.max():z.0f}", f"{np.sum(changes < 0)}")),
            _plus_minus(figures["delta_m"], figures["delta_m_se"]),
            f"{figures['mean_rank']:.2f}",
            f"{rate[0]:g}" if len(rate) == 1 else "below",
            "" if gamma is None else f"{gamma:g}",
            *(() if few else ("" if drift is None else f"{drift['end']:.2f}",)),
            f"{figures['step_relative_to_ls']:.2f}",
        )
    return rows


def _plus_minus(mean: float, error: float, sign: str = "") -> str:
    """The mean and its standard error, which a single seed does not have."""
    return f"{mean:{sign}z.1f}" + (f" ± {error:.1f}" if np.isfinite(error) else "")


def _between(low: float, high: float) -> str:
    return f"{low:z.1f} to {high:z.1f}"


def differences(summary: Mapping[str, Mapping[str, Any]]) -> Table:
    """Of the forms of FAMO from their controls, from one another and from learned uncertainties."""
    rows = Table(
        title="Differences of Δm, paired by seed: mean±95%",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    rows.add_column("method", no_wrap=True)
    forms = {name: figures for name, figures in summary.items() if METHODS[name].control}
    labels = [
        label
        for label in opponents("")
        if label != "ls" and any(figures[f"against_{label}"] for figures in forms.values())
    ]
    for label in labels:
        rows.add_column("- " + label.replace("_", "-"), justify="right", no_wrap=True)
    for name, figures in forms.items():
        rows.add_row(name, *(_difference(figures[f"against_{label}"]) for label in labels))
    return rows


def _difference(against: Mapping[str, Any] | None) -> str:
    if against is None:
        return ""
    mean, (low, high) = against["delta_m"], against["interval"]
    decimals = 1 if abs(mean) < 100 else 0
    return f"{mean:+z.{decimals}f}±{(high - low) / 2:.{decimals}f}"


def notes(
    tasks: Sequence[Task],
    summary: Mapping[str, Mapping[str, Any]],
    learning_rates: Sequence[float],
    gammas: Sequence[float],
) -> list[str]:
    """What the table leaves out."""
    stl = summary["stl"]["learning_rate"]
    names = {
        rate: [task.name for task, own in zip(tasks, stl, strict=True) if own == rate]
        for rate in sorted(set(stl))
    }
    few = len(tasks) <= MOST_COLUMNS
    rates = (
        ", ".join(f"{task.name} {rate:g}" for task, rate in zip(tasks, stl, strict=True))
        if few
        else ", ".join(f"{rate:g} for {len(own)} tasks" for rate, own in names.items())
    )
    seeds = len(summary["stl"]["delta_m_by_seed"])
    lines = [
        f"Means over {seeds} seeds, everything better when lower. Δm ± its standard error: against "
        f"the mean of stl, whose learning rates are: {rates}. stl steps {len(tasks)} networks."
    ]
    if not few:
        lines.append(
            "Worst task: its change against stl, up is worse. Logit range: over tasks, at the end, "
            "mean over seeds."
        )
    intervals = {name: figures["delta_m_interval"] for name, figures in summary.items()}
    if seeds > 1:
        told = ", ".join(f"{name} {_between(*interval)}" for name, interval in intervals.items())
        lines.append(f"Δm with 95% confidence: {told}.")
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


# --- Parts of a figure ----------------------------------------------------------------------------

WEIGHTED = (("famo", "famo-no-c"), ("famo-one-pass", "famo-one-pass-no-c"))
SHOWN = ("ls", "si", "frozen", "famo-no-c", "famo", "famo-one-pass", "stl")


def style() -> AbstractContextManager[None]:
    """Of figures as wide as a README shows them at 100 pixels an inch: so 8 points are that."""
    return rc_context({"font.size": 8, "axes.titlesize": 8, "lines.linewidth": 1.2})


def draw_losses(
    axes: Axes, tasks: Sequence[Task], results: Mapping[str, Result], task: int
) -> None:
    """The loss of a task over the steps, mean over seeds, of the methods that are ``SHOWN``."""
    curves = {
        name: thin(results[name].losses[:, :, task].mean(axis=1), 100)
        for name in SHOWN
        if name in results
    }
    for name, curve in curves.items():
        steps = middles(len(results[name].losses), len(curve))
        axes.plot(steps, curve, label=name, color=METHODS[name].colour)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
    axes.yaxis.set_minor_formatter(lambda loss, _: f"{loss:g}" if f"{loss:e}"[0] in "25" else "")
    # The mean of the losses first makes some tasks worse, by far. That would squeeze the rest.
    top = 2 * curves["stl"].max()
    if np.isfinite(top):
        axes.set_ylim(top=top)
    axes.set_title(tasks[task].loss)
    axes.set_xlabel("step")


def draw_task_weights(
    axes: Axes,
    results: Mapping[str, Result],
    names: Sequence[str],
    colours: Sequence[Any],
    labels: Sequence[str] | None = None,
) -> None:
    """Of the first method that was run: means over seeds, and if there are labels their range."""
    axes.set_ylabel("task weights z")
    axes.set_xlabel("step")
    name = next((name for name in names if name in results), names[0])
    z = results[name].task_weights if name in results else None
    if z is None:
        axes.set_title(f"{name} was not run")
        return
    curves = thin(z, 100)
    steps = middles(len(z), len(curves))
    for task, colour in enumerate(colours):
        seeds = curves[:, :, task]
        label = labels[task] if labels else None
        if labels:
            low, high = seeds.min(axis=1), seeds.max(axis=1)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, seeds.mean(axis=1), label=label, color=colour)
    axes.set_title(f"{name}, gamma {results[name].gamma:g}")
    if labels:
        axes.set_ylim(0, 1.35 * curves.max())  # room for the legend
        axes.legend(loc="upper center", ncols=2, frameon=False)


def middles(steps: int, points: int) -> Array:
    """Where the points of a thinned curve are on the axis of the steps, ``[points]``."""
    return np.array([part.mean() for part in np.array_split(np.arange(steps), points)])


def draw_delta_m(axes: Axes, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Delta m of every method: mean, its standard error, each seed."""
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
    axes.set_xlabel("Δm against stl (%), lower is better:\nmean, its standard error, each seed")


def draw_changes(
    axes: Axes, summary: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
) -> None:
    """How much worse each task's metric is than that of single-task learning, a point a method.

    Args:
      axes: Where.
      summary: The figures.
      labels: The tasks' names, in the order to show them, and what to call them.
    """
    names = [name for name in SHOWN if name in summary and name != "stl"]
    places = np.arange(len(labels))
    for index, name in enumerate(names):
        shift = 0.7 * (index - (len(names) - 1) / 2) / len(names)
        values = [summary[name]["change"][task] for task in labels]
        axes.plot(places + shift, values, "o", label=name, color=METHODS[name].colour, markersize=3)
    axes.axhline(0, color="black", linewidth=0.8)
    for place in places[1:]:
        axes.axvline(place - 0.5, color="#dddddd", linewidth=0.6)
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter(lambda change, _: f"{change:g}")
    axes.set_xticks(places, labels.values(), rotation=90 if len(labels) > 20 else 0)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylabel("change against stl (%)")
    axes.margins(y=0.08)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(names), frameon=False)


def draw_gamma(axes: Axes, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Delta m over gamma, each at its own learning rate, beside the controls."""
    gammas: list[float] = []
    for name, figures in summary.items():
        colour = METHODS[name].colour
        if name in CONTROLS:
            axes.axhline(figures["delta_m"], color=colour, linestyle="--", label=name)
            low, high = figures["delta_m_interval"]
            if np.isfinite(low):
                axes.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)
        elif figures["by_gamma"] and METHODS[name].control:
            gammas = [each["gamma"] for each in figures["by_gamma"]]
            means = np.array([each["delta_m"] for each in figures["by_gamma"]])
            ends = np.array([each["delta_m_interval"] for each in figures["by_gamma"]])
            bars = np.abs(ends.T - means) if np.isfinite(ends).all() else None
            places = np.arange(len(gammas))
            axes.errorbar(places, means, bars, color=colour, marker="o", markersize=3, label=name)
    axes.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    axes.set_xlabel("gamma")
    axes.set_ylabel("Δm against stl (%), 95%")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


# --- The command ----------------------------------------------------------------------------------

MAX_ROWS = 2**24  # some 200 bytes each


def parser(problem: Problem) -> argparse.ArgumentParser:
    """The options of the command line."""
    full, quick = problem.full, problem.quick
    described = "\n".join(f"  {name:20}{method.description}" for name, method in METHODS.items())
    options = argparse.ArgumentParser(
        prog=f"python -m famo_jax.experiments.{problem.name}",
        description=problem.title,
        epilog=f"methods (c is FAMO's normaliser):\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    count = functools.partial(add, type=_arguments.positive_int, metavar="N")
    count("--steps", help=f"training steps ({full['steps']})")
    count("--seeds", help=f"seeds of every setting ({full['seeds']})")
    count("--batch-size", help=f"{problem.rows} of a step ({full['batch_size']})")
    add(
        "--methods",
        nargs="+",
        type=_arguments.one_of(list(METHODS)),
        metavar="NAME",
        help=f"what to compare; stl, the baseline, is always run ({' '.join(full['methods'])})",
    )
    add(
        "--learning-rate",
        nargs="+",
        type=_arguments.positive_float,
        metavar="RATE",
        help=f"of the model's Adam, to choose from ({_listed(full['learning_rate'])})",
    )
    add(
        "--gamma",
        nargs="+",
        type=_arguments.non_negative_float,
        metavar="GAMMA",
        help=f"decay of FAMO's logits, to choose from ({_listed(full['gamma'])})",
    )
    add(
        "--out",
        type=Path,
        default=Path("results", problem.name),
        help="output folder (%(default)s)",
    )
    _checkpoint.add_options(options)
    add(
        "--quick",
        action="store_true",
        help=f"{quick['steps']} steps, {quick['seeds']} seeds, {len(quick['learning_rate'])} rate, "
        f"{len(quick['gamma'])} gamma where not given",
    )
    return options


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def parse(problem: Problem, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    options_parser = parser(problem)
    options = options_parser.parse_args(arguments)
    for name, default in (problem.quick if options.quick else problem.full).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for option in ("methods", "learning_rate", "gamma"):
        flag = "--" + option.replace("_", "-")
        _arguments.check_distinct(options_parser, flag, getattr(options, option))
    rows = options.steps * options.seeds * options.batch_size
    if rows > MAX_ROWS:
        options_parser.error(
            "argument --steps: expected steps x seeds x batch size of at most "
            f"{MAX_ROWS:,}, which are held in memory, got {rows:,}"
        )
    files = f"{problem.name}.png", f"{problem.name}.json"
    _arguments.output_folder(options_parser, "--out", options.out, *files)
    options.methods = [name for name in METHODS if name in {"stl", *options.methods}]
    return options


Draw = Callable[[Mapping[str, Result], Mapping[str, Mapping[str, Any]], Path], None]


@_arguments.command
def main(problem: Problem, draw: Draw, arguments: Sequence[str] | None) -> None:
    """Runs the study, prints its table, and writes ``NAME.png`` and ``NAME.json``."""
    options = parse(problem, arguments)
    settings = {**vars(options), "out": str(options.out)}
    folder, resume = settings.pop("checkpoint_dir"), settings.pop("resume")
    study = {**settings, **_report.environment(), "study": problem.name}
    for irrelevant in ("out", "quick", "cores"):
        del study[irrelevant]
    saved = _checkpoint.open_folder(parser(problem), folder, resume, study, options.methods)
    start = time.perf_counter()
    console = Console()
    rates, gammas = options.learning_rate, options.gamma
    columns = SpinnerColumn(), TextColumn("{task.description:20}{task.fields[status]:40}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        phase = functools.partial(progress.add_task, total=1)
        composing = phase(problem.rows, status="composing")
        data = problem.load_data(options.steps, options.seeds, options.batch_size)
        data = jax.block_until_ready(data)
        progress.update(composing, status="done", completed=1)
        results = run_study(problem, options.methods, rates, gammas, data, progress, folder, saved)
        timing = phase("time of a step", status="measuring")
        timed = list(dict.fromkeys(["ls", *options.methods, *problem.timed]))
        step_seconds = measure_steps(problem, timed, data, rounds=5 if options.quick else 25)
        progress.update(timing, status="done", completed=1)
        summary = summarize(problem.tasks, results, step_seconds, rates, gammas)

    untrained = {
        name: step_seconds[name][1] / step_seconds["ls"][1]
        for name in problem.timed
        if name not in summary
    }
    console.print(table(problem.tasks, summary))
    for line in notes(problem.tasks, summary, rates, gammas):
        console.print(line, highlight=False)
    if any(METHODS[name].control for name in summary):
        console.print(differences(summary))
    if untrained:
        steps = ", ".join(f"{name} {ratio:.1f}" for name, ratio in untrained.items())
        console.print(f"A step over that of ls, not trained: {steps}.", highlight=False)
    figure_path = options.out / f"{problem.name}.png"
    json_path = options.out / f"{problem.name}.json"
    draw(results, summary, figure_path)
    seconds = time.perf_counter() - start
    _report.write_json(
        json_path,
        {
            "settings": settings,
            "environment": _report.environment(),
            **problem.facts(),
            "tasks": [task._asdict() for task in problem.tasks],
            "axes": {
                "test_by_seed": "seeds, tasks",
                "validation_by_seed": "gammas (stl: tasks), learning rates, seeds, tasks",
                "validation_delta_m": "gammas, learning rates",
                "losses": "stretches of steps of equal length, tasks: mean over steps and seeds",
                "task_weights": "likewise",
            },
            "methods": summary,
            "step_relative_to_ls_of_methods_not_trained": untrained,
            "seconds": seconds,
        },
    )
    console.print(f"{figure_path} and {json_path}, {seconds:.0f} s", highlight=False)
