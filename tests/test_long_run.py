"""A million updates with rough losses: nothing overflows, nothing wraps, nothing grows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import famo_jax
from famo_jax import famo, losses_and_grads
from tests.methods import LEARNED, WEIGHTING

K, STEPS = 4, 1_000_000
DECADES = 12  # losses from 1e-12 to 1e12, where eps = 1e-8
DRIFT = jnp.array([-3.0, 0.0, 0.0, 3.0])  # of the log losses in a step: it pulls always one way
GAMMA, BETA, RATE = 0.05, 0.5, 0.025
OPTIMIZERS = {"adam": None, "sgd": optax.sgd(BETA)}


def rough(key):
    """Losses before and after, ``[K]``, one in a hundred of which is none."""
    size_key, change_key, fault_key, kind_key = jax.random.split(key, 4)
    before = 10 ** jax.random.uniform(size_key, (K,), minval=-DECADES, maxval=DECADES)
    after = before * jnp.exp(DRIFT + 2 * jax.random.normal(change_key, (K,)))
    kinds = jax.random.choice(kind_key, jnp.array([jnp.nan, jnp.inf, -jnp.inf, -1.0, 0.0]), (2, K))
    faulty = jax.random.uniform(fault_key, (2, K)) < 0.01
    return jnp.where(faulty, kinds, jnp.stack([before, after]))


def all_finite(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


@pytest.fixture(scope="module", params=OPTIMIZERS)
def long_run(request):
    """The name, the last state, the largest logit and the largest range of a change ever met."""
    tx = famo(K, learning_rate=RATE, weight_decay=GAMMA, optimizer=OPTIMIZERS[request.param])

    def step(carry, number):
        state, largest, widest, sound = carry
        before, after = rough(jax.random.fold_in(jax.random.key(0), number))
        _, state = tx.update((), state, losses=before, new_losses=after)
        # What a loss without logarithm changes counts as zero.
        measured = jnp.isfinite(before) & jnp.isfinite(after) & (before >= 0) & (after >= 0)
        change = jnp.where(measured, jnp.log((before + 1e-8) / (after + 1e-8)), 0)
        return (
            state,
            jnp.maximum(largest, jnp.abs(state.logits).max()),
            jnp.maximum(widest, jnp.ptp(change)),
            sound & all_finite(state),
        ), None

    @functools.partial(jax.jit, static_argnums=0)
    def run(steps):
        carry = tx.init(None), jnp.zeros(()), jnp.zeros(()), jnp.array(True)
        return jax.lax.scan(step, carry, jnp.arange(steps))[0]

    return request.param, run(STEPS)


def test_nothing_overflows(long_run):
    name, (state, largest, widest, sound) = long_run
    assert sound
    assert widest > 25  # the losses were rough
    assert largest > 1  # and did move the logits
    if name == "adam":
        assert optax.tree.get(state.opt_state, "count") == STEPS


def test_the_logits_stay_within_their_bounds(long_run):
    """|delta| is at most a quarter of the change's range: over gamma, and with Adam 73 rates more.

    By SGD's recursion |xi'| <= (1 - beta gamma) |xi| + beta |delta|. Adam's step divides delta +
    gamma xi by the root of its mean square, so that it turns back once xi is beyond.
    """
    name, (_, largest, widest, _) = long_run
    bound = widest / 4 / GAMMA
    assert largest <= bound + (73 * RATE if name == "adam" else 0)


@pytest.mark.parametrize("name", LEARNED)
def test_one_pass_in_every_method_that_learns(name):
    """The weights stay finite; of FAMO, DWA and amortised MGDA they are on their simplex."""
    tx = WEIGHTING[name](K)

    @jax.jit
    def run():
        def step(carry, number):
            state, sound = carry
            losses, _ = rough(jax.random.fold_in(jax.random.key(1), number))
            _, state = tx.update((), state, losses=losses)
            weights = famo_jax.loss_weights(jnp.ones(K), state)
            return (state, sound & jnp.all(jnp.isfinite(weights) & (weights >= 0))), None

        return jax.lax.scan(step, (tx.init(None), jnp.array(True)), jnp.arange(STEPS // 10))[0]

    state, sound = run()
    assert sound
    if name in ("famo", "amortized_mgda", "dwa"):
        total = famo_jax.loss_weights(jnp.ones(K), state).sum()
        np.testing.assert_allclose(total, K if name == "dwa" else 1, rtol=1e-4)


# --- Counts ---------------------------------------------------------------------------------------

LAST = np.iinfo(np.int32).max


def with_counts(state, count):
    """The state as it is after that many steps."""
    return jax.tree.map(
        lambda leaf: jnp.array(count, leaf.dtype) if leaf.dtype == jnp.int32 else leaf, state
    )


@pytest.mark.parametrize(
    "tx",
    [
        famo(2),
        famo(2, learning_rate=optax.cosine_decay_schedule(0.1, 1000, alpha=0.5)),
        famo_jax.weighting.amortized_mgda(2),
        famo_jax.weighting.uw(2),
    ],
    ids=["famo", "famo with a schedule", "amortized_mgda", "uw"],
)
def test_counts_saturate(tx):
    """A count that wrapped would be negative, and Adam's bias correction with it NaN or huge."""
    _, state = tx.update((), tx.init(None), losses=jnp.array([1.0, 2.0]))
    state = with_counts(state, LAST - 2)
    update = jax.jit(lambda state, losses: tx.update((), state, losses=losses)[1])
    for step in range(5):
        before, state = state, update(state, jnp.array([1.0, 3.0 - step % 2]))
        counts = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]
        assert counts
        assert all(count == min(LAST - 2 + step + 1, LAST) for count in counts)
        learned = state[0], before[0]
        assert np.isfinite(learned).all()
        assert 0 < np.abs(learned[0] - learned[1]).max() < 0.2  # it goes on, at its rate


# --- Memory ---------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_steps():
    """Of a training run under scan, two-pass: the compiler's own figures, and the state's size."""
    tx = optax.chain(optax.adam(1e-3), famo(K))
    scales = 10 ** jnp.arange(K)

    def run(steps):
        def step(carry, _):
            params, opt_state = carry
            losses_fn = lambda params: scales * (jnp.mean(params**2) + 1)
            losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
            updates, opt_state = tx.update(
                grads, opt_state, params, losses=losses, losses_fn=losses_fn
            )
            return (optax.apply_updates(params, updates), opt_state), None

        params = jnp.ones(100)
        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]

    sizes = set()
    for steps in (1_000, STEPS):
        memory = jax.jit(run, static_argnums=0).lower(steps).compile().memory_analysis()
        sizes.add((memory.temp_size_in_bytes, memory.output_size_in_bytes))
    assert len(sizes) == 1
    assert sizes.pop()[0] < 10_000
