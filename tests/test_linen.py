"""The train state of Flax Linen."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import famo_jax
from famo_jax import TrainState, famo, task_weights
from famo_jax.linen import TrainState as LinenTrainState

PARAMS = {"w": jnp.array([1.0, 2.0])}
GRADS = {"w": jnp.array([0.5, -1.0])}
LOSSES = jnp.array([3.0, 4.0])


def losses_fn(params):
    return params["w"] ** 2 + 1


def create(tx):
    return TrainState.create(apply_fn=None, params=PARAMS, tx=tx)


def test_one_class_under_two_names():
    assert TrainState is LinenTrainState is famo_jax.TrainState


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"losses_fn": losses_fn},
        {"new_losses": LOSSES / 2},
        {"new_losses": LOSSES / 2, "where": jnp.array([True, False])},
    ],
    ids=lambda extra: " ".join(extra) or "one-pass",
)
def test_apply_gradients_is_update_and_apply(extra):
    tx = optax.chain(optax.adam(0.1), famo(2))
    state = create(tx)
    step = jax.jit(lambda state, losses: state.apply_gradients(grads=GRADS, losses=losses, **extra))
    params, opt_state = PARAMS, tx.init(PARAMS)
    for scale in (1.0, 0.9):
        losses = LOSSES * jnp.array([scale, 1.0])
        state = step(state, losses)
        updates, opt_state = tx.update(GRADS, opt_state, params, losses=losses, **extra)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(state.params, params)
    chex.assert_trees_all_close(state.opt_state, opt_state)
    assert state.step == 2
    assert state.tx is tx
    assert np.ptp(task_weights(state)) > 0


def test_without_losses_it_is_flax_s():
    ours = create(optax.adam(0.1)).apply_gradients(grads=GRADS)
    flax_s = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=optax.adam(0.1))
    chex.assert_trees_all_equal(ours.params, flax_s.apply_gradients(grads=GRADS).params)


def test_an_optimizer_without_extra_arguments_takes_losses_too():
    def update_fn(updates, state, params=None):
        return updates, state

    plain = optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
    state = create(plain).apply_gradients(grads=GRADS, losses=LOSSES)
    np.testing.assert_allclose(state.params["w"], [1.5, 1.0])


def test_other_fields_are_replaced():
    class Extended(TrainState):
        counter: int

    state = Extended.create(apply_fn=None, params=PARAMS, tx=optax.sgd(0.1), counter=0)
    assert state.apply_gradients(grads=GRADS, losses=LOSSES, counter=7).counter == 7


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_without_flax_the_name_says_what_to_install():
    """In a process of its own, to which Flax is not to be had."""
    program = """
import sys
sys.modules["flax"] = None
import famo_jax
assert "flax.training" not in sys.modules
try:
    famo_jax.TrainState
except ImportError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == 'famo_jax.TrainState needs Flax: pip install "famo_jax[flax]"'


def test_importing_the_library_imports_neither_flax_nor_an_extra():
    program = """
import sys
import famo_jax
extras = {"flax", "sklearn", "matplotlib", "rich", "torch", "pytest"}
print(sorted(extras & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_neither_import_nor_factory_touches_a_device():
    """Else ``jax.distributed.initialize`` after them would fail."""
    program = """
from jax._src import xla_bridge
import famo_jax
famo_jax.famo(3, min_losses={"a": 0.0, "b": 1.0, "c": 2.0})
print(xla_bridge.backends_are_initialized())
"""
    assert run(program) == "False"
