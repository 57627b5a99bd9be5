r"""CelebA: forty attributes of faces, as in the FAMO paper.

Network, losses and metrics are those of the official code (github.com/Cranial-XIX/FAMO,
``experiments/celeba``). The official single-task networks are evaluated as they train, with the
statistics of each batch: ``statistics="batch"``.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from famo_jax.experiments.problems import _face_files, _problem
from famo_jax.experiments.problems._face_files import Faces
from famo_jax.experiments.problems._layers import Block, conv, max_pool, uniform
from famo_jax.experiments.problems._problem import Data, Problem, Task

TASKS = tuple(
    Task(name, f"{name}, cross-entropy", f"{name} F1", 3, True) for name in _face_files.NAMES
)
# F1 of the single-task networks by which the paper judges: github.com/Cranial-XIX/FAMO, issue 2.
STL = (
    *(0.6736886, 0.68121034, 0.81524944, 0.5760289, 0.7205613, 0.8555076, 0.38203922, 0.58225113),
    *(0.787647, 0.8321292, 0.5029583, 0.68694085, 0.6781237, 0.5240381, 0.5161666, 0.95694304),
    *(0.6968786, 0.67976356, 0.8808315, 0.8582131, 0.97034, 0.93267566, 0.5057539, 0.40307626),
    *(0.9703734, 0.48644206, 0.60786104, 0.5261031, 0.56907415, 0.59815097, 0.6858371, 0.924108),
    *(0.5424991, 0.7406311, 0.71019936, 0.87365365, 0.9305602, 0.33704284, 0.7647628, 0.91907),
)
FILTERS = (64, 128, 256, 512)


class Network(nnx.Module):
    """Seven convolutions, two hidden layers, and a linear head for each attribute."""

    def __init__(self, outputs: int, rngs: nnx.Rngs, width: int = FILTERS[0]) -> None:
        filters = [width * channels // FILTERS[0] for channels in FILTERS]

        def stage(inputs: int, channels: int, count: int) -> nnx.Sequential:
            sizes = [inputs, *[channels] * count]
            return nnx.Sequential(*(of_map(*pair) for pair in itertools.pairwise(sizes)))

        def of_map(inputs: int, channels: int) -> Block:
            init = uniform(9 * inputs)
            layer = conv(inputs, channels, 3, rngs, use_bias=False, kernel_init=init)
            return Block(layer, channels)

        def hidden(size: int) -> Block:
            init = uniform(size)
            return Block(nnx.Linear(size, size, use_bias=False, kernel_init=init, rngs=rngs), size)

        pairs = zip((3, *filters), filters, (1, 2, 2, 2), strict=False)
        self.stages = nnx.Sequential(*(stage(*sizes) for sizes in pairs))
        last, init = filters[-1], uniform(filters[-1])
        self.hidden = nnx.Sequential(hidden(last), hidden(last))
        self.heads = nnx.Linear(last, outputs, kernel_init=init, bias_init=init, rngs=rngs)

    def encode(self, images: jax.Array) -> jax.Array:
        """``[B, 64, 64, 3]`` to ``[B, 512]``."""
        x = images
        for index, stage in enumerate(self.stages.layers):
            x = stage(max_pool(x)[0] if index else x)
        hidden: Any = self.hidden
        features: jax.Array = hidden(jnp.mean(x, axis=(1, 2)))
        return features

    def __call__(self, images: jax.Array) -> jax.Array:
        """Log odds ``[B, outputs]``."""
        odds: jax.Array = self.heads(self.encode(images))
        return odds


def losses_of(odds: jax.Array, attributes: jax.Array) -> jax.Array:
    """Cross-entropies, mean over the batch."""
    losses: jax.Array = jnp.mean(
        optax.sigmoid_binary_cross_entropy(odds, attributes.astype(odds.dtype)), axis=0
    )
    return losses


def f1(counts: jax.Array) -> jax.Array:
    """Of the positive class, from true positives, all predicted and all true ones, ``[3, K]``."""
    hits, predicted, true = counts
    precision, recall = hits / (predicted + 1e-8), hits / (true + 1e-8)
    score: jax.Array = 2 * precision * recall / (precision + recall + 1e-8)
    return score


def problem(
    train: Faces, validation: Faces, test: Faces, *, width: int = FILTERS[0],
    both_passes: bool = True, task: str | None = None, statistics: str = "running",
    stream: bool = False,
) -> Problem:  # fmt: skip
    """All attributes, or one: the others' metrics then are NaN.

    Args:
      train: Faces to train on.
      validation: Faces to choose the best epoch by.
      test: Faces to test on.
      width: Channels of the first level.
      both_passes: As official: the second pass of a two-pass method moves batch statistics too.
      task: The one task. None: all.
      statistics: By which batch norm is evaluated: "running" or "batch".
      stream: Whether faces come some steps at a time, or all are on the device.
    """
    at = np.array([i for i, each in enumerate(TASKS) if task in (None, each.name)])
    make: _problem.Make = lambda rngs: Network(len(at), rngs, width)
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def load_data(steps: int, seeds: Sequence[int], batch_size: int) -> Data:
        rows, epoch = _problem.epochs_of(np.arange(len(train.image)), seeds, batch_size)
        of_validation, of_test = (
            _problem.held_out_of(part, seeds, batch_size) for part in (validation, test)
        )
        if stream:
            from_map, at_once = _problem.streamed(rows, train), _problem.AT_ONCE
            return Data(from_map, of_validation, of_test, epoch=epoch, at_once=at_once)
        pool = Faces(*map(jnp.asarray, train))
        return Data(rows, of_validation, of_test, pool=pool, epoch=epoch)

    def inputs(batch: Faces) -> jax.Array:
        return jnp.asarray(batch.image, jnp.float32) / 255

    def encode(params: chex.ArrayTree, state: Any, batch: Faces, key: Any) -> Any:
        del key
        return nnx.merge(graph, params, state, copy=True).encode(inputs(batch))

    def heads(
        params: chex.ArrayTree, z: jax.Array, state: Any, batch: Faces, key: Any
    ) -> jax.Array:
        del key
        return losses_of(nnx.merge(graph, params, state).heads(z), batch.attributes[:, at])

    def losses(params: chex.ArrayTree, state: Any, batch: Faces, key: Any) -> tuple[jax.Array, Any]:
        del key
        model = nnx.merge(graph, params, state, copy=True)
        found = losses_of(model(inputs(batch)), batch.attributes[:, at])
        return found, _problem.split(model)[1]

    def metrics(params: chex.ArrayTree, state: Any, held_out: tuple[Faces, ...]) -> jax.Array:
        def count(batch: Faces) -> jax.Array:
            model = nnx.merge(graph, params, state, copy=True)
            (model.eval if statistics == "running" else model.train)()
            predicted, true = model(inputs(batch)) > 0, batch.attributes[:, at] > 0
            return jnp.stack([jnp.sum(own, axis=0) for own in (predicted & true, predicted, true)])

        counts = sum(jnp.sum(jax.lax.map(count, part), axis=0) for part in held_out)
        return jnp.full(len(TASKS), jnp.nan).at[at].set(f1(jnp.asarray(counts, jnp.float32)))

    return Problem(
        tuple(TASKS[i] for i in at), load_data,
        lambda seeds: _problem.init_stateful(make, seeds), losses, metrics,
        features=(encode, heads), both_passes=both_passes,
        step_by_step=jax.default_backend() == "cpu",
    )  # fmt: skip
