"""The aggregation methods against TorchJD, running live on the same Jacobians (extra ``peers``)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax.aggregation import (
    _pcgrad,
    cagrad_weights,
    graddrop,
    imtl_g_weights,
    mgda_weights,
    nash_mtl_weights,
    pcgrad,
)

torch = pytest.importorskip("torch")
aggregation = pytest.importorskip("torchjd.aggregation")

torch.set_num_threads(1)  # its threads and XLA's wait for each other

# (tasks, columns, draws): a hundred for each number of tasks
SIZES = [(2, 200, 100), (3, 2_000, 100), (10, 5_000, 100), (40, 1_000, 80), (40, 20_000, 20)]


def draws():
    """Jacobians, well and badly conditioned, with gradients of one length and of many."""
    rng = np.random.default_rng(0)
    for num_tasks, columns, count in SIZES:
        for index in range(count):
            rows = rng.normal(size=(num_tasks, columns))
            match index % 4:
                case 1:
                    rows += 10 ** rng.uniform(-1, 1) * rng.normal(size=columns)
                case 2:
                    rows *= 10 ** rng.uniform(-2, 2, (num_tasks, 1))
                case 3:
                    rows -= rng.uniform(0.5, 0.99) * rows.mean(0)
            yield rows


def compare(our_weights, their_weights, residual, angle, at_least):
    """The same direction, or ours has the smaller residual. Counts the former."""
    same, worst = 0, 0.0
    for rows in draws():
        gram = rows @ rows.T
        ours, theirs = np.asarray(our_weights(gram)), their_weights(torch.tensor(rows)).numpy()
        directions = rows.T @ ours, rows.T @ theirs
        cosine = np.dot(*directions) / np.prod(np.linalg.norm(directions, axis=1))
        agree = cosine >= 1 - angle
        same += agree
        worst = max(worst, residual(gram, ours))
        assert agree or residual(gram, ours) <= residual(gram, theirs), (rows.shape, cosine)
    assert same >= at_least * sum(count for *_, count in SIZES), same
    assert worst <= 1e-9, worst


def from_gramian(weighting):
    return lambda jacobian: weighting(jacobian @ jacobian.T)


def test_mgda(x64):
    def residual(gram, z):
        return (z @ gram @ z - np.min(gram @ z)) / np.max(np.diag(gram))

    # Its own tolerance is a step of 0.001 or 100 steps of Frank and Wolfe.
    compare(mgda_weights, from_gramian(aggregation.MGDAWeighting()), residual, 1e-3, 0.5)


def test_cagrad(x64):
    pytest.importorskip("cvxpy")
    c = 0.4

    def residual(gram, weights):
        """How far the worst task's gain is below its upper bound by w, or d out of the ball."""
        mean = np.full(len(gram), 1 / len(gram))
        radius = c * np.sqrt(mean @ gram @ mean)
        to_mean = weights - mean
        w = np.maximum(to_mean, 0) / np.sum(np.maximum(to_mean, 0))
        bound = w @ gram @ mean + radius * np.sqrt(w @ gram @ w)
        outside = np.sqrt(max(to_mean @ gram @ to_mean, 0)) - radius
        scale = np.max(np.diag(gram))
        return max((bound - np.min(gram @ weights)) / scale, outside / np.sqrt(scale))

    compare(
        lambda gram: cagrad_weights(gram, c),
        from_gramian(aggregation.CAGradWeighting(c=c, norm_eps=0.0)),
        residual,
        1e-6,
        0.9,
    )


@pytest.mark.filterwarnings("ignore")  # what CVXPY thinks of the problems that it gets
def test_nash_mtl(x64):
    pytest.importorskip("cvxpy")
    pytest.importorskip("ecos")

    def theirs(jacobian):
        method = aggregation.NashMTL(len(jacobian), max_norm=0.0)
        return method.weighting(jacobian)

    def residual(gram, alpha):
        return np.max(np.abs(alpha * (gram @ alpha) - 1))

    def normalised(gram, alpha):
        """TorchJD's are those of G / |G|, up to a length."""
        return residual(gram, alpha * np.sqrt(len(gram) / (alpha @ gram @ alpha)))

    compare(nash_mtl_weights, theirs, normalised, 1e-3, 0.7)


def test_imtl_g(x64):
    def theirs(jacobian):
        weights = aggregation.IMTLGWeighting()(jacobian @ jacobian.T)
        direction = jacobian.T @ weights
        return weights * torch.sign(jacobian[0] @ direction)  # the sign that descends

    def residual(gram, alpha):
        lengths = np.sqrt(np.diag(gram))
        return np.ptp(gram @ alpha / lengths) / np.sum(np.abs(alpha) * lengths)

    compare(imtl_g_weights, theirs, residual, 1e-8, 0.95)


def test_pcgrad_with_the_same_orders(x64, monkeypatch):
    tx = pcgrad(key=0)
    state = tx.init(None)
    for rows in draws():
        orders = np.asarray(_pcgrad.random_orders(jax.random.split(state.rng_key)[1], len(rows)))
        pending = iter(torch.tensor(orders))
        monkeypatch.setattr(torch, "randperm", lambda size, pending=pending: next(pending))
        theirs = aggregation.PCGrad()(torch.tensor(rows)).numpy() / len(rows)  # a sum
        ours, state = tx.update(jnp.asarray(rows), state)
        np.testing.assert_allclose(ours, theirs, atol=1e-10 * np.abs(theirs).max())


def test_graddrop_with_the_same_draws(x64, monkeypatch):
    tx = graddrop(key=0)
    state = tx.init(None)
    for rows in draws():
        key = jax.random.split(jax.random.split(state.rng_key)[1], 1)[0]
        uniform = np.asarray(jax.random.uniform(key, rows.shape[1:]))
        monkeypatch.setattr(torch, "rand", lambda *_, draw=uniform, **__: torch.tensor(draw))
        theirs = aggregation.GradDrop()(torch.tensor(rows)).numpy()
        ours, state = tx.update(jnp.asarray(rows), state)
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * np.abs(rows).max() * len(rows))
