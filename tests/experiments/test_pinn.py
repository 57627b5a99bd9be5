"""The study of physics-informed networks: its solutions, its rules, its choice, its command."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax.experiments import _command, _files, _statistics, _train, pinn
from famo_jax.experiments.problems import _problem, equations

# --- Problems -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", equations.EQUATIONS)
def test_the_exact_solution_has_no_misfit(name):
    problem = equations.EQUATIONS[name]
    for term in equations.terms_of(problem):
        size = np.abs(equations.misfit(problem, lambda points: 0 * points[:, 0], term)).max()
        left = np.abs(equations.misfit(problem, problem.exact, term)).max()
        assert left <= 1e-12 * max(1, size)
    assert equations.relative_error(problem, problem.exact) == 0


def test_the_solutions_have_the_values_that_their_formulas_have_by_hand():
    points = jnp.array([[0.2, 0.0], [0.7, 1.0], [1e3, 0.0], [-1e3, 0.0]])
    # At the front's middle, which has moved by 0.5 in a time of 1; far before it and behind it.
    np.testing.assert_allclose(equations.burgers_front(points), [0.5, 0.5, 0.0, 1.0], atol=1e-6)
    points = jnp.array([[0.5, 0.25], [0.5, -0.25], [1.0, 0.3], [0.1, 0.5]])
    np.testing.assert_allclose(equations.sine_product(points, 0.0), [1, -1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        equations.sine_product(points - 0.15, 0.15), [1, -1, 0, 0], atol=1e-6
    )


def test_residuals_of_fields_by_hand():
    points = jnp.array([[0.5, 2.0], [-1.0, 3.0]])
    x, t = np.asarray(points).T
    cubic = lambda points: points[:, 0] ** 3 + points[:, 1] ** 2
    np.testing.assert_allclose(equations.derivative(cubic, 0)(points), 3 * x**2, rtol=1e-6)
    np.testing.assert_allclose(
        equations.derivative(equations.derivative(cubic, 0), 0)(points), 6 * x, rtol=1e-6
    )
    by_hand = 2 * t + (x**3 + t**2) * 3 * x**2 - equations.VISCOSITY * 6 * x
    np.testing.assert_allclose(equations.burgers_residual(cubic)(points), by_hand, rtol=1e-5)
    # Where the right side is that of u = 0, Helmholtz' residual is u_xx + u_yy + u.
    zero = lambda points: 0 * points[:, 0]
    by_hand = 6 * x + 2 + x**3 + t**2
    np.testing.assert_allclose(
        equations.helmholtz_residual(cubic, zero)(points), by_hand, rtol=1e-5
    )


@pytest.mark.parametrize("name", equations.EQUATIONS)
def test_points_lie_where_their_terms_are(name):
    problem = equations.EQUATIONS[name]
    points = {term: np.asarray(at) for term, at in equations.training_points(problem).items()}
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
        np.mean(np.square(equations.misfit(equations.EQUATIONS[name], zero, "boundary")))
        for name in ("helmholtz", "helmholtz-shifted")
    )
    assert at_rest < 1e-12
    assert shifted > 0.1
    assert equations.relative_error(equations.EQUATIONS["helmholtz"], zero) == pytest.approx(1)


# --- The network and its losses -------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf[0], _problem.init_params(equations.Network, [0]))


def test_one_function_a_term_is_the_losses(params):
    problem = equations.problem_of(equations.EQUATIONS["burgers"])
    losses, _ = problem.losses(params, (), None, None)
    own = [term(params, (), None, None) for term in problem.each]
    np.testing.assert_allclose(own, losses, rtol=1e-6)


def test_losses_are_mean_squares_and_the_network_sees_coordinates_from_minus_1_to_1(
    params, monkeypatch
):
    # With x + 10 y in the network's place a field's values tell which coordinates it was given.
    monkeypatch.setattr(
        _problem, "apply", lambda _, params, points: points @ jnp.array([1.0, 10.0])
    )
    problem = equations.EQUATIONS["burgers"]
    corners = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.5, 1.0]])
    np.testing.assert_allclose(
        equations.field_of(problem, params)(corners), [-11, 11, 10], atol=1e-5
    )
    # u = 2 x + 20 t - 11: u_t = 20, u_x = 2, u_xx = 0.
    x, t = np.asarray(equations.training_points(problem)["residual"]).T
    by_hand = np.mean((20 + (2 * x + 20 * t - 11) * 2) ** 2)
    assert equations.task_losses(problem, params)[0] == pytest.approx(by_hand, rel=1e-5)


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


def arm_of(name, settings, steps=60):
    problem = equations.problem_of(equations.EQUATIONS["burgers"])
    data = problem.load_data(steps, [0], 1)
    return _train.Arm("a", problem, data, steps, pinn.METHODS[name], settings, [0])


def test_training_without_weights_is_adam_with_a_cosine_schedule(params):
    equation = equations.EQUATIONS["burgers"]
    run = _train.train(arm_of("ls", [{"learning_rate": 1e-2}]))
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, 60))
    loss_fn = lambda params: jnp.sum(equations.task_losses(equation, params))

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state)
        losses = equations.task_losses(equation, params)
        return (optax.apply_updates(params, updates), opt_state), losses

    _, losses = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), length=60))()
    np.testing.assert_allclose(run["losses"][0, 0, :10], losses[:10], rtol=1e-3)
    np.testing.assert_allclose(run["losses"][0, 0, -1], losses[-1], rtol=0.05)
    assert "task_weights" not in run


def test_gradients_of_equal_norms_train(params):
    run = _train.train(arm_of("equal-norms", [{"learning_rate": 1e-2}]))
    assert run["losses"][0, 0, -1].sum() < run["losses"][0, 0, 0].sum()


def test_a_setting_at_which_a_run_diverges_is_never_the_best():
    errors = np.array([[1.0, 1.0], [0.1, np.nan], [0.5, 1.5], [0.0, np.inf]])
    assert pinn.choose(errors) == 2


def test_every_method_has_as_many_settings():
    grid = vars(_command.parse(pinn.STUDY, []))
    counts = {name: len(pinn.settings_of(name, grid)) for name in grid["methods"]}
    assert set(counts.values()) == {6}
    rates = [each["learning_rate"] for each in pinn.settings_of("ls", grid)]
    assert (min(rates), max(rates)) == pytest.approx((3e-3, 3e-2))


def test_the_best_fixed_weights_are_chosen_by_other_seeds_and_differences_are_paired():
    def of(tuning, test):
        return (
            {"test": np.reshape(tuning, (-1, 1, 1))},  # [settings, seeds, 1]
            {"test": np.reshape(test, (1, -1, 1))},
        )

    every = {
        "ls": of([0.5, 0.1], [0.4, 0.8]),
        "si": of([np.nan, 0.2], [0.01, 0.02]),
        "famo": of([0.3, 0.4], [0.1, 0.4]),
        "uw": of([0.3, 0.4], [0.4, 0.8]),
    }
    arrays, arms = {}, {}
    for name, (tuning, test) in every.items():
        arrays |= {f"burgers {name} tuning": tuning, f"burgers {name}": test}
        arms[f"burgers {name}"] = {"settings": [{"learning_rate": 0.01}]}
    settings = {"problems": ["burgers"], "methods": [*every], "learning_rate": [0.01, 0.03]}
    settings |= {"gamma": [0.0], "logits_rate": [0.01], "weight": [1.0]}
    summary = pinn.summarize(_files.Runs({"settings": settings, "arms": arms}, arrays))
    own = summary["problems"]["burgers"]
    assert own["fixed"] == "ls"
    assert own["methods"]["famo"]["gain"]["mean"] == pytest.approx(-1.5 * np.log(2))
    assert own["methods"]["uw"]["gain"]["mean"] == 0
    assert "gain" not in own["methods"]["si"]
    assert own["methods"]["ls"]["edges"] == ["learning rate 0.01"]
    arrays["burgers ls tuning"] = {"test": np.full((2, 1, 1), np.nan)}  # diverged: never the best
    summary = pinn.summarize(_files.Runs({"settings": settings, "arms": arms}, arrays))
    assert summary["problems"]["burgers"]["fixed"] == "si"


def test_a_geometric_mean_and_its_interval_by_hand():
    figures = _statistics.geometric(np.array([0.1, 1.0, 10.0]))
    # Logarithms to base 10 of -1, 0, 1: standard error 1 / sqrt 3, and t is 4.3027 at 2 degrees.
    half = 10 ** (4.3027 / np.sqrt(3))
    assert figures["mean"] == pytest.approx(1)
    assert figures["high"] == pytest.approx(half, rel=1e-3)
    assert figures["low"] == pytest.approx(1 / half, rel=1e-3)


# --- The command ----------------------------------------------------------------------------------


def test_a_quick_run(tmp_path, run_study):
    printed, summary = run_study("pinn", tmp_path, "--quick", "--problems", "burgers")
    assert max(map(len, printed.splitlines())) <= 80
    assert list(summary["problems"]) == ["burgers"]
    assert summary["problems"]["burgers"]["fixed"] == "ls"  # there is no other
    methods = summary["problems"]["burgers"]["methods"]
    with np.load(tmp_path / "runs.npz") as arrays:
        for name, figures in methods.items():
            errors = arrays[f"burgers {name}/test"][0, :, 0]
            np.testing.assert_allclose(figures["error_by_seed"], 100 * errors, rtol=1e-4)
            mean = 100 * np.sqrt(np.prod(errors))
            assert figures["error"]["mean"] == pytest.approx(mean, rel=1e-4)
            if name != "ls":
                logs = np.log(errors / arrays["burgers ls/test"][0, :, 0])
                assert figures["gain"]["mean"] == pytest.approx(logs.mean(), rel=1e-3)
    (axes,) = pinn.draw(summary).get_axes()
    dots = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    by_seed = [figures["error_by_seed"] for figures in methods.values()]
    np.testing.assert_allclose(dots, [np.exp(np.mean(np.log(each))) for each in by_seed], rtol=1e-4)
    seeds = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "."]
    np.testing.assert_allclose(seeds, by_seed)
