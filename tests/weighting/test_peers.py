"""Weighting methods against TorchJD, running live on the same losses (extra ``peers``)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import loss_weights, weighted_loss
from famo_jax.weighting import dwa, gls, imtl_l, rlw, stch, uw

torch = pytest.importorskip("torch")
scalarization = pytest.importorskip("torchjd.scalarization")


def theirs(scalarizer, losses):
    values = torch.tensor(np.asarray(losses), requires_grad=True)
    loss = scalarizer(values)
    loss.backward()
    return loss.item(), values.grad.numpy()


@pytest.mark.parametrize("num_tasks", [1, 3, 40])
@pytest.mark.parametrize("window", [1, 4])
def test_dwa(num_tasks, window, x64):
    """TorchJD averages over epochs: after each whole window the two agree."""
    rng = np.random.default_rng(num_tasks)
    scalarizer, tx = (
        scalarization.DWA(temperature=1.3),
        dwa(num_tasks, temperature=1.3, window=window),
    )
    state = tx.init(None)
    for step in range(5 * window):
        losses = rng.uniform(0.1, 5, num_tasks)
        loss, weights = theirs(scalarizer, losses)
        if step % window == 0:
            np.testing.assert_allclose(loss_weights(jnp.array(losses), state), weights, rtol=1e-10)
            np.testing.assert_allclose(weighted_loss(jnp.array(losses), state), loss, rtol=1e-10)
        _, state = tx.update((), state, losses=jnp.array(losses))
        if step % window == window - 1:
            scalarizer.step()


@pytest.mark.parametrize("num_tasks", [1, 3, 40])
@pytest.mark.parametrize(("peer", "method"), [("UW", uw), ("IMTLL", imtl_l)])
def test_learned_scales(peer, method, num_tasks, x64):
    rng = np.random.default_rng(num_tasks)
    scalarizer = getattr(scalarization, peer)(num_tasks).double()
    optimizer = torch.optim.Adam(scalarizer.parameters(), lr=0.05)
    tx = method(num_tasks, learning_rate=0.05)
    state = tx.init(None)
    for _ in range(100):
        losses = rng.uniform(0.1, 5, num_tasks)
        optimizer.zero_grad()
        loss, weights = theirs(scalarizer, losses)
        np.testing.assert_allclose(weighted_loss(jnp.array(losses), state), loss, rtol=1e-10)
        np.testing.assert_allclose(loss_weights(jnp.array(losses), state), weights, rtol=1e-10)
        optimizer.step()
        _, state = tx.update((), state, losses=jnp.array(losses))
    assert optax.tree.norm(state[0]) > 0.1


@pytest.mark.parametrize("num_tasks", [1, 3, 40])
def test_rlw_with_the_same_draw(num_tasks, monkeypatch, x64):
    state = rlw(num_tasks, key=num_tasks).init(None)
    draw = torch.tensor(np.asarray(jax.random.normal(state.rng_key, (num_tasks,))))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: draw)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: draw)
    losses = np.random.default_rng(0).uniform(0.1, 5, num_tasks)
    loss, weights = theirs(scalarization.Random(), losses)
    np.testing.assert_allclose(loss_weights(jnp.array(losses), state), weights, rtol=1e-10)
    np.testing.assert_allclose(weighted_loss(jnp.array(losses), state), loss, rtol=1e-10)


@pytest.mark.parametrize("num_tasks", [1, 3, 40])
@pytest.mark.parametrize("decades", [0, 3])
def test_stch(num_tasks, decades, x64):
    rng = np.random.default_rng(num_tasks)
    for mu in (0.01, 0.1, 0.5, 1.0):
        losses = rng.uniform(-1, 5, num_tasks) * 10 ** rng.uniform(-decades, decades, num_tasks)
        weights, ideal = rng.dirichlet(np.ones(num_tasks)), rng.normal(size=num_tasks)
        given = {"weights": torch.tensor(weights), "reference": torch.tensor(ideal)}
        plain = scalarization.STCH(mu), stch(num_tasks, mu=mu)
        preferred = (
            scalarization.STCH(mu, **given),
            stch(num_tasks, mu=mu, weights=weights, min_losses=ideal),
        )
        for scalarizer, tx in (plain, preferred):
            loss, expected = theirs(scalarizer, losses)
            ours, state = jnp.array(losses), tx.init(None)
            np.testing.assert_allclose(weighted_loss(ours, state), loss, rtol=1e-10)
            np.testing.assert_allclose(loss_weights(ours, state), expected, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("num_tasks", [1, 3, 40])
def test_gls(num_tasks, x64):
    losses = 10 ** np.random.default_rng(num_tasks).uniform(-6, 6, num_tasks)
    loss, expected = theirs(scalarization.GeometricMean(), losses)
    state = gls(num_tasks).init(None)
    np.testing.assert_allclose(weighted_loss(jnp.array(losses), state), loss, rtol=1e-10)
    np.testing.assert_allclose(loss_weights(jnp.array(losses), state), expected, rtol=1e-10)
