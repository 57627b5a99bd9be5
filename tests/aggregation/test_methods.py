"""What all aggregation methods have in common: masks, transformations of JAX, the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import losses_and_grads, weighted_loss
from famo_jax.aggregation import pcgrad
from tests.methods import AGGREGATION, HEADS, RANDOM, SCALED, WEIGHTS

METHODS = dict(AGGREGATION)
all_methods = pytest.mark.parametrize("name", METHODS)

RNG = np.random.default_rng(0)
X = jnp.array(RNG.normal(size=(32, 6)), jnp.float32)
Y = jnp.array(RNG.normal(size=(32, 2)), jnp.float32)
PARAMS = {
    "trunk": jnp.array(RNG.normal(size=(6, 4)), jnp.float32),
    "heads": {name: jnp.array(RNG.normal(size=4), jnp.float32) for name in ("depth", "seg")},
}
ROWS = jnp.ones((3, 4))


def losses_fn(params, x=X):
    """Two tasks on one trunk, each with a head of its own."""
    features = jnp.tanh(x @ params["trunk"])
    outputs = {name: features @ head for name, head in params["heads"].items()}
    return {
        "depth": jnp.mean((outputs["depth"] - Y[:, 0]) ** 2),
        "seg": 10 * jnp.mean((outputs["seg"] - Y[:, 1]) ** 2),
    }


def method(name, grads, **kwargs):
    """Of as many tasks as these gradients are of, with its first state. Every update has losses."""
    num_tasks = len(jax.tree.leaves(grads)[0])
    tx = METHODS[name](num_tasks, **kwargs)

    def update(*args, losses=None, **kwargs):
        return tx.update(*args, losses=jnp.ones(num_tasks) if losses is None else losses, **kwargs)

    params = jax.tree.map(lambda leaf: leaf[0], grads)
    return optax.GradientTransformationExtraArgs(tx.init, update), tx.init(params)


def task_grads(name, params=PARAMS, **kwargs):
    state = METHODS[name](2).init(params)
    return losses_and_grads(losses_fn)(params, state=state, **kwargs)[1]


# --- Task heads -----------------------------------------------------------------------------------


@all_methods
def test_heads(name):
    """They get a gradient at the scale of the trunk's: its weights, the mean or the sum."""
    grads = task_grads(name)
    tx, state = method(name, grads, shared={"trunk": True, "heads": False})
    gradient, _ = tx.update(grads, state, PARAMS)
    trunk = np.asarray(grads["trunk"], float).reshape(2, -1)

    # The weights that made the trunk's gradient of the tasks'.
    weights = np.linalg.lstsq(trunk.T, np.ravel(gradient["trunk"]), rcond=None)[0]
    if name in WEIGHTS:
        np.testing.assert_allclose(weights, WEIGHTS[name](trunk @ trunk.T), rtol=1e-3)
    of_sum = jax.grad(lambda params: sum(losses_fn(params).values()))(PARAMS)
    for index, (task, head) in enumerate(gradient["heads"].items()):
        if name not in HEADS:
            weight = weights[index]
            expected = (
                weight
                * jax.grad(lambda params, task=task: losses_fn(params)[task])(PARAMS)["heads"][task]
            )
        else:
            expected = of_sum["heads"][task] / (1 if HEADS[name] == "sum" else 2)
        np.testing.assert_allclose(head, expected, rtol=1e-3, atol=1e-6)
    # The heads' gradients decide nothing.
    alone, state = method(name, {"trunk": grads["trunk"]})
    by_trunk, _ = alone.update({"trunk": grads["trunk"]}, state)
    np.testing.assert_allclose(gradient["trunk"], by_trunk["trunk"], rtol=1e-4, atol=1e-6)


@all_methods
def test_everything_is_shared_by_default(name):
    grads = task_grads(name)
    results = []
    for shared in (None, True, lambda params: jax.tree.map(lambda _: True, params)):
        tx, state = method(name, grads, shared=shared)
        results.append(tx.update(grads, state, PARAMS)[0])
    jax.tree.map(np.testing.assert_array_equal, *results[:2])
    jax.tree.map(np.testing.assert_array_equal, *results[1:])


# --- Tasks that are absent ------------------------------------------------------------------------


