"""Each method's own formula, by hand on three tasks, and its symmetries."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import famo_jax
from famo_jax import famo, loss_weights, task_weights, weighted_loss

LOSSES = jnp.array([0.5, 2.0, 8.0])


# --- ls, si, stl ---------------------------------------------------------------------------------


def test_ls():
    assert weighted_loss(LOSSES, famo_jax.weighting.ls().init(None)) == 3.5
    np.testing.assert_allclose(
        loss_weights(LOSSES, famo_jax.weighting.ls().init(None)), 1 / 3, rtol=1e-6
    )
    weights = {"b": 2.0, "a": 1.0, "c": 0.5}  # in sorted order 1, 2, 0.5
    state = famo_jax.weighting.ls(weights).init(None)
    assert weighted_loss(LOSSES, state) == 0.5 * 1 + 2 * 2 + 8 * 0.5
    np.testing.assert_array_equal(loss_weights(LOSSES, state), [1, 2, 0.5])


def test_the_fixed_weights_survive_donation():
    weights = jnp.ones(3)
    state = famo_jax.weighting.ls(weights).init(None)
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    assert not weights.is_deleted()


def test_si():
    state = famo_jax.weighting.si(min_losses=[0.0, 1.0, -8.0]).init(None)
    gaps = np.array([0.5, 1.0, 16.0])
    np.testing.assert_allclose(weighted_loss(LOSSES, state), np.log(gaps).mean(), rtol=1e-6)
    np.testing.assert_allclose(loss_weights(LOSSES, state), 1 / gaps / 3, rtol=1e-6)
    one_for_all = famo_jax.weighting.si(min_losses=0.25).init(None)
    np.testing.assert_allclose(
        loss_weights(LOSSES, one_for_all), 1 / (LOSSES - 0.25) / 3, rtol=1e-6
    )
    assert np.isnan(weighted_loss(LOSSES, famo_jax.weighting.si(min_losses=1.0).init(None)))


def test_si_is_famo_frozen_without_normaliser():
    np.testing.assert_allclose(
        loss_weights(LOSSES, famo_jax.weighting.si().init(None)),
        loss_weights(LOSSES, famo(3, normalizer=None).init(None)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scaling_a_loss(scale):
    """SI's gradient does not move, nor FAMO's with c = 1; the harmonic one keeps its direction."""
    jacobian = jnp.array(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    factors = jnp.array([1.0, scale, 1.0])

    def direction(state, factors):
        weights = loss_weights(factors * LOSSES, state)
        return weights @ (factors[:, None] * jacobian)

    logits = jnp.array([0.3, -0.5, 1.0])
    ones, state = jnp.ones(3), famo(3, normalizer=None).init(None)._replace(logits=logits)
    harmonic = famo(3).init(None)._replace(logits=logits)
    si_state = famo_jax.weighting.si().init(None)
    np.testing.assert_allclose(direction(si_state, factors), direction(si_state, ones), atol=1e-5)
    np.testing.assert_allclose(direction(state, factors), direction(state, ones), atol=3e-4)
    scaled, plain = (direction(harmonic, f) for f in (factors, ones))
    unit = lambda vector: vector / jnp.linalg.norm(vector)
    np.testing.assert_allclose(unit(scaled), unit(plain), atol=1e-4)
    assert abs(jnp.linalg.norm(scaled) / jnp.linalg.norm(plain) - 1) > 0.05  # another length


def test_stl():
    for task in range(3):
        state = famo_jax.weighting.stl(task).init(None)
        assert weighted_loss(LOSSES, state) == LOSSES[task]
        np.testing.assert_array_equal(loss_weights(LOSSES, state), np.eye(3)[task])
    swept = jax.vmap(lambda task: loss_weights(LOSSES, famo_jax.weighting.stl(task).init(None)))
    np.testing.assert_array_equal(swept(jnp.arange(3)), np.eye(3))


# --- rlw -----------------------------------------------------------------------------------------


def test_rlw_is_the_softmax_of_a_normal_draw_from_its_key():
    state = famo_jax.weighting.rlw(3, key=jax.random.key(5)).init(None)
    draw = np.asarray(jax.random.normal(state.rng_key, (3,)))
    expected = np.exp(draw) / np.exp(draw).sum()
    np.testing.assert_allclose(loss_weights(LOSSES, state), expected, rtol=1e-5)
    np.testing.assert_allclose(weighted_loss(LOSSES, state), expected @ LOSSES, rtol=1e-5)
    same = famo_jax.weighting.rlw(3, key=5).init(None)
    np.testing.assert_array_equal(loss_weights(LOSSES, same), loss_weights(LOSSES, state))


def test_rlw_reads_without_consuming_and_advances_by_update():
    tx = famo_jax.weighting.rlw(3, key=0)

    def step(state, _):
        weights = loss_weights(LOSSES, state)
        return tx.update((), state, losses=LOSSES)[1], (weights, loss_weights(LOSSES, state))

    _, (first, second) = jax.lax.scan(step, tx.init(None), length=4000)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(np.asarray(first), axis=0)) == 4000
    # Of softmax(N(0, 1)^3): each mean is 1/3, and the logarithms of ratios are N(0, 2).
    np.testing.assert_allclose(first.mean(0), 1 / 3, atol=0.02)
    ratios = np.log(first[:, 0] / first[:, 1])
    np.testing.assert_allclose([ratios.mean(), ratios.std()], [0, np.sqrt(2)], atol=0.1)
    # and draws of steps that follow are independent
    assert abs(np.corrcoef(ratios[:-1], ratios[1:])[0, 1]) < 0.06


def test_the_key_survives_donation():
    key = jax.random.key(0)
    state = famo_jax.weighting.rlw(3, key=key).init(None)
    jax.jit(lambda state: famo_jax.weighting.rlw(3, key=0).update((), state)[1], donate_argnums=0)(
        state
    )
    jax.random.normal(key)


# --- dwa -----------------------------------------------------------------------------------------


def run_dwa(tx, history, where=None):
    state = tx.init(None)
    for losses in history:
        _, state = tx.update((), state, losses=jnp.array(losses), where=where)
    return loss_weights(jnp.ones(3), state)


def test_dwa_by_hand():
    """Losses (1, 2, 4) then (1, 1, 1): ratios 1, 1/2, 1/4, over T = 2."""
    history = [[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]
    exponentials = np.exp(np.array([1.0, 0.5, 0.25]) / 2)
    expected = 3 * exponentials / exponentials.sum()
    np.testing.assert_allclose(run_dwa(famo_jax.weighting.dwa(3), history), expected, rtol=1e-6)
    # Until both windows are full all weights are 1; then only the last two count.
    np.testing.assert_allclose(run_dwa(famo_jax.weighting.dwa(3), history[:0]), 1, rtol=1e-6)
    np.testing.assert_allclose(run_dwa(famo_jax.weighting.dwa(3), history[:1]), 1, rtol=1e-6)
    longer = [[9.0, 9.0, 9.0], *history]
    np.testing.assert_allclose(run_dwa(famo_jax.weighting.dwa(3), longer), expected, rtol=1e-6)


def test_dwa_over_a_window():
    """Means over two steps each: (2, 1, 4) and (1, 1, 3)."""
    history = [[3.0, 1.0, 4.0], [1.0, 1.0, 4.0], [1.5, 0.5, 2.0], [0.5, 1.5, 4.0]]
    exponentials = np.exp(np.array([0.5, 1.0, 0.75]) / 1.5)
    tx = famo_jax.weighting.dwa(3, window=2, temperature=1.5)
    expected = 3 * exponentials / exponentials.sum()
    np.testing.assert_allclose(run_dwa(tx, history), expected, rtol=1e-6)
    np.testing.assert_allclose(run_dwa(tx, history[:3]), 1, rtol=1e-6)


def test_dwa_repeats_the_last_loss_of_an_absent_task():
    present = [[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]
    tx = famo_jax.weighting.dwa(3)
    _, state = tx.update((), tx.init(None), losses=jnp.array(present[0]))
    where = jnp.array([True, True, False])
    _, state = tx.update((), state, losses=jnp.array([1.0, 1.0, np.nan]), where=where)
    exponentials = np.exp(np.array([1.0, 0.5, 1.0]) / 2)
    np.testing.assert_allclose(
        loss_weights(jnp.ones(3), state), 3 * exponentials / exponentials.sum(), rtol=1e-6
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 0.0])
def test_dwa_stays_finite(broken):
    weights = run_dwa(famo_jax.weighting.dwa(3), [[1.0, broken, 2.0]] * 2 + [[1.0, broken, 1.0]])
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(), 3, rtol=1e-6)


# --- uw ------------------------------------------------------------------------------------------


def test_uw_by_hand():
    """L = 1/2 sum (exp(-s) l + s), and s steps down its gradient 1/2 (1 - exp(-s) l)."""
    tx = famo_jax.weighting.uw(3, optimizer=optax.sgd(0.1))
    state, s = tx.init(None), np.zeros(3)
    for losses in (LOSSES, LOSSES / 2, LOSSES / 4):
        values = np.asarray(losses)
        expected = 0.5 * np.sum(np.exp(-s) * values + s)
        np.testing.assert_allclose(weighted_loss(losses, state), expected, rtol=1e-6)
        np.testing.assert_allclose(loss_weights(losses, state), 0.5 * np.exp(-s), rtol=1e-6)
        _, state = tx.update((), state, losses=losses)
        s = s - 0.1 * 0.5 * (1 - np.exp(-s) * values)
        np.testing.assert_allclose(state.log_variances, s, rtol=1e-5)


def test_uw_settles_where_variance_is_the_loss():
    tx = famo_jax.weighting.uw(3, learning_rate=0.1)
    state = tx.init(None)
    step = jax.jit(lambda state: tx.update((), state, losses=LOSSES)[1])
    for _ in range(400):
        state = step(state)
    np.testing.assert_allclose(np.exp(state.log_variances), LOSSES, rtol=1e-3)


def test_uw_keeps_its_state_where_no_loss_is_finite():
    tx = famo_jax.weighting.uw(2)
    _, state = tx.update((), tx.init(None), losses=jnp.array([1.5, 2.0]))
    _, same = tx.update((), state, losses=jnp.array([np.nan, np.inf]))
    jax.tree.map(np.testing.assert_array_equal, state, same)
    # A loss that is not finite alone: a gradient of zero, as at exp(-s) l = 1.
    _, one = tx.update((), state, losses=jnp.array([1.0, np.nan]))
    _, other = tx.update((), state, losses=jnp.array([1.0, jnp.exp(state.log_variances[1])]))
    np.testing.assert_allclose(one.log_variances, other.log_variances, atol=1e-6)


# --- amortized mgda ------------------------------------------------------------------------------


def test_amortized_mgda_by_its_own_recursion(x64):
    """xi <- xi - beta (J^T (l - l') + gamma xi), by NumPy, losses of both signs."""
    beta, gamma = 0.4, 0.05
    rng = np.random.default_rng(2)
    history, xi = rng.normal(size=(40, 4)), np.zeros(4)
    tx = famo_jax.weighting.amortized_mgda(4, weight_decay=gamma, optimizer=optax.sgd(beta))
    state = tx.init(None)
    for before, after in itertools.pairwise(history):
        z = np.exp(xi) / np.exp(xi).sum()
        np.testing.assert_allclose(loss_weights(jnp.array(before), state), z, rtol=1e-10)
        np.testing.assert_allclose(weighted_loss(jnp.array(before), state), z @ before, rtol=1e-10)
        xi = xi - beta * ((np.diag(z) - np.outer(z, z)) @ (before - after) + gamma * xi)
        _, state = tx.update((), state, losses=jnp.array(before), new_losses=jnp.array(after))
        np.testing.assert_allclose(state.logits, xi, rtol=1e-9, atol=1e-12)


def test_amortized_mgda_finds_mgda_s_weights(x64):
    """With the parameters frozen and gamma = 0 its weights settle at min ||J^T z||^2."""
    jacobian = np.array([[1.0, 0.2, 0.0], [-0.5, 1.5, 0.3], [0.2, -0.6, 2.0]])
    exact = np.linalg.solve(jacobian @ jacobian.T, np.ones(3))
    exact /= exact.sum()
    assert exact.min() > 0.05
    losses_fn = lambda x: jnp.array(jacobian) @ x + 0.5 * jnp.sum(x**2)
    alpha, x = 1e-4, jnp.zeros(3)
    tx = optax.chain(
        optax.sgd(alpha),
        famo_jax.weighting.amortized_mgda(3, weight_decay=0.0, optimizer=optax.sgd(0.3 / alpha)),
    )

    def step(opt_state, _):
        losses, grads = famo_jax.losses_and_grads(losses_fn)(x, state=opt_state)
        return tx.update(grads, opt_state, x, losses=losses, losses_fn=losses_fn)[1], None

    opt_state, _ = jax.lax.scan(step, tx.init(x), length=3000)
    np.testing.assert_allclose(task_weights(opt_state), exact, atol=2e-3)


def test_amortized_mgda_counts_what_is_not_finite_as_no_change():
    tx = famo_jax.weighting.amortized_mgda(3)
    before, after = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.5, np.nan, 2.9])
    _, one = tx.update((), tx.init(None), losses=before, new_losses=after)
    _, zero = tx.update((), tx.init(None), losses=before, new_losses=after.at[1].set(-2.0))
    jax.tree.map(np.testing.assert_array_equal, one, zero)
    _, kept = tx.update((), one, losses=jnp.full(3, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, kept, one)


# --- first loss ----------------------------------------------------------------------------------


def test_first_loss_by_hand():
    """Weights 1 / (K (l(0) - b)), taken task by task when it is first present, finite and above."""
    tx = famo_jax.weighting.first_loss(3, min_losses=[0.0, 1.0, -8.0])
    state = tx.init(None)
    by_si = loss_weights(LOSSES, famo_jax.weighting.si(min_losses=[0.0, 1.0, -8.0]).init(None))
    np.testing.assert_allclose(loss_weights(LOSSES, state), by_si, rtol=1e-6)
    np.testing.assert_allclose(weighted_loss(LOSSES, state), 1, rtol=1e-6)
    where = jnp.array([True, False, True])
    _, state = tx.update((), state, losses=jnp.array([0.5, 9.0, np.nan]), where=where)
    np.testing.assert_allclose(state.weights, [1 / 1.5, 0, 0], rtol=1e-6)
    _, state = tx.update((), state, losses=jnp.array([7.0, 1.0, -8.5]))  # at and under the bound
    np.testing.assert_allclose(state.weights, [1 / 1.5, 0, 0], rtol=1e-6)
    _, state = tx.update((), state, losses=jnp.array([7.0, 3.0, -4.0]))
    for losses in (LOSSES, -LOSSES):
        np.testing.assert_allclose(loss_weights(losses, state), [1 / 1.5, 1 / 6, 1 / 12], rtol=1e-6)


# --- imtl-l --------------------------------------------------------------------------------------


def test_imtl_l_by_hand():
    """L = sum (exp(s) l - s), and s steps down its gradient exp(s) l - 1."""
    tx = famo_jax.weighting.imtl_l(3, optimizer=optax.sgd(0.1))
    state, s = tx.init(None), np.zeros(3)
    for losses in (LOSSES, LOSSES / 2, LOSSES / 4):
        values = np.asarray(losses)
        np.testing.assert_allclose(
            weighted_loss(losses, state), np.sum(np.exp(s) * values - s), rtol=1e-6
        )
        np.testing.assert_allclose(loss_weights(losses, state), np.exp(s), rtol=1e-6)
        _, state = tx.update((), state, losses=losses)
        s = s - 0.1 * (np.exp(s) * values - 1)
        np.testing.assert_allclose(state.log_scales, s, rtol=1e-5)
