r"""FAMO in physics-informed networks: ``python -m famo_jax.experiments.pinn``.

A network u is trained to solve a partial differential equation: its *residual* in the domain, and
its misfit at the *boundary* and at the *initial* time, are the tasks. The solutions are known in
closed form: of Burgers' equation in one dimension and time a travelling front; of Helmholtz' on a
square a product of sines, where the residual's gradients drown the boundary's (Wang, Teng,
Perdikaris 2021). In theirs the solution is 0 on the boundary, so that u = 0 has no boundary loss
at all. The same solution, shifted, has a boundary loss that only the solution brings to 0.

Each step sees all points, which are fixed, so the losses carry no noise of sampling. Besides the
methods of this library stand what is used for such networks: fixed weights, tuned by hand, and
weights from the norms of the gradients. Every method is trained at every setting of its
hyperparameters on some seeds; the setting with the least error is kept, and runs on other seeds
are what is reported. Seed for seed all methods start from the same parameters.

References:
  Raissi, Perdikaris, Karniadakis, `Physics-informed neural networks
  <https://doi.org/10.1016/j.jcp.2018.10.045>`_, Journal of Computational Physics, 2019

  Wang, Teng, Perdikaris, `Understanding and mitigating gradient flow pathologies in
  physics-informed neural networks <https://arxiv.org/abs/2001.04536>`_, SIAM Journal on Scientific
  Computing, 2021

  Wang, Sankaran, Wang, Perdikaris, `An expert's guide to training physics-informed neural networks
  <https://arxiv.org/abs/2308.08468>`_, 2023
"""

import argparse
import functools
import itertools
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
from flax import nnx
from jax import flatten_util
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import famo_jax
from famo_jax.experiments import _arguments, _report, _study
from famo_jax.experiments._study import OTHER, Method

Array = npt.NDArray[Any]
Field = Callable[[jax.Array], jax.Array]  # [N, 2] points -> [N] values

# --- Problems -------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A differential equation on a rectangle, and its solution."""

    title: str
    axes: tuple[str, str]  # the coordinates
    low: tuple[float, float]
    high: tuple[float, float]
    residual: Callable[[Field], Field]  # of a field that may solve the equation or not
    exact: Field
    evolves: bool  # the second coordinate is time


def derivative(field: Field, axis: int) -> Field:
    """The partial derivative, by forward-mode differentiation of all points at once."""

    def differentiated(points: jax.Array) -> jax.Array:
        direction = jnp.zeros_like(points).at[:, axis].set(1)
        tangents: jax.Array = jax.jvp(field, (points,), (direction,))[1]
        return tangents

    return differentiated


VISCOSITY = 0.05
SPEED, HEIGHT, START = 0.5, 0.5, 0.2  # of the front


def burgers_residual(u: Field) -> Field:
    """Of u_t + u u_x = nu u_xx."""
    u_x, u_t = derivative(u, 0), derivative(u, 1)
    u_xx = derivative(u_x, 0)
    return lambda points: u_t(points) + u(points) * u_x(points) - VISCOSITY * u_xx(points)


def burgers_front(points: jax.Array) -> jax.Array:
    r"""A front that travels from left to right.

    .. math:: u = c - a \tanh \frac{a (x - x_0 - c t)}{2 \nu}
    """
    x, t = points[:, 0], points[:, 1]
    distance = x - START - SPEED * t
    return SPEED - HEIGHT * jnp.tanh(HEIGHT * distance / (2 * VISCOSITY))


WAVE_NUMBERS = (1, 2)  # in units of pi
K_SQUARED = 1.0


def sine_product(points: jax.Array, shift: float) -> jax.Array:
    """A product of sines: with no shift 0 on the boundary of [-1, 1] x [-1, 1]."""
    return jnp.prod(jnp.sin(jnp.pi * jnp.asarray(WAVE_NUMBERS) * (points + shift)), axis=1)


def helmholtz_residual(u: Field, exact: Field) -> Field:
    """Of u_xx + u_yy + k^2 u = q, with the q of a product of sines."""
    u_xx, u_yy = (derivative(derivative(u, axis), axis) for axis in (0, 1))
    factor = K_SQUARED - jnp.pi**2 * sum(number**2 for number in WAVE_NUMBERS)
    return lambda points: (
        u_xx(points) + u_yy(points) + K_SQUARED * u(points) - factor * exact(points)
    )


