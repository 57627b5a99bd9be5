"""What each method adds to a training step: time and temporary memory, over the number of tasks.

Run as ``python -m famo_jax.experiments.cost``. All steps share network (64 inputs, 512 and 64
units, K outputs), batch (256 rows) and Adam, and state is donated, as in training. Beside the
methods of the library stand three yardsticks: *plain*, the mean of the losses, differentiated
without this library; *carry*, the same, which hands FAMO's state through untouched; *forward*, the
losses alone, which two-pass FAMO takes once more.

All are called in turns, so that each meets the same disturbances of the machine, and ratios are
taken within a round. Aggregation methods look at a gradient for each task, of all parameters or, at
the features that the trunk hands to the heads, of the heads alone (``z``). With more tasks than
``--most`` they are left out. ``tests/benchmarks`` compares with TorchJD.
"""

import argparse
import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import famo_jax
from famo_jax.experiments import _command, _methods, _plots, _statistics, _tables
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments._study import Option, Study, Summary

SIZES, BATCH_SIZE = (64, 512, 64), 256
ADAM = optax.adam(1e-3)
YARDSTICKS = ("plain", "carry", "forward")
AT_FEATURES = " z"  # behind the name of a method
# All methods but what costs the same as a form that is there.
LEFT_OUT = ("stl", "frozen", "famo-fresh")
TIMED = [name for name in METHODS if not name.endswith("-no-c") and name not in LEFT_OUT]


def make_problem(num_tasks: int) -> tuple[Any, Any]:
    """Initial parameters and one batch, inputs and targets: all noise."""
    generator = np.random.default_rng(0)
    draw: Any = lambda *shape: jnp.asarray(generator.standard_normal(shape, np.float32))
    sizes = [*SIZES, num_tasks]
    pairs = itertools.pairwise(sizes)
    layers = [{"kernel": draw(n, m) * (2 / n) ** 0.5, "bias": jnp.zeros(m)} for n, m in pairs]
    return layers, (draw(BATCH_SIZE, SIZES[0]), draw(BATCH_SIZE, num_tasks))


def features(params: Any, batch: Any) -> jax.Array:
    """What the trunk hands to the heads, z, ``[BATCH_SIZE, 64]``."""
    z: jax.Array = batch[0]
    for layer in params[:-1]:
        z = jax.nn.relu(z @ layer["kernel"] + layer["bias"])
    return z


def head_losses(params: Any, z: jax.Array, batch: Any) -> jax.Array:
    """The mean squared error of each task, ``[K]``."""
    return jnp.mean((z @ params[-1]["kernel"] + params[-1]["bias"] - batch[1]) ** 2, axis=0)


def task_losses(params: Any, batch: Any) -> jax.Array:
    """Both, ``[K]``."""
    return head_losses(params, features(params, batch), batch)


def plain_step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
    """A training step on the mean of the losses: parameters, state and losses."""

    def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
        losses = task_losses(params, batch)
        return jnp.mean(losses), losses

    grads, losses = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


def carry_step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
    """The same, which hands FAMO's state through."""
    params, own, losses = plain_step(params, opt_state[0], batch)
    return params, (own, opt_state[1]), losses


def make_step(name: str, num_tasks: int) -> tuple[Callable[..., Any], Any]:
    """The step of a method or a yardstick, and the transformation whose state it carries."""
    if name in YARDSTICKS:
        forward = lambda params, state, batch: (params, state, task_losses(params, batch))
        with_famo = optax.chain(ADAM, famo_jax.famo(num_tasks))
        steps = (plain_step, ADAM), (carry_step, with_famo), (forward, ADAM)
        return dict(zip(YARDSTICKS, steps, strict=True))[name]
    method, at_features = METHODS[name.removesuffix(AT_FEATURES)], name.endswith(AT_FEATURES)
    own = method.make(num_tasks, **dict.fromkeys(method.takes, 0.001))
    tx = optax.chain(own, ADAM) if method.aggregates else optax.chain(ADAM, own)
    fn, encoder = (head_losses, features) if at_features else (task_losses, None)
    weighed = famo_jax.losses_and_grads(fn, encoder=encoder)

    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        losses, grads = weighed(params, batch, state=opt_state)
        again = method.measure != "one-pass"
        extra = {"losses_fn": functools.partial(task_losses, batch=batch)} if again else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state, losses

    return step, tx


def compile_step(name: str, num_tasks: int, params: Any, batch: Any) -> Any:
    """Compiles a step for donated state, or gives None where the method has none at features."""
    step, tx = make_step(name, num_tasks)
    opt_state = jax.eval_shape(tx.init, params)
    try:
        return jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, batch).compile()
    except ValueError:
        if name.endswith(AT_FEATURES):
            return None
        raise


