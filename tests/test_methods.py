"""Every method trains the digits through one training step, the method being its only parameter."""

import functools

import jax
import numpy as np
import optax
import pytest

import famo_jax
from famo_jax import losses_and_grads
from famo_jax.experiments import digits

STEPS, SEEDS = 300, 2
ADAM = optax.adam(3e-3)
METHODS = {
    "ls": optax.chain(ADAM, famo_jax.weighting.ls()),
    "si": optax.chain(ADAM, famo_jax.weighting.si()),
    "stl": optax.chain(ADAM, famo_jax.weighting.stl(2)),
    "rlw": optax.chain(ADAM, famo_jax.weighting.rlw(4, key=0)),
    "dwa": optax.chain(ADAM, famo_jax.weighting.dwa(4, window=25)),
    "uw": optax.chain(ADAM, famo_jax.weighting.uw(4)),
    "amortized_mgda": optax.chain(ADAM, famo_jax.weighting.amortized_mgda(4)),
    "famo": optax.chain(ADAM, famo_jax.famo(4)),
    "mgda": optax.chain(famo_jax.aggregation.mgda(), ADAM),
    "pcgrad": optax.chain(famo_jax.aggregation.pcgrad(key=0), ADAM),
    "cagrad": optax.chain(famo_jax.aggregation.cagrad(c=0.4), ADAM),
    "imtl_g": optax.chain(famo_jax.aggregation.imtl_g(), ADAM),
    "graddrop": optax.chain(famo_jax.aggregation.graddrop(key=0), ADAM),
    "nash_mtl": optax.chain(famo_jax.aggregation.nash_mtl(), ADAM),
}


@pytest.fixture(scope="module")
def batches():
    """``[STEPS, SEEDS, 64]`` pictures."""
    return digits.load_data(STEPS, SEEDS, 64).train


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

    params = digits.init_params(SEEDS)
    _, losses = jax.jit(jax.vmap(train, in_axes=(0, 1)))(params, batches)
    assert np.isfinite(losses).all()
    start, end = (np.log(part).mean(axis=1) for part in (losses[:, :5], losses[:, -20:]))
    if name == "stl":
        assert np.all(end[:, 2] < start[:, 2] - 0.5)
    else:
        assert np.all(end.mean(axis=1) < start.mean(axis=1) - 0.3)
