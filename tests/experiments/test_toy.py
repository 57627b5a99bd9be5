"""The toy problem: its losses, its Pareto front, the official code's trajectories, its files."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import famo_jax
from famo_jax.experiments import _train, toy

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


def test_distances_by_hand():
    front = np.array([[0.0, 10], [2, 0]])
    distance = toy.distance_to(front, np.array([[[2.0, 5]], [[-4, 10]]]))
    np.testing.assert_allclose(distance, [[0.5], [2]])


def test_numpy_and_jax_have_the_same_losses():
    points = np.random.default_rng(0).uniform(-10, 10, (100, 2))
    own = jax.vmap(toy.task_losses)(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(own, toy.losses_of(points), rtol=1e-4, atol=1e-4)


def test_where_trajectories_part_by_hand():
    straight = np.stack([np.linspace(0, 20, 5), np.zeros(5)], axis=-1)[None]
    assert np.isnan(toy.parting(straight, straight)).all()
    # 0.011 apart: more than 1e-3 of 10 away from the origin, less than that of 15.
    for shift, start, step in ((0.011, 0, 0), (0.011, 2, 200), (0.011, 3, np.nan), (0.1, 3, 300)):
        late = straight + np.array([0, shift]) * (np.arange(5) >= start)[:, None]
        np.testing.assert_equal(toy.parting(late, straight[:, :9]), [step])


# --- The Pareto front -----------------------------------------------------------------------------


def test_pareto_set_is_what_a_grid_search_finds():
    front = toy.losses_of(toy.pareto_set(20_001))
    side = np.linspace(-10, 10, 801)
    losses = toy.losses_of(np.stack(np.meshgrid(side, side), axis=-1)).reshape(-1, 2)
    losses = losses[np.lexsort((losses[:, 1], losses[:, 0]))]
    least = np.minimum.accumulate(losses[:, 1])
    found = losses[np.append(True, losses[1:, 1] < least[:-1])]  # which no others dominate
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


@pytest.mark.parametrize("name", list(toy.METHODS))
def test_the_first_step_is_adams(name):
    """1e-3 in each coordinate, whatever the length of the direction."""
    start = np.array([[9.0, -1.0]])
    moved = _train.train(toy.arm_of(name, start, 1))["test"][0] - start
    assert np.abs(moved) == pytest.approx(np.full((1, 2), 1e-3), rel=1e-3)


def test_log_mgda_shortens_the_sum_of_log_gradients():
    """The least convex combination of the gradients of log D (eq. 6)."""
    start = jnp.array([9.0, -1.0])
    log_losses = lambda x: jnp.log(toy.task_losses(x) - jnp.array(toy.MIN_LOSSES))
    first, second = np.asarray(jax.jacobian(log_losses)(start), float)
    z = np.clip(second @ (second - first) / np.sum((first - second) ** 2), 0, 1)
    tx = toy.METHODS["log-mgda"].make(2)
    losses, grads = famo_jax.losses_and_grads(toy.task_losses)(start, state=tx.init(start))
    combined, _ = tx.update(grads, tx.init(start), start, losses=losses)
    np.testing.assert_allclose(combined, z * first + (1 - z) * second, rtol=1e-4)


# --- The whole trajectories -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def front():
    return toy.losses_of(toy.pareto_set(10_001))


@pytest.mark.parametrize("name", ["adam", "famo", "famo-one-pass"])
def test_ends_of_50_000_steps(name, front, reference):
    ends = toy.losses_of(_train.train(toy.arm_of(name, OFFICIAL, 50_000))["test"][0])
    on_front = toy.distance_to(front, ends) < 1e-3
    stuck = (name == "adam") & np.all(OFFICIAL == 9, axis=1)
    np.testing.assert_array_equal(on_front, ~stuck)
    # The official ends, within a tenth of the front. Where Adam is stuck it swings for ever.
    official = reference["ls/final_losses" if name == "adam" else "famo/final_losses"]
    apart = np.linalg.norm((ends - official) / np.ptp(front, axis=0), axis=-1)
    assert apart[~stuck].max() < 0.1
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
        ("pcgrad", [0, 1, 2, 3, 4]),
        ("cagrad", [0, 1, 2, 3, 4]),
        ("mgda", [0, 1, 2, 4]),
        ("imtl-g", [0, 2, 3, 4]),
        ("nash-mtl", [0, 1, 2, 3, 4]),
    ],
)
def test_a_thousand_steps_are_those_of_the_official_code(name, starts, quick_run, reference):
    figures = quick_run[2]["methods"][name]
    own = np.array(figures["params"])
    official = reference[f"{toy.OFFICIAL[name]}/trajectory"][:, :10]
    np.testing.assert_allclose(own[starts], official[starts], rtol=1e-3, atol=1e-3)
    assert np.isnan([figures["official_parts_at_step"][start] for start in starts]).all()


def test_a_chain_lags_by_a_step(quick_run):
    """With the same losses at every step two-pass is the official one-pass, but not in a chain."""
    two_pass, chain = (
        np.array(quick_run[2]["methods"][name]["params"]) for name in ("famo", "famo-one-pass")
    )
    others = [0, 2, 3, 4]  # but (0, 0), where the weights follow the rounding
    assert 1e-3 < np.abs(chain - two_pass)[others].max() < 0.1


def test_it_prints_a_row_for_every_method_within_80_columns(quick_run):
    _, printed, _ = quick_run
    lines = printed.splitlines()
    assert "…" not in printed
    assert max(map(len, lines)) <= 80
    for name in toy.METHODS:
        rows = [line.split() for line in lines if line.split()[:1] == [name]]
        assert [len(row) for row in rows if "done" not in row] == [6] * (1 + (name in toy.OFFICIAL))


def test_it_writes_every_figure(quick_run):
    folder, _, summary = quick_run
    assert list(summary["methods"]) == list(toy.METHODS)
    front = toy.losses_of(toy.pareto_set(10_001))
    for name, figures in summary["methods"].items():
        ends = np.array(figures["end_losses"])
        np.testing.assert_allclose(figures["distance"], toy.distance_to(front, ends), atol=1e-3)
        assert ("official_losses" in figures) == (name in toy.OFFICIAL)
        points = np.array(figures["params"])
        assert points.shape == (5, 10, 2)
        np.testing.assert_array_equal(points[:, 0], OFFICIAL)
        losses = np.array(figures["losses"])
        np.testing.assert_allclose(losses, toy.losses_of(points), rtol=1e-4, atol=1e-4)
    assert (folder / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_its_picture_shows_paths_and_says_where_the_official_dots_part(quick_run):
    _, _, summary = quick_run
    figure = toy.draw(summary)
    panels = figure.get_axes()[1:]
    for axes, name in zip(panels, toy.SHOWN, strict=True):
        own = summary["methods"][name]
        assert axes.get_title(loc="left") == toy.METHODS[name].description
        paths = [line.get_xydata()[:-1] for line in axes.get_lines()[1::2][:5]]
        np.testing.assert_allclose(paths, own["losses"])
        dots = [line for line in axes.get_lines() if line.get_marker() == "."]
        assert len(dots) == (name in toy.OFFICIAL)
        if dots:
            expected = np.reshape(own["official_losses"], (-1, 2))
            np.testing.assert_allclose(dots[0].get_xydata(), expected)
    words = " ".join(figure.get_supxlabel().split())
    assert "famo from (0, 0), step 100" in words  # its weights are rounding from the first step


def test_starts_methods_and_sign_of_the_paper(tmp_path, run_study):
    more = ["--starts", "paper", "--sign", "minus", "--methods", "si"]
    printed, summary = run_study("toy", tmp_path, "--steps", "3", *more)
    assert list(summary["methods"]) == ["si"]
    assert summary["sign"] == -1
    assert "official" not in printed
    own = summary["methods"]["si"]
    np.testing.assert_allclose(np.array(own["params"])[:, 0], toy.STARTS["paper"])
    start = toy.losses_of(toy.STARTS["paper"], -1.0)
    np.testing.assert_allclose(np.array(own["losses"])[:, 0], start, rtol=1e-4, atol=1e-6)


def test_shown_again_without_a_device(tmp_path, quick_run):
    folder, *_ = quick_run
    command = [
        sys.executable,
        "-m",
        "famo_jax.experiments.toy",
        "--from",
        folder,
        "--out",
        tmp_path,
    ]
    subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "none"}, check=True)
    assert (tmp_path / "toy.json").read_bytes() == (folder / "toy.json").read_bytes()
