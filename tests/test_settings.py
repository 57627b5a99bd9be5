"""FAMO's own settings, ``normalizer`` and ``smoothing``, under all that may happen to a state."""

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx, serialization
from jax import export

from famo_jax import (
    TrainState,
    famo,
    logits_optimizer,
    loss_weights,
    losses_and_grads,
    task_weights,
    update_logits,
    weighted_loss,
)

NORMALIZERS = ("harmonic", "geometric", "arithmetic", None)
every_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)
LOSSES = jnp.array([0.5, 2.0, 8.0])
TARGETS = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])


def length(normalizer, losses, z):
    """c, by the definition of the means of D weighted by z."""
    d, z = np.asarray(losses, float) + 1e-8, np.asarray(z, float)
    return {
        "harmonic": 1 / np.sum(z / d),
        "geometric": np.prod(d**z),
        "arithmetic": np.sum(z * d),
        None: 1.0,
    }[normalizer]


def losses_fn(params):
    return jnp.array([0.01, 1.0, 100.0]) * jnp.sum((params - TARGETS) ** 2, axis=1) + 0.1


def check(state, normalizer, losses=LOSSES):
    """The weights are those of the normalizer: c z / D."""
    z = np.asarray(task_weights(state), float)
    expected = length(normalizer, losses, z) * z / (np.asarray(losses, float) + 1e-8)
    np.testing.assert_allclose(loss_weights(losses, state), expected, rtol=2e-5)


def train(tx, steps=4, params=(0.3, -0.4)):
    def step(carry, _):
        params, opt_state = carry
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return (optax.apply_updates(params, updates), opt_state), losses

    params = jnp.array(params)
    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]


# --- What they do ---------------------------------------------------------------------------------


@every_normalizer
def test_the_normalizer_of_a_transformation_weighs_its_losses(normalizer):
    tx = optax.chain(optax.sgd(1e-3), famo(3, normalizer=normalizer))
    _, opt_state = train(tx)
    assert np.ptp(task_weights(opt_state)) > 0.01
    check(opt_state, normalizer)


def test_the_normalizer_changes_no_logits_on_given_losses():
    states = []
    for normalizer in NORMALIZERS:
        tx = famo(3, normalizer=normalizer)
        _, state = tx.update((), tx.init(None), losses=LOSSES, new_losses=LOSSES / 2)
        states.append(state.logits)
    for other in states[1:]:
        np.testing.assert_array_equal(other, states[0])


def test_smoothing_is_an_average_before_adam():
    """In NumPy: m <- 0.9 m + 0.1 (delta + gamma xi), and Adam sees m / (1 - 0.9^t)."""
    gamma, rate, decay = 0.03, 0.1, 0.9
    tx = famo(3, learning_rate=rate, weight_decay=gamma, smoothing=decay)
    state = tx.init(None)
    rng = np.random.default_rng(0)
    xi, average, first, second = (np.zeros(3) for _ in range(4))
    for t in range(1, 8):
        before, after = rng.uniform(1, 2, (2, 3))
        z = np.exp(xi) / np.exp(xi).sum()
        change = np.log(before) - np.log(after)
        delta = z * (change - z @ change)
        average = decay * average + (1 - decay) * (delta + gamma * xi)
        smooth = average / (1 - decay**t)
        first, second = 0.9 * first + 0.1 * smooth, 0.999 * second + 0.001 * smooth**2
        xi = xi - rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        _, state = tx.update((), state, losses=jnp.array(before), new_losses=jnp.array(after))
    np.testing.assert_allclose(state.logits, xi, rtol=2e-4)


def test_smoothing_is_the_chain_that_one_wrote_before():
    chain = optax.chain(optax.ema(0.9), optax.adam(0.025))
    ours = train(optax.chain(optax.sgd(1e-3), famo(3, smoothing=0.9)), 20)
    theirs = train(optax.chain(optax.sgd(1e-3), famo(3, optimizer=chain)), 20)
    np.testing.assert_array_equal(ours[1][1].logits, theirs[1][1].logits)
    without = train(optax.chain(optax.sgd(1e-3), famo(3)), 20)
    assert np.abs(ours[1][1].logits - without[1][1].logits).max() > 1e-3


