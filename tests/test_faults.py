"""Losses that are NaN, infinite, zero, negative or under their bound, at random steps."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

import famo_jax
from famo_jax import check_losses, famo, losses_and_grads, task_weights
from tests.methods import LEARNED, WEIGHTING

K, STEPS, BATCH, EXAMPLES = 4, 30, 50, 20  # 50 schedules in each of 20 examples: 1,000 a test
BOUND = -0.5
# 0 and -0.25 are above the bound; at the bound itself D = 1e-8.
KINDS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.25, BOUND, -0.501, -9.0, 1e30], np.float32)
NO_LOG = np.isnan(KINDS) | (KINDS < BOUND)  # the weighted loss is NaN
MODES = pytest.mark.parametrize("two_pass", [False, True], ids=["one-pass", "two-pass"])


def schedules(seed):
    """Faults, ``[BATCH, STEPS, K]``: indices into ``KINDS``, and -1 for none.

    They strike one task, some or all, at a rate from a single fault to nearly every step.
    """
    rng = np.random.default_rng(seed)
    tasks = rng.random((BATCH, 1, K)).argsort(axis=-1) < rng.integers(1, K + 1, (BATCH, 1, 1))
    struck = tasks & (rng.random((BATCH, STEPS, K)) < 10 ** rng.uniform(-2, -0.1, (BATCH, 1, 1)))
    struck[np.arange(BATCH), rng.integers(0, STEPS, BATCH), tasks[:, 0].argmax(axis=-1)] = True
    return np.where(struck, rng.integers(0, len(KINDS), struck.shape), -1)


def over_schedules(function):
    """A test over 1,000 of them, the same ones each time. To shrink one would explain nothing."""
    every = settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, phases=[Phase.generate]
    )
    return every(given(seed=st.integers(0, 2**32 - 1))(function))


def strike(losses, kinds):
    """No gradient flows through a fault: it is a constant."""
    return jnp.where(kinds < 0, losses, jnp.asarray(KINDS)[kinds])


def struck_by(which, kinds):
    """Which faults are of these kinds."""
    return (kinds >= 0) & which[kinds]


def breaks(kinds):
    """Whether the gradient cannot be finite, ``[BATCH, STEPS]``.

    Of the faults those without a logarithm. Where all tasks are struck there is no gradient.
    """
    return struck_by(NO_LOG, kinds).any(axis=-1) & (kinds < 0).any(axis=-1)


def all_finite(*trees):
    leaves = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


# --- Training through faults ----------------------------------------------------------------------

SCALES = jnp.array([0.01, 1.0, 30.0, 1000.0])
PARAMS = {"trunk": jnp.array([0.5, -0.3]), "heads": jnp.array([2.0, -1.0, 1.5, -2.0])}


def sound_losses(params):
    """A trunk that the tasks share, and a head for each. Never at a minimum within these steps."""
    targets = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    trunk = jnp.sum((params["trunk"] - targets) ** 2, axis=1)
    return SCALES * (trunk + params["heads"] ** 2 + 0.1)


def famo_of(opt_state):
    return famo_jax._method.find_state(opt_state)


@functools.lru_cache
def trainer(two_pass, guard):
    """A training run, compiled once, of a batch of schedules.

    ``guard``: None, "apply_if_finite", "where" (what has no logarithm is declared absent), or
    "left out" (the steps at which the gradient cannot be finite are not made).
    """
    tx = optax.chain(optax.sgd(1e-3), famo(K, learning_rate=0.1, min_losses=BOUND))
    if guard == "apply_if_finite":
        tx = optax.apply_if_finite(tx, max_consecutive_errors=STEPS + 1)

    def step(carry, faults):
        params, opt_state = carry
        kinds, kinds_after, make = faults
        losses = strike(sound_losses(params), kinds)
        where = (jnp.isfinite(losses) & (losses > BOUND)) if guard == "where" else None
        losses, grads = losses_and_grads(lambda params: strike(sound_losses(params), kinds))(
            params, state=opt_state, where=where
        )
        extra = {"losses_fn": lambda params: strike(sound_losses(params), kinds_after)}
        updates, new_state = tx.update(
            grads, opt_state, params, losses=losses, where=where, **(extra if two_pass else {})
        )
        new = optax.apply_updates(params, updates), new_state
        if guard == "left out":
            new = optax.tree.where(make, new, carry)
        state = famo_of(new[1])
        report = {
            "params": new[0],
            "sound": all_finite(state.logits, state.opt_state) & ~jnp.isnan(state.losses).any(),
            "state": state,
        }
        return new, report

    def run(kinds, kinds_after, make):
        carry = PARAMS, tx.init(PARAMS)
        return jax.lax.scan(step, carry, (kinds, kinds_after, make))

    return jax.jit(jax.vmap(run))


def train(kinds, two_pass, guard):
    """Two-pass meets other faults after the step than before it."""
    return trainer(two_pass, guard)(kinds, kinds[:, ::-1], ~breaks(kinds))


@MODES
@over_schedules
def test_alone(two_pass, seed):
    """Logits and moments stay finite, whatever becomes of the parameters: they turn NaN."""
    kinds = schedules(seed)
    _, report = train(kinds, two_pass, None)
    assert report["sound"].all()
    z = jax.nn.softmax(report["state"].logits)
    np.testing.assert_allclose(z.sum(axis=-1), 1, rtol=1e-5)
    broken = np.maximum.accumulate(breaks(kinds), axis=1)
    finite = np.isfinite(report["params"]["trunk"]).all(axis=-1)
    np.testing.assert_array_equal(finite, ~broken)


@MODES
@over_schedules
def test_under_apply_if_finite(two_pass, seed):
    """A step with a fault that has no logarithm is as if it had not been: all others train."""
    kinds = schedules(seed)
    (params, opt_state), report = train(kinds, two_pass, "apply_if_finite")
    assert report["sound"].all()
    assert all_finite(params)
    np.testing.assert_array_equal(opt_state.total_notfinite, breaks(kinds).sum(axis=-1))
    (expected, _), without = train(kinds, two_pass, "left out")
    chex.assert_trees_all_close(params, expected, rtol=1e-5)
    # The logits step by 0.1: a step more or less would show.
    logits, expected_logits = report["state"].logits, without["state"].logits
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-3)


@MODES
@over_schedules
def test_under_where(two_pass, seed):
    """The tasks that are sound train on, in every step, and the others do not."""
    kinds = schedules(seed)
    _, report = train(kinds, two_pass, "where")
    assert report["sound"].all()
    heads = np.asarray(report["params"]["heads"])
    assert np.isfinite(heads).all()
    before = np.concatenate([np.broadcast_to(PARAMS["heads"], (BATCH, 1, K)), heads[:, :-1]], 1)
    moved = heads != before
    assert not moved[kinds >= 0].any()
    # Beside a loss last seen at its bound the others' shares round to nothing, as c does.
    seen = np.asarray(report["state"].losses)
    at_bound = np.zeros((BATCH, STEPS), bool)
    at_bound[:, 1:] = (np.abs(seen[:, :-1] - BOUND) < 1e-3).any(axis=-1)
    assert moved[~at_bound[:, :, None] & (kinds < 0)].all()
    assert (np.abs(heads[:, -1]) <= np.abs(PARAMS["heads"])).all()


# --- What the logits make of faults ---------------------------------------------------------------

ROUGH = np.exp(np.random.default_rng(0).normal(size=(BATCH, STEPS, K))).astype(np.float32)


def log_exists(losses):
    return np.isfinite(losses) & (losses >= BOUND)


@functools.lru_cache
def updater(two_pass):
    tx = famo(K, learning_rate=0.1, min_losses=BOUND)

    def step(state, losses):
        before, after, made = losses
        extra = {"new_losses": after} if two_pass else {}
        _, updated = tx.update((), state, losses=before if two_pass else after, **extra)
        updated = optax.tree.where(made, updated, state)
        return updated, updated.logits

    return jax.jit(jax.vmap(lambda *losses: jax.lax.scan(step, tx.init(None), losses)))


@over_schedules
def test_one_pass_counts_a_change_that_has_no_logarithm_as_zero(seed):
    """As two-pass on pairs of losses that were put in order by hand."""
    kinds = schedules(seed)
    losses = np.where(kinds < 0, ROUGH, KINDS[kinds])
    seen = np.full((BATCH, K), np.inf, np.float32)
    pairs, counted = [], []
    for now in np.moveaxis(losses, 1, 0):
        measured = log_exists(seen) & log_exists(now)
        pairs.append([np.where(measured, each, 1) for each in (seen, now)])
        counted.append(measured.any(axis=-1))
        seen = np.where(np.isfinite(now), now, seen)
    before, after = np.moveaxis(np.array(pairs), 0, 2)
    state, logits = updater(False)(losses, losses, np.ones((BATCH, STEPS), bool))
    expected_state, expected = updater(True)(before, after, np.array(counted).T)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(
        state.opt_state, expected_state.opt_state, rtol=1e-4, atol=1e-6
    )  # the count of steps as well
    np.testing.assert_array_equal(state.losses, seen)


@functools.lru_cache
def follower(name):
    tx = WEIGHTING[name](K)

    def step(state, losses):
        _, state = tx.update((), state, losses=losses)
        weights = famo_jax.loss_weights(jnp.ones(K), state)
        learned = {key: leaf for key, leaf in state._asdict().items() if key != "losses"}
        return state, (all_finite(learned) if hasattr(state, "opt_state") else True, weights)

    return jax.jit(jax.vmap(lambda losses: jax.lax.scan(step, tx.init(None), losses)[1]))


@pytest.mark.parametrize("name", [*LEARNED, "rlw"])
@over_schedules
def test_other_methods_stay_finite(name, seed):
    """Moments and weights, a loss of 1e30 among the faults, whose square is infinite in float32."""
    kinds = schedules(seed)
    sound, weights = follower(name)(np.where(kinds < 0, ROUGH, KINDS[kinds]))
    assert np.all(sound)
    assert np.isfinite(weights).all()


# --- checkify -------------------------------------------------------------------------------------


@functools.lru_cache
def checker(named):
    state = famo(K, min_losses=BOUND).init(None)

    def step(_, losses):
        check_losses(dict(zip("abcd", losses, strict=True)) if named else losses, state)
        return None, None

    return jax.jit(checkify.checkify(lambda losses: jax.lax.scan(step, None, losses)[1]))


@pytest.mark.parametrize("named", [True, False])
@over_schedules
def test_checkify_names_the_task(named, seed):
    """Of the first fault, and says what its loss was."""
    kinds = schedules(seed)
    for losses in np.where(kinds < 0, ROUGH, KINDS[kinds])[:3]:
        wrong = ~(np.isfinite(losses) & (losses > BOUND))
        error, _ = checker(named)(losses)
        if not wrong.any():
            assert error.get() is None
            continue
        step, task = np.argwhere(wrong)[0]
        name = f"['{'abcd'[task]}']" if named else str(task)
        message = re.match(r"the loss of task (.+) is (.+), not finite and above", error.get())
        assert message.group(1) == name
        np.testing.assert_allclose(float(message.group(2)), losses[step, task], rtol=1e-6)


def test_task_weights_after_faults_alone():
    """Every loss a fault, from the first: the weights stay equal."""
    tx = famo(2)
    state = tx.init(None)
    for bad in (np.nan, np.inf, -np.inf, -1.0):
        _, state = tx.update((), state, losses=jnp.full(2, bad))
    np.testing.assert_array_equal(task_weights(state), [0.5, 0.5])
