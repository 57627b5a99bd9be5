r"""The paper's toy problem, Figures 1 and 2: ``python -m famo_jax.experiments.toy``.

Two losses of two parameters, of which the mean has a point where Adam gets stuck. With
:math:`(u)_+ = \max(u, 0)`, :math:`c_1 = (\tanh \tfrac12 x_2)_+` and
:math:`c_2 = (-\tanh \tfrac12 x_2)_+`

.. math::
    L_1 &= 0.1 (c_1 f_1 + c_2 q_1), \quad
    f_1 = \log \max(|\tfrac12 (-x_1 - 7) - \tanh(-x_2)|, 5 \cdot 10^{-6}) + 6, \quad
    q_1 = \tfrac1{10} ((x_1 - 7)^2 + \tfrac1{10} (x_2 + 8)^2) - 20 \\
    L_2 &= c_1 f_2 + c_2 q_2, \quad
    f_2 = \log \max(|\tfrac12 (-x_1 + 3) + \tanh(-x_2) + 2|, 5 \cdot 10^{-6}) + 6, \quad
    q_2 = \tfrac1{10} ((x_1 + 7)^2 + \tfrac1{10} (x_2 + 8)^2) - 20

These are those of the official code (github.com/Cranial-XIX/FAMO, ``experiments/toy``), and so are
its settings: Adam at 1e-3, 50,000 steps, no decay of the logits, lower bounds -2.1 and -21. The
paper's Appendix D prints :math:`- \tanh(-x_2)` in :math:`f_2`: ``--sign minus``. That changes what
happens from (9, 9): the ravine of :math:`L_2` then ends at (9, 0), where FAMO is held up so long
that it is not at the Pareto front after 50,000 steps. From the other four it reaches the front
either way. So it is the code's sign that gives Figure 1.

In the official code the logits step at the beginning of a step, by the change from the losses
before: here ``famo-one-pass``. With the same losses at every step that is two-pass (``famo``) up to
rounding. ``famo-chain`` is one-pass as the last link of an Optax chain, one step later. All of an
official method that Adam does not cancel is here too: the official PCGrad and CAGrad clip the norm
of what they return to 1. Not here: its MGDA stays 0.001 away from weights of 0 and 1, and its
Nash-MTL has a length that follows the gradients'.

The Pareto front lies where :math:`x_2 < 0`. There :math:`L_i` are multiples of :math:`c_2 q_i`, and
where a convex combination of these is stationary
:math:`\tfrac1{50} (x_2 + 8) \sinh(-x_2) = \tfrac1{10} (49 - x_1^2 + \tfrac1{10} (x_2 + 8)^2) - 20`
with :math:`|x_1| \le 7`. A search over a grid of the whole plane confirms it in every run.
"""

import argparse
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import famo_jax
from famo_jax.experiments import _arguments, _report

Array = npt.NDArray[Any]

# --- The problem ----------------------------------------------------------------------------------

K = 2
MIN_LOSSES = (-2.1, -21.0)
CLAMP = 5e-6

STARTS = {
    "official": [(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)],
    "paper": [(-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0)],  # section 5.1
}
SIGNS = {"plus": 1.0, "minus": -1.0}