def measure(num_tasks: int, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """By step the ratios of its time, and of its temporary memory, to the plain step's."""
    from famo_jax.experiments import _train

    params, batch = make_problem(num_tasks)

    def call_of(name: str, step: Any) -> Callable[[], jax.Array]:  # goes on from call to call
        carry = [jax.tree.map(jnp.copy, params), make_step(name, num_tasks)[1].init(params)]

        def call() -> jax.Array:
            *carry[:], losses = step(*carry, batch)
            return jnp.asarray(jax.block_until_ready(losses))

        return call

    compiling = functools.partial(compile_step, num_tasks=num_tasks, params=params, batch=batch)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        steps = dict(zip(names, pool.map(compiling, names), strict=True))
    steps = {name: step for name, step in steps.items() if step is not None}
    memory = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
    calls = {name: call_of(name, step) for name, step in steps.items()}
    seconds = _train.interleaved_seconds(calls, rounds)
    return {
        name: {
            "time": _statistics.quartiles(np.divide(own, seconds["plain"])),
            "memory": memory[name] / memory["plain"],
            "milliseconds": 1e3 * float(np.median(own)),
        }
        for name, own in seconds.items()
    }


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Measures yardsticks and methods, aggregation also at features, by number of tasks."""
    aggregates = [name for name in options.methods if METHODS[name].aggregates]
    weighting = [name for name in options.methods if name not in aggregates]
    found = {}
    for num_tasks in options.tasks:
        tell = session.row(f"{num_tasks:,} tasks")
        tell("compiling and measuring")
        few = aggregates if num_tasks <= options.most else []
        names = [*YARDSTICKS, *weighting, *few, *(name + AT_FEATURES for name in few)]
        found[str(num_tasks)] = measure(num_tasks, names, options.rounds)
        tell("done")
    return Runs({"arms": {}, "tasks": found}, {})


def tables(summary: Summary) -> list[Any]:
    """A row for each step: time over the number of tasks, memory at most tasks that it has."""
    tasks = summary["tasks"]
    names = max(map(list, tasks.values()), key=len)
    table = _tables.new(
        "A step over a plain one, by the number of tasks",
        ["step"],
        [*(f"{int(k):,}" for k in tasks), "memory", "tasks"],
        padding=1,
    )
    shown: Any = lambda ratio: f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"
    for name in names:
        times = (
            shown(own[name]["time"]["median"]) if name in own else "" for own in tasks.values()
        )
        last = [k for k, own in tasks.items() if name in own][-1]
        table.add_row(name, *times, shown(tasks[last][name]["memory"]), f"{int(last):,}")
    plain = ", ".join(f"{own['plain']['milliseconds']:.2f}" for own in tasks.values())
    parts = [
        table,
        "Medians of ratios within a round. z: task gradients at the features, else of all "
        f"parameters. Memory: temporary, at so many tasks. A plain step takes {plain} ms.",
    ]
    for name in ("famo-one-pass", "famo"):
        spans = (
            "{q1:.2f}-{q3:.2f}".format(**own[name]["time"]) for own in tasks.values() if name in own
        )
        parts.append(f"{name}, quartiles: {', '.join(spans) or 'not timed'}.")
    return parts


def group_of(name: str) -> str:
    """The band of a step in the picture, or what has a line of its own."""
    if name.endswith(AT_FEATURES) or name not in METHODS:
        return "at features" if name.endswith(AT_FEATURES) else ""
    own = name if name in ("famo", "famo-one-pass") else "other weighting"
    return "aggregation" if METHODS[name].aggregates else own


COLOURS = {"other weighting": "#888888", "aggregation": "#882255", "at features": "#332288"}
COLOURS |= {name: METHODS[name].colour for name in ("famo-one-pass", "famo")}


def draw(summary: Summary) -> Any:
    """Time and temporary memory over K: FAMO, and bands of the other methods."""
    with _plots.picture(height=2.9) as figure:
        times, memory = figure.subplots(1, 2)
        _draw_over_tasks(times, summary["tasks"], lambda each: each["time"]["median"])
        _draw_over_tasks(memory, summary["tasks"], lambda each: each["memory"])
        times.set_title("time of a step over a plain one")
        memory.set_title("temporary memory over a plain step's")
    return figure


def _draw_over_tasks(axes: Any, tasks: Mapping[str, Any], ratio: Callable[[Any], float]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="number of tasks K")
    ends = {}
    for group, colour in COLOURS.items():
        spans = {
            int(k): [ratio(each) for name, each in own.items() if group_of(name) == group]
            for k, own in tasks.items()
        }
        spans = {k: found for k, found in spans.items() if found}
        if spans:
            low, high = list(map(min, spans.values())), list(map(max, spans.values()))
            axes.fill_between(list(spans), low, high, color=colour, alpha=0.4, lw=1.4, label=group)
            if low == high:
                axes.plot(list(spans), low, "o-", color=colour, markersize=3)
            ends[group] = (max(spans), (low[-1] * high[-1]) ** 0.5, colour)
    axes.set_xticks([*map(int, tasks)], [f"{int(k):,}" for k in tasks])
    axes.set_xticks([], minor=True)
    _plots.plain_numbers(axes.yaxis)
    last = max(map(int, tasks))
    _plots.label_ends(
        axes, {name: (y, colour) for name, (x, y, colour) in ends.items() if x == last}
    )
    for name, (x, y, colour) in ends.items():
        if x < last:
            axes.text(1.3 * x, y, name, color=colour, va="center")


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses fewer rounds than quartiles need, and puts names in order."""
    if options.rounds < 2:
        parser.error(f"argument --rounds: expected at least 2, got {options.rounds}")
    options.tasks.sort()
    options.methods = [name for name in TIMED if name in options.methods]


STUDY = Study(
    name="cost",
    title="What each method adds to a training step: time and temporary memory",
    seconds=360,
    full="--tasks 2 10 40 1000 10000 --rounds 100 --most 40 --methods " + " ".join(TIMED),
    quick="--tasks 2 10 --rounds 10 --methods ls famo famo-one-pass mgda",
    run=run,
    summarize=lambda runs: {"tasks": runs.facts["tasks"]},
    tables=tables,
    pictures={"cost.png": draw},
    options={
        "tasks": Option(_command.positive_int, "numbers of tasks", True, "K"),
        "methods": _command.methods_option(TIMED),
        "rounds": Option(_command.positive_int, "how many times a step is timed, at least 2"),
        "most": Option(_command.positive_int, "tasks up to which aggregation is timed"),
    },
    epilog=_methods.described({name: METHODS[name] for name in TIMED}),
    check=check,
    saves=False,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
