"""FAMO against the official code, its paper and closed forms."""

import functools
import itertools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from famo_jax import (
    FamoState,
    _famo,
    _method,
    famo,
    logits_optimizer,
    loss_weights,
    task_weights,
    update_logits,
    weighted_loss,
)

SEQUENCES = np.load(pathlib.Path(__file__).parent / "data" / "famo_sequences.npz")
NAMES = sorted({key.split("/")[0] for key in SEQUENCES})
NORMALIZERS = ["harmonic", "geometric", "arithmetic", None]


def relative_error(ours, theirs):
    """The largest deviation over the largest entry, as the agreement is stated."""
    return np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs))


# --- The official code ---------------------------------------------------------------------------


def replay_update_logits(transformation, optimizer, state, before, after):
    return update_logits(state, before, after, optimizer)


def replay_transformation(transformation, optimizer, state, before, after):
    updates, state = transformation.update({}, state, losses=before, new_losses=after)
    assert updates == {}
    return state


@pytest.mark.parametrize("step", [replay_update_logits, replay_transformation])
@pytest.mark.parametrize("name", NAMES)
def test_official_sequences(name, step, request):
    """The official code's weighted loss, loss weights and logits, at every step."""
    sequence = {
        key.split("/")[1]: SEQUENCES[key] for key in SEQUENCES if key.startswith(f"{name}/")
    }
    tolerance = 1e-5 if name == "float32" else 1e-12
    if name != "float32":
        request.getfixturevalue("x64")
    rates = float(sequence["learning_rate"]), float(sequence["gamma"])
    before, after, bounds = (jnp.array(sequence[key]) for key in ("before", "after", "min_losses"))
    transformation = famo(
        before.shape[1], learning_rate=rates[0], weight_decay=rates[1], min_losses=bounds
    )
    step = jax.jit(functools.partial(step, transformation, logits_optimizer(*rates)))
    state = transformation.init(None)
    computed = {"weighted_loss": [], "loss_weights": [], "logits": []}
    for losses, new_losses in zip(before, after, strict=True):
        computed["weighted_loss"].append(weighted_loss(losses, state))
        computed["loss_weights"].append(loss_weights(losses, state))
        state = step(state, losses, new_losses)
        computed["logits"].append(state.logits)
    for key, ours in computed.items():
        assert relative_error(ours, sequence[key]) < tolerance, key
    assert np.ptp(sequence["logits"]) > 0.01  # the sequences do move the logits


# --- The paper -----------------------------------------------------------------------------------


def test_algorithm_1_is_sgd(x64):
    """xi <- xi - beta (delta + gamma xi), by NumPy, with the softmax's Jacobian written out."""
    beta, gamma = 0.7, 0.03
    rng = np.random.default_rng(0)
    losses = rng.uniform(0.1, 9.0, (50, 4))
    xi = np.zeros(4)
    optimizer = logits_optimizer(weight_decay=gamma, optimizer=optax.sgd(beta))
    state = famo(4, weight_decay=gamma, optimizer=optax.sgd(beta)).init(None)
    for before, after in itertools.pairwise(losses):
        z = np.exp(xi) / np.exp(xi).sum()
        jacobian = np.diag(z) - np.outer(z, z)
        delta = jacobian.T @ (np.log(before + 1e-8) - np.log(after + 1e-8))
        xi = xi - beta * (delta + gamma * xi)
        state = update_logits(state, before, after, optimizer)
        np.testing.assert_allclose(state.logits, xi, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_weighted_loss_formula(normalizer, x64):
    """L = c sum z log D, w = c z / D, in NumPy, with the four means of D."""
    rng = np.random.default_rng(1)
    losses, bounds, xi = rng.uniform(1, 5, 6), rng.uniform(-1, 0.5, 6), rng.normal(size=6)
    tx = famo(6, min_losses=bounds, normalizer=normalizer)
    state = tx.init(None)._replace(logits=jnp.array(xi))
    d, z = losses - bounds + 1e-8, np.exp(xi) / np.exp(xi).sum()
    c = {
        "harmonic": 1 / np.sum(z / d),
        "geometric": np.prod(d**z),
        "arithmetic": np.sum(z * d),
        None: 1.0,
    }[normalizer]
    ours = weighted_loss(losses, state)
    np.testing.assert_allclose(ours, c * np.sum(z * np.log(d)), rtol=1e-13)
    weights = loss_weights(losses, state)
    np.testing.assert_allclose(weights, c * z / d, rtol=1e-13)
    np.testing.assert_allclose(task_weights(state), z, rtol=1e-13)
    if normalizer == "harmonic":  # a convex combination
        np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-13)