def helmholtz(title: str, shift: float) -> Problem:
    """On the square [-1, 1] x [-1, 1]."""
    exact = functools.partial(sine_product, shift=shift)
    residual = functools.partial(helmholtz_residual, exact=exact)
    return Problem(title, ("x", "y"), (-1.0, -1.0), (1.0, 1.0), residual, exact, evolves=False)


PROBLEMS = {
    "burgers": Problem(
        "Burgers' equation in one dimension and time, a travelling front",
        ("x", "t"),
        (0.0, 0.0),
        (1.0, 1.0),
        burgers_residual,
        burgers_front,
        evolves=True,
    ),
    "helmholtz": helmholtz("Helmholtz' equation in two dimensions, 0 on the boundary", 0.0),
    "helmholtz-shifted": helmholtz(
        "Helmholtz' equation in two dimensions, not 0 on the boundary", 0.15
    ),
}
TERMS = ("residual", "boundary", "initial")
SHORT = {"residual": "resid.", "boundary": "bound.", "initial": "init."}
INTERIOR, EDGE, EVALUATION = 12, 16, 51  # points along an axis


def terms_of(problem: Problem) -> tuple[str, ...]:
    """The names of the K tasks."""
    return TERMS if problem.evolves else TERMS[:2]


def place(problem: Problem, first: Array, second: Array) -> jax.Array:
    """The grid of two sets of coordinates in units of the rectangle's sides, ``[N, 2]``."""
    unit = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)
    low, high = np.array(problem.low), np.array(problem.high)
    return jnp.asarray(low + (high - low) * unit)


def training_points(problem: Problem) -> dict[str, jax.Array]:
    """Where each term is evaluated, ``[N, 2]``: midpoints of cells, and points of the sides."""
    inside = (np.arange(INTERIOR) + 0.5) / INTERIOR
    along, ends = np.linspace(0, 1, EDGE), np.array([0.0, 1.0])
    sides = [place(problem, ends, along)]
    if not problem.evolves:
        sides.append(place(problem, along, ends))
    points = {"residual": place(problem, inside, inside), "boundary": jnp.concatenate(sides)}
    return points | ({"initial": place(problem, along, ends[:1])} if problem.evolves else {})


def misfit(problem: Problem, field: Field, term: str) -> jax.Array:
    """What should be 0 at the points of a term, ``[N]``."""
    points = training_points(problem)[term]
    if term == "residual":
        return problem.residual(field)(points)
    return field(points) - problem.exact(points)


def relative_error(problem: Problem, field: Field) -> jax.Array:
    """The relative L2 error on a grid of its own, 51 x 51."""
    along = np.linspace(0, 1, EVALUATION)
    points = place(problem, along, along)
    exact = problem.exact(points)
    error: jax.Array = jnp.linalg.norm(field(points) - exact) / jnp.linalg.norm(exact)
    return error


# --- The network ----------------------------------------------------------------------------------


class Network(nnx.Module):
    """2-32-32-1 with tanh, on coordinates between -1 and 1."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        linear = functools.partial(
            nnx.Linear, kernel_init=nnx.initializers.glorot_normal(), rngs=rngs
        )
        self.first, self.second, self.last = linear(2, 32), linear(32, 32), linear(32, 1)

    def __call__(self, points: jax.Array) -> jax.Array:
        """``[N, 2]`` to ``[N]``."""
        return self.last(jnp.tanh(self.second(jnp.tanh(self.first(points)))))[:, 0]


def field_of(problem: Problem, params: chex.ArrayTree) -> Field:
    """The network with these parameters, on the problem's own coordinates."""
    low, high = np.array(problem.low), np.array(problem.high)

    def field(points: jax.Array) -> jax.Array:
        values: jax.Array = _study.apply(Network, params, (2 * points - low - high) / (high - low))
        return values

    return field


def term_loss(problem: Problem, term: str, params: chex.ArrayTree) -> jax.Array:
    """The mean square of a term."""
    return jnp.mean(misfit(problem, field_of(problem, params), term) ** 2)


