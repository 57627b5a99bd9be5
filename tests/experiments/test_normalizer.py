"""The normaliser study: its problem, its c, its choice of rates, its command line."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from famo_jax import loss_weights
from famo_jax.experiments import _methods, _statistics
from famo_jax.experiments import normalizer as study


def test_the_excess_over_all_inputs_is_what_a_large_sample_has():
    params, truth, train = study.draw_seed(0, 2.0, 20_000)
    np.testing.assert_allclose(truth.variances, [0.01, 1, 1, 1], rtol=1e-6)
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), train)
    losses = study.task_losses(params, batch)
    exact = truth.variances * (1 + study.metrics(params, truth)[study.K :])
    np.testing.assert_allclose(losses, exact, rtol=0.02)


def test_the_network_holds_every_target():
    _, truth, _ = study.draw_seed(0, 3.0, 1)
    np.testing.assert_allclose(np.linalg.norm(truth.targets, axis=0), 1, rtol=1e-6)
    params = study.Params(jnp.eye(study.FEATURES), truth.targets)
    np.testing.assert_allclose(study.metrics(params, truth), 0, atol=1e-3)


def test_seeds_and_nearnesses_differ_in_what_they_should():
    one, near, other = (study.draw_seed(*each, 3)[2] for each in ((0, 0.0), (0, 4.0), (1, 0.0)))
    np.testing.assert_array_equal(one[0], near[0])  # inputs, outputs
    np.testing.assert_array_equal(one[1][..., 1:], near[1][..., 1:])
    assert np.abs(one[1][..., 0] - near[1][..., 0]).max() > 0.1
    assert np.abs(one[0] - other[0]).max() > 0.1


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
    state = study.method_of(name).make(study.K).init(None)._replace(logits=jnp.asarray(logits))
    c = jnp.asarray(losses) * loss_weights(jnp.asarray(losses), state) / z
    np.testing.assert_allclose(c, expected[name], rtol=1e-5)


def test_fixed_weights_are_those_of_the_other_studies():
    for name in study.WEIGHTS[len(study.NORMALIZERS) :]:
        assert study.method_of(name) is _methods.METHODS[name]


def test_schedules():
    setting = {"learning_rate": 0.5}
    constant, cosine = (study.schedule_of(setting | {"schedule": k}, 10) for k in (0, 1))
    expected = optax.cosine_decay_schedule(0.5, 10)
    for count in (0, 3, 9):
        assert constant(count) == 0.5
        assert cosine(count) == pytest.approx(float(expected(count)))


def test_each_cell_has_the_rate_that_is_best_for_it():
    """Two schedules, two rates, three seeds, two nearnesses: what was chosen is in the test."""
    validation = np.zeros((2, 2, 3, 2, 2 * study.K))
    best = np.array([[0, 1], [1, 0]])  # [schedules, nearnesses]
    test = np.zeros_like(validation)
    for schedule, rate, near in itertools.product(range(2), repeat=3):
        validation[schedule, rate, :, near] = float(rate != best[schedule, near])
        test[schedule, rate, :, near, study.K :] = 8 * schedule + 4 * rate + 2 * near + 1
        test[schedule, rate, :, near, study.K] += 100  # the near task
    arrays = {
        name: each.reshape(4, 6, -1) for name, each in (("validation", validation), ("test", test))
    }
    found = study.select(arrays, seeds=3)
    expected = 8 * np.arange(2)[:, None] + 4 * best + 2 * np.arange(2) + 1
    np.testing.assert_allclose(found["other tasks"], np.repeat(expected[..., None], 3, axis=-1))
    np.testing.assert_allclose(found["near task"][..., 0], expected + 100)
    every = np.exp((3 * np.log(1 + expected) + np.log(101 + expected)) / 4) - 1
    np.testing.assert_allclose(found["all tasks"][..., 0], every)


def test_a_ratio_is_paired_by_seed():
    base = np.array([1.0, 10.0, 100.0])
    ratio = _statistics.geometric(base * [2.0, 4.0, 8.0] / base)
    assert ratio["mean"] == pytest.approx(4)
    # Student's t with 2 degrees of freedom, of logs 1, 2, 3 to base 2: 4.303 / sqrt(3).
    ends = np.log2([ratio["low"], ratio["high"]])
    assert ends == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)


def test_a_quick_run(tmp_path, run_study):
    printed, summary = run_study("normalizer", tmp_path, "--quick", "--optimizers", "adam")
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    assert list(summary["cells"]) == ["adam, constant", "adam, cosine"]
    for cells in summary["cells"].values():
        assert list(cells) == list(study.WEIGHTS)
        for cell in cells.values():
            for quantity in study.QUANTITIES:
                own, base = (each["excess"][quantity] for each in (cell, cells["harmonic"]))
                ratio = cell["over_harmonic"][quantity]["mean"]
                assert ratio == pytest.approx(own[-1]["mean"] / base[-1]["mean"], rel=1e-3)
    for axes, quantity in zip(study.draw(summary).get_axes(), study.QUANTITIES, strict=False):
        for bars in axes.containers:
            own = summary["cells"]["adam, cosine"][bars.get_label()]["excess"][quantity]
            means = [each["mean"] for each in own]
            np.testing.assert_allclose(bars.lines[0].get_ydata(), means)
        assert axes.get_title(loc="left") == f"{quantity}, adam"