def test_proposition_3_2(x64):
    """At the logits' fixed point all tasks improve at one rate; z minimises ||J z||^2.

    Parameters are frozen while the logits settle, gamma = 0, and the minimiser of the Gram form
    over the simplex is interior, where it solves G z = const.
    """
    targets = jnp.array([[3.0, 0.0, 0.5], [-1.0, 2.0, 0.0], [0.0, -2.0, 1.0]])
    curvatures = jnp.array([[1.0, 2.0, 1.0], [100.0, 300.0, 50.0], [0.01, 0.02, 0.03]])
    losses_fn = lambda x: jnp.sum(curvatures * (x - targets) ** 2, axis=1)
    x, alpha = jnp.array([0.3, 0.2, -0.4]), 1e-6

    jacobian = np.asarray(jax.jacobian(lambda x: jnp.log(losses_fn(x)))(x))  # [tasks, 3]
    exact = np.linalg.solve(jacobian @ jacobian.T, np.ones(3))
    exact /= exact.sum()
    assert exact.min() > 0.05  # interior

    logits_opt = optax.sgd(0.3 / alpha)
    tx = optax.chain(
        optax.sgd(alpha), famo(3, weight_decay=0.0, normalizer=None, optimizer=logits_opt)
    )
    opt_state = tx.init(x)

    def step(opt_state, _):
        grads = jax.grad(lambda x: weighted_loss(losses_fn(x), opt_state))(x)
        updates, opt_state = tx.update(
            grads, opt_state, x, losses=losses_fn(x), losses_fn=losses_fn
        )
        return opt_state, jnp.log(losses_fn(x)) - jnp.log(losses_fn(x + updates))

    opt_state, rates = jax.lax.scan(step, opt_state, length=3000)
    assert np.ptp(rates[0]) > 0.5 * np.mean(rates[0])  # they were not equal to begin with
    assert np.ptp(rates[-1]) < 0.01 * np.mean(rates[-1])
    assert np.mean(rates[-1]) > 0
    np.testing.assert_allclose(task_weights(opt_state), exact, atol=1e-3)


def test_logits_stay_within_the_bounds():
    """|delta_i| <= range(change) / 4, so |xi| <= max |delta| / gamma under SGD."""
    gamma, beta, spread = 0.05, 1.0, 6.0
    optimizer = logits_optimizer(weight_decay=gamma, optimizer=optax.sgd(beta))
    state = famo(2, weight_decay=gamma, optimizer=optax.sgd(beta)).init(None)
    before, after = jnp.exp(jnp.array([spread, 0.0])), jnp.ones(2)
    first = update_logits(state, before, after, optimizer)
    np.testing.assert_allclose(first.logits, [-beta * spread / 4, beta * spread / 4], rtol=1e-5)
    for _ in range(300):
        state = update_logits(state, before, after, optimizer)
    assert np.max(np.abs(state.logits)) <= spread / 4 / gamma


# --- Derivatives and stability -------------------------------------------------------------------


