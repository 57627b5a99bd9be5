"""What each method adds to a training step: time and temporary memory, over the number of tasks.

Run as ``python -m famo_jax.experiments.cost``. All steps share network (64 inputs, 512 and 64 units,
K outputs), batch (256 rows) and Adam, and state is donated, as in training. Beside the methods of
the library stand three yardsticks:

* plain: the mean of the losses, differentiated without this library;
* carry: the plain step, which hands FAMO's state through untouched: the price of six more arrays
  in a call;
* forward: the losses alone, which two-pass FAMO takes once more.

All are called in turns, so that each meets the same disturbances of the machine, and ratios are
taken within a round. Aggregation methods look at a gradient for each task, of all parameters or, at
the features that the trunk hands to the heads, of the heads alone (``z``). With more tasks than
``--most`` they are left out. ``tests/benchmarks`` compares with TorchJD.
"""

import argparse
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import famo_jax
from famo_jax.experiments import _command, _methods, _statistics, _tables
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import METHODS
from famo_jax.experiments._study import Option, Study, Summary

# --- The problem ----------------------------------------------------------------------------------

SIZES, BATCH_SIZE = (64, 512, 64), 256


class Batch(NamedTuple):
    """What a training step sees."""

    inputs: jax.Array  # [BATCH_SIZE, 64]
    targets: jax.Array  # [BATCH_SIZE, K]


Params = list[dict[str, jax.Array]]  # a kernel and a bias for each layer, of which the last is K heads


