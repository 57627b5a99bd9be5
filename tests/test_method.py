"""What a method is: its state in wrappers and in any pytree, and how one joins."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import (
    FamoState,
    _method,
    famo,
    logits_optimizer,
    loss_weights,
    losses_and_grads,
    task_weights,
    update_logits,
    weighted_loss,
)

PARAMS = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}


def losses_fn(params, scale=1.0):
    residual = params["w"] - jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]) + params["b"]
    return scale * jnp.array([0.01, 1.0, 100.0]) * jnp.sum(residual**2, axis=1) + 0.1


def train(tx, steps, *, two_pass=False, losses_fn=losses_fn):
    """The training step of program A. Returns parameters and optimizer state."""

    @jax.jit
    def train_step(params, opt_state):
        def loss_fn(params):
            losses = losses_fn(params)
            return weighted_loss(losses, opt_state), losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(params)
        extra = {"losses_fn": losses_fn} if two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, opt_state = train_step(params, opt_state)
    return params, opt_state


# --- Wrappers ------------------------------------------------------------------------------------

WRAPPERS = {
    "chain": lambda famo_tx: optax.chain(optax.adam(0.01), famo_tx),
    "nested chain": lambda famo_tx: optax.chain(
        optax.clip(1e9), optax.chain(optax.adam(0.01), famo_tx)
    ),
    "named_chain": lambda famo_tx: optax.named_chain(("adam", optax.adam(0.01)), ("famo", famo_tx)),
    "apply_if_finite": lambda famo_tx: optax.apply_if_finite(
        optax.chain(optax.adam(0.01), famo_tx), 3
    ),
    "outside masked": lambda famo_tx: optax.chain(
        optax.masked(optax.add_decayed_weights(0.0), {"w": True, "b": False}),
        optax.adam(0.01),
        famo_tx,
    ),
    "outside partition": lambda famo_tx: optax.chain(
        optax.partition({"w": optax.adam(0.01), "b": optax.adam(0.01)}, {"w": "w", "b": "b"}),
        famo_tx,
    ),
    "MultiSteps of one": lambda famo_tx: optax.MultiSteps(
        optax.chain(optax.adam(0.01), famo_tx), 1
    ),
}


@pytest.mark.parametrize("two_pass", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_famo_in_a_wrapper_is_famo(wrapper, two_pass):
    expected_params, expected = train(
        optax.chain(optax.adam(0.01), famo(3, learning_rate=0.1)), 15, two_pass=two_pass
    )
    params, opt_state = train(WRAPPERS[wrapper](famo(3, learning_rate=0.1)), 15, two_pass=two_pass)
    chex.assert_trees_all_close(params, expected_params, rtol=1e-4)
    np.testing.assert_allclose(task_weights(opt_state), task_weights(expected), rtol=1e-3)
    assert np.ptp(task_weights(opt_state)) > 0.05


@pytest.mark.parametrize("two_pass", [True, False])
def test_inject_hyperparams(two_pass):
    injected = optax.inject_hyperparams(
        famo, static_args=("num_tasks",), hyperparam_dtype=jnp.float32
    )
    expected_params, expected = train(
        optax.chain(optax.adam(0.01), famo(3, learning_rate=0.1)), 15, two_pass=two_pass
    )
    tx = optax.chain(optax.adam(0.01), injected(3, learning_rate=0.1))
    params, opt_state = train(tx, 15, two_pass=two_pass)
    chex.assert_trees_all_close(params, expected_params, rtol=1e-4)
    np.testing.assert_allclose(task_weights(opt_state), task_weights(expected), rtol=1e-3)
    # and the rates may be turned from outside
    frozen = opt_state[1]._replace(hyperparams={**opt_state[1].hyperparams, "learning_rate": 0.0})
    _, after = tx.update(PARAMS, (opt_state[0], frozen), PARAMS, losses=jnp.array([0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(task_weights(after), task_weights(opt_state))


def test_inject_hyperparams_with_a_schedule():
    injected = optax.inject_hyperparams(famo, static_args=("num_tasks",))
    tx = injected(2, learning_rate=optax.linear_schedule(0.1, 0.0, 10))
    state = tx.init(PARAMS)
    for step in range(3):
        np.testing.assert_allclose(
            state.hyperparams["learning_rate"], 0.1 - 0.01 * max(step - 1, 0)
        )
        _, state = tx.update(PARAMS, state, losses=jnp.array([1.0, 2.0]))


def test_apply_if_finite_skips_the_whole_update():
    tx = optax.apply_if_finite(optax.chain(optax.sgd(0.1), famo(3)), 5)
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS, losses=jnp.ones(3))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    _, after = tx.update(broken, state, PARAMS, losses=jnp.array([0.5, 0.6, 0.7]))
    chex.assert_trees_all_equal(_method.find_state(after), _method.find_state(state))
    assert after.notfinite_count == 1


def test_multi_steps_one_pass_sees_every_kth_mini_batch():
    """And two-pass evaluates its second forward pass at every mini-step."""
    evaluations = []

    def counted(params):
        jax.debug.callback(lambda: evaluations.append(1))
        return losses_fn(params)

    scales = jnp.array([5.0, 1.0, 7.0, 0.5])
    for two_pass in (False, True):
        tx = optax.MultiSteps(optax.chain(optax.sgd(1e-3), famo(3)), every_k_schedule=2)
        state = tx.init(PARAMS)
        for scale in scales:
            losses = losses_fn(PARAMS, scale)
            extra = {"losses_fn": counted} if two_pass else {}
            _, state = tx.update(PARAMS, state, PARAMS, losses=losses, **extra)
            jax.block_until_ready(state)
        if not two_pass:
            expected = famo(3).init(PARAMS)
            for scale in scales[1::2]:
                _, expected = famo(3).update((), expected, losses=losses_fn(PARAMS, scale))
            chex.assert_trees_all_close(_method.find_state(state), expected, rtol=1e-5)
            assert np.ptp(expected.logits) > 0
    jax.effects_barrier()
    assert len(evaluations) == 4


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.partition(
            {"famo": tx, "rest": optax.sgd(0.1)}, {"w": "famo", "b": "rest"}
        ),
    ],
    ids=["masked", "partition"],
)
def test_inside_masked_two_pass_is_an_error_and_one_pass_works(wrap):
    inner = optax.chain(optax.sgd(0.1), famo(3))
    with pytest.raises(ValueError, match=r"outside of optax.masked and optax.partition"):
        train(wrap(inner), 1, two_pass=True)
    params, opt_state = train(wrap(inner), 3)
    assert np.ptp(task_weights(opt_state)) > 0
    assert np.isfinite(params["w"]).all()


# --- Finding the state ---------------------------------------------------------------------------


class TrainState(NamedTuple):
    params: dict
    opt_state: tuple


@pytest.mark.parametrize(
    "hold",
    [
        lambda state: state,
        lambda state: {"step": 0, "opt_state": {"deep": [1, state]}},
        lambda state: TrainState({"w": jnp.ones(3)}, (optax.EmptyState(), state)),
        lambda state: [jnp.ones(3), {"b": state}],
        lambda state: (jax.tree_util.Partial(lambda: None, state),),
        lambda state: {"moments": jnp.ones(2), "state": state},
    ],
)
def test_a_state_is_found_in_any_pytree(hold):
    state = famo(2).init(None)._replace(logits=jnp.array([1.0, 2.0]))
    assert isinstance(_method.find_state(hold(state)), FamoState)
    np.testing.assert_array_equal(task_weights(hold(state)), task_weights(state))


class ScaledState(NamedTuple):
    scale: jax.Array


class StackedState(NamedTuple):
    pass


@pytest.fixture
def registered_methods(monkeypatch):
    """A weighting and an aggregation method, which join by registering and by nothing else."""
    monkeypatch.setattr(_method, "_weighting", dict(_method._weighting))
    monkeypatch.setattr(_method, "_aggregation", dict(_method._aggregation))

    @_method.weighting(ScaledState)
    def scalarize_scaled(state, losses, present):
        return state.scale * jnp.sum(jnp.where(present, losses, 0))

    _method.aggregation(StackedState)


def test_a_method_joins_by_registering(registered_methods):
    opt_state = (*optax.chain(optax.adam(0.1)).init(PARAMS), ScaledState(jnp.array(2.0)))
    losses = {"a": jnp.array(1.0), "b": jnp.array(3.0)}
    assert weighted_loss(losses, opt_state) == 8.0
    assert loss_weights(losses, opt_state) == {"a": 2.0, "b": 2.0}
    masked = loss_weights({**losses, "b": jnp.nan}, opt_state, where={"a": True, "b": False})
    assert masked == {"a": 2.0, "b": 0.0}
    with pytest.raises(ValueError, match="`state`: expected one with task logits, got Scaled"):
        task_weights(opt_state)
    with pytest.raises(ValueError, match="`state`: expected a FamoState, got ScaledState"):
        update_logits(opt_state, jnp.ones(2), jnp.ones(2), logits_optimizer())


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 5])
def test_losses_and_grads_stacks_task_gradients(registered_methods, chunk_size):
    state = (StackedState(), optax.EmptyState())
    named = lambda params: dict(zip("cab", losses_fn(params), strict=True))
    losses, grads = jax.jit(
        lambda params: losses_and_grads(named, chunk_size=chunk_size)(params, state=state)
    )(PARAMS)
    assert set(losses) == set("abc")
    jacobian = jax.jacobian(lambda params: losses_fn(params)[jnp.array([1, 2, 0])])(PARAMS)
    chex.assert_trees_all_close(grads, jacobian, rtol=1e-6)
    _, grads = losses_and_grads(named, chunk_size=chunk_size)(
        PARAMS, state=state, where={"a": True, "b": False, "c": True}
    )
    np.testing.assert_array_equal(grads["w"][1], [0, 0])
    np.testing.assert_allclose(grads["w"][2], jacobian["w"][2], rtol=1e-6)
    with pytest.raises(ValueError, match=r"StackedState .* use `losses_and_grads`"):
        weighted_loss(losses, state)
    with pytest.raises(ValueError, match=r"StackedState .* use `losses_and_grads`"):
        loss_weights(losses, state)
