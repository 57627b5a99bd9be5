"""A critic of ten tasks: one network that values a walk under ten rewards of different size.

A walker on a grid of 8 x 8 steps about at random. Task k pays 1 to 100 for one cell of the grid,
and the critic learns from single steps what the walk is worth from each cell (temporal
differences, with a target network). The true values solve a linear system, so that the error is
known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import famo, losses_and_grads
from famo_jax.weighting import first_loss, ls, si

SIDE, TASKS, DISCOUNT, STEPS, BATCH = 8, 10, 0.9, 3000, 128
CELLS = SIDE**2


def make_walk():
    """Chances of each step [64, 64], rewards [64, 10], true values [64, 10]."""
    rows, columns = np.divmod(np.arange(CELLS), SIDE)
    apart = abs(rows[:, None] - rows) + abs(columns[:, None] - columns)
    chances = (apart <= 1).astype(float)
    chances /= chances.sum(axis=1, keepdims=True)
    rewards = np.zeros((CELLS, TASKS))
    cells = np.random.default_rng(0).choice(CELLS, TASKS, replace=False)
    rewards[cells, np.arange(TASKS)] = np.logspace(0, 2, TASKS)
    return chances, rewards, np.linalg.solve(np.eye(CELLS) - DISCOUNT * chances, rewards)


def init(key):
    sizes = {"first": (CELLS, 64), "second": (64, 64), "heads": (64, TASKS)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: jax.random.normal(k, size) / size[0] ** 0.5
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def values_of(params, cells):  # [...] to [..., TASKS]
    hidden = jnp.tanh(params["first"][cells] * CELLS**0.5)
    return jnp.tanh(hidden @ params["second"]) @ params["heads"]


def task_losses(params, target, batch):
    cells, after, rewards = batch
    bootstrapped = rewards + DISCOUNT * values_of(target, after)
    return jnp.mean((values_of(params, cells) - bootstrapped) ** 2, axis=0)


def train(weighing, chances, rewards):
    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(1e-2, STEPS)), weighing)

    def step(carry, key):
        params, target, opt_state = carry
        of_cells, of_steps = jax.random.split(key)
        cells = jax.random.randint(of_cells, (BATCH,), 0, CELLS)
        after = jax.random.categorical(of_steps, jnp.log(chances[cells]))
        batch = cells, after, rewards[cells]
        losses, grads = losses_and_grads(task_losses)(params, target, batch, state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        params = optax.apply_updates(params, updates)
        return (params, optax.incremental_update(params, target, 0.02), opt_state), None

    params = init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), STEPS)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))
    (params, _, _), _ = run((params, params, tx.init(params)))
    return params


def main():
    chances, rewards, values = map(jnp.asarray, make_walk())
    weighings = {
        "mean": ls(),
        "1 / first loss": first_loss(TASKS),
        "log losses": si(),
        "FAMO": famo(TASKS, normalizer=None, smoothing=0.9),
    }
    print(f"{'error / spread of the values':30} {'worst task':>10} {'median':>10} {'best':>10}")
    results = {}
    for name, weighing in weighings.items():
        wrong = values_of(train(weighing, chances, rewards), jnp.arange(CELLS)) - values
        errors = np.sort(np.sqrt(np.mean(wrong**2, axis=0)) / np.std(values, axis=0))
        results[name] = errors
        print(f"{name:30} {errors[-1]:10.2f} {np.median(errors):10.2f} {errors[0]:10.2f}")
    return results


if __name__ == "__main__":
    main()
