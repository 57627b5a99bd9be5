"""The aggregation methods against TorchJD, running live on the same Jacobians (extra ``peers``)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax.aggregation import (
    _pcgrad,
    aligned_mtl_weights,
    cagrad_weights,
    config_weights,
    dualproj_weights,
    fairgrad_weights,
    graddrop,
    gradvac,
    imtl_g_weights,
    mgda_weights,
    nash_mtl_weights,
    pcgrad,
    upgrad_weights,
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


# --- Scales ---------------------------------------------------------------------------------------


def scaled_draws():
    """As above, each over lengths from 1e-6 to 1e6."""
    for index, rows in enumerate(draws()):
        yield 10.0 ** (index % 13 - 6) * rows


def same_directions(our_weights, their_direction, residual, angle, at_least):
    """As :func:`compare`, with the peer's direction, which it may refuse to give: then it is 0."""
    same, worst, count = 0, 0.0, 0
    for rows in scaled_draws():
        gram = rows @ rows.T
        ours = np.asarray(our_weights(gram))
        theirs = np.asarray(their_direction(torch.tensor(rows)))
        directions = rows.T @ ours, theirs
        lengths = np.linalg.norm(directions, axis=1)
        cosine = np.dot(*directions) / np.prod(np.where(lengths > 0, lengths, 1))
        agree = cosine >= 1 - angle
        own, other = residual(rows, directions[0]), residual(rows, theirs)
        same, worst, count = same + agree, max(worst, own), count + 1
        assert agree or own <= other, (rows.shape, cosine, own, other)
    assert same >= at_least * count, same
    assert worst <= 1e-8, worst


def conflict(rows, direction):
    """How far it points uphill for a task, in units of the lengths; 1 where it is 0."""
    length = np.linalg.norm(direction)
    cosines = rows @ direction / np.linalg.norm(rows, axis=1) / (length if length > 0 else 1)
    return max(-np.min(cosines), 0) if length > 0 else 1.0


def projector(rows):
    """TorchJD's, with as little added to the diagonal as its solver bears."""
    linalg = pytest.importorskip("torchjd.linalg")
    scale = float(np.sum(rows**2))
    return linalg.QuadprogProjector(norm_eps=min(1e-4, scale / 2), reg_eps=1e-10)


@pytest.mark.parametrize(
    ("weights", "method"), [(upgrad_weights, "UPGrad"), (dualproj_weights, "DualProj")]
)
def test_dual_cone(x64, weights, method):
    pytest.importorskip("quadprog")
    pytest.importorskip("qpsolvers")

    def theirs(jacobian):
        return getattr(aggregation, method)(projector=projector(jacobian.numpy()))(jacobian)

    same_directions(weights, theirs, conflict, 1e-7, 0.95)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad(x64, alpha):
    pytest.importorskip("scipy")

    def theirs(jacobian):
        # Its search begins at 1 / K and stops at an absolute tolerance: so lengths of about 1.
        unit = jacobian / torch.linalg.norm(jacobian) * len(jacobian) ** 0.5
        return aggregation.FairGrad(alpha=alpha)(unit)

    def residual(rows, direction):
        """Of the equation, with the weights that the direction and its gains tell."""
        gains = rows @ direction
        if np.min(gains) <= 0:
            return 1.0
        weights = gains**-alpha
        made = rows.T @ weights
        cosine = made @ direction / np.linalg.norm(made) / np.linalg.norm(direction)
        return max(1 - cosine, 0)

    same_directions(lambda gram: fairgrad_weights(gram, alpha), theirs, residual, 1e-6, 0.7)


def test_aligned_mtl(x64):
    def residual(rows, direction):
        # The polar factor of J^T = Q R is Q times that of R, which is small.
        q, r = np.linalg.qr(rows.T)
        left, _, right = np.linalg.svd(r)
        exact = q @ (left @ right.sum(1))
        cosine = exact @ direction / np.linalg.norm(exact) / np.linalg.norm(direction)
        return max(1 - cosine, 0)

    same_directions(aligned_mtl_weights, aggregation.AlignedMTL(), residual, 1e-9, 0.95)
    for rows in itertools.islice(scaled_draws(), 0, None, 7):  # and of the same length
        gram = rows @ rows.T
        ours = rows.T @ aligned_mtl_weights(gram)
        theirs = aggregation.AlignedMTL()(torch.tensor(rows)).numpy()
        condition = np.linalg.cond(gram)
        np.testing.assert_allclose(ours, theirs, atol=1e-13 * condition * np.abs(theirs).max())


def test_config(x64):
    def residual(rows, direction):
        cosines = rows @ direction / np.linalg.norm(rows, axis=1) / np.linalg.norm(direction)
        return np.ptp(cosines)

    same_directions(config_weights, aggregation.ConFIG(), residual, 1e-9, 0.98)
    for rows in itertools.islice(scaled_draws(), 0, None, 7):  # and of the same length
        ours = np.linalg.norm(rows.T @ config_weights(rows @ rows.T))
        theirs = np.linalg.norm(aggregation.ConFIG()(torch.tensor(rows)).numpy())
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_gradvac_with_the_same_orders(x64, monkeypatch):
    """Over two steps, of which it remembers the cosines. Its loops over 40 tasks take a while."""
    for index, rows in enumerate(scaled_draws()):
        num_tasks = len(rows)
        if num_tasks == 40 and index % 10:
            continue
        tx, peer = gradvac(num_tasks, key=0, beta=0.3), aggregation.GradVac(beta=0.3, eps=0.0)
        state = tx.init(None)
        for step in range(2):
            key = jax.random.split(state.rng_key)[1]
            orders = np.asarray(_pcgrad.random_orders(key, num_tasks))
            # Its orders are of the others alone.
            ranks = [[j - (j > i) for j in order if j != i] for i, order in enumerate(orders)]
            pending = iter([torch.tensor(rank) for rank in ranks])
            monkeypatch.setattr(torch, "randperm", lambda size, pending=pending: next(pending))
            turned = np.roll(rows, step, axis=1)
            theirs = peer(torch.tensor(turned)).numpy() / num_tasks  # a sum
            ours, state = tx.update(jnp.asarray(turned), state)
            np.testing.assert_allclose(ours, theirs, atol=1e-8 * np.abs(theirs).max())
