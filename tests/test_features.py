"""Where the gradients of tasks are compared: on all parameters, on some, or at the features."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from famo_jax import TrainState, losses_and_grads
from famo_jax.aggregation import graddrop, log_losses, mgda, nash_mtl, pcgrad, periodic
from tests.methods import AGGREGATION, HEADS, MEMORY, RANDOM, WEIGHTING

K, BATCH, WIDTH = 3, 16, 5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(BATCH, 6)), RNG.normal(size=(BATCH, K)) * [0.3, 1.0, 3.0]
TREE = {
    "trunk": {"first": RNG.normal(size=(6, 8)) / 2, "last": RNG.normal(size=(8, WIDTH)) / 2},
    "heads": {name: RNG.normal(size=WIDTH) / 2 for name in "abc"},
}
LAST = {"trunk": {"first": False, "last": True}, "heads": False}
ELSEWHERE = [name for name in AGGREGATION if name not in MEMORY]
every_aggregation = pytest.mark.parametrize("name", ELSEWHERE)
OF_GRAM = [name for name in ELSEWHERE if name != "graddrop"]
some = pytest.mark.parametrize("name", ["mgda", "pcgrad", "graddrop", "gradnorm"])
DOUBLE, SINGLE = "float64", "float32"
of_gram = pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, DOUBLE) for name in OF_GRAM] + [("mgda", SINGLE), ("cagrad", SINGLE)],
    indirect=["dtype"],
)


def params_of(dtype=float):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), TREE)


def encoder(params, x):
    return jnp.tanh(jnp.tanh(x @ params["trunk"]["first"]) @ params["trunk"]["last"])


def head(name, params, z, x):
    del x
    y = jnp.asarray(Y, z.dtype)[:, "abc".index(name)]
    return jnp.mean((z @ params["heads"][name] - y) ** 2) + jnp.asarray(0.1, z.dtype)


HEAD_FNS = {name: functools.partial(head, name) for name in "abc"}


def heads(params, z, x):
    return {name: each(params, z, x) for name, each in HEAD_FNS.items()}


def losses_fn(params, x):
    return heads(params, encoder(params, x), x)


def gradient_of(name, params, *, shared=None, where=None, fn=losses_fn, **options):
    """The gradient that a method makes in one step, jitted as a user's."""
    tx = AGGREGATION[name](K, shared=shared)

    @jax.jit
    def step(params, x):
        state = tx.init(params)
        losses, grads = losses_and_grads(fn, **options)(params, x, state=state, where=where)
        return tx.update(grads, state, params, losses=losses, where=where)[0]

    return step(params, jnp.asarray(X, jax.tree.leaves(params)[0].dtype))


def close(got, expected, dtype):
    tolerance = 1e-12 if dtype == jnp.float64 else 2e-5
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(got, expected, rtol=tolerance, atol=tolerance * size)


