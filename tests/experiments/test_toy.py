"""The toy problem: its losses, its Pareto front, the official code's trajectories, its files."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import famo_jax
from famo_jax.experiments import toy

REFERENCE = Path(__file__).parents[1] / "data" / "toy_trajectories.npz"
OFFICIAL = np.array(toy.STARTS["official"])


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


# --- The problem ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "sign", "losses"),
    [
        # Far up c1 = 1 and c2 = 0: what is left are the logarithms of 1, 4, 6 and the clamp.
        ((-7.0, 100.0), 1.0, (0.1 * 6, math.log(6) + 6)),
        ((3.0, 100.0), 1.0, (0.1 * (math.log(4) + 6), 6)),
        ((5.0, 100.0), 1.0, (0.1 * (math.log(5) + 6), math.log(5e-6) + 6)),
        ((-5.0, 100.0), 1.0, (0.1 * (math.log(5e-6) + 6), math.log(5) + 6)),
        ((9.0, 100.0), -1.0, (0.1 * (math.log(7) + 6), math.log(5e-6) + 6)),
        # Far down c1 = 0 and c2 = 1: 92^2 / 100 = 84.64.
        ((7.0, -100.0), 1.0, (0.1 * (84.64 - 20), 19.6 + 84.64 - 20)),
        ((-7.0, -100.0), -1.0, (0.1 * (19.6 + 84.64 - 20), 84.64 - 20)),
        ((0.0, 0.0), 1.0, (0.0, 0.0)),
    ],
)
def test_losses_by_hand(params, sign, losses):
    np.testing.assert_allclose(toy.losses_of(params, sign), losses, rtol=2e-6, atol=1e-7)


def test_both_gates_have_a_slope_where_they_open():
    """As PyTorch's clamp has: c1 rises by 1/2 and c2 falls by 1/2 at x2 = 0."""
    slopes = jax.jacobian(toy.task_losses)(jnp.zeros(2))
    expected = 0.5 * (math.log(3.5) + 6 - (4.9 + 0.64 - 20))
    np.testing.assert_allclose(slopes, [[0, 0.1 * expected], [0, expected]], rtol=1e-6)


def test_the_clamp_is_flat():
    slopes = jax.jacobian(toy.task_losses)(jnp.array([5.0, 100.0]))
    np.testing.assert_array_equal(slopes[1], 0)


def test_non_dominated_and_distances_by_hand():
    losses = np.array([[2.0, 1], [0, 9], [1, 9], [1, 4], [3, 1], [1, 5], [0, 9]])
    np.testing.assert_array_equal(toy.non_dominated(losses), [[0, 9], [1, 4], [2, 1]])
    front = np.array([[0.0, 10], [2, 0]])
    distance = toy.distance_to(front, np.array([[[2.0, 5]], [[-4, 10]]]))
    np.testing.assert_allclose(distance, [[0.5], [2]])
    np.testing.assert_allclose(toy.apart(np.ones(2), np.array([3.0, 1]), front), 1)


def test_where_trajectories_part_by_hand():
    straight = np.stack([np.linspace(0, 20, 5), np.zeros(5)], axis=-1)[None]
    # 0.011 apart: more than 1e-3 of 10 away from the origin, less than that of 15.
    np.testing.assert_allclose(
        toy.deviation(straight + np.array([0, 0.011]), straight)[0],
        [0.011, 0.0022, 0.0011, 0.011 / 15, 0.00055],
    )
    late = straight + np.array([0, 0.1]) * (np.arange(5) >= 3)[:, None]
    assert np.isnan(toy.parting(straight, straight, 7)).all()
    assert toy.parting(late, straight, 7) == [21]


# --- The Pareto front -----------------------------------------------------------------------------


def test_pareto_set_is_what_a_grid_search_finds():
    front = toy.losses_of(toy.pareto_set(20_001))
    found = toy.search_front(801)
    assert len(found) > 500
    assert toy.distance_to(front, found).max() < 1e-3
    # Nothing of the grid is under the curve, by more than the rounding.
    order = np.argsort(front[:, 0])
    inside = found[(found[:, 0] > front[:, 0].min()) & (found[:, 0] < front[:, 0].max())]
    curve = np.interp(inside[:, 0], front[order, 0], front[order, 1])
    assert np.all(inside[:, 1] - curve > -1e-3)
    # And all of the curve is found.
    assert toy.distance_to(found, front[::200]).max() < 5e-3