def task_losses(params: jax.Array, sign: float = 1.0) -> jax.Array:
    """The two losses.

    Args:
      params: ``[2]``, x.
      sign: Of tanh(-x2) in f2: 1 as in the official code, -1 as in the paper's print.

    Returns:
      ``[2]``
    """
    x1, x2 = params

    def clamped_log(argument: jax.Array) -> jax.Array:
        value: jax.Array = jnp.log(jnp.maximum(jnp.abs(argument), CLAMP)) + 6
        return value

    def quadratic(centre: float) -> jax.Array:
        value: jax.Array = ((x1 - centre) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
        return value

    f1 = clamped_log(0.5 * (-x1 - 7) - jnp.tanh(-x2))
    f2 = clamped_log(0.5 * (-x1 + 3) + sign * jnp.tanh(-x2) + 2)
    # Where a gate opens both have a slope, as PyTorch's clamp has. One of the starts is there.
    gate = jnp.tanh(0.5 * x2)
    c1, c2 = jnp.where(gate >= 0, gate, 0), jnp.where(gate <= 0, -gate, 0)
    losses: jax.Array = jnp.stack(
        [0.1 * (c1 * f1 + c2 * quadratic(7)), c1 * f2 + c2 * quadratic(-7)]
    )
    return losses


def pareto_set(points: int) -> Array:
    """Points of the plane from the least L2 to the least L1, none of which dominates another.

    Returns:
      ``[points, 2]``, float64.
    """
    x1 = np.linspace(-7, 7, points)
    x2 = np.full(points, -8.0)
    for _ in range(60):  # a contraction by less than a half
        x2 = -8 + 50 * ((49 - x1**2 + 0.1 * (x2 + 8) ** 2) / 10 - 20) / np.sinh(-x2)
    return np.stack([x1, x2], axis=-1)


def losses_of(points: npt.ArrayLike, sign: float = 1.0) -> Array:
    """The losses at points of the plane, ``[..., 2] -> [..., 2]``, on the host."""
    array = np.asarray(points, np.float32)
    losses: Array = np.asarray(_losses_of(array.reshape(-1, 2), sign), np.float64)
    return losses.reshape(array.shape)


_losses_of = jax.jit(jax.vmap(task_losses, in_axes=(0, None)))


def search_front(points: int, sign: float = 1.0) -> Array:
    """The losses that no others dominate on a square grid over [-10, 10] x [-10, 10].

    Args:
      points: Of each side of the grid.
      sign: As for :func:`task_losses`.

    Returns:
      ``[n, 2]``, sorted.
    """
    side = np.linspace(-10, 10, points)
    losses = losses_of(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), sign)
    return non_dominated(losses)


def non_dominated(losses: Array) -> Array:
    """Those of ``[n, 2]`` losses that no other equals or betters in both, sorted."""
    ordered = losses[np.lexsort((losses[:, 1], losses[:, 0]))]
    best = np.minimum.accumulate(ordered[:, 1])
    kept: Array = ordered[np.concatenate([[True], ordered[1:, 1] < best[:-1]])]
    return kept


def distance_to(front: Array, losses: Array) -> Array:
    """How far losses are from the nearest of the front, where that spans 1 in both directions.

    Args:
      front: ``[n, 2]``
      losses: ``[..., 2]``

    Returns:
      ``[...]``
    """
    span = np.ptp(front, axis=0)
    flat = losses.reshape(-1, 1, 2)
    distances = [np.linalg.norm((each - front) / span, axis=-1).min() for each in flat]
    return np.reshape(distances, losses.shape[:-1])


# --- Methods --------------------------------------------------------------------------------------


class Method(NamedTuple):
    """How two losses become one update."""

    description: str
    make: Callable[[], optax.GradientTransformationExtraArgs]  # Adam and the method, chained
    order: Literal["two-pass", "one-pass", "lag-free"] = "one-pass"
    takes_logs: bool = False  # it combines the gradients of the losses' logarithms
    official: str | None = None  # what the official code calls it


def _adam() -> optax.GradientTransformation:
    return optax.adam(1e-3)


def _famo(learning_rate: float = 0.025) -> optax.GradientTransformationExtraArgs:
    famo = famo_jax.famo(
        K, learning_rate=learning_rate, weight_decay=0.0, min_losses=jnp.array(MIN_LOSSES)
    )
    return optax.chain(_adam(), famo)


C = 0.4  # of CAGrad