@all_methods
def test_absent_tasks_are_left_out(name):
    """The same as without them, whatever their gradients hold."""
    rows = jnp.array(np.random.default_rng(0).normal(size=(3, 12)), jnp.float32)
    where = jnp.array([True, False, True, True, False])
    padded = jnp.full((5, 12), jnp.nan).at[4].set(7).at[jnp.flatnonzero(where)].set(rows)
    tx, state = method(name, padded)
    gradient, _ = jax.jit(tx.update)(padded, state, where=where)
    if name in ("pcgrad", "gradvac"):  # their orders differ: two tasks, for which it matters not
        where, rows = where.at[0].set(False), rows[1:]
        gradient, _ = tx.update(padded, state, where=where)
    tx, state = method(name, rows)
    expected, _ = tx.update(rows, state)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=1e-5)
    if name in WEIGHTS:
        gram = padded @ padded.T
        weights = WEIGHTS[name](gram, where=where)
        assert np.all(weights[~where] == 0)
        np.testing.assert_allclose(weights[where], WEIGHTS[name](rows @ rows.T), rtol=1e-3)


@all_methods
def test_with_all_absent_the_gradient_is_zero(name):
    rows = jnp.full((3, 4), jnp.nan)
    tx, state = method(name, rows)
    gradient, _ = tx.update(rows, state, where=jnp.zeros(3, bool))
    np.testing.assert_array_equal(gradient, 0)


@all_methods
def test_where_takes_the_structure_of_the_losses(name):
    losses = losses_fn(PARAMS)
    grads = task_grads(name)
    tx, state = method(name, grads)
    results = [
        tx.update(grads, state, PARAMS, losses=losses, where=where)[0]
        for where in ([True, False], jnp.array([True, False]), {"depth": True, "seg": False})
    ]
    for result in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, result, results[0])
    np.testing.assert_array_equal(results[0]["heads"]["seg"], 0)
    kept, _ = tx.update(grads, state, PARAMS, losses=losses, where=True)
    plain, _ = tx.update(grads, state, PARAMS, losses=losses)
    jax.tree.map(np.testing.assert_array_equal, kept, plain)


@all_methods
def test_a_gradient_that_is_not_finite_shows(name):
    rows = jnp.ones((3, 4)).at[1, 2].set(jnp.nan)
    tx, start = method(name, rows)
    gradient, state = jax.jit(tx.update)(rows, start)
    assert np.isnan(gradient[2])
    if name != "graddrop":
        assert np.all(np.isnan(gradient))
    assert jax.tree.structure(state) == jax.tree.structure(start)
    # What is remembered is sound: the next step is what it had been without that one.
    sound = jnp.array(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    gradient, after = tx.update(sound, state)
    assert np.all(np.isfinite(gradient))
    if name not in RANDOM:
        expected, expected_after = tx.update(sound, start)
        remembered = name in ("db_mtl", "moco", "excess_mtl")  # of the other tasks, that were sound
        if not remembered:
            np.testing.assert_array_equal(gradient, expected)
            jax.tree.map(np.testing.assert_array_equal, after, expected_after)
    numbers = [leaf for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(np.all(np.isfinite(leaf)) for leaf in numbers)


# --- Transformations ------------------------------------------------------------------------------


@all_methods
def test_jit_vmap_scan(name):
    rows = jnp.array(np.random.default_rng(0).normal(size=(6, 4, 9)), jnp.float32)
    rows = rows.at[2, 1].set(-rows[2, 0]).at[3, 1].set(0).at[4, 1].set(rows[4, 0])
    tx, state = method(name, rows[0])
    update = jax.jit(tx.update)
    one_by_one = jnp.stack([update(each, state)[0] for each in rows])
    mapped, _ = jax.jit(jax.vmap(tx.update, in_axes=(0, None)))(rows, state)
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-3, atol=1e-3)

    def step(state, each):
        gradient, state = tx.update(each, state)
        return state, gradient

    last, scanned = jax.lax.scan(step, state, rows)
    for each, result in zip(rows, scanned, strict=True):
        expected, state = update(each, state)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.all(a == b), last, state)))


@all_methods
def test_no_host_callbacks(name):
    text = str(jax.make_jaxpr(method(name, ROWS)[0].update)(ROWS, method(name, ROWS)[1]))
    assert "callback" not in text


