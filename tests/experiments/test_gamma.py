"""The gamma experiment: where logits rest, its forms of decay, its choices, its command line."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import famo_jax
from famo_jax.experiments import digits, gamma

# --- The logits at rest ---------------------------------------------------------------------------


def fixed_point(decrease, decay, num_tasks):
    """Where decay * xi = -J_softmax(xi)^T decrease, in float64, from the Jacobian written out."""

    def residual(logits):
        z = scipy.special.softmax(logits)
        jacobian = np.diag(z) - np.outer(z, z)
        return decay * logits + jacobian.T @ decrease

    solution = scipy.optimize.root(residual, np.zeros(num_tasks), tol=1e-14)
    assert np.abs(residual(solution.x)).max() < 1e-10
    return solution.x


@pytest.mark.parametrize(("num_tasks", "step_size", "decay"), [(2, 1e-3, 1e-3), (5, 1e-2, 3e-3)])
def test_logits_come_to_rest_where_a_root_finder_says(num_tasks, step_size, decay):
    setting = gamma.setting("paper", decay)
    logits = jax.jit(lambda: gamma.rest(num_tasks, setting, step_size, 6000))()
    decrease = np.asarray(gamma.decreases(num_tasks, step_size), np.float64)
    expected = fixed_point(decrease, decay, num_tasks)
    np.testing.assert_allclose(logits, expected, atol=0.01 * np.ptp(expected))
    again = gamma.predicted(expected, decrease, decay)
    np.testing.assert_allclose(again, expected, atol=1e-6)


def test_decreases_are_spread_ninefold_around_the_step_size():
    for num_tasks in (2, 40):
        decrease = gamma.decreases(num_tasks, 1e-3)
        np.testing.assert_allclose(decrease.max() / decrease.min(), 9, rtol=1e-5)
        np.testing.assert_allclose(decrease.mean(), 1e-3, rtol=1e-5)


@pytest.mark.parametrize("form", ["adamw", "normalized"])
def test_forms_without_units_rest_alike_whatever_the_size_of_a_step(form):
    rest = jax.jit(
        jax.vmap(lambda size: gamma.rest(10, gamma.setting(form, 1.0), size, 3000)),
    )
    small, large = np.ptp(rest(jnp.array([3e-4, 3e-3])), axis=1)
    assert small == pytest.approx(large, rel=0.05)
    paper = jax.jit(jax.vmap(lambda size: gamma.rest(10, gamma.setting("paper", 1e-3), size, 3000)))
    small, large = np.ptp(paper(jnp.array([3e-4, 3e-3])), axis=1)
    assert large / small == pytest.approx(10, rel=0.25)  # in proportion to the step


def test_adamw_rests_at_the_inverse_of_gamma():
    # Constant delta: Adam's normalised one is its sign, so |xi| = 1 / gamma.
    logits = jax.jit(lambda: gamma.rest(2, gamma.setting("adamw", 2.0), 1e-3, 3000))()
    np.testing.assert_allclose(sorted(logits), [-0.5, 0.5], rtol=0.02)


# --- Forms ----------------------------------------------------------------------------------------


def run_forms(tx, losses):
    state = tx.init(None)
    for before, after in itertools.pairwise(losses):
        _, state = tx.update((), state, losses=before, new_losses=after)
    return state.logits


@pytest.mark.parametrize(
    ("setting", "recipe"),
    [
        (gamma.setting("paper", 0.1, 0.05), famo_jax.famo(3, learning_rate=0.05, weight_decay=0.1)),
        (
            gamma.setting("paper/K", 0.1, 0.05),
            famo_jax.famo(3, learning_rate=0.05, weight_decay=0.1 / 3),
        ),
        (
            gamma.setting("adamw", 0.5, 0.05),
            famo_jax.famo(3, weight_decay=0.0, optimizer=optax.adamw(0.05, weight_decay=0.5)),
        ),
        (
            gamma.setting("normalized", 0.5, 0.05),
            famo_jax.famo(
                3,
                weight_decay=0.5,
                optimizer=None,
                learning_rate=0.05,
            ),
        ),
    ],
    ids=["paper", "paper/K", "adamw", "normalized"],
)
def test_a_setting_is_the_recipe_of_its_name(setting, recipe):
    losses = jnp.exp(jax.random.normal(jax.random.key(0), (20, 3)))
    found = run_forms(gamma.weighting(3, setting), losses)
    if setting.form == list(gamma.FORMS).index("normalized"):
        # By hand: delta over its root mean square, then decay, then Adam.
        adam = optax.adam(0.05)
        expected, state = np.zeros(3), adam.init(jnp.zeros(3))
        for before, after in itertools.pairwise(np.asarray(losses, np.float64)):
            z = scipy.special.softmax(expected)
            change = np.log(before) - np.log(after)
            delta = z * (change - z @ change)
            delta /= np.sqrt(np.mean(delta**2))
            updates, state = adam.update(jnp.asarray(delta + 0.5 * expected), state)
            expected = expected + np.asarray(updates, np.float64)
    else:
        expected = run_forms(recipe, losses)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


# --- Digits ---------------------------------------------------------------------------------------


def test_frozen_logits_weigh_all_tasks_alike_and_others_do_not():
    data = digits.load_data(steps=4, seeds=2, batch_size=8)
    settings = [gamma.FROZEN, gamma.setting("paper", 0.0, 0.1)]
    cell = gamma.Cell(8, "two-pass", "harmonic")
    params = digits.init_params(2)
    outcome = gamma.train_cell(cell, settings, 1e-2, params, data)
    assert outcome.test.shape == (2, 2, digits.K)
    np.testing.assert_array_equal(outcome.spread[0], 0)  # so that z = 1/K in every step
    assert np.all(outcome.spread[1] > 0.1)

    # Frozen without a normaliser is the mean of the log losses, another method of the library.
    frozen = gamma.train_cell(gamma.Cell(8, "one-pass", None), settings[:1], 1e-2, params, data)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    own = data._replace(train=jax.tree.map(lambda leaf: leaf[:, 0], data.train))
    si = jax.jit(
        lambda params: gamma.train(
            gamma.DIGITS, famo_jax.weighting.si(), "harmonic", False, jnp.array(1e-2), params, own
        )
    )(one)
    np.testing.assert_allclose(frozen.test[0, 0], si.test, rtol=0.02, atol=0.2)


def test_validation_alone_chooses():
    settings = gamma.digits_settings([0.0, 1e-3], [0.025])
    stl = np.ones(digits.K)
    reference = gamma.Reference(1e-2, [1e-2] * digits.K, stl, stl, np.zeros(2), np.zeros(2))
    cell = gamma.Cell(8, "one-pass", None)
    best = settings.index(gamma.setting("paper", 1e-3))
    validation = np.full((len(settings), 2, digits.K), 2.0)
    validation[best] = 1.5
    for seed in range(3):  # whatever the test says
        test = np.random.default_rng(seed).uniform(1, 3, validation.shape)
        outcome = gamma.Outcome(validation, test, np.zeros((len(settings), 2)))
        (figures,) = gamma.summarize_digits({cell: outcome}, {8: reference}, settings)
        tuned = figures["tuned"]
        assert (tuned["gamma"], tuned["rate"]) == (1e-3, 0.025)
        assert tuned["delta_m"] == pytest.approx(100 * (test[best].mean() - 1), rel=1e-5)
        paired = 100 * (test[best] - test[0]).mean(axis=-1)
        assert tuned["minus_frozen"]["mean"] == pytest.approx(paired.mean(), rel=1e-4)
        half = 12.7062 * paired.std(ddof=1) / math.sqrt(2)  # Student's t, 1 degree of freedom
        low, high = tuned["minus_frozen"]["interval"]
        assert (high - low) / 2 == pytest.approx(half, rel=1e-3)


def test_a_diverged_setting_is_never_chosen():
    assert gamma.choose(np.array([[np.nan, 0.0], [2.0, 2.0], [np.inf, 0.0]])) == 1


# --- Regressions ----------------------------------------------------------------------------------


def test_regressions_are_noisy_only_in_training_and_share_their_tasks():
    clean = gamma.make_waves(jax.random.key(0), 3, noise=0.0)
    noisy = gamma.make_waves(jax.random.key(0), 3, noise=0.1)
    np.testing.assert_array_equal(clean.x, noisy.x)
    assert np.std(noisy.y - clean.y) == pytest.approx(0.1, rel=0.05)
    assert np.abs(clean.y).max() <= 1
    # A line through a sine: the higher its frequency, the less of it there is.
    unexplained = []
    for y in np.asarray(clean.y).T:
        design = np.column_stack([clean.x, np.ones(len(y))])
        unexplained.append(np.linalg.lstsq(design, y)[1][0] / np.sum((y - y.mean()) ** 2))
    assert unexplained == sorted(unexplained)


# --- The command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gamma")
    gamma.main(["--quick", "--steps", "10", "--gamma", "0", "1e-3", "--out", str(folder)])
    return folder


def test_quick_run_is_complete(quick):
    def refuse(constant):
        raise AssertionError(constant)

    results = json.loads((quick / "gamma.json").read_text("utf-8"), parse_constant=refuse)
    assert results["settings"]["steps"] == 10
    assert set(results["environment"]) >= {"jax", "optax", "famo_jax", "device"}
    cells = [(each["mode"], each["normalizer"]) for each in results["digits"]]
    assert cells == list(itertools.product(["one-pass", "two-pass"], ["harmonic", None]))
    for each in results["digits"]:
        scores = np.array(each["test_delta_m_by_seed"], float)
        assert scores.shape == (len(each["settings"]), 2)
        assert np.all(np.isfinite(scores))
        assert each["settings"][0]["rate"] == 0
        assert each["logits_range"][0] == 0
        assert set(each["untuned"]) == {"default", "paper", "adamw", "normalized"}
        assert each["frozen"]["delta_m"] == pytest.approx(scores[0].mean(), rel=1e-4)
    rests = {(r["num_tasks"], r["form"], r["step_size"]) for r in results["constant_rates"]}
    assert rests == set(itertools.product([2, 10], gamma.FORMS, gamma.STEP_SIZES))
    waves = {(r["num_tasks"], r["mode"], r["form"], r["chosen"]) for r in results["regressions"]}
    assert waves == set(itertools.product([2, 10], gamma.MODES, gamma.FORMS, ["for all", "here"]))


def test_quick_run_draws(quick):
    for name in ("gamma.png", "gamma_batches.png", "gamma_scaling.png"):
        assert (quick / name).read_bytes().startswith(b"\x89PNG")