METHODS: dict[str, Method] = {
    "adam": Method(
        "Adam on the mean", lambda: optax.chain(_adam(), famo_jax.weighting.ls()), official="ls"
    ),
    "famo": Method("FAMO, two-pass", _famo, "two-pass", official="famo"),
    "famo-one-pass": Method("FAMO, one-pass without lag", _famo, "lag-free", official="famo"),
    "famo-chain": Method("FAMO, one-pass in a chain", _famo, official="famo"),
    "frozen": Method("FAMO, logits held at 0", lambda: _famo(0.0)),
    "si": Method(
        "SI", lambda: optax.chain(_adam(), famo_jax.weighting.si(min_losses=jnp.array(MIN_LOSSES)))
    ),
    "mgda": Method(
        "MGDA", lambda: optax.chain(famo_jax.aggregation.mgda(), _adam()), official="mgda"
    ),
    "log-mgda": Method(
        "MGDA on log losses (eq. 6)",
        lambda: optax.chain(famo_jax.aggregation.mgda(), _adam()),
        takes_logs=True,
    ),
    "pcgrad": Method(
        "PCGrad",
        # The key is without effect where there are two tasks.
        lambda: optax.chain(
            famo_jax.aggregation.pcgrad(key=0),
            optax.scale(K),
            optax.clip_by_global_norm(1.0),
            _adam(),
        ),
        official="pcgrad",
    ),
    "cagrad": Method(
        "CAGrad (c = 0.4)",
        lambda: optax.chain(
            famo_jax.aggregation.cagrad(c=C),
            optax.scale(K / (1 + C**2)),
            optax.clip_by_global_norm(1.0),
            _adam(),
        ),
        official="cagrad",
    ),
    "imtl-g": Method(
        "IMTL-G", lambda: optax.chain(famo_jax.aggregation.imtl_g(), _adam()), official="imtl"
    ),
    "nash-mtl": Method(
        "Nash-MTL",
        lambda: optax.chain(famo_jax.aggregation.nash_mtl(), _adam()),
        official="nashmtl",
    ),
}


def training_step(
    method: Method, losses_fn: Callable[[jax.Array], jax.Array]
) -> tuple[Callable[[jax.Array], Any], Callable[[Any, None], tuple[Any, None]]]:
    """The training step of any method.

    Returns:
      ``params -> carry`` and ``(carry, None) -> (carry, None)``, for :func:`jax.lax.scan`. The
      carry is ``(params, opt_state)``.
    """
    tx = method.make()
    logits_optimizer = famo_jax.logits_optimizer(0.025, 0.0)
    adam = _adam()

    def objectives(params: jax.Array) -> jax.Array:
        losses = losses_fn(params)
        return jnp.log(losses - jnp.array(MIN_LOSSES)) if method.takes_logs else losses

    def init(params: jax.Array) -> Any:
        return params, tx.init(params)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, opt_state = carry
        losses, grads = famo_jax.losses_and_grads(objectives)(params, state=opt_state)
        extra = {"losses_fn": losses_fn} if method.order == "two-pass" else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return (optax.apply_updates(params, updates), opt_state), None

    def lag_free_step(carry: Any, _: None) -> tuple[Any, None]:
        params, (adam_state, state) = carry
        state = famo_jax.update_logits(state, state.losses, losses_fn(params), logits_optimizer)
        _, grads = famo_jax.losses_and_grads(losses_fn)(params, state=state)
        updates, adam_state = adam.update(grads, adam_state, params)
        return (optax.apply_updates(params, updates), (adam_state, state)), None

    return init, lag_free_step if method.order == "lag-free" else step


class Run(NamedTuple):
    """Trajectories, thinned: one point every ``every`` steps, from step 0."""

    params: chex.Array  # [starts, points, 2]
    task_weights: chex.Array | None  # [starts, points, 2], z in the state, for a method with logits
    end: chex.Array  # [starts, 2], after the last step