@pytest.fixture
def dtype(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return jnp.dtype(request.param)


# --- On the parameters ----------------------------------------------------------------------------


@of_gram
def test_on_all_leaves_it_is_the_stacked_result(name, dtype):
    params = params_of(dtype)
    close(gradient_of(name, params, gram_at=True), gradient_of(name, params), dtype)


@of_gram
def test_on_some_leaves_it_is_the_stacked_result_with_these_shared(name, dtype):
    """On the leaves themselves; those below get the same weights, and the heads with ``shared``."""
    params = params_of(dtype)
    got = gradient_of(name, params, gram_at=LAST)
    expected = gradient_of(name, params, shared=LAST)
    close(got["trunk"]["last"], expected["trunk"]["last"], dtype)
    trunk = {"trunk": True, "heads": False}
    both = gradient_of(name, params, gram_at=LAST, shared=trunk)
    close(both["trunk"], got["trunk"], dtype)
    close(both["heads"], expected["heads"], dtype)


def test_a_method_of_the_gradients_themselves_is_refused_on_some_leaves():
    with pytest.raises(ValueError, match="GraddropState belongs to a method that needs the grad"):
        gradient_of("graddrop", params_of(), gram_at=LAST)


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize("options", [{"gram_at": LAST}, {"fn": heads, "encoder": encoder}])
def test_a_method_that_remembers_gradients_is_refused_elsewhere(name, options):
    with pytest.raises(ValueError, match="remembers the task gradients of the parameters"):
        gradient_of(name, params_of(), **options)


# --- At the features ------------------------------------------------------------------------------


def by_hand(name, params, x, where=None):
    """The method on hand-made gradients at z, and the encoder's own pullback behind."""
    z, through = jax.vjp(lambda params: encoder(params, x), params)
    rows = jax.jacrev(lambda z: jnp.stack([*heads(params, z, x).values()]))(z)
    tx = AGGREGATION[name](K)
    state = tx.init(params)
    losses = heads(params, z, x)
    at, _ = tx.update(rows, state, losses=losses, where=where)
    (gradient,) = through(at)
    of_heads = jax.jacrev(lambda own: jnp.stack([*heads(own, z, x).values()]))(params)["heads"]
    present = jnp.ones(K) if where is None else jnp.asarray(where, float)
    if name in HEADS:
        own = present / (jnp.sum(present) if HEADS[name] == "mean" else 1)
    else:  # the weights of the shared direction: rows^T w = at
        flat = rows.reshape(K, -1)
        own = jnp.linalg.lstsq(flat.T, at.ravel())[0]
    gradient["heads"] = jax.tree.map(lambda leaf: jnp.tensordot(own, leaf, 1), of_heads)
    return gradient


@pytest.mark.parametrize(
    ("name", "functions", "dtype"),
    [(name, bool(index % 2), DOUBLE) for index, name in enumerate(ELSEWHERE)]
    + [("mgda", each, dtype) for each in (False, True) for dtype in (SINGLE, DOUBLE)],
    indirect=["dtype"],
)
def test_at_the_features_it_is_the_method_there_and_the_encoder_behind(name, functions, dtype):
    params = params_of(dtype)
    fn = HEAD_FNS if functions else heads
    got = gradient_of(name, params, fn=fn, encoder=encoder)
    expected = by_hand(name, params, jnp.asarray(X, dtype))
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-3  # lstsq by hand
    close(got["trunk"], expected["trunk"], dtype)
    chex.assert_trees_all_close(got["heads"], expected["heads"], rtol=tolerance, atol=tolerance)


@every_aggregation
def test_absent_tasks_are_as_if_they_were_not(name, x64):
    if name in RANDOM:
        pytest.skip("its draws differ")
    params = params_of()
    where = jnp.array([True, False, True])
    two = {key: each for key, each in HEAD_FNS.items() if key != "b"}
    for functions in (False, True):
        fn = HEAD_FNS if functions else heads
        got = gradient_of(name, params, fn=fn, encoder=encoder, where=where)
        expected = jax.jit(lambda params: _step_of(AGGREGATION[name](2), two, params))(params)
        close(got["trunk"], expected["trunk"], jnp.dtype(float))
        np.testing.assert_array_equal(got["heads"]["b"], 0)


def _step_of(tx, fn, params):
    state = tx.init(params)
    losses, grads = losses_and_grads(fn, encoder=encoder)(params, jnp.asarray(X), state=state)
    return tx.update(grads, state, params, losses=losses)[0]


@every_aggregation
def test_an_absent_task_of_nan_does_not_reach_the_encoder(name):
    """Each function is pulled back by itself: nothing of it is mixed with the others."""

    def broken(params, z, x):
        return head("b", params, z, x) * jnp.nan

    where = jnp.array([True, False, True])
    fn = {**HEAD_FNS, "b": broken}
    got = gradient_of(name, params_of(), fn=fn, encoder=encoder, where=where)
    assert np.all(np.isfinite(got["trunk"]["first"]))
    assert np.any(got["trunk"]["first"] != 0)
    present = gradient_of(name, params_of(), fn=fn, encoder=encoder)
    assert np.all(np.isnan(present["trunk"]["first"]))


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, DOUBLE) for name in WEIGHTING], indirect=["dtype"]
)
def test_for_a_weighting_method_it_is_the_composition(name, dtype):
    params, x = params_of(dtype), jnp.asarray(X, dtype)
    state = WEIGHTING[name](K).init(None)
    losses, expected = losses_and_grads(losses_fn)(params, x, state=state)
    for fn in (heads, HEAD_FNS):
        values, got = losses_and_grads(fn, encoder=encoder)(params, x, state=state)
        chex.assert_trees_all_close(values, losses, rtol=1e-6)
        close(got, expected, dtype)


