r"""Ten robots by imitation: a network learns what Meta-World's scripted experts do.

The tasks are those of MT10. Of each the expert shows episodes, disturbed by noise so that it also
shows how to come back; the targets are what it wants to do, undisturbed and unclipped. Experts
differ in how hard they push, and so do the losses in size, mean square errors of the same four
numbers. One network is told which task it has. Goals of training, validation and test are different
ones; the rest of the simulation is not random.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from famo_jax.experiments.problems import _cache, _metaworld, _problem
from famo_jax.experiments.problems._problem import Data, Problem, Task

Array = npt.NDArray[Any]

NOISE = 0.3  # standard deviation, where an action goes from -1 to 1
SPLITS = (1, 2, 3)  # the seeds of the goals of training, validation and test
HELD_OUT = 2000  # rows of a task, at most
WIDTH = 96  # of both hidden layers


# --- Demonstrations -------------------------------------------------------------------------------


class Demonstrations(NamedTuple):
    """Episodes of K tasks: those of training, task by task, then of validation, then of test."""

    observations: Array  # [steps, 39], float32
    actions: Array  # [steps, 4], float32
    lengths: Array  # [3, K, E], int32
    success: Array  # [3, K, E], bool
    expert: Array  # [K, E], bool: undisturbed, on goals of the test

    def rows(self, split: int) -> list[slice]:
        """Where those of each task are."""
        ends = np.cumsum(self.lengths.sum(axis=-1))
        starts = ends - self.lengths.sum(axis=-1).ravel()
        shape = self.lengths.shape[:2]
        pairs = zip(starts.reshape(shape)[split], ends.reshape(shape)[split], strict=True)
        return [slice(int(start), int(end)) for start, end in pairs]


def demonstrate(
    tasks: Sequence[str], episodes: int, tell: Callable[[str], None] = lambda status: None
) -> Demonstrations:
    """Records ``episodes`` of each task and split, or reads what was recorded earlier.

    Raises:
      OSError: There is no simulator, or a process of it died.
    """
    _metaworld.require()
    versions = [importlib.metadata.version(name) for name in ("metaworld", "mujoco", "numpy")]
    about = tuple(tasks), episodes, NOISE, SPLITS, _metaworld.HORIZON, versions
    key = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    jobs = [(task, seed, episodes, NOISE) for seed in SPLITS for task in tasks]
    jobs += [(task, SPLITS[-1], episodes, 0.0) for task in tasks]

    def record() -> Demonstrations:
        shown = []
        with _metaworld.processes() as pool:
            for own in pool.map(_metaworld.record, *zip(*jobs, strict=True)):
                shown.append(own)
                tell(f"recorded {len(shown)} of {len(jobs)}")
        shown, undisturbed = shown[: -len(tasks)], shown[-len(tasks) :]
        shape = len(SPLITS), len(tasks), episodes
        return Demonstrations(
            np.concatenate([own.observations for own in shown]),
            np.concatenate([own.actions for own in shown]),
            np.reshape([own.lengths for own in shown], shape),
            np.reshape([own.success for own in shown], shape),
            np.stack([own.success for own in undisturbed]),
        )

    return _cache.cached(f"metaworld-{key}", Demonstrations, record)


# --- The problem ----------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What experts saw and did, as many rows of each task."""

    inputs: Any  # [..., K, B, 39 + K], standardised, and which task it is
    actions: Any  # [..., K, B, 4]


class Scale(NamedTuple):
    """What standardises observations."""

    mean: Array  # [39]
    std: Array  # [39]


def tasks_of(names: Sequence[str]) -> tuple[Task, ...]:
    """How they are reported."""
    return tuple(
        Task(name, f"{name}, MSE of the action", f"{name.replace('-', ' ')} RMSE", 4)
        for name in names
    )


def scale_of(shown: Demonstrations) -> Scale:
    """Of the training rows. What never moves is left as it is."""
    seen = shown.observations[: shown.rows(0)[-1].stop].astype(np.float64)
    std = seen.std(axis=0)
    return Scale(seen.mean(axis=0), np.where(std > 1e-6, std, 1.0))


