"""What the studies share: one training step, streams, choices, means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

import famo_jax
from famo_jax import _method, aggregation, weighting
from famo_jax.experiments import _checkpoint, _methods, _statistics, _train
from famo_jax.experiments.problems import _problem

# --- A tenth study: two regressions with batch norm and dropout, streamed -------------------------


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.heads = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.heads(self.dropout(jnp.tanh(self.norm(self.hidden(x))), rngs=rngs))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))


def init(seeds):
    def one(key):
        return nnx.split(Network(nnx.Rngs(key)), nnx.Param, ...)[1:]

    return jax.vmap(one)(jax.vmap(jax.random.key)(jnp.asarray(seeds)))


def losses(params, state, batch, key):
    model = nnx.merge(GRAPH, params, state, copy=True)
    model.train()
    errors = jnp.mean((model(batch["x"], nnx.Rngs(key)) - batch["y"]) ** 2, axis=0)
    return errors, nnx.state(model, nnx.Not(nnx.Param))


def metrics(params, state, batch):
    model = nnx.merge(GRAPH, params, state, copy=True)
    model.eval()
    return jnp.mean(jnp.abs(model(batch["x"]) - batch["y"]), axis=0)


def rows(first, last, seeds=2, size=16):
    """A stream: what is not asked for is never in memory."""
    batches = []
    for step in range(first, last):
        x = np.random.default_rng(step).normal(size=(seeds, size, 3)).astype(np.float32)
        batches.append({"x": x, "y": np.stack([x[..., 0], 30 * x[..., 1] + 9], axis=-1)})
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def load_data(steps, seeds, batch_size):
    held_out = jax.tree.map(lambda leaf: leaf[0], rows(10**6, 10**6 + 1, size=200))
    return _problem.Data(rows, held_out, held_out, epoch=20)


TASKS = tuple(_problem.Task(name, name, name, 2) for name in ("small", "large"))
TENTH = _problem.Problem(TASKS, load_data, init, losses, metrics)


def arm_of(name, rate, steps=60, **more):
    method = _methods.METHODS[name]
    settings = [{"learning_rate": rate} | ({"gamma": 1e-3} if method.takes else {})]
    return _train.Arm("a", TENTH, load_data(steps, [0, 1], 16), steps, method, settings, [0, 1],
                      **more)  # fmt: skip


def test_both_passes_see_the_same_masks():
    """At a learning rate of 0 the losses do not change, so the logits do not move."""
    assert _train.train(arm_of("famo", 0.0))["logit_range"].max() < 1e-5
    assert _train.train(arm_of("famo", 1e-2))["logit_range"].max() > 1e-3


def test_epochs_are_one_training():
    one = _train.train(arm_of("famo", 1e-2)._replace(data=load_data(60, 0, 0)._replace(epoch=60)))
    streamed = _train.train(arm_of("famo", 1e-2))
    for name, values in streamed.items():
        np.testing.assert_allclose(values, one[name], rtol=1e-4, atol=1e-6)


def test_a_run_by_epochs_goes_on_where_it_was_stopped(tmp_path):
    """With the statistics of its batches, after a stop in the second of three epochs."""

    def save(steps, state):
        _checkpoint.save(tmp_path, "a", steps, state, seconds=7.0)
        if steps == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train.train(arm_of("famo", 1e-2), save=save)
    with np.load(tmp_path / "a.npz") as arrays:
        saved = _checkpoint.Saved(*(arrays[field] for field in _checkpoint.Saved._fields))
    assert (saved.steps, saved.seconds) == (40, 7)
    whole, resumed = _train.train(arm_of("famo", 1e-2)), _train.train(arm_of("famo", 1e-2), saved)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values)


def test_statistics_of_the_batches_are_carried():
    """Where the network stands still they are a moving average of its hidden units."""
    arm = arm_of("famo", 0.0, steps=40)
    means = lambda params, state, batch: state["norm"]["mean"].get_value()
    (found,) = _train.train(arm._replace(problem=TENTH._replace(metrics=means)))["test"]
    params, state = init([0, 1])
    expected = np.asarray(state["norm"]["mean"].get_value())
    kernel, bias = (params["hidden"][name].get_value() for name in ("kernel", "bias"))
    for batch in rows(0, 40)["x"]:
        hidden = np.einsum("sbi,sio->sbo", batch, kernel) + bias[:, None]
        expected = 0.99 * expected + 0.01 * hidden.mean(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).max() > 1e-3


def test_masks_differ_by_step():
    losses = _train.train(arm_of("ls", 0.0, steps=4))["losses"][0, 0]
    assert len(np.unique(losses[:, 0])) == 4


# --- Methods --------------------------------------------------------------------------------------


def logits_after(name, changes):
    tx = _methods.METHODS[name].make(2, gamma=1e-3)
    state = tx.init(None)
    for change in changes:
        _, state = tx.update((), state, losses=jnp.exp(change), new_losses=jnp.ones(2))
    return state


def test_forms_of_famo_are_what_their_names_say():
    """Smoothed, and with c or without."""
    changes = jnp.array([[0.5, -0.5], [-0.5, 0.5], [0.3, -0.2], [-0.5, 0.1]])
    plain = logits_after("famo-one-pass", changes).logits
    for name in ("famo-ema", "famo-ema-no-c"):
        assert np.abs(logits_after(name, changes).logits - plain).max() > 1e-3
    for name, method in _methods.METHODS.items():
        if method.has_logits and name.startswith(("famo", "frozen")):
            gamma = {"gamma": 1e-3} if method.takes else {}
            weights = famo_jax.loss_weights(
                jnp.array([2.0, 4.0]), method.make(2, **gamma).init(None)
            )
            expected = (2 / 3, 1 / 3) if not name.endswith("-no-c") else (1 / 4, 1 / 8)
            np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_every_method_of_the_library_is_there():
    names = {
        name.replace("_", "-")
        for name in (*weighting.__all__, *aggregation.__all__)
        if name.islower() and not name.endswith("_weights")
    }
    assert names - set(_methods.METHODS) == {"log-losses", "periodic"}  # around another one
    for name, method in _methods.METHODS.items():
        tx = method.make(3, **dict.fromkeys(method.takes, 0))
        state = jax.eval_shape(tx.init, {"x": jnp.ones(2)})
        assert _method.is_aggregation(_method.find_state(state)) == method.aggregates, name


def test_dwa_looks_back_25_steps():
    state = _methods.METHODS["dwa"].make(2).init(None)
    assert state.history.shape == (2 * 25, 2)


# --- Statistics -----------------------------------------------------------------------------------


def test_the_interval_is_students():
    # n = 3, mean 2, standard deviation 1; 4.303 is the table's t for 2 degrees of freedom.
    found = _statistics.estimate([1.0, 2.0, 3.0])
    half = 4.303 / 3**0.5
    assert [found["low"], found["high"]] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert found["se"] == pytest.approx(3**-0.5)
    alone = _statistics.estimate([1.0])
    assert alone["mean"] == 1
    assert np.isnan([alone["se"], alone["low"], alone["high"]]).all()


def test_a_difference_has_the_p_value_of_a_paired_t_test():
    one, other = np.random.default_rng(0).normal(size=(2, 9))
    one += 0.8
    found = _statistics.difference(one - other)
    expected = scipy.stats.ttest_rel(one, other)
    assert found["p"] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert [found["low"], found["high"]] == pytest.approx([interval.low, interval.high])
    assert np.isnan(_statistics.difference([1.0])["p"])


def test_holms_correction():
    # By hand: 0.01 x 4, 0.02 x 3, then the maximum so far; what is no number is no evidence.
    found = _statistics.holm([0.03, 0.01, np.nan, 0.02])
    np.testing.assert_allclose(found, [0.06, 0.04, 1.0, 0.06])
    assert len(_statistics.holm([])) == 0


def test_delta_m_and_ranks_are_the_librarys():
    values = np.random.default_rng(0).uniform(1, 2, (5, 4))
    higher = np.array([True, False, True, False])
    expected = famo_jax.delta_m(values, values[0], higher)
    np.testing.assert_allclose(
        _statistics.delta_m(values, values[0], higher), expected, rtol=1e-4, atol=1e-4
    )
    values[2, 1] = np.nan
    expected = famo_jax.mean_rank(values, higher)
    np.testing.assert_allclose(_statistics.mean_ranks(values, higher), expected)


def test_what_diverged_is_never_chosen():
    assert _statistics.choose([np.nan, 2.0, 1.0, np.inf, -np.inf]) == 2


def test_edges():
    grid = {"learning_rate": [0.1, 0.2, 0.3], "gamma": [0.0, 1.0]}
    assert _statistics.edges([{"learning_rate": 0.3, "gamma": 0.0}], grid) == ["learning rate 0.3"]
    assert _statistics.edges([{"learning_rate": 0.2, "gamma": 1.0}], grid) == ["gamma 1"]
    both = [{"learning_rate": rate} for rate in (0.1, 0.2, 0.1)]
    assert _statistics.edges(both, grid) == ["learning rate 0.1"]


def test_thinned_curves_are_means_of_stretches():
    curve = np.arange(12.0)
    np.testing.assert_array_equal(_statistics.thin(curve, 4), [1, 4, 7, 10])
    np.testing.assert_array_equal(_statistics.middles(12, 4), [1, 4, 7, 10])
