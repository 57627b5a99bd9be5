"""QM-9's network, against the official one, PyTorch and NumPy; its batches, losses and errors."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import famo_jax
from famo_jax.experiments.problems import _qm9_files, qm9

DATA = Path(__file__).parents[1] / "data" / "qm9"
# The official network's arrays in the order of its `state_dict`.
SHAPES = {
    "lin0.weight": (64, 11),
    "lin0.bias": (64,),
    "conv.bias": (64,),
    "conv.nn.0.weight": (128, 5),
    "conv.nn.0.bias": (128,),
    "conv.nn.2.weight": (4096, 128),
    "conv.nn.2.bias": (4096,),
    "conv.lin.weight": (64, 64),
    "gru.weight_ih_l0": (192, 64),
    "gru.weight_hh_l0": (192, 64),
    "gru.bias_ih_l0": (192,),
    "gru.bias_hh_l0": (192,),
    "set2set.lstm.weight_ih_l0": (256, 128),
    "set2set.lstm.weight_hh_l0": (256, 64),
    "set2set.lstm.bias_ih_l0": (256,),
    "set2set.lstm.bias_hh_l0": (256,),
    "lin1.weight": (64, 128),
    "lin1.bias": (64,),
} | {f"head_{task}.{part}": shape for task in range(11) for part, shape in
     (("weight", (1, 64)), ("bias", (1,)))}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return _qm9_files.load(_qm9_files.find(str(DATA)))


@pytest.fixture(scope="module")
def molecules(table):
    """All 50, padded."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[:-1]), qm9.pad(table))