def task_losses(problem: Problem, params: chex.ArrayTree) -> jax.Array:
    """The K losses, ``[K]``."""
    return jnp.stack([term_loss(problem, term, params) for term in terms_of(problem)])


def losses_and_task_gradients(
    problem: Problem, params: chex.ArrayTree
) -> tuple[jax.Array, chex.ArrayTree]:
    """The K losses and their gradients, stacked.

    Each term has points of its own, so K gradients cost what the gradient of their sum does.
    """
    losses, grads = zip(
        *(
            jax.value_and_grad(functools.partial(term_loss, problem, term))(params)
            for term in terms_of(problem)
        ),
        strict=True,
    )
    return jnp.stack(losses), jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)


# --- Methods --------------------------------------------------------------------------------------


class BalanceState(NamedTuple):
    """The state of :func:`balance`."""

    weights: jax.Array  # [K], lambda


def anneal(gradients: jax.Array) -> jax.Array:
    r"""The weights that learning-rate annealing aims at.

    .. math:: \hat\lambda_i = \max |\nabla \ell_r| \,/\, \mathrm{mean}\, |\nabla \ell_i|

    for all terms but the residual r, which comes first and weighs 1. As the paper's Algorithm 1
    has it, over the gradients of the unweighted losses.

    Args:
      gradients: ``[K, P]``

    Returns:
      ``[K]``
    """
    magnitudes = jnp.abs(gradients)
    weights: jax.Array = jnp.max(magnitudes[0]) / jnp.mean(magnitudes, axis=1)
    return weights.at[0].set(1)


def equalize(gradients: jax.Array) -> jax.Array:
    r"""The weights under which all gradients have the same norm.

    .. math:: \hat\lambda_i = \sum_j \lVert \nabla \ell_j \rVert \,/\, \lVert \nabla \ell_i \rVert

    Args:
      gradients: ``[K, P]``

    Returns:
      ``[K]``
    """
    norms = jnp.linalg.norm(gradients, axis=1)
    weights: jax.Array = jnp.sum(norms) / norms
    return weights