def network(k: int) -> _problem.Make:
    """For K tasks."""
    sizes = _metaworld.OBSERVATION + k, WIDTH, WIDTH, _metaworld.ACTION
    return functools.partial(_problem.Network, sizes)


def named(names: Sequence[str]) -> Problem:
    """What is known of the problem before any demonstration."""
    nothing: Any = None
    return Problem(tasks_of(names), nothing, nothing, nothing, nothing)


def problem(names: Sequence[str], shown: Demonstrations) -> Problem:
    """To imitate the experts of these tasks, shown as in :func:`demonstrate`."""
    k, scale = len(names), scale_of(shown)
    make = network(k)

    def rows_of(split: int) -> tuple[Batch, list[int]]:  # one task after another, their starts
        own = shown.rows(split)
        every = slice(own[0].start, own[-1].stop)
        seen = (shown.observations[every] - scale.mean) / scale.std
        which = np.repeat(np.eye(k), [each.stop - each.start for each in own], axis=0)
        inputs = np.concatenate([seen, which], axis=-1).astype(np.float32)
        return Batch(inputs, shown.actions[every]), [each.start - every.start for each in own]

    def held_out(split: int) -> Batch:  # evenly through the episodes, as many of each task
        rows, starts = rows_of(split)
        counts = shown.lengths[split].sum(axis=-1, keepdims=True)
        size = min(HELD_OUT, int(counts.min()))
        places = np.array(starts)[:, None] + np.arange(size) * counts // size
        return Batch(*(jnp.asarray(leaf[places]) for leaf in rows))

    def load_data(steps: int, seeds: Sequence[int], batch_size: int) -> Data:
        pool, starts = rows_of(0)
        counts = shown.lengths[0].sum(axis=-1)[:, None]
        # Of so many that the remainder, which is of a task's own rows, is as good as uniform.
        drawn = _problem.draw_rows(steps, seeds, k * batch_size, 6, 2**30)
        rows = drawn.reshape(*drawn.shape[:2], k, batch_size) % counts + np.array(starts)[:, None]
        validation, test = _problem.for_each_seed([held_out(1), held_out(2)], seeds)
        pool = jax.tree.map(jnp.asarray, pool)
        return Data(rows.astype(jnp.int32), validation, test, pool=pool)

    def errors(params: chex.ArrayTree, batch: Batch, z: Any = None) -> jax.Array:
        outputs = _problem.apply(make, params, batch.inputs, z)
        return jnp.mean((outputs - batch.actions) ** 2, (-2, -1))

    def one(task: int) -> Callable[..., jax.Array]:
        return lambda params, state, batch, key: errors(
            params, Batch(batch.inputs[task], batch.actions[task])
        )

    found = _problem.of_network(
        make,
        tasks_of(names),
        load_data,
        errors,
        lambda *own: jnp.sqrt(errors(*own)),
        lambda batch: batch.inputs,
    )
    return found._replace(each=tuple(map(one, range(k))))


# --- Success --------------------------------------------------------------------------------------


def layers_of(params: Array, k: int, task: int, scale: Scale) -> list[Array]:
    """Of one network, from all of its parameters: kernels and biases that take observations.

    Standardising and the number of the task are merged into the first of them.
    """
    shapes = jax.eval_shape(functools.partial(_problem.init_params, network(k), [0]))
    leaves, tree = jax.tree.flatten(shapes)
    parts = np.split(np.asarray(params, np.float64), np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)]
    found: Any = jax.tree.unflatten(tree, shaped)
    layers = [
        np.asarray(found[layer][name].get_value())
        for layer in ("wide", "narrow", "heads")
        for name in ("kernel", "bias")
    ]
    kernel, which = np.split(layers[0], [_metaworld.OBSERVATION])
    kernel = kernel / scale.std[:, None]
    return [kernel, layers[1] + which[task] - scale.mean @ kernel, *layers[2:]]
