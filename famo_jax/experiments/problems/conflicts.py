r"""Six regressions in one unit, in five ways in which weights might matter.

All targets have mean 0 and deviation 1, so that no unit is anybody's choice, and each seed draws
functions of its own: sines of projections of eight normal inputs, of frequencies spread ninefold.

* *conflict*: the tasks share three units, and every second one is mostly its neighbour's negation;
* *noise*: labels to train on have noise, of deviations from 0.05 to 2, whatever the frequency;
* *drift*: the targets of half of the tasks grow a hundredfold while they are learned, as a critic's
  do, from a tenth of the others' to ten times that;
* *late*: half of the tasks begin when half of the steps are made;
* *rare*: a task is in all batches, the next in half of them, down to one in 32.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from famo_jax.experiments.problems import _problem
from famo_jax.experiments.problems._problem import Data, Problem, Task

K, INPUTS = 6, 8
ROWS, HELD_OUT = 1024, 2000
KINDS = ("conflict", "noise", "drift", "late", "rare")
WIDE, SHARED, NARROW = 64, 16, 3
NOISE = 0.1  # of labels to train on, where it is not what matters
NEGATED = 0.8  # of a neighbour, in a task of deviation 1


class Rows(NamedTuple):
    """Rows of the K tasks, and which of them there are, in which unit."""

    x: jax.Array  # [n, INPUTS]
    y: jax.Array  # [n, K], of deviation 1
    scale: jax.Array  # [K]
    present: jax.Array  # [K], booleans


class Sources(NamedTuple):
    """What a seed draws: rows to train on, and others without noise, to validate and to test."""

    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


def draw(key: jax.Array, kind: str) -> Sources:
    """The functions of a seed, and their values."""
    x_key, direction_key, phase_key, order_key, noise_key = jax.random.split(key, 5)
    directions = jax.random.normal(direction_key, (INPUTS, K))
    directions /= jnp.linalg.norm(directions, axis=0)
    phases = jax.random.uniform(phase_key, (K,), maxval=2 * jnp.pi)
    frequencies = jax.random.permutation(order_key, jnp.geomspace(1 / 3, 3, K))
    x = jax.random.normal(x_key, (ROWS + 2 * HELD_OUT, INPUTS))
    y = jnp.sin(x @ directions * frequencies + phases)
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    if kind == "conflict":
        own = jnp.sqrt(1 - NEGATED**2) * y[:, 1::2]
        y = y.at[:, 1::2].set(own - NEGATED * y[:, ::2])
    deviations = jnp.geomspace(0.05, 2, K) if kind == "noise" else NOISE
    noise = deviations * jax.random.normal(noise_key, (ROWS, K))
    ends = [ROWS, ROWS + HELD_OUT]
    (train, *held_out), ys = jnp.split(x, ends), jnp.split(y, ends)
    return Sources((train, ys[0] + noise), *zip(held_out, ys[1:], strict=True))


def load_data(kind: str, steps: int, seeds: Sequence[int], batch_size: int) -> Data:
    """Draws the batches of each seed."""
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(5), seed))(jnp.asarray(seeds))
    sources = jax.jit(jax.vmap(functools.partial(draw, kind=kind)))(keys)

    def compose(key: jax.Array, own: tuple[jax.Array, jax.Array]) -> Any:
        rows_key, present_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (batch_size,), 0, ROWS)
        share = 0.5 ** jnp.arange(K) if kind == "rare" else jnp.ones(K)
        return own[0][rows], own[1][rows], jax.random.uniform(present_key, (K,)) < share

    composed = _problem.compose_batches(compose, sources.train, jax.random.key(6), steps, seeds)
    time = np.linspace(0, 1, steps)[:, None, None]
    half = np.arange(K) % 2 == 1
    scale = 0.1 * 100**time if kind == "drift" else np.ones_like(time)
    scale = np.broadcast_to(np.where(half, scale, 1), (steps, len(seeds), K))
    begun = ~half | (time >= 0.5) | (kind != "late")
    x, y, drawn = composed
    rows = Rows(x, y, jnp.asarray(scale, jnp.float32), drawn & begun)

    def held_out(own: tuple[jax.Array, jax.Array]) -> Rows:
        return Rows(*own, rows.scale[-1], jnp.ones((len(seeds), K), bool))

    return Data(rows, held_out(sources.validation), held_out(sources.test))


def problem_of(kind: str) -> Problem:
    """One of ``KINDS``."""
    shared = NARROW if kind == "conflict" else SHARED
    network = functools.partial(_problem.Network, (INPUTS, WIDE, shared, K))

    def task_losses(params: chex.ArrayTree, rows: Rows, z: Any = None) -> jax.Array:
        outputs = _problem.apply(network, params, rows.x, z)
        return jnp.mean((outputs - rows.scale * rows.y) ** 2, axis=0)

    def task_metrics(params: chex.ArrayTree, rows: Rows) -> jax.Array:
        return jnp.sqrt(task_losses(params, rows)) / rows.scale

    tasks = tuple(Task(f"{kind} {k}", f"{k}, MSE", f"{k} RMSE", 3) for k in range(1, K + 1))
    own = functools.partial(load_data, kind)
    problem = _problem.of_network(
        network, tasks, own, task_losses, task_metrics, lambda rows: rows.x
    )
    return problem._replace(present=lambda rows: rows.present)


PROBLEMS = {kind: problem_of(kind) for kind in KINDS}