def test_one_task():
    for fn in (lambda *args: {"a": head("a", *args)}, {"a": HEAD_FNS["a"]}):
        got = jax.jit(lambda params, fn=fn: _step_of(mgda(), fn, params))(params_of())
        expected = jax.grad(
            lambda params: head("a", params, encoder(params, jnp.asarray(X)), None)
        )(params_of())
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_features_of_any_structure_and_kind():
    """Integers and keys among them take no gradient; what no loss looks at gets none."""

    def rich(params, x):
        hidden = jnp.tanh(x @ params["trunk"]["first"])
        return {
            "z": jnp.tanh(hidden @ params["trunk"]["last"]),
            "skipped": jnp.sum(hidden),
            "labels": jnp.arange(BATCH),
            "key": jax.random.key(0),
        }

    fn = lambda params, z, x: heads(params, z["z"] + 0 * jnp.sum(z["labels"]), x)
    got = gradient_of("mgda", params_of(), fn=fn, encoder=rich)
    close(got, gradient_of("mgda", params_of(), fn=heads, encoder=encoder), jnp.dtype("float32"))


def test_auxiliary_output():
    state = mgda().init(None)
    with_aux = lambda params, z, x: (heads(params, z, x), {"z": z})
    (losses, aux), _ = losses_and_grads(with_aux, encoder=encoder, has_aux=True)(
        params_of(), X, state=state
    )
    np.testing.assert_allclose(aux["z"], encoder(params_of(), X), rtol=1e-6)
    each = {
        name: lambda *args, fn=fn, name=name: (fn(*args), name) for name, fn in HEAD_FNS.items()
    }
    (values, names), _ = losses_and_grads(each, encoder=encoder, has_aux=True)(
        params_of(), X, state=state
    )
    assert names == {name: name for name in "abc"}
    chex.assert_trees_all_close(values, losses, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_in_chunks(chunk_size):
    for options in ({"fn": heads, "encoder": encoder}, {"gram_at": LAST}):
        got = gradient_of("mgda", params_of(), chunk_size=chunk_size, **options)
        close(got, gradient_of("mgda", params_of(), **options), jnp.dtype("float32"))


def test_a_model_in_bfloat16():
    params = params_of(jnp.bfloat16)
    for options in ({"fn": heads, "encoder": encoder}, {"fn": HEAD_FNS, "encoder": encoder}):
        got = gradient_of("mgda", params, **options)
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
        exact = gradient_of("mgda", params_of(), **options)
        flat = [
            np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])
            for tree in (got, exact)
        ]
        cosine = flat[0] @ flat[1] / np.prod(np.linalg.norm(flat, axis=1))
        assert cosine > 0.999


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": lambda params, x: x}, "`encoder`: expected features that depend on the par"),
        (
            {"encoder": lambda params, x: jax.lax.stop_gradient(encoder(params, x))},
            "`encoder`: expected features that depend on the parameters, got [(16, 5)]",
        ),
        ({"encoder": lambda params, x: jnp.arange(3)}, "`encoder`: expected features that depend"),
        ({"encoder": 3}, "`encoder`: expected a function, got int"),
        (
            {"encoder": encoder, "gram_at": True},
            "expected one of `encoder` and `gram_at`, got both",
        ),
        ({"gram_at": {"trunk": 1}}, "`gram_at`: expected a pytree of booleans"),
        ({"gram_at": {"trunk": True}}, "`gram_at`: expected a prefix of the structure"),
        ({"gram_at": False}, "`gram_at`: expected at least one leaf, got none"),
        ({"fn": {"a": HEAD_FNS["a"], "b": 1.0}}, "`losses_fn`: expected a function, or a pytree"),
        ({"fn": {}}, "`losses_fn`: expected a function, or a pytree"),
        (
            {"fn": {"a": lambda *args: jnp.ones(2), "b": HEAD_FNS["b"]}, "encoder": encoder},
            "`losses_fn`: expected an array or a pytree of scalars",
        ),
        ({"encoder": encoder, "fn": heads, "shared": LAST}, "`shared`: expected None with `enco"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        gradient_of("mgda", params_of(), **options)
    assert words in str(error.value)


# --- In a training loop ---------------------------------------------------------------------------

ENGINES = {
    "features": {"fn": heads, "encoder": encoder},
    "functions": {"fn": HEAD_FNS, "encoder": encoder},
    "last layer": {"fn": losses_fn, "gram_at": LAST},
}
every_engine = pytest.mark.parametrize("engine", ENGINES)


@every_engine
@some
def test_it_trains(engine, name):
    if engine == "last layer" and name == "graddrop":
        pytest.skip("needs the gradients themselves")
    fn, *_ = (options := dict(ENGINES[engine])).pop("fn"), None
    tx = optax.chain(AGGREGATION[name](K), optax.MultiSteps(optax.adam(1e-2), 2))

    def step(carry, _):
        params, opt_state = carry
        losses, grads = losses_and_grads(fn, **options)(params, jnp.asarray(X), state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return (optax.apply_updates(params, updates), opt_state), losses

    params = params_of()
    _, losses = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=200))(
        params
    )
    for curve in losses.values():
        assert curve[-1] < 0.9 * curve[0]


