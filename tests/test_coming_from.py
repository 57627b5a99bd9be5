"""The page for those who come from another library: its table, its factors, its blocks."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import famo_jax
from famo_jax import aggregation, loss_weights, weighting
from tests.methods import AGGREGATION, DIRECTING, WEIGHTING
from tests.test_readme import blocks, run

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")

# Their name, and what makes theirs of ours.
TORCHJD = {
    "famo": ("FAMO", "1"),
    "ls": ("Mean", "1"),
    "rlw": ("Random", "1"),
    "dwa": ("DWA", "1"),
    "uw": ("UW", "1"),
    "imtl_l": ("IMTLL", "1"),
    "gls": ("GeometricMean", "1"),
    "stch": ("STCH", "1"),
    "mgda": ("MGDA", "1"),
    "pcgrad": ("PCGrad", "K"),
    "graddrop": ("GradDrop", "1"),
    "cagrad": ("CAGrad", "1"),
    "imtl_g": ("IMTLG", "1"),
    "nash_mtl": ("NashMTL", "1, norm clipped at 1"),
    "fairgrad": ("FairGrad", "1"),
    "upgrad": ("UPGrad", "1"),
    "dualproj": ("DualProj", "1"),
    "aligned_mtl": ("AlignedMTL", "1"),
    "config": ("ConFIG", "1"),
    "gradvac": ("GradVac", "K"),
    "excess_mtl": ("ExcessMTL", "1"),
}
FACTORS = {
    "1": lambda ours, num_tasks: ours,
    "K": lambda ours, num_tasks: num_tasks * ours,
    "1, norm clipped at 1": lambda ours, num_tasks: ours / max(np.linalg.norm(ours), 1),
}


def table():
    """The rows of the page's first table, by our name."""
    text = PAGE.split("| famo_jax | TorchJD |")[1].split("\n\n")[0]
    rows = [re.split(r" ?\| ?", line.strip("|").strip()) for line in text.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_every_method_has_its_row():
    wrappers = {"log_losses(...)", "periodic(...)"}
    assert set(table()) == {*WEIGHTING, *DIRECTING, *AGGREGATION, *wrappers}
    assert {len(row) for row in table().values()} <= {5, 6}


def test_the_page_says_what_is_tested():
    theirs = {
        name: (row[0].strip("`"), row[1]) for name, row in table().items() if row[1] == row[1]
    }
    theirs = {name: pair for name, pair in theirs.items() if pair[1] not in ("", "—")}
    assert theirs == TORCHJD


# --- The factors, live ----------------------------------------------------------------------------

CALLS = {  # ours, of the number of tasks, and theirs
    "famo": (famo_jax.famo, lambda peer, k: peer(k)),
    "ls": (lambda k: weighting.ls(), lambda peer, k: peer()),
    "dwa": (weighting.dwa, lambda peer, k: peer()),
    "uw": (weighting.uw, lambda peer, k: peer(k)),
    "imtl_l": (weighting.imtl_l, lambda peer, k: peer(k)),
    "gls": (weighting.gls, lambda peer, k: peer()),
    "stch": (lambda k: weighting.stch(k, mu=0.5), lambda peer, k: peer(0.5)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("num_tasks", [2, 7])
def test_weights(name, num_tasks, x64):
    """Of methods without draws, before their first step."""
    torch = pytest.importorskip("torch")
    scalarization = pytest.importorskip("torchjd.scalarization")
    peer, factor = TORCHJD[name]
    ours, theirs = CALLS[name]
    losses = np.random.default_rng(num_tasks).uniform(0.1, 5, num_tasks)
    values = torch.tensor(losses, requires_grad=True)
    theirs(getattr(scalarization, peer), num_tasks)(values).backward()
    weights = loss_weights(jnp.array(losses), ours(num_tasks).init(None))
    np.testing.assert_allclose(FACTORS[factor](weights, num_tasks), values.grad, rtol=1e-6)


def test_random_weights_have_the_same_sum_and_spread():
    """Those of RLW, by their distribution: the draws are not the same."""
    torch = pytest.importorskip("torch")
    scalarization = pytest.importorskip("torchjd.scalarization")
    peer, factor = TORCHJD["rlw"]
    theirs = []
    for _ in range(3000):
        values = torch.ones(3, requires_grad=True)
        getattr(scalarization, peer)()(values).backward()
        theirs.append(values.grad.numpy())
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = lambda key: loss_weights(jnp.ones(3), weighting.rlw(3, key=key).init(None))
    ours = FACTORS[factor](np.asarray(jax.vmap(draw)(keys)), 3)
    np.testing.assert_allclose(np.mean(ours, axis=0), np.mean(theirs, axis=0), atol=0.02)
    np.testing.assert_allclose(np.std(ours, axis=0), np.std(theirs, axis=0), atol=0.02)


ARGUMENTS = {
    "cagrad": {"c": 0.4, "norm_eps": 0.0},
    "fairgrad": {"alpha": 0.5},
    "excess_mtl": {"n_warmup_steps": 1},  # their first step is by itself
}


@pytest.mark.parametrize("name", [name for name in TORCHJD if name in AGGREGATION])
@pytest.mark.parametrize("num_tasks", [2, 5])
@pytest.mark.filterwarnings("ignore")  # what CVXPY thinks of the problems that it gets
def test_directions(name, num_tasks, x64):
    """Of nearly aligned gradients in many dimensions, where random orders and draws do not tell."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchjd.aggregation")
    peer, factor = TORCHJD[name]
    rng = np.random.default_rng(num_tasks)
    rows = rng.normal(size=(num_tasks, 300)) + (num_tasks == 2) * rng.normal(size=300)
    rows /= np.linalg.norm(rows) / num_tasks**0.5
    if name in ("pcgrad", "gradvac") and num_tasks > 2:
        rows = np.abs(rows)  # no conflicts, whose order is drawn
    if name == "graddrop":
        rows = np.abs(rows)  # one sign, so that nothing is dropped
    arguments = {"n_tasks": num_tasks} if name == "nash_mtl" else ARGUMENTS.get(name, {})
    try:
        expected = getattr(theirs, peer)(**arguments)(torch.tensor(rows)).numpy()
    except ImportError:
        pytest.skip(f"{peer} needs an extra of TorchJD")
    tx = AGGREGATION[name](num_tasks)
    direction = np.asarray(tx.update(jnp.array(rows), tx.init(jnp.array(rows[0])))[0])
    direction = FACTORS[factor](direction, num_tasks)
    loose = name in ("mgda", "nash_mtl", "upgrad", "dualproj", "fairgrad", "excess_mtl")
    error = np.linalg.norm(direction - expected) / np.linalg.norm(expected)
    assert error < (2e-2 if loose else 1e-5), error


# --- The page itself ------------------------------------------------------------------------------


def test_blocks_run():
    for block in blocks("python", PAGE):
        namespace = {}
        run(block, namespace)
        losses = jax.tree.leaves(namespace["losses"])
        assert all(np.all(np.isfinite(loss)) for loss in losses)
    assert len(blocks("python", PAGE)) == 4
    assert set(re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)) == {"python"}


def test_our_names_exist():
    public = {*famo_jax.__all__, *weighting.__all__, *aggregation.__all__}
    assert {name.split("(")[0] for name in table()} <= public


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.filterwarnings("ignore")  # what the solver thinks of the problems that it gets
def test_heads_of_mtl_backward(x64):
    """With K times the gradient of the heads UPGrad on the trunk is TorchJD's, step by step."""
    torch = pytest.importorskip("torch")
    autojac = pytest.importorskip("torchjd.autojac")
    pytest.importorskip("quadprog")
    from torchjd.aggregation import UPGrad
    from torchjd.linalg import QuadprogProjector

    draw = np.random.default_rng(0).normal
    x, target = draw(size=(32, 8)), draw(size=32)
    y = np.stack([target, -3 * target + 0.5 * draw(size=32)], axis=1)
    start = {"trunk": draw(size=(8, 16)) / 3, "heads": np.repeat(draw(size=(16, 1)) / 4, 2, 1)}

    rows, labels = map(torch.tensor, (x, y))
    trunk = torch.tensor(start["trunk"], requires_grad=True)
    own = [torch.tensor(start["heads"][:, i], requires_grad=True) for i in range(2)]
    sgd, theirs = torch.optim.SGD([trunk, *own], lr=0.1), []
    for _ in range(10):
        z = torch.tanh(rows @ trunk)
        losses = [((z @ own[i] - labels[:, i]) ** 2).mean() for i in range(2)]
        sgd.zero_grad()
        autojac.mtl_backward(losses, features=z)
        autojac.jac_to_grad([trunk], UPGrad(projector=QuadprogProjector(reg_eps=1e-9)))
        sgd.step()
        theirs.append([loss.item() for loss in losses])

    def losses_fn(params):
        return jnp.mean((jnp.tanh(x @ params["trunk"]) @ params["heads"] - y) ** 2, axis=0)

    shared, heads = {"trunk": True, "heads": False}, {"trunk": False, "heads": True}
    own_loss = optax.masked(optax.scale(2.0), heads)
    tx = optax.chain(aggregation.upgrad(shared=shared), own_loss, optax.sgd(0.1))
    params = jax.tree.map(jnp.asarray, start)
    state, ours = tx.init(params), []
    for _ in range(10):
        losses, grads = famo_jax.losses_and_grads(losses_fn)(params, state=state)
        updates, state = tx.update(grads, state, params, losses=losses)
        params = optax.apply_updates(params, updates)
        ours.append(np.asarray(losses))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    rows_of = jax.jacrev(losses_fn)(jax.tree.map(jnp.asarray, start))["trunk"].reshape(2, -1)
    assert rows_of[0] @ rows_of[1] < 0  # or UPGrad would be the mean
