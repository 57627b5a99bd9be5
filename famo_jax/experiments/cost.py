"""What each method adds to a training step: time and temporary memory, over the number of tasks.

Run as ``python -m famo_jax.experiments.cost``. All steps share network, batch and Adam, and state
is donated, as in training. Besides the methods there are four yardsticks:

* plain: the mean of the losses, differentiated without this library;
* carry: the plain step, which hands FAMO's state through untouched. What this takes more is
  the price of six more arrays in a call, and what one-pass FAMO takes more than this that of its
  kernels; ``--scan`` shows both where a call makes several steps;
* forward: the losses alone;
* look-again: the plain step and the losses after it, compiled as one. Two-pass FAMO less this is
  FAMO's own arithmetic and the carrying of its state.

All are called in turn, in random order, so that each meets the same disturbances of the machine;
what is reported are medians and quartiles, ratios and differences being taken within a round. With
the extra ``peers`` TorchJD's FAMO and aggregators take their turns too, on the same network and
batch.

Aggregation methods keep a gradient for each task. One whose memory is predicted to exceed
``--max-gib``, or whose step ``--max-seconds``, is not run, which is a result.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

import famo_jax
from famo_jax.experiments import _command, _tables
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import METHODS as TABLE
from famo_jax.experiments._study import Option, Study, Summary

Array = npt.NDArray[Any]
GIB = 2**30

# --- The problem ----------------------------------------------------------------------------------


class Network(NamedTuple):
    """Hidden layers, from the shapes of their kernels; the heads of all tasks are one layer more.

    A kernel of four axes (height, width, channels in and out) is a convolution of stride 2.
    """

    description: str
    input_shape: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    batch_size: int


NETWORKS = {
    "mlp": Network("64 inputs, 512 and 64 units", (64,), ((64, 512), (512, 64)), 256),
    "conv": Network(
        "16 x 16 x 3 pixels, 3 x 3 convolutions to 32 and 64 channels, 64 units",
        (16, 16, 3),
        ((3, 3, 3, 32), (3, 3, 32, 64), (1024, 64)),
        64,
    ),
}


class Batch(NamedTuple):
    """What a training step sees. B is the size of the batch."""

    inputs: jax.Array  # [B, ...]
    targets: jax.Array  # [B, K]


Params: TypeAlias = list[dict[str, jax.Array]]  # a kernel and a bias for each layer


def make_problem(network: Network, num_tasks: int) -> tuple[Params, Batch]:
    """Initial parameters and one batch: inputs and targets are noise."""
    inputs_key, targets_key, *keys = jax.random.split(jax.random.key(0), 3 + len(network.kernels))
    shapes = [*network.kernels, (network.kernels[-1][-1], num_tasks)]
    init = jax.nn.initializers.he_normal()
    params = [
        {"kernel": init(key, shape), "bias": jnp.zeros(shape[-1])}
        for key, shape in zip(keys, shapes, strict=True)
    ]
    inputs = jax.random.normal(inputs_key, (network.batch_size, *network.input_shape))
    targets = jax.random.normal(targets_key, (network.batch_size, num_tasks))
    return params, Batch(inputs, targets)


def task_losses(params: Params, batch: Batch) -> jax.Array:
    """The mean squared error of each task, ``[K]``."""
    hidden = _layer(params[0], batch.inputs)
    for layer in params[1:]:
        hidden = _layer(layer, jax.nn.relu(hidden))
    return jnp.mean((hidden - batch.targets) ** 2, axis=0)


def _layer(layer: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    kernel = layer["kernel"]
    if kernel.ndim == 2:
        return inputs.reshape(len(inputs), -1) @ kernel + layer["bias"]
    # The padding is spelled out since that of "SAME" at stride 2 is not PyTorch's.
    layout = ("NHWC", "HWIO", "NHWC")
    outputs = jax.lax.conv_general_dilated(inputs, kernel, (2, 2), 2 * [(1, 1)], None, None, layout)
    return outputs + layer["bias"]


def task_gradients_bytes(params: Params, num_tasks: int) -> int:
    """The size of a gradient for each task, what an aggregation method keeps at the least."""
    return num_tasks * sum(int(leaf.nbytes) for leaf in jax.tree.leaves(params))


# --- The steps ------------------------------------------------------------------------------------

Transformation: TypeAlias = optax.GradientTransformationExtraArgs
Step: TypeAlias = Callable[[Params, Any, Batch], tuple[Params, Any, jax.Array]]

WEIGHTING: dict[str, Callable[[int], Transformation]] = {
    "ls": lambda num_tasks: famo_jax.weighting.ls(),
    "si": lambda num_tasks: famo_jax.weighting.si(),
    "rlw": lambda num_tasks: famo_jax.weighting.rlw(num_tasks, key=0),
    "dwa": famo_jax.weighting.dwa,
    "uw": famo_jax.weighting.uw,
    "amortized-mgda": famo_jax.weighting.amortized_mgda,
    "famo-one-pass": famo_jax.famo,
    "famo-two-pass": famo_jax.famo,
}
AGGREGATION: dict[str, Callable[[], Transformation]] = {
    "mgda": famo_jax.aggregation.mgda,
    "pcgrad": functools.partial(famo_jax.aggregation.pcgrad, key=0),
    "cagrad": famo_jax.aggregation.cagrad,
    "imtl-g": famo_jax.aggregation.imtl_g,
    "graddrop": functools.partial(famo_jax.aggregation.graddrop, key=0),
    "nash-mtl": famo_jax.aggregation.nash_mtl,
}
METHODS = (*WEIGHTING, *AGGREGATION)
YARDSTICKS = ("plain", "carry", "forward", "look-again")
ADAM = optax.adam(1e-3)


def plain_step(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
    """A training step on the mean of the losses."""

    def loss_fn(params: Params) -> tuple[jax.Array, jax.Array]:
        losses = task_losses(params, batch)
        return jnp.mean(losses), losses

    grads, losses = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


def _carry(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
    opt_state, famo_state = opt_state
    params, opt_state, losses = plain_step(params, opt_state, batch)
    return params, (opt_state, famo_state), losses


def _forward(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
    return params, opt_state, task_losses(params, batch)


def _look_again(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
    params, opt_state, losses = plain_step(params, opt_state, batch)
    return params, opt_state, losses + task_losses(params, batch)


def make_step(name: str, num_tasks: int) -> tuple[Step, optax.GradientTransformation]:
    """The step of a method or a yardstick, and the transformation whose state it carries."""
    if name == "carry":
        return _carry, optax.chain(ADAM, famo_jax.famo(num_tasks))
    if name in YARDSTICKS:
        return {"plain": plain_step, "forward": _forward, "look-again": _look_again}[name], ADAM
    if name in WEIGHTING:
        tx = optax.chain(ADAM, WEIGHTING[name](num_tasks))
    else:
        tx = optax.chain(AGGREGATION[name](), ADAM)

    def step(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
        losses_fn = functools.partial(task_losses, batch=batch)
        losses, grads = famo_jax.losses_and_grads(losses_fn)(params, state=opt_state)
        extra = {"losses_fn": losses_fn} if name == "famo-two-pass" else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state, losses

    return step, tx


def compile_step(name: str, num_tasks: int, params: Params, batch: Batch, scan: int = 1) -> Any:
    """Compiles a step for donated state, or a scan of several; it returns the last one's losses.

    Nothing of the size of the state is allocated.
    """
    one, tx = make_step(name, num_tasks)

    def several(params: Params, opt_state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
        def body(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], jax.Array]:
            # Else the forward pass alone, whose parameters stay, would be made once for all steps.
            carry = jax.lax.optimization_barrier(carry)
            params, opt_state, losses = one(*carry, batch)
            return (params, opt_state), losses

        carry, losses = jax.lax.scan(body, (params, opt_state), length=scan)
        return *carry, losses[-1]

    step = several if scan > 1 else one
    opt_state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, batch).compile()


Call: TypeAlias = Callable[[], Array]  # goes on where the last one ended; gives the losses, [K]


def make_call(compiled: Any, name: str, num_tasks: int, params: Params, batch: Batch) -> Call:
    """A training run of which each call makes one step, or those of one scan."""
    params = jax.tree.map(jnp.copy, params)
    carry = [params, make_step(name, num_tasks)[1].init(params)]

    def call() -> Array:
        *carry[:], losses = jax.block_until_ready(compiled(*carry, batch))
        return np.asarray(losses)

    return call


# --- TorchJD --------------------------------------------------------------------------------------

PEERS = {  # the name of its class for ours; eager, as its users run it
    "famo-two-pass": "FAMO",
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad",
    "imtl-g": "IMTLG",
    "graddrop": "GradDrop",
    "nash-mtl": "NashMTL",
}


def why_no_peers() -> str | None:
    """Why TorchJD takes no part, or None where it does."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchjd") is None:
        return "TorchJD takes no part: it is not installed (extra `peers`)."
    if jax.default_backend() == "gpu" and not importlib.import_module("torch").cuda.is_available():
        return "TorchJD takes no part: this PyTorch does not see the GPU."
    return None


