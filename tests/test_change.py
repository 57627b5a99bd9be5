"""How the change of the losses is measured: by their slope, beside two passes and one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import _method, famo, losses_and_grads
from famo_jax.weighting import amortized_cagrad, amortized_mgda, amortized_nash_mtl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 5)), RNG.normal(size=(32, 3)) * [0.3, 1.0, 3.0]
KERNELS = {"hidden": RNG.normal(size=(5, 8)) / 2, "heads": RNG.normal(size=(8, 3)) / 3}
PLAIN = optax.sgd(1.0)  # the logits are then -delta, whatever its size
METHODS = {
    "famo": functools.partial(famo, weight_decay=0.0, optimizer=PLAIN),
    "amortized_mgda": functools.partial(amortized_mgda, weight_decay=0.0, optimizer=PLAIN),
    "amortized_nash_mtl": functools.partial(amortized_nash_mtl, optimizer=PLAIN),
    "amortized_cagrad": functools.partial(amortized_cagrad, weight_decay=0.0, optimizer=PLAIN),
}
every_method = pytest.mark.parametrize("name", METHODS)


def params_of(dtype=float):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), KERNELS)


def losses_fn(params):
    x, y = (jnp.asarray(each, params["heads"].dtype) for each in (X, Y))
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["heads"] - y) ** 2, axis=0)


def learned(name, measure, rate, dtype=float, losses_fn=losses_fn, where=None):
    """The logits after one update along ``rate`` times the negative gradient of the sum."""
    tx, params = METHODS[name](3, measure=measure), params_of(dtype)
    updates = jax.tree.map(
        lambda leaf: -rate * leaf, jax.grad(lambda p: losses_fn(p).sum())(params)
    )
    extra = {"losses": losses_fn(params), "losses_fn": losses_fn, "where": where}
    out, state = tx.update(updates, tx.init(params), params, **extra)
    chex.assert_trees_all_equal(out, updates)
    return np.asarray(state.logits, float)


# --- The limit of small steps ---------------------------------------------------------------------


@every_method
def test_the_slope_is_the_limit_of_the_change(name, x64):
    """From step to step a tenth as long the two are a tenth as far apart, relative to either."""
    apart = []
    for rate in (1e-2, 1e-3, 1e-4, 1e-5):
        slope, change = (learned(name, measure, rate) for measure in ("slope", "change"))
        apart.append(np.abs(change - slope).max() / np.abs(slope).max())
    np.testing.assert_allclose(np.divide(apart[1:], apart[:-1]), 0.1, rtol=0.1)
    assert apart[-1] < 1e-4


@every_method
def test_in_float32_the_slope_of_a_small_step_is_right_where_the_change_is_lost(name):
    jax.config.update("jax_enable_x64", True)
    exact = learned(name, "slope", 1e-6)
    jax.config.update("jax_enable_x64", False)
    slope, change = (learned(name, measure, 1e-6) for measure in ("slope", "change"))
    size = np.abs(exact).max()
    np.testing.assert_allclose(slope, exact, atol=1e-5 * size)
    assert np.abs(change - exact).max() > 1e-2 * size


def test_famo_s_decrease_is_the_slope_over_the_gap(x64):
    """-(slope_i / D_i), through the Jacobian of softmax, by NumPy."""
    params, bounds = params_of(), np.array([-1.0, 0.05, 0.2])
    method = famo(3, weight_decay=0.0, optimizer=PLAIN, measure="slope", min_losses=bounds)
    tx = optax.chain(optax.adam(0.1), method)
    opt_state = tx.init(params)
    losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
    updates, opt_state = tx.update(grads, opt_state, params, losses=losses, losses_fn=losses_fn)
    jacobian = jax.jacobian(losses_fn)(params)
    slope = sum(
        np.tensordot(np.asarray(jacobian[key]), np.asarray(updates[key]), axes=2) for key in KERNELS
    )
    decrease = -slope / (losses - bounds + 1e-8)
    expected = -(decrease - decrease.mean()) / 3
    np.testing.assert_allclose(opt_state[1].logits, expected, rtol=1e-9)


# --- What is missing, or not finite ---------------------------------------------------------------


@every_method
@pytest.mark.parametrize("measure", ["slope", "change"])
def test_an_absent_task_and_one_without_a_finite_slope_count_as_one_that_does_not_fall(
    name, measure, x64
):
    """Here the second, whose loss is NaN, or infinite, or whose slope alone is."""
    flat_loss = lambda params: losses_fn(params).at[1].set(2.0)
    expected = learned(name, measure, 0.1, losses_fn=flat_loss)
    assert expected.any()
    where = jnp.array([True, False, True])
    # A task of which Nash-MTL has seen no loss yet has the mean of the others' logits.
    for broken in () if name == "amortized_nash_mtl" else (jnp.nan, jnp.inf):
        struck = lambda params, broken=broken: losses_fn(params).at[1].set(broken)
        np.testing.assert_allclose(learned(name, measure, 0.1, losses_fn=struck), expected)
        absent = learned(name, measure, 0.1, losses_fn=struck, where=where)
        np.testing.assert_allclose(absent, expected)
    if measure == "slope":
        steep = lambda params: (
            losses_fn(params)
            .at[1]
            .set(2.0 + jnp.sqrt(jnp.sum((params["heads"] - params_of()["heads"]) ** 2)))
        )
        tx, params = METHODS[name](3, measure="slope"), params_of()
        gradient = jax.grad(lambda p: losses_fn(p)[jnp.array([0, 2])].sum())(params)
        updates = jax.tree.map(lambda leaf: -0.1 * leaf, gradient)
        _, state = tx.update(
            updates, tx.init(params), params, losses=steep(params), losses_fn=steep
        )
        np.testing.assert_allclose(state.logits, expected)


@every_method
def test_where_no_task_has_a_finite_slope_nothing_is_learned(name):
    tx, params = METHODS[name](3, measure="slope"), params_of()
    nan = lambda params: jnp.full(3, jnp.nan) * params["heads"][0]
    before = tx.init(params)
    _, after = tx.update(params, before, params, losses=nan(params), losses_fn=nan)
    chex.assert_trees_all_equal(after, before)


# --- Programs -------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("optimizer", [optax.sgd(0.05), optax.adam(0.01)])
def test_it_trains_as_two_pass_does(name, optimizer):
    def train(measure):
        tx = optax.chain(optimizer, METHODS[name](3, measure=measure))

        def step(carry, _):
            params, opt_state = carry
            losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
            extra = {"losses": losses, "losses_fn": losses_fn}
            updates, opt_state = tx.update(grads, opt_state, params, **extra)
            return (optax.apply_updates(params, updates), opt_state), losses

        params = params_of()
        return jax.lax.scan(step, (params, tx.init(params)), length=60)

    (_, opt_state), slope = train("slope")
    _, change = train("change")
    np.testing.assert_allclose(slope[-1], change[-1], rtol=0.1)
    assert np.all(slope[-1] < slope[0])
    assert np.any(opt_state[-1].logits != 0)


@every_method
def test_named_losses_in_bfloat16(name):
    named = lambda params: dict(zip("cab", losses_fn(params), strict=True))
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.bfloat16, 0.1)):
        tx, params = METHODS[name](3, measure="slope"), params_of(dtype)
        updates = params_of(jnp.float32)
        extra = {"losses": named(params), "losses_fn": named}
        _, state = tx.update(updates, tx.init(params), params, **extra)
        assert state.logits.dtype == jnp.float32
        flat = {"losses": losses_fn(params_of()), "losses_fn": losses_fn}
        _, expected = tx.update(updates, tx.init(params), params_of(), **flat)
        order = jnp.array([1, 2, 0])
        np.testing.assert_allclose(
            state.logits, expected.logits[order], atol=tolerance * np.abs(expected.logits).max()
        )


@every_method
def test_the_same_randomness(name):
    """At no step there is no slope, under the mask of the step; and one mask is one slope."""
    key = jax.random.key(0)

    def dropped(params, key):
        kept = jax.random.bernoulli(key, 0.5, params["heads"].shape)
        return losses_fn({**params, "heads": params["heads"] * kept})

    tx, params = METHODS[name](3, measure="slope"), params_of()
    drop = functools.partial(dropped, key=key)
    extra = {"losses": drop(params), "losses_fn": drop}
    still = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(still, tx.init(params), params, **extra)
    np.testing.assert_array_equal(state.logits, 0)
    _, one = tx.update(params, tx.init(params), params, **extra)
    _, other = tx.update(params, tx.init(params), params, **extra)
    np.testing.assert_array_equal(one.logits, other.logits)
    assert np.any(one.logits != 0)


@every_method
def test_under_jit_vmap_and_inject_hyperparams(name):
    run = lambda rate: learned_in_jit(name, rate)
    rates = jnp.array([0.01, 0.1])
    swept = jax.jit(jax.vmap(run))(rates)
    for rate, logits in zip(rates, swept, strict=True):
        np.testing.assert_allclose(logits, run(rate), rtol=1e-4, atol=1e-7)
    make = {"famo": famo, "amortized_mgda": amortized_mgda}.get(name)
    if make:
        injected = optax.inject_hyperparams(make, static_args=("num_tasks",))
        tx, plain, params = injected(3, measure="slope"), make(3, measure="slope"), params_of()
        extra = {"losses": losses_fn(params), "losses_fn": losses_fn}
        _, state = jax.jit(lambda state: tx.update(params, state, params, **extra))(tx.init(params))
        _, expected = plain.update(params, plain.init(params), params, **extra)
        np.testing.assert_allclose(_method.find_state(state).logits, expected.logits, rtol=1e-5)


def learned_in_jit(name, rate):
    tx, params = METHODS[name](3, measure="slope"), params_of()
    updates = jax.tree.map(lambda leaf: -rate * leaf, params)
    extra = {"losses": losses_fn(params), "losses_fn": losses_fn}
    return tx.update(updates, tx.init(params), params, **extra)[1].logits


def test_under_jit_the_slope_shares_the_forward_pass_of_the_gradient():
    """What it adds are the products with the tangents, at most two for each of the forward pass."""

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    tx, params = optax.chain(optax.sgd(0.1), famo(3, measure="slope")), params_of()

    def step(params, opt_state):
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
        return tx.update(grads, opt_state, params, losses=losses, losses_fn=losses_fn)

    alone = famo(3)
    without = lambda params, state: losses_and_grads(losses_fn)(params, state=state)
    added = flops(step, params, tx.init(params)) - flops(without, params, alone.init(None))
    assert added < 2.5 * flops(losses_fn, params)


# --- Errors ---------------------------------------------------------------------------------------

ERRORS = {
    "no function": ({"losses_fn": None}, '`losses_fn`: .* which measure="slope" .* got none'),
    "losses": (
        {"losses_fn": None, "new_losses": jnp.ones(3)},
        '`losses_fn`: .* which measure="slope" .* got `new_losses`',
    ),
    "both": ({"new_losses": jnp.ones(3)}, "got `new_losses`"),
    "no parameters": ({"params": None}, "`params`: expected the parameters"),
    "others": ({"params": {"hidden": jnp.ones(2)}}, "`params`: expected the shapes of the updates"),
    "integers": (
        {"params": {key: jnp.ones(leaf.shape, int) for key, leaf in KERNELS.items()}},
        "`params`: expected floating values, got int32",
    ),
    "no loss": ({"losses_fn": lambda params: jnp.ones(2)}, "`losses_fn`: expected num_tasks = 3"),
    "counts": (
        {"losses_fn": lambda params: jnp.ones(3, int)},
        "`losses_fn`: expected floating values, got int32",
    ),
    "a number": ({"losses_fn": 3.0}, "`losses_fn`: expected a function, got float"),
}


@pytest.mark.parametrize(("changed", "match"), ERRORS.values(), ids=ERRORS.keys())
@every_method
def test_errors_of_the_slope(name, changed, match):
    tx, params = METHODS[name](3, measure="slope"), params_of()
    given = {"params": params, "losses": losses_fn(params), "losses_fn": losses_fn} | changed
    with pytest.raises(ValueError, match=match):
        tx.update(params, tx.init(params), **given)


@pytest.mark.parametrize("make", [famo, amortized_mgda, amortized_nash_mtl, amortized_cagrad])
def test_another_measure_is_an_error(make):
    with pytest.raises(ValueError, match="`measure`: expected 'change' or 'slope', got 'one-pass'"):
        make(3, measure="one-pass")


def test_inside_masked_it_is_an_error():
    tx = optax.masked(famo(3, measure="slope"), {"hidden": True, "heads": False})
    params = params_of()
    with pytest.raises(ValueError, match=r"outside of optax.masked and optax.partition"):
        tx.update(params, tx.init(params), params, losses=losses_fn(params), losses_fn=losses_fn)
