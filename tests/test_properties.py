"""What holds of FAMO whatever the losses and logits are. In float64."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famo_jax import (
    famo,
    logits_optimizer,
    loss_weights,
    losses_and_grads,
    task_weights,
    update_logits,
    weighted_loss,
)

NORMALIZERS = ("harmonic", "geometric", "arithmetic", None)
EPSILON = 1e-8


@pytest.fixture(autouse=True, scope="module")
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


class Case(NamedTuple):
    logits: np.ndarray  # [K]
    bounds: np.ndarray  # [K]
    losses: np.ndarray  # [6, K], above their bounds
    order: np.ndarray  # [K], a permutation


def make_case(seed, num_tasks, spread, decades):
    rng = np.random.default_rng(seed)
    gaps = 10 ** rng.uniform(-decades, decades, num_tasks) * np.exp(rng.normal(size=(6, num_tasks)))
    bounds = rng.normal(size=num_tasks)
    return Case(
        spread * rng.normal(size=num_tasks), bounds, bounds + gaps, rng.permutation(num_tasks)
    )


# Few numbers of tasks: each is compiled anew.
cases = st.builds(
    make_case,
    seed=st.integers(0, 2**32 - 1),
    num_tasks=st.sampled_from([1, 2, 3, 7]),
    spread=st.floats(0, 5),
    decades=st.floats(0, 4),
)


def for_every(**strategies):
    """30 examples, the same ones each time."""
    return lambda function: settings(max_examples=30, deadline=None, derandomize=True)(
        given(**strategies)(function)
    )


ADAM = logits_optimizer(0.1, 0.03)
ADAM_WITHOUT_DECAY = logits_optimizer(0.1, 0.0)
SGD = logits_optimizer(weight_decay=0.3, optimizer=optax.sgd(0.5))
DESCENT = logits_optimizer(weight_decay=0.0, optimizer=optax.sgd(1.0))  # logits - delta


def state_of(logits, bounds, optimizer=DESCENT):
    initial = famo(len(logits), min_losses=bounds).init(None)
    return initial._replace(logits=jnp.asarray(logits), opt_state=optimizer.init(logits))


def normalized(state, name):
    """The state with the normalizer of this name."""
    return state._replace(normalizer=famo(1, normalizer=name).init(None).normalizer)


@functools.partial(jax.jit, static_argnames="optimizer")
def run(logits, bounds, losses, optimizer):
    """Two-pass updates from each row of losses to the next: the logits after each, [5, K]."""

    def step(state, pair):
        state = update_logits(state, *pair, optimizer)
        return state, state.logits

    pairs = losses[:-1], losses[1:]
    return jax.lax.scan(step, state_of(logits, bounds, optimizer), pairs)[1]


def delta_of(case):
    return case.logits - run(*case[:3], DESCENT)[0]


@for_every(case=cases)
def test_permuting_the_tasks_permutes_everything(case):
    logits, bounds, losses, order = case
    permuted = logits[order], bounds[order], losses[:, order]
    state, other = state_of(logits, bounds), state_of(*permuted[:2])
    np.testing.assert_allclose(task_weights(other), task_weights(state)[order], rtol=1e-12)
    for normalizer in NORMALIZERS:
        weigh = lambda losses, state, c=normalizer: loss_weights(losses, normalized(state, c))
        np.testing.assert_allclose(
            weigh(permuted[2][0], other), weigh(losses[0], state)[order], rtol=1e-9
        )
        value = lambda losses, state, c=normalizer: weighted_loss(losses, normalized(state, c))
        # c sum z log D: terms of both signs may cancel.
        size = np.sum(weigh(losses[0], state) * (losses[0] - bounds)) * 20
        np.testing.assert_allclose(
            value(permuted[2][0], other), value(losses[0], state), rtol=1e-9, atol=1e-9 * size
        )
    for optimizer in (ADAM, SGD):
        moved = run(*case[:3], optimizer)
        np.testing.assert_allclose(run(*permuted, optimizer), moved[:, order], rtol=1e-6, atol=1e-8)


@for_every(case=cases, constant=st.floats(-20, 20))
def test_a_constant_added_to_all_logits_changes_nothing(case, constant):
    """Neither z nor delta; with SGD, or without decay, no later z either."""
    logits, bounds, losses, _ = case
    shifted = case._replace(logits=logits + constant)
    state, other = state_of(logits, bounds), state_of(shifted.logits, bounds)
    np.testing.assert_allclose(task_weights(other), task_weights(state), rtol=1e-9)
    for normalizer in NORMALIZERS:
        each_state = (normalized(each, normalizer) for each in (state, other))
        weights = [loss_weights(losses[0], each) for each in each_state]
        np.testing.assert_allclose(weights[1], weights[0], rtol=1e-9)
    np.testing.assert_allclose(delta_of(shifted), delta_of(case), rtol=1e-6, atol=1e-9)
    for optimizer in (SGD, ADAM_WITHOUT_DECAY):
        z, other_z = (jax.nn.softmax(run(*each[:3], optimizer)) for each in (case, shifted))
        np.testing.assert_allclose(other_z, z, rtol=1e-4, atol=1e-9)


def test_with_adam_and_decay_a_constant_does_change_later_weights():
    """Adam divides the decay of the constant by what it divides delta by."""
    case = make_case(seed=0, num_tasks=3, spread=1.0, decades=1.0)
    z, shifted = (jax.nn.softmax(run(case.logits + c, *case[1:3], ADAM)) for c in (0, 10))
    assert np.abs(shifted - z).max() > 0.01


@for_every(case=cases, decades=st.floats(-3, 3), task=st.integers(0, 6))
def test_scaling_a_loss_with_its_bound_keeps_delta_and_the_direction(case, decades, task):
    """As far as the loss is above epsilon. The task's own gradient is scaled along."""
    logits, bounds, losses, _ = case
    factors = np.ones(len(logits))
    factors[task % len(logits)] = 10**decades
    scaled = Case(logits, factors * bounds, factors * losses, case.order)
    # What epsilon and the rounding of l - b move a logarithm by.
    gap = (losses - bounds).min() * min(1, 10**decades)
    off = 4 * (EPSILON + 1e-15 * np.abs(scaled.losses).max()) / gap
    np.testing.assert_allclose(delta_of(scaled), delta_of(case), rtol=1e-9, atol=off)
    for normalizer in NORMALIZERS:
        directions = []
        for each, own in ((case, 1), (scaled, factors)):
            state = normalized(state_of(logits, each.bounds), normalizer)
            weights = loss_weights(each.losses[0], state)
            directions.append(weights * own / np.sum(weights * own))
        np.testing.assert_allclose(directions[1], directions[0], rtol=1e-9 + 4 * off)