def test_derivatives_are_the_formulas():
    """z and c are constants, D is not: at losses (1, 2) c z = 2/3 each."""
    state = famo(2).init(None)
    losses, vector = jnp.array([1.0, 2.0]), jnp.array([3.0, -5.0])
    loss = lambda losses: weighted_loss(losses, state)
    np.testing.assert_allclose(jax.grad(loss)(losses), [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(loss, (losses,), (vector,))[1], 2 - 5 / 3, rtol=1e-5)
    hessian = np.diag([-2 / 3, -1 / 6])
    np.testing.assert_allclose(jax.hessian(loss)(losses), hessian, rtol=1e-6)
    product = jax.jvp(jax.grad(loss), (losses,), (vector,))[1]
    np.testing.assert_allclose(product, hessian @ vector, rtol=1e-6)
    product = jax.grad(lambda losses: jax.grad(loss)(losses) @ vector)(losses)
    np.testing.assert_allclose(product, hessian @ vector, rtol=1e-6)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("logits", [[0, 0, 0, 0, 0], [3.0, -7.0, 0.5, 20.0, -20.0]])
def test_losses_over_sixty_decades(normalizer, logits):
    """In float32 as in float64."""
    losses = np.array([1e-30, 1e-8, 1.0, 1e8, 1e30])
    state = famo(5, normalizer=normalizer).init(None)
    state = state._replace(logits=jnp.array(logits, jnp.float32))
    ours = loss_weights(jnp.array(losses, jnp.float32), state)
    value = weighted_loss(jnp.array(losses, jnp.float32), state)
    d = losses + 1e-8
    z = np.exp(logits - np.max(logits)) / np.sum(np.exp(logits - np.max(logits)))
    c = {
        "harmonic": 1 / np.sum(z / d),
        "geometric": np.exp(np.sum(z * np.log(d))),
        "arithmetic": np.sum(z * d),
        None: 1.0,
    }[normalizer]
    tiny = np.finfo(np.float32).tiny  # what float32 flushes to zero
    np.testing.assert_allclose(ours, c * z / d, rtol=2e-5, atol=tiny)
    np.testing.assert_allclose(value, c * np.sum(z * np.log(d)), rtol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_low_precision_losses(dtype):
    """Arithmetic in float32, the gradient back in the losses' dtype."""
    losses = jnp.array([0.001, 1.0, 300.0], dtype)
    state = famo(3).init(None)
    value, weights = jax.value_and_grad(weighted_loss)(losses, state)
    assert value.dtype == jnp.float32
    assert weights.dtype == dtype
    d = np.asarray(losses, np.float64) + 1e-8
    exact = (1 / d) / np.sum(1 / d)
    np.testing.assert_allclose(
        np.asarray(weights, np.float64),
        exact,
        rtol=float(jnp.finfo(dtype).eps) if dtype != jnp.float32 else 1e-6,
        atol=float(jnp.finfo(dtype).smallest_subnormal),
    )
    updated = update_logits(state, losses, losses / 2, logits_optimizer())
    chex.assert_trees_all_equal_shapes_and_dtypes(state, updated)


def test_float64_losses_need_no_float64_model(x64):
    state = famo(2).init(jnp.zeros(3, jnp.float32))
    assert state.logits.dtype == state.losses.dtype == jnp.float64
    assert weighted_loss(jnp.ones(2, jnp.float64), state).dtype == jnp.float64
    assert weighted_loss(jnp.ones(2, jnp.float32), state).dtype == jnp.float32
    assert weighted_loss(jnp.ones(2, jnp.bfloat16), state).dtype == jnp.float32
    # eps = 1e-8 vanishes beside 1 in float32: the bounds and the losses are subtracted in float64.
    assert loss_weights(jnp.array([1e-300, 1.0]), state)[0] > 0.99


# --- The state -----------------------------------------------------------------------------------


def test_state():
    state = famo(3, min_losses=jnp.array([-1.0, 0.0, 2.0])).init({"w": jnp.ones(2, jnp.bfloat16)})
    assert isinstance(state, FamoState)
    np.testing.assert_array_equal(state.logits, [0, 0, 0])
    np.testing.assert_array_equal(state.min_losses, [-1, 0, 2])
    np.testing.assert_array_equal(state.losses, [np.inf] * 3)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        optax.sgd(0.1, momentum=0.9),
        optax.chain(optax.ema(0.9), optax.adam(0.01)),
        optax.lion(optax.cosine_decay_schedule(0.1, 10)),
        optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1)),
    ],
)
def test_an_update_changes_no_structure_shape_or_dtype(optimizer):
    tx = famo(3, optimizer=optimizer)
    state = tx.init(None)
    losses = jnp.array([1.0, 2.0, 3.0])
    _, updated = tx.update((), state, losses=losses, new_losses=losses / 2)
    chex.assert_trees_all_equal_structs(state, updated)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(updated), strict=True):
        assert before.aval == after.aval  # weak types too


