"""Training on eight devices, as `test_devices.py` runs it: JAX must find them when it starts."""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from famo_jax import famo
from tests.methods import AGGREGATION, DIRECTING, FROM_CHANGES

from .problem import (
    BY_SLOPE,
    NUM_TASKS,
    SGD,
    TX,
    arrays,
    encode,
    head_losses,
    learnt,
    mean_errors,
    problem,
    remembered,
    task_losses,
    train,
    train_step,
)

try:
    from jax import set_mesh, shard_map
except ImportError:  # older JAX
    from jax.experimental.shard_map import shard_map
    from jax.sharding import use_mesh as set_mesh

CASES = [(name, False) for name in TX if name != BY_SLOPE]
CASES += [(name, True) for name in (*FROM_CHANGES, BY_SLOPE)]
every_method = pytest.mark.parametrize(("name", "two_pass"), CASES)

# Of each parameter a part on every device. Of the kernel columns: task gradients that are
# sharded so cannot be laid end to end, row after row, without gathering them.
EVERYWHERE = P()
SHARDED = {"kernel": P(None, "data"), "bias": P("data"), "heads": P("data")}


class Run(NamedTuple):
    """What a run began with, what it ended with, and how it was compiled."""

    start: Any
    end: Any
    losses: np.ndarray
    compiled: Any


@functools.cache
def mesh():
    devices = jax.devices()
    assert len(devices) == 8
    return Mesh(np.array(devices), ("data",))


def place(tree, specs, mesh):
    """Sharded so; ``specs`` is one for all leaves or structured as the tree."""
    is_spec = lambda node: isinstance(node, P)
    shardings = jax.tree.map(functools.partial(NamedSharding, mesh), specs, is_leaf=is_spec)
    return jax.device_put(tree, shardings)


def init(tx, params, mesh):
    """State shaped as the parameters is sharded as they are, all other is on every device."""
    on_one = lambda leaf: len(leaf.sharding.device_set) == 1
    return jax.tree.map(
        lambda leaf: place(leaf, EVERYWHERE, mesh) if on_one(leaf) else leaf, tx.init(params)
    )


def averaged(losses_fn):
    """Over the axis of a `shard_map`, each of whose devices has its part of the batch."""
    return lambda params, batch: jax.lax.pmean(losses_fn(params, batch), "data")


def over_devices(step, params=EVERYWHERE, state=EVERYWHERE):
    return shard_map(
        step,
        mesh=mesh(),
        in_specs=(params, state, P("data")),
        out_specs=(params, state, EVERYWHERE),
    )


@functools.cache
def run(name, two_pass, how):
    tx = TX[name]
    params, batch = problem()
    step = train_step(tx, two_pass=two_pass)
    if how == "one device":
        state = tx.init(params)
    else:
        specs = SHARDED if how == "sharded parameters" else EVERYWHERE
        params, batch = place(params, specs, mesh()), place(batch, P("data"), mesh())
        state = init(tx, params, mesh())
    if how == "shard_map":
        losses_fn = averaged(task_losses)
        step = over_devices(train_step(tx, two_pass=two_pass, task_losses=losses_fn))
    return Run((params, state), *train(step, params, state, batch))


def assert_same(ours, expected):
    """Parameters, losses and what the method learns, to 1e-5 of the largest entry.

    Remembered gradients, differences of what nearly cancels in the end, to 1e-4.
    """
    params, state = ours.end
    expected_params, expected_state = expected.end
    compared = (params, ours.losses, learnt(state))
    others = (expected_params, expected.losses, learnt(expected_state))
    for leaf, other in zip(arrays(compared), arrays(others), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-5 * np.max(np.abs(other)))
    pairs = zip(arrays(remembered(state)), arrays(remembered(expected_state)), strict=True)
    for leaf, other in pairs:
        np.testing.assert_allclose(leaf, other, atol=1e-4 * np.max(np.abs(other)))


# --- The same training ----------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("how", ["jit", "shard_map", "sharded parameters"])
def test_trains_as_on_one_device(name, two_pass, how):
    ours, expected = run(name, two_pass, how), run(name, two_pass, "one device")
    assert_same(ours, expected)
    assert np.all(expected.losses[-1, 2] < 0.8 * expected.losses[0, 2])
    kept = jax.tree.map(
        lambda start, end: start.sharding.is_equivalent_to(end.sharding, start.ndim),
        ours.start,
        ours.end,
    )
    assert all(jax.tree.leaves(kept)), kept
    kernel = ours.end[0]["kernel"]
    sharded = how == "sharded parameters"
    assert kernel.addressable_shards[0].data.shape == (16, 4 if sharded else 32)


def test_famo_with_parameters_sharded_in_shard_map():
    """Gathered inside the losses, so that the gradient of a shard is the shard of the gradient."""
    tx = optax.chain(SGD, famo(NUM_TASKS))  # clipping would see the norm of a shard alone
    params, batch = problem()
    step = train_step(tx, two_pass=True)
    expected = Run(None, *train(step, params, tx.init(params), batch))
    params, batch = place(params, SHARDED, mesh()), place(batch, P("data"), mesh())
    state = init(tx, params, mesh())

    def losses_fn(shards, batch):
        whole = {
            key: jax.lax.all_gather(shard, "data", axis=SHARDED[key].index("data"), tiled=True)
            for key, shard in shards.items()
        }
        return averaged(task_losses)(whole, batch)

    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
    step = train_step(tx, two_pass=True, task_losses=losses_fn)
    step = over_devices(step, params=SHARDED, state=specs)
    assert_same(Run(None, *train(step, params, state, batch)), expected)