def make_peer(name: str, params: Params, batch: Batch) -> Call:
    """A training run by PyTorch's Adam of TorchJD's method, or of the mean with ``plain``."""
    torch, aggregation, autojac, scalarization = map(
        importlib.import_module,
        ("torch", "torchjd.aggregation", "torchjd.autojac", "torchjd.scalarization"),
    )
    functional = torch.nn.functional
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"

    def tensor(array: jax.Array, *axes: int) -> Any:  # in PyTorch's order of the axes
        array = array.transpose(axes) if array.ndim == len(axes) else array
        return torch.tensor(np.ascontiguousarray(array), device=device)

    inputs, targets = tensor(batch.inputs, 0, 3, 1, 2), tensor(batch.targets)
    layers = [
        (
            tensor(layer["kernel"], 3, 2, 0, 1)
            if layer["kernel"].ndim == 4
            else tensor(layer["kernel"], 1, 0),
            tensor(layer["bias"]),
        )
        for layer in params
    ]
    weights = [weight.requires_grad_() for layer in layers for weight in layer]
    optimizer = torch.optim.Adam(weights, 1e-3)

    def losses_fn() -> Any:
        hidden = inputs
        for index, (kernel, bias) in enumerate(layers):
            hidden = functional.relu(hidden) if index else hidden
            if kernel.ndim == 4:
                hidden = functional.conv2d(hidden, kernel, bias, stride=2, padding=1)
            else:
                if hidden.ndim == 4:
                    hidden = hidden.permute(0, 2, 3, 1).flatten(1)
                hidden = functional.linear(hidden, kernel, bias)
        return (hidden - targets).pow(2).mean(0)

    num_tasks = batch.targets.shape[1]
    famo = scalarization.FAMO(num_tasks).to(device) if name == "famo-two-pass" else None
    arguments: dict[str, dict[str, Any]]
    arguments = {"cagrad": {"c": 0.4}, "nash-mtl": {"n_tasks": num_tasks}}
    aggregator = None
    if name in AGGREGATION:
        aggregator = getattr(aggregation, PEERS[name])(**arguments.get(name, {}))

    def call() -> Array:
        optimizer.zero_grad()
        losses = losses_fn()
        if aggregator is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of the solvers
                autojac.backward(losses)
                autojac.jac_to_grad(weights, aggregator)
        else:
            (losses.mean() if famo is None else famo(losses)).backward()
        optimizer.step()
        if famo is not None:
            with torch.no_grad():
                famo.update(losses_fn())
        seen: Array = losses.detach().cpu().numpy()  # waits for the device
        return seen

    return call


