"""Where a method stands in its chain, and what is said when it stands elsewhere."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import TrainState, famo, losses_and_grads, task_weights
from famo_jax.aggregation import graddrop, mgda, nash_mtl, pcgrad
from famo_jax.weighting import amortized_mgda, uw

# In Optax since 0.2.7.
aggregating = getattr(getattr(optax, "experimental", None), "aggregating", None)

needs_ordered_names = pytest.mark.skipif(
    not isinstance(optax.named_chain().init(None), collections.OrderedDict),
    reason="its state was a dict, whose keys jit sorts, before Optax 0.2.7",
)

PARAMS = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}
ADAM = optax.adam(1e-2)


def losses_fn(params):
    targets = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    return jnp.sum((params["w"] - targets + params["b"]) ** 2, axis=1) + 0.1


def step(tx):
    """One training step of any method."""
    opt_state = tx.init(PARAMS)
    losses, grads = losses_and_grads(losses_fn)(PARAMS, state=opt_state)
    return tx.update(grads, opt_state, PARAMS, losses=losses)


# --- An aggregation method stands first -----------------------------------------------------------


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(ADAM, mgda()),
        optax.chain(optax.identity(), mgda()),
        optax.chain(ADAM, mgda(), optax.scale(2.0)),
        optax.chain(optax.clip(1.0), optax.scale(1.0), pcgrad(key=0), ADAM),
        optax.chain(ADAM, optax.chain(graddrop(key=0), optax.scale(1.0))),
        pytest.param(
            optax.named_chain(("adam", ADAM), ("mgda", mgda())), marks=needs_ordered_names
        ),
        optax.apply_if_finite(optax.chain(ADAM, mgda()), 3),
    ],
)
def test_an_aggregation_method_behind_another_link_is_an_error(tx):
    """In 0.1 Adam made moments of K rows without a word."""
    match = r"expected an aggregation method first .*`chain\(mgda\(\), adam\)`, not `chain\(adam, m"
    with pytest.raises(ValueError, match=match):
        losses_and_grads(losses_fn)(PARAMS, state=tx.init(PARAMS))
    with pytest.raises(ValueError, match=match):  # and where values cannot be seen
        jax.jit(losses_and_grads(losses_fn))(PARAMS, state=tx.init(PARAMS))


@pytest.mark.parametrize(
    "tx",
    [
        mgda(),
        optax.chain(mgda(), ADAM),
        optax.chain(optax.chain(mgda(), optax.scale(3.0)), ADAM),
        optax.named_chain(("mgda", mgda()), ("adam", ADAM)),
        optax.chain(mgda(), optax.MultiSteps(ADAM, 2).gradient_transformation()),
    ],
)
def test_first_it_trains(tx):
    updates, _ = step(tx)
    assert jax.tree.map(jnp.shape, updates) == {"w": (2,), "b": ()}


@pytest.mark.parametrize(
    ("tx", "names"),
    [
        (optax.chain(ADAM, famo(3), uw(3)), "FamoState and UwState"),
        (optax.chain(mgda(), ADAM, famo(3)), "MgdaState and FamoState"),
        (optax.chain(mgda(), nash_mtl()), "MgdaState and NashMtlState"),
    ],
)
def test_two_methods_in_a_chain_are_an_error(tx, names):
    with pytest.raises(ValueError, match=f"of exactly one method, got {names}: a chain has one"):
        losses_and_grads(losses_fn)(PARAMS, state=tx.init(PARAMS))


# --- A method that evaluates `losses_fn` stands last ----------------------------------------------


@pytest.mark.parametrize("method", [famo(3), amortized_mgda(3)])
@pytest.mark.parametrize(
    "chain",
    [
        optax.chain,
        pytest.param(
            lambda *links: optax.named_chain(*zip("ab", links, strict=True)),
            marks=needs_ordered_names,
        ),
    ],
)
def test_two_pass_famo_before_another_link_is_an_error_of_the_train_state(method, chain):
    """Which alone sees both the chain and ``losses_fn``."""
    extra = {"losses": losses_fn(PARAMS), "losses_fn": losses_fn}
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    wrong = TrainState.create(apply_fn=None, params=PARAMS, tx=chain(method, ADAM))
    with pytest.raises(ValueError, match=r"`losses_fn`: expected the method last .* place 1 of 2"):
        wrong.apply_gradients(grads=grads, **extra)
    wrong.apply_gradients(grads=grads, losses=extra["losses"])  # one-pass may stand anywhere
    right = TrainState.create(apply_fn=None, params=PARAMS, tx=chain(ADAM, method))
    right.apply_gradients(grads=grads, **extra)


def test_two_pass_famo_before_a_link_looks_where_the_updates_do_not_lead():
    """What cannot be known in ``update``, and is documented: it sees the raw gradient."""
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    seen = {}
    for name, links in {
        "first": (famo(3), optax.sgd(0.1)),
        "last": (optax.sgd(0.1), famo(3)),
    }.items():
        tx = optax.chain(*links)
        _, state = tx.update(
            grads, tx.init(PARAMS), PARAMS, losses=losses_fn(PARAMS), losses_fn=losses_fn
        )
        seen[name] = np.asarray(next(link.losses for link in state if hasattr(link, "logits")))
    at = lambda rate: losses_fn(jax.tree.map(lambda p, g: p + rate * g, PARAMS, grads))
    np.testing.assert_allclose(seen["last"], at(-0.1), rtol=1e-6)
    np.testing.assert_allclose(seen["first"], at(1.0), rtol=1e-6)


# --- Optax's own contract -------------------------------------------------------------------------

needs_process = pytest.mark.skipif(aggregating is None, reason="Optax before 0.2.7")


@pytest.mark.parametrize("method", [mgda(), nash_mtl(), pcgrad(key=0), graddrop(key=0)])
@needs_process
def test_inside_process_it_is_the_chain(method):
    """Optax's words: per-element gradients, the elements being the tasks."""
    adam = optax.with_extra_args_support(ADAM)
    chained = optax.chain(method, adam)
    processed = aggregating.process(optax.with_extra_args_support(optax.identity()), method, adam)

    def train(tx):
        @jax.jit
        def train_step(params, opt_state):
            losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
            where = jnp.array([True, True, False])
            updates, opt_state = tx.update(grads, opt_state, params, losses=losses, where=where)
            return optax.apply_updates(params, updates), opt_state

        params, opt_state = PARAMS, tx.init(PARAMS)
        for _ in range(3):
            params, opt_state = train_step(params, opt_state)
        return params

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), train(chained), train(processed)
    )


