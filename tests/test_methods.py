"""Every method trains the digits through one training step, the method being its only parameter."""

import functools

import jax
import numpy as np
import optax
import pytest

from famo_jax import losses_and_grads
from famo_jax.experiments.problems import digits
from tests.methods import chains

STEPS, SEEDS = 300, 2
ADAM = optax.adam(3e-3)
METHODS = chains(digits.K, ADAM)


@pytest.fixture(scope="module")
def batches():
    """``[STEPS, SEEDS, 64]`` pictures."""
    return digits.load_data(STEPS, range(SEEDS), 64).train


def train_step(tx, carry, batch):
    params, opt_state = carry
    losses, grads = losses_and_grads(digits.task_losses)(params, batch, state=opt_state)
    updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
    return (optax.apply_updates(params, updates), opt_state), losses


@pytest.mark.parametrize("name", METHODS)
def test_trains_the_digits(name, batches):
    tx = METHODS[name]

    def train(params, batches):
        return jax.lax.scan(functools.partial(train_step, tx), (params, tx.init(params)), batches)

    params = digits.PROBLEM.init(range(SEEDS))[0]
    _, losses = jax.jit(jax.vmap(train, in_axes=(0, 1)))(params, batches)
    assert np.isfinite(losses).all()
    start, end = (np.log(part).mean(axis=1) for part in (losses[:, :5], losses[:, -20:]))
    if name == "stl":
        assert np.all(end[:, 2] < start[:, 2] - 0.5)
    else:
        assert np.all(end.mean(axis=1) < start.mean(axis=1) - 0.3)
