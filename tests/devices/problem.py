"""Five tasks on one network, and the training step of any method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import _method, famo, losses_and_grads
from tests.methods import chains

STEPS = 100
NUM_TASKS = 5
SGD = optax.sgd(1e-2, momentum=0.9)
CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), SGD)  # the lengths of gradients differ

BY_SLOPE = "famo by slope"
TX = chains(NUM_TASKS, CLIPPED) | {
    BY_SLOPE: optax.chain(CLIPPED, famo(NUM_TASKS, measure="slope")),
}


class Problem(NamedTuple):
    """What is trained, and on what."""

    params: dict  # kernel [16, 32], bias [32], heads [32, 10]
    batch: tuple  # x [256, 16] and y [256, 10], two columns for each task


def problem():
    """Noisy labels, so that no loss comes near zero, where rounding would decide."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 16))
    y = np.sin(x @ rng.normal(size=(16, 10)) / 4) + rng.normal(size=(256, 10))
    params = {
        "kernel": rng.normal(size=(16, 32)) / 4,
        "bias": np.zeros(32),
        "heads": rng.normal(size=(32, 10)) / 6,
    }
    scales = np.repeat([0.3, 0.5, 1.0, 2.0, 3.0], 2)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), Problem(params, (x, y * scales)))


def task_losses(params, batch):
    """The mean squared error of each task, ``[5]``."""
    x, y = batch
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"])
    return mean_errors(hidden @ params["heads"], y)


def encode(params, batch):
    """The hidden layer, as features, ``[256, 32]``."""
    return jnp.tanh(batch[0] @ params["kernel"] + params["bias"])


def head_losses(params, features, batch):
    """The losses of `task_losses` from the features on, ``[5]``."""
    return mean_errors(features @ params["heads"], batch[1])


def mean_errors(outputs, y):
    return jnp.mean(((outputs - y) ** 2).reshape(-1, NUM_TASKS, 2), axis=(0, 2))


def train_step(tx, *, two_pass=False, task_losses=task_losses, **options):
    """``(params, opt_state, batch) -> (params, opt_state, losses)``."""

    def step(params, opt_state, batch):
        losses_fn = lambda params: task_losses(params, batch)
        take = losses_and_grads(task_losses, **options)
        losses, grads = take(params, batch, state=opt_state)
        extra = {"losses_fn": losses_fn} if two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state, losses

    return step


def train(step, params, opt_state, batch):
    """100 steps, each waited for: on few cores the collectives of many queued steps stall.

    Returns:
      The parameters and the optimizer's state, the losses ``[100, 5]``, and the compiled step.
    """
    compiled = jax.jit(step).lower(params, opt_state, batch).compile()
    history = []
    for _ in range(STEPS):
        params, opt_state, losses = compiled(params, opt_state, batch)
        history.append(np.asarray(losses))
    return (params, opt_state), np.stack(history), compiled


def learnt(opt_state):
    """The method's state without moments and what is remembered of gradients or changes.

    Those are differences.
    """
    state = _method.find_state(opt_state)
    differences = {"opt_state", "gradients", "sizes"}.intersection(state._fields)
    return state._replace(**dict.fromkeys(differences, ()))


def remembered(opt_state):
    """The task gradients in the method's state, if it remembers them."""
    return getattr(_method.find_state(opt_state), "gradients", ())


def arrays(tree):
    """Its leaves as NumPy arrays, keys by their data."""

    def array(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return [array(leaf) for leaf in jax.tree.leaves(tree)]