@every_engine
def test_what_is_handed_over_crosses_jit_and_vmap(engine):
    fn, *_ = (options := dict(ENGINES[engine])).pop("fn"), None
    tx = mgda()
    take = functools.partial(losses_and_grads(fn, **options), x=jnp.asarray(X), state=tx.init(None))
    take = lambda params: losses_and_grads(fn, **options)(
        params, jnp.asarray(X), state=tx.init(None)
    )
    update = lambda grads, params: tx.update(grads, tx.init(None), params)[0]
    expected = update(take(params_of())[1], params_of())
    _, grads = jax.jit(take)(params_of())
    chex.assert_trees_all_close(jax.jit(update)(grads, params_of()), expected, rtol=1e-4, atol=1e-6)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params_of())
    both = jax.vmap(lambda params: update(take(params)[1], params))(many)
    first = jax.tree.map(lambda leaf: leaf[0], both)
    chex.assert_trees_all_close(first, expected, rtol=1e-4, atol=1e-6)


def test_linen():
    state = TrainState.create(
        apply_fn=None, params=params_of(), tx=optax.chain(mgda(), optax.sgd(0.1))
    )

    @jax.jit
    def train_step(state):
        losses, grads = losses_and_grads(HEAD_FNS, encoder=encoder)(
            state.params, jnp.asarray(X), state=state.opt_state
        )
        return state.apply_gradients(grads=grads, losses=losses)

    new = train_step(state)
    expected = gradient_of("mgda", params_of(), fn=HEAD_FNS, encoder=encoder)
    chex.assert_trees_all_close(
        new.params, jax.tree.map(lambda p, g: p - 0.1 * g, params_of(), expected), rtol=1e-5
    )


class Trunk(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.dropout(jnp.tanh(self.norm(self.hidden(x))))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.trunk = Trunk(rngs)
        self.heads = nnx.Linear(WIDTH, K, rngs=rngs)


def test_nnx_split_and_merge():
    """The mutable rest of the trunk goes through z, and comes back through ``has_aux``."""
    model = Model(nnx.Rngs(0))
    tx = optax.chain(nash_mtl(), optax.adam(1e-2))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    opt_state = tx.init(params)

    def encode(params, rest, x):
        model = nnx.merge(graphdef, params, rest, copy=True)
        z = model.trunk(x)
        return z, nnx.split(model, nnx.Param, ...)[2]

    def decode(params, features, rest, x):
        z, rest = features
        losses = jnp.mean((nnx.merge(graphdef, params, rest).heads(z) - Y) ** 2, axis=0)
        return losses, rest

    @jax.jit
    def train_step(params, rest, opt_state):
        (losses, rest), grads = losses_and_grads(decode, encoder=encode, has_aux=True)(
            params, rest, jnp.asarray(X), state=opt_state
        )
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return optax.apply_updates(params, updates), rest, opt_state, losses

    first = None
    before = rest
    for _ in range(60):
        params, rest, opt_state, losses = train_step(params, rest, opt_state)
        first = losses if first is None else first
    assert np.all(losses < first)
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), before, rest)
    assert any(jax.tree.leaves(moved))  # batch statistics, dropout counts