def test_the_last_finite_loss_is_remembered():
    optimizer, state = logits_optimizer(), famo(4).init(None)
    nan, inf = np.nan, np.inf
    state = update_logits(
        state, jnp.array([1.0, nan, 3.0, 4.0]), jnp.array([nan, nan, inf, 2.0]), optimizer
    )
    np.testing.assert_array_equal(state.losses, [1, inf, 3, 2])
    state = update_logits(state, state.losses, jnp.array([-nan, 7.0, -inf, nan]), optimizer)
    np.testing.assert_array_equal(state.losses, [1, 7, 3, 2])


@pytest.mark.parametrize(
    "new_losses",
    [[np.nan] * 3, [np.inf] * 3, [-np.inf] * 3, [-1.0] * 3, [np.nan, np.inf, -5.0], [0.5] * 3],
    ids=str,
)
def test_no_finite_change_leaves_logits_and_optimizer(new_losses):
    """The bound is 0.5: a loss at 0.5 - 1e-8 or under it has no log gap."""
    optimizer = logits_optimizer()
    state = famo(3, min_losses=0.5).init(None)
    state = update_logits(state, jnp.array([1.0, 2, 3]), jnp.array([0.9, 1, 3]), optimizer)
    updated = update_logits(state, jnp.array([1.0, 2, 3]), jnp.array(new_losses) - 1e-7, optimizer)
    assert int(optax.tree.get(updated.opt_state, "count")) == 1
    chex.assert_trees_all_equal(updated._replace(losses=state.losses), state)


def test_a_change_that_is_not_finite_counts_as_zero():
    optimizer, state = logits_optimizer(), famo(3).init(None)
    before, after = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.9, 3.0])
    for broken in (np.nan, np.inf, -np.inf, -1.0):
        one = update_logits(state, before, after.at[1].set(broken), optimizer)
        zero = update_logits(state, before, after.at[1].set(before[1]), optimizer)
        chex.assert_trees_all_equal(one._replace(losses=zero.losses), zero)
        one = update_logits(state, before.at[1].set(broken), after, optimizer)
        zero = update_logits(state, before.at[1].set(after[1]), after, optimizer)
        chex.assert_trees_all_equal(one._replace(losses=zero.losses), zero)


@pytest.mark.parametrize("loss", [np.nan, -1.0])
def test_the_weighted_loss_propagates_what_is_wrong(loss):
    state = famo(2).init(None)
    value, weights = jax.value_and_grad(weighted_loss)(jnp.array([1.0, loss]), state)
    assert np.isnan(value)
    assert np.isnan(weights).all()
    assert weighted_loss(jnp.array([1.0, np.inf]), state) == np.inf


def test_one_pass_first_only_remembers_then_measures():
    optimizer, state = logits_optimizer(), famo(2).init(None)
    first, second = jnp.array([4.0, 3.0]), jnp.array([1.0, 2.0])
    seen = update_logits(state, state.losses, first, optimizer)
    chex.assert_trees_all_equal(seen, state._replace(losses=first))
    chex.assert_trees_all_equal(
        update_logits(seen, seen.losses, second, optimizer),
        update_logits(state, first, second, optimizer),
    )


def test_one_pass_and_two_pass_may_follow_each_other():
    tx = famo(2)
    a, b, c = jnp.array([4.0, 3.0]), jnp.array([3.5, 1.0]), jnp.array([3.0, 0.9])
    _, state = tx.update((), tx.init(None), losses=a, new_losses=b)  # two-pass
    _, state = tx.update((), state, losses=c)  # one-pass, from b
    _, expected = tx.update((), tx.init(None), losses=a, new_losses=b)
    _, expected = tx.update((), expected, losses=b, new_losses=c)
    chex.assert_trees_all_equal(state, expected)


