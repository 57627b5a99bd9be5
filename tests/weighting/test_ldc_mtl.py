"""Loss discrepancy control."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import loss_weights
from famo_jax.weighting import ldc_mtl
from tests.weighting.histories import LOSSES, THEIRS, follow

PENALTY = 0.1
NORMALIZATIONS = (None, "rescaled", "logarithmic")
BOUNDS = np.array([0.0, -1.0, 2.0])


def normalized(losses, normalization):
    """The losses t, and their slopes."""
    first = LOSSES[0]
    match normalization:
        case None:
            return losses, np.ones(3)
        case "rescaled":
            return losses / first * first.min(), first.min() / first
        case "logarithmic":
            return np.log(losses / first), 1 / losses


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_by_the_formula(normalization, x64):
    """Loss, weights, and the steps of the scores down its gradient, with signs by hand."""
    tx = ldc_mtl(
        3,
        penalty=PENALTY,
        normalization=normalization,
        min_losses=BOUNDS,
        optimizer=optax.sgd(0.5),
    )
    weights, values, states = follow(tx, LOSSES + BOUNDS)
    scores = np.ones(3)
    for losses, ours, value, state in zip(LOSSES, weights, values, states[1:], strict=True):
        t, slopes = normalized(losses, normalization)
        sigma = 1 / (1 + np.exp(-scores))
        a, b, c = sigma * t
        signs = np.array([np.sign(a - b), np.sign(b - a) + np.sign(b - c), np.sign(c - b)])
        expected = sigma @ t / sigma.sum() + PENALTY * (abs(a - b) + abs(b - c))
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-14)
        by_t = sigma * (1 / sigma.sum() + PENALTY * signs)
        np.testing.assert_allclose(ours, by_t * slopes, rtol=1e-10)
        scores = scores - 0.5 * by_t * (1 - sigma) * t
        np.testing.assert_allclose(state.scores, scores, rtol=1e-10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_as_the_authors_code_computes_it(normalization, x64):
    """For NYU-v2 it differentiates the sum of the gates too, so there at the same scores."""
    theirs = {
        key: THEIRS[f"ldc_mtl/{normalization}/{key}"] for key in ("loss", "weights", "scores")
    }
    tx = ldc_mtl(3, penalty=PENALTY, normalization=normalization)
    weights, values, states = follow(tx, LOSSES)
    if normalization == "rescaled":
        before = [np.ones(3), *theirs["scores"][:-1]]
        at = lambda state, scores: state._replace(scores=jnp.array(scores))
        same = map(at, states, before)
        weights = [loss_weights(jnp.array(each), s) for each, s in zip(LOSSES, same, strict=False)]
    else:
        np.testing.assert_allclose(values, theirs["loss"], rtol=1e-6, atol=1e-12)
        scores = [state.scores for state in states[1:]]
        np.testing.assert_allclose(scores, theirs["scores"], rtol=1e-6)
    # Of the first losses rescaled theirs are apart by rounding.
    rows = slice(1 if normalization == "rescaled" else 0, None)
    np.testing.assert_allclose(weights[rows], theirs["weights"][rows], rtol=1e-6)


def test_a_weight_may_be_negative():
    state = ldc_mtl(2, penalty=2.0, normalization=None).init(None)
    weights = loss_weights(jnp.array([1.0, 4.0]), state)
    assert weights[0] < 0 < weights[1]


def test_the_weighted_losses_come_near_each_other():
    """With the losses fixed the scores alone bring them together, from 8 times apart."""
    losses = jnp.array([1.0, 8.0])
    tx = ldc_mtl(2, penalty=10.0, normalization=None, learning_rate=0.05)

    def step(state, _):
        return tx.update((), state, losses=losses)[1], None

    state, _ = jax.lax.scan(step, tx.init(None), length=400)
    apart = jax.nn.sigmoid(state.scores) * losses
    np.testing.assert_allclose(apart[0], apart[1], rtol=0.05)


def test_what_is_absent_or_broken_teaches_no_score():
    tx = ldc_mtl(3, penalty=0.1, optimizer=optax.sgd(0.1))
    _, state = tx.update((), tx.init(None), losses=jnp.array([1.0, 2.0, 3.0]))
    where = jnp.array([True, False, True])
    _, absent = tx.update((), state, losses=jnp.array([0.5, np.nan, 2.0]), where=where)
    assert absent.scores[1] == state.scores[1]
    for broken in (np.nan, np.inf, -1.0):
        _, other = tx.update((), state, losses=jnp.array([0.5, broken, 2.0]))
        np.testing.assert_array_equal(other.scores, absent.scores)
    _, kept = tx.update((), state, losses=jnp.full(3, np.nan))
    np.testing.assert_array_equal(kept.scores, state.scores)
