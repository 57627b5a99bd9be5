"""The study of physics-informed networks: its solutions, its rules, its choice, its command."""

import argparse
import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax.experiments import _study, pinn

# --- Problems -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", pinn.PROBLEMS)
def test_the_exact_solution_has_no_misfit(name):
    problem = pinn.PROBLEMS[name]
    for term in pinn.terms_of(problem):
        size = np.abs(pinn.misfit(problem, lambda points: 0 * points[:, 0], term)).max()
        left = np.abs(pinn.misfit(problem, problem.exact, term)).max()
        assert left <= 1e-12 * max(1, size)
    assert pinn.relative_error(problem, problem.exact) == 0


def test_the_solutions_have_the_values_that_their_formulas_have_by_hand():
    points = jnp.array([[0.2, 0.0], [0.7, 1.0], [1e3, 0.0], [-1e3, 0.0]])
    # At the front's middle, which has moved by 0.5 in a time of 1; far before it and behind it.
    np.testing.assert_allclose(pinn.burgers_front(points), [0.5, 0.5, 0.0, 1.0], atol=1e-6)
    points = jnp.array([[0.5, 0.25], [0.5, -0.25], [1.0, 0.3], [0.1, 0.5]])
    np.testing.assert_allclose(pinn.sine_product(points, 0.0), [1, -1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(pinn.sine_product(points - 0.15, 0.15), [1, -1, 0, 0], atol=1e-6)


def test_residuals_of_fields_by_hand():
    points = jnp.array([[0.5, 2.0], [-1.0, 3.0]])
    x, t = np.asarray(points).T
    cubic = lambda points: points[:, 0] ** 3 + points[:, 1] ** 2
    np.testing.assert_allclose(pinn.derivative(cubic, 0)(points), 3 * x**2, rtol=1e-6)
    np.testing.assert_allclose(
        pinn.derivative(pinn.derivative(cubic, 0), 0)(points), 6 * x, rtol=1e-6
    )
    by_hand = 2 * t + (x**3 + t**2) * 3 * x**2 - pinn.VISCOSITY * 6 * x
    np.testing.assert_allclose(pinn.burgers_residual(cubic)(points), by_hand, rtol=1e-5)
    # Where the right side is that of u = 0, Helmholtz' residual is u_xx + u_yy + u.
    zero = lambda points: 0 * points[:, 0]
    by_hand = 6 * x + 2 + x**3 + t**2
    np.testing.assert_allclose(pinn.helmholtz_residual(cubic, zero)(points), by_hand, rtol=1e-5)


@pytest.mark.parametrize("name", pinn.PROBLEMS)
def test_points_lie_where_their_terms_are(name):
    problem = pinn.PROBLEMS[name]
    points = {term: np.asarray(at) for term, at in pinn.training_points(problem).items()}
    low, high = np.array(problem.low), np.array(problem.high)
    assert np.all((points["residual"] > low) & (points["residual"] < high))
    ends = np.isclose(points["boundary"], low) | np.isclose(points["boundary"], high)
    assert np.all(ends[:, 0] if problem.evolves else ends.any(axis=1))
    sides = [np.isclose(points["boundary"][:, 0], end[0]).any() for end in (low, high)]
    assert all(sides)
    if problem.evolves:
        np.testing.assert_allclose(points["initial"][:, 1], low[1])
        assert np.ptp(points["initial"][:, 0]) == high[0] - low[0]
    else:
        for end in (low, high):
            assert np.isclose(points["boundary"][:, 1], end[1]).any()


def test_zero_meets_the_boundary_of_helmholtz_and_misses_that_of_the_shifted():
    zero = lambda points: 0 * points[:, 0]
    at_rest, shifted = (
        np.mean(np.square(pinn.misfit(pinn.PROBLEMS[name], zero, "boundary")))
        for name in ("helmholtz", "helmholtz-shifted")
    )
    assert at_rest < 1e-12
    assert shifted > 0.1
    assert pinn.relative_error(pinn.PROBLEMS["helmholtz"], zero) == pytest.approx(1)


# --- The network and its losses -------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf[0], _study.init_params(pinn.Network, 1))


def test_task_gradients_are_the_jacobian_of_the_losses(params):
    problem = pinn.PROBLEMS["burgers"]
    losses, grads = jax.jit(lambda params: pinn.losses_and_task_gradients(problem, params))(params)
    losses_fn = lambda params: pinn.task_losses(problem, params)
    np.testing.assert_allclose(losses, losses_fn(params), rtol=1e-5)
    jacobian = jax.jit(jax.jacrev(losses_fn))(params)
    for leaf, leaf_ in zip(jax.tree.leaves(grads), jax.tree.leaves(jacobian), strict=True):
        np.testing.assert_allclose(leaf, leaf_, rtol=1e-3, atol=1e-5)


def test_losses_are_mean_squares_and_the_network_sees_coordinates_from_minus_1_to_1(
    params, monkeypatch
):
    # With x + 10 y in the network's place a field's values tell which coordinates it was given.
    monkeypatch.setattr(_study, "apply", lambda _, params, points: points @ jnp.array([1.0, 10.0]))
    problem = pinn.PROBLEMS["burgers"]
    corners = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.5, 1.0]])
    np.testing.assert_allclose(pinn.field_of(problem, params)(corners), [-11, 11, 10], atol=1e-5)
    # u = 2 x + 20 t - 11: u_t = 20, u_x = 2, u_xx = 0.
    x, t = np.asarray(pinn.training_points(problem)["residual"]).T
    by_hand = np.mean((20 + (2 * x + 20 * t - 11) * 2) ** 2)
    assert pinn.task_losses(problem, params)[0] == pytest.approx(by_hand, rel=1e-5)