def balance(
    num_tasks: int, aim: Callable[[jax.Array], jax.Array], memory: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Combines task-stacked gradients by weights that follow what ``aim`` makes of them.

    Args:
      num_tasks: K.
      aim: :func:`anneal` or :func:`equalize`.
      memory: Of the moving average, which starts at weights of 1.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`BalanceState`.
    """

    def init_fn(params: optax.Params) -> BalanceState:
        del params
        return BalanceState(jnp.ones(num_tasks))

    def update_fn(
        updates: optax.Updates, state: BalanceState, params: optax.Params = None, **_: Any
    ) -> tuple[optax.Updates, BalanceState]:
        del params
        gradients = jax.vmap(lambda tree: flatten_util.ravel_pytree(tree)[0])(updates)
        weights = optax.incremental_update(aim(gradients), state.weights, 1 - memory)
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), updates), BalanceState(
            weights
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _fixed(num_tasks: int, weight: jax.Array) -> optax.GradientTransformationExtraArgs:
    return famo_jax.weighting.ls(jnp.full(num_tasks, weight).at[0].set(1))


METHODS: dict[str, Method] = {
    "ls": Method(
        "the sum of the losses", "#999999", lambda k, _: famo_jax.weighting.ls(jnp.ones(k))
    ),
    "fixed": Method("boundary and initial losses weighted by hand", "#000000", _fixed, "weight"),
    "anneal": Method(
        "learning-rate annealing: gradients' max over mean",
        "#f0e442",
        lambda k, _: balance(k, anneal),
        aggregates=True,
    ),
    "equal-norms": Method(
        "gradients brought to equal norms",
        "#8c510a",
        lambda k, _: balance(k, equalize),
        aggregates=True,
    ),
    **{
        name: _study.METHODS[name]
        for name in (
            *("si", "frozen", "famo", "famo-no-c", "famo-one-pass", "famo-one-pass-no-c"),
            *("uw", "dwa", "mgda", "pcgrad", "cagrad", "imtl-g", "nash-mtl"),
        )
    },
}

RECORDS = 50  # of the losses and weights, over a training


class Run(NamedTuple):
    """A training run, as arrays of JAX or, on the host, of NumPy. All have leading axes there."""

    losses: Any  # [RECORDS, K]
    task_weights: Any  # [RECORDS, K], z, or None for a method that has no logits
    error: Any  # [], relative L2


def train(
    problem: Problem,
    method: Method,
    stride: jax.Array,
    learning_rate: jax.Array,
    setting: jax.Array,
    params: chex.ArrayTree,
) -> Run:
    """Trains one network by ``RECORDS * stride`` steps of Adam, its rate decaying as a cosine.

    The number of steps is traced: what trains is also what is timed.
    """

    def schedule(count: jax.Array) -> jax.Array:
        return learning_rate * (1 + jnp.cos(jnp.pi * count / (RECORDS * stride))) / 2

    num_tasks = len(terms_of(problem))
    losses_fn = functools.partial(task_losses, problem)
    links = [optax.adam(schedule), method.weighting(num_tasks, setting)]
    tx = optax.chain(*(reversed(links) if method.aggregates else links))

    def step(carry: Any) -> Any:
        params, opt_state = carry
        if method.aggregates:
            losses, grads = losses_and_task_gradients(problem, params)
        else:
            losses, grads = famo_jax.losses_and_grads(losses_fn)(params, state=opt_state)
        extra = {"losses_fn": losses_fn} if method.two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state

    def record(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array | None]]:
        params, opt_state = jax.lax.fori_loop(0, stride, lambda _, carry: step(carry), carry)
        z = famo_jax.task_weights(opt_state) if method.has_logits else None
        return (params, opt_state), (losses_fn(params), z)

    (params, _), (losses, z) = jax.lax.scan(record, (params, tx.init(params)), length=RECORDS)
    return Run(losses, z, relative_error(problem, field_of(problem, params)))


# --- The study ------------------------------------------------------------------------------------


class Lane(NamedTuple):
    """What one network is trained with."""

    learning_rate: float
    setting: float
    seed: int


Trainer = Callable[[int, Lane], Run]  # of (stride, lane); its run is on the host


def compile_training(problem: Problem, method: Method, params: chex.ArrayTree) -> Trainer:
    """Compiles a training. On a CPU one of several networks by vmap is slower to compile only.

    Args:
      problem: What is learned.
      method: How the losses become one update.
      params: The parameters of each seed.
    """
    scalar = jnp.zeros(())
    first = jax.tree.map(lambda leaf: leaf[0], params)
    jitted = jax.jit(functools.partial(train, problem, method))
    compiled = jitted.lower(scalar.astype(int), scalar, scalar, first).compile()

    def call(stride: int, lane: Lane) -> Run:
        own = jax.tree.map(lambda leaf: leaf[lane.seed], params)
        arguments = map(jnp.asarray, (stride, lane.learning_rate, lane.setting))
        run: Run = jax.tree.map(_finite, compiled(*arguments, own))
        return run

    return call


def _finite(values: jax.Array) -> Array:
    """On the host, with NaN for all that a run which diverged left behind."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def train_all(
    trainer: Trainer, stride: int, lanes: Sequence[Lane], advance: Callable[[], None]
) -> Run:
    """Trains a network for each lane, ``[lanes]``."""
    runs = []
    for lane in lanes:
        runs.append(trainer(stride, lane))
        advance()
    stacked: Run = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    return stacked


class Result(NamedTuple):
    """A method at the setting that it was given by the seeds for tuning."""

    learning_rate: float
    setting: float | None
    tuning: Array  # [settings, rates, tuning seeds], relative errors
    run: Run  # [seeds], on other seeds


def study_method(
    trainer: Trainer,
    method: Method,
    options: argparse.Namespace,
    advance: Callable[[], None],
) -> Result:
    """Trains a method at all settings on some seeds, and at the best of them on others.

    The best has the least geometric mean of the errors; a setting at which one run diverges is
    never the best.
    """
    settings = settings_of(method, options)
    rates, stride = options.learning_rate, options.steps // RECORDS
    seeds = range(options.seeds, options.seeds + options.tuning_seeds)
    grid = [Lane(*lane) for lane in itertools.product(rates, settings, seeds)]
    errors = train_all(trainer, stride, grid, advance).error
    tuning = errors.reshape(len(rates), len(settings), len(seeds)).swapaxes(0, 1)
    scores = np.log(tuning).mean(axis=-1)
    best = int(np.argmin(np.where(np.isnan(scores), np.inf, scores)))
    setting, rate = divmod(best, len(rates))
    lanes = [Lane(rates[rate], settings[setting], seed) for seed in range(options.seeds)]
    return Result(
        rates[rate],
        None if method.variants == "none" else settings[setting],
        tuning,
        train_all(trainer, stride, lanes, advance),
    )