def products(jaxpr):
    """All matrix products, those in loops too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda node: hasattr(node, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@all_methods
def test_products_are_in_full_precision(name):
    """Accelerators would round the factors."""
    tx, state = method(name, ROWS)
    found = list(products(jax.make_jaxpr(tx.update)(ROWS, state).jaxpr))
    assert len(found) >= (0 if name == "graddrop" else 1)
    for equation in found:
        assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


@all_methods
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_update_changes_no_dtype_and_no_structure(name, dtype):
    grads = {"a": jnp.ones((2, 3), dtype), "b": jnp.ones(2)}
    tx, state = method(name, grads)
    assert type(state).__name__.lower() == name.replace("_", "") + "state"
    gradient, new_state = tx.update(grads, state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), gradient) == {
        "a": ((3,), dtype),
        "b": ((), jnp.float32),
    }
    assert type(new_state) is type(state)
    for new, old in zip(jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


@all_methods
def test_gradients_that_nearly_vanish_or_cancel_stay_finite(name, dtype):
    rng = np.random.default_rng(0)
    for _ in range(2):
        direction = rng.normal(size=6)
        rows = np.stack([direction, -direction, 1e-6 * rng.normal(size=6), 0 * direction])
        for scale in (1e-12, 1.0, 1e12):
            grads = jnp.array(scale * rows, dtype)
            tx, state = method(name, grads)
            gradient, _ = tx.update(grads, state)
            assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("scale", [1e-18, 1e18])
@all_methods
def test_the_range_of_norms_in_float32(name, scale):
    """At its ends, as the package's docstring states it, the direction is still that of scale 1."""
    rows = np.array([[1.0, 0.0, 0.5], [0.0, 2.0, 0.5], [-0.3, 0.1, 1.0]])
    scaled = [jnp.array(each * rows, jnp.float32) for each in (scale, 1.0)]
    tx, state = method(name, scaled[0])
    small, plain = (tx.update(each, state)[0] for each in scaled)
    assert np.all(np.isfinite(small))
    if name in SCALED:
        return
    unit = [
        np.asarray(each, float) / np.linalg.norm(np.asarray(each, float)) for each in (small, plain)
    ]
    np.testing.assert_allclose(*unit, atol=1e-4)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_gram_matrices_under_jit_and_vmap(name):
    rows = jnp.array(np.random.default_rng(0).normal(size=(5, 3, 8)), jnp.float32)
    grams = rows @ jnp.swapaxes(rows, 1, 2)
    mapped = jax.vmap(jax.jit(WEIGHTS[name]))(grams)
    for gram, weights in zip(grams, mapped, strict=True):
        np.testing.assert_allclose(weights, WEIGHTS[name](np.asarray(gram)), rtol=1e-3, atol=1e-5)


# --- The training step ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chunk_size"), [*((name, None) for name in METHODS), ("nash_mtl", 1)]
)
def test_the_training_step_of_any_method(name, chunk_size):
    tx = optax.chain(METHODS[name](2), optax.adam(1e-2))

    @jax.jit
    def train_step(params, opt_state):
        losses, grads = losses_and_grads(losses_fn, chunk_size=chunk_size)(params, state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = PARAMS, tx.init(PARAMS)
    for _ in range(100):
        params, opt_state = train_step(params, opt_state)
    before, after = losses_fn(PARAMS), losses_fn(params)
    assert all(after[task] < 0.9 * before[task] for task in before)


@all_methods
def test_outside_of_multi_steps(name):
    tx = optax.chain(METHODS[name](2), optax.MultiSteps(optax.sgd(0.1), 2))
    grads, losses = task_grads(name), losses_fn(PARAMS)
    state = tx.init(PARAMS)
    first, state = tx.update(grads, state, PARAMS, losses=losses)
    second, state = tx.update(grads, state, PARAMS, losses=losses)
    np.testing.assert_array_equal(first["trunk"], 0)
    assert np.any(second["trunk"] != 0)


@all_methods
def test_weighted_loss_points_to_losses_and_grads(name):
    with pytest.raises(ValueError, match="use `losses_and_grads`"):
        weighted_loss(jnp.ones(2), METHODS[name](2).init(PARAMS))


def test_keys():
    by_seed, by_key = pcgrad(key=3).init(None), pcgrad(key=jax.random.key(3)).init(None)
    assert by_seed.rng_key == by_key.rng_key
    assert jnp.issubdtype(by_seed.rng_key.dtype, jax.dtypes.prng_key)
    assert pcgrad(key=np.int32(3)).init(None).rng_key == by_key.rng_key