# --- Weights from gradients -----------------------------------------------------------------------

GRADIENTS = jnp.array([[3.0, -4.0], [0.5, 0.0]])  # of two losses, by two parameters


def test_annealing_by_hand():
    # The largest entry of the first is 4, the mean magnitude of the second 0.25.
    np.testing.assert_allclose(pinn.anneal(GRADIENTS), [1, 16])


def test_equal_norms_by_hand():
    # Norms 5 and 0.5, their sum 5.5.
    np.testing.assert_allclose(pinn.equalize(GRADIENTS), [1.1, 11], rtol=1e-6)


def test_balancing_follows_with_a_memory_of_0_9():
    tx = pinn.balance(2, pinn.anneal)
    stacked = {"a": GRADIENTS[:, :1], "b": GRADIENTS[:, 1:]}
    state = tx.init(None)
    np.testing.assert_array_equal(state.weights, [1, 1])
    combined, state = tx.update(stacked, state)
    np.testing.assert_allclose(state.weights, [1, 0.9 + 1.6], rtol=1e-6)
    np.testing.assert_allclose(combined["a"], [3 + 2.5 * 0.5], rtol=1e-6)
    np.testing.assert_allclose(combined["b"], [-4], rtol=1e-6)
    _, state = tx.update(stacked, state)
    np.testing.assert_allclose(state.weights, [1, 0.9 * 2.5 + 1.6], rtol=1e-6)


# --- Training and choice --------------------------------------------------------------------------


def test_training_without_weights_is_adam_with_a_cosine_schedule(params):
    problem = pinn.PROBLEMS["burgers"]
    run = jax.jit(lambda: pinn.train(problem, pinn.METHODS["ls"], 1, 1e-2, 0.0, params))()
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, pinn.RECORDS))
    loss_fn = lambda params: jnp.sum(pinn.task_losses(problem, params))

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), pinn.task_losses(problem, params)

    _, losses = jax.jit(
        lambda: jax.lax.scan(step, (params, tx.init(params)), length=pinn.RECORDS)
    )()
    np.testing.assert_allclose(run.losses[:10], losses[:10], rtol=1e-3)
    np.testing.assert_allclose(run.losses[-1], losses[-1], rtol=0.05)
    assert run.task_weights is None


def options_of(**given):
    return argparse.Namespace(**{**pinn.FULL, **given})