@functools.cache
def weights():
    """As `tests/data/qm9/README.md` says."""
    rng = np.random.default_rng(0)
    drawn = {}
    for name, shape in SHAPES.items():
        bound = 1.5 * (64 if len(shape) == 1 else shape[1]) ** -0.5
        drawn[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return drawn


def official(drawn):
    """Our network with the official one's weights."""
    network = qm9.Network(nnx.Rngs(0))

    def fill(linear, weight, bias):
        linear.kernel[...], linear.bias[...] = jnp.asarray(weight.T), jnp.asarray(bias)

    for ours, theirs in {
        network.lin0: "lin0",
        network.edge: "conv.nn.0",
        network.edge_matrix: "conv.nn.2",
        network.lin1: "lin1",
    }.items():
        fill(ours, drawn[f"{theirs}.weight"], drawn[f"{theirs}.bias"])
    for cell, theirs in ((network.gru, "gru"), (network.lstm, "set2set.lstm")):
        fill(cell.of_input, drawn[f"{theirs}.weight_ih_l0"], drawn[f"{theirs}.bias_ih_l0"])
        fill(cell.of_hidden, drawn[f"{theirs}.weight_hh_l0"], drawn[f"{theirs}.bias_hh_l0"])
    network.root[...] = jnp.asarray(drawn["conv.lin.weight"].T)
    network.bias[...] = jnp.asarray(drawn["conv.bias"])
    heads = [[drawn[f"head_{task}.{part}"] for task in range(11)] for part in ("weight", "bias")]
    fill(network.heads, np.concatenate(heads[0]), np.concatenate(heads[1]))
    return network


@nnx.jit
def apply(network, molecules):
    """Features and outputs."""
    features = network.encode(molecules)
    return features, network.heads(features)


# --- The official network -------------------------------------------------------------------------


def test_it_has_the_official_parameters():
    params = nnx.state(nnx.eval_shape(lambda: qm9.Network(nnx.Rngs(0))), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 617_675
    assert sum(leaf.size for leaf in jax.tree.leaves(params["heads"])) == 715
    assert qm9.count_parameters(64, 128) == 617_675


def test_outputs_are_the_official_ones(molecules):
    """Figures of torch-geometric, on 50 molecules in float32, whose own rounding is 2.3e-7."""
    expected = np.load(DATA / "official.npz")
    features, outputs = apply(official(weights()), molecules)
    np.testing.assert_allclose(features, expected["features"], atol=1e-6)
    np.testing.assert_allclose(outputs, expected["outputs"], atol=1e-6)
    assert np.std(expected["outputs"], axis=0).min() > 0.02  # molecules are told apart


def test_messages_are_those_of_the_definition(molecules):
    """NumPy, float64, an edge after the other: the matrix of each edge is formed."""
    drawn = {name: array.astype(np.float64) for name, array in weights().items()}
    relu = lambda x: np.maximum(x, 0)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    linear = lambda name, x: x @ drawn[f"{name}.weight"].T + drawn[f"{name}.bias"]

    def gates(cell, x, h, parts):
        both = [x @ drawn[f"{cell}.weight_ih_l0"].T + drawn[f"{cell}.bias_ih_l0"],
                h @ drawn[f"{cell}.weight_hh_l0"].T + drawn[f"{cell}.bias_hh_l0"]]  # fmt: skip
        return (np.split(each, parts, axis=-1) for each in both)

    def outputs(features, edges):
        n = len(features)
        atoms = relu(linear("lin0", features))
        for _ in range(3):
            messages = np.zeros_like(atoms)
            for i in range(n):
                for j in range(n):
                    if i != j:
                        hidden = relu(linear("conv.nn.0", edges[i, j]))
                        messages[i] += atoms[j] @ linear("conv.nn.2", hidden).reshape(64, 64)
            messages = messages / (n - 1) + atoms @ drawn["conv.lin.weight"].T + drawn["conv.bias"]
            x, h = gates("gru", relu(messages), atoms, 3)
            r, z = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
            atoms = (1 - z) * np.tanh(x[2] + r * h[2]) + z * atoms
        found, query, cell = np.zeros(128), np.zeros(64), np.zeros(64)
        for _ in range(3):
            x, h = gates("set2set.lstm", found, query, 4)
            i, f, g, o = (one + other for one, other in zip(x, h, strict=True))
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            query = sigmoid(o) * np.tanh(cell)
            attention = np.exp(atoms @ query)
            found = np.concatenate([query, attention @ atoms / attention.sum()])
        features = relu(linear("lin1", found))
        return np.concatenate([linear(f"head_{task}", features) for task in range(11)])

    some = jax.tree.map(lambda leaf: leaf[:5], molecules)
    _, actual = apply(official(weights()), some)
    features, edges = qm9.atom_features(some), qm9.edge_features(some)
    for index, n in enumerate(np.sum(some.elements > 0, axis=1)):
        own = np.asarray(features[index, :n], np.float64), np.asarray(edges[index, :n, :n])
        np.testing.assert_allclose(actual[index], outputs(*own), atol=1e-6)


def test_cells_are_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)

    def same_weights(ours, theirs):
        with torch.no_grad():
            for name, linear in (("ih", ours.of_input), ("hh", ours.of_hidden)):
                getattr(theirs, f"weight_{name}").copy_(torch.tensor(np.array(linear.kernel.T)))
                getattr(theirs, f"bias_{name}").copy_(torch.tensor(np.array(linear.bias)))

    draw = lambda width: rng.normal(size=(7, width)).astype(np.float32)
    x, h, c = draw(5), draw(5), draw(5)
    ours, theirs = qm9.Gru(5, nnx.Rngs(0)), torch.nn.GRUCell(5, 5)
    same_weights(ours, theirs)
    expected = theirs(torch.tensor(x), torch.tensor(h)).detach().numpy()
    np.testing.assert_allclose(ours(x, h), expected, atol=1e-6)

    x, ours, theirs = draw(10), qm9.Lstm(10, 5, nnx.Rngs(0)), torch.nn.LSTMCell(10, 5)
    same_weights(ours, theirs)
    both = theirs(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))
    for actual, expected in zip(ours(x, h, c), both, strict=True):
        np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-6)


def test_weights_start_as_pytorchs():
    """Uniform, biases too, up to 1 / sqrt(inputs), or of the hidden state in cells."""
    network = qm9.Network(nnx.Rngs(0))
    fans = {
        network.lin0: 11,
        network.edge: 5,
        network.edge_matrix: 128,
        network.gru.of_input: 64,
        network.gru.of_hidden: 64,
        network.lstm.of_input: 64,
        network.lstm.of_hidden: 64,
        network.lin1: 128,
        network.heads: 64,
    }
    for linear, fan in fans.items():
        for drawn in (linear.kernel[...], linear.bias[...]):
            assert np.abs(drawn).max() <= fan**-0.5
            assert np.abs(drawn).max() > 0.8 * fan**-0.5
        assert np.std(linear.kernel[...]) == pytest.approx((3 * fan) ** -0.5, rel=0.1)
    assert np.abs(network.root[...]).max() == pytest.approx(1 / 8, rel=0.01)
    assert not network.bias[...].any()


def test_the_order_of_the_atoms_and_padding_do_not_matter(molecules):
    network = official(weights())
    expected, _ = apply(network, molecules)
    order = np.random.default_rng(0).permutation(qm9.MOST_ATOMS)
    mixed = qm9.Molecules(
        molecules.elements[:, order],
        molecules.positions[:, order],
        molecules.bonds[:, order][:, :, order],
        molecules.targets,
    )
    np.testing.assert_allclose(apply(network, mixed)[0], expected, atol=1e-6)
    small = jax.tree.map(lambda leaf: leaf[:5], molecules)
    np.testing.assert_allclose(apply(network, qm9.trim(small, 5))[0], expected[:5], atol=1e-6)