# --- Measuring ------------------------------------------------------------------------------------

FEW = 20  # rounds of TorchJD's calls, and of one that takes more than DEAR plain steps
DEAR = 4


class Limits(NamedTuple):
    """How steps are timed, and what they may cost."""

    rounds: int
    scan: int  # steps of ours in a call
    max_gib: float  # of task gradients, or of temporary memory
    max_seconds: float  # for FEW rounds of a step, or for a step that is predicted


def measure(
    calls: Mapping[str, Call], limits: Limits
) -> tuple[dict[str, Array], dict[str, list[int]]]:
    """Times all calls in turns, in an order that is drawn for each round.

    Returns:
      The seconds of each step, and the rounds in which they were measured. Of an aggregation
      method too slow for ``FEW`` rounds in ``max_seconds`` a single step, in no round.
    """
    first = {name: _timed(call) for name, call in calls.items()}
    # A first call may be slow for other reasons, unless it is so by far.
    again = [name for name in calls if 2 * first[name] < limits.max_seconds]
    first |= {name: min(first[name], _timed(calls[name])) for name in again}
    slow = {
        name
        for name, seconds in first.items()
        if _aggregates(name) and FEW * seconds > limits.max_seconds
    }
    every = max(1, limits.rounds // FEW)
    strides = {
        name: every if _is_theirs(name) or first[name] > DEAR * first["plain"] else 1
        for name in calls
        if name not in slow
    }
    seconds: dict[str, list[float]] = {name: [] for name in strides}
    draw = random.Random(0)
    for index in range(limits.rounds):
        # PyTorch's threads keep the cores busy for a while after they are done, so TorchJD is last.
        for name in sorted(draw.sample(list(strides), len(strides)), key=_is_theirs):
            if index % strides[name] == 0:
                seconds[name].append(_timed(calls[name]))
    once = {name: np.array([first[name]]) for name in slow}
    rounds = {name: list(range(0, limits.rounds, stride)) for name, stride in strides.items()}
    calls_of = {name: np.array(each) for name, each in seconds.items()} | once
    steps = {name: 1 if _is_theirs(name) else limits.scan for name in calls_of}
    return {name: each / steps[name] for name, each in calls_of.items()}, rounds


def _is_theirs(name: str) -> bool:
    return name.startswith("torchjd-")


def _aggregates(name: str) -> bool:
    return name.removeprefix("torchjd-") in AGGREGATION


def _timed(call: Call) -> float:
    start = time.perf_counter()
    losses = call()
    seconds = time.perf_counter() - start
    if not np.all(np.isfinite(losses)):
        raise FloatingPointError("a loss is not finite")
    return seconds


def run_setting(
    network: Network,
    num_tasks: int,
    methods: Sequence[str],
    limits: Limits,
    *,
    peers: bool,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures every method at one number of tasks.

    Args:
      network: The hidden layers.
      num_tasks: K.
      methods: Among ``METHODS``.
      limits: What may be run.
      peers: Whether TorchJD takes part.
      before: What this function returned for a smaller K, from which to predict.

    Returns:
      Figures by name, those of TorchJD's methods with ``torchjd-`` in front. Times are in seconds,
      and ``stopped`` says why a step was not run.
    """
    params, batch = make_problem(network, num_tasks)
    theirs = ["plain", *(name for name in methods if name in PEERS)] if peers else []
    names = [*YARDSTICKS, *methods, *(f"torchjd-{name}" for name in theirs)]
    stopped = {name: _predict(name, num_tasks, params, limits, before) for name in names}
    ours = [  # compiled for their memory where they would take too long
        name for name in (*YARDSTICKS, *methods) if (stopped[name] or {}).get("limit") != "memory"
    ]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        jobs = [
            executor.submit(compile_step, name, num_tasks, params, batch, limits.scan)
            for name in ours
        ]
        compiled = {name: job.result() for name, job in zip(ours, jobs, strict=True)}
    memory = {name: each.memory_analysis().temp_size_in_bytes for name, each in compiled.items()}
    for name, size in memory.items():
        if _aggregates(name) and size > limits.max_gib * GIB:
            stopped[name] = {"limit": "memory", "predicted": size, "by": "the compiled step"}
    calls = {
        name: make_peer(name.removeprefix("torchjd-"), params, batch)
        if _is_theirs(name)
        else make_call(compiled[name], name, num_tasks, params, batch)
        for name in names
        if stopped[name] is None
    }
    seconds, rounds = measure(calls, limits)

    def against(name: str, *others: str) -> tuple[Array, Array]:
        """The seconds of a call, and of others in sum, in the rounds that they share."""
        shared = set.intersection(*(set(rounds[each]) for each in (name, *others)))

        def at(each: str) -> Array:
            return seconds[each][[index in shared for index in rounds[each]]]

        return at(name), np.sum([at(other) for other in others], axis=0)

    def ratio(name: str, *others: str) -> dict[str, float]:
        if name not in rounds:  # it was timed once
            return _spread(seconds[name] / sum(np.median(seconds[other]) for other in others))
        return _spread(np.divide(*against(name, *others)))

    figures = {
        name: {
            "stopped": stopped[name],
            "timed": len(seconds.get(name, [])),
            "seconds": _spread(seconds[name]) if name in seconds else None,
            "over_plain": ratio(name, "plain") if name in seconds else None,
            "temporary_bytes": memory.get(name),
            "temporary_over_plain": memory[name] / memory["plain"] if name in memory else None,
        }
        for name in names
    }
    for name in ("famo-one-pass", "famo-two-pass"):
        if name in rounds:
            same = "carry" if name == "famo-one-pass" else "look-again"
            figures[name]["own_arithmetic"] = _spread(np.subtract(*against(name, same)))
    if "famo-one-pass" in rounds:
        figures["famo-one-pass"]["over_carry"] = ratio("famo-one-pass", "carry")
    if "famo-two-pass" in rounds:
        figures["famo-two-pass"] |= {
            "over_plain_and_forward": ratio("famo-two-pass", "plain", "forward"),
            "over_look_again": ratio("famo-two-pass", "look-again"),
            "second_forward": _spread(np.subtract(*against("look-again", "plain"))),
            "less_plain_and_forward": _spread(
                np.subtract(*against("famo-two-pass", "plain", "forward"))
            ),
        }
    if "torchjd-famo-two-pass" in rounds:
        figures["torchjd-famo-two-pass"]["over_torchjd_plain"] = ratio(
            "torchjd-famo-two-pass", "torchjd-plain"
        )
    return figures


def _predict(
    name: str, num_tasks: int, params: Params, limits: Limits, before: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Why a step is not run, or None."""
    if not _aggregates(name):
        return None
    size = task_gradients_bytes(params, num_tasks)
    if size > limits.max_gib * GIB:
        return {"limit": "memory", "predicted": size, "by": "tasks x parameters x 4 bytes"}
    if before is None:
        return None
    stopped, seconds = (before["figures"][name][key] for key in ("stopped", "seconds"))
    if stopped is not None and stopped["limit"] == "memory":
        return dict(stopped)
    # The Gram matrix alone grows with the square of K.
    growth = (num_tasks / before["num_tasks"]) ** 2
    predicted = growth * (seconds["median"] if stopped is None else stopped["predicted"])
    if limits.scan * predicted > limits.max_seconds:
        reason = f"that at {before['num_tasks']:,} tasks, times the square of their ratio"
        return {"limit": "time", "predicted": predicted, "by": reason}
    return None


def _spread(values: Array) -> dict[str, float]:
    """Quartiles; and the standard error of the median where it can be told."""
    low, median, high = np.percentile(values, [25, 50, 75])
    # As of normal values: sqrt(pi / 2) s / sqrt(n), with s from the quartiles.
    error = 1.2533 * (high - low) / 1.349 / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"q1": low, "median": median, "q3": high, "se": error}


# --- What is shown --------------------------------------------------------------------------------

RATIO_GOAL, MEMORY_GOAL = 1.02, 1.01


def table(network: str, results: Sequence[Mapping[str, Any]]) -> Any:
    """Medians: a row for each step, a column for each number of tasks, at most 80 wide."""
    headers = (f"{result['num_tasks']:,}" for result in results)
    rows = _tables.new(None, [f"{network}: tasks"], headers, padding=2)
    columns = [result["figures"] for result in results]
    names = [name for name in columns[0] if name not in YARDSTICKS]

    def add(label: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        rows.add_row(label, *map(cell, columns))

    def ratio(name: str, over: str = "over_plain") -> Callable[[Mapping[str, Any]], str]:
        return lambda figures: _cell(figures[name], over)

    add("plain step (ms)", lambda figures: f"{1e3 * figures['plain']['seconds']['median']:.2f}")
    for name in ("carry", "forward", *(name for name in names if not _is_theirs(name))):
        add(name, ratio(name))
        if name == "famo-one-pass":
            add("  over carry", ratio(name, "over_carry"))
        if name == "famo-two-pass":
            add("  over plain + forward", ratio(name, "over_plain_and_forward"))
            add("  over look-again", ratio(name, "over_look_again"))
    rows.add_section()
    for name in names:
        if _is_theirs(name):
            add(name, ratio(name))
    rows.add_section()
    for name in names:
        if name in AGGREGATION or name.startswith("famo"):
            add(f"memory, {name}", ratio(name, "temporary_over_plain"))
    return rows


def _cell(figures: Mapping[str, Any], key: str) -> str:
    stopped, value = figures.get("stopped"), figures.get(key)
    if value is None and stopped is not None:
        memory = stopped["limit"] == "memory"
        return (
            f"{stopped['predicted'] / GIB:.1f} GiB" if memory else f"{stopped['predicted']:.0f} s"
        )
    if value is None:
        return ""
    once = "*" if figures["timed"] == 1 and isinstance(value, Mapping) else ""
    number = value["median"] if isinstance(value, Mapping) else value
    decimals = 3 if number < 2 else 1 if number < 100 else 0
    return f"{number:.{decimals}f}{once}"


def goals(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether FAMO costs what it should, for each goal the settings that miss it."""
    kinds = (
        ("famo-one-pass", "over_plain", RATIO_GOAL, "one-pass / plain"),
        ("famo-two-pass", "over_plain_and_forward", RATIO_GOAL, "two-pass / (plain + forward)"),
        ("famo-one-pass", "temporary_over_plain", MEMORY_GOAL, "one-pass / plain, memory"),
    )
    lines = []
    for name, key, goal, words in kinds:
        found = (
            [(each["figures"][name][key], each) for each in results if key in each["figures"][name]]
            if all(name in each["figures"] for each in results)
            else []
        )
        missed = [
            f"{_plain(value)} ({each['network']}, K = {each['num_tasks']:,})"
            for value, each in found
            if (value["median"] if isinstance(value, Mapping) else value) > goal
        ]
        if found:
            verdict = "missed: " + ", ".join(missed) if missed else "at every K"
            lines.append(f"{words} at most {goal}: {verdict}.")
    return lines


def _plain(value: Mapping[str, float] | float) -> str:
    if isinstance(value, Mapping):
        return f"{value['median']:.3f} ± {value['se']:.3f}"
    return f"{value:.3f}"


def notes(limits: Limits) -> list[str]:
    """What the tables leave out."""
    return [
        "Medians of ratios to the plain step of the same round; TorchJD's to ours. carry: the "
        "plain step, which hands FAMO's state through untouched. look-again: the plain step and a "
        "second forward pass, compiled as one. memory: temporary, over the plain "
        f"step's. *: timed once. GiB or s: not run, since predicted over {limits.max_gib:g} GiB or "
        f"{limits.max_seconds:g} s a call.",
        *([f"A call of ours makes {limits.scan} steps, TorchJD's one."] if limits.scan > 1 else []),
    ]


def draw(summary: Summary) -> Any:
    """Time and temporary memory over K: FAMO, the other weighting methods, aggregation."""
    from famo_jax.experiments import _plots

    networks = list(dict.fromkeys(result["network"] for result in summary["results"]))
    with _plots.picture(height=0.4 + 2.5 * len(networks)) as figure:
        panels = figure.subplots(len(networks), 2, squeeze=False)
        for row, network in zip(panels, networks, strict=True):
            own = [each for each in summary["results"] if each["network"] == network]
            for axes, key, title in zip(
                row,
                ("over_plain", "temporary_over_plain"),
                ("time of a step over a plain one", "temporary memory over a plain step's"),
                strict=True,
            ):
                _draw_over_tasks(axes, own, key)
                axes.set_title(f"{network}: {title}")
    return figure


def _draw_over_tasks(axes: Any, results: Sequence[Mapping[str, Any]], key: str) -> None:
    from famo_jax.experiments import _plots

    axes.set(xscale="log", yscale="log", xlabel="number of tasks K")
    tasks = [result["num_tasks"] for result in results]
    offered = results[0]["figures"]
    others = [name for name in WEIGHTING if name in offered and "famo" not in name]
    theirs = [f"torchjd-{name}" for name in AGGREGATION if f"torchjd-{name}" in offered]
    groups = {  # methods whose lines would lie on each other are a band
        "other weighting methods": (others, "#bbbbbb"),
        "aggregation": ([name for name in AGGREGATION if name in offered], "#882255"),
        "TorchJD's": (theirs, "#ddaa33"),
    }
    ends = {}
    for label, (names, colour) in groups.items():
        spans = [
            [_number(result["figures"][name].get(key)) for name in names] for result in results
        ]
        known = [
            (k, min(found), max(found))
            for k, span in zip(tasks, spans, strict=True)
            if (found := [value for value in span if np.isfinite(value)])
        ]
        if known:
            x, low, high = map(list, zip(*known, strict=True))
            axes.fill_between(x, low, high, color=colour, alpha=0.4, linewidth=2, label=label)
            ends[label] = (x[-1], (low[-1] * high[-1]) ** 0.5, colour)
    for name, method in (("famo-one-pass", "famo-one-pass"), ("famo-two-pass", "famo")):
        if name in offered:
            colour = TABLE[method].colour
            values = [_number(result["figures"][name].get(key)) for result in results]
            axes.plot(tasks, values, "o-", color=colour, markersize=3, label=name)
            ends[name] = (tasks[-1], values[-1], colour)
    axes.set_xticks(tasks, [f"{num_tasks:,}" for num_tasks in tasks])
    axes.set_xticks([], minor=True)
    _plots.plain_numbers(axes.yaxis)
    _plots.label_ends(axes, ends)


def _number(value: Any) -> float:
    """A median, or what is no estimate; NaN for what was not measured."""
    median = value["median"] if isinstance(value, Mapping) else value
    return np.nan if median is None else float(median)


# --- The study ------------------------------------------------------------------------------------


def run(options: argparse.Namespace, session: Any) -> Runs:
    """Measures every network at every number of tasks."""
    limits = limits_of(vars(options))
    left_out = options.quick or options.peers == "no"  # to import PyTorch alone takes seconds
    no_peers = "TorchJD was left out." if left_out else why_no_peers()
    results: list[dict[str, Any]] = []
    for name in options.network:
        before: dict[str, Any] | None = None
        tell = session.row(name)
        for num_tasks in options.tasks:
            tell(f"{num_tasks:,} tasks")
            figures = run_setting(
                NETWORKS[name],
                num_tasks,
                options.methods,
                limits,
                peers=no_peers is None,
                before=before,
            )
            before = {"network": name, "num_tasks": num_tasks, "figures": figures}
            results.append(before)
        tell("done")
    versions = {
        each: importlib.metadata.version(each) for each in ("torch", "torchjd") if no_peers is None
    }
    return Runs({"arms": {}, "results": results, "no_peers": no_peers or "", **versions}, {})


def limits_of(options: Mapping[str, Any]) -> Limits:
    """What may be run."""
    return Limits(options["rounds"], options["scan"], options["max_gib"], options["max_seconds"])


def summarize(runs: Runs) -> dict[str, Any]:
    """What was measured is told as it is; what was not is left out."""
    facts = runs.facts
    results = [
        result
        | {
            "figures": {
                name: {key: value for key, value in own.items() if _is_told(value)}
                for name, own in result["figures"].items()
            }
        }
        for result in facts["results"]
    ]
    return {"results": results, "no_peers": facts["no_peers"], "settings": facts["settings"]}


def _is_told(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def tables(summary: Summary) -> list[Any]:
    """A table for each network, and what they leave out."""
    results = summary["results"]
    networks = dict.fromkeys(result["network"] for result in results)
    return [
        *(table(name, [each for each in results if each["network"] == name]) for name in networks),
        *notes(limits_of(summary["settings"])),
        *filter(None, [summary["no_peers"]]),
        *goals(results),
    ]


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses fewer rounds than quartiles need, and puts names in order."""
    if options.rounds < 2:
        parser.error(f"argument --rounds: expected at least 2, got {options.rounds}")
    options.tasks.sort()
    options.methods = [name for name in METHODS if name in options.methods]


STUDY = Study(
    name="cost",
    title="What each method adds to a training step: time and temporary memory",
    seconds=307,
    full={
        "tasks": [2, 10, 40, 100, 1000, 10000],
        "network": list(NETWORKS),
        "methods": list(METHODS),
        "rounds": 150,
        "max_gib": 4.0,
        "max_seconds": 2.0,
        "scan": 1,
        "peers": "yes",
    },
    quick={
        "tasks": [2, 10],
        "network": ["mlp"],
        "methods": ["ls", "famo-one-pass", "famo-two-pass", "mgda"],
        "rounds": 10,
    },
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"cost.png": draw},
    options={
        "tasks": Option(_command.positive_int, "numbers of tasks", True, "K"),
        "network": Option(_command.one_of([*NETWORKS]), "the hidden layers", True, "NAME"),
        "methods": _command.methods_option(METHODS),
        "rounds": Option(
            _command.positive_int,
            f"how many times a step is timed, at least 2; {FEW} where it is {DEAR} times as long "
            "as a plain one",
        ),
        "max_gib": Option(
            _command.positive_float, "memory over which a method is not run", metavar="GIB"
        ),
        "max_seconds": Option(
            _command.positive_float,
            "a call that is predicted to take longer is not run, and one of which "
            f"{FEW} would is timed once",
            metavar="S",
        ),
        "scan": Option(
            _command.positive_int,
            "steps of ours in a compiled call, under `jax.lax.scan`; the times are those of a "
            "step. On a CPU not for conv: convolutions in a loop are slow there",
        ),
        "peers": Option(
            _command.one_of(["yes", "no"]), "TorchJD beside ours where it is installed", metavar="?"
        ),
    },
    epilog="networks:\n"
    + "\n".join(f"  {name:6}{each.description}" for name, each in NETWORKS.items()),
    check=check,
    saves=False,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
