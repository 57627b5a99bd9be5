"""Models in 16 bits, scaled losses, accumulated gradients: what the task weights then see."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import _method, famo, loss_weights, losses_and_grads, task_weights, weighted_loss
from famo_jax.weighting import ls

NUM_TASKS = 3
TASKS = np.array([0.3, 1.0, 3.0])  # their scales
TWO_PASS = pytest.mark.parametrize("two_pass", [False, True], ids=["one-pass", "two-pass"])


def init(seed):
    keys = jax.random.split(jax.random.key(seed))
    return {
        "kernel": jax.random.normal(keys[0], (8, 16)) / 3,
        "heads": jax.random.normal(keys[1], (16, NUM_TASKS)) / 4,
    }


RNG = np.random.default_rng(0)
X = RNG.normal(size=(1024, 8))
TARGET = TASKS * (
    np.sin(X @ RNG.normal(size=(8, NUM_TASKS)) / 2) + 0.3 * RNG.normal(size=(1024, 3))
)
DATA = (jnp.array(X, jnp.float32), jnp.array(TARGET, jnp.float32))


def task_losses(params, batch, dtype=jnp.float32):
    """The model computes in ``dtype``, the losses are float32 of what it says. ``[3]``."""
    x, y = batch
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    outputs = jnp.tanh(x.astype(dtype) @ params["kernel"]) @ params["heads"]
    return jnp.mean((outputs.astype(jnp.float32) - y) ** 2, axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def step(tx, losses_fn, two_pass, carry, batch):
    params, opt_state = carry
    losses_of = lambda params: losses_fn(params, batch)
    losses, grads = losses_and_grads(losses_of)(params, state=opt_state)
    extra = {"losses_fn": losses_of} if two_pass else {}
    updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
    return (optax.apply_updates(params, updates), opt_state), losses


# --- 16 bits --------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train_seeds(method, dtype, two_pass):
    """The losses on all data after 400 steps from each of eight seeds, ``[8, 3]``, and states."""
    tx = optax.chain(optax.adam(1e-2), method)
    losses_fn = functools.partial(task_losses, dtype=dtype)

    def train(seed):
        rows = jax.random.randint(jax.random.key(100 + seed), (400, 64), 0, 1024)
        batches = jax.tree.map(lambda leaf: leaf[rows], DATA)
        params = init(seed)
        carry = (params, tx.init(params))
        (params, opt_state), _ = jax.lax.scan(
            functools.partial(step, tx, losses_fn, two_pass), carry, batches
        )
        return task_losses(params, DATA), opt_state

    return jax.vmap(train)(jnp.arange(8))


@TWO_PASS
def test_training_in_bfloat16_ends_where_float32_does(two_pass):
    """Within a standard deviation over seeds in each loss, and by its mean within two errors."""
    method = famo(NUM_TASKS)
    exact, states = train_seeds(method, jnp.float32, two_pass)
    rounded, rounded_states = train_seeds(method, jnp.bfloat16, two_pass)
    chex.assert_trees_all_equal_dtypes(states, rounded_states)
    assert rounded_states[1].logits.dtype == jnp.float32
    assert np.any(exact != rounded)

    difference = np.log(rounded) - np.log(exact)
    noise = np.std(np.log(exact), axis=0, ddof=1)
    assert np.all(np.abs(difference.mean(axis=0)) < noise)
    logits, rounded_logits = states[1].logits, rounded_states[1].logits
    assert np.mean(np.abs(rounded_logits - logits)) < np.mean(np.std(logits, axis=0))
    # Other weights do make a difference.
    by_mean, _ = train_seeds(ls(), jnp.float32, False)
    assert np.any(np.abs(np.mean(np.log(by_mean) - np.log(exact), axis=0)) > noise)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("normalizer", ["harmonic", None])
def test_a_model_wholly_in_16_bits(half, normalizer):
    """Parameters and losses too: the weights are those of the rounded losses, to float32."""
    params = jax.tree.map(lambda leaf: leaf.astype(half), init(0))
    tx = optax.chain(optax.sgd(1e-2), famo(NUM_TASKS, normalizer=normalizer))
    carry = (params, tx.init(params))
    losses_fn = lambda params, batch: task_losses(params, batch, half).astype(half)
    for _ in range(3):
        carry, losses = step(tx, losses_fn, True, carry, DATA)
    params, opt_state = carry
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(half)}
    floating = [
        leaf for leaf in jax.tree.leaves(opt_state) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert {leaf.dtype for leaf in floating} == {jnp.dtype(jnp.float32)}
    assert losses.dtype == half
    # w = c z / D, in float64, of the losses as they are.
    z = np.exp(np.asarray(opt_state[1].logits, float))
    w = z / z.sum() / np.asarray(losses, float)
    w = w / w.sum() if normalizer else w
    in_half = loss_weights(losses, opt_state)
    assert in_half.dtype == half
    np.testing.assert_allclose(
        in_half.astype(float), w, rtol=float(jnp.finfo(half).eps)
    )  # rounded once


# --- Scaled losses --------------------------------------------------------------------------------

SCALE = 2.0**12


@functools.cache
def train_scaled(scale_loss, unscale, two_pass, scale_losses, normalizer):
    """50 steps whose gradients are ``scale_loss * scale_losses`` times too long, then unscaled."""
    bounds = -0.5 * scale_losses
    method = famo(NUM_TASKS, min_losses=bounds, normalizer=normalizer)
    tx = optax.chain(optax.scale(unscale), optax.adam(1e-2), method)
    losses_fn = lambda params: scale_losses * task_losses(params, DATA)

    def scaled_step(carry, _):
        params, opt_state = carry

        def loss_fn(params):
            losses = losses_fn(params)
            loss = weighted_loss(losses, opt_state)
            return scale_loss * loss, losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(params)
        extra = {"losses_fn": losses_fn} if two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return (optax.apply_updates(params, updates), opt_state), grads

    params = init(0)
    run = jax.jit(lambda carry: jax.lax.scan(scaled_step, carry, length=50))
    (params, opt_state), grads = run((params, tx.init(params)))
    return params, opt_state[-1].logits, jax.tree.map(lambda leaf: leaf[0], grads)


@TWO_PASS
def test_the_scale_of_the_weighted_loss_leaves_the_weights_unchanged(two_pass):
    """As dynamic loss scaling has it: the losses as they are, their weighted sum scaled."""
    params, logits, grads = train_scaled(1.0, 1.0, two_pass, 1.0, "harmonic")
    scaled_params, scaled_logits, scaled_grads = train_scaled(
        SCALE, 1 / SCALE, two_pass, 1.0, "harmonic"
    )
    chex.assert_trees_all_close(scaled_grads, jax.tree.map(lambda leaf: leaf * SCALE, grads))
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(scaled_logits, logits, rtol=1e-5)
    chex.assert_trees_all_close(scaled_params, params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("normalizer", "two_pass"),
    [("harmonic", True), ("harmonic", False), ("geometric", False), (None, False)],
)
def test_the_scale_of_all_losses_and_bounds_leaves_the_weights_unchanged(normalizer, two_pass):
    """The gradient is longer by the scale; without a normaliser it is what it was."""
    params, logits, grads = train_scaled(1.0, 1.0, two_pass, 1.0, normalizer)
    longer = SCALE if normalizer else 1.0
    scaled_params, scaled_logits, scaled_grads = train_scaled(
        1.0, 1 / longer, two_pass, SCALE, normalizer
    )
    expected = jax.tree.map(lambda leaf: leaf * longer, grads)
    chex.assert_trees_all_close(scaled_grads, expected, rtol=1e-4, atol=1e-6 * longer)
    np.testing.assert_allclose(scaled_logits, logits, rtol=1e-4)
    chex.assert_trees_all_close(scaled_params, params, rtol=1e-3, atol=1e-5)


def test_what_float16_would_lose_the_scale_saves():
    state = famo(2).init(None)
    params = jnp.array([0.5, 0.25], jnp.float16)

    def loss_fn(params, scale):
        losses = 1e-8 * (params.astype(jnp.float32) + 1) ** 2 + 1e-6
        return scale * weighted_loss(losses, state), losses

    grads, losses = jax.grad(loss_fn, has_aux=True)(params, 1.0)
    np.testing.assert_array_equal(grads, 0)
    scaled, same_losses = jax.grad(loss_fn, has_aux=True)(params, SCALE)
    np.testing.assert_array_equal(losses, same_losses)
    weights = np.asarray(loss_weights(losses, state), float)
    exact = weights * 2e-8 * (np.asarray(params, float) + 1)
    np.testing.assert_allclose(scaled.astype(float) / SCALE, exact, rtol=1e-2)


# --- Accumulated gradients ------------------------------------------------------------------------

MINI_BATCHES = [tuple(leaf[start : start + 64] for leaf in DATA) for start in range(0, 512, 64)]


def logits_after(changes):
    """What a lone ``famo`` learns from losses before and after, in turn."""
    tx = famo(NUM_TASKS)
    state = tx.init(None)
    for losses, new_losses in changes:
        _, state = tx.update((), state, losses=losses, new_losses=new_losses)
    return state.logits


@TWO_PASS
def test_inside_multi_steps_famo_sees_the_last_mini_batch(two_pass):
    """Of every four: before and after the step, or one-pass since the last of the four before."""
    tx = optax.MultiSteps(optax.chain(optax.sgd(0.05), famo(NUM_TASKS)), every_k_schedule=4)
    params = init(0)
    opt_state = tx.init(params)
    last, changes = None, []
    for number, batch in enumerate(MINI_BATCHES):
        before = params
        (params, opt_state), losses = step(tx, task_losses, two_pass, (params, opt_state), batch)
        if number % 4 < 3:
            chex.assert_trees_all_equal(params, before)
            continue
        if two_pass:
            changes.append((losses, task_losses(params, batch)))
        elif last is not None:
            changes.append((last, losses))
        last = losses
    logits = _method.find_state(opt_state).logits
    assert np.ptp(logits) > 0.01
    np.testing.assert_allclose(logits, logits_after(changes), rtol=1e-4)


def test_outside_of_multi_steps_one_pass_sees_every_mini_batch():
    sgd = optax.MultiSteps(optax.sgd(0.05), every_k_schedule=4).gradient_transformation()
    tx = optax.chain(sgd, famo(NUM_TASKS))
    params = init(0)
    carry, seen = (params, tx.init(params)), []
    for batch in MINI_BATCHES:
        carry, losses = step(tx, task_losses, False, carry, batch)
        seen.append(losses)
    changes = list(itertools.pairwise(seen))
    np.testing.assert_allclose(carry[1][1].logits, logits_after(changes), rtol=1e-4)


has_microbatch = pytest.mark.skipif(
    not hasattr(optax, "microbatch"), reason="optax.microbatch is newer than this Optax"
)
BATCH = jax.tree.map(lambda leaf: leaf[:512], DATA)


def some_state():
    """Weights that are neither equal nor of the losses alone."""
    return famo(NUM_TASKS).init(None)._replace(logits=jnp.array([1.0, -0.5, 0.2]))


def in_mini_batches(fun):
    """Over 64 rows at a time, and the mean of what ``fun(params, batch)`` returns."""
    mean = optax.microbatching.AccumulationType.MEAN
    return optax.microbatch(fun, argnums=1, microbatch_size=64, accumulator=mean)


@has_microbatch
def test_microbatched_losses_are_the_whole_batch_s():
    """Weighed once, so that losses, weights and gradient are those of the batch; less memory."""
    state = some_state()
    whole = jax.jit(lambda params: losses_and_grads(task_losses)(params, BATCH, state=state))
    mean_losses = in_mini_batches(jax.checkpoint(task_losses))
    parts = jax.jit(lambda params: losses_and_grads(mean_losses)(params, BATCH, state=state))
    params = init(0)
    chex.assert_trees_all_close(parts(params), whole(params), rtol=1e-5, atol=1e-7)
    memory = [
        run.lower(params).compile().memory_analysis().temp_size_in_bytes for run in (parts, whole)
    ]
    assert memory[0] < memory[1]


@has_microbatch
def test_microbatched_gradients_are_weighed_mini_batch_by_mini_batch():
    """The losses are the batch's, the gradient is the mean of those that each mini-batch weighs."""
    state, params = some_state(), init(0)
    each = losses_and_grads(task_losses)
    losses, grads = in_mini_batches(lambda params, batch: each(params, batch, state=state))(
        params, BATCH
    )
    np.testing.assert_allclose(losses, task_losses(params, BATCH), rtol=1e-5)

    # w = c z / D of each mini-batch, which is every eighth row, and its Jacobian.
    z = np.asarray(task_weights(state), float)
    expected = np.zeros((8, 16))
    for start in range(8):
        batch = tuple(leaf[start::8] for leaf in BATCH)
        d = np.asarray(task_losses(params, batch), float)
        w = z / d / np.sum(z / d)
        jacobian = jax.jacrev(task_losses)(params, batch)["kernel"]
        expected += np.tensordot(w, np.asarray(jacobian, float), axes=1) / 8
    np.testing.assert_allclose(grads["kernel"], expected, rtol=1e-4, atol=1e-6)
    _, of_batch = each(params, BATCH, state=state)
    assert not np.allclose(grads["kernel"], of_batch["kernel"], rtol=1e-2, atol=1e-4)
