r"""Forty attributes of one picture: ``python -m famo_jax.experiments.attributes``.

A classification in the shape of CelebA's: many binary attributes of one image, from very common
ones to those of one picture in a hundred, where a method that needs a backward pass for each task
is dear. The pictures are those of ``famo_jax.experiments.digits``, two overlapping handwritten
digits under noise; the attributes say which digits they are, compare and add them, and tell how
heavily they are written.

The loss of an attribute is its mean cross-entropy. Accuracy says nothing about a rare attribute,
which may be denied always and be right 99 times in 100. The metric is the balanced error instead,
the mean of the share missed and the share of false alarms: 50% by chance, whatever the base rate.
An attribute is told where its probability is above its base rate in training, which is the rule of
least balanced error for a network whose probabilities are right.

The logarithm of a cross-entropy has no minimum on a batch that holds no picture with the attribute:
it falls for ever as the network denies it. Methods that descend on log losses need batches that
mostly hold one: 256 pictures lack a rare one in 8% of batches, 64 in half of them.

How methods are trained and compared stands in ``famo_jax.experiments._study``.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from famo_jax.experiments import _study, digits
from famo_jax.experiments._study import Data, Problem, Result, Task

Array = npt.NDArray[Any]

# --- Attributes -----------------------------------------------------------------------------------


class Pair(NamedTuple):
    """What attributes are about. Arrays of any shape."""

    left: Any  # class of the left digit
    right: Any
    left_ink: Any  # sum of its grey levels
    right_ink: Any


def _left_is(label: int) -> Callable[[Pair], Any]:
    return lambda pair: pair.left == label


def _right_is(label: int) -> Callable[[Pair], Any]:
    return lambda pair: pair.right == label


def _among(classes: Sequence[int]) -> Callable[[Any], Any]:
    """Whether a class is one of these."""
    return lambda label: functools.reduce(operator.or_, [label == each for each in classes])


_loop, _prime, _straight = _among([0, 6, 8, 9]), _among([2, 3, 5, 7]), _among([1, 4, 7])
HEAVY, LIGHT = 350, 270  # grey levels

ATTRIBUTES: dict[str, Callable[[Pair], Any]] = {
    **{f"left is {label}": _left_is(label) for label in range(10)},
    **{f"right is {label}": _right_is(label) for label in range(10)},
    "left is even": lambda pair: pair.left % 2 == 0,
    "right is even": lambda pair: pair.right % 2 == 0,
    "left is prime": lambda pair: _prime(pair.left),
    "right has a loop": lambda pair: _loop(pair.right),
    "both have loops": lambda pair: _loop(pair.left) & _loop(pair.right),
    "both are straight": lambda pair: _straight(pair.left) & _straight(pair.right),
    "they are equal": lambda pair: pair.left == pair.right,
    "they are neighbours": lambda pair: abs(pair.left - pair.right) == 1,
    "left is greater": lambda pair: pair.left > pair.right,
    "sum is odd": lambda pair: (pair.left + pair.right) % 2 == 1,
    "sum is 10 or more": lambda pair: pair.left + pair.right >= 10,
    "sum is 4 or more": lambda pair: pair.left + pair.right >= 4,
    "sum is 16 or more": lambda pair: pair.left + pair.right >= 16,
    "one is 0": lambda pair: (pair.left == 0) | (pair.right == 0),
    "both are 1": lambda pair: (pair.left == 1) & (pair.right == 1),
    "they read 42": lambda pair: (pair.left == 4) & (pair.right == 2),
    "left has more ink": lambda pair: pair.left_ink > pair.right_ink,
    "left is heavy": lambda pair: pair.left_ink >= HEAVY,
    "right is light": lambda pair: pair.right_ink <= LIGHT,
    "both are heavy": lambda pair: (pair.left_ink >= HEAVY) & (pair.right_ink >= HEAVY),
}
K = len(ATTRIBUTES)
TASKS = tuple(
    Task(name, f"{name}, cross-entropy (nats)", f"{name} balanced error (%)", 1)
    for name in ATTRIBUTES
)


def attributes_of(pair: Pair) -> jax.Array:
    """The attributes, ``[..., K]``, booleans."""
    return jnp.stack([attribute(pair) for attribute in ATTRIBUTES.values()], axis=-1)


@functools.cache
def load_base_rates() -> Array:
    """How often each attribute is true in training, ``[K]``: exactly, over all pairs of digits."""
    sources = digits.load_splits().train
    pairs = [
        np.meshgrid(each, each, indexing="ij") for each in (sources.labels, digits.ink_of(sources))
    ]
    (left, right), (left_ink, right_ink) = pairs
    pair = Pair(left, right, left_ink, right_ink)
    return np.array([np.mean(attribute(pair)) for attribute in ATTRIBUTES.values()])


# --- Pictures -------------------------------------------------------------------------------------

HELD_OUT = 4000  # pictures composed for validation, and as many for the test


class Pictures(NamedTuple):
    """Pictures and what is true of them."""

    pixels: jax.Array  # [..., 140], uint8, 0 to 255
    attributes: jax.Array  # [..., K], booleans


def compose(key: jax.Array, sources: digits.Sources, size: int) -> Pictures:
    """Draws ``[size]`` pictures of two digits each."""
    pictures = digits.compose(key, sources, size)
    left_ink = pictures.clean.sum(axis=-1, dtype=jnp.int32)
    pair = Pair(pictures.left, pictures.right, left_ink, pictures.ink)
    return Pictures(pictures.pixels, attributes_of(pair))


def load_data(steps: int, seeds: int, batch_size: int) -> Data:
    """Composes the pictures: ``[steps, seeds, batch_size]`` for training, 4,000 for each test.

    A seed's do not depend on how many seeds there are.
    """
    splits = digits.load_splits()
    train_key, *held_out_keys = jax.random.split(jax.random.key(2), 3)

    def compose_train() -> Pictures:
        seed_keys = jax.vmap(lambda seed: jax.random.fold_in(train_key, seed))(jnp.arange(seeds))

        def one_step(step: jax.Array) -> Pictures:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(seed_keys)
            return jax.vmap(lambda key: compose(key, splits.train, batch_size))(keys)

        pictures: Pictures = jax.lax.map(one_step, jnp.arange(steps))
        return pictures

    validation, test = (
        compose(key, sources, HELD_OUT)
        for key, sources in zip(held_out_keys, splits[1:], strict=True)
    )
    return Data(jax.jit(compose_train)(), validation, test)


# --- Tasks ----------------------------------------------------------------------------------------


class Network(nnx.Module):
    """140-64-32, and a linear head for each attribute."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wide = nnx.Linear(digits.HEIGHT * digits.WIDTH, 64, rngs=rngs)
        self.narrow = nnx.Linear(64, 32, rngs=rngs)
        self.heads = nnx.Linear(32, K, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """``[..., 140]``, from 0 to 255, to the attributes' log odds, ``[..., K]``."""
        hidden = nnx.relu(self.narrow(nnx.relu(self.wide(pixels / 255))))
        log_odds: jax.Array = self.heads(hidden)
        return log_odds


def init_params(seeds: int) -> chex.ArrayTree:
    """The parameters of one network for each seed: a leading axis on every leaf."""
    return _study.init_params(Network, seeds)


def apply(params: chex.ArrayTree, pictures: Pictures) -> jax.Array:
    """The attributes' log odds, ``[..., K]``, as a pure function."""
    log_odds: jax.Array = _study.apply(Network, params, pictures.pixels)
    return log_odds


def task_losses(params: chex.ArrayTree, pictures: Pictures) -> jax.Array:
    """The K cross-entropies, ``[K]``, in nats."""
    log_odds = apply(params, pictures)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(log_odds, pictures.attributes), axis=0)


