"""What the amortized methods reach, against exact solutions, and what becomes of their start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from famo_jax import check_losses, famo, loss_weights, losses_and_grads, task_weights, weighted_loss
from famo_jax.aggregation import cagrad, mgda_weights, nash_mtl_weights
from famo_jax.weighting import (
    amortized_cagrad,
    amortized_mgda,
    amortized_nash_mtl,
    first_loss,
)

STEPS = 4000
RATE = optax.cosine_decay_schedule(0.1, STEPS)  # of the logits: what they reach, they rest at
ALPHA = 1e-6  # of the model, so that changes are slopes
MEASURES = ["change", "slope"]


# --- Fixed points: the parameters are frozen, the logits learn ------------------------------------


def quadratics(kind, num_tasks, seed=0):
    """Losses of parameters ``[P]``, quadratic in them, and their gradients at 0, ``[K, P]``."""
    rng = np.random.default_rng(seed)
    size = num_tasks + 10
    rows = rng.normal(size=(num_tasks, size)) / np.sqrt(size)
    if kind == "correlated":
        rows += rng.normal(size=size) / np.sqrt(size)
    scales = 10 ** np.linspace(-2.5, 2.5, num_tasks) if kind == "scaled" else np.ones(num_tasks)
    rows *= scales[:, None]
    at_zero = rng.uniform(1, 3, num_tasks)  # the same for all scales: no hint where to start

    def losses_fn(params):
        return at_zero + rows @ params + scales * jnp.sum(params**2)

    return losses_fn, rows


def settle(method, losses_fn, params, optimizer=None):
    """The state, and the last gradient, when only the logits have learned for ``STEPS`` steps."""
    tx = optax.chain(optimizer or optax.sgd(ALPHA), method)

    def step(opt_state, _):
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
        extra = {"losses": losses, "losses_fn": losses_fn}
        return tx.update(grads, opt_state, params, **extra)[1], grads

    opt_state, grads = jax.jit(lambda: jax.lax.scan(step, tx.init(params), length=STEPS))()
    return opt_state, grads[-1]


def bargained(opt_state, losses, exact):
    """The weights over those of the exact solution, which has a length of its own."""
    ratio = np.asarray(loss_weights(losses, opt_state)) / exact
    return ratio / ratio.mean()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", ["independent", "correlated", "scaled"])
@pytest.mark.parametrize("num_tasks", [2, 3, 10, 40])
def test_amortized_nash_mtl_reaches_the_exact_solution(num_tasks, kind, measure, x64):
    losses_fn, rows = quadratics(kind, num_tasks)
    params = jnp.zeros(rows.shape[1])
    method = amortized_nash_mtl(num_tasks, learning_rate=RATE, measure=measure)
    opt_state, _ = settle(method, losses_fn, params)
    exact = nash_mtl_weights(jnp.array(rows @ rows.T))
    ratio = bargained(opt_state, losses_fn(params), exact)
    np.testing.assert_allclose(ratio, 1, atol=1e-4)
    start = bargained(optax.chain(method).init(params), losses_fn(params), exact)
    assert np.ptp(start) > 0.1  # it was elsewhere


def test_behind_a_preconditioner_it_bargains_in_its_metric(x64):
    """The slope is that of the step made: the Gram matrix is J P J^T."""
    losses_fn, rows = quadratics("correlated", 5)
    params = jnp.zeros(rows.shape[1])
    diagonal = np.exp(np.random.default_rng(1).normal(size=len(params)))
    steps = optax.stateless(lambda updates, _: -ALPHA * diagonal * updates)
    method = amortized_nash_mtl(5, learning_rate=RATE, measure="slope")
    opt_state, _ = settle(method, losses_fn, params, steps)
    exact = nash_mtl_weights(jnp.array((rows * diagonal) @ rows.T))
    np.testing.assert_allclose(bargained(opt_state, losses_fn(params), exact), 1, atol=1e-4)


def test_behind_adam_it_bargains_over_absolute_values(x64):
    """Whose steps, with the parameters frozen, are the signs of the gradient.

    Then the shares are equal where |J^T w|_1 - sum log w is least, a convex problem.
    """
    losses_fn, rows = quadratics("correlated", 3)
    params = jnp.zeros(rows.shape[1])
    method = amortized_nash_mtl(3, learning_rate=RATE, measure="slope")
    opt_state, _ = settle(method, losses_fn, params, optax.adam(ALPHA, 0.0, 0.0))
    weights = np.asarray(loss_weights(losses_fn(params), opt_state))

    def potential(weights):  # at the length that is best
        length = 3 / np.abs(weights @ rows).sum()
        return 3 - np.sum(np.log(length * weights))

    rng = np.random.default_rng(2)
    others = [potential(weights * np.exp(0.02 * rng.normal(size=3))) for _ in range(200)]
    assert potential(weights) < min(others) + 1e-6
    exact = nash_mtl_weights(jnp.array(rows @ rows.T))
    assert np.ptp(bargained(opt_state, losses_fn(params), exact)) > 0.1  # not that of lengths


@pytest.mark.parametrize("measure", MEASURES)
def test_amortized_cagrad_reaches_the_exact_direction(measure, x64):
    losses_fn, rows = quadratics("correlated", 4, seed=3)
    params = jnp.zeros(rows.shape[1])
    method = amortized_cagrad(4, 0.6, learning_rate=RATE, weight_decay=0.0, measure=measure)
    _, direction = settle(method, losses_fn, params)
    exact, _ = cagrad(c=0.6).update(jnp.array(rows), cagrad().init(None))
    size = np.abs(exact).max()
    np.testing.assert_allclose(direction, exact, atol=1e-3 * size)
    assert np.abs(rows.mean(axis=0) - exact).max() > 0.1 * size


@pytest.mark.parametrize("measure", MEASURES)
def test_amortized_mgda_reaches_the_exact_solution(measure, x64):
    losses_fn, rows = quadratics("independent", 4)
    params = jnp.zeros(rows.shape[1])
    method = amortized_mgda(4, learning_rate=RATE, weight_decay=0.0, measure=measure)
    opt_state, _ = settle(method, losses_fn, params)
    exact = mgda_weights(jnp.array(rows @ rows.T))
    assert exact.min() > 0.05
    np.testing.assert_allclose(task_weights(opt_state), exact, atol=1e-3)


def test_famo_by_slope_equalises_the_rates(x64):
    """Without decay, at J J^T z = const of the log losses."""
    losses_fn, rows = quadratics("independent", 4, seed=11)
    params = jnp.zeros(rows.shape[1])
    method = famo(4, learning_rate=RATE, weight_decay=0.0, measure="slope")
    opt_state, _ = settle(method, losses_fn, params)
    logs = rows / losses_fn(params)[:, None]
    exact = mgda_weights(jnp.array(logs @ logs.T))
    assert exact.min() > 0.05
    np.testing.assert_allclose(task_weights(opt_state), exact, atol=1e-3)


# --- Trajectories: the parameters learn, too ------------------------------------------------------

TARGETS = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
OPTIMIZERS = {
    "sgd": optax.sgd(0.02),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.05)),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
}


def three_losses(params):
    # A constant, since rounding decides what falls where a loss is near its end.
    return 0.5 + jnp.sum((params["a"] - TARGETS) ** 2, axis=1) + params["b"] ** 2


@functools.partial(jax.jit, static_argnames=("method", "optimizer", "losses_fn", "one_pass"))
def train(method, optimizer, losses_fn, factors, one_pass=False):
    """The parameters at every step, and the last state, with losses that are scaled."""
    tx = optax.chain(optimizer, method)
    params = {"a": jnp.array([0.4, -0.7]), "b": jnp.array(1.5)}
    scaled = lambda params: factors * losses_fn(params)

    def step(carry, _):
        params, opt_state = carry
        losses, grads = losses_and_grads(scaled)(params, state=opt_state)
        extra = {} if one_pass else {"losses_fn": scaled}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    (_, opt_state), history = jax.lax.scan(step, (params, tx.init(params)), length=100)
    return jnp.hstack([history["a"], history["b"][:, None]]), opt_state[-1]


ONES = jnp.ones(3)


def nash(measure):
    return amortized_nash_mtl(3, learning_rate=0.05, measure=measure)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("measure", "one_pass"), [("slope", False), ("change", False), ("change", True)]
)
def test_scaling_a_loss_by_a_million_changes_no_trajectory(measure, one_pass, optimizer, x64):
    arguments = nash(measure), OPTIMIZERS[optimizer], three_losses
    plain, state = train(*arguments, ONES, one_pass)
    assert np.ptp(task_weights(state)) > 0.03
    for factors in ([1e6, 1, 1], [1, 1, 1e-6], [1e6, 1e-6, 1e3]):
        scaled, _ = train(*arguments, jnp.array(factors, float), one_pass)
        np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-5)


def test_and_so_in_float32():
    plain, _ = train(nash("slope"), OPTIMIZERS["adam"], three_losses, ONES)
    factors = jnp.array([1e6, 1.0, 1e-6])
    scaled, _ = train(nash("slope"), OPTIMIZERS["adam"], three_losses, factors)
    assert plain.dtype == jnp.float32
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [amortized_nash_mtl, amortized_mgda, amortized_cagrad, famo])
@pytest.mark.parametrize("measure", MEASURES)
def test_permuting_the_tasks_permutes_what_is_learned(method, measure, x64):
    order = np.array([2, 0, 1])
    permuted = lambda params: three_losses(params)[order]
    factors = jnp.array([0.5, 1.0, 4.0])
    tx, sgd = method(3, learning_rate=0.05, measure=measure), OPTIMIZERS["sgd"]
    path, state = train(tx, sgd, three_losses, factors)
    other_path, other = train(tx, sgd, permuted, factors[order])
    np.testing.assert_allclose(other_path, path, rtol=1e-6)
    np.testing.assert_allclose(other.logits, state.logits[order], rtol=1e-6)
    assert np.ptp(state.logits) > 0.01


def test_shifts(x64):
    """A constant on all logits, and one on all losses and their bounds, change nothing."""
    sgd, method = OPTIMIZERS["sgd"], nash("slope")
    path, state = train(method, sgd, three_losses, ONES)
    above = amortized_nash_mtl(3, learning_rate=0.05, measure="slope", min_losses=7.0)
    other, _ = train(above, sgd, lambda params: three_losses(params) + 7, ONES)
    np.testing.assert_allclose(other, path, rtol=1e-9)
    shifted = state._replace(logits=state.logits + 5)
    losses, new_losses = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.9, 2.1, 2.5])
    tx = amortized_nash_mtl(3)
    state, shifted = (each._replace(opt_state=tx.init(None).opt_state) for each in (state, shifted))
    np.testing.assert_allclose(loss_weights(losses, shifted), loss_weights(losses, state))
    after, other = (
        tx.update((), each, losses=losses, new_losses=new_losses)[1] for each in (state, shifted)
    )
    np.testing.assert_allclose(other.logits - 5, after.logits, rtol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_without_jit_it_is_the_same(measure):
    run = lambda: train(nash(measure), OPTIMIZERS["adam"], three_losses, ONES)
    path, state = run()
    with jax.disable_jit():
        eager, other = run()
    np.testing.assert_allclose(eager, path, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other.logits, state.logits, atol=1e-2)


# --- Nash-MTL's rule and its start ----------------------------------------------------------------

LOSSES = jnp.array([0.5, 2.0, 8.0])


def test_the_rule_by_hand(x64):
    """xi <- xi - beta (r / sum |r| - mean), r = softmax(xi) (l - l') / |l(0) - b|, in NumPy."""
    rng, beta, bounds = np.random.default_rng(0), 0.7, np.array([0.0, -1.0, 3.0])
    tx = amortized_nash_mtl(3, min_losses=bounds, optimizer=optax.sgd(beta))
    state, xi, first = tx.init(None), np.zeros(3), None
    for _ in range(30):
        before, after = rng.normal(size=(2, 3))
        first = np.abs(before - bounds) if first is None else first
        z = np.exp(xi) / np.exp(xi).sum()
        if xi.any():  # the state has seen its first losses
            weights = loss_weights(jnp.array(before), state)
            np.testing.assert_allclose(weights, z / first, rtol=1e-10)
            value = weighted_loss(jnp.array(before), state)
            np.testing.assert_allclose(value, np.sum(z / first * (before - bounds)), rtol=1e-9)
        r = z * (before - after) / first
        xi = xi - beta * (r / np.abs(r).sum() - (r / np.abs(r).sum()).mean())
        _, state = tx.update((), state, losses=jnp.array(before), new_losses=jnp.array(after))
        np.testing.assert_allclose(state.logits, xi, rtol=1e-9, atol=1e-12)


def test_it_starts_as_first_loss_and_frozen_it_is_that():
    frozen, control = amortized_nash_mtl(3, learning_rate=0.0), first_loss(3)
    state, other = frozen.init(None), control.init(None)
    for losses in (LOSSES, LOSSES[::-1], LOSSES / 3):
        np.testing.assert_allclose(
            loss_weights(losses, state), loss_weights(losses, other), rtol=1e-6
        )
        _, state = frozen.update((), state, losses=losses)
        _, other = control.update((), other, losses=losses)
    np.testing.assert_allclose(weighted_loss(LOSSES, amortized_nash_mtl(3).init(None)), 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_losses_of_any_sign_weigh_by_their_size(sign):
    tx = amortized_nash_mtl(3)
    _, state = tx.update((), tx.init(None), losses=sign * LOSSES)
    for losses in (LOSSES, -LOSSES, 0 * LOSSES):
        np.testing.assert_allclose(loss_weights(losses, state), 1 / (3 * LOSSES), rtol=1e-6)


def test_a_loss_of_zero_is_taken_up_when_it_is_none():
    """Else nothing would move where all start at 0."""
    tx = amortized_nash_mtl(3)
    first = LOSSES.at[1].set(0)
    np.testing.assert_allclose(
        loss_weights(first, tx.init(None)), jnp.array([2, 1, 0.125]) / 3, rtol=1e-6
    )
    _, state = tx.update((), tx.init(None), losses=first)
    np.testing.assert_allclose(state.weights, [2, 0, 0.125])
    _, state = tx.update((), state, losses=LOSSES)
    np.testing.assert_allclose(state.weights, [2, 0.5, 0.125])


def test_a_task_joins_with_the_mean_of_the_others_logits():
    """However long it was not there."""
    tx = amortized_nash_mtl(3, learning_rate=0.1)
    state, where = tx.init(None), jnp.array([True, True, False])
    for step in range(20):
        losses = jnp.array([1.0 - 0.04 * step, 1.0 - 0.01 * step, jnp.nan])
        _, state = tx.update((), state, losses=losses, where=where)
    assert state.logits[1] - state.logits[0] > 1
    weights = loss_weights(jnp.ones(3), state, where=where)
    z = jax.nn.softmax(state.logits[:2])
    np.testing.assert_allclose(weights, [*z, 0], rtol=1e-6)
    np.testing.assert_allclose(state.logits[2], state.logits[:2].mean(), rtol=1e-5)
    full = loss_weights(jnp.array([1.0, 1.0, 40.0]), state)
    np.testing.assert_allclose(
        full, jax.nn.softmax(state.logits) / jnp.array([1, 1, 40]), rtol=1e-6
    )


def test_a_task_in_half_of_the_batches_weighs_as_it_would_in_all(x64):
    """The mean step is then that of the exact solution: weight times presence."""
    losses_fn, rows = quadratics("correlated", 3)
    params = jnp.zeros(rows.shape[1])
    rate = optax.cosine_decay_schedule(0.1, 10 * STEPS)
    method = amortized_nash_mtl(3, learning_rate=rate, measure="slope")
    # A long average of the gradients, as training has in its small steps.
    tx = optax.chain(optax.ema(0.99), optax.sgd(ALPHA), method)
    masks = jnp.array([[True, True, True], [False, True, True]])

    def step(opt_state, index):
        where = masks[index % 2]
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state, where=where)
        extra = {"losses": losses, "losses_fn": losses_fn, "where": where}
        return tx.update(grads, opt_state, params, **extra)[1], None

    opt_state, _ = jax.lax.scan(step, tx.init(params), jnp.arange(10 * STEPS))
    exact = nash_mtl_weights(jnp.array(rows @ rows.T))
    ratio = bargained(opt_state, losses_fn(params), exact)
    effective = ratio * np.array([0.5, 1.0, 1.0])
    np.testing.assert_allclose(effective / effective.mean(), 1, atol=5e-3)


def test_check_losses_asks_for_no_bound():
    """They may be negative, and a bound is where the first loss counts from."""
    state = amortized_nash_mtl(2, min_losses=1.0).init(None)
    error, _ = checkify.checkify(lambda x: check_losses(x, state))(jnp.array([-3.0, 0.0]))
    assert error.get() is None
    error, _ = checkify.checkify(lambda x: check_losses(x, state))(jnp.array([-3.0, jnp.nan]))
    assert "the loss of task 1 is nan" in error.get()


def test_a_rise_gains_weight_and_rest_learns_nothing():
    tx = amortized_nash_mtl(3, optimizer=optax.sgd(1.0))
    _, state = tx.update((), tx.init(None), losses=LOSSES, new_losses=LOSSES)
    np.testing.assert_array_equal(state.logits, 0)
    relative = jnp.array([0.9, 1.1, 1.0])  # shares 1/2, -1/2, 0
    _, state = tx.update((), state, losses=LOSSES, new_losses=LOSSES * relative)
    np.testing.assert_allclose(state.logits, [-0.5, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_share(broken):
    tx = amortized_nash_mtl(3)
    _, state = tx.update((), tx.init(None), losses=LOSSES, new_losses=LOSSES / 2)
    after = LOSSES * 0.4
    _, one = tx.update((), state, losses=LOSSES, new_losses=after.at[1].set(broken))
    _, zero = tx.update((), state, losses=LOSSES, new_losses=after.at[1].set(LOSSES[1]))
    np.testing.assert_array_max_ulp(one.logits, zero.logits, maxulp=2)
    _, kept = tx.update((), state, losses=jnp.full(3, broken), new_losses=LOSSES)
    jax.tree.map(np.testing.assert_array_equal, kept._replace(losses=0), state._replace(losses=0))


def test_falls_too_large_to_be_squared_have_no_share():
    tx = amortized_nash_mtl(3, optimizer=optax.sgd(1.0))
    _, state = tx.update((), tx.init(None), losses=jnp.ones(3), new_losses=jnp.array([1, 1, 0.5]))
    huge = jnp.array([1.0, 3e38, 1.0])
    _, one = tx.update((), state, losses=huge, new_losses=jnp.full(3, 0.5))
    _, zero = tx.update((), state, losses=jnp.ones(3), new_losses=jnp.array([0.5, jnp.nan, 0.5]))
    np.testing.assert_array_max_ulp(one.logits, zero.logits, maxulp=2)
    assert np.abs(one.logits - state.logits).max() > 0.1


# --- CAGrad ---------------------------------------------------------------------------------------


def step_of_cagrad(c, logits, where=None, **options):
    state = amortized_cagrad(3, c).init(None)._replace(logits=jnp.array(logits))
    params = {"a": jnp.array([0.4, -0.7]), "b": jnp.array(1.5)}
    fn = options.pop("fn", three_losses)
    return losses_and_grads(fn, **options)(params, state=state, where=where)[1], params


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)


@pytest.mark.parametrize("where", [None, np.array([True, False, True])])
@pytest.mark.parametrize("c", [0.0, 0.4])
def test_cagrad_s_direction_by_hand(c, where):
    logits = [0.3, -1.0, 0.5]
    direction, params = step_of_cagrad(c, logits, where)
    jacobian = jax.jacobian(three_losses)(params)
    rows = np.hstack([jacobian["a"], jacobian["b"][:, None]])
    present = np.ones(3) if where is None else where
    mean = present @ rows / 3
    weighted = (present * np.exp(logits) / np.exp(logits).sum()) @ rows
    expected = mean + c * np.linalg.norm(mean) * weighted / np.linalg.norm(weighted)
    np.testing.assert_allclose(flat(direction), expected, rtol=1e-5)


def test_cagrad_s_direction_at_the_features_and_of_named_losses():
    logits = [0.3, -1.0, 0.5]
    expected, _ = step_of_cagrad(0.4, logits)
    encoder = lambda params: {"a": params["a"], "b": params["b"] ** 2}
    at_features = lambda params, z: 0.5 + jnp.sum((z["a"] - TARGETS) ** 2, axis=1) + z["b"]
    composed, _ = step_of_cagrad(0.4, logits, fn=at_features, encoder=encoder)
    np.testing.assert_allclose(flat(composed), flat(expected), rtol=1e-5)
    named = {name: lambda params, i=i: three_losses(params)[i] for i, name in enumerate("abc")}
    by_name, _ = step_of_cagrad(0.4, logits, fn=named)
    np.testing.assert_allclose(flat(by_name), flat(expected), rtol=1e-5)


def test_cagrad_at_opposite_gradients_and_in_bfloat16():
    opposite = lambda x: jnp.stack([x.sum(), -x.sum()])
    state = amortized_cagrad(2).init(None)
    _, grads = losses_and_grads(opposite)(jnp.ones(2), state=state)
    np.testing.assert_array_equal(grads, 0)
    params = jnp.array([0.4, -0.7], jnp.bfloat16)
    losses_fn = lambda x: jnp.sum((x - TARGETS.astype(x.dtype)) ** 2, axis=1)
    _, grads = losses_and_grads(losses_fn)(params, state=amortized_cagrad(3).init(None))
    assert grads.dtype == jnp.bfloat16


def test_cagrad_has_no_weighted_loss():
    state = amortized_cagrad(3).init(None)
    for function in (weighted_loss, loss_weights):
        with pytest.raises(ValueError, match=r"AmortizedCagradState .* use `losses_and_grads`"):
            function(LOSSES, state)
    with pytest.raises(ValueError, match="`losses`: expected num_tasks = 3 values, got 2"):
        losses_and_grads(lambda x: x)(jnp.ones(2), state=state)
    with pytest.raises(ValueError, match="`c`: expected a finite number of at least 0"):
        amortized_cagrad(3, -0.1)


def test_a_sweep_over_c_is_one_vmap():
    def run(c):
        tx = optax.chain(optax.sgd(0.02), amortized_cagrad(3, c))
        params = {"a": jnp.array([0.4, -0.7]), "b": jnp.array(1.5)}

        def step(carry, _):
            params, opt_state = carry
            losses, grads = losses_and_grads(three_losses)(params, state=opt_state)
            updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=20)[0][0]["a"]

    swept = jax.vmap(run)(jnp.array([0.0, 0.4, 0.9]))
    for c, params in zip((0.0, 0.4, 0.9), swept, strict=True):
        np.testing.assert_allclose(params, run(c), rtol=1e-5)
    assert np.ptp(swept, axis=0).max() > 1e-3
