r"""The paper's toy problem, Figures 1 and 2: ``python -m famo_jax.experiments.toy``.

Two losses of two parameters, of which the mean has a point where Adam gets stuck: those of the
official code (github.com/Cranial-XIX/FAMO, ``experiments/toy``), and so are the settings, Adam at
1e-3, 50,000 steps, no decay of the logits, lower bounds -2.1 and -21. The paper's Appendix D prints
:math:`- \tanh(-x_2)` in :math:`f_2`: ``--sign minus``, with which FAMO is not at the Pareto front
from (9, 9) in time. So it is the code's sign that gives Figure 1.

In the official code the logits step at the beginning of a step, by the change from the losses
before: with the same losses at every step that is two-pass (``famo``) up to rounding. One-pass, as
the last link of a chain, is one step later. Of an official method all that Adam does not cancel is
here too: the official PCGrad and CAGrad clip the norm of what they return to 1. Not here: its MGDA
stays 0.001 away from weights of 0 and 1, and its Nash-MTL has a length that follows the gradients'.
"""

import argparse
import functools
import textwrap
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from famo_jax import aggregation, famo, weighting
from famo_jax.experiments import _command, _methods, _plots, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import Method
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import _problem
from famo_jax.experiments.problems._problem import Problem, Task

MIN_LOSSES = (-2.1, -21.0)
STARTS = {
    "official": [(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)],
    "paper": [(-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0)],  # section 5.1
}
SIGNS = {"plus": 1.0, "minus": -1.0}