def compile_run(
    method: Method, starts: jax.Array, steps: int, every: int, sign: float = 1.0
) -> Callable[[jax.Array], Run]:
    """Compiles the trajectories of a method from all starts, ``[starts, 2]``, as one call."""
    init, step = training_step(method, functools.partial(task_losses, sign=sign))

    def stretch(carry: Any, _: None) -> tuple[Any, Any]:
        params, opt_state = carry
        z = famo_jax.task_weights(opt_state) if method.official == "famo" else None
        # What is not kept is not stored either. To store every step takes as long as the steps.
        carry, _ = jax.lax.scan(step, carry, None, length=every)
        return carry, (params, z)

    def run(start: jax.Array) -> Run:
        carry, (params, z) = jax.lax.scan(stretch, init(start), None, length=steps // every)
        (end, _), _ = jax.lax.scan(step, carry, None, length=steps % every)
        return Run(params, z, end)

    compiled: Callable[[jax.Array], Run] = jax.jit(jax.vmap(run)).lower(starts).compile()
    return compiled


# --- The study ------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A method's trajectories from all starts."""

    params: Array  # [starts, points, 2]
    losses: Array  # [starts, points, 2]
    task_weights: Array | None  # [starts, points, 2]
    end: Array  # [starts, 2]
    end_losses: Array  # [starts, 2]
    nudged: Array  # [starts, points, 2], from starts that are NUDGE away
    nudged_end_losses: Array  # [starts, 2]
    compile_seconds: float
    seconds: list[float]  # of each run


NUDGE = 1e-6  # in x1: the distance of neighbouring float32 numbers at 9
RUNS = 3  # whose median is the running time; the second is the nudged one
POINTS = 500  # kept of a trajectory


def thinning(steps: int) -> int:
    """How many steps lie between two points that are kept."""
    return max(1, steps // POINTS)


def study(name: str, starts: Array, steps: int, sign: float = 1.0) -> Result:
    """Compiles and runs one method, and takes the time of both."""
    start_points = jnp.asarray(starts, jnp.float32)
    nudge = jnp.array([NUDGE, 0.0])
    begin = time.perf_counter()
    call = compile_run(METHODS[name], start_points, steps, thinning(steps), sign)
    compile_seconds = time.perf_counter() - begin
    runs, seconds = [], []
    for index in range(RUNS):
        points = start_points + nudge if index == 1 else start_points
        begin = time.perf_counter()
        runs.append(jax.block_until_ready(call(points)))
        seconds.append(time.perf_counter() - begin)
    run, nudged = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run) for run in runs[:2])
    return Result(
        params=run.params,
        losses=losses_of(run.params, sign),
        task_weights=run.task_weights,
        end=run.end,
        end_losses=losses_of(run.end, sign),
        nudged=nudged.params,
        nudged_end_losses=losses_of(nudged.end, sign),
        compile_seconds=compile_seconds,
        seconds=seconds,
    )


# --- Other trajectories ---------------------------------------------------------------------------

PARTED = 1e-3


class Reference(NamedTuple):
    """Trajectories computed elsewhere, from the same starts."""

    params: Array  # [starts, points, 2], every 100 steps
    end_losses: Array  # [starts, 2], after as many steps


REFERENCE_EVERY = 100


