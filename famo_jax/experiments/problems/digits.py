r"""Overlapping handwritten digits.

A multi-task problem made as MultiMNIST was, from the 1,797 digits (8 x 8 pixels, 17 grey levels)
that scikit-learn ships. Two overlap on a canvas of 10 x 14 pixels under fresh noise, and a small
network tells what the left one is, what the right one is, how the left one looked before the right
one and the noise covered it, and how much ink the right one has: losses in units of their own, at
first five orders of magnitude apart, none of which can be brought to zero.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from famo_jax.experiments.problems import _problem
from famo_jax.experiments.problems._problem import Data, Task

Array = npt.NDArray[Any]

DIGIT, HEIGHT, WIDTH = 8, 10, 14
LEFT_COLUMNS, RIGHT_COLUMNS = (0, 1, 2), (4, 5, 6)  # so 2 to 6 columns of the two frames overlap
ROWS = (0, 1, 2)
NOISE = 0.25  # standard deviation, where a digit's pixels go from 0 to 1
LEVELS = 16  # grey levels of a digit above black
HELD_OUT = 2000  # pictures composed for validation, and as many for the test


class Sources(NamedTuple):
    """Handwritten digits."""

    images: Array  # [N, 8, 8], uint8, grey levels from 0 to 16
    labels: Array  # [N], int32


class Splits(NamedTuple):
    """Three sets of sources that have no digit in common."""

    train: Sources
    validation: Sources
    test: Sources


class Pictures(NamedTuple):
    """Composed pictures and the targets of the four tasks. Small integers: there are many."""

    pixels: jax.Array  # [..., 140], uint8, 0 to 255
    left: jax.Array  # [...], int32, class of the left digit
    right: jax.Array  # [...], int32, class of the right digit
    clean: jax.Array  # [..., 64], uint8, the left digit's grey levels
    ink: jax.Array  # [...], int32, the sum of the right digit's grey levels


def load_splits() -> Splits:
    """Splits the 1,797 digits into 1,200, 297 and 300, each class in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int32)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=300, stratify=labels, random_state=0
    )
    train, validation = train_test_split(rest, test_size=297, stratify=labels[rest], random_state=0)
    return Splits(*(Sources(images[rows], labels[rows]) for rows in (train, validation, test)))


def compose(key: jax.Array, sources: Sources, size: int) -> Pictures:
    """Draws ``[size]`` pictures of two digits each, at random places and under fresh noise."""
    which_key, place_key, noise_key = jax.random.split(key, 3)
    left, right = jax.random.randint(which_key, (2, size), 0, len(sources.labels))
    places = jax.random.randint(place_key, (2, size), 0, len(ROWS) * len(LEFT_COLUMNS))
    canvas = jnp.maximum(
        _placed(sources.images, LEFT_COLUMNS)[left, places[0]],
        _placed(sources.images, RIGHT_COLUMNS)[right, places[1]],
    )
    noisy = canvas / LEVELS + NOISE * jax.random.normal(noise_key, canvas.shape)
    images, labels = jnp.asarray(sources.images), jnp.asarray(sources.labels)
    pixels = jnp.round(255 * jnp.clip(noisy, 0, 1)).astype(jnp.uint8)
    clean = images[left].reshape(size, DIGIT * DIGIT)
    ink = jnp.asarray(ink_of(sources))[right]
    return Pictures(pixels, labels[left], labels[right], clean, ink)


def ink_of(sources: Sources) -> Array:
    """The sum of each digit's grey levels, ``[N]``."""
    return np.asarray(sources.images.sum(axis=(1, 2), dtype=np.int32))


def _placed(images: Array, columns: Sequence[int]) -> jax.Array:
    """Every digit at every place, ``[N, 9, 140]``: to look one up is faster than to draw it."""
    canvases = [
        np.pad(images, [(0, 0), (row, HEIGHT - DIGIT - row), (column, WIDTH - DIGIT - column)])
        for row, column in itertools.product(ROWS, columns)
    ]
    return jnp.asarray(np.stack(canvases, axis=1).reshape(len(images), -1, HEIGHT * WIDTH))


def load_data(
    steps: int, seeds: Sequence[int], batch_size: int, draw: Any = compose, key: int = 1,
    held_out: int = HELD_OUT,
) -> Data:  # fmt: skip
    """Composes the pictures: those of training by seed, as many for validation as for the test."""
    train, *others = load_splits()
    train_key, *keys = jax.random.split(jax.random.key(key), 3)
    own = functools.partial(draw, sources=train, size=batch_size)
    batches = _problem.compose_batches(own, train_key, steps, seeds)
    return Data(batches, *(draw(*each, held_out) for each in zip(keys, others, strict=True)))


TASKS = (
    Task("left", "left class, cross-entropy (nats)", "left error (%)", 1),
    Task("right", "right class, cross-entropy (nats)", "right error (%)", 1),
    Task("clean", "clean left digit, MSE (white = 1)", "clean RMSE (0-1)", 4),
    Task("ink", "right digit's ink, MSE (grey levels²)", "ink MAE (grey)", 1),
)
K = len(TASKS)


class Outputs(NamedTuple):
    """What the network says about pictures."""

    left: jax.Array  # [..., 10], logits of the classes
    right: jax.Array  # [..., 10]
    clean: jax.Array  # [..., 64], from 0 for black to 1 for white
    ink: jax.Array  # [...], grey levels


network = functools.partial(_problem.Network, (HEIGHT * WIDTH, 96, 64, 10 + 10 + DIGIT * DIGIT + 1))


def inputs(pictures: Any) -> jax.Array:
    """The pixels, ``[..., 140]``, from 0 for black to 1 for white."""
    pixels: jax.Array = pictures.pixels / 255
    return pixels


def apply(params: chex.ArrayTree, pictures: Pictures, z: Any = None) -> Outputs:
    """The network as a pure function: of the pictures or, where given, of features z."""
    outputs = _problem.apply(network, params, inputs(pictures), z)
    left, right, clean, ink = jnp.split(outputs, [10, 20, 84], axis=-1)
    return Outputs(left, right, clean, ink[..., 0])


def task_losses(params: chex.ArrayTree, pictures: Pictures, z: Any = None) -> jax.Array:
    """The K losses, ``[K]``, in the order of ``TASKS``."""
    outputs = apply(params, pictures, z)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = (
        cross_entropy(outputs.left, pictures.left),
        cross_entropy(outputs.right, pictures.right),
        (outputs.clean - pictures.clean / LEVELS) ** 2,
        (outputs.ink - pictures.ink) ** 2,
    )
    return jnp.stack([jnp.mean(each) for each in losses])


def task_metrics(params: chex.ArrayTree, pictures: Pictures) -> jax.Array:
    """The K metrics, ``[K]``, in the order and units of ``TASKS``."""
    outputs = apply(params, pictures)
    return jnp.stack(
        [
            100 * jnp.mean(jnp.argmax(outputs.left, axis=-1) != pictures.left),
            100 * jnp.mean(jnp.argmax(outputs.right, axis=-1) != pictures.right),
            jnp.sqrt(jnp.mean((outputs.clean - pictures.clean / LEVELS) ** 2)),
            jnp.mean(jnp.abs(outputs.ink - pictures.ink)),
        ]
    )


PROBLEM = _problem.of_network(network, TASKS, load_data, task_losses, task_metrics, inputs)