def test_the_factored_step_takes_a_sixth_of_the_operations(molecules, table, monkeypatch):
    """Both counted: PyTorch's counter on the official step, XLA's on ours, over 120 molecules."""
    monkeypatch.setattr(qm9, "GROUPS", 4)
    rows = np.arange(120) % 50
    rows = rows[np.argsort(table.counts[rows], kind="stable")]
    batch = jax.tree.map(lambda leaf: leaf[rows], molecules)
    graph, params = nnx.split(nnx.eval_shape(lambda: qm9.Network(nnx.Rngs(0))))

    def loss(params, parts):
        network = nnx.merge(graph, params)
        errors = [network.heads(network.encode(part)) - part.targets for part in parts]
        return sum(jnp.sum(each**2) for each in errors)

    def count(parts):
        return jax.jit(jax.grad(loss)).lower(params, parts).cost_analysis()["flops"]

    whole = [batch]
    grouped, start = [], 0
    for end, atoms in qm9.group_sizes(rows[None], table.counts):
        part = jax.tree.map(lambda leaf, first=start, last=end: leaf[first:last], batch)
        grouped.append(qm9.trim(part, atoms))
        start = end
    theirs = int(np.load(DATA / "official.npz")["step_flops"])
    assert theirs / count(whole) > 6
    assert theirs / count(grouped) > 8


# --- Rows -----------------------------------------------------------------------------------------


def test_a_split_is_of_all_molecules_and_of_the_seed():
    plan = qm9.Plan(None, 10, 20)
    train, validation, test = plan.rows(3, 100)
    assert [len(train), len(validation), len(test)] == [70, 10, 20]
    assert sorted(np.concatenate([train, validation, test])) == list(range(100))
    np.testing.assert_array_equal(plan.rows(3, 100)[0], train)
    assert not np.array_equal(plan.rows(4, 100)[2], test)
    # Fewer to train on leave what is held out alone.
    few = plan._replace(train=30).rows(3, 100)
    np.testing.assert_array_equal(few[0], train[:30])
    np.testing.assert_array_equal(few[2], test)
    given = plan._replace(split=np.arange(100)[::-1])
    for seed in (0, 1):
        np.testing.assert_array_equal(given.rows(seed, 100)[2], np.arange(99, 79, -1))


def test_an_epoch_sees_each_molecule_once_and_fills_the_last_batch():
    counts = np.random.default_rng(0).integers(3, 30, 100).astype(np.uint8)
    rows = np.arange(10, 83)
    batches = qm9.epoch_rows(rows, 0, 0, 20, counts)
    assert batches.shape == (4, 20)
    assert sorted(batches.ravel()) == sorted([*rows, *7 * [100]])
    assert np.sum(batches[-1] == 100) == 7  # the last batch is the smaller one
    assert (np.diff(np.append(counts, 0)[batches].astype(int), axis=1) >= 0).all()
    again = qm9.epoch_rows(rows, 0, 0, 20, counts)
    np.testing.assert_array_equal(again, batches)
    for seed, epoch in ((1, 0), (0, 1)):
        assert not np.array_equal(qm9.epoch_rows(rows, seed, epoch, 20, counts), batches)


def test_groups_have_room_for_all():
    counts = np.random.default_rng(0).integers(3, 30, 1000).astype(np.uint8)
    batches = np.stack([qm9.epoch_rows(np.arange(990), 0, at, 50, counts) for at in range(3)])
    start, sizes = 0, np.append(counts, 1)[batches]
    for end, atoms in qm9.group_sizes(batches, counts):
        assert sizes[..., start:end].max() == atoms
        start = end
    assert start == 50


# --- The problem ----------------------------------------------------------------------------------

SEEDS, BATCH, EPOCHS = [0, 1], 8, 2
PLAN = qm9.Plan(20, 10, 20)