def task_losses(params: Any, sign: float = 1.0, xp: Any = jnp) -> Any:
    """The two losses at x ``[2, ...]``, by NumPy or JAX, ``[2, ...]``.

    The sign is that of tanh(-x2) in f2: 1 as in the official code, -1 as in the paper's print.
    """
    x1, x2 = params

    def clamped_log(argument: Any) -> Any:
        return xp.log(xp.maximum(xp.abs(argument), 5e-6)) + 6

    def quadratic(centre: float) -> Any:
        return ((x1 - centre) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20

    f1 = clamped_log(0.5 * (-x1 - 7) - xp.tanh(-x2))
    f2 = clamped_log(0.5 * (-x1 + 3) + sign * xp.tanh(-x2) + 2)
    # Where a gate opens both have a slope, as PyTorch's clamp has. One of the starts is there.
    gate = xp.tanh(0.5 * x2)
    c1, c2 = xp.where(gate >= 0, gate, 0), xp.where(gate <= 0, -gate, 0)
    return xp.stack([0.1 * (c1 * f1 + c2 * quadratic(7)), c1 * f2 + c2 * quadratic(-7)])


def losses_of(points: npt.ArrayLike, sign: float = 1.0) -> Array:
    """The losses at points of the plane, ``[..., 2] -> [..., 2]``, by NumPy."""
    coordinates = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    return np.moveaxis(task_losses(coordinates, sign, np), 0, -1)


def pareto_set(points: int) -> Array:
    r"""Points from the least L2 to the least L1, none of which dominates another, ``[points, 2]``.

    Where :math:`x_2 < 0` the losses are multiples of :math:`c_2 q_i`, and where a convex
    combination of these is stationary :math:`|x_1| \le 7` and :math:`\tfrac1{50} (x_2 + 8)
    \sinh(-x_2) = \tfrac1{10} (49 - x_1^2 + \tfrac1{10} (x_2 + 8)^2) - 20`.
    """
    x1 = np.linspace(-7, 7, points)
    x2 = np.full(points, -8.0)
    for _ in range(60):  # a contraction by less than a half
        x2 = -8 + 50 * ((49 - x1**2 + 0.1 * (x2 + 8) ** 2) / 10 - 20) / np.sinh(-x2)
    return np.stack([x1, x2], axis=-1)


def distance_to(front: Array, losses: Array) -> Array:
    """How far losses ``[..., 2]`` are from the front ``[n, 2]``, if that spans 1 by 1."""
    span = np.ptp(front, axis=0)
    flat = losses.reshape(-1, 1, 2)
    distances = [np.linalg.norm((each - front) / span, axis=-1).min() for each in flat]
    return np.reshape(distances, losses.shape[:-1])


def _bounded(name: str, factory: Any, **fixed: Any) -> Method:
    """A method of the table, with the official code's bounds."""
    make = lambda k: factory(k, min_losses=jnp.array(MIN_LOSSES), **fixed)
    return _methods.METHODS[name]._replace(make=make, takes=())


def _famo(name: str, **fixed: Any) -> Method:
    return _bounded(name, famo, weight_decay=0.0, **fixed)


def _nash(name: str, measure: str) -> Method:
    return _bounded(name, weighting.amortized_nash_mtl, measure=measure)


def _clipped(method: Any, factor: float) -> Any:
    return optax.chain(method, optax.scale(factor), optax.clip_by_global_norm(1.0))


def _log_mgda(_: int) -> Any:
    return aggregation.log_losses(aggregation.mgda(), min_losses=jnp.array(MIN_LOSSES))


_TABLE = _methods.METHODS
METHODS: dict[str, Method] = {
    "adam": _TABLE["ls"]._replace(description="Adam on the mean"),
    "famo": _famo("famo"),
    "famo-one-pass": _famo("famo-one-pass"),
    "famo-slope": _famo("famo-slope", measure="slope"),
    "frozen": _famo("frozen", learning_rate=0.0),
    "si": _TABLE["si"]._replace(make=lambda _: weighting.si(min_losses=jnp.array(MIN_LOSSES))),
    "first-loss": _bounded("first-loss", weighting.first_loss),
    "mgda": _TABLE["mgda"],
    "log-mgda": _TABLE["mgda"]._replace(description="MGDA on log losses (eq. 6)", make=_log_mgda),
    # The key is without effect where there are two tasks.
    "pcgrad": _TABLE["pcgrad"]._replace(make=lambda k: _clipped(aggregation.pcgrad(key=0), k)),
    "cagrad": _TABLE["cagrad"]._replace(
        make=lambda k: _clipped(aggregation.cagrad(c=0.4), k / (1 + 0.4**2))
    ),
    "imtl-g": _TABLE["imtl-g"],
    "nash-mtl": _TABLE["nash-mtl"],
    "amortized-nash-mtl": _nash("amortized-nash-mtl", "change"),
    "nash-two-pass": _nash("nash-two-pass", "change"),
    "nash-slope": _nash("nash-slope", "slope"),
    **{
        name: _TABLE[name]._replace(make=functools.partial(_TABLE[name].make, gamma=0.0), takes=())
        for name in ("amortized-cagrad", "cagrad-slope", "amortized-mgda", "mgda-slope")
    },
}
# What the official code calls them.
OFFICIAL = {name: name for name in ("famo", "mgda", "pcgrad", "cagrad")}
OFFICIAL |= {"adam": "ls", "imtl-g": "imtl", "nash-mtl": "nashmtl"}

EVERY = 100  # steps: of which the official code's trajectories keep a point


def arm_of(name: str, points: Array, steps: int, sign: float = 1.0) -> Any:
    """A method from starts ``[starts, 2]``, which are its seeds. Its test is the end."""
    from famo_jax.experiments import _train

    problem = Problem(
        tasks=tuple(Task(name, name, name, 3) for name in ("L1", "L2")),
        load_data=_problem.no_data,
        init=lambda seeds: (jnp.asarray(points[np.asarray(seeds)], jnp.float32), ()),
        losses=lambda params, state, *_: (task_losses(params, sign), state),
        metrics=lambda params, *_: params,
    )
    seeds = range(len(points))
    return _train.Arm(
        name, problem, problem.load_data(steps, seeds, 1), steps, METHODS[name],
        [{"learning_rate": 1e-3}], seeds, schedule=lambda setting, _: setting["learning_rate"],
        probe=lambda _, __, before, *___: before.params,
        keep=lambda probed: {"params": np.asarray(probed[0, :, ::EVERY])},
    )  # fmt: skip


def run(options: argparse.Namespace, session: Any) -> Runs:
    """All methods from all starts."""
    from famo_jax.experiments import _train

    points, sign = np.array(STARTS[options.starts]), SIGNS[options.sign]
    arms = [arm_of(name, points, options.steps, sign) for name in options.methods]
    runs = _train.run(iter([arms]), session)
    if options.reference:
        for name, params in load_reference(Path(options.reference)).items():
            runs.arrays[f"official {name}"] = {"params": params}
            runs.facts["arms"][f"official {name}"] = {"settings": [], "seeds": []}
    return runs


def load_reference(path: Path) -> dict[str, Array]:
    """The official code's trajectories, ``[5, points, 2]``, by its names of the methods."""
    with np.load(path) as arrays:
        keys = [key for key in arrays if key.endswith("/trajectory")]
        if not keys:
            raise ValueError(f"{path}, which holds none")
        return {key.split("/")[0]: arrays[key].astype(np.float64) for key in keys}


PARTED, APART = 1e-3, "official_parts_at_step"


def parting(params: Array, others: Array) -> list[float]:
    """By start the step at which trajectories ``[starts, points, 2]`` are ``PARTED`` apart, or NaN.

    The distance is over that from the origin, which counts as 1 at least.
    """
    points = min(params.shape[1], others.shape[1])
    own, other = params[:, :points], others[:, :points]
    distance = np.linalg.norm(own - other, axis=-1)
    parted = distance > PARTED * np.maximum(np.linalg.norm(other, axis=-1), 1)
    return [int(np.argmax(each)) * EVERY if each.any() else np.nan for each in parted]


def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of each method."""
    settings = runs.facts["settings"]
    sign, points = SIGNS[settings["sign"]], settings["steps"] // EVERY + 1
    front = losses_of(pareto_set(100_001), sign)
    summary = {}
    for name in settings["methods"]:
        params = runs.arrays[name]["params"].astype(np.float64)
        ends = losses_of(runs.arrays[name]["test"][0], sign)
        found: dict[str, Any] = {"distance": distance_to(front, ends), "end_losses": ends}
        found["params"] = params
        found["losses"] = losses_of(params, sign)
        if official := runs.arrays.get(f"official {OFFICIAL.get(name)}"):
            theirs = official["params"][:, :points]
            found[APART] = parting(params, theirs)
            found["official_losses"] = losses_of(theirs[:, :: max(1, points // 100)], sign)
        summary[name] = found
    return {"starts": STARTS[settings["starts"]], "sign": sign, "methods": summary}


def tables(summary: Summary) -> list[Any]:
    """Distances, and how long trajectories stay with the official code's."""
    starts = [f"({x1:g}, {x2:g})" for x1, x2 in summary["starts"]]
    ends = _tables.new("Distance of the end to the Pareto front", ["method"], starts, padding=1)
    parted = _tables.new("Steps until the official code's is apart", ["method"], starts, padding=1)
    for name, figures in summary["methods"].items():
        ends.add_row(name, *(f"{distance:.4f}" for distance in figures["distance"]))
        if steps := figures.get(APART):
            parted.add_row(name, *(f"{step:,.0f}" if np.isfinite(step) else "-" for step in steps))
    notes = (
        f"In loss space, where the front spans 1 by 1. Apart: by {PARTED:g} of the distance from 0."
    )
    return [ends, *([parted] if parted.row_count else []), notes]


COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00")  # of the starts
SHOWN = ("adam", "si", "frozen", "famo", "famo-one-pass")  # what the picture is about


def draw(summary: Summary) -> Any:
    """The landscape of the mean with two methods' paths, and the paths of five in loss space."""
    methods, sign = summary["methods"], summary["sign"]
    starts = np.asarray(summary["starts"])
    with _plots.picture(height=5.6) as figure:
        landscape, *panels = figure.subplots(2, 3).ravel()
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
        landscape.set_title("mean loss; famo, dotted adam")
        for axes, name in zip(panels, SHOWN, strict=True):
            axes.set(title=METHODS[name].description, xlabel="$L_1$", ylabel="$L_2$")
            axes.plot(*losses_of(pareto_set(201), sign).T, color="0.55", linewidth=4)
            own = methods.get(name, {"losses": [], "end_losses": []})
            for path, end, colour in zip(own["losses"], own["end_losses"], COLOURS, strict=False):
                axes.plot(*np.vstack([path, end]).T, color=colour, linewidth=1)
                axes.plot(*end, "*", color=colour, markeredgecolor="black", markeredgewidth=0.4)
            if "official_losses" in own:
                dots = np.reshape(own["official_losses"], (-1, 2))
                axes.plot(*dots.T, ".", color="black", markersize=1.5)
        words = [
            f"{name} from ({x:g}, {y:g}), step {step:,.0f}"
            for name in SHOWN
            for (x, y), step in zip(starts, methods.get(name, {}).get(APART, []), strict=False)
            if np.isfinite(step)
        ]
        if any(APART in own for own in methods.values()):
            told = "Black dots: the official code's. By rounding they part from ours: "
            lines = textwrap.wrap(told + ("; ".join(words) or "nowhere") + ".", 130)
            figure.supxlabel("\n".join(lines), fontsize=8, x=0.01, ha="left")
    return figure


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses a reference that does not belong to the run."""
    options.methods = [name for name in METHODS if name in options.methods]
    if options.reference:
        if (options.starts, options.sign) != ("official", "plus"):
            parser.error("argument --reference: expected the official starts and sign, as it has")
        try:
            load_reference(Path(options.reference))
        except (OSError, ValueError) as error:
            parser.error(f"argument --reference: expected trajectories, got {error}")


STUDY = Study(
    name="toy",
    title="The FAMO paper's toy problem",
    seconds=49,
    full="--steps 50000 --starts official --sign plus --methods " + " ".join(METHODS),
    quick="--steps 1000",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"toy.png": draw},
    options={
        "starts": Option(_command.one_of([*STARTS]), "the code's or the paper's", metavar="WHOSE"),
        "methods": _command.methods_option([*METHODS]),
        "sign": Option(_command.one_of([*SIGNS]), "of tanh(-x2) in f2: see above", metavar="SIGN"),
        "reference": Option(
            str, "the official code's trajectories, tests/data/toy_trajectories.npz", metavar="FILE"
        ),
    },
    curves=frozenset({"params", "losses", "official_losses"}),
    epilog=_methods.described(METHODS),
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
