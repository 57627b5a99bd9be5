"""SoftAdapt."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import loss_weights, weighting
from famo_jax.weighting import softadapt
from tests.weighting.histories import LOSSES, THEIRS, follow, softmax

VARIANTS = ("original", "normalized", "loss_weighted")


def slope(points):
    """The derivative at the first of equidistant points, of the polynomial through all of them."""
    steps = np.arange(len(points))
    powers = np.vander(steps, increasing=True)
    return np.linalg.solve(powers, points)[1]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("variant", VARIANTS)
def test_by_the_paper_s_equations(variant, order, x64):
    beta = 2.0
    weights, values, _ = follow(softadapt(3, beta=beta, order=order, variant=variant), LOSSES)
    for step in range(order, len(LOSSES)):
        points = LOSSES[step - order : step + 1]
        slopes = slope(points)
        match variant:
            case "original":
                expected = softmax(beta * slopes)
            case "normalized":
                expected = softmax(beta * slopes / np.abs(slopes).sum())
            case "loss_weighted":
                expected = points.mean(axis=0) * np.exp(beta * slopes)
                expected /= expected.sum()
        np.testing.assert_allclose(weights[step], expected, rtol=1e-8)
        np.testing.assert_allclose(values[step], expected @ LOSSES[step], rtol=1e-8)
    if variant != "loss_weighted":
        np.testing.assert_allclose(weights[:order], 1 / 3, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_the_authors_code_computes_it(variant, order, x64):
    """But for the sign of the sum, by which it divides the slopes in one variant."""
    theirs = THEIRS[f"softadapt/{variant}/{order}"]
    ours, _, _ = follow(softadapt(3, beta=2.0, order=order, variant=variant), LOSSES)
    ours = ours[order:]
    if variant == "normalized":
        points = [LOSSES[step - order : step + 1] for step in range(order, len(LOSSES))]
        slopes = np.array([slope(each) for each in points])
        signed = np.sum(slopes, axis=1) / np.sum(np.abs(slopes), axis=1)
        assert np.any(signed < 0)
        log_ours = np.log(ours) / signed[:, None]
        ours = softmax(log_ours)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_slopes_of_polynomials_are_exact(x64):
    """Of degree n by order n: (t - 5)^n, whose derivative at the oldest point is known."""
    for order in (1, 2, 3, 4, 5):
        history = np.array([[float(t), (t - 5.0) ** order, 1.0] for t in range(order + 1)])
        weights, _, _ = follow(softadapt(3, beta=0.01, order=order), history)
        slopes = np.array([1.0, order * (-5.0) ** (order - 1), 0.0])
        np.testing.assert_allclose(weights[-1], softmax(0.01 * slopes), rtol=1e-9)
        assert math.isclose(weights[-1].sum(), 1)


def test_an_absent_task_has_not_moved():
    tx = softadapt(3, beta=1.0)
    _, state = tx.update((), tx.init(None), losses=jnp.array([1.0, 2.0, 3.0]))
    where = jnp.array([True, True, False])
    weights = loss_weights(jnp.array([1.0, 1.0, np.nan]), state, where=where)
    np.testing.assert_allclose(weights, [*softmax(np.array([0.0, -1.0, 0.0]))[:2], 0], rtol=1e-6)
    _, state = tx.update((), state, losses=jnp.array([1.0, 1.0, np.nan]), where=where)
    np.testing.assert_array_equal(state.history, [[1, 1, 3]])


def test_a_sweep_over_beta():
    def weights(beta):
        tx = softadapt(2, beta=beta)
        _, state = tx.update((), tx.init(None), losses=jnp.array([2.0, 2.0]))
        return loss_weights(jnp.array([1.0, 2.0]), state)

    swept = jax.vmap(weights)(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(swept, [[0.5, 0.5], softmax(np.array([-1.0, 0.0]))], rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_faults_nothing_is_left(variant):
    tx = weighting.softadapt(3, order=2, variant=variant)
    state = tx.init(None)
    for broken in (1.0, np.nan, np.inf, 0.0, -1.0, 1e30):
        _, state = tx.update((), state, losses=jnp.array([1.0, broken, 2.0]))
        weights = loss_weights(jnp.ones(3), state)
        assert np.isfinite(weights).all()
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