def test_updates_pass_untouched_and_losses_fn_sees_the_new_parameters():
    tx = famo(2)
    params = {"w": jnp.array([1.0, 2.0])}
    updates = {"w": jnp.array([0.5, -0.5])}
    losses_fn = lambda params: params["w"] + 1.0
    out, state = tx.update(
        updates, tx.init(params), params, losses=losses_fn(params), losses_fn=losses_fn
    )
    chex.assert_trees_all_equal(out, updates)
    np.testing.assert_array_equal(state.losses, [2.5, 2.5])


def test_learning_rate_schedule_advances_with_the_logits():
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.0})
    tx = famo(2, learning_rate=schedule, weight_decay=0.0)
    state = tx.init(None)
    _, state = tx.update((), state, losses=jnp.ones(2))  # remembers: no step, no count
    assert optax.tree.get(state.opt_state, "mu").sum() == 0
    _, moved = tx.update((), state, losses=jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(moved.logits, [-0.1, 0.1], rtol=1e-4)
    _, still = tx.update((), moved, losses=jnp.array([0.1, 1.0]))
    np.testing.assert_array_equal(still.logits, moved.logits)


# --- Names, shapes and bounds --------------------------------------------------------------------


def test_named_losses_are_in_sorted_order():
    tx = famo(3, min_losses={"seg": 3.0, "depth": 1.0, "normals": 2.0})
    state = tx.init(None)
    np.testing.assert_array_equal(state.min_losses, [1, 2, 3])
    losses = {"seg": 30.0, "normals": 20.0, "depth": 10.0}
    weights = loss_weights(losses, state)
    flat = loss_weights(jnp.array([10.0, 20.0, 30.0]), state)
    assert set(weights) == set(losses)
    np.testing.assert_array_equal([weights["depth"], weights["normals"], weights["seg"]], flat)
    new_losses = {"seg": 29.0, "normals": 19.0, "depth": 5.0}
    _, named = tx.update((), state, losses=losses, new_losses=new_losses)
    _, arrays = tx.update(
        (), state, losses=jnp.array([10.0, 20, 30]), new_losses=jnp.array([5.0, 19, 29])
    )
    chex.assert_trees_all_equal(named, arrays)
    _, mixed = tx.update((), state, losses=losses, new_losses=jnp.array([5.0, 19, 29]))
    chex.assert_trees_all_equal(mixed, arrays)


def test_losses_of_any_shape():
    rng = np.random.default_rng(0)
    losses = jnp.array(rng.uniform(1, 2, (3, 4)), jnp.float32)
    bounds = jnp.array(rng.uniform(0, 1, (3, 4)), jnp.float32)
    tx = famo(12, min_losses=bounds)
    state, flat = tx.init(None), famo(12, min_losses=bounds.ravel()).init(None)
    chex.assert_trees_all_equal(state, flat)
    weights = loss_weights(losses, state)
    assert weights.shape == (3, 4)
    np.testing.assert_array_equal(weights.ravel(), loss_weights(losses.ravel(), state))
    present = losses > 1.5
    np.testing.assert_array_equal(
        loss_weights(losses, state, where=present),
        loss_weights(losses, state, where=present.ravel()),
    )
    optimizer = logits_optimizer()
    chex.assert_trees_all_equal(
        update_logits(state, losses, losses - 0.1, optimizer, where=present),
        update_logits(
            state, losses.ravel(), losses.ravel() - 0.1, optimizer, where=present.ravel()
        ),
    )


@pytest.mark.parametrize("losses", [[1.0, 2.0], (1.0, 2.0), {"b": 2, "a": 1}, np.array([1, 2])])
def test_losses_may_be_any_pytree_of_numbers(losses):
    state = famo(2).init(None)
    np.testing.assert_allclose(
        weighted_loss(losses, state), weighted_loss(jnp.array([1.0, 2.0]), state)
    )
    chex.assert_trees_all_equal_structs(loss_weights(losses, state), losses)


def test_one_task():
    state = famo(1).init(None)
    loss = jnp.array(3.0)
    assert jax.grad(weighted_loss)(loss, state) == 1.0
    without_c = famo(1, normalizer=None).init(None)
    np.testing.assert_allclose(jax.grad(weighted_loss)(loss, without_c), 1 / 3, rtol=1e-6)
    state = update_logits(state, loss, loss / 2, logits_optimizer())
    np.testing.assert_array_equal(state.logits, [0.0])


# --- where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("absent", [np.nan, np.inf, -np.inf, -3.0, 0.0])
def test_an_absent_task_leaks_nowhere(absent, normalizer):
    """z and c run over all tasks with the losses last seen; only its own term is dropped."""
    state = famo(3, normalizer=normalizer).init(None)
    state = state._replace(losses=jnp.array([1.0, 2.0, 3.0]), logits=jnp.array([0.3, 0.2, -0.5]))
    where = jnp.array([True, False, True])
    losses = jnp.array([1.0, absent, 3.0])
    value, weights = jax.value_and_grad(lambda losses: weighted_loss(losses, state, where=where))(
        losses
    )
    full = loss_weights(jnp.array([1.0, 2.0, 3.0]), state)
    np.testing.assert_allclose(weights, np.where(where, full, 0), rtol=1e-6)
    assert weights[1] == 0
    assert np.isfinite(value)
    _, tangent = jax.jvp(
        lambda losses: weighted_loss(losses, state, where=where), (losses,), (jnp.ones(3),)
    )
    assert np.isfinite(tangent)


def test_a_task_never_seen_is_left_out():
    state = famo(3).init(None)
    where = jnp.array([True, True, False])
    weights = loss_weights(jnp.array([1.0, 4.0, np.nan]), state, where=where)
    np.testing.assert_allclose(weights, [0.8, 0.2, 0.0], rtol=1e-6)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_loss_last_seen_under_its_bound_counts_as_not_seen(normalizer):
    """It was remembered, being finite, and must not reach the tasks that are present."""
    tx = famo(2, normalizer=normalizer)
    _, state = tx.update((), tx.init(None), losses=jnp.array([1.0, -0.1]))
    assert state.losses[1] < 0
    where = jnp.array([True, False])
    losses = jnp.array([2.0, 7.0])
    weights = loss_weights(losses, state, where=where)
    alone = loss_weights(losses, tx.init(None), where=where)
    np.testing.assert_array_equal(weights, alone)
    assert np.isfinite(weighted_loss(losses, state, where=where))


@pytest.mark.parametrize("seen", [True, False])
def test_all_absent(seen, debug_nans):
    tx = famo(2)
    state = tx.init(None)
    if seen:
        state = state._replace(losses=jnp.array([1.0, 2.0]))
    losses = jnp.array([5.0, 6.0])
    value, weights = jax.value_and_grad(lambda x: weighted_loss(x, state, where=False))(losses)
    assert value == 0
    np.testing.assert_array_equal(weights, [0, 0])
    _, updated = tx.update((), state, losses=losses, new_losses=losses / 2, where=False)
    chex.assert_trees_all_equal(updated, state)


def test_where_in_the_update():
    """An absent task's change counts as zero and its last seen loss stays."""
    tx = famo(3)
    _, state = tx.update((), tx.init(None), losses=jnp.array([1.0, 2.0, 3.0]))
    _, masked = tx.update(
        (), state, losses=jnp.array([0.5, np.nan, 3.0]), where=jnp.array([True, False, True])
    )
    _, expected = tx.update((), state, losses=jnp.array([0.5, 2.0, 3.0]))
    chex.assert_trees_all_equal(masked, expected)


def test_where_may_be_named():
    state = famo(2).init(None)
    losses, where = {"a": 1.0, "b": 4.0}, {"a": True, "b": False}
    named = loss_weights(losses, state, where=where)
    assert named == loss_weights(losses, state, where=[True, False])
    assert named == loss_weights(losses, state, where=np.array([True, False]))
    assert named["b"] == 0
    _, updated = famo(2).update((), state, losses=losses, new_losses=losses, where=where)
    np.testing.assert_array_equal(updated.losses, [1, np.inf])


# --- jit, vmap, scan, donation -------------------------------------------------------------------


def test_eager_calls_compile_once():
    optimizer, state = logits_optimizer(), famo(7).init(None)
    _famo._update_logits.clear_cache()
    for step in range(100):
        losses = jnp.full(7, 100.0 - step)
        state = update_logits(state, losses, losses - 1, optimizer)
    assert _famo._update_logits._cache_size() == 1


def test_a_large_optimizer_state_is_not_walked(monkeypatch):
    """The search meets a handful of nodes, and only FAMO's state goes through jit."""
    params = {f"layer{i}": {"kernel": jnp.ones(1), "bias": jnp.ones(1)} for i in range(500)}
    opt_state = optax.chain(optax.clip(1.0), optax.adam(1e-3), famo(3)).init(params)
    assert len(jax.tree.leaves(opt_state)) > 2000
    visited = []
    is_method_state = _method._is_method_state
    monkeypatch.setattr(
        _method, "_is_method_state", lambda node: visited.append(node) or is_method_state(node)
    )
    found = _method.find_state(opt_state)
    assert isinstance(found, FamoState)
    assert len(visited) < 20
    assert weighted_loss(jnp.ones(3), opt_state) == weighted_loss(jnp.ones(3), found)


def train(tx, losses_fn, params, steps, *, two_pass=True):
    opt_state = tx.init(params)

    def step(carry, _):
        params, opt_state = carry

        def loss_fn(params):
            losses = losses_fn(params)
            return weighted_loss(losses, opt_state), losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(params)
        extra = {"losses_fn": losses_fn} if two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return (optax.apply_updates(params, updates), opt_state), losses

    return jax.lax.scan(step, (params, opt_state), length=steps)


def quadratic_losses(params):
    targets = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    return jnp.array([0.01, 1.0, 100.0]) * jnp.sum((params - targets) ** 2, axis=1) + 0.1


def test_sweep_over_gamma_and_seeds_is_one_compiled_call():
    gammas, seeds = jnp.logspace(-5, 0, 32), jnp.arange(8)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sweep(gammas, seeds):
        def run(gamma, seed):
            params = jax.random.normal(jax.random.key(seed), (2,))
            tx = optax.chain(optax.adam(0.05), famo(3, weight_decay=gamma, learning_rate=0.1))
            (_, opt_state), _ = train(tx, quadratic_losses, params, 50)
            return opt_state[1].logits

        return jax.vmap(lambda gamma: jax.vmap(lambda seed: run(gamma, seed))(seeds))(gammas)

    logits = sweep(gammas, seeds)
    assert logits.shape == (32, 8, 3)
    spread = np.mean(np.ptp(logits, axis=2), axis=1)
    assert spread[0] > 5 * spread[-1]  # gamma pulls the logits together
    # Each is the run that one alone would have been.
    tx = optax.chain(optax.adam(0.05), famo(3, weight_decay=float(gammas[9]), learning_rate=0.1))
    params = jax.random.normal(jax.random.key(3), (2,))
    (_, opt_state), _ = train(tx, quadratic_losses, params, 50)
    np.testing.assert_allclose(logits[9, 3], opt_state[1].logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("traced", ["learning_rate", "weight_decay", "min_losses"])
def test_traced_hyperparameters(traced):
    def run(value):
        tx = optax.chain(optax.sgd(0.01), famo(3, **{traced: value}))
        return train(tx, quadratic_losses, jnp.zeros(2), 5)[0][1][1].logits

    value = 0.05
    expected = run(value)
    np.testing.assert_allclose(jax.jit(run)(value), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(run)(jnp.full(2, value))[1], expected, rtol=1e-5)


def test_rates_may_be_arrays_inside_jit():
    rate, negative = jnp.array(0.1), jnp.array(-0.1)
    init = jax.jit(lambda: famo(2, learning_rate=rate, min_losses=jnp.ones(2)).init(None))
    np.testing.assert_array_equal(init().min_losses, [1, 1])
    with pytest.raises(ValueError, match="`learning_rate`: expected a finite number"):
        jax.jit(lambda: famo(2, learning_rate=negative).init(None))()


def test_update_logits_with_a_traced_optimizer():
    """Program D under vmap: the optimizer is built inside."""
    before, after = jnp.array([1.0, 2.0]), jnp.array([0.5, 1.9])

    def run(gamma):
        optimizer = logits_optimizer(0.025, gamma)
        step = lambda state, _: (update_logits(state, before, after, optimizer), None)
        return jax.lax.scan(step, famo(2).init(None), length=20)[0].logits

    gammas = jnp.array([0.0, 0.1, 1.0])
    swept = jax.vmap(run)(gammas)
    for gamma, logits in zip(gammas, swept, strict=True):
        np.testing.assert_allclose(logits, run(float(gamma)), rtol=1e-5)


@pytest.mark.parametrize("two_pass", [True, False])
def test_jit_equals_no_jit(two_pass):
    tx = optax.chain(optax.adam(0.05), famo(3))
    run = lambda: train(tx, quadratic_losses, jnp.zeros(2), 20, two_pass=two_pass)
    with jax.disable_jit():
        eager = run()
    chex.assert_trees_all_close(run(), eager, rtol=1e-4, atol=1e-6)


def test_donated_state():
    bounds = jnp.zeros(3)
    tx = famo(3, min_losses=bounds)
    state = tx.init(None)
    step = jax.jit(lambda state, losses: tx.update((), state, losses=losses)[1], donate_argnums=0)
    for scale in (1.0, 0.9, 0.8):
        state = step(state, scale * jnp.ones(3))
    np.testing.assert_allclose(state.losses, 0.8, rtol=1e-6)
    assert not bounds.is_deleted()


def test_debug_nans_stays_usable(debug_nans):
    for two_pass in (True, False):
        tx = optax.chain(optax.adam(0.05), famo(3))
        (params, _), _ = train(tx, quadratic_losses, jnp.zeros(2), 10, two_pass=two_pass)
        assert np.isfinite(params).all()
    optimizer, state = logits_optimizer(), famo(2).init(None)
    with jax.disable_jit():  # where every primitive's result is looked at
        for _ in range(3):
            state = update_logits(state, state.losses, jnp.array([1.0, 2.0]), optimizer)
            jax.grad(weighted_loss)(jnp.array([1.0, 2.0]), state)


def test_under_checking_leaks():
    with jax.checking_leaks():
        tx = optax.chain(optax.adam(0.05), famo(3))
        jax.jit(lambda: train(tx, quadratic_losses, jnp.zeros(2), 3))()


def test_gradient_through_the_model_needs_one_backward_pass():
    """The weighted gradient is the pullback of the loss weights."""
    state = famo(3).init(None)._replace(logits=jnp.array([0.1, 0.5, -0.3]))
    params = jnp.array([0.3, -0.2])
    grads = jax.grad(lambda params: weighted_loss(quadratic_losses(params), state))(params)
    losses, pullback = jax.vjp(quadratic_losses, params)
    np.testing.assert_allclose(grads, pullback(loss_weights(losses, state))[0], rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("two_pass", [True, False])
def test_the_training_step_lowers_for(platform, two_pass):
    tx = optax.chain(optax.adam(0.05), famo(3))
    step = jax.jit(lambda params: train(tx, quadratic_losses, params, 2, two_pass=two_pass))
    exported = export.export(step, platforms=[platform])(jnp.zeros(2))
    assert exported.platforms == (platform,)


def test_map_params():
    tx = optax.chain(optax.adam(0.05), famo(3))
    params = {"w": jnp.ones(2)}
    mapped = optax.tree.map_params(tx, lambda leaf: leaf + 1, tx.init(params))
    np.testing.assert_array_equal(mapped[0][0].mu["w"], [1, 1])
    np.testing.assert_array_equal(mapped[1].logits, [0, 0, 0])
