"""The gamma study: where logits rest, its scales of gamma, its choices, its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from famo_jax.experiments import _methods, gamma
from famo_jax.experiments.problems import digits, waves

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
    logits = jax.jit(lambda: gamma.rest(num_tasks, decay, step_size, 6000))()
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


# --- Choices --------------------------------------------------------------------------------------


def synthetic(settings, seeds, values):
    """Validation and test metrics ``[settings, seeds, K]`` from functions of both."""
    shape = len(settings), seeds, digits.K
    of = {split: np.ones(shape) for split in ("validation", "test")}
    for split, seed, value in values:
        of[split][:, seed] = np.reshape(value, (-1, 1))
    return of


def test_settings_are_chosen_by_other_seeds_than_those_that_report():
    settings = [{"gamma": g, "logits_rate": 0.025, "learning_rate": 1e-2} for g in (0.0, 1e-3)]
    rates = [{"learning_rate": rate} for rate in gamma.MODEL_RATES]
    both = [*((split, seed, [1.0, 2.0]) for split in ("validation", "test") for seed in (0, 1)),
            *((split, 2, [2.0, 1.0]) for split in ("validation", "test"))]  # fmt: skip
    stl = synthetic(4 * rates, 3, [])
    arrays = {"batch 8 stl": stl, "batch 8 si": synthetic(rates, 3, [])}
    arrays["batch 8 frozen"] = synthetic([{}], 3, [])
    arrays |= {f"batch 8 {name}": synthetic(settings, 3, both) for name in gamma.NAMES}
    arms = {name: {"settings": settings} for name in arrays}
    runs = gamma.Runs({"arms": arms}, arrays)
    for row in gamma.summarize_digits(runs, 8, seeds=2):
        assert row["minus_control"]["gamma"] == 1e-3  # the best of seed 2
        assert row["delta_m"]["mean"] == pytest.approx(100)  # by seeds 0 and 1


def test_a_scale_over_k_is_gamma_over_k():
    losses = jnp.exp(jax.random.normal(jax.random.key(0), (2, 3)))
    logits = []
    for scale, value in (("gamma", 0.1), ("gamma/K", 0.3)):
        tx = gamma.with_scale("two-pass", scale).make(3, gamma=value)
        state = tx.init(None)._replace(logits=jnp.array([0.5, 0.0, -0.5]))
        for _ in range(3):
            _, state = tx.update((), state, losses=losses[0], new_losses=losses[1])
        logits.append(state.logits)
    np.testing.assert_allclose(*logits, rtol=1e-5)


# --- Regressions ----------------------------------------------------------------------------------


def test_regressions_are_noisy_only_in_training_and_share_their_tasks():
    clean = waves.make_waves(jax.random.key(0), 3, noise=0.0)
    noisy = waves.make_waves(jax.random.key(0), 3, noise=0.1)
    np.testing.assert_array_equal(clean.x, noisy.x)
    assert np.std(noisy.y - clean.y) == pytest.approx(0.1, rel=0.05)
    # A line through a sine: the higher its frequency, the less of it there is.
    unexplained = []
    for y in np.asarray(clean.y).T:
        design = np.column_stack([clean.x, np.ones(len(y))])
        unexplained.append(
            np.linalg.lstsq(design, y, rcond=None)[1][0] / np.sum((y - y.mean()) ** 2)
        )
    assert unexplained == sorted(unexplained)


# --- The command line -----------------------------------------------------------------------------


def test_a_quick_run(tmp_path, run_study):
    arguments = ["--quick", "--steps", "10", "--gamma", "0", "1e-3", "--tasks", "2"]
    printed, summary = run_study("gamma", tmp_path, *arguments)
    assert max(map(len, printed.splitlines())) <= 80
    assert [row["form"] for row in summary["digits"]] == list(gamma.NAMES)
    assert {row["scale"] for row in summary["waves"]} == set(gamma.SCALES)
    (axes,) = gamma.draw_digits(summary).get_axes()
    for row, bars in zip(summary["digits"], axes.containers, strict=True):
        line = bars.lines[0]
        means = [each["mean"] for each in row["validation_minus_control"]]
        np.testing.assert_allclose(line.get_ydata(), means)
        assert line.get_color() == _methods.METHODS[row["form"]].colour
    assert (tmp_path / "gamma_scaling.png").read_bytes().startswith(b"\x89PNG")
