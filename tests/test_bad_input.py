"""What is wrong is said: the argument, what was expected, what came."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import (
    TrainState,
    check_losses,
    delta_m,
    famo,
    logits_optimizer,
    loss_weights,
    losses_and_grads,
    mean_rank,
    task_weights,
    update_logits,
    weighted_loss,
)
from famo_jax.aggregation import (
    cagrad,
    cagrad_weights,
    db_mtl,
    excess_mtl,
    fairgrad,
    fairgrad_weights,
    graddrop,
    gradnorm,
    gradvac,
    mgda,
    mgda_weights,
    moco,
    ntkmtl,
    ntkmtl_weights,
    pcgrad,
)
from famo_jax.weighting import (
    amortized_mgda,
    dwa,
    gls,
    go4align,
    ldc_mtl,
    ls,
    relobralo,
    rlw,
    si,
    softadapt,
    stch,
    stl,
    uw,
    uw_so,
)
from tests.methods import AGGREGATION, WEIGHTS

STATE, LOSSES = famo(2).init(None), jnp.array([1.0, 2.0])
TX = optax.chain(optax.sgd(0.1), famo(2))
OPT_STATE = TX.init(LOSSES)
OPTIMIZER = logits_optimizer()
ROWS = jnp.ones((2, 3))


def update(params=LOSSES, **kwargs):
    return TX.update(LOSSES, OPT_STATE, params, **{"losses": LOSSES, **kwargs})


def graded(losses_fn):
    return losses_and_grads(losses_fn)(LOSSES, state=STATE)


def train_state():
    return TrainState.create(apply_fn=None, params={"w": LOSSES}, tx=TX)


# --- Functions ------------------------------------------------------------------------------------

ERRORS = [
    # num_tasks
    (lambda: famo(0), "`num_tasks`: expected an int of at least 1, got 0"),
    (lambda: famo(-3), "`num_tasks`: expected an int of at least 1, got -3"),
    (lambda: famo(2.0), "`num_tasks`: expected an int of at least 1, got 2.0"),
    (lambda: famo("2"), "`num_tasks`: expected an int of at least 1, got '2'"),
    (lambda: famo(True), "`num_tasks`: expected an int of at least 1, got True"),
    (lambda: famo(None), "`num_tasks`: expected an int of at least 1, got None"),
    (lambda: famo(jnp.array(2)), 'an array; under optax.inject_hyperparams give static_args=("num'),
    (
        lambda: optax.inject_hyperparams(famo)(2).init(LOSSES),
        'an array; under optax.inject_hyperparams give static_args=("num_tasks",)',
    ),
    # rates
    (lambda: famo(2, learning_rate=-0.1), "`learning_rate`: expected a finite number of at least"),
    (lambda: famo(2, learning_rate=np.nan), "`learning_rate`: expected a finite number"),
    (lambda: famo(2, learning_rate=jnp.ones(2)), "`learning_rate`: expected a scalar"),
    (lambda: famo(2, learning_rate="fast"), "`learning_rate`: expected a scalar, got 'fast'"),
    (lambda: famo(2, learning_rate=1j), "`learning_rate`: expected a scalar, got 1j"),
    (lambda: famo(2, learning_rate=None), "`learning_rate`: expected a scalar, got None"),
    (lambda: famo(2, weight_decay=-1e-3), "`weight_decay`: expected a finite number of at least"),
    (lambda: famo(2, weight_decay=np.inf), "`weight_decay`: expected a finite number"),
    (lambda: logits_optimizer(-1.0), "`learning_rate`: expected a finite number of at least 0"),
    (lambda: logits_optimizer(0.1, -1.0), "`weight_decay`: expected a finite number of at least 0"),
    # bounds
    (
        lambda: famo(2, min_losses=jnp.zeros(3)),
        "`min_losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: famo(2, min_losses={"a": 0.0}), "`min_losses`: expected num_tasks = 2 values, got 1"),
    (lambda: famo(2, min_losses="low"), "`min_losses`: expected floating or integer values"),
    (
        lambda: famo(2, min_losses=1j),
        "`min_losses`: expected floating or integer values, got compl",
    ),
    (lambda: famo(2, min_losses=None), "`min_losses`: expected num_tasks = 2 values, got 0"),
    (
        lambda: famo(2, min_losses=[0.0, jnp.zeros(1)]),
        "`min_losses`: expected an array or a pytree",
    ),
    # optimizer
    (lambda: famo(2, optimizer=0.1), "`optimizer`: expected an optax.GradientTransformation or No"),
    (lambda: logits_optimizer(optimizer=optax.adam), "`optimizer`: expected an optax.GradientTran"),
    (
        lambda: update_logits(STATE, LOSSES, LOSSES, optax.adam),
        "`optimizer`: expected what `logits",
    ),
    (
        lambda: update_logits(STATE, LOSSES, LOSSES, optax.adam(0.1)),
        "`optimizer`: expected the one that `state.opt_state` belongs to",
    ),
    # what stands beside an optimizer, and was ignored
    (
        lambda: famo(2, learning_rate=0.1, optimizer=optax.sgd(1.0)),
        "expected one of `learning_rate` and `optimizer`, got both",
    ),
    (
        lambda: logits_optimizer(optax.constant_schedule(0.1), optimizer=optax.sgd(1.0)),
        "expected one of `learning_rate` and `optimizer`, got both",
    ),
    (
        lambda: uw(2, learning_rate=0.1, optimizer=optax.sgd(1.0)),
        "expected one of `learning_rate` and `optimizer`, got both",
    ),
    (
        lambda: amortized_mgda(2, learning_rate=0.1, optimizer=optax.sgd(1.0)),
        "expected one of `learning_rate` and `optimizer`, got both",
    ),
    # smoothing
    (lambda: famo(2, smoothing=1.0), "`smoothing`: expected a number of at least 0 and below 1"),
    (lambda: famo(2, smoothing=-0.1), "`smoothing`: expected a finite number of at least 0"),
    (lambda: logits_optimizer(smoothing="a"), "`smoothing`: expected a scalar, got 'a'"),
    # bounds of other names than the losses
    (
        lambda: famo(2, min_losses={"a": 0.0, "c": 0.0}).update(
            (), STATE, losses={"a": 1.0, "b": 1.0}
        ),
        "`min_losses`: expected the structure of the losses",
    ),
    (
        lambda: si(min_losses={"a": 0.0, "c": 0.0}).update(
            (), si(min_losses=[0.0, 0.0]).init(None), losses={"a": 1.0, "b": 1.0}
        ),
        "`min_losses`: expected the structure of the losses",
    ),
    (
        lambda: si(min_losses=[0.0, 0.0]).update(
            (), si(min_losses=[0.0, 0.0]).init(None), losses=jnp.ones(3)
        ),
        "`min_losses`: expected num_tasks = 3 values, got 2",
    ),
    # losses
    (lambda: weighted_loss(jnp.ones(3), STATE), "`losses`: expected num_tasks = 2 values, got 3"),
    (lambda: weighted_loss({"a": 1.0}, STATE), "`losses`: expected num_tasks = 2 values, got 1"),
    (lambda: weighted_loss({}, STATE), "`losses`: expected"),
    (lambda: weighted_loss(None, STATE), "`losses`: expected"),
    (
        lambda: weighted_loss("loss", STATE),
        "`losses`: expected floating or integer values, got str",
    ),
    (lambda: weighted_loss({"a": 1.0, "b": "x"}, STATE), "`losses`: expected floating or integer"),
    (lambda: weighted_loss(jnp.ones(2, complex), STATE), "`losses`: expected floating or integer"),
    (lambda: weighted_loss(jnp.ones(2, bool), STATE), "`losses`: expected floating or integer val"),
    (
        lambda: weighted_loss([1.0, jnp.ones(1)], STATE),
        "`losses`: expected an array or a pytree of",
    ),
    (lambda: loss_weights(jnp.ones(3), STATE), "`losses`: expected num_tasks = 2 values, got 3"),
    (lambda: loss_weights({"a": 1.0, "b": "x"}, STATE), "`losses`: expected floating or integer"),
    (lambda: check_losses(jnp.ones(3), STATE), "`losses`: expected num_tasks = 2 values, got 3"),
    (lambda: update(losses=jnp.ones(3)), "`losses`: expected num_tasks = 2 values, got 3"),
    (
        lambda: update(losses={"a": 1.0, "b": jnp.ones(2)}),
        "`losses`: expected an array or a pytree",
    ),
    (lambda: update(new_losses=jnp.ones(5)), "`new_losses`: expected num_tasks = 2 values, got 5"),
    (
        lambda: update(losses={"a": 1.0, "b": 1.0}, new_losses={"a": 1.0, "c": 1.0}),
        "`new_losses`: expected the structure of the losses",
    ),
    (
        lambda: update_logits(STATE, LOSSES[None], LOSSES[:, None], OPTIMIZER),
        "`new_losses`: expected the structure of the losses",
    ),
    (lambda: update_logits(STATE, jnp.ones(1), LOSSES, OPTIMIZER), "`losses`: expected num_tasks"),
    (
        lambda: update_logits(STATE, "a", LOSSES, OPTIMIZER),
        "`losses`: expected floating or integer",
    ),
    (
        lambda: update_logits(STATE, LOSSES, "a", OPTIMIZER),
        "`new_losses`: expected floating or int",
    ),
    # how the change is measured
    (
        lambda: update(losses_fn=lambda params: params, new_losses=LOSSES),
        "expected one of `losses_fn` and `new_losses`, got both",
    ),
    (lambda: update(None, losses_fn=lambda params: params), "`params`: expected the parameters"),
    (lambda: update(losses_fn=lambda params: params[0]), "`losses_fn`: expected the structure"),
    # normalizer, where
    (lambda: famo(2, normalizer="mean"), "`normalizer`: expected 'harmonic'"),
    (lambda: famo(2, normalizer=1.0), "`normalizer`: expected 'harmonic'"),
    (
        lambda: weighted_loss(LOSSES, STATE, where=[1, 0]),
        "`where`: expected bool values, got int32",
    ),
    (lambda: weighted_loss(LOSSES, STATE, where=[True]), "`where`: expected num_tasks = 2 values"),
    (lambda: weighted_loss(LOSSES, STATE, where="all"), "`where`: expected bool values, got str"),
    (
        lambda: weighted_loss({"a": 1.0, "b": 1.0}, STATE, where={"a": True, "c": True}),
        "`where`: expected the structure of the losses",
    ),
    (lambda: update(where=jnp.ones(3, bool)), "`where`: expected num_tasks = 2 values, got 3"),
    (lambda: update(where=jnp.ones(2)), "`where`: expected bool values, got float32"),
    # state
    (lambda: weighted_loss(LOSSES, ()), "`state`: expected the state of a method, or an optimizer"),
    (lambda: weighted_loss(LOSSES, None), "exactly one, got none in a NoneType"),
    (lambda: weighted_loss(LOSSES, optax.adam(0.1).init(LOSSES)), "exactly one, got none in a tup"),
    (
        lambda: loss_weights(LOSSES, (STATE, STATE)),
        "of exactly one method, got FamoState and FamoState",
    ),
    (
        lambda: task_weights([jnp.ones(2), {"a": STATE, "b": STATE}]),
        "one method, got FamoState and Famo",
    ),
    (lambda: update_logits({}, LOSSES, LOSSES, OPTIMIZER), "exactly one, got none in a dict"),
    (lambda: losses_and_grads(jnp.abs)(LOSSES, state=()), "exactly one, got none in a tuple"),
    # losses_and_grads
    (
        lambda: losses_and_grads(jnp.abs, chunk_size=0),
        "`chunk_size`: expected an int of at least 1, got 0",
    ),
    (
        lambda: losses_and_grads(jnp.abs, chunk_size=1.5),
        "`chunk_size`: expected an int of at least 1, got 1.5",
    ),
    (
        lambda: losses_and_grads(jnp.abs)(jnp.ones(3), state=STATE),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: famo(np.array([2])), "`num_tasks`: expected an int of at least 1, got array([2])"),
    (lambda: famo(2, learning_rate=True), "`learning_rate`: expected a scalar, got True"),
    (lambda: famo(2, min_losses=np.nan), "`min_losses`: expected finite values, got nan"),
    (lambda: famo(2, min_losses=[0.0, -np.inf]), "`min_losses`: expected finite values, got -inf"),
    # the state that `update` gets
    (
        lambda: famo(2).update((), None, losses=LOSSES),
        "`state`: expected FamoState, as `init` returns it, got NoneType",
    ),
    (
        lambda: famo(2).update((), STATE._asdict(), losses=LOSSES),  # as Orbax restores it untold
        "`state`: expected FamoState, as `init` returns it, got dict",
    ),
    (
        lambda: famo(2).update((), famo(3).init(None), losses=jnp.ones(3)),
        "`state`: expected FamoState, as `init` returns it, logits of shape (2,), got (3,)",
    ),
    (
        lambda: amortized_mgda(2).update((), STATE, losses=LOSSES),
        "`state`: expected AmortizedMgdaState, as `init` returns it, got FamoState",
    ),
    (
        lambda: dwa(2, window=3).update((), dwa(2).init(None), losses=LOSSES),
        "`state`: expected DwaState, as `init` returns it, history of shape (6, 2), got (2, 2)",
    ),
    (
        lambda: uw(2).update((), uw(3).init(None), losses=LOSSES),
        "`state`: expected UwState, as `init` returns it, log_variances of shape (2,), got (3,)",
    ),
    (lambda: rlw(2, key=0).update((), None), "`state`: expected RlwState, as `init` returns it"),
    (
        lambda: pcgrad(key=0).update(ROWS, mgda().init(None)),
        "`state`: expected PcgradState, as `init` returns it, got MgdaState",
    ),
    (lambda: graddrop(key=0).update(ROWS, None), "`state`: expected GraddropState, as `init` ret"),
    # what `update` gets besides
    (lambda: update(losses=None), "`losses`: expected num_tasks = 2 values, got 0"),
    (lambda: update(losses_fn="loss"), "`losses_fn`: expected a function, got str"),
    (lambda: update(losses_fn=lambda params: None), "`losses_fn`: expected the structure of the"),
    (
        lambda: update({"a": LOSSES}, losses_fn=lambda params: LOSSES),
        "`params`: expected the shapes of the updates, (2,), got {'a': (2,)}",
    ),
    (
        lambda: update(jnp.ones(3), losses_fn=lambda params: LOSSES),
        "`params`: expected the shapes of the updates, (2,), got (3,)",
    ),
    # other kinds of leaves
    (lambda: weighted_loss([object(), 1.0], STATE), "`losses`: expected floating or integer val"),
    (lambda: weighted_loss({1.0, 2.0}, STATE), "expected floating or integer values, got set"),
    (lambda: weighted_loss(jax.random.key(0), STATE), "`losses`: expected floating or integer"),
    (lambda: weighted_loss(np.array(["a", "b"]), STATE), "`losses`: expected floating or integer"),
    (lambda: weighted_loss(LOSSES, STATE, where=np.nan), "`where`: expected bool values, got flo"),
    (
        lambda: famo(2, normalizer=np.array(["harmonic"])),
        "`normalizer`: expected 'harmonic', 'geometric', 'arithmetic' or None, got array(",
    ),
    (lambda: update_logits(STATE, LOSSES, None, OPTIMIZER), "`new_losses`: expected the structure"),
    (lambda: update_logits(STATE, LOSSES, LOSSES, OPTIMIZER, where="a"), "`where`: expected bool"),
    (lambda: update_logits(STATE, LOSSES, LOSSES, None), "`optimizer`: expected what `logits_opt"),
    (lambda: task_weights("state"), "exactly one, got none in a str"),
    (lambda: check_losses("a", STATE), "`losses`: expected floating or integer values, got str"),
    (lambda: check_losses(LOSSES, None), "exactly one, got none in a NoneType"),
    (lambda: check_losses(LOSSES, STATE, where=[1, 1]), "`where`: expected bool values, got int32"),
    # losses_and_grads
    (
        lambda: losses_and_grads(None),
        "`losses_fn`: expected a function, or a pytree of functions, got NoneType",
    ),
    (lambda: losses_and_grads(abs, chunk_size=True), "`chunk_size`: expected an int of at least 1"),
    (lambda: graded(lambda x: None), "`losses_fn`: expected at least one value, got 0"),
    (lambda: graded(lambda x: "loss"), "`losses_fn`: expected floating values, got str"),
    (lambda: graded(lambda x: 1j * x), "`losses_fn`: expected floating values, got complex64"),
    (
        lambda: graded(lambda x: x.astype(int)),  # its gradient would be 0 without a word
        "`losses_fn`: expected floating values, got int32",
    ),
    (lambda: graded(lambda x: [x, x]), "`losses_fn`: expected an array or a pytree of scalars"),
    (lambda: graded(lambda x: (x, "aux")), "`losses_fn`: expected floating values, got str"),
    (
        lambda: losses_and_grads(jnp.abs, has_aux=True)(LOSSES, state=STATE),
        "`losses_fn`: expected (losses, aux) with has_aux, got ",
    ),
    (
        lambda: losses_and_grads(jnp.abs)(jnp.array([1, 2]), state=STATE),
        "`params`: expected floating values, got int32",
    ),
    (
        lambda: losses_and_grads(jnp.abs)("x", state=STATE),
        "`params`: expected floating values, got",
    ),
    (
        lambda: losses_and_grads(jnp.abs)(LOSSES, state=mgda().init(None), where=[1, 0]),
        "`where`: expected bool values, got int32",
    ),
    # the train state
    (
        lambda: train_state().apply_gradients(grads=train_state().params, losses=jnp.ones(3)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (
        lambda: train_state().apply_gradients(
            grads=train_state().params, losses=LOSSES, losses_fn=jnp.abs, new_losses=LOSSES
        ),
        "expected one of `losses_fn` and `new_losses`, got both",
    ),
    # weighting methods
    (lambda: ls("a"), "`weights`: expected floating or integer values"),
    (lambda: ls([True, False]), "`weights`: expected floating or integer values"),
    (
        lambda: weighted_loss(jnp.ones(3), ls([1.0, 2.0]).init(None)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: si(min_losses="a"), "`min_losses`: expected floating or integer"),
    (
        lambda: loss_weights(jnp.ones(3), si(min_losses=[0.0, 1.0]).init(None)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: stl(-1), "`task`: expected an integer of at least 0, got -1"),
    (lambda: stl(1.0), "`task`: expected an integer, got 1.0"),
    (lambda: stl("depth"), "`task`: expected an integer, got 'depth'"),
    (lambda: stl(jnp.arange(2)), "`task`: expected an integer"),
    (
        lambda: stl(5).update((), stl(5).init(None), losses=LOSSES),
        "`task`: expected one of 2, from 0 on, got 5",
    ),
    (
        lambda: ls([1.0, 2.0]).update((), ls([1.0, 2.0]).init(None), losses=jnp.ones(3)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: rlw(0, key=0), "`num_tasks`: expected an int of at least 1, got 0"),
    (
        lambda: rlw(2, key=0.5),
        "`key`: expected an int or a typed key (jax.random.key), got 0.5",
    ),
    (
        lambda: rlw(2, key=None),
        "`key`: expected an int or a typed key (jax.random.key), got None",
    ),
    (
        lambda: rlw(2, key=0).update((), rlw(2, key=0).init(None), losses=jnp.ones(3)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: dwa(1.5), "`num_tasks`: expected an int of at least 1, got 1.5"),
    (lambda: dwa(2, window=0), "`window`: expected an int of at least 1, got 0"),
    (lambda: dwa(2, temperature=0), "`temperature`: expected a number above 0, got 0"),
    (lambda: dwa(2, temperature=-1.0), "`temperature`: expected a finite number"),
    (
        lambda: dwa(2).update((), dwa(2).init(None), losses=jnp.ones(3)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: uw(-1), "`num_tasks`: expected an int of at least 1, got -1"),
    (lambda: uw(2, learning_rate=-1.0), "`learning_rate`: expected a finite number"),
    (lambda: uw(2, optimizer=0.1), "`optimizer`: expected an optax.GradientTransf"),
    (
        lambda: loss_weights(jnp.ones(3), uw(2).init(None)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: amortized_mgda(0), "`num_tasks`: expected an int of at least 1"),
    (lambda: amortized_mgda(2, weight_decay=-1), "`weight_decay`: expected a finite"),
    (
        lambda: amortized_mgda(2).update(
            (), amortized_mgda(2).init(None), losses=jnp.ones(2), losses_fn=jnp.abs
        ),
        "`params`: expected the parameters",
    ),
    (
        lambda: task_weights(dwa(2).init(None)),
        "`state`: expected one with task logits, got DwaState",
    ),
    (lambda: ls([]), "`weights`: expected at least one value, got 0"),
    (lambda: ls([1.0, np.nan]), "`weights`: expected finite values, got nan"),
    (lambda: si(min_losses=np.inf), "`min_losses`: expected finite values, got inf"),
    (lambda: stl(True), "`task`: expected an integer, got True"),
    (lambda: rlw(2, key=2**70), "`key`: expected an int or a typed key (jax.random.key), got 11"),
    (lambda: rlw(2, key=jax.random.PRNGKey(0)), "`key`: expected an int or a typed key"),
    (lambda: dwa(2, temperature="hot"), "`temperature`: expected a scalar, got 'hot'"),
    (lambda: dwa(2, temperature=np.inf), "`temperature`: expected a finite number of at least 0"),
    (lambda: dwa(2, window="a"), "`window`: expected an int of at least 1, got 'a'"),
    (lambda: gls(0), "`num_tasks`: expected an int of at least 1, got 0"),
    (lambda: gls(2, min_losses=[0.0]), "`min_losses`: expected num_tasks = 2 values, got 1"),
    (
        lambda: gls(2, min_losses={"a": 0.0, "c": 0.0}).update(
            (), gls(2).init(None), losses={"a": 1.0, "b": 1.0}
        ),
        "`min_losses`: expected the structure of the losses",
    ),
    (
        lambda: gls(2).update((), gls(2).init(None), losses=jnp.ones(3)),
        "`losses`: expected num_tasks = 2 values, got 3",
    ),
    (lambda: uw_so(2, temperature=0), "`temperature`: expected a number above 0, got 0"),
    (lambda: uw_so(2, min_losses=np.inf), "`min_losses`: expected finite values, got inf"),
    (lambda: stch(2, mu=0.0), "`mu`: expected a number above 0, got 0.0"),
    (lambda: stch(2, mu="a"), "`mu`: expected a scalar, got 'a'"),
    (lambda: stch(2, weights=[1.0]), "`weights`: expected num_tasks = 2 values, got 1"),
    (lambda: stch(2, weights=1.0), "`weights`: expected num_tasks = 2 values, got 1"),
    (lambda: stch(2, weights=[1.0, np.nan]), "`weights`: expected finite values, got nan"),
    (lambda: stch(2, warmup=-1), "`warmup`: expected an int of at least 1, got -1"),
    (lambda: stch(2, warmup=0.5), "`warmup`: expected an int of at least 1, got 0.5"),
    (
        lambda: stch(2, warmup=3).update((), stch(2).init(None), losses=LOSSES),
        "`state`: expected StchState, as `init` returns it, of structure",
    ),
    (lambda: go4align(2, num_groups=0), "`num_groups`: expected an int of at least 1, got 0"),
    (lambda: go4align(2, step_size=-1.0), "`step_size`: expected a finite number of at least 0"),
    (lambda: ldc_mtl(2, penalty=-1.0), "`penalty`: expected a finite number of at least 0"),
    (
        lambda: ldc_mtl(2, normalization="log"),
        "`normalization`: expected None, 'rescaled' or 'logarithmic', got 'log'",
    ),
    (
        lambda: ldc_mtl(2, learning_rate=0.1, optimizer=optax.sgd(1.0)),
        "expected one of `learning_rate` and `optimizer`, got both",
    ),
    (
        lambda: ldc_mtl(2, normalization="logarithmic").update(
            (), ldc_mtl(2).init(None), losses=LOSSES
        ),
        "`state`: expected LdcMtlState, as `init` returns it, scale Logarithmic(), got None",
    ),
    (lambda: softadapt(2, order=0), "`order`: expected an int of at least 1, got 0"),
    (lambda: softadapt(2, beta=np.nan), "`beta`: expected a finite number of at least 0, got nan"),
    (
        lambda: softadapt(2, variant="loss"),
        "`variant`: expected 'original', 'normalized' or 'loss_weighted', got 'loss'",
    ),
    (
        lambda: softadapt(2, order=2).update((), softadapt(2).init(None), losses=LOSSES),
        "`state`: expected SoftadaptState, as `init` returns it, history of shape (2, 2), got (1",
    ),
    (lambda: relobralo(2, key=None), "`key`: expected an int or a typed key (jax.random.key)"),
    (lambda: relobralo(2, key=0, alpha=1.5), "`alpha`: expected a number from 0 to 1, got 1.5"),
    (lambda: relobralo(2, key=0, rho=-0.5), "`rho`: expected a finite number of at least 0, got"),
    (lambda: relobralo(2, key=0, temperature=0), "`temperature`: expected a number above 0, got 0"),
    # metrics
    (lambda: delta_m(jnp.ones(3), jnp.ones(2), False), "`baseline`: expected a shape that"),
    (lambda: delta_m(jnp.ones(3), jnp.ones((2, 3)), False), "`baseline`: expected a shape"),
    (
        lambda: delta_m(jnp.ones(3), jnp.ones(3), [True] * 2),
        "`higher_is_better`: expected a sh",
    ),
    (lambda: delta_m(jnp.ones(3), jnp.ones(3), 1), "`higher_is_better`: expected booleans"),
    (lambda: delta_m(2.0, 1.0, True), "`values`: expected [..., N], got a scalar"),
    (lambda: delta_m([True], [1.0], True), "`values`: expected real numbers, got bool"),
    (lambda: mean_rank(jnp.ones(3), True), "`values`: expected [..., M, N], got shape (3,)"),
    (lambda: mean_rank(jnp.ones((2, 3)), [0, 1, 1]), "`higher_is_better`: expected booleans"),
    (lambda: delta_m("table", [1.0], False), "`values`: expected an array, got str"),
    (lambda: delta_m([[1.0], [1.0, 2.0]], [1.0], False), "`values`: expected an array, got list"),
    (lambda: delta_m([1.0], None, False), "`baseline`: expected an array, got NoneType"),
    (lambda: delta_m([1.0], [1.0], "lower"), "`higher_is_better`: expected an array, got str"),
    (lambda: delta_m([1.0], [-1.0], False), "`baseline`: expected metrics above 0, got [-1.]"),
    (lambda: delta_m([1.0], [1j], False), "`baseline`: expected real numbers, got complex64"),
    (lambda: delta_m([], [], False), "`values`: expected at least one metric, got shape (0,)"),
    (lambda: mean_rank(jnp.ones((2, 0)), True), "`values`: expected at least one metric, got sha"),
    (lambda: mean_rank(None, True), "`values`: expected an array, got NoneType"),
]


@pytest.mark.parametrize(("call", "words"), ERRORS, ids=[words for _, words in ERRORS])
def test_errors_name_argument_expectation_and_what_came(call, words):
    with pytest.raises(ValueError, match=r"`\w+`") as error:
        call()
    assert words in str(error.value)


def test_losses_are_required():
    with pytest.raises(TypeError, match="losses"):
        TX.update(LOSSES, OPT_STATE, LOSSES)
    with pytest.raises(TypeError, match="losses"):
        train_state().apply_gradients(grads=train_state().params)


# --- Aggregation methods --------------------------------------------------------------------------


def combine(method, updates, shared=None, params=None, **kwargs):
    tx = method(2, shared=shared)
    return tx.update(updates, tx.init({"a": ROWS[0]} if shared else ROWS[0]), params, **kwargs)


UPDATES = {
    "no leaves": ({}, r"`updates`: expected task-stacked gradients.*\[\]"),
    "scalar leaf": ({"a": ROWS, "b": 1.0}, r"`updates`: expected task-stacked.*\(2, 3\), \(\)"),
    "two Ks": ({"a": ROWS, "b": ROWS.T}, r"`updates`: .*\[\(2, 3\), \(3, 2\)\]"),
    "no tasks": (jnp.ones((0, 3)), r"`updates`: expected at least one task"),
    "integers": (jnp.ones((2, 3), int), "`updates`: expected floating values, got int32"),
    "complex": (jnp.ones((2, 3), complex), "`updates`: expected floating values, got complex64"),
}


@pytest.mark.parametrize("method", AGGREGATION)
@pytest.mark.parametrize("bad", UPDATES)
def test_task_gradients(method, bad):
    updates, message = UPDATES[bad]
    with pytest.raises(ValueError, match=message):
        combine(AGGREGATION[method], updates)


WHERE = {
    "too long": ([True] * 3, "`where`: expected num_tasks = 2 values, got 3"),
    "no booleans": ([1, 0], "`where`: expected bool"),
    "no array": ("both", "`where`: expected bool.* got str"),
}


@pytest.mark.parametrize("method", AGGREGATION)
@pytest.mark.parametrize("bad", WHERE)
def test_where_of_an_aggregation_method(method, bad):
    where, message = WHERE[bad]
    with pytest.raises(ValueError, match=message):
        combine(AGGREGATION[method], ROWS, where=where)


@pytest.mark.parametrize("method", AGGREGATION)
def test_where_of_another_structure(method):
    with pytest.raises(ValueError, match="`where`: expected the structure of the losses"):
        combine(
            AGGREGATION[method],
            ROWS,
            losses={"a": 1.0, "b": 1.0},
            where={"a": True, "c": True},
        )


SHARED = {
    "another structure": ({"b": True}, "`shared`: expected a prefix of the structure"),
    "deeper": ({"a": {"b": True}}, "`shared`: expected a prefix of the structure"),
    "no booleans": ({"a": 1}, "`shared`: expected a pytree of booleans, got a leaf 1"),
    "arrays": ({"a": jnp.array([True, False])}, "`shared`: expected a pytree of booleans"),
    "nothing shared": ({"a": False}, "`shared`: expected at least one leaf"),
    "a function of no mask": (lambda params: params, "`shared`: expected a pytree of booleans"),
}


@pytest.mark.parametrize("method", AGGREGATION)
@pytest.mark.parametrize("bad", SHARED)
def test_shared(method, bad):
    shared, message = SHARED[bad]
    with pytest.raises(ValueError, match=message):
        combine(AGGREGATION[method], {"a": ROWS}, shared=shared)


@pytest.mark.parametrize("method", [pcgrad, graddrop, functools.partial(gradvac, 2)])
@pytest.mark.parametrize("key", [1.5, "seed", None, True, [1, 2], jnp.ones(2)], ids=repr)
def test_key(method, key):
    with pytest.raises(ValueError, match="`key`: expected an int or a typed key"):
        method(key=key)
    with pytest.raises(ValueError, match=r"`key`: expected one key, got keys of shape \(2,\)"):
        method(key=jax.random.split(jax.random.key(0)))


C = {
    "negative": (-0.1, "`c`: expected a finite number of at least 0, got -0.1"),
    "nan": (np.nan, "`c`: expected a finite number of at least 0, got nan"),
    "infinite": (np.inf, "`c`: expected a finite number of at least 0, got inf"),
    "array": (jnp.ones(2), r"`c`: expected a scalar, got Array\(\[1., 1.\]"),
    "no number": ("0.4", "`c`: expected a scalar, got '0.4'"),
    "complex": (1j, "`c`: expected a scalar, got 1j"),
    "a truth": (True, "`c`: expected a scalar, got True"),
}


@pytest.mark.parametrize("bad", C)
def test_c(bad):
    c, message = C[bad]
    with pytest.raises(ValueError, match=message):
        cagrad(c=c)
    with pytest.raises(ValueError, match=message):
        cagrad_weights(jnp.eye(2), c)


PARAMETERS = [
    (lambda: fairgrad(alpha=0.0), "`alpha`: expected a number above 0, got 0.0"),
    (lambda: fairgrad(alpha=-1.0), "`alpha`: expected a finite number of at least 0, got -1.0"),
    (lambda: fairgrad(alpha=np.inf), "`alpha`: expected a finite number of at least 0, got inf"),
    (lambda: fairgrad_weights(jnp.eye(2), 0), "`alpha`: expected a number above 0, got 0"),
    (lambda: fairgrad_weights(jnp.eye(2), "2"), "`alpha`: expected a scalar, got '2'"),
    (lambda: ntkmtl(exponent=-0.5), "`exponent`: expected a finite number of at least 0, got -0.5"),
    (lambda: ntkmtl_weights(jnp.eye(2), None), "`exponent`: expected a scalar, got None"),
    (lambda: gradvac(0, key=0), "`num_tasks`: expected an int of at least 1, got 0"),
    (lambda: gradvac(2, key=0, beta=1.0), "`beta`: expected a number of at least 0 and below 1"),
    (lambda: gradnorm(2.0), "`num_tasks`: expected an int of at least 1, got 2.0"),
    (lambda: gradnorm(2, alpha=-1.0), "`alpha`: expected a finite number of at least 0, got -1.0"),
    (lambda: gradnorm(2, learning_rate=-1.0), "`learning_rate`: expected a finite number of at"),
    (
        lambda: gradnorm(2, learning_rate=0.1, optimizer=optax.sgd(0.1)),
        "expected one of `learning_rate` and `optimizer`, got both",
    ),
    (lambda: db_mtl(True), "`num_tasks`: expected an int of at least 1, got True"),
    (lambda: db_mtl(2, beta=1.0), "`beta`: expected a number of at least 0 and below 1, got 1.0"),
    (lambda: db_mtl(2, min_losses=[0.0] * 3), "`min_losses`: expected num_tasks = 2 values, got 3"),
    (lambda: db_mtl(2, min_losses=np.nan), "`min_losses`: expected finite values, got nan"),
    (lambda: moco(None), "`num_tasks`: expected an int of at least 1, got None"),
    (lambda: moco(2, beta=0.0), "`beta`: expected a number above 0 and at most 1, got 0.0"),
    (lambda: moco(2, beta=1.5), "`beta`: expected a number above 0 and at most 1, got 1.5"),
    (lambda: moco(2, gamma=-0.1), "`gamma`: expected a finite number of at least 0, got -0.1"),
    (lambda: moco(2, rho=jnp.ones(2)), "`rho`: expected a scalar, got Array([1., 1.]"),
    (lambda: excess_mtl("2"), "`num_tasks`: expected an int of at least 1, got '2'"),
    (lambda: excess_mtl(2, eta=np.nan), "`eta`: expected a finite number of at least 0, got nan"),
]


@pytest.mark.parametrize(("call", "message"), PARAMETERS)
def test_parameters_of_an_aggregation_method(call, message):
    with pytest.raises(ValueError, match=r"`\w+`") as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize("method", [gradnorm, db_mtl])
def test_a_method_that_needs_losses(method):
    with pytest.raises(ValueError, match="`losses`: expected num_tasks = 2 values, got 0"):
        combine(method, ROWS)


@pytest.mark.parametrize("method", [db_mtl, moco, excess_mtl])
def test_a_method_that_remembers_gradients(method):
    with pytest.raises(ValueError, match="`params`: expected the parameters, to be remembered"):
        method(2).init(None)
    with pytest.raises(
        ValueError, match=r"`state`: expected .*State, as `init` returns it, of stru"
    ):
        method(2).update({"a": ROWS, "b": ROWS}, method(2).init(ROWS[0]), losses=jnp.ones(2))
    with pytest.raises(
        ValueError, match=r"`state`: .*State, as `init` returns it, .*of shape \(2, 3"
    ):
        method(2).update(ROWS, method(2).init(jnp.ones(5)), losses=jnp.ones(2))


@pytest.mark.parametrize(
    "method", [functools.partial(gradvac, key=0), gradnorm, db_mtl, moco, excess_mtl]
)
def test_another_number_of_tasks(method):
    tx = method(3)
    with pytest.raises(ValueError, match="`updates`: expected the gradients of num_tasks = 3 task"):
        tx.update(ROWS, tx.init(ROWS[0]), losses=jnp.ones(2))


GRAM = {
    "no matrix": (jnp.ones(3), r"`gram`: expected shape \(K, K\), got \(3,\)"),
    "a Jacobian": (ROWS, r"`gram`: expected shape \(K, K\), got \(2, 3\)"),
    "empty": (jnp.ones((0, 0)), r"`gram`: expected shape \(K, K\), got \(0, 0\)"),
    "ragged": ([[1.0], [1.0, 2.0]], "`gram`: expected an array, got list"),
    "no array": ("gram", "`gram`: expected"),
    "none": (None, "`gram`: expected an array, got NoneType"),
    "booleans": (jnp.ones((2, 2), bool), "`gram`: expected real values, got bool"),
    "complex": (jnp.ones((2, 2), complex), "`gram`: expected real values, got complex64"),
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("bad", GRAM)
def test_gram(weights, bad):
    gram, message = GRAM[bad]
    with pytest.raises(ValueError, match=message):
        weights(gram)
    with pytest.raises(ValueError, match="`where`: expected num_tasks = 2 values, got 3"):
        weights(jnp.eye(2), where=[True, True, False])


@pytest.mark.parametrize("method", AGGREGATION.values(), ids=AGGREGATION.keys())
def test_a_gradient_that_is_not_task_stacked(method):
    """The gradient of one loss, whose first axis would be taken for the tasks."""
    tx, params = method(4), {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"`updates`: expected a leading axis of K before"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"`losses`: expected num_tasks = 4 values, got 3"):
        tx.update(params, tx.init(params), losses=jnp.ones(3))


@pytest.mark.parametrize("method", AGGREGATION.values(), ids=AGGREGATION.keys())
def test_inside_of_masked(method):
    tx = optax.masked(method(2), {"w": True, "b": False})
    params = {"w": jnp.ones(3), "b": jnp.ones(4)}
    stacked = {"w": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}
    with pytest.raises(ValueError, match=r"outside of optax\.masked and optax\.partition"):
        tx.update(stacked, tx.init(params), params)


# --- Under jit ------------------------------------------------------------------------------------

# Structure, number and kind are known while tracing, and refused as they are outside of jit.
TRACED = [
    (lambda x: weighted_loss(jnp.append(x, 1), STATE), "`losses`: expected num_tasks = 2 values"),
    (lambda x: weighted_loss(x, STATE, where=x), "`where`: expected bool values, got float32"),
    (lambda x: famo(x), "`num_tasks`: expected an int, got an array"),
    (lambda x: famo(2, learning_rate=x), "`learning_rate`: expected a scalar"),
    (lambda x: famo(2, min_losses=jnp.append(x, 1)).init(None), "`min_losses`: expected num_tasks"),
    (lambda x: stl(x), "`task`: expected an integer, got"),
    (lambda x: cagrad(c=x), "`c`: expected a scalar, got"),
    (lambda x: mgda_weights(x), "`gram`: expected shape (K, K), got (2,)"),
    (lambda x: delta_m(x, jnp.ones(3), False), "`baseline`: expected a shape that broadcasts"),
    (lambda x: update_logits(STATE, x, jnp.append(x, 1), OPTIMIZER), "`new_losses`: expected"),
]


@pytest.mark.parametrize(("call", "words"), TRACED, ids=[words for _, words in TRACED])
def test_what_tracing_sees_is_refused_under_jit(call, words):
    with pytest.raises(ValueError, match=r"`\w+`") as error:
        jax.jit(call)(LOSSES)
    assert words in str(error.value)


# Values are not seen there. What comes of a bad one is what the formula gives, most often NaN.
UNSEEN = {
    "min_losses nan": (lambda bad: weigh_with_bounds(bad), np.nan, [np.nan, np.nan]),
    "min_losses inf": (lambda bad: weigh_with_bounds(bad), np.inf, [np.nan, np.nan]),
    "min_losses above the losses": (lambda bad: weigh_with_bounds(bad), 5.0, [np.nan, np.nan]),
    "task": (lambda bad: loss_weights(LOSSES, stl(bad).init(None)), 2, [np.nan, np.nan]),
    "weights": (lambda bad: loss_weights(LOSSES, ls([bad, 1.0]).init(None)), np.nan, [np.nan, 1]),
    "a negative rate ascends": (lambda bad: step(learning_rate=bad), -0.1, [0.1, -0.1]),
    "a rate of nan": (lambda bad: step(learning_rate=bad), np.nan, [np.nan, np.nan]),
    "baseline": (lambda bad: delta_m([1.0, 1.0], [bad, 1.0], False), 0.0, np.inf),
    "a negative baseline": (lambda bad: delta_m([1.0, 1.0], [bad, 1.0], False), -1.0, -100.0),
    "gram": (lambda bad: mgda_weights(bad * jnp.eye(2)), np.nan, [np.nan, np.nan]),
}


def weigh_with_bounds(bad):
    return loss_weights(LOSSES, famo(2, min_losses=bad).init(None))


def step(**rates):
    """The logits after a step in which the first loss fell: Adam steps by the rate, down at first.

    At a rate of 0.1 they would be (-0.1, 0.1).
    """
    tx = famo(2, **rates)
    _, state = tx.update((), tx.init(None), losses=LOSSES, new_losses=LOSSES / jnp.array([2, 1]))
    return state.logits


@pytest.mark.parametrize("name", UNSEEN)
def test_values_are_not_seen_under_jit(name):
    call, bad, expected = UNSEEN[name]
    np.testing.assert_allclose(jax.jit(call)(bad), expected, rtol=1e-3)


def test_what_is_not_seen_under_jit_is_refused_outside_of_it():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="`min_losses`: expected finite values"):
            weigh_with_bounds(bad)
    for bad in (np.nan, -0.1):
        with pytest.raises(ValueError, match="`learning_rate`: expected a finite number"):
            step(learning_rate=bad)
    with pytest.raises(ValueError, match="`baseline`: expected metrics above 0"):
        delta_m([1.0], [-1.0], False)