def make_problem(num_tasks: int) -> tuple[Params, Batch]:
    """Initial parameters and one batch: inputs and targets are noise."""
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(generator.standard_normal(shape, np.float32))
    sizes = [*SIZES, num_tasks]
    layers = [
        {"kernel": draw(n, m) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    return layers, Batch(draw(BATCH_SIZE, SIZES[0]), draw(BATCH_SIZE, num_tasks))


def features(params: Params, batch: Batch) -> jax.Array:
    """What the trunk hands to the heads, z, ``[BATCH_SIZE, 64]``."""
    z = batch.inputs
    for layer in params[:-1]:
        z = jax.nn.relu(z @ layer["kernel"] + layer["bias"])
    return z


def head_losses(params: Params, z: jax.Array, batch: Batch) -> jax.Array:
    """The mean squared error of each task, ``[K]``."""
    errors = z @ params[-1]["kernel"] + params[-1]["bias"] - batch.targets
    return jnp.mean(errors**2, axis=0)


def task_losses(params: Params, batch: Batch) -> jax.Array:
    """Both, ``[K]``."""
    return head_losses(params, features(params, batch), batch)


# --- The steps ------------------------------------------------------------------------------------

YARDSTICKS = ("plain", "carry", "forward")
AT_FEATURES = " z"  # behind the name of a method
ADAM = optax.adam(1e-3)
Step = Callable[[Params, Any, Batch], tuple[Params, Any, jax.Array]]


def plain_step(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
    """A training step on the mean of the losses."""

    def loss_fn(params: Params) -> tuple[jax.Array, jax.Array]:
        losses = task_losses(params, batch)
        return jnp.mean(losses), losses

    grads, losses = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


def make_step(name: str, num_tasks: int) -> tuple[Step, optax.GradientTransformation]:
    """The step of a method or a yardstick, and the transformation whose state it carries."""
    if name == "plain":
        return plain_step, ADAM
    if name == "forward":
        return lambda params, state, batch: (params, state, task_losses(params, batch)), ADAM
    if name == "carry":

        def carry(params: Params, state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
            params, own, losses = plain_step(params, state[0], batch)
            return params, (own, state[1]), losses

        return carry, optax.chain(ADAM, famo_jax.famo(num_tasks))
    method = METHODS[name.removesuffix(AT_FEATURES)]
    own = method.make(num_tasks, **{each: {"gamma": 1e-3, "task": 0}[each] for each in method.takes})
    tx = optax.chain(own, ADAM) if method.aggregates else optax.chain(ADAM, own)
    at_features = name.endswith(AT_FEATURES)
    weighed = famo_jax.losses_and_grads(
        head_losses if at_features else task_losses, encoder=features if at_features else None
    )

    def step(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
        losses, grads = weighed(params, batch, state=opt_state)
        two_pass = method.measure == "two-pass"
        extra = {"losses_fn": functools.partial(task_losses, batch=batch)} if two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state, losses

    return step, tx


def compile_step(name: str, num_tasks: int, params: Params, batch: Batch) -> Any:
    """Compiles a step for donated state, or gives None where the method has none at features."""
    step, tx = make_step(name, num_tasks)
    opt_state = jax.eval_shape(tx.init, params)
    try:
        return jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, batch).compile()
    except ValueError:
        if name.endswith(AT_FEATURES):
            return None
        raise


def make_call(compiled: Any, name: str, num_tasks: int, params: Params, batch: Batch) -> Any:
    """A training run of which each call makes one step and gives the losses, ``[K]``."""
    params = jax.tree.map(jnp.copy, params)
    carry = [params, make_step(name, num_tasks)[1].init(params)]

    def call() -> jax.Array:
        *carry[:], losses = jax.block_until_ready(compiled(*carry, batch))
        return losses

    return call


# --- The run --------------------------------------------------------------------------------------


def names_of(methods: Sequence[str], aggregation: bool) -> list[str]:
    """The steps: the yardsticks, and every method, aggregation also at features."""
    weighting = [name for name in methods if not METHODS[name].aggregates]
    on_parameters = [name for name in methods if METHODS[name].aggregates and aggregation]
    return [*YARDSTICKS, *weighting, *on_parameters, *(name + AT_FEATURES for name in on_parameters)]


def measure(num_tasks: int, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """By step the ratios of its time, and of its temporary memory, to the plain step's."""
    from famo_jax.experiments import _train

    params, batch = make_problem(num_tasks)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_step, name, num_tasks, params, batch) for name in names]
        compiled = {
            name: own for name, job in zip(names, jobs, strict=True) if (own := job.result())
        }
    calls = {
        name: make_call(own, name, num_tasks, params, batch) for name, own in compiled.items()
    }
    memory = {name: own.memory_analysis().temp_size_in_bytes for name, own in compiled.items()}
    seconds = {
        name: np.array(own) for name, own in _train.interleaved_seconds(calls, rounds).items()
    }
    return {
        name: {
            "time": _statistics.quartiles(seconds[name] / seconds["plain"]),
            "memory": memory[name] / memory["plain"],
            "milliseconds": 1e3 * float(np.median(seconds[name])),
        }
        for name in calls
    }


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Measures at every number of tasks."""
    found = {}
    for num_tasks in options.tasks:
        tell = session.row(f"{num_tasks:,} tasks")
        tell("compiling and measuring")
        names = names_of(options.methods, num_tasks <= options.most)
        found[str(num_tasks)] = measure(num_tasks, names, options.rounds)
        tell("done")
    return Runs({"arms": {}, "tasks": found}, {})


# --- What is shown --------------------------------------------------------------------------------


def tables(summary: Summary) -> list[Any]:
    """A row for each step: time over the number of tasks, memory at two of them."""
    tasks = summary["tasks"]
    largest = max(tasks, key=lambda k: len(tasks[k]))
    most = next((k for k in reversed(tasks) if len(tasks[k]) == len(tasks[largest])), largest)
    remembered = list(dict.fromkeys([most, list(tasks)[-1]]))
    columns = [*tasks, *(f"memory\n{int(k):,}" for k in remembered)]
    headers = [f"{int(each):,}" if each in tasks else each for each in columns]
    table = _tables.new("A step over a plain one, by the number of tasks", ["step"], headers, 1)
    shown = lambda ratio: f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"
    for name in tasks[largest]:
        times = (shown(own[name]["time"]["median"]) if name in own else "" for own in tasks.values())
        memory = (shown(tasks[k][name]["memory"]) if name in tasks[k] else "" for k in remembered)
        table.add_row(name, *times, *memory)
    plain = ", ".join(f"{own['plain']['milliseconds']:.2f}" for own in tasks.values())
    spread = (
        f"{name} {', '.join('{q1:.2f}-{q3:.2f}'.format(**own[name]['time']) for own in tasks.values())}"
        for name in ("famo-one-pass", "famo")
        if name in tasks[largest]
    )
    return [
        table,
        "Medians of ratios within a round. z: task gradients at the features, else of all "
        f"parameters. A plain step takes {plain} ms. Quartiles: {'; '.join(spread) or 'none'}.",
    ]


GROUPS = {  # methods whose lines would lie on each other are a band
    "other weighting": ("#bbbbbb", lambda name: name in METHODS and not METHODS[name].aggregates),
    "aggregation": ("#882255", lambda name: name in METHODS and METHODS[name].aggregates),
    "at features": ("#332288", lambda name: name.endswith(AT_FEATURES)),
}


def draw(summary: Summary) -> Any:
    """Time and temporary memory over K: FAMO, the other weighting methods, aggregation."""
    from famo_jax.experiments import _plots

    with _plots.picture(height=2.9) as figure:
        panels = figure.subplots(1, 2)
        ratios = {
            "time of a step over a plain one": lambda each: each["time"]["median"],
            "temporary memory over a plain step's": lambda each: each["memory"],
        }
        for axes, (title, ratio) in zip(panels, ratios.items(), strict=True):
            _draw_over_tasks(axes, summary["tasks"], ratio)
            axes.set_title(title)
    return figure


def _draw_over_tasks(axes: Any, tasks: Mapping[str, Any], ratio: Callable[[Any], float]) -> None:
    from famo_jax.experiments import _plots

    axes.set(xscale="log", yscale="log", xlabel="number of tasks K")
    ends = {}
    for label, (colour, belongs) in GROUPS.items():
        spans = {
            int(k): found
            for k, own in tasks.items()
            if (found := [ratio(each) for name, each in own.items() if belongs(name)
                          and not name.startswith("famo")])
        }  # fmt: skip
        if spans:
            low, high = list(map(min, spans.values())), list(map(max, spans.values()))
            axes.fill_between(list(spans), low, high, color=colour, alpha=0.4, lw=2, label=label)
            ends[label] = (max(spans), (low[-1] * high[-1]) ** 0.5, colour)
    for name in ("famo-one-pass", "famo"):
        found = {int(k): ratio(own[name]) for k, own in tasks.items() if name in own}
        if found:
            x, values, colour = list(found), list(found.values()), METHODS[name].colour
            axes.plot(x, values, "o-", color=colour, markersize=3, label=name)
            ends[name] = (x[-1], values[-1], colour)
    places = list(map(int, tasks))
    axes.set_xticks(places, [f"{k:,}" for k in places])
    axes.set_xticks([], minor=True)
    _plots.plain_numbers(axes.yaxis)
    _plots.label_ends(axes, ends)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses fewer rounds than quartiles need, and puts names in order."""
    if options.rounds < 2:
        parser.error(f"argument --rounds: expected at least 2, got {options.rounds}")
    options.tasks.sort()
    options.methods = [name for name in TIMED if name in options.methods]


# All but what costs the same as a form that is there.
LEFT_OUT = ("stl", "frozen", "famo-fresh")
TIMED = [name for name in METHODS if not name.endswith("-no-c") and name not in LEFT_OUT]
STUDY = Study(
    name="cost",
    title="What each method adds to a training step: time and temporary memory",
    seconds=307,
    full={
        "tasks": [2, 10, 40, 1000, 10000],
        "methods": TIMED,
        "rounds": 100,
        "most": 40,
    },
    quick={
        "tasks": [2, 10],
        "methods": ["ls", "famo", "famo-one-pass", "mgda"],
        "rounds": 10,
    },
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
