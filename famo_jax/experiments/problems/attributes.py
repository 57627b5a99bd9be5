r"""Forty attributes of one picture.

A classification in the shape of CelebA's: many binary attributes of one image, from very common
ones to those of one picture in a hundred. The pictures are the two overlapping handwritten digits
under noise of ``digits``; the attributes say which digits they are, compare and add them, and tell
how heavily they are written.

The loss of an attribute is its mean cross-entropy; the metric, as rare ones may be denied always
and be right 99 times in 100, is the balanced error, the mean of the share missed and the share of
false alarms: 50% by chance. An attribute is told where its probability is above its base rate in
training, the rule of least balanced error for a network whose probabilities are right.

The logarithm of a cross-entropy has no minimum on a batch that holds no picture with the attribute:
it falls for ever as the network denies it. Methods that descend on log losses need batches that
mostly hold one: 256 pictures lack a rare one in 8% of batches, 64 in half of them.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from famo_jax.experiments.problems import _problem, digits
from famo_jax.experiments.problems._problem import Task

Array = npt.NDArray[Any]


class Pair(NamedTuple):
    """What attributes are about. Arrays of any shape."""

    left: Any  # class of the left digit
    right: Any
    left_ink: Any  # sum of its grey levels
    right_ink: Any


def _is(side: str, label: int) -> Callable[[Pair], Any]:
    return lambda pair: getattr(pair, side) == label


def _among(*classes: int) -> Callable[[Any], Any]:
    """Whether a class is one of these."""
    return lambda label: functools.reduce(operator.or_, [label == each for each in classes])


_loop, _prime, _straight = _among(0, 6, 8, 9), _among(2, 3, 5, 7), _among(1, 4, 7)
HEAVY, LIGHT = 350, 270  # grey levels

ATTRIBUTES: dict[str, Callable[[Pair], Any]] = {
    **{f"left is {label}": _is("left", label) for label in range(10)},
    **{f"right is {label}": _is("right", label) for label in range(10)},
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
def load_base_rates(seed: int) -> Array:
    """How often each attribute is true in training, ``[K]``: exactly, over all pairs of digits."""
    sources = digits.load_splits(seed).train
    (left, right), inks = (
        np.meshgrid(each, each, indexing="ij") for each in (sources.labels, digits.ink_of(sources))
    )
    pair = Pair(left, right, *inks)
    return np.array([np.mean(attribute(pair)) for attribute in ATTRIBUTES.values()])


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


load_data = functools.partial(digits.load_data, draw=compose, key=2, held_out=HELD_OUT)

network = functools.partial(_problem.Network, (digits.HEIGHT * digits.WIDTH, 64, 32, K))


def apply(params: chex.ArrayTree, pictures: Pictures, z: Any = None) -> jax.Array:
    """The attributes' log odds, ``[..., K]``: of the pictures or, where given, of features z."""
    return _problem.apply(network, params, digits.inputs(pictures), z)


def task_losses(params: chex.ArrayTree, pictures: Pictures, *_: Any, z: Any = None) -> jax.Array:
    """The K cross-entropies, ``[K]``, in nats."""
    log_odds = apply(params, pictures, z)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(log_odds, pictures.attributes), axis=0)


def task_metrics(params: chex.ArrayTree, pictures: Pictures, rates: Any) -> jax.Array:
    """The K balanced errors, ``[K]``, in percent. NaN where the log odds are not numbers."""
    log_odds, true = apply(params, pictures), pictures.attributes
    told = log_odds > jnp.log(rates / (1 - rates))
    missed = jnp.mean(~told, axis=0, where=true)
    false_alarms = jnp.mean(told, axis=0, where=~true)
    errors = 50 * (missed + false_alarms)
    return jnp.where(jnp.isnan(log_odds).any(axis=0), jnp.nan, errors)


def base_rates(seeds: Sequence[int]) -> tuple[Array]:
    """Those of each seed, ``[seeds, K]``."""
    return (np.array(list(map(load_base_rates, seeds)), np.float32),)


PROBLEM = _problem.of_network(
    network, TASKS, load_data, task_losses, task_metrics, digits.inputs, base_rates
)
