"""The normaliser study: its problem, its c, its choice of rates, its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from famo_jax import famo
from famo_jax.experiments import _statistics, _train
from famo_jax.experiments import normalizer as study


def test_the_excess_over_all_inputs_is_what_a_large_sample_has():
    seed = study.draw_seed(0, 2.0, 20_000)
    np.testing.assert_allclose(seed.truth.variances, [0.01, 1, 1, 1], rtol=1e-6)
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), seed.train)
    losses = study.task_losses(seed.params, batch)
    exact = seed.truth.variances * (1 + study.excess(seed.params, seed.truth))
    np.testing.assert_allclose(losses, exact, rtol=0.02)


def test_the_network_holds_every_target():
    truth = study.draw_seed(0, 3.0, 1).truth
    np.testing.assert_allclose(np.linalg.norm(truth.targets, axis=0), 1, rtol=1e-6)
    params = study.Params(jnp.eye(study.FEATURES), truth.targets)
    np.testing.assert_allclose(study.metrics(params, (), truth), 0, atol=1e-3)


def test_seeds_and_nearnesses_differ_in_what_they_should():
    one, near, other = (study.draw_seed(*each, 3) for each in ((0, 0.0), (0, 4.0), (1, 0.0)))
    np.testing.assert_array_equal(one.train.inputs, near.train.inputs)
    np.testing.assert_array_equal(one.train.outputs[..., 1:], near.train.outputs[..., 1:])
    assert np.abs(one.train.outputs[..., 0] - near.train.outputs[..., 0]).max() > 0.1
    assert np.abs(one.train.inputs - other.train.inputs).max() > 0.1


@pytest.mark.parametrize("name", study.NORMALIZERS)
def test_c_is_scipys_mean_weighted_by_z(name):
    losses, logits = np.array([0.3, 2.0, 5.0, 0.8]), np.array([0.5, -1.0, 0.0, 1.5])
    z = np.exp(logits) / np.sum(np.exp(logits))
    expected = {
        "harmonic": scipy.stats.hmean(losses, weights=z),
        "geometric": scipy.stats.gmean(losses, weights=z),
        "arithmetic": np.average(losses, weights=z),
        "none": 1.0,
    }
    state = famo(study.K, normalizer=None if name == "none" else name).init(None)
    state = state._replace(logits=jnp.asarray(logits))
    before = _train.Carry(jnp.zeros(2), (state,), ())
    after = _train.Carry(jnp.array([3.0, 4.0]), (state,), ())
    c, length = study.measure(None, None, before, after, jnp.asarray(losses))
    assert c == pytest.approx(expected[name], rel=1e-5)
    assert length == pytest.approx(5)


def test_schedules():
    setting = {"learning_rate": 0.5}
    constant, cosine = (study.schedule_of(setting | {"schedule": k}, 10) for k in (0, 1))
    expected = optax.cosine_decay_schedule(0.5, 10)
    for count in (0, 3, 9):
        assert constant(count) == 0.5
        assert cosine(count) == pytest.approx(float(expected(count)))


def test_what_is_kept_are_decades_and_logarithms():
    measured = np.ones((1, 1, 3, 2))
    measured[0, 0, :, 0] = [1.0, 0.01, 0.1]
    kept = study.keep(measured)
    assert kept["c_decades"].item() == pytest.approx(2)
    np.testing.assert_allclose(np.exp(kept["logs"][0, 0, :, 0]), [1.0, 0.01, 0.1])


def test_a_ratio_is_paired_by_seed():
    base = np.array([1.0, 10.0, 100.0])
    ratio = _statistics.geometric(base * [2.0, 4.0, 8.0] / base)
    assert ratio["mean"] == pytest.approx(4)
    # Student's t with 2 degrees of freedom, of logs 1, 2, 3 to base 2: 4.303 / sqrt(3).
    ends = np.log2([ratio["low"], ratio["high"]])
    assert ends == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)


def test_a_quick_run(tmp_path, run_study):
    arguments = ["--quick", "--optimizers", "adam-frozen"]
    printed, summary = run_study("normalizer", tmp_path, *arguments)
    assert max(map(len, printed.splitlines())) <= 80
    for cells in summary["optimizers"]["adam-frozen"].values():
        assert list(cells) == list(study.NORMALIZERS)
        harmonic = cells["harmonic"]["best"]
        for cell in cells.values():
            assert cell["common"]["learning_rate"] == harmonic["learning_rate"]
            for each in cell["best"]["every"]:
                assert each["mean"] == pytest.approx(scipy.stats.gmean(each["by_seed"]), rel=1e-4)
        assert cells["none"]["best"]["c_decades"] == [0, 0]
        assert harmonic["c_decades"][1] > 1
        assert max(harmonic["logits_range"]) == 0  # frozen
    figure = study.draw(summary)
    cells = summary["optimizers"]["adam-frozen"]["cosine"]
    for axes, quantity in zip(figure.get_axes(), ("others", "near"), strict=True):
        for line in axes.get_lines():
            own = cells[line.get_label()]["best"][quantity]
            np.testing.assert_allclose(line.get_ydata(), [100 * each["mean"] for each in own])