@pytest.mark.parametrize("name", ["famo", *AGGREGATION])
def test_explicit_axes(name):
    """The types of arrays tell how they are sharded: data over four devices, a layer over two."""
    if name in ("pcgrad", "graddrop") and not hasattr(jax, "set_mesh"):
        pytest.skip("scatter-add and constants know no explicit axes in JAX 0.6")
    explicit = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    specs = {"kernel": P(None, "model"), "bias": P("model"), "heads": P("model")}
    params, batch = problem()
    params, batch = place(params, specs, explicit), place(batch, P("data"), explicit)
    tx = TX[name]
    state = init(tx, params, explicit)

    def losses_fn(params, batch):
        x, y = batch
        hidden = jnp.tanh(x @ params["kernel"] + params["bias"])
        sharding = NamedSharding(explicit, P("data", None))
        outputs = jnp.einsum("bh,ho->bo", hidden, params["heads"], out_sharding=sharding)
        return mean_errors(outputs, y)

    step = train_step(tx, task_losses=losses_fn)
    with set_mesh(explicit):
        jax.jit(step).lower(params, state, batch)  # where the types do not fit, tracing fails
        if name not in ("famo", "nash_mtl", "graddrop"):
            return  # compiled and trained these alone, for time
        ours = Run(None, *train(step, params, state, batch))
    assert_same(ours, run(name, False, "one device"))
    assert not gathers_task_gradients(ours.compiled)


# --- What the devices tell each other -------------------------------------------------------------

COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def collectives(compiled):
    """Their kinds, and the shapes that they handle, one list for each operation."""
    return [
        (
            kind,
            [tuple(map(int, re.findall(r"\d+", dims))) for dims in re.findall(r"\[(.*?)\]", types)],
        )
        for types, kind in COLLECTIVE.findall(compiled.as_text())
    ]


def numbers(compiled):
    return sum(math.prod(shape) for _, shapes in collectives(compiled) for shape in shapes)


def gathers_task_gradients(compiled):
    """Whether an all-gather handles the stacked gradients of a parameter, its axes in any order."""
    stacked = [sorted((NUM_TASKS, *leaf.shape)) for leaf in jax.tree.leaves(problem().params)]
    gathered = [
        sorted(size for size in shape if size > 1)
        for kind, shapes in collectives(compiled)
        if kind == "all-gather"
        for shape in shapes
    ]
    return [shape for shape in gathered if shape in stacked]


@functools.cache
def plain():
    """The mean of the losses, of which nothing is reported, so that its gradient is all."""
    params, batch = problem()
    params, batch = place(params, EVERYWHERE, mesh()), place(batch, P("data"), mesh())

    def step(params, opt_state, batch):
        grads = jax.grad(lambda params: jnp.mean(task_losses(params, batch)))(params)
        updates, opt_state = SGD.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(step).lower(params, init(SGD, params, mesh()), batch).compile()


@every_method
@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_adds_one_all_reduce_of_the_losses_a_pass(name, two_pass, how):
    """One for each task instead of one gradient, where a method needs task gradients; or two."""
    compiled = run(name, two_pass, how).compiled
    assert {kind for kind, _ in collectives(compiled)} == {"all-reduce"}
    passes = 2 if two_pass else 1
    gradients = NUM_TASKS if name in AGGREGATION else 2 if name in DIRECTING else 1
    size = sum(leaf.size for leaf in jax.tree.leaves(problem().params))
    assert numbers(plain()) == size
    assert numbers(compiled) <= gradients * size + passes * NUM_TASKS
    assert len(collectives(compiled)) <= len(collectives(plain())) + passes


@every_method
def test_with_sharded_parameters_no_task_gradients_are_gathered(name, two_pass):
    compiled = run(name, two_pass, "sharded parameters").compiled
    assert "all-gather" in {kind for kind, _ in collectives(compiled)}  # of the parameters
    assert not gathers_task_gradients(compiled)


# --- Task gradients at the features, or on some parameters ----------------------------------------

ENGINES = {
    "features": {"task_losses": head_losses, "encoder": encode},
    "a layer": {"gram_at": {"kernel": True, "bias": False, "heads": False}},
}
some_methods = pytest.mark.parametrize("name", ["mgda", "pcgrad", "nash_mtl"])


@functools.cache
def run_at(name, engine, how):
    params, batch = problem()
    if how != "one device":
        specs = SHARDED if how == "sharded parameters" else EVERYWHERE
        params, batch = place(params, specs, mesh()), place(batch, P("data"), mesh())
    state = TX[name].init(params) if how == "one device" else init(TX[name], params, mesh())
    step = train_step(TX[name], **ENGINES[engine])
    return Run((params, state), *train(step, params, state, batch))


@some_methods
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["jit", "sharded parameters"])
def test_elsewhere_it_trains_as_on_one_device(name, engine, how):
    assert_same(run_at(name, engine, how), run_at(name, engine, "one device"))


@some_methods
def test_at_the_features_devices_tell_each_other_a_gram_matrix(name):
    """Beside one gradient and the losses, ``[K, K]``: a feature stays where its example is."""
    compiled = run_at(name, "features", "jit").compiled
    assert {kind for kind, _ in collectives(compiled)} == {"all-reduce"}
    assert numbers(compiled) <= numbers(plain()) + NUM_TASKS**2 + NUM_TASKS