@pytest.mark.parametrize("weight", [0.2, 0.8, 0.9, 0.97])
def test_pareto_set_holds_the_minima_of_weighted_means(weight):
    losses_fn = jax.jit(toy.task_losses)
    weights = np.array([weight, 1 - weight])
    found = scipy.optimize.minimize(
        lambda x: weights @ np.asarray(losses_fn(jnp.asarray(x, jnp.float32)), float),
        [0.0, -7.0],
        method="Nelder-Mead",
        options={"xatol": 1e-4, "fatol": 1e-7},
    ).x
    # The first loss is a tenth of a parabola around 7, the second one around -7.
    share = 0.1 * weight / (0.1 * weight + 1 - weight)
    assert found[0] == pytest.approx(14 * share - 7, abs=0.02)
    x1, x2 = toy.pareto_set(10_001).T
    assert found[1] == pytest.approx(np.interp(found[0], x1, x2), abs=0.02)


def test_pareto_set_is_where_the_official_code_draws_it(reference):
    assert toy.pareto_set(3)[1] == pytest.approx([0, -8.3552], abs=1e-4)
    # Its MGDA stops at points of the front, and its mean of the losses where that is least.
    x1, x2 = toy.pareto_set(10_001).T
    for name in ("ls", "mgda"):
        ends = reference[f"{name}/trajectory"][:, -1]
        ends = ends[ends[:, 1] < 0]
        np.testing.assert_allclose(ends[:, 1], np.interp(ends[:, 0], x1, x2), atol=5e-4)


# --- Methods --------------------------------------------------------------------------------------


def first_step(name, start):
    init, step = toy.training_step(toy.METHODS[name], toy.task_losses)
    (params, _), _ = jax.jit(lambda start: step(init(start), None))(jnp.asarray(start))
    return params


@pytest.mark.parametrize("name", list(toy.METHODS))
def test_the_first_step_is_adams(name):
    """1e-3 in each coordinate, whatever the length of the direction."""
    start = np.array([9.0, -1.0], np.float32)
    assert np.abs(first_step(name, start) - start) == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_log_mgda_shortens_the_sum_of_log_gradients():
    """What it hands to Adam is the least convex combination of the gradients of log D (eq. 6)."""
    start = jnp.array([9.0, -1.0])
    log_losses = lambda x: jnp.log(toy.task_losses(x) - jnp.array([-2.1, -21.0]))
    first, second = np.asarray(jax.jacobian(log_losses)(start), float)
    z = np.clip(second @ (second - first) / np.sum((first - second) ** 2), 0, 1)
    (adam_state, *_) = optax.adam(1e-3).update(
        jnp.asarray(z * first + (1 - z) * second), optax.adam(1e-3).init(start)
    )[1]
    init, step = toy.training_step(toy.METHODS["log-mgda"], toy.task_losses)
    (_, (_, (own, *_))), _ = step(init(start), None)
    np.testing.assert_allclose(own.mu, adam_state.mu, rtol=1e-4)


def test_what_is_kept_does_not_change_the_trajectory():
    starts = jnp.array([[-8.5, 7.5], [9.0, -1.0]])
    method = toy.METHODS["famo-chain"]
    every_step = toy.compile_run(method, starts, 8, 1)(starts)
    thin = toy.compile_run(method, starts, 8, 3)(starts)
    np.testing.assert_allclose(thin.params, every_step.params[:, :6:3], rtol=1e-6)
    np.testing.assert_allclose(thin.task_weights, every_step.task_weights[:, :6:3], rtol=1e-5)
    np.testing.assert_allclose(thin.end, every_step.end, rtol=1e-6)
    np.testing.assert_allclose(every_step.task_weights[:, 0], 0.5)
    assert famo_jax.task_weights(method.make().init(starts[0])).shape == (2,)


# --- The whole trajectories -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def front():
    return toy.losses_of(toy.pareto_set(10_001))


