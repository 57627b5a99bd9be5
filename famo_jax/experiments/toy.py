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

import famo_jax
from famo_jax.experiments import _command, _tables
from famo_jax.experiments._files import Runs
from famo_jax.experiments._study import Option, Study, Summary

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
    "nash-slope": Method(
        "amortized Nash-MTL, by slope",
        lambda: optax.chain(
            _adam(),
            famo_jax.weighting.amortized_nash_mtl(
                K, min_losses=jnp.array(MIN_LOSSES), measure="slope"
            ),
        ),
        "two-pass",
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


NUDGE = 1e-6  # in x1: the distance of neighbouring float32 numbers at 9
RUNS = 3  # whose median is the running time; the second is the nudged one
POINTS = 500  # kept of a trajectory


def thinning(steps: int) -> int:
    """How many steps lie between two points that are kept."""
    return max(1, steps // POINTS)


def measure(
    name: str, starts: Array, steps: int, sign: float = 1.0
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Compiles and runs one method: its trajectories, and the seconds of both."""
    start_points = jnp.asarray(starts, jnp.float32)
    begin = time.perf_counter()
    call = compile_run(METHODS[name], start_points, steps, thinning(steps), sign)
    compile_seconds = time.perf_counter() - begin
    runs, seconds = [], []
    for index in range(RUNS):
        points = start_points + jnp.array([NUDGE, 0.0]) if index == 1 else start_points
        begin = time.perf_counter()
        runs.append(jax.block_until_ready(call(points)))
        seconds.append(time.perf_counter() - begin)
    fields = {
        name: np.asarray(value) for name, value in runs[0]._asdict().items() if value is not None
    }
    fields |= {"nudged": np.asarray(runs[1].params), "nudged_end": np.asarray(runs[1].end)}
    return fields, {"compile": compile_seconds, "seconds": seconds}


def run(options: argparse.Namespace, session: Any) -> Runs:
    """One after the other: each has the machine to itself while its time is taken."""
    sign, starts = SIGNS[options.sign], points_of(options.starts)
    arrays: dict[str, dict[str, Array]] = {}
    times = {}
    for name in options.methods:
        tell = session.row(name)
        tell("compiling and training")
        arrays[name], times[name] = measure(name, starts, options.steps, sign)
        tell("done")
    tell = session.row("Pareto front")
    tell("searching")
    front = losses_of(pareto_set(100_001), sign)
    searched = search_front(401 if options.quick else 1001, sign)
    found = {"points": len(searched), "largest_distance": distance_to(front[::100], searched).max()}
    tell("done")
    if options.reference:
        for name, reference in load_reference(Path(options.reference)).items():
            arrays[f"official {name}"] = reference._asdict()
    about = {name: {"settings": [], "seeds": [0]} for name in arrays}
    return Runs({"arms": about, "times": times, "searched_front": found}, arrays)


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


def parting(params: Array, others: Array, every: int) -> list[float]:
    """The first step kept at which two trajectories are more than ``PARTED`` apart.

    Args:
      params: ``[starts, points, 2]``, one point every ``every`` steps.
      others: Likewise.
      every: How many steps lie between two points.

    Returns:
      One for each start, NaN where they stay together.
    """
    parted = deviation(params, others) > PARTED
    return [int(np.argmax(each)) * every if each.any() else np.nan for each in parted]


def against(
    params: Array, end_losses: Array, reference: Reference, steps: int, front: Array
) -> dict[str, Any]:
    """How closely a method's trajectories agree with the reference."""
    every = thinning(steps)
    common = np.lcm(every, REFERENCE_EVERY)
    own, other = (
        params[:, :: common // every],
        reference.params[:, :: common // REFERENCE_EVERY],
    )
    points = min(own.shape[1], other.shape[1])
    own, other = own[:, :points], other[:, :points]
    whole = steps == reference.params.shape[1] * REFERENCE_EVERY
    found = {
        "compared_steps": int((points - 1) * common),
        "parts_at_step": parting(own, other, int(common)),
        "largest_deviation": deviation(own, other).max(axis=1),
        "params": reference.params[:, : steps // REFERENCE_EVERY + 1 : max(1, steps // 10_000)],
    }
    if whole:
        found["end_losses"] = reference.end_losses
        found["end_losses_apart"] = apart(end_losses, reference.end_losses, front)
    return found


# --- The report -----------------------------------------------------------------------------------


def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of each method."""
    settings, facts = runs.facts["settings"], runs.facts
    steps, sign = settings["steps"], SIGNS[settings["sign"]]
    front = losses_of(pareto_set(100_001), sign)
    seconds = {name: float(np.median(each["seconds"])) for name, each in facts["times"].items()}
    summary = {}
    for name in seconds:
        own = {key: np.asarray(value, np.float64) for key, value in runs.arrays[name].items()}
        thin = max(1, own["params"].shape[1] // 100)
        end_losses, nudged = losses_of(own["end"], sign), losses_of(own["nudged_end"], sign)
        summary[name] = {
            "description": METHODS[name].description,
            "distance": distance_to(front, end_losses),
            "end": own["end"],
            "end_losses": end_losses,
            "compile_seconds": facts["times"][name]["compile"],
            "seconds": seconds[name],
            "seconds_over_adam": seconds[name] / seconds["adam"],
            "nudged_parts_at_step": parting(own["params"], own["nudged"], thinning(steps)),
            "nudged_end_losses_apart": apart(end_losses, nudged, front),
            "trajectory_every": thinning(steps) * thin,
            "params": own["params"][:, ::thin],
            "losses": losses_of(own["params"][:, ::thin], sign),
        }
        if "task_weights" in own:
            summary[name]["task_weights"] = own["task_weights"][:, ::thin]
        if found := runs.arrays.get(f"official {METHODS[name].official}"):
            official = Reference(**found)
            summary[name]["official"] = against(own["params"], end_losses, official, steps, front)
    return {
        "starts": points_of(settings["starts"]),
        "sign": sign,
        "searched_front": facts["searched_front"],
        "methods": summary,
    }


def _named(start: Sequence[float]) -> str:
    return f"({start[0]:g}, {start[1]:g})"


def table(summary: Mapping[str, Any], starts: Array) -> Any:
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


def agreement(summary: Mapping[str, Any], starts: Array) -> list[Any]:
    """How closely trajectories agree with the official code's and with our own, nudged ones."""
    parting = _by_start(f"hundreds of steps until {PARTED:g} apart: official/nudged", starts)
    ends = _by_start("distance of the ends: official/nudged", starts)
    for name, figures in summary.items():
        official = figures.get("official")
        if official:
            both = zip(official["parts_at_step"], figures["nudged_parts_at_step"], strict=True)
            parting.add_row(name, *(f"{_hundreds(a)}/{_hundreds(b)}" for a, b in both))
        if official and "end_losses_apart" in official:
            both = zip(
                official["end_losses_apart"], figures["nudged_end_losses_apart"], strict=True
            )
            ends.add_row(name, *(f"{a:.3f}/{b:.3f}" for a, b in both))
    return [rows for rows in (parting, ends) if rows.row_count]


def _by_start(title: str, starts: Array) -> Any:
    return _tables.new(title, ["method"], map(_named, starts), padding=1)


def _hundreds(step: float) -> str:
    return f"{step / 100:.0f}" if np.isfinite(step) else "-"


def tables(summary: Summary) -> list[Any]:
    """Distances and times, and how closely trajectories agree with others."""
    methods, starts = summary["methods"], summary["starts"]
    compared = agreement(methods, starts)
    notes = "Distances: in loss space, where the front spans 1 by 1. Times: all starts at once."
    return [
        table(methods, starts),
        *compared,
        notes + (" Nudged: our own, started 1e-6 beside in x1." if compared else ""),
    ]


# One for each start: colours that stay apart for the colour-blind.
COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9")
MAX_STARTS = len(COLOURS)
FRONT = "0.55"


SHOWN = ("adam", "si", "frozen", "famo", "famo-one-pass")  # what the picture is about


def draw(summary: Summary) -> Any:
    """The landscape of the mean with two methods' paths, and the paths of five in loss space."""
    from famo_jax.experiments import _plots

    methods, sign = summary["methods"], summary["sign"]
    starts = np.asarray(summary["starts"])
    shown = [name for name in SHOWN if name in methods] or list(methods)[:5]
    with _plots.picture(height=5.6) as figure:
        panels = figure.subplots(2, 3).ravel()
        landscape = panels[0]
        side = np.linspace(-10, 10, 201)
        field = losses_of(np.stack(np.meshgrid(side, side), axis=-1), sign).mean(axis=-1)
        darkest = field.min() - 0.4 * np.ptp(field)  # so that the paths can be seen
        landscape.contourf(side, side, field, levels=20, cmap="gray", vmin=darkest)
        landscape.plot(*pareto_set(201).T, color="#f0e442", linewidth=3)
        for name, line in (("adam", ":"), ("famo", "-")):
            for path, colour in zip(methods.get(name, {}).get("params", []), COLOURS, strict=False):
                landscape.plot(*np.transpose(path), line, color=colour)
        landscape.plot(*starts.T, "o", color="black", markersize=3)
        landscape.set(xlim=(-10, 10), ylim=(-10, 10), xlabel="$x_1$", ylabel="$x_2$")
        landscape.set_title("mean loss: paths of famo (adam dotted)")
        for axes, name in zip(panels[1:], shown, strict=False):
            own = methods[name]
            axes.plot(*losses_of(pareto_set(201), sign).T, color=FRONT, linewidth=4)
            ends = np.asarray(own["end_losses"])
            for path, end, colour in zip(own["losses"], ends, COLOURS, strict=False):
                axes.plot(*np.vstack([path, end]).T, color=colour, linewidth=1)
                axes.plot(*end, "*", color=colour, markeredgecolor="black", markeredgewidth=0.4)
            if "official" in own:
                dots = losses_of(np.asarray(own["official"]["params"]), sign)
                axes.plot(*dots.reshape(-1, 2).T, ".", color="black", markersize=1)
            axes.set_title(f"{METHODS[name].description}")
            axes.set(xlabel="$L_1$", ylabel="$L_2$")
        for axes in panels[1 + len(shown) :]:
            axes.set_axis_off()
    return figure


# --- The command ----------------------------------------------------------------------------------


def points_of(words: Sequence[str]) -> Array:
    """The coordinates, ``[starts, 2]``."""
    if len(words) == 1 and words[0] in STARTS:
        return np.array(STARTS[words[0]])
    return np.array([float(word) for word in words]).reshape(-1, 2)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses starts that are none, and a reference that does not belong to the run."""
    options.methods = [name for name in METHODS if name in {"adam", *options.methods}]
    try:
        points = points_of(options.starts)
    except ValueError:
        points = np.full((1, 2), np.nan)
    if len(points) > MAX_STARTS or not np.all(np.abs(points) <= 10):
        parser.error(
            f"argument --starts: expected {' or '.join(STARTS)} or pairs of numbers from -10 to "
            f"10, at most {MAX_STARTS}, got {' '.join(options.starts)!r}"
        )
    if options.reference:
        if options.starts != ["official"] or options.sign != "plus":
            parser.error(
                "argument --reference: expected the official starts and sign, whose trajectories "
                "it holds"
            )
        try:
            load_reference(Path(options.reference))
        except ValueError as error:
            parser.error(
                f"argument --reference: expected trajectories of the official code, got "
                f"{options.reference} ({error})"
            )


STUDY = Study(
    name="toy",
    title="The FAMO paper's toy problem",
    seconds=49,
    full={
        "steps": 50_000,
        "starts": ["official"],
        "methods": [*METHODS],
        "sign": "plus",
        "reference": "",
    },
    quick={"steps": 1000},
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"toy.png": draw},
    options={
        "starts": Option(
            str,
            f"{' or '.join(STARTS)}, or coordinates x1 x2 x1 x2 ...",
            True,
            "START",
            distinct=False,
        ),
        "methods": _command.methods_option(
            [*METHODS], "; adam, the baseline of the times, is always run"
        ),
        "sign": Option(
            _command.one_of([*SIGNS]),
            "of tanh(-x2) in f2: plus as in the official code, minus as in the paper",
            metavar="SIGN",
        ),
        "reference": Option(
            str,
            "trajectories of the official code to compare with, such as "
            "tests/data/toy_trajectories.npz",
            metavar="FILE",
        ),
    },
    epilog="methods:\n"
    + "\n".join(f"  {name:16}{method.description}" for name, method in METHODS.items()),
    check=check,
    saves=False,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