def test_no_smoothing_costs_nothing():
    paper = famo(3).init(None)
    chex.assert_trees_all_equal_structs(famo(3, smoothing=0.0).init(None), paper)
    chex.assert_trees_all_equal_structs(famo(3, smoothing=0).init(None), paper)
    assert len(jax.tree.leaves(famo(3, smoothing=0.9).init(None))) > len(jax.tree.leaves(paper))


# --- Transformations ------------------------------------------------------------------------------

SETTINGS = [("geometric", 0.9), (None, 0.0), ("harmonic", 0.5), ("arithmetic", 0.9)]
settings = pytest.mark.parametrize(("normalizer", "smoothing"), SETTINGS)


@settings
def test_jit_vmap_scan_and_donation(normalizer, smoothing):
    method = famo(3, learning_rate=0.1, normalizer=normalizer, smoothing=smoothing)
    tx = optax.chain(optax.sgd(1e-3), method)
    seeds = jnp.array([[0.3, -0.4], [1.0, 2.0], [-1.0, 0.5]])
    _, opt_states = jax.jit(jax.vmap(lambda params: train(tx, 6, params)))(seeds)
    for index, seed in enumerate(seeds):
        _, alone = train(tx, 6, seed)
        one = jax.tree.map(lambda leaf, index=index: leaf[index], opt_states)
        chex.assert_trees_all_close(one, alone, rtol=1e-4)
        check(one, normalizer)
    donated = jax.jit(lambda state: method.update((), state, losses=LOSSES)[1], donate_argnums=0)
    check(donated(method.init(None)), normalizer)


def test_a_sweep_over_smoothing():
    """It may be traced: a study is one vmap."""
    run = lambda smoothing: train(optax.chain(optax.sgd(1e-3), famo(3, smoothing=smoothing)), 20)
    swept = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.5, 0.9]))[1][1].logits
    for logits, smoothing in zip(swept, (0.0, 0.5, 0.9), strict=True):
        np.testing.assert_allclose(logits, run(smoothing)[1][1].logits, rtol=1e-4, atol=1e-7)


@settings
def test_inject_hyperparams(normalizer, smoothing):
    injected = optax.inject_hyperparams(famo, static_args=("num_tasks",))
    tx = injected(3, learning_rate=0.1, normalizer=normalizer, smoothing=smoothing)
    plain = famo(3, learning_rate=0.1, normalizer=normalizer, smoothing=smoothing)
    state, expected = tx.init(None), plain.init(None)
    for losses in (LOSSES, LOSSES[::-1], LOSSES / 3):
        _, state = jax.jit(tx.update)((), state, losses=losses)
        _, expected = plain.update((), expected, losses=losses)
    np.testing.assert_allclose(task_weights(state), task_weights(expected), rtol=1e-5)
    check(state, normalizer)


@settings
def test_bare_functions(normalizer, smoothing):
    optimizer = logits_optimizer(0.1, smoothing=smoothing)
    tx = famo(3, learning_rate=0.1, normalizer=normalizer, smoothing=smoothing)
    state = update_logits(tx.init(None), LOSSES, LOSSES[::-1], optimizer)
    _, expected = tx.update((), tx.init(None), losses=LOSSES, new_losses=LOSSES[::-1])
    chex.assert_trees_all_close(state, expected, rtol=1e-6)
    check(state, normalizer)


# --- Flax -----------------------------------------------------------------------------------------

X = jnp.array(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)


@settings
def test_nnx(normalizer, smoothing):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    method = famo(3, normalizer=normalizer, smoothing=smoothing)
    optimizer = nnx.Optimizer(model, optax.chain(optax.adam(1e-2), method), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        def loss_fn(model):
            losses = jnp.mean((model(X) - jnp.array([0.1, 1.0, 10.0])) ** 2, axis=0)
            return weighted_loss(losses, optimizer.opt_state), losses

        (_, losses), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads, losses=losses)
        return losses

    for _ in range(3):
        losses = train_step(model, optimizer)
    assert np.ptp(task_weights(optimizer.opt_state)) > 0
    check(optimizer.opt_state, normalizer, losses)
    # and through the split that saves and restores a model
    graphdef, state = nnx.split((model, optimizer))
    _, again = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    check(again.opt_state, normalizer, losses)