@for_every(case=cases, absent=st.integers(0, 6))
def test_harmonic_weights_lie_on_the_simplex(case, absent):
    logits, bounds, losses, _ = case
    state = state_of(logits, bounds)
    weights = loss_weights(losses[0], state)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-9)
    # An absent task keeps its place there, and its own weight is dropped.
    where = np.arange(len(logits)) != absent % len(logits)
    partial = loss_weights(losses[0], state._replace(losses=jnp.array(losses[0])), where=where)
    np.testing.assert_allclose(partial, np.where(where, weights, 0), rtol=1e-9)


@for_every(case=cases, beta=st.floats(0, 1), gamma=st.floats(0, 1))
def test_unchanged_losses_under_sgd_shrink_the_logits(case, beta, gamma):
    """By 1 - beta gamma."""
    logits, bounds, losses, _ = case
    tx = famo(len(logits), weight_decay=gamma, optimizer=optax.sgd(beta), min_losses=bounds)
    state = tx.init(None)._replace(logits=jnp.asarray(logits))
    _, state = tx.update((), state, losses=losses[0], new_losses=losses[0])
    np.testing.assert_allclose(state.logits, (1 - beta * gamma) * logits, rtol=1e-9, atol=1e-12)


@for_every(case=cases, first=st.integers(0, 6), second=st.integers(0, 6))
def test_identical_tasks_keep_identical_logits(case, first, second):
    twins = [first % len(case.logits), second % len(case.logits)]
    logits, bounds, losses = (np.array(each) for each in case[:3])
    for each in (logits, bounds, losses):
        each[..., twins[1]] = each[..., twins[0]]
    for optimizer in (ADAM, SGD):
        moved = run(logits, bounds, losses, optimizer)
        np.testing.assert_allclose(moved[:, twins[1]], moved[:, twins[0]], rtol=1e-9, atol=1e-12)


@for_every(case=cases, x=st.floats(-2, 2))
def test_one_task_has_its_own_gradient(case, x):
    """With the harmonic normaliser, and the others; that of its logarithm without."""
    bound = case.bounds[0]
    losses_fn = lambda x: (bound + 0.1 + x**2)[None]
    state = state_of(case.logits[:1], [bound])
    for normalizer in NORMALIZERS:
        _, grad = losses_and_grads(losses_fn)(x, state=normalized(state, normalizer))
        expected = 2 * x if normalizer else 2 * x / (0.1 + x**2)
        np.testing.assert_allclose(grad, expected, rtol=1e-6)


@for_every(case=cases)
def test_delta_is_at_most_a_quarter_of_the_range_of_the_change(case):
    change = np.diff(np.log(case.losses[:2] - case.bounds + EPSILON), axis=0)
    assert np.abs(delta_of(case)).max() <= np.ptp(change) / 4 * (1 + 1e-9) + 1e-12


def weigh_and_update(losses, new_losses, state):
    weights = [loss_weights(losses, normalized(state, each)) for each in NORMALIZERS]
    return weights, update_logits(state, losses, new_losses, ADAM)


JITTED = jax.jit(weigh_and_update)


@for_every(case=cases)
def test_jit_equals_no_jit(case):
    arguments = (*case.losses[:2], state_of(case.logits, case.bounds, ADAM))
    with jax.disable_jit():
        eager = weigh_and_update(*arguments)
    chex.assert_trees_all_close(JITTED(*arguments), eager, rtol=1e-9, atol=1e-12)