# --- On log losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [None, *ENGINES])
@pytest.mark.parametrize("name", ["mgda", "cagrad", "graddrop", "nash_mtl"])
def test_log_losses_are_the_method_on_log_losses(name, engine, x64):
    if engine == "last layer" and name == "graddrop":
        pytest.skip("needs the gradients themselves")
    bounds = {"a": 0.05, "b": -1.0, "c": 0.0}
    options = dict(ENGINES[engine]) if engine else {"fn": losses_fn}
    fn = options.pop("fn")
    method = AGGREGATION[name](K)
    logs = {
        key: lambda *args, key=key, each=each: jnp.log(each(*args) - bounds[key])
        for key, each in HEAD_FNS.items()
    }
    if engine != "functions":
        whole = fn
        logs = lambda *args: jax.tree.map(lambda loss, b: jnp.log(loss - b), whole(*args), bounds)

    def step(tx, fn):
        params, state = params_of(), tx.init(params_of())
        losses, grads = losses_and_grads(fn, **options)(params, jnp.asarray(X), state=state)
        return jax.jit(lambda: tx.update(grads, state, params, losses=losses)[0])()

    close(step(log_losses(method, min_losses=bounds), fn), step(method, logs), jnp.dtype(float))


def test_nash_mtl_has_the_same_direction_on_log_losses(x64):
    plain = gradient_of("nash_mtl", params_of(), gram_at=True)
    tx = log_losses(nash_mtl())
    losses, grads = losses_and_grads(losses_fn)(params_of(), X, state=tx.init(None))
    logs, _ = tx.update(grads, tx.init(None), params_of(), losses=losses)
    close(logs, plain, jnp.dtype("float32"))


def test_a_loss_under_its_bound_gives_nan():
    tx = log_losses(mgda(), min_losses=1.0)
    gradient, _ = tx.update(jnp.eye(2), tx.init(None), losses=jnp.array([0.5, 2.0]))
    assert np.all(np.isnan(gradient))
    gradient, _ = tx.update(
        jnp.eye(2), tx.init(None), losses=jnp.array([0.5, 3.0]), where=jnp.array([False, True])
    )
    np.testing.assert_allclose(gradient, [0, 0.5])


# --- Every R steps --------------------------------------------------------------------------------


