"""FAMO against TorchJD, running live on the same losses (extra ``peers``)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax import famo, logits_optimizer, loss_weights, update_logits, weighted_loss

torch = pytest.importorskip("torch")
scalarization = pytest.importorskip("torchjd.scalarization")


def random_losses(rng, shape, steps, bounds):
    """Losses that drift over decades, above their bounds."""
    start = rng.uniform(-2, 2, shape)
    walk = start + np.cumsum(rng.normal(0, 0.2, (steps + 1, *shape)), axis=0)
    return bounds + 10.0**walk


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(1,), (2,), (11,), (100,), (3, 4)], ids=str)
def test_torchjd(shape, dtype, bounded, request):
    """Weighted loss, its gradient and the logits, at each of 200 steps."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    tolerance = {"float64": 1e-12, "float32": 1e-5}[dtype]
    rng = np.random.default_rng([*shape, bounded])
    bounds = rng.uniform(-0.5, 0.5, shape) if bounded else np.zeros(shape)
    sequence = random_losses(rng, shape, 200, bounds).astype(dtype)

    kind = getattr(torch, dtype)
    theirs = scalarization.FAMO(shape, torch.tensor(bounds, dtype=kind), lr=0.05, weight_decay=0.01)
    theirs = theirs.to(kind)

    num_tasks = sequence[0].size
    state = famo(num_tasks, min_losses=jnp.array(bounds, dtype)).init(None)
    optimizer = logits_optimizer(0.05, 0.01)
    figures = {"weighted loss": ([], []), "loss weights": ([], []), "logits": ([], [])}
    for before, after in itertools.pairwise(sequence):
        values = torch.tensor(before, requires_grad=True)
        loss = theirs(values)
        loss.backward()
        theirs.update(torch.tensor(after))
        ours = weighted_loss(jnp.array(before), state), loss_weights(jnp.array(before), state)
        state = update_logits(state, jnp.array(before), jnp.array(after), optimizer)
        pairs = zip(
            figures.values(),
            (*ours, state.logits.reshape(shape)),
            (loss.detach(), values.grad, theirs._w.detach().clone()),
            strict=True,
        )
        for (our, their), our_figure, their_figure in pairs:
            our.append(np.asarray(our_figure))
            their.append(their_figure.numpy())
    for name, (our, their) in figures.items():
        error = np.max(np.abs(np.array(our) - np.array(their)))
        assert error <= tolerance * np.max(np.abs(their)), name
    if num_tasks > 1:
        assert np.ptp(figures["logits"][0]) > 0.1


def test_torchjd_trains_the_same_model(x64):
    """The whole loop, two-pass: the same parameters after 100 steps of a linear regression."""
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(32, 5)), rng.normal(size=(32, 3)) * [0.1, 1.0, 10.0]
    kernel = rng.normal(size=(5, 3))

    model = torch.nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(kernel.T))
    theirs = scalarization.FAMO(3).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.tensor(features), torch.tensor(targets)
    for _ in range(100):
        loss = theirs((model(x) - y).pow(2).mean(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            theirs.update((model(x) - y).pow(2).mean(0))

    losses_fn = lambda kernel: jnp.mean((features @ kernel - targets) ** 2, axis=0)
    tx = optax.chain(optax.adam(0.01), famo(3))
    params, opt_state = jnp.array(kernel), tx.init(jnp.array(kernel))

    @jax.jit
    def train_step(params, opt_state):
        losses, pullback = jax.vjp(losses_fn, params)
        (grads,) = pullback(loss_weights(losses, opt_state))
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, losses_fn=losses_fn)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(100):
        params, opt_state = train_step(params, opt_state)
    np.testing.assert_allclose(params, model.weight.detach().numpy().T, rtol=1e-8)
    np.testing.assert_allclose(opt_state[1].logits, theirs._w.detach().numpy(), rtol=1e-7)
    assert np.max(np.abs(params - kernel)) > 0.1