def task_metrics(params: chex.ArrayTree, pictures: Pictures) -> jax.Array:
    """The K balanced errors, ``[K]``, in percent. NaN where the log odds are not numbers."""
    log_odds, true = apply(params, pictures), pictures.attributes
    rates = jnp.asarray(load_base_rates())
    told = log_odds > jnp.log(rates / (1 - rates))
    missed = jnp.mean(~told, axis=0, where=true)
    false_alarms = jnp.mean(told, axis=0, where=~true)
    errors = 50 * (missed + false_alarms)
    return jnp.where(jnp.isnan(log_odds).any(axis=0), jnp.nan, errors)


# --- The report -----------------------------------------------------------------------------------


def draw(
    results: Mapping[str, Result], summary: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Each attribute's change over its base rate, the task weights, gamma, delta m."""
    rates = load_base_rates()
    order = sorted(zip(rates, ATTRIBUTES, strict=True))
    labels = {name: f"{name}: {rate:.0%}" for rate, name in order}
    colours = matplotlib.colormaps["viridis"]
    norm = LogNorm(rates.min(), rates.max())
    with _study.style():
        figure = Figure(figsize=(8.5, 9), dpi=200, layout="constrained")
        grid = figure.add_gridspec(3, 2)
        _study.draw_changes(figure.add_subplot(grid[0, :]), summary, labels)
        weights = [figure.add_subplot(grid[1, column]) for column in range(2)]
        for axes, names in zip(weights, _study.WEIGHTED, strict=True):
            _study.draw_task_weights(axes, results, names, [colours(norm(rate)) for rate in rates])
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=weights, label="base rate")
        bar.ax.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0%}")
        _study.draw_gamma(figure.add_subplot(grid[2, 0]), summary)
        _study.draw_delta_m(figure.add_subplot(grid[2, 1]), summary)
        figure.savefig(path)


FULL = {
    "steps": 400,
    "seeds": 10,
    "batch_size": 256,
    "methods": [
        *("stl", "ls", "si", "frozen", "rlw", "dwa", "uw"),
        *("famo", "famo-no-c", "famo-one-pass", "famo-one-pass-no-c"),
        *("famo-ema", "famo-ema-no-c"),
    ],
    "learning_rate": [1e-2, 3e-2, 1e-1],
    "gamma": [0.0, 1e-4, 1e-3],
}
PROBLEM = Problem(
    name="attributes",
    title="Multi-task methods on forty attributes of overlapping handwritten digits.",
    rows="pictures",
    tasks=TASKS,
    load_data=load_data,
    init_params=init_params,
    task_losses=task_losses,
    task_metrics=task_metrics,
    facts=lambda: {
        "pictures_held_out": HELD_OUT,
        "noise": digits.NOISE,
        "base_rates": dict(zip(ATTRIBUTES, load_base_rates(), strict=True)),
    },
    full=FULL,
    quick=FULL
    | {
        "steps": 100,
        "seeds": 2,
        "methods": ["stl", "ls", "si", "frozen", "famo", "famo-one-pass"],
        "learning_rate": [1e-2],
        "gamma": [1e-3],
    },
    timed=("mgda", "pcgrad", "cagrad", "imtl-g", "graddrop", "nash-mtl"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, prints its table, and writes ``attributes.png`` and ``attributes.json``."""
    _study.main(PROBLEM, draw, arguments)


if __name__ == "__main__":
    main()
