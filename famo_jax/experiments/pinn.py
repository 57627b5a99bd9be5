r"""FAMO in physics-informed networks: ``python -m famo_jax.experiments.pinn``.

Besides the methods of this library stand what is used for such networks: fixed weights, tuned by
hand, and weights from the gradients, as of Wang, Teng and Perdikaris (`Understanding and mitigating
gradient flow pathologies in physics-informed neural networks <https://arxiv.org/abs/2001.04536>`_,
2021) and Wang, Sankaran, Wang and Perdikaris (`An expert's guide to training physics-informed
neural networks <https://arxiv.org/abs/2308.08468>`_, 2023). Every method is trained at every
setting on some seeds; that with the least error is kept, and runs on other seeds are reported.
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
from jax import flatten_util

from famo_jax import _method, weighting
from famo_jax.experiments import _command, _comparison, _methods, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import Method
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import equations


@_method.aggregation
class BalanceState(NamedTuple):
    """The state of :func:`balance`."""

    weights: jax.Array  # [K], lambda


def anneal(gradients: jax.Array) -> jax.Array:
    r"""The weights that learning-rate annealing aims at, from gradients ``[K, P]``.

    .. math:: \hat\lambda_i = \max |\nabla \ell_r| \,/\, \mathrm{mean}\, |\nabla \ell_i|

    for all terms but the residual r, which comes first and weighs 1. As the paper's Algorithm 1
    has it, over the gradients of the unweighted losses.
    """
    magnitudes = jnp.abs(gradients)
    weights: jax.Array = jnp.max(magnitudes[0]) / jnp.mean(magnitudes, axis=1)
    return weights.at[0].set(1)


def equalize(gradients: jax.Array) -> jax.Array:
    r"""The weights under which all gradients ``[K, P]`` have the same norm.

    .. math:: \hat\lambda_i = \sum_j \lVert \nabla \ell_j \rVert \,/\, \lVert \nabla \ell_i \rVert
    """
    norms = jnp.linalg.norm(gradients, axis=1)
    weights: jax.Array = jnp.sum(norms) / norms
    return weights


def balance(num_tasks: int, aim: Callable[[jax.Array], jax.Array]) -> Any:
    """Combines task-stacked gradients by weights that follow, from 1, what ``aim`` makes of them.

    The memory of their moving average is 0.9.
    """

    def update_fn(updates: Any, state: BalanceState, params: Any = None, **_: Any) -> Any:
        del params
        gradients = jax.vmap(lambda tree: flatten_util.ravel_pytree(tree)[0])(updates)
        weights = optax.incremental_update(aim(gradients), state.weights, 0.1)
        combined = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), updates)
        return combined, BalanceState(weights)

    init_fn = lambda _: BalanceState(jnp.ones(num_tasks))
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _fixed(num_tasks: int, weight: jax.Array) -> optax.GradientTransformationExtraArgs:
    return weighting.ls(jnp.full(num_tasks, weight).at[0].set(1))


METHODS: dict[str, Method] = {
    "ls": Method("the sum of the losses", "#888888", lambda k: weighting.ls(jnp.ones(k))),
    "fixed": Method("boundary and initial losses weighted by hand", "#000000", _fixed, ("weight",)),
    "anneal": Method(
        "gradients' max over mean", "#117733", lambda k: balance(k, anneal), aggregates=True
    ),
    "equal-norms": Method(
        "gradients of equal norms", "#882255", lambda k: balance(k, equalize), aggregates=True
    ),
    **{name: each for name, each in _methods.METHODS.items() if name not in ("stl", "ls")},
}

FIXED = "ls", "fixed", "si", "frozen", "first-loss"  # these learn no weights
MAIN = (*FIXED, "anneal", "equal-norms", "famo", "famo-no-c", "uw", "nash-slope", "nash-mtl")


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Every method at all settings on some seeds, then at the best of them on others."""
    from famo_jax.experiments import _train

    pairs = list(itertools.product(options.problems, options.methods))
    problems = {name: equations.problem_of(equations.EQUATIONS[name]) for name in options.problems}

    def arm(problem: str, name: str, settings: Any, first: int, count: int) -> _train.Arm:
        seeds = range(first, first + count)
        data = problems[problem].load_data(options.steps, seeds, 1)
        # On a CPU several such networks beside each other take longer to compile only.
        return _train.Arm(
            f"{problem} {name}" + (" tuning" if first else ""), problems[problem], data,
            options.steps, METHODS[name], settings, seeds,
            settings_at_once=False, seeds_at_once=False,
        )  # fmt: skip

    def plan() -> _train.Plan:
        grids = {name: settings_of(name, vars(options)) for _, name in pairs}
        done = yield [
            arm(*pair, grids[pair[1]], options.seeds, options.tuning_seeds) for pair in pairs
        ]
        best = {pair: choose(done[f"{' '.join(pair)} tuning"]["test"][..., 0]) for pair in pairs}
        yield [arm(*pair, [grids[pair[1]][best[pair]]], 0, options.seeds) for pair in pairs]

    return _train.run(plan(), session)