def linen_state(normalizer, smoothing):
    model = linen.Dense(3)
    method = famo(3, normalizer=normalizer, smoothing=smoothing)
    return TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), X),
        tx=optax.chain(optax.adam(1e-2), method),
    )


@settings
def test_linen_and_its_serialization(normalizer, smoothing):
    @jax.jit
    def train_step(state):
        losses = lambda params: jnp.mean((state.apply_fn(params, X) - 1.0) ** 2, axis=0)
        grads = jax.grad(lambda params: weighted_loss(losses(params), state.opt_state))(
            state.params
        )
        return state.apply_gradients(grads=grads, losses=losses(state.params))

    state = train_step(train_step(linen_state(normalizer, smoothing)))
    check(state.opt_state, normalizer)
    blank = linen_state(normalizer, smoothing)
    restored = serialization.from_bytes(blank, serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored.opt_state, state.opt_state)
    chex.assert_trees_all_equal(train_step(restored).params, train_step(state).params)


# --- Files ----------------------------------------------------------------------------------------


def saved(tmp_path, tx):
    """The state after some steps, and a function that restores it as another's."""
    _, opt_state = train(tx)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", opt_state)

    def restore(tx):
        like = tx.init(jnp.zeros(2))
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(tmp_path / "state", like)

    return opt_state, restore


@settings
def test_orbax_save_and_restore(tmp_path, normalizer, smoothing):
    tx = optax.chain(optax.sgd(1e-3), famo(3, normalizer=normalizer, smoothing=smoothing))
    opt_state, restore = saved(tmp_path, tx)
    restored = restore(tx)
    chex.assert_trees_all_equal(restored, opt_state)
    check(restored, normalizer)
    tx.update(jnp.ones(2), restored, jnp.zeros(2), losses=LOSSES)


def test_restored_into_another_normalizer_it_is_that_of_the_transformation(tmp_path):
    """The one of ``tx``: Orbax restores arrays, and the structure is the target's."""
    chain = lambda name: optax.chain(optax.sgd(1e-3), famo(3, normalizer=name))
    opt_state, restore = saved(tmp_path, chain("harmonic"))
    restored = restore(chain("geometric"))
    np.testing.assert_array_equal(restored[1].logits, opt_state[1].logits)
    check(restored, "geometric")


def test_a_state_of_another_setting_is_an_error():
    """As pickle keeps it, structure and all."""
    state = pickle.loads(pickle.dumps(famo(3, normalizer="geometric").init(None)))
    check(state, "geometric")
    with pytest.raises(ValueError, match=r"normalizer Harmonic\(\), got Geometric\(\)"):
        famo(3).update((), state, losses=LOSSES)
    with pytest.raises(ValueError, match=r"`state`: expected FamoState, .* of structure "):
        famo(3, smoothing=0.9).update((), famo(3).init(None), losses=LOSSES)


@settings
def test_export(normalizer, smoothing):
    tx = optax.chain(optax.sgd(1e-3), famo(3, normalizer=normalizer, smoothing=smoothing))
    params, opt_state = train(tx)
    leaves, treedef = jax.tree.flatten((params, opt_state))

    def step(*leaves):
        params, opt_state = jax.tree.unflatten(treedef, leaves)
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return jax.tree.leaves((optax.apply_updates(params, updates), opt_state))

    bytes_ = export.export(jax.jit(step))(*leaves).serialize()
    chex.assert_trees_all_close(
        export.deserialize(bytes_).call(*leaves), jax.jit(step)(*leaves), rtol=1e-6
    )
    # and as it is, without a file
    whole = export.export(jax.jit(functools.partial(tx.update)))
    whole(params, opt_state, params, losses=LOSSES)