@pytest.mark.parametrize("name", ["adam", "famo-one-pass", "famo-chain"])
def test_ends_of_50_000_steps(name, front, reference):
    method = toy.METHODS[name]
    starts = jnp.asarray(OFFICIAL)
    run = toy.compile_run(method, starts, 50_000, 100)(starts)
    ends = toy.losses_of(run.end)
    on_front = toy.distance_to(front, ends) < 1e-3
    stuck = (name == "adam") & np.all(OFFICIAL == 9, axis=1)
    np.testing.assert_array_equal(on_front, ~stuck)
    # The official ends, within a tenth of the front. Where Adam is stuck it swings for ever.
    official = reference[f"{method.official}/final_losses"]
    assert toy.apart(ends, official, front)[~stuck].max() < 0.1
    if name == "adam":
        np.testing.assert_allclose(ends[~stuck], official[~stuck], rtol=1e-3)


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("toy") / "new" / "folder"
    return folder, *run_study("toy", folder, "--quick", "--reference", str(REFERENCE))


# From (0, 0) both losses fall at one rate, so that what FAMO and IMTL-G weigh is rounding.
@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("adam", [0, 1, 2, 3, 4]),
        ("famo", [0, 2, 3, 4]),
        ("famo-one-pass", [0, 2, 3, 4]),
        ("pcgrad", [0, 1, 2, 3, 4]),
        ("cagrad", [0, 1, 2, 3, 4]),
        ("mgda", [0, 1, 2, 4]),
        ("imtl-g", [0, 2, 3, 4]),
        ("nash-mtl", [0, 1, 2, 3, 4]),
    ],
)
def test_a_thousand_steps_are_those_of_the_official_code(name, starts, quick_run, reference):
    figures = quick_run[2]["methods"][name]
    stride = 100 // figures["trajectory_every"]
    own = np.array(figures["params"])[:, ::stride]
    official = reference[f"{toy.METHODS[name].official}/trajectory"][:, :10]
    np.testing.assert_allclose(own[starts], official[starts], rtol=1e-3, atol=1e-3)
    for start in starts:
        assert np.isnan(figures["official"]["parts_at_step"][start])
    assert figures["official"]["compared_steps"] == 900


def test_a_chain_lags_by_a_step(quick_run):
    """Two-pass is one-pass without lag; one-pass in a chain is not."""
    methods = quick_run[2]["methods"]
    two_pass, one_pass, chain = (
        np.array(methods[name]["params"]) for name in ("famo", "famo-one-pass", "famo-chain")
    )
    others = [0, 2, 3, 4]  # but (0, 0), where the weights follow the rounding
    np.testing.assert_allclose(two_pass[others], one_pass[others], rtol=1e-4, atol=1e-4)
    assert np.abs(chain - one_pass)[others].max() > 1e-3


def test_it_prints_a_row_for_every_method_within_80_columns(quick_run):
    _, printed, _ = quick_run
    lines = printed.splitlines()
    assert "…" not in printed
    assert max(map(len, lines)) <= 80
    for name in toy.METHODS:
        assert any(line.split()[:1] == [name] and len(line.split()) == 9 for line in lines)


def test_it_writes_every_figure(quick_run):
    folder, _, summary = quick_run
    assert list(summary["methods"]) == list(toy.METHODS)
    assert summary["searched_front"]["largest_distance"] < 0.01
    for name, figures in summary["methods"].items():
        assert len(figures["distance"]) == 5
        assert ("official" in figures) == (toy.METHODS[name].official is not None)
        points = np.array(figures["params"])
        assert points.shape == (5, 100, 2)
        np.testing.assert_array_equal(points[:, 0], OFFICIAL)
        losses = np.array(figures["losses"])
        np.testing.assert_allclose(losses[:, 0], toy.losses_of(OFFICIAL), rtol=1e-4)
        assert ("task_weights" in figures) == (name in {"famo", "famo-one-pass", "famo-chain"})
    assert summary["methods"]["adam"]["seconds_over_adam"] == 1
    assert (folder / "toy.png").read_bytes().startswith(b"\x89PNG")
    panel = toy.draw(summary).get_axes()[1]  # Adam's paths in loss space
    path = panel.get_lines()[1].get_xydata()[:-1]
    np.testing.assert_allclose(path, summary["methods"]["adam"]["losses"][0])


def test_starts_methods_and_sign_of_ones_own(tmp_path, run_study):
    starts = ["--starts", "-8.5", "7.5", "9", "9", "--sign", "minus"]
    printed, summary = run_study(
        "toy", tmp_path, "--steps", "3", "--quick", "--methods", "si", *starts
    )
    assert list(summary["methods"]) == ["adam", "si"]
    assert summary["sign"] == -1
    ends = np.array(summary["methods"]["si"]["end"])
    assert np.abs(ends - [[-8.5, 7.5], [9, 9]]).max() < 4e-3
    assert "official" not in printed