def settings_of(name: str, grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """As many for each method, weights by hand included."""
    method = METHODS[name]
    own = grid if "weight" in method.takes else _comparison.evenly(method, grid)
    return _comparison.settings_of(method, own)


def choose(errors: Array) -> int:
    """The least geometric mean of ``[settings, seeds]``; a run that diverges is never the best."""
    with np.errstate(divide="ignore"):
        return _statistics.choose(np.log(_statistics.finite(errors)).mean(axis=-1))


def summarize(runs: Runs) -> dict[str, Any]:
    """The figures of each method on each problem. Methods share seeds: ratios are paired."""
    options = runs.facts["settings"]
    names = options["methods"]

    def errors(problem: str, name: str) -> Array:
        return _statistics.finite(runs.arrays[f"{problem} {name}"]["test"][0, :, 0])

    def tuned(problem: str, name: str) -> float:
        found = _statistics.finite(runs.arrays[f"{problem} {name} tuning"]["test"][..., 0])
        return float(_statistics.geometric(found[choose(found)])["mean"])

    def figures(problem: str, name: str, best: str) -> dict[str, Any]:
        setting = runs.facts["arms"][f"{problem} {name}"]["settings"][0]
        own = errors(problem, name)
        found: dict[str, Any] = {
            "setting": setting,
            "error": _statistics.geometric(100 * own),
            "error_by_seed": 100 * own,
            "edges": _statistics.edges([setting], options),
        }
        if name not in FIXED and best:  # of the logarithms
            found["gain"] = _statistics.difference(np.log(own / errors(problem, best)))
        return found

    def column(problem: str) -> dict[str, Any]:
        fixed = [name for name in FIXED if name in names]
        least = [tuned(problem, name) for name in fixed]  # NaN where all diverged
        best = fixed[_statistics.choose(least)] if fixed else ""
        return {"fixed": best, "methods": {name: figures(problem, name, best) for name in names}}

    counts = sorted({len(settings_of(name, options)) for name in names})
    budget = counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return {"budget": budget, "problems": {name: column(name) for name in options["problems"]}}


def tables(summary: Summary) -> list[Any]:
    """The main methods, then all others: a column for each problem."""
    columns = summary["problems"]
    every = list(next(iter(columns.values()))["methods"])
    main = [name for name in every if name in MAIN]
    parts: list[Any] = []
    others = [name for name in every if name not in MAIN]
    for title, names in ((None, main), ("Other methods", others)):
        stars = {label: _comparison.stars(own["methods"], names) for label, own in columns.items()}
        table = _tables.new(title, ["method"], [f"{label}\nerror (%)" for label in columns], 1)
        for name in names:
            shown = (
                _tables.ratio(own["methods"][name]["error"]) + ("*" if name in stars[label] else "")
                for label, own in columns.items()
            )
            table.add_row(name, *shown)
        parts += [table] if names else []
    fixed = (f"{own['fixed']} ({label})" for label, own in columns.items())
    parts.append(
        "Error of u: relative L2, geometric mean over seeds, and the factor by which its 95% "
        f"interval extends either way. Settings, {summary['budget']} for each method, were chosen "
        f"on other seeds. Best fixed weights: {', '.join(fixed)}. *: p < 0.05 for the ratio to "
        "these, paired by seed, by Holm's correction within a column of a table."
    )
    edges = (
        f"{name} {', '.join(own['methods'][name]['edges'])} ({label})"
        for label, own in columns.items()
        for name in main
        if own["methods"][name]["edges"]
    )
    return [*parts, f"Chosen at the end of a list: {'; '.join(edges) or 'none'}."]


def draw(summary: Summary) -> Any:
    """The error of the main methods, a column for each problem."""
    columns = summary["problems"]
    with _plots.picture(height=3.2) as figure:
        panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, (problem, own) in zip(panels, columns.items(), strict=True):
            axes.set_xscale("log")
            rows = {
                name: (each["error"], METHODS[name].colour, each["error_by_seed"])
                for name, each in own["methods"].items()
                if name in MAIN
            }
            _plots.estimates(axes, rows, "error of u (%): mean, 95%, each seed")
            axes.xaxis.set_major_formatter(lambda error, _: f"{error:g}")
            axes.set_title(problem)
    return figure


def check(_: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Puts names in the order of their tables."""
    options.problems = [name for name in equations.EQUATIONS if name in options.problems]
    options.methods = [name for name in METHODS if name in options.methods]


STUDY = Study(
    name="pinn",
    title="Multi-task methods on the terms of physics-informed networks",
    seconds=900,
    full="--problems burgers helmholtz helmholtz-shifted --steps 1500 --seeds 10 --tuning-seeds 2 "
    "--learning-rate 3e-3 1e-2 3e-2 --gamma 0 1e-3 --logits-rate 5e-3 2.5e-2 "
    "--weight 10 100 --methods ls fixed anneal equal-norms si frozen first-loss famo famo-no-c "
    "famo-one-pass famo-one-pass-no-c famo-ema-no-c famo-slope-no-c uw amortized-nash-mtl "
    "nash-two-pass nash-slope nash-ema amortized-cagrad cagrad-slope amortized-mgda mgda-slope "
    "nash-mtl cagrad mgda",
    quick="--problems burgers helmholtz --steps 100 --seeds 2 --tuning-seeds 1 --gamma 0 "
    "--learning-rate 1e-2 --weight 10 100 --methods ls equal-norms famo-no-c",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"pinn.png": draw},
    options={
        "problems": Option(_command.one_of([*equations.EQUATIONS]), "what to solve", True, "NAME"),
        "methods": _command.methods_option([*METHODS]),
        "weight": Option(
            _command.positive_float, "of all terms but the residual, for fixed", True, "W"
        ),
    },
    epilog=_methods.described(METHODS),
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
