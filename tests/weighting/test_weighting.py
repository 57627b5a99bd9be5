"""What holds for every weighting method, one parametrised test each."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import famo, losses_and_grads, weighted_loss, weighting
from famo_jax import loss_weights as weigh
from tests.methods import ORDERED, WEIGHTING

K = 3
METHODS = {name: lambda make=make: make(K) for name, make in WEIGHTING.items()} | {
    "ls with weights": lambda: weighting.ls([0.5, 2.0, 1.0]),
    "si with bounds": lambda: weighting.si(min_losses=[0.1, -1.0, 0.2]),
    "dwa at a temperature": lambda: weighting.dwa(K, temperature=0.5),
    "famo without c, smoothed": lambda: famo(K, normalizer=None, smoothing=0.9),
    "gls with bounds": lambda: weighting.gls(K, min_losses=[0.1, -1.0, 0.2]),
    "stch with a preference": lambda: weighting.stch(K, mu=0.1, weights=[0.2, 0.5, 0.3]),
    "stch in its warm-up": lambda: weighting.stch(K, warmup=100),
    "stch of the losses": lambda: weighting.stch(K),
    "ldc_mtl on the losses": lambda: weighting.ldc_mtl(K, normalization=None),
    "ldc_mtl on logarithms": lambda: weighting.ldc_mtl(K, normalization="logarithmic"),
    "softadapt by losses": lambda: weighting.softadapt(K, order=2, variant="loss_weighted"),
    "softadapt, normalized": lambda: weighting.softadapt(K, order=3, variant="normalized"),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())
TARGETS = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
SCALES = jnp.array([0.1, 1.0, 10.0])


def losses_fn(params):
    return SCALES * jnp.sum((params - TARGETS) ** 2, axis=1) + 0.3


def advanced(tx, steps=5, seed=0):
    """The state after some updates, as a method has it in use."""
    rng, state = np.random.default_rng(seed), tx.init(None)
    for _ in range(steps):
        _, state = tx.update((), state, losses=jnp.array(rng.uniform(0.5, 3, K), jnp.float32))
    return state


@every_method
def test_the_state_is_its_own_type_and_keeps_structure(make):
    tx = make()
    state = tx.init({"w": jnp.ones(2, jnp.bfloat16)})
    assert type(state).__name__.endswith("State")
    assert not isinstance(state, optax.EmptyState)
    out, updated = tx.update({"w": jnp.ones(2)}, state, losses=jnp.ones(K))
    chex.assert_trees_all_equal(out, {"w": jnp.ones(2)})  # untouched
    chex.assert_trees_all_equal_structs(state, updated)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(updated), strict=True):
        assert before.aval == after.aval


@every_method
def test_weights_are_the_gradient_and_one_backward_pass_suffices(make):
    state, params = advanced(make()), jnp.array([0.4, -0.7])
    losses, grads = losses_and_grads(losses_fn)(params, state=state)
    weights = weigh(losses, state)
    np.testing.assert_allclose(weights, jax.grad(weighted_loss)(losses, state), rtol=1e-6)
    jacobian = jax.jacobian(losses_fn)(params)
    np.testing.assert_allclose(grads, weights @ jacobian, rtol=1e-5)


@every_method
@pytest.mark.parametrize("absent", [np.nan, np.inf, -5.0])
def test_an_absent_task_leaks_nowhere_and_the_others_keep_their_weights(make, absent):
    tx = make()
    state = advanced(tx)
    where = jnp.array([True, False, True])
    full, partial = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, absent, 3.0])
    _, state = tx.update((), state, losses=full)  # some weigh an absent task by the loss last seen
    weights = weigh(partial, state, where=where)
    np.testing.assert_allclose(weights, jnp.where(where, weigh(full, state), 0), rtol=1e-6)
    assert weights[1] == 0
    assert np.isfinite(weighted_loss(partial, state, where=where))
    _, updated = tx.update((), state, losses=partial, where=where)
    for leaf in jax.tree.leaves(updated):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all()
    assert weighted_loss(partial, state, where=False) == 0
    np.testing.assert_array_equal(weigh(partial, state, where=False), [0, 0, 0])


ALONE = {  # of K tasks, and of the first two
    "gls": weighting.gls,
    "uw_so": weighting.uw_so,
    "stch": lambda k: weighting.stch(k, weights=[0.2, 0.5, 0.3][:k]),
    "go4align": lambda k: weighting.go4align(k, num_groups=1),
    "ldc_mtl": weighting.ldc_mtl,
    "relobralo": lambda k: weighting.relobralo(k, key=0, alpha=0.5, rho=0.5),
}


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE.keys())
def test_a_task_that_was_never_seen_takes_no_part(make):
    """The weights of the others are as if there were no more of them."""
    rng, two, three = np.random.default_rng(0), make(K - 1), make(K)
    states = [two.init(None), three.init(None)]
    where = jnp.array([True, True, False])
    for _ in range(5):
        losses = jnp.array([*rng.uniform(0.5, 3, K - 1), np.nan], jnp.float32)
        expected = weigh(losses[:-1], states[0])
        weights = weigh(losses, states[1], where=where)
        np.testing.assert_allclose(weights, [*expected, 0], rtol=1e-5)
        _, states[0] = two.update((), states[0], losses=losses[:-1])
        _, states[1] = three.update((), states[1], losses=losses, where=where)
    never = three.init(None)
    assert weighted_loss(losses, never, where=False) == 0
    np.testing.assert_array_equal(weigh(losses, never, where=False), [0, 0, 0])


@every_method
def test_named_losses_and_bfloat16(make):
    state = advanced(make())
    losses = {"b": jnp.bfloat16(2.0), "a": jnp.bfloat16(1.0), "c": jnp.bfloat16(3.0)}
    weights = weigh(losses, state)
    flat = weigh(jnp.array([1.0, 2.0, 3.0]), state)
    assert {weight.dtype for weight in weights.values()} == {jnp.dtype(jnp.bfloat16)}
    named = [np.float32(weights[name]) for name in "abc"]
    np.testing.assert_allclose(named, flat, rtol=1e-2)
    assert weighted_loss(losses, state).dtype == jnp.float32


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith(ORDERED)])
def test_permuting_tasks_permutes_the_weights(name):
    """With the state's arrays over tasks permuted along."""
    state = advanced(METHODS[name]())
    order = jnp.array([2, 0, 1])
    permuted = jax.tree.map(
        lambda leaf: leaf[..., order] if leaf.shape[-1:] == (K,) else leaf, state
    )
    losses = jnp.array([1.0, 2.0, 5.0])
    np.testing.assert_allclose(
        weigh(losses[order], permuted), weigh(losses, state)[order], rtol=1e-5
    )


@every_method
def test_under_scan_vmap_and_donation(make):
    tx = optax.chain(optax.sgd(1e-3), make())

    def run(params):
        def step(carry, _):
            params, opt_state = carry
            losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
            updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
            return (optax.apply_updates(params, updates), opt_state), losses

        return jax.lax.scan(step, (params, tx.init(params)), length=20)

    starts = jnp.array([[0.5, 0.5], [2.0, -1.0]])
    (params, _opt_state), losses = jax.jit(jax.vmap(run))(starts)
    assert np.isfinite(losses).all()
    (alone, _), _ = run(starts[1])
    np.testing.assert_allclose(params[1], alone, rtol=1e-4, atol=1e-6)
    assert np.abs(params - starts).max() > 1e-4
    step = jax.jit(lambda state: make().update((), state, losses=jnp.ones(K))[1], donate_argnums=0)
    state = make().init(None)
    for _ in range(3):
        state = step(state)


@every_method
def test_default_float_dtype(make, x64):
    for leaf in jax.tree.leaves(make().init({"w": jnp.ones(2, jnp.float32)})):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float64
