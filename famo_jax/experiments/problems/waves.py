"""K regression tasks of frequencies spread ninefold, for any K."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famo_jax.experiments.problems import _problem
from famo_jax.experiments.problems._problem import Data, Problem, Task

INPUTS, HIDDEN, ROWS, NOISE = 8, 32, 1024, 0.1


class Waves(NamedTuple):
    """Rows of K regression tasks."""

    x: jax.Array  # [n, INPUTS]
    y: jax.Array  # [n, K]


def make_waves(key: jax.Array, num_tasks: int, noise: float) -> Waves:
    """Task i is a sine of a projection, of frequencies spread ninefold: the lowest is easiest."""
    x_key, noise_key = jax.random.split(key)
    direction_key, phase_key = jax.random.split(jax.random.key(4))
    directions = jax.random.normal(direction_key, (INPUTS, num_tasks))
    directions /= jnp.linalg.norm(directions, axis=0)
    phases = jax.random.uniform(phase_key, (num_tasks,), maxval=2 * jnp.pi)
    x = jax.random.normal(x_key, (ROWS, INPUTS))
    frequencies = jnp.asarray(np.geomspace(1 / 3, 3, num_tasks))
    y = jnp.sin(x @ directions * frequencies + phases)
    return Waves(x, y + noise * jax.random.normal(noise_key, y.shape))


def init_params(key: jax.Array, num_tasks: int) -> list[dict[str, jax.Array]]:
    """A network of two hidden layers, with one output for each task."""
    sizes = [INPUTS, HIDDEN, HIDDEN, num_tasks]
    return [
        {"kernel": jax.random.normal(key, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
        for key, n, m in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    ]


def task_losses(params: Any, waves: Waves) -> jax.Array:
    """Mean squared errors, ``[K]``."""
    hidden = waves.x
    for layer in params[:-1]:
        hidden = jnp.tanh(hidden @ layer["kernel"] + layer["bias"])
    return jnp.mean((hidden @ params[-1]["kernel"] + params[-1]["bias"] - waves.y) ** 2, axis=0)


def problem_of(num_tasks: int) -> Problem:
    """Of K tasks, by the root of the mean squared error. Only training has noise."""

    def load_data(steps: int, seeds: Sequence[int], batch_size: int) -> Data:
        train, validation, test = (
            make_waves(jax.random.key(split), num_tasks, noise)
            for split, noise in enumerate((NOISE, 0.0, 0.0))
        )
        rows = _problem.draw_rows(steps, seeds, batch_size, 3, ROWS)
        validation, test = _problem.for_each_seed([validation, test], seeds)
        return Data(rows, validation, test, pool=train)

    def init(seeds: Sequence[int]) -> Any:
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
        return jax.vmap(lambda key: init_params(key, num_tasks))(keys), ()

    return Problem(
        tasks=tuple(Task(str(k), f"{k}, MSE", f"{k} RMSE", 3) for k in range(num_tasks)),
        load_data=load_data,
        init=init,
        losses=lambda params, state, waves, _: (task_losses(params, waves), state),
        metrics=lambda params, _, waves: jnp.sqrt(task_losses(params, waves)),
    )
