"""Batches that lack the labels of some tasks: `where`, under every method and every mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import famo_jax
from famo_jax import famo, losses_and_grads
from famo_jax.experiments.problems import digits
from tests.methods import FROM_CHANGES, SPARSE, WEIGHTING, chains

K = 4
SGD = optax.sgd(1e-3)
TRANSFORMATIONS = chains(K, SGD) | {"famo": optax.chain(SGD, famo(K, learning_rate=0.1))}
# How the change is measured: with nothing, a function, or the losses after the step.
MODES = [(name, "one-pass") for name in TRANSFORMATIONS] + [
    (name, mode) for name in FROM_CHANGES for mode in ("losses_fn", "new_losses")
]
SCALES = jnp.array([0.01, 1.0, 30.0, 1000.0])
TARGETS = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5], [0.3, -1.0]])
PARAMS = {"trunk": jnp.array([0.5, -0.3]), "heads": jnp.array([2.0, -1.0, 1.5, -2.0])}


def task_losses(params):
    """A trunk that the tasks share, and a head for each."""
    trunk = jnp.sum((params["trunk"] - TARGETS) ** 2, axis=1)
    return SCALES * (trunk + params["heads"] ** 2 + 0.1)


# --- Tasks that never appear, appear once, alternate ----------------------------------------------

NEVER, ONCE, EVEN, ODD = range(K)
PRESENT = np.zeros((8, K), bool)
PRESENT[3, ONCE] = PRESENT[::2, EVEN] = PRESENT[1::2, ODD] = True
PRESENT[6] = False  # a batch without any label


@functools.lru_cache
def train(name, mode):
    """The heads before and after each step, and the last states."""
    tx = TRANSFORMATIONS[name]

    def step(carry, where):
        params, opt_state = carry
        # What the loss of an absent task is does not matter.
        losses_fn = lambda params: jnp.where(where, task_losses(params), jnp.nan)
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state, where=where)
        extra = {"losses_fn": losses_fn} if mode == "losses_fn" else {}
        if mode == "new_losses":
            after = jax.tree.map(lambda param, grad: param - 1e-3 * grad, params, grads)
            extra = {"new_losses": losses_fn(after)}
        updates, opt_state = tx.update(
            grads, opt_state, params, losses=losses, where=where, **extra
        )
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    carry = PARAMS, tx.init(PARAMS)
    (_, opt_state), history = jax.jit(lambda: jax.lax.scan(step, carry, jnp.array(PRESENT)))()
    every = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), PARAMS, history)
    return jax.tree.map(np.asarray, every), opt_state


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_a_task_trains_when_it_is_there_and_only_then(name, mode):
    history, opt_state = train(name, mode)
    moved = history["heads"][1:] != history["heads"][:-1]
    assert not moved[~PRESENT].any()
    trained = PRESENT.copy()
    if name == "stl":
        trained[:, [NEVER, ONCE, ODD]] = False
    if name in SPARSE:  # it may give a task no weight
        trained = moved & PRESENT
        assert trained.any()
    np.testing.assert_array_equal(moved, trained)
    assert (history["trunk"][6] == history["trunk"][7]).all()  # the batch without any label
    state = famo_jax._method.find_state(opt_state)
    for field, leaf in getattr(state, "_asdict", dict)().items():
        if field not in ("losses", "history", "opt_state", "rng_key", "weights"):
            assert all(np.isfinite(each).all() for each in jax.tree.leaves(leaf))
    if hasattr(state, "losses"):
        np.testing.assert_array_equal(np.isinf(state.losses), np.arange(K) == NEVER)
    if hasattr(state, "losses") and hasattr(state, "logits"):
        assert state.logits[NEVER] != 0  # its z is part of the softmax


@pytest.mark.parametrize("name", FROM_CHANGES)
def test_the_ways_to_measure_the_change_agree_under_where(name):
    by_function, by_losses = (train(name, mode) for mode in ("losses_fn", "new_losses"))
    np.testing.assert_allclose(by_function[0]["heads"], by_losses[0]["heads"], rtol=1e-5)


# --- Over mixed batches ---------------------------------------------------------------------------

# Each task is in half of them, once with each of the others.
MIXED = np.array(
    [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]]
)


@pytest.mark.parametrize("name", WEIGHTING)
@pytest.mark.parametrize("masks", [MIXED, np.eye(K)], ids=["two tasks each", "one task each"])
def test_the_mean_step_over_mixed_batches_is_that_of_full_ones(name, masks):
    """Under SGD, at the same logits, times the share of batches that a task is in.

    For FAMO it is so because it weighs absent tasks by what it remembers of them.
    """
    tx = TRANSFORMATIONS[name]
    opt_state = tx.init(PARAMS)
    for shrink in (1.5, 1.2, 1.0):  # what it remembers last are the losses at these parameters
        losses = task_losses(PARAMS) * shrink ** jnp.arange(K)
        _, opt_state = tx.update(PARAMS, opt_state, PARAMS, losses=losses)

    def step(where):
        losses, grads = losses_and_grads(task_losses)(PARAMS, state=opt_state, where=where)
        return tx.update(grads, opt_state, PARAMS, losses=losses, where=where)[0]

    mixed = jax.tree.map(lambda each: each.mean(axis=0), jax.vmap(step)(jnp.array(masks, bool)))
    share = masks.mean()
    for ours, full in zip(
        jax.tree.leaves(mixed), jax.tree.leaves(step(jnp.ones(K, bool))), strict=True
    ):
        np.testing.assert_allclose(ours, share * full, rtol=1e-5, atol=1e-9)


# --- Single-task batches of the digits ------------------------------------------------------------

SEEDS, STEPS, BATCH = 4, 250, 32


def train_digits(params, batches, where, *, remember):
    """FAMO, two-pass, ``[steps, ...]`` batches. Without memory absent tasks are as never seen."""
    tx = optax.chain(optax.adam(3e-3), famo(K))

    def step(carry, batch):
        params, opt_state = carry
        pictures, where = batch
        losses_fn = lambda params: digits.task_losses(params, pictures)
        adam_state, state = opt_state
        weigh = state if remember else state._replace(losses=jnp.full(K, jnp.inf))
        losses, grads = losses_and_grads(losses_fn)(params, state=weigh, where=where)
        updates, opt_state = tx.update(
            grads, (adam_state, state), params, losses=losses, losses_fn=losses_fn, where=where
        )
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), (batches, where))
    return params


def log_losses(batches, where, held_out, remember=True):
    """On held-out pictures, ``[SEEDS, K]``."""
    train = functools.partial(train_digits, remember=remember)
    over_seeds = jax.jit(jax.vmap(train, in_axes=(0, 1, None)))
    params = over_seeds(digits.PROBLEM.init(range(SEEDS))[0], batches, where)
    return np.log(jax.vmap(digits.task_losses, in_axes=(0, None))(params, held_out))


def test_single_task_batches_reach_the_balance_of_full_ones():
    """As many labels of each task, each batch with those of one: and not so without the memory.

    Then the largest loss in its own units drowns the others.
    """
    data = digits.load_data(K * STEPS, range(SEEDS), BATCH)
    first = jax.tree.map(lambda leaf: leaf[:STEPS], data.train)
    full = log_losses(first, jnp.ones((STEPS, K), bool), data.validation)
    alone = jnp.eye(K, dtype=bool)[jnp.arange(K * STEPS) % K]
    remembered, forgotten = (
        log_losses(data.train, alone, data.validation, remember) for remember in (True, False)
    )
    # How far the logarithm of a held-out loss is from that of full batches, mean over tasks.
    near, far = (np.abs(each - full).mean(axis=1) for each in (remembered, forgotten))  # [SEEDS]
    margin = far - 3 * near  # at least three times as far
    assert margin.mean() > 4 * margin.std(ddof=1) / np.sqrt(SEEDS)
    # What drowns are the others: the losses of the largest one, the ink, have come as far.
    assert np.all((forgotten - full).mean(axis=0)[:3] > np.log(1.3))
    assert np.all(np.abs((remembered - full).mean(axis=0)) < np.log(1.3))