@pytest.fixture(scope="module", autouse=True)
def two_groups():
    """What is compiled grows by the group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9, "GROUPS", 2)
        yield


@pytest.fixture(scope="module")
def problem(table):
    return qm9.problem(table, PLAN, SEEDS, BATCH, EPOCHS, width=8, edge_units=6)


@pytest.fixture(scope="module")
def data(problem):
    return problem.load_data(0, SEEDS, BATCH)


def network_of(problem, seed):
    params, state = jax.tree.map(lambda leaf: leaf[seed], problem.init(SEEDS))
    graph = nnx.graphdef(nnx.eval_shape(lambda: qm9.Network(nnx.Rngs(0), 8, 6)))
    return nnx.merge(graph, params), params, state


def test_batches_stream_by_epochs(data):
    assert data.epoch == 3
    whole = data.batches(0, 6)
    assert whole.shape == (6, 2, 8)
    np.testing.assert_array_equal(data.batches(3, 6), whole[3:])
    np.testing.assert_array_equal(data.batches(1, 4), whole[1:4])
    assert not np.array_equal(whole[:3], whole[3:])


def test_losses_are_of_the_z_scores_of_molecules_that_are(problem, data, table, molecules):
    """In groups, and whatever fills up the last batch."""
    rows = data.batches(0, 3)[2, 0]
    assert np.sum(rows == 50) == 4
    network, params, state = network_of(problem, 0)
    batch = jax.tree.map(lambda leaf: leaf[rows], data.pool)

    @jax.jit
    def step(params):
        losses_fn = lambda params: problem.losses(params, state, batch, None)[0]
        return famo_jax.losses_and_grads(losses_fn)(params, state=famo_jax.weighting.ls().init(0))

    losses, grads = step(params)
    real = rows[rows < 50]
    own = jax.tree.map(lambda leaf: leaf[real], molecules)
    mean, deviation = table.targets.mean(axis=0), table.targets.std(axis=0, ddof=1)
    z = (table.targets[real] - mean) / deviation
    outputs = np.asarray(apply(network, own)[1])
    np.testing.assert_allclose(losses, np.mean((outputs - z) ** 2, axis=0), rtol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_clean_scale_is_of_the_training_molecules(table, problem):
    clean = qm9.problem(table, PLAN._replace(scale_by="train"), SEEDS, BATCH, 1,
                        width=8, edge_units=6)  # fmt: skip
    for seed in SEEDS:
        own = table.targets[PLAN.rows(seed, 50)[0]]
        np.testing.assert_allclose(clean.init(SEEDS)[1].mean[seed], own.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(
            clean.init(SEEDS)[1].std[seed], own.std(axis=0, ddof=1), rtol=1e-4
        )
        np.testing.assert_allclose(
            problem.init(SEEDS)[1].mean[seed], table.targets.mean(axis=0), rtol=1e-5
        )


def test_metrics_are_mean_absolute_errors_in_the_tables_units(problem, data, table, molecules):
    for seed in SEEDS:
        network, params, state = network_of(problem, seed)
        for part, held_out in ((1, data.validation), (2, data.test)):
            rows = PLAN.rows(seed, 50)[part]
            own = jax.tree.map(lambda leaf, rows=rows: leaf[rows], molecules)
            mean, deviation = table.targets.mean(axis=0), table.targets.std(axis=0, ddof=1)
            predicted = np.asarray(apply(network, own)[1]) * deviation + mean
            errors = np.mean(np.abs(predicted - table.targets[rows]), axis=0)
            errors[[2, 3, 5, 6, 7, 8, 9]] *= 1000  # eV to meV
            actual = jax.jit(problem.metrics)(
                params, state, jax.tree.map(lambda leaf, seed=seed: leaf[seed], held_out)
            )
            np.testing.assert_allclose(actual, errors, rtol=1e-4)


def test_chunks_of_what_is_held_out_may_be_partial(problem, table, monkeypatch):
    expected = problem.load_data(0, SEEDS, BATCH)
    _, params, state = network_of(problem, 0)
    first = lambda held_out: jax.tree.map(lambda leaf: leaf[0], held_out)
    metrics = jax.jit(problem.metrics)
    whole = metrics(params, state, first(expected.test))
    monkeypatch.setattr(qm9, "HELD_OUT_CHUNK", 3)
    parts = problem.load_data(0, SEEDS, BATCH).test
    assert [part.elements.shape[1:3] for part in parts] == [(4, 3), (3, 3)]
    np.testing.assert_allclose(metrics(params, state, first(parts)), whole, rtol=1e-5)


def test_the_way_over_the_features_is_the_same(problem, data):
    _, params, state = network_of(problem, 0)
    batch = jax.tree.map(lambda leaf: leaf[data.batches(0, 1)[0, 0]], data.pool)
    encode, heads = problem.features
    arguments = state, batch, None
    features = jax.jit(encode)(params, *arguments)
    assert features.shape == (8, 8)
    losses = jax.jit(heads)(params, features, *arguments)
    expected = jax.jit(problem.losses)(params, *arguments)[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
