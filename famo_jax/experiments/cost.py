"""What FAMO adds to a training step: time and temporary memory, over the number of tasks.

Run as ``python -m famo_jax.experiments.cost``. The steps compared share network, batch and Adam:

* plain: the mean of the losses;
* one-pass: FAMO from the losses that the step computes anyway;
* two-pass: FAMO with a second forward pass after the step;
* forward: the losses alone, what the second pass of two-pass costs by itself.

All are called in turn, so that each meets the same disturbances of the machine; what is reported
are medians and quartiles of ratios within a round.
"""

import argparse
import functools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import rich.box
import rich.console
import rich.progress
import rich.table

from famo_jax import famo, losses_and_grads
from famo_jax.experiments import _arguments, _report

FEATURES = 64


def init_params(key: jax.Array, num_tasks: int, width: int) -> list[dict[str, jax.Array]]:
    """A network of two hidden layers, with one output for each task."""
    sizes = [FEATURES, width, width, num_tasks]
    keys = jax.random.split(key, 3)
    return [
        {"kernel": jax.random.normal(key, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
        for key, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def task_losses(params: list[dict[str, jax.Array]], batch: tuple[jax.Array, ...]) -> jax.Array:
    """Mean squared errors, ``[K]``, of inputs ``[B, FEATURES]`` and targets ``[B, K]``."""
    x, y = batch
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return jnp.mean((x @ params[-1]["kernel"] + params[-1]["bias"] - y) ** 2, axis=0)


def make_calls(num_tasks: int, width: int, batch_size: int) -> dict[str, Any]:
    """The compiled steps by name, and their arguments. State is donated, as in training."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = init_params(keys[0], num_tasks, width)
    batch = (
        jax.random.normal(keys[1], (batch_size, FEATURES)),
        jax.random.normal(keys[2], (batch_size, num_tasks)),
    )
    adam = optax.adam(1e-3)
    with_famo = optax.chain(adam, famo(num_tasks))

    def plain(params: Any, opt_state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            losses = task_losses(params, batch)
            return jnp.mean(losses), losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = adam.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses

    def balanced(params: Any, opt_state: Any, batch: Any, *, two_pass: bool) -> Any:
        losses_fn = functools.partial(task_losses, batch=batch)
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
        extra = {"losses_fn": losses_fn} if two_pass else {}
        updates, opt_state = with_famo.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state, losses

    def forward(params: Any, opt_state: Any, batch: Any) -> Any:
        return params, opt_state, task_losses(params, batch)

    steps: dict[str, tuple[Callable[..., Any], Any]] = {
        "plain": (plain, adam),
        "one-pass": (functools.partial(balanced, two_pass=False), with_famo),
        "two-pass": (functools.partial(balanced, two_pass=True), with_famo),
        "forward": (forward, optax.identity()),
    }
    calls = {}
    for name, (step, tx) in steps.items():
        own = jax.tree.map(jnp.copy, params)
        arguments = (own, tx.init(own), batch)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
        calls[name] = (compiled, arguments)
    return calls


def measure(calls: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds a step and bytes of temporary memory, each call in turn, in random order."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    carried = {name: arguments for name, (_, arguments) in calls.items()}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for counts in 3 * [False] + rounds * [True]:
        shuffle(order)
        for name in order:
            compiled, _ = calls[name]
            start = time.perf_counter()
            params, opt_state, losses = jax.block_until_ready(compiled(*carried[name]))
            if counts:
                seconds[name].append(time.perf_counter() - start)
            carried[name] = (params, opt_state, carried[name][2])
            if not np.all(np.isfinite(losses)):
                raise FloatingPointError(f"{name}: a loss is not finite")
    temporary = {
        name: compiled.memory_analysis().temp_size_in_bytes for name, (compiled, _) in calls.items()
    }
    bound = [sum(both) for both in zip(seconds["plain"], seconds["forward"], strict=True)]
    ratios = {
        "one-pass / plain": _ratios(seconds["one-pass"], seconds["plain"]),
        "two-pass / plain": _ratios(seconds["two-pass"], seconds["plain"]),
        "two-pass / (plain + forward)": _ratios(seconds["two-pass"], bound),
    }
    return {
        "seconds": {name: _report.quartiles(values) for name, values in seconds.items()},
        "ratios": {name: _report.quartiles(values) for name, values in ratios.items()},
        "temporary_bytes": temporary,
        "temporary_ratios": {
            name: temporary[name] / temporary["plain"] for name in ("one-pass", "two-pass")
        },
    }


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def print_table(console: rich.console.Console, results: Sequence[dict[str, Any]]) -> None:
    """A row for each setting: medians, and half of the distance between the quartiles."""
    table = rich.table.Table(
        title="FAMO's training step over a plain one", box=rich.box.SIMPLE, pad_edge=False
    )
    ratios = ("one-pass\n/ plain", "two-pass\n/ plain", "two-pass\n/ bound")
    for column in ("tasks", "width", "plain\nms", *ratios, "one-pass\nmemory"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            f"{result['num_tasks']:,}",
            f"{result['width']:,}",
            f"{1e3 * result['seconds']['plain'][1]:.2f}",
            *(f"{b:.3f}±{(c - a) / 2:.2f}" for a, b, c in result["ratios"].values()),
            f"{result['temporary_ratios']['one-pass']:.3f}",
        )
    console.print(table)
    console.print("bound: plain step + one forward pass; memory: temporary, over plain")


def draw(path: Path, results: Sequence[dict[str, Any]], device: str) -> None:
    """Ratios over the number of tasks, a panel for each width."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    widths = sorted({result["width"] for result in results})
    figure, axes = plt.subplots(
        1, len(widths), figsize=(4.2 * len(widths), 3.4), sharey=True, squeeze=False
    )
    for axis, width in zip(axes[0], widths, strict=True):
        own = [result for result in results if result["width"] == width]
        tasks = [result["num_tasks"] for result in own]
        for name in own[0]["ratios"]:
            low, middle, high = np.array([result["ratios"][name] for result in own]).T
            axis.errorbar(
                tasks, middle, [middle - low, high - middle], marker="o", capsize=3, label=name
            )
        axis.axhline(1, color="0.6", linewidth=0.8)
        axis.set(xscale="log", xlabel="number of tasks K", title=f"two hidden layers of {width}")
    axes[0, 0].set_ylabel("time of a step, ratio")
    axes[0, -1].legend(fontsize=8)
    figure.suptitle(f"Cost of FAMO on {device} (median, quartiles)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=200)
    plt.close(figure)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options, or ends with a usage error."""
    parser = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--tasks",
        type=_arguments.positive_int,
        nargs="+",
        default=[2, 40, 1000, 10000],
        metavar="K",
        help="numbers of tasks (default: %(default)s)",
    )
    parser.add_argument(
        "--width",
        type=_arguments.positive_int,
        nargs="+",
        default=[256, 1024],
        metavar="N",
        help="units in each of the two hidden layers (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=_arguments.positive_int,
        default=256,
        metavar="N",
        help="rows of a batch (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=_arguments.positive_int,
        default=41,
        metavar="N",
        help="how many times each step is timed, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/cost"),
        metavar="FOLDER",
        help="where the figure and the JSON file go (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"argument --rounds: expected at least 2, got {options.rounds}")
    _arguments.check_distinct(parser, "--tasks", options.tasks)
    _arguments.check_distinct(parser, "--width", options.width)
    _arguments.output_folder(parser, "--out", options.out)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the figure and the figures."""
    options = parse_arguments(arguments)
    console = rich.console.Console()
    results = []
    settings = [(width, tasks) for width in options.width for tasks in options.tasks]
    with rich.progress.Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(settings))
        for width, num_tasks in settings:
            progress.update(bar, description=f"{num_tasks:,} tasks, width {width}")
            calls = make_calls(num_tasks, width, options.batch_size)
            result = {"num_tasks": num_tasks, "width": width, "batch_size": options.batch_size}
            results.append(result | measure(calls, options.rounds))
            progress.advance(bar)
    environment = _report.environment()
    print_table(console, results)
    draw(options.out / "cost.png", results, environment["device"])
    _report.write_json(
        options.out / "cost.json",
        {"settings": vars(options) | {"out": str(options.out)}, "environment": environment}
        | {"results": results},
    )
    console.print(f"wrote cost.png and cost.json to {options.out}")


if __name__ == "__main__":
    main()