def test_the_setting_is_chosen_on_seeds_that_are_not_reported():
    seen = []

    def trainer(stride, lane):
        seen.append(lane)
        # The better setting is (rate 0.2, gamma 7). On the reported seeds it is the worst.
        good = (lane.learning_rate, lane.setting) == (0.2, 7.0)
        error = np.nan if lane.setting == 9.0 and lane.seed == 3 else 1.0
        if good:
            error = 0.5 if lane.seed >= 2 else 50.0
        return pinn.Run(np.full((pinn.RECORDS, 2), stride), None, np.asarray(error))

    options = options_of(
        learning_rate=[0.1, 0.2], gamma=[3.0, 7.0, 9.0], seeds=2, tuning_seeds=2, steps=100
    )
    result = pinn.study_method(trainer, pinn.METHODS["famo"], options, lambda: None)
    assert (result.learning_rate, result.setting) == (0.2, 7.0)
    np.testing.assert_array_equal(result.run.error, [50, 50])
    assert result.tuning.shape == (3, 2, 2)
    np.testing.assert_array_equal(result.tuning[1], [[1, 1], [0.5, 0.5]])
    np.testing.assert_array_equal(result.tuning[2], [[1, np.nan], [1, np.nan]])
    assert {lane.seed for lane in seen[:12]} == {2, 3}
    assert [lane.seed for lane in seen[12:]] == [0, 1]
    assert result.run.losses.shape == (2, pinn.RECORDS, 2)
    assert np.all(result.run.losses == 100 // pinn.RECORDS)


def test_a_geometric_mean_and_its_interval_by_hand():
    figures = pinn.geometric(np.array([0.1, 1.0, 10.0]))
    # Logarithms to base 10 of -1, 0, 1: standard error 1 / sqrt 3, and t is 4.3027 at 2 degrees.
    half = 10 ** (4.3027 / np.sqrt(3))
    assert figures["mean"] == pytest.approx(1)
    assert figures["high"] == pytest.approx(half, rel=1e-3)
    assert figures["low"] == pytest.approx(1 / half, rel=1e-3)


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pinn") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", "80")
        pinn.main(["--quick", "--out", f"{folder}"])
    return folder, out.getvalue(), json.loads((folder / "pinn.json").read_text(encoding="utf-8"))


def test_it_prints_a_row_for_every_method_within_80_columns(quick_run):
    _, printed, _ = quick_run
    lines = printed.splitlines()
    assert "…" not in printed
    assert max(map(len, lines)) <= 80
    for name in pinn.QUICK["methods"]:
        rows = [line for line in lines if line.split()[:1] == [name] and len(line.split()) > 5]
        assert len(rows) == len(pinn.QUICK["problems"])


def test_it_writes_every_figure(quick_run):
    folder, _, written = quick_run
    assert written["settings"] == {
        **pinn.QUICK,
        "out": str(folder),
        "quick": True,
    }
    assert set(written["environment"]) >= {"jax", "optax", "flax", "famo_jax", "device"}
    assert list(written["problems"]) == pinn.QUICK["problems"]
    records = pinn.RECORDS
    assert len(written["record_steps"]) == records
    assert written["record_steps"][-1] == pinn.QUICK["steps"]
    for problem in written["problems"].values():
        terms = problem["terms"]
        assert list(problem["methods"]) == pinn.QUICK["methods"]
        for figures in problem["methods"].values():
            errors = np.array(figures["error_by_seed"])
            assert errors.shape == (pinn.QUICK["seeds"],)
            assert figures["error"]["mean"] == pytest.approx(np.sqrt(np.prod(errors)), rel=1e-4)
            assert figures["error"]["low"] <= errors.min()  # of two seeds the interval is wide
            assert list(figures["losses_at_end"]) == terms
            assert np.shape(figures["losses"]) == (records, len(terms))
            times = figures["step_seconds"]
            assert 0 < times["q1"] <= times["median"] <= times["q3"]
        z = np.array(problem["methods"]["famo-no-c"]["task_weights"])
        np.testing.assert_allclose(z.sum(axis=1), 1, rtol=1e-4)
        assert problem["methods"]["famo-no-c"]["logit_range_at_end"] > 0
        assert problem["methods"]["ls"]["step_relative_to_ls"] == 1
    picture = (folder / "pinn.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 1700  # twice the width at which it is shown


def test_training_reduces_the_losses(quick_run):
    _, _, written = quick_run
    for problem in written["problems"].values():
        for figures in problem["methods"].values():
            assert sum(figures["losses"][-1]) < sum(figures["losses"][0])


def test_help_lists_every_method(capsys):
    with pytest.raises(SystemExit) as exit_info:
        pinn.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    for name, method in pinn.METHODS.items():
        assert f"  {name} " in printed
        assert method.description in printed