def load_reference(path: Path) -> dict[str, Reference]:
    """The official code's trajectories, by its names of the methods.

    Args:
      path: An npz file with ``starts`` (5, 2) and, for each method, ``METHOD/trajectory``
        (5, points, 2) and ``METHOD/final_losses`` (5, 2).

    Raises:
      ValueError: If it holds something else.
    """
    try:
        with np.load(path) as arrays:
            if not np.array_equal(arrays["starts"], STARTS["official"]):
                raise ValueError("its starts are not the official ones")
            names = [key.split("/")[0] for key in arrays if key.endswith("/trajectory")]
            return {
                name: Reference(
                    arrays[f"{name}/trajectory"].astype(np.float64),
                    arrays[f"{name}/final_losses"].astype(np.float64),
                )
                for name in names
            }
    except (OSError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def apart(losses: Array, others: Array, front: Array) -> Array:
    """The distance of losses where the front spans 1 in both directions, ``[..., 2] -> [...]``."""
    distance: Array = np.linalg.norm((losses - others) / np.ptp(front, axis=0), axis=-1)
    return distance


def deviation(params: Array, others: Array) -> Array:
    """The distance of two trajectories over that from the origin, which counts as 1 at least.

    Args:
      params: ``[..., 2]``
      others: ``[..., 2]``

    Returns:
      ``[...]``
    """
    distance: Array = np.linalg.norm(params - others, axis=-1)
    distance /= np.maximum(np.linalg.norm(others, axis=-1), 1)
    return distance


def parting(params: Array, others: Array, every: int) -> list[int | None]:
    """The first step kept at which two trajectories are more than ``PARTED`` apart.

    Args:
      params: ``[starts, points, 2]``, one point every ``every`` steps.
      others: Likewise.
      every: How many steps lie between two points.

    Returns:
      One for each start, None where they stay together.
    """
    parted = deviation(params, others) > PARTED
    return [int(np.argmax(each)) * every if each.any() else None for each in parted]


def against(result: Result, reference: Reference, steps: int, front: Array) -> dict[str, Any]:
    """How closely a method's trajectories agree with the reference."""
    every = thinning(steps)
    common = np.lcm(every, REFERENCE_EVERY)
    own, other = (
        result.params[:, :: common // every],
        reference.params[:, :: common // REFERENCE_EVERY],
    )
    points = min(own.shape[1], other.shape[1])
    own, other = own[:, :points], other[:, :points]
    whole = steps == reference.params.shape[1] * REFERENCE_EVERY
    return {
        "compared_steps": int((points - 1) * common),
        "parts_at_step": parting(own, other, int(common)),
        "largest_deviation": deviation(own, other).max(axis=1),
        "end_losses": reference.end_losses if whole else None,
        "end_losses_apart": apart(result.end_losses, reference.end_losses, front)
        if whole
        else None,
        "end_distance": distance_to(front, reference.end_losses) if whole else None,
    }


# --- The report -----------------------------------------------------------------------------------


def summarize(
    results: Mapping[str, Result],
    reference: Mapping[str, Reference],
    steps: int,
    front: Array,
) -> dict[str, dict[str, Any]]:
    """The figures of each method."""
    adam = np.median(results["adam"].seconds)
    summary = {}
    for name, result in results.items():
        method = METHODS[name]
        official = reference.get(method.official or "")
        thin = max(1, result.params.shape[1] // 100)
        summary[name] = {
            "description": method.description,
            "distance": distance_to(front, result.end_losses),
            "end": result.end,
            "end_losses": result.end_losses,
            "compile_seconds": result.compile_seconds,
            "seconds": float(np.median(result.seconds)),
            "seconds_of_runs": result.seconds,
            "seconds_over_adam": float(np.median(result.seconds) / adam),
            "nudged_distance": distance_to(front, result.nudged_end_losses),
            "nudged_parts_at_step": parting(result.params, result.nudged, thinning(steps)),
            "nudged_end_losses_apart": apart(result.end_losses, result.nudged_end_losses, front),
            "official": official and against(result, official, steps, front),
            "trajectory_every": thinning(steps) * thin,
            "params": result.params[:, ::thin],
            "losses": result.losses[:, ::thin],
            "task_weights": None if result.task_weights is None else result.task_weights[:, ::thin],
        }
    return summary


def _named(start: Sequence[float]) -> str:
    return f"({start[0]:g}, {start[1]:g})"


def table(summary: Mapping[str, Mapping[str, Any]], starts: Array) -> Table:
    """A row for each method, 80 columns wide."""
    rows = _by_start("distance of the end to the Pareto front, and time", starts)
    for column in rows.columns[1:]:
        column.header = str(column.header).replace(" ", "\n")
    for header in ("compile\n(s)", "run\n(s)", "run\n/ adam"):
        rows.add_column(header, justify="right", no_wrap=True)
    for name, figures in summary.items():
        rows.add_row(
            name,
            *(f"{distance:.4f}" for distance in figures["distance"]),
            f"{figures['compile_seconds']:.2f}",
            f"{figures['seconds']:.3f}",
            f"{figures['seconds_over_adam']:.1f}",
        )
    return rows


def agreement(summary: Mapping[str, Mapping[str, Any]], starts: Array) -> list[Table]:
    """How closely trajectories agree with the official code's and with our own, nudged ones."""
    parting = _by_start(f"hundreds of steps until {PARTED:g} apart: official/nudged", starts)
    ends = _by_start("distance of the ends: official/nudged", starts)
    for name, figures in summary.items():
        official = figures["official"]
        if official:
            both = zip(official["parts_at_step"], figures["nudged_parts_at_step"], strict=True)
            parting.add_row(name, *(f"{_hundreds(a)}/{_hundreds(b)}" for a, b in both))
        if official and official["end_losses_apart"] is not None:
            both = zip(
                official["end_losses_apart"], figures["nudged_end_losses_apart"], strict=True
            )
            ends.add_row(name, *(f"{a:.3f}/{b:.3f}" for a, b in both))
    return [rows for rows in (parting, ends) if rows.row_count]


def _by_start(title: str, starts: Array) -> Table:
    rows = Table(
        title=title, title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    rows.add_column("method", no_wrap=True)
    for start in starts:
        rows.add_column(_named(start), justify="right", no_wrap=True)
    return rows


def _hundreds(step: int | None) -> str:
    return "-" if step is None else f"{step / 100:.0f}"


# One for each start: colours that stay apart for the colour-blind.
COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9")
MAX_STARTS = len(COLOURS)
FRONT = "0.55"


def draw(
    results: Mapping[str, Result],
    reference: Mapping[str, Reference],
    starts: Array,
    steps: int,
    sign: float,
    path: Path,
) -> None:
    """The landscapes, the running times, and each method's trajectories in loss space."""
    rows = -(-len(results) // 4)
    # As wide as a README shows it, at 100 pixels an inch: so 8 points are 8 points there.
    with rc_context({"font.size": 8, "axes.titlesize": 8, "lines.linewidth": 1.0}):
        figure = Figure(figsize=(8.5, 2.6 + 2.2 * rows), dpi=200, layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[2.6, 2.2 * rows])
        top, below = parts
        *landscapes, times = top.subplots(1, 4, width_ratios=[1, 1, 1, 0.8])
        _draw_landscapes(landscapes, results, starts, sign)
        _draw_times(times, results)
        top.legend(
            *landscapes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=4,
            frameon=False,
        )
        panels = below.subplots(rows, 4, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, result) in zip(panels, results.items(), strict=False):
            _draw_losses(axes, name, result, sign)
            official = reference.get(METHODS[name].official or "")
            if official:
                _draw_official(axes, official.params[:, : steps // REFERENCE_EVERY + 1], sign)
        for axes in panels[len(results) :]:
            axes.set_axis_off()
        below.supxlabel("$L_1$", fontsize=8)
        below.supylabel("$L_2$", fontsize=8)
        below.legend(
            handles=_marks(bool(reference)), loc="outside upper center", ncols=5, frameon=False
        )
        figure.savefig(path)


def _draw_landscapes(
    panels: Sequence[Axes], results: Mapping[str, Result], starts: Array, sign: float
) -> None:
    side = np.linspace(-10, 10, 201)
    losses = losses_of(np.stack(np.meshgrid(side, side), axis=-1), sign)
    fields = (losses.mean(axis=-1), losses[..., 0], losses[..., 1])
    titles = ("$L_0$, the mean", "$L_1$", "$L_2$")
    for axes, field, title in zip(panels, fields, titles, strict=True):
        darkest = field.min() - 0.4 * np.ptp(field)  # so that the paths can be seen
        filled = axes.contourf(side, side, field, levels=20, cmap="gray", vmin=darkest)
        axes.figure.colorbar(filled, ax=axes, location="bottom", ticks=MaxNLocator(4))
        axes.plot(*pareto_set(201).T, color="#f0e442", linewidth=2.5, label="Pareto set")
        axes.plot(*starts.T, "o", color="black", markersize=3, label="starts")
        axes.set(title=title, xlabel="$x_1$", aspect="equal")
    panels[0].set_ylabel("$x_2$")
    for name, style in (("adam", ":"), ("famo", "-")):
        if name in results:
            for params, colour in zip(results[name].params, COLOURS, strict=False):
                panels[0].plot(*params.T, style, color=colour, linewidth=1.4)
            panels[0].plot([], [], style, color="black", label=f"{name}'s paths")
    panels[0].set(xlim=(-10, 10), ylim=(-10, 10))


def _draw_losses(axes: Axes, name: str, result: Result, sign: float) -> None:
    axes.plot(*losses_of(pareto_set(201), sign).T, color=FRONT, linewidth=4, zorder=1)
    for losses, end, colour in zip(result.losses, result.end_losses, COLOURS, strict=False):
        axes.plot(*np.vstack([losses, end]).T, color=colour, zorder=3)
        axes.plot(*losses[0], "o", color=colour, markersize=4, zorder=5)
        axes.plot(*end, "*", color=colour, markeredgecolor="black", markeredgewidth=0.4, zorder=6)
    axes.set_title(METHODS[name].description)


def _draw_official(axes: Axes, params: Array, sign: float) -> None:
    for each in params:
        dots = losses_of(each[:: max(1, len(each) // 100)], sign)
        axes.plot(*dots.T, ".", color="black", markersize=1.5, zorder=4)


def _marks(has_reference: bool) -> list[Line2D]:
    """What the panels of :func:`_draw_losses` show, for their legend."""
    marks = [
        Line2D([], [], color=FRONT, linewidth=4, label="Pareto front"),
        Line2D([], [], color="black", label="path"),
        Line2D([], [], color="black", linestyle="", marker="o", markersize=4, label="start"),
        Line2D([], [], color="black", linestyle="", marker="*", label="end"),
    ]
    if has_reference:
        marks.append(
            Line2D(
                [], [], color="black", linestyle="", marker=".", markersize=2, label="official code"
            )
        )
    return marks


def _draw_times(axes: Axes, results: Mapping[str, Result]) -> None:
    seconds = [float(np.median(result.seconds)) for result in results.values()]
    axes.plot(seconds, range(len(seconds)), "o", color="black", markersize=3)
    for row, value in enumerate(seconds):
        axes.annotate(f"{value:.2g}", (value, row), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(seconds)), list(results))
    axes.set_xscale("log")
    axes.set_xlim(right=12 * max(seconds))
    axes.invert_yaxis()
    axes.set(title="running time", xlabel="seconds, all starts")


# --- The command ----------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    described = "\n".join(f"  {name:16}{method.description}" for name, method in METHODS.items())
    options = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.toy",
        description="The FAMO paper's toy problem.",
        epilog=f"methods:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("--steps", type=_arguments.positive_int, metavar="N", help="of each trajectory (50000)")
    add(
        "--starts",
        nargs="+",
        default=["official"],
        metavar="START",
        help=f"{' or '.join(STARTS)}, or coordinates x1 x2 x1 x2 ... (official)",
    )
    add(
        "--methods",
        nargs="+",
        type=_arguments.one_of(list(METHODS)),
        default=list(METHODS),
        metavar="NAME",
        help="what to compare; adam, the baseline of the times, is always run (all)",
    )
    add(
        "--sign",
        choices=list(SIGNS),
        default="plus",
        help="of tanh(-x2) in f2: plus as in the official code, minus as in the paper (plus)",
    )
    add(
        "--reference",
        type=Path,
        metavar="FILE",
        help="trajectories of the official code to compare with (tests/data/toy_trajectories.npz)",
    )
    add("--out", type=Path, default=Path("results/toy"), help="output folder (%(default)s)")
    add("--quick", action="store_true", help="1000 steps where not given")
    return options


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    _arguments.check_distinct(options_parser, "--methods", options.methods)
    options.methods = [name for name in METHODS if name in {"adam", *options.methods}]
    options.steps = options.steps or (1000 if options.quick else 50_000)
    options.points = _starts(options_parser, options.starts)
    options.trajectories = {}
    if options.reference:
        if options.starts != ["official"] or options.sign != "plus":
            options_parser.error(
                "argument --reference: expected the official starts and sign, whose trajectories "
                "it holds"
            )
        try:
            options.trajectories = load_reference(options.reference)
        except ValueError as error:
            options_parser.error(
                f"argument --reference: expected trajectories of the official code, got "
                f"{options.reference} ({error})"
            )
    _arguments.output_folder(options_parser, "--out", options.out, "toy.png", "toy.json")
    return options


def _starts(options_parser: argparse.ArgumentParser, words: Sequence[str]) -> Array:
    """The coordinates, ``[starts, 2]``."""
    if len(words) == 1 and words[0] in STARTS:
        return np.array(STARTS[words[0]])
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        values = np.array([np.nan])
    if len(values) % 2 or len(values) > 2 * MAX_STARTS or not np.all(np.abs(values) <= 10):
        options_parser.error(
            f"argument --starts: expected {' or '.join(STARTS)} or pairs of numbers from -10 to "
            f"10, at most {MAX_STARTS}, got {' '.join(words)!r}"
        )
    return values.reshape(-1, 2)


@_arguments.command
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, prints its table, and writes ``toy.png`` and ``toy.json``."""
    options = parse(arguments)
    begin = time.perf_counter()
    console = Console()
    sign = SIGNS[options.sign]
    results = {}
    columns = SpinnerColumn(), TextColumn("{task.description:20}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        # One after the other: each has the machine to itself while its time is taken.
        for name in options.methods:
            row = progress.add_task(name, total=1)
            results[name] = study(name, options.points, options.steps, sign)
            progress.update(row, completed=1)
        row = progress.add_task("Pareto front", total=1)
        front = losses_of(pareto_set(100_001), sign)
        searched = search_front(401 if options.quick else 1001, sign)
        found = distance_to(front[::100], searched)
        progress.update(row, completed=1)
    summary = summarize(results, options.trajectories, options.steps, front)

    console.print(table(summary, options.points))
    if options.trajectories:
        console.print(*agreement(summary, options.points), sep="\n")

    figure_path, json_path = options.out / "toy.png", options.out / "toy.json"
    draw(results, options.trajectories, options.points, options.steps, sign, figure_path)
    seconds = time.perf_counter() - begin
    _report.write_json(
        json_path,
        {
            "settings": {
                "steps": options.steps,
                "starts": options.points,
                "methods": options.methods,
                "sign": options.sign,
                "reference": options.reference and options.reference.name,
                "quick": options.quick,
                "out": str(options.out),
            },
            "environment": _report.environment(),
            "axes": {
                "distance": "starts; in loss space, where the Pareto front spans 1 by 1",
                "params": "starts, points, coordinates",
                "losses": "starts, points, tasks",
                "task_weights": "starts, points, tasks",
            },
            "pareto_front": {
                "params": pareto_set(101),
                "losses": losses_of(pareto_set(101), sign),
                "searched": {"points": len(searched), "largest_distance": found.max()},
            },
            "methods": summary,
            "seconds": seconds,
        },
    )
    console.print(
        "Distances: in loss space, where the front spans 1 by 1. Times: all starts at once.",
        *(["Nudged: our own, started 1e-6 beside in x1."] if options.trajectories else []),
        f"{figure_path} and {json_path}, {seconds:.0f} s",
        sep="\n",
        highlight=False,
    )


if __name__ == "__main__":
    main()