@needs_process
def test_a_preprocessor_sees_the_gradient_of_each_task():
    """Each task's gradient brought to a length of at most 1, and then aggregated."""
    clip_each = jax.vmap(lambda tree: optax.projections.projection_l2_ball(tree, 1.0))
    tx = aggregating.process(
        optax.stateless(lambda grads, _: clip_each(grads)), pcgrad(key=0), optax.identity()
    )
    opt_state = tx.init(PARAMS)
    _, grads = losses_and_grads(losses_fn)(PARAMS, state=opt_state)
    updates, _ = tx.update(grads, opt_state, PARAMS)
    expected, _ = pcgrad(key=0).update(clip_each(grads), pcgrad(key=0).init(None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
    without, _ = pcgrad(key=0).update(grads, pcgrad(key=0).init(None))
    assert abs(updates["b"] - without["b"]) > 1e-2


@needs_process
def test_a_weighting_method_passes_on_what_it_gets_inside_process():
    tx = aggregating.process(
        optax.with_extra_args_support(optax.identity()),
        aggregating.Aggregator(optax.init_empty_state, lambda g, s, *_, **__: (g, s)),
        optax.chain(ADAM, famo(3)),
    )
    opt_state = tx.init(PARAMS)
    losses, grads = losses_and_grads(losses_fn)(PARAMS, state=opt_state)
    _, opt_state = tx.update(grads, opt_state, PARAMS, losses=losses)
    _, opt_state = tx.update(grads, opt_state, PARAMS, losses=losses * jnp.array([1.0, 1.0, 2.0]))
    assert np.argmax(task_weights(opt_state)) == 2
