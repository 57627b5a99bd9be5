"""What the studies share: one training step, the choice on validation, the summaries."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax.experiments import _report, _study, digits


@pytest.fixture(scope="module")
def pictures():
    return digits.compose(jax.random.key(0), digits.load_splits().train, 256)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf[0], digits.init_params(1))


# --- Methods --------------------------------------------------------------------------------------


def one_step(name, params, pictures, variant=0.0):
    init, step = _study.training_step(
        digits.PROBLEM, _study.METHODS[name], 1e-2, jnp.asarray(variant)
    )
    return jax.jit(lambda params: step(init(params), pictures))(params)


@pytest.mark.parametrize(
    ("name", "variant", "scalar"),
    [
        ("ls", 0.0, jnp.mean),
        ("si", 0.0, lambda losses: jnp.mean(jnp.log(losses))),
        ("stl", 2, lambda losses: losses[2]),
        ("frozen-no-c", 0.0, lambda losses: jnp.mean(jnp.log(losses))),
        ("frozen", 0.0, lambda losses: jax.lax.stop_gradient(4 / jnp.sum(1 / losses))
         * jnp.mean(jnp.log(losses))),
    ],
)  # fmt: skip
def test_a_step_is_adam_on_the_gradient_of_a_scalar(name, variant, scalar, params, pictures):
    (after, _), trace = one_step(name, params, pictures, variant)
    grads = jax.grad(lambda params: scalar(digits.task_losses(params, pictures)))(params)
    updates, _ = optax.adam(1e-2).update(grads, optax.adam(1e-2).init(params))
    expected = optax.apply_updates(params, updates)
    # Adam's first step is the gradient's sign: it is what a gradient near 0 does that may differ.
    for leaf, leaf_ in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        assert np.mean(np.abs(leaf - leaf_) > 1e-4) < 1e-3
    np.testing.assert_allclose(trace.losses, digits.task_losses(params, pictures), rtol=1e-5)


def test_smooth_c_is_the_geometric_mean_of_recent_c(params, pictures):
    (_, opt_state), _ = one_step("famo", params, pictures)
    (_, smooth_state), _ = one_step("famo-smooth-c", params, pictures)
    (adam, _), _ = opt_state
    _, (smooth_adam, _), _ = smooth_state
    chex.assert_trees_all_close(smooth_adam.mu, adam.mu, rtol=1e-3, atol=1e-7)

    tx = _study.scale_by_smooth_c(0.9)
    state = tx.init(None)
    ones, state = tx.update(jnp.ones(2), state, log_c=jnp.log(4.0))
    np.testing.assert_allclose(ones, 4, rtol=1e-5)  # there is nothing else to average
    ones, state = tx.update(jnp.ones(2), state, log_c=jnp.log(1.0))
    np.testing.assert_allclose(ones, 4 ** (0.9 / 1.9), rtol=1e-5)


def test_two_pass_sees_the_change_of_its_own_step(params, pictures):
    (after, _), trace = one_step("famo", params, pictures)
    drop = trace.losses / digits.task_losses(after, pictures)
    # Adam's first step on the logits: up for the tasks that fell less than the mean, else down.
    z = trace.task_weights
    assert np.all((z > 0.25) == (np.log(drop) < np.mean(np.log(drop))))
    (_, _), trace = one_step("famo-one-pass", params, pictures)
    np.testing.assert_allclose(trace.task_weights, 0.25, rtol=1e-6)


# --- Choice and summaries -------------------------------------------------------------------------


def test_standard_error_by_hand():
    assert _report.standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
    assert np.isnan(_report.standard_error(np.array([1.0])))


def synthetic_run(validation, task_weights=None):
    """A run whose validation metrics [variants, rates, seeds, K] are given; test is 100 more."""
    validation = np.asarray(validation, float)
    losses = np.broadcast_to(validation[..., None, :], (*validation.shape[:-1], 5, digits.K))
    return _study.Run(_study.Trace(losses, task_weights), validation, validation + 100)


def test_single_task_learning_chooses_a_rate_for_each_task():
    validation = np.full((4, 3, 2, 4), 50.0)
    for task, rate in enumerate([2, 0, 1, 1]):
        validation[task, rate, :, task] = [1.0, 3.0]  # its own task
        validation[task, :, :, (task + 1) % 4] = 0.0  # a task that this network was not trained on
    validation[3, 2, 0, 3] = np.nan  # a seed that diverged excludes the setting
    validation[3, 2, 1, 3] = -100.0
    run = synthetic_run(validation)
    rates = [0.1, 0.2, 0.3]
    stl = _study.select(digits.TASKS, _study.METHODS["stl"], run, rates, [0.0], None)
    assert stl.learning_rate == (0.3, 0.1, 0.2, 0.2)
    np.testing.assert_array_equal(stl.test, np.repeat([[101.0], [103.0]], 4, axis=1))
    np.testing.assert_array_equal(stl.losses, np.tile([[[1.0] * 4, [3.0] * 4]], (5, 1, 1)))
    np.testing.assert_array_equal(_study.baseline_of(stl, rates), 4 * [2.0])


def test_the_least_delta_m_on_validation_chooses_rate_and_gamma():
    validation = np.full((2, 3, 2, 4), 8.0)
    validation[1, 0] = [[4.0, 8, 8, 8], [2.0, 8, 8, 8]]
    validation[0, 2] = [[4.0, 8, 8, 8], [4.0, 8, 8, 8]]
    validation[0, 1] = np.inf
    run = synthetic_run(validation, task_weights=np.full((2, 3, 2, 5, 4), 0.25))
    result = _study.select(
        digits.TASKS,
        _study.METHODS["famo"],
        run,
        [0.1, 0.2, 0.3],
        [0.0, 0.5],
        np.array([1.0, 9, 9, 9]),
    )
    assert result.learning_rate == (0.1,)
    assert result.gamma == 0.5
    np.testing.assert_array_equal(result.test, 100 + validation[1, 0])
    assert result.losses.shape == result.task_weights.shape == (5, 2, 4)


# --- Summaries ------------------------------------------------------------------------------------


def test_a_higher_metric_that_is_better_wins():
    tasks = [digits.TASKS[0], digits.TASKS[1]._replace(higher_is_better=True)]
    assert _study.delta_m(tasks, np.array([11.0, 8.0]), np.array([10.0, 10.0])) == pytest.approx(15)
    changes = _study.changes(tasks, np.array([11.0, 8.0]), np.array([10.0, 10.0]))
    np.testing.assert_allclose(changes, [10, 20], rtol=1e-5)
    validation = np.zeros((2, 2, 1, 2))  # [tasks, rates, seeds, tasks]
    validation[0, :, 0, 0], validation[1, :, 0, 1] = [3.0, 5.0], [3.0, 5.0]
    run = _study.Run(_study.Trace(np.ones((2, 2, 1, 3, 2)), None), validation, validation)
    stl = _study.select(tasks, _study.METHODS["stl"], run, [0.1, 0.2], [0.0], None)
    assert stl.learning_rate == (0.1, 0.2)


def test_the_interval_is_students():
    # n = 3, mean 2, standard deviation 1; 4.303 is the table's t for 2 degrees of freedom.
    low, high = _study.interval(np.array([1.0, 2.0, 3.0]))
    assert [low, high] == pytest.approx([2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5], abs=1e-3)
    assert np.isnan(_study.interval(np.array([1.0]))).all()


def test_the_range_of_the_logits_is_seen_through_softmax():
    logits = np.array([[0.0, 3.0, 1.0], [0.0, 1.5, 1.0]])  # [steps, K], ranges 3 and 1.5
    z = np.asarray(jax.nn.softmax(logits))
    validation = np.ones((1, 1, 2, 3))
    run = _study.Run(
        _study.Trace(np.ones((1, 1, 2, 2, 3)), np.broadcast_to(z, (1, 1, 2, 2, 3))),
        validation,
        validation,
    )
    tasks = digits.TASKS[:3]
    result = _study.select(tasks, _study.METHODS["famo"], run, [0.1], [0.0], np.ones(3))
    np.testing.assert_allclose(result.settings[0].logit_range, [[1.5, 1.5], [3, 3]], rtol=1e-5)