def run_periodic(every, decay=0.0, steps=7, method=mgda, **options):
    fn = options.pop("fn", losses_fn)
    tx = optax.chain(periodic(method(), K, every=every, decay=decay), optax.sgd(0.05))

    @jax.jit
    def train_step(params, opt_state):
        losses, grads = losses_and_grads(fn, **options)(params, jnp.asarray(X), state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state, weights = params_of(), tx.init(params_of()), []
    for _ in range(steps):
        params, opt_state = train_step(params, opt_state)
        weights.append(np.asarray(opt_state[0].weights))
    return params, np.array(weights)


@pytest.mark.parametrize("method", [mgda, nash_mtl, lambda: pcgrad(key=0)])
@pytest.mark.parametrize("options", [{}, {"gram_at": LAST}, {"fn": heads, "encoder": encoder}])
def test_every_step_it_is_the_method(method, options):
    params, _ = run_periodic(1, method=method, **options)
    own = dict(options)
    fn = own.pop("fn", losses_fn)
    tx = optax.chain(method(), optax.sgd(0.05))
    expected, opt_state = params_of(), tx.init(params_of())
    for _ in range(7):
        losses, grads = losses_and_grads(fn, **own)(expected, jnp.asarray(X), state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, expected, losses=losses)
        expected = optax.apply_updates(expected, updates)
    chex.assert_trees_all_close(params, expected, rtol=1e-3, atol=1e-4)


def test_weights_are_kept_for_r_steps():
    _, weights = run_periodic(3)
    for start in (0, 3):
        np.testing.assert_array_equal(weights[start + 1], weights[start])
        np.testing.assert_array_equal(weights[start + 2], weights[start])
    assert np.abs(weights[3] - weights[2]).max() > 1e-4


def test_weights_are_averaged():
    _, fresh = run_periodic(1, steps=2)
    _, averaged = run_periodic(1, decay=0.75, steps=2)
    np.testing.assert_allclose(averaged[0], fresh[0], rtol=1e-6)  # the first counts in full
    np.testing.assert_allclose(averaged[1], 0.75 * fresh[0] + 0.25 * fresh[1], rtol=1e-5)


def test_between_the_looks_no_task_gradient_is_taken():
    """The K pullbacks stand in one branch of a condition, and nowhere else."""
    tx = periodic(mgda(), K, every=5)

    def step(params, state):
        losses, grads = losses_and_grads(losses_fn)(params, jnp.asarray(X), state=state)
        return tx.update(grads, state, params, losses=losses)[0]

    jaxpr = jax.make_jaxpr(step)(params_of(), tx.init(None)).jaxpr
    of_k_rows = [
        equation
        for equation in jaxpr.eqns
        if equation.primitive.name == "dot_general"
        and any(variable.aval.shape[:1] == (K,) for variable in equation.outvars)
    ]
    assert [equation.primitive.name for equation in jaxpr.eqns].count("cond") == 1
    assert not of_k_rows


def test_weights_that_are_not_finite_are_not_taken_over():
    tx = periodic(mgda(), K, every=1)
    state = tx.init(None)
    take = lambda scale, state: losses_and_grads(
        lambda params, x: jax.tree.map(lambda loss: scale * loss, losses_fn(params, x))
    )(params_of(), X, state=state)
    for scale in (1.0, jnp.nan):
        losses, grads = take(scale, state)
        _, state = tx.update(grads, state, params_of(), losses=losses)
        assert np.all(np.isfinite(state.weights))


def test_stacked_gradients_and_graddrop_are_refused():
    tx = periodic(mgda(), K, every=2)
    with pytest.raises(ValueError, match="`updates`: expected what `losses_and_grads` gives"):
        tx.update(jnp.ones((K, 2)), tx.init(None))
    with pytest.raises(ValueError, match="GraddropState belongs to a method that needs"):
        run_periodic(2, method=lambda: graddrop(key=0), steps=1)
    with pytest.raises(ValueError, match="`shared`: expected None"):
        run_periodic(2, method=lambda: mgda(shared=LAST), steps=1)
    with pytest.raises(ValueError, match="`method`: expected an aggregation method"):
        periodic(optax.adam, K, every=2)
    with pytest.raises(ValueError, match="`method`: expected an aggregation method"):
        log_losses(3)


# --- What is compiled -----------------------------------------------------------------------------


WIDE, MANY, ROWS = 64, 20, 32


def products(options):
    """The operations of a step's gradients, as XLA counts them, in products of a layer."""
    names = [f"task{i:02}" for i in range(MANY)]
    params = {
        "trunk": {"first": jnp.ones((WIDE, WIDE)), "last": jnp.ones((WIDE, WIDE))},
        "heads": {name: jnp.ones(WIDE) for name in names},
    }
    x = jnp.ones((ROWS, WIDE))
    one = lambda name, params, z, x: jnp.mean((z @ params["heads"][name] - 1.0) ** 2)
    functions = {name: functools.partial(one, name) for name in names}
    at = lambda params, z, x: {name: each(params, z, x) for name, each in functions.items()}
    whole = lambda params, x: at(params, encoder(params, x), x)
    if options is None:
        step = jax.grad(lambda params: sum(whole(params, x).values()))
    else:
        tx, options = mgda(), dict(options)
        fn = {"heads": at, "functions": functions, "whole": whole}[options.pop("fn")]

        def step(params):
            state = tx.init(params)
            losses, grads = losses_and_grads(fn, **options)(params, x, state=state)
            return tx.update(grads, state, params, losses=losses)[0]

    layer = 2 * ROWS * WIDE * WIDE
    return jax.jit(step).lower(params).compile().cost_analysis()["flops"] / layer


def test_the_trunk_is_passed_back_once():
    """A layer is passed forward once and back twice, but for the first, which passes no further."""
    plain = products(None)
    assert 5 < plain < 6.5
    gram_at_z = MANY**2 / WIDE  # in products of a layer
    gram_at_layer = MANY**2 / ROWS
    rest = 2  # heads, tanh, the solver
    assert products({"fn": "functions", "encoder": encoder}) < plain + gram_at_z + rest
    # As one function each of K cotangents passes through all K heads.
    through_all = MANY**2 / WIDE
    at_once = products({"fn": "heads", "encoder": encoder})
    # (Older JAX takes the gradients of all heads with them, and throws these away.)
    assert at_once < plain + gram_at_z + 2 * through_all + rest
    # On the last layer its own product K times, and nothing below it.
    last = products({"fn": "whole", "gram_at": LAST})
    assert last < plain + MANY * 1.1 + gram_at_layer + through_all + rest
    stacked = products({"fn": "whole"})
    assert stacked > plain + MANY * 2.9 + 2 * gram_at_layer - 3