def settings_of(method: Method, options: argparse.Namespace) -> list[float]:
    """The values that a method is tuned over, besides the learning rate."""
    values: list[float] = [0.0] if method.variants == "none" else getattr(options, method.variants)
    return values


def run_study(
    options: argparse.Namespace, progress: Progress
) -> tuple[dict[str, dict[str, Result]], dict[str, dict[str, list[float]]]]:
    """Trains every method on every problem, then times a step of each.

    Methods run beside each other on threads: one compiles while another trains.

    Returns:
      By problem and method: the results, and the quartiles of a step's time in seconds.
    """
    params = _study.init_params(Network, options.seeds + options.tuning_seeds)
    pairs = list(itertools.product(options.problems, options.methods))

    def trainings(name: str) -> int:
        settings = len(settings_of(METHODS[name], options))
        lanes: int = settings * len(options.learning_rate) * options.tuning_seeds + options.seeds
        return lanes

    rows = {
        pair: progress.add_task(" ".join(pair), total=trainings(pair[1]), start=False)
        for pair in pairs
    }

    def study(pair: tuple[str, str]) -> tuple[Trainer, Result]:
        problem, name = pair
        progress.start_task(rows[pair])
        trainer = compile_training(PROBLEMS[problem], METHODS[name], params)
        advance = functools.partial(progress.advance, rows[pair])
        return trainer, study_method(trainer, METHODS[name], options, advance)

    # The longest first, so that none is left alone at the end.
    order = sorted(pairs, key=lambda pair: -trainings(pair[1]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        studied = dict(zip(order, pool.map(study, order), strict=True))
    lane = Lane(options.learning_rate[0], 0.0, 0)
    results: dict[str, dict[str, Result]] = {}
    times: dict[str, dict[str, list[float]]] = {}
    for problem in options.problems:
        results[problem] = {name: studied[problem, name][1] for name in options.methods}
        calls = {
            name: functools.partial(studied[problem, name][0], 1, lane) for name in options.methods
        }
        seconds = _report.interleaved_seconds(calls, rounds=7)
        times[problem] = {
            name: [value / RECORDS for value in _report.quartiles(measured)]
            for name, measured in seconds.items()
        }
    return results, times


# --- The report -----------------------------------------------------------------------------------


def geometric(values: Array) -> dict[str, float]:
    """The geometric mean of ``[n]`` values, and its 95% interval by Student's t of their logs."""
    logs = np.log(values)
    low, high = _study.interval(logs)
    mean, low, high = np.exp([logs.mean(), low, high]).tolist()
    return {"mean": mean, "low": low, "high": high}


def summarize(
    problem: Problem, results: Mapping[str, Result], times: Mapping[str, list[float]]
) -> dict[str, dict[str, Any]]:
    """The figures of each method on a problem."""

    def against(name: str, other: str | None) -> dict[str, Any] | None:
        if other is None or other not in results or other == name:
            return None
        # Methods share seeds: the ratio is paired.
        return {"method": other} | geometric(results[name].run.error / results[other].run.error)

    def logit_range(run: Run) -> float | None:
        return None if run.task_weights is None else float(_ranges(run.task_weights)[:, -1].mean())

    return {
        name: {
            "description": METHODS[name].description,
            "error": geometric(result.run.error),
            "error_median": np.median(result.run.error),
            "losses_at_end": dict(
                zip(terms_of(problem), np.median(result.run.losses[:, -1], axis=0), strict=True)
            ),
            "logit_range_at_end": logit_range(result.run),
            "learning_rate": result.learning_rate,
            "variants": METHODS[name].variants,
            "setting": result.setting,
            "error_over_control": against(name, METHODS[name].control),
            "error_over_fixed": against(name, "fixed"),
            "error_by_seed": result.run.error,
            "tuning_error_by_seed": result.tuning,
            "step_seconds": dict(zip(("q1", "median", "q3"), times[name], strict=True)),
            "step_relative_to_ls": times[name][1] / times["ls"][1] if "ls" in times else None,
            "losses": np.median(result.run.losses, axis=0),
            "task_weights": None
            if result.run.task_weights is None
            else result.run.task_weights.mean(axis=0),
        }
        for name, result in results.items()
    }


def _ranges(z: Array) -> Array:
    """How far the logits are apart, from ``[..., K]`` weights: softmax keeps the differences."""
    with np.errstate(divide="ignore"):  # a weight of 0 is an infinite range
        return np.asarray(np.log(z.max(axis=-1)) - np.log(z.min(axis=-1)))


def table(problem: Problem, summary: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each method, 80 columns wide."""
    rows = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=problem.title)
    rows.add_column("method", no_wrap=True)
    headers = ["error\n(%)", "95%\nfactor", *(f"{SHORT[term]}\nloss" for term in terms_of(problem))]
    for header in (*headers, "logit\nrange", "rate", "gamma,\nweight", "step\n/ ls"):
        rows.add_column(header, justify="right", no_wrap=True)
    for name, figures in summary.items():
        error, setting = figures["error"], figures["setting"]
        drift, relative = figures["logit_range_at_end"], figures["step_relative_to_ls"]
        rows.add_row(
            name,
            f"{100 * error['mean']:.2g}",
            f"{error['high'] / error['mean']:.3g}",  # about a geometric mean it is symmetric so
            *(f"{loss:.0e}" for loss in figures["losses_at_end"].values()),
            "" if drift is None else f"{drift:.2f}",
            f"{figures['learning_rate']:g}",
            "" if setting is None else f"{setting:g}",
            "" if relative is None else f"{relative:.2f}",
        )
    return rows


def notes(summary: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> list[str]:
    """What the table leaves out."""
    lines = []
    for name, figures in summary.items():
        against = figures["error_over_control"]
        if against:
            lines.append(
                f"{name} / {against['method']}, its control: error x {against['mean']:.3g} "
                f"({against['low']:.3g}-{against['high']:.3g}), paired by seed."
            )
    # A better setting may lie beyond the end of a list. Below a gamma of 0 there is none.
    for name, figures in summary.items():
        chosen = [("learning rate", figures["learning_rate"], options.learning_rate)]
        if figures["setting"]:
            tunes = figures["variants"]
            chosen.append((tunes, figures["setting"], getattr(options, tunes)))
        edges = [
            f"{hyperparameter} {value:g}"
            for hyperparameter, value, values in chosen
            if len(values) > 1 and value in (min(values), max(values))
        ]
        if edges:
            lines.append(f"{name}: at the end of its list: {', '.join(edges)}.")
    return lines


TERM_COLOURS = dict(zip(TERMS, ("#0072b2", "#d55e00", "#009e73"), strict=True))


def draw(summaries: Mapping[str, Mapping[str, Mapping[str, Any]]], steps: int, path: Path) -> None:
    """A row for each problem: its solution, losses, task weights, and every method's errors."""
    with _study.style():
        count = len(summaries)
        methods = max(len(summary) for summary in summaries.values())
        bottom = 0.9 + 0.16 * methods
        figure = Figure(figsize=(8.5, 2.1 * count + bottom), dpi=200, layout="constrained")
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.1 * count, bottom))
        upper, lower = parts[:, 0]
        errors = lower.subplots(1, count, squeeze=False, sharey=True)[0]
        rows = upper.subfigures(count, 1, squeeze=False)[:, 0]
        for name, row, axes in zip(summaries, rows, errors, strict=True):
            problem, summary = PROBLEMS[name], summaries[name]
            row.suptitle(problem.title, fontsize=9)
            panels = row.subplots(1, 3)
            _draw_solution(panels[0], problem)
            _draw_losses(panels[1], problem, summary, steps)
            _draw_task_weights(panels[2], problem, summary, steps)
            _draw_errors(axes, summary)
            axes.set_title(name)
        lower.supxlabel(
            "relative L2 error (%): geometric mean, its 95% interval, each seed", fontsize=8
        )
        figure.savefig(path)


def _draw_solution(axes: Axes, problem: Problem) -> None:
    along = np.linspace(0, 1, EVALUATION)
    values = np.asarray(problem.exact(place(problem, along, along)))
    image = axes.imshow(
        values.reshape(EVALUATION, EVALUATION).T,
        origin="lower",
        extent=(problem.low[0], problem.high[0], problem.low[1], problem.high[1]),
        aspect="auto",
        cmap="cividis",
    )
    axes.figure.colorbar(image, ax=axes)
    axes.set(xlabel=problem.axes[0], ylabel=problem.axes[1], title="solution u")


def _record_steps(steps: int) -> Array:
    return steps // RECORDS * np.arange(1, RECORDS + 1)


SHOWN = {"ls": ":", "fixed": "--", "famo-no-c": "-"}  # line styles of the losses


def _draw_losses(
    axes: Axes, problem: Problem, summary: Mapping[str, Mapping[str, Any]], steps: int
) -> None:
    """A colour for each term, a line style for each method."""
    for name, style in SHOWN.items():
        if name not in summary:
            continue
        for index, term in enumerate(terms_of(problem)):
            axes.plot(
                _record_steps(steps),
                summary[name]["losses"][:, index],
                style,
                color=TERM_COLOURS[term],
            )
        axes.plot([], [], style, color="black", label=name)
    axes.set(xlabel="step", title="losses, medians over seeds", yscale="log")
    low, high = axes.get_ylim()
    axes.set_ylim(top=high * (high / low) ** 0.2)  # room for the legend
    axes.legend(
        loc="upper center", ncols=len(SHOWN), frameon=False, handlelength=1.6, columnspacing=1
    )


def _draw_task_weights(
    axes: Axes, problem: Problem, summary: Mapping[str, Mapping[str, Any]], steps: int
) -> None:
    names = [name for name in ("famo-no-c", "famo") if name in summary]
    axes.set(xlabel="step", ylabel="task weights z", ylim=(0, 1))
    if not names:
        axes.set_title("no FAMO was run")
        return
    for index, term in enumerate(terms_of(problem)):
        axes.plot(
            _record_steps(steps),
            summary[names[0]]["task_weights"][:, index],
            color=TERM_COLOURS[term],
            label=term,
        )
    axes.set_title(f"{names[0]}, gamma {summary[names[0]]['setting']:g}")
    axes.legend(loc="upper center", ncols=3, frameon=False, handlelength=1, columnspacing=1)


def _draw_errors(axes: Axes, summary: Mapping[str, Mapping[str, Any]]) -> None:
    for row, (name, figures) in enumerate(summary.items()):
        error, colour = figures["error"], METHODS[name].colour
        seeds = 100 * figures["error_by_seed"]
        axes.plot(seeds, np.full(len(seeds), row), ".", color="black", markersize=3, zorder=3)
        axes.plot(100 * error["mean"], row, "D", color=colour, markersize=6)
        if np.isfinite([error["low"], error["high"]]).all():
            interval = 100 * np.array([error["low"], error["high"]])
            axes.plot(interval, [row, row], color=colour, linewidth=4, alpha=0.6)
    axes.set_yticks(range(len(summary)), list(summary))
    axes.set_ylim(len(summary) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda error, _: f"{error:g}")
    axes.grid(axis="x", alpha=0.3)


# --- The command ----------------------------------------------------------------------------------

FULL = {
    "problems": list(PROBLEMS),
    "methods": [name for name in METHODS if METHODS[name].colour != OTHER] + ["uw"],
    "steps": 1500,
    "seeds": 10,
    "tuning_seeds": 2,
    "learning_rate": [3e-3, 1e-2, 3e-2],
    "gamma": [0.0, 1e-3],
    "weight": [1.0, 10.0, 100.0, 1000.0],
}
QUICK = FULL | {
    "problems": ["burgers", "helmholtz"],
    "methods": ["ls", "equal-norms", "famo-no-c"],
    "steps": 100,
    "seeds": 2,
    "tuning_seeds": 1,
    "learning_rate": [1e-2],
    "gamma": [0.0],
    "weight": [10.0, 100.0],
}


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    described = "\n".join(f"  {name:20}{method.description}" for name, method in METHODS.items())
    options = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.pinn",
        description="Multi-task methods on the terms of physics-informed networks.",
        epilog=f"methods (c is FAMO's normaliser):\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(option: str, kind: Callable[[str], Any], what: str, metavar: str, **more: Any) -> None:
        options.add_argument(option, type=kind, metavar=metavar, help=what, **more)

    problem, method = _arguments.one_of(list(PROBLEMS)), _arguments.one_of(list(METHODS))
    add("--problems", problem, f"what to solve ({' '.join(PROBLEMS)})", "NAME", nargs="+")
    add("--methods", method, "what to compare (all that are not grey)", "NAME", nargs="+")
    add("--steps", _arguments.positive_int, f"training steps, a multiple of {RECORDS} (1500)", "N")
    add("--seeds", _arguments.positive_int, "seeds that are reported (10)", "N")
    add("--tuning-seeds", _arguments.positive_int, "others, to choose settings on (2)", "N")
    rate, decay = _arguments.positive_float, _arguments.non_negative_float
    add("--learning-rate", rate, "of Adam, to choose from (3e-3 1e-2 3e-2)", "RATE", nargs="+")
    add("--gamma", decay, "decay of FAMO's logits, to choose from (0 1e-3)", "GAMMA", nargs="+")
    add("--weight", rate, "of all terms but the residual, for fixed (1 ... 1000)", "W", nargs="+")
    add("--out", Path, "output folder (%(default)s)", "FOLDER", default=Path("results/pinn"))
    options.add_argument("--quick", action="store_true", help="less of all that is not given")
    return options


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    for name, default in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for option in ("problems", "methods", "learning_rate", "gamma", "weight"):
        flag = "--" + option.replace("_", "-")
        _arguments.check_distinct(options_parser, flag, getattr(options, option))
    if options.steps % RECORDS:
        options_parser.error(
            f"argument --steps: expected a multiple of {RECORDS}, got {options.steps}"
        )
    _arguments.output_folder(options_parser, "--out", options.out, "pinn.png", "pinn.json")
    options.problems = [name for name in PROBLEMS if name in options.problems]
    options.methods = [name for name in METHODS if name in options.methods]
    return options


@_arguments.command
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, prints its tables, and writes ``pinn.png`` and ``pinn.json``."""
    options = parse(arguments)
    start = time.perf_counter()
    console = Console()
    columns = TextColumn("{task.description:30}"), BarColumn(bar_width=20)
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        results, times = run_study(options, progress)
    summaries = {
        problem: summarize(PROBLEMS[problem], results[problem], times[problem])
        for problem in results
    }
    for problem, summary in summaries.items():
        console.print(table(PROBLEMS[problem], summary))
        for line in notes(summary, options):
            console.print(line, highlight=False)
        console.print()
    console.print(
        f"Error: relative L2, geometric mean over {options.seeds} seeds, and the factor by which "
        "its 95% interval extends either way; "
        f"settings chosen on {options.tuning_seeds} others. Losses at the end: medians.",
        highlight=False,
    )
    figure_path, json_path = options.out / "pinn.png", options.out / "pinn.json"
    draw(summaries, options.steps, figure_path)
    seconds = time.perf_counter() - start
    _report.write_json(
        json_path,
        {
            "settings": {**vars(options), "out": str(options.out)},
            "environment": _report.environment(),
            "points_along_an_axis": {
                "residual": INTERIOR,
                "boundary and initial": EDGE,
                "error": EVALUATION,
            },
            "axes": {
                "error_by_seed": "seeds",
                "tuning_error_by_seed": "settings, learning rates, tuning seeds",
                "losses": "records, terms: medians over seeds",
                "task_weights": "records, terms: means over seeds",
            },
            "record_steps": _record_steps(options.steps),
            "problems": {
                problem: {"title": PROBLEMS[problem].title, "terms": terms_of(PROBLEMS[problem])}
                | {"methods": summary}
                for problem, summary in summaries.items()
            },
            "seconds": seconds,
        },
    )
    console.print(f"{figure_path} and {json_path}, {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
