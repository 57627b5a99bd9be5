r"""QM-9: eleven properties of 130,831 molecules, as in the FAMO paper.

Data, network, losses and metrics are those of the official code (github.com/Cranial-XIX/FAMO,
``experiments/quantum_chemistry``), parameter for parameter; how they are computed is not.

A molecule is a complete graph of its atoms. Messages go along edges by a matrix that a network
makes of the edge (NNConv, Gilmer et al. 2017), a GRU takes them in, and Set2Set (Vinyals et al.
2016) reads the molecule out. The matrix of an edge, :math:`W_{ij} = \sum_k e_{ijk} W_k + B` with
the 128 hidden units e, is never formed. Its products are summed in another order,

.. math:: \sum_j W_{ij}^\top x_j = \sum_k W_k^\top \Big(\sum_j e_{ijk} x_j\Big) + B^\top \sum_j x_j,

which is exact and takes a seventh of the operations. Molecules are padded to the largest in
their quarter of the batch, which is sorted by size.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from famo_jax.experiments.problems import _problem, _qm9_files
from famo_jax.experiments.problems._problem import Data, Problem, Task, init_params

Array = npt.NDArray[Any]

# --- Tasks ----------------------------------------------------------------------------------------

# How each is reported: its unit, the factor from the unit of the data, and decimals.
_REPORTED = {
    "mu": ("D", 1, 3),
    "alpha": ("a0³", 1, 3),
    "HOMO": ("meV", 1000, 1),
    "LUMO": ("meV", 1000, 1),
    "R2": ("a0²", 1, 2),
    "ZPVE": ("meV", 1000, 2),
    "U0": ("meV", 1000, 1),
    "U": ("meV", 1000, 1),
    "H": ("meV", 1000, 1),
    "G": ("meV", 1000, 1),
    "cv": ("cal/(mol K)", 1, 3),
}
TASKS = tuple(
    Task(name, f"{name}, MSE of z-scores", f"{name} MAE ({unit})", decimals)
    for name, (unit, _, decimals) in _REPORTED.items()
)
K = len(TASKS)
FACTORS = np.array([factor for _, factor, _ in _REPORTED.values()], np.float32)
# The single-task networks' errors that the official code judges by.
STL = np.array(
    [0.0671, 0.1814, 60.576, 53.915, 0.5027, 4.539, 58.838, 64.244, 63.852, 66.223, 0.07212]
)

# --- Molecules ------------------------------------------------------------------------------------

MOST_ATOMS = 29
HELD_OUT_CHUNK = 250  # molecules that are evaluated at once
GROUPS = 4  # of a batch, each padded to a size of its own


class Molecules(NamedTuple):
    """Padded molecules: n is at most ``MOST_ATOMS``. A single atom stands for no molecule."""

    elements: Any  # [..., n], uint8, atomic numbers, 0 for no atom
    positions: Any  # [..., n, 3], float32, Å
    bonds: Any  # [..., n, n], uint8: 1 to 3, 4 for aromatic, 0 for none
    targets: Any  # [..., K], float32, in D, a0³, eV, eV, a0², 5 x eV, cal/(mol K)


def pad(table: _qm9_files.Table) -> Molecules:
    """All molecules, and one behind them that is none."""
    size = len(table.counts)
    there = np.arange(MOST_ATOMS) < table.counts[:, None]
    elements = np.zeros((size + 1, MOST_ATOMS), np.uint8)
    elements[:-1][there] = table.elements
    elements[-1, 0] = 1
    positions = np.zeros((size + 1, MOST_ATOMS, 3), np.float32)
    positions[:-1][there] = table.positions * _qm9_files.RESOLUTION
    bonds = np.zeros((size + 1, MOST_ATOMS, MOST_ATOMS), np.uint8)
    owner = np.repeat(np.arange(size), table.bond_counts)
    one, other, order = table.bonds.T
    bonds[owner, one, other] = bonds[owner, other, one] = order
    targets = np.concatenate([table.targets, np.zeros((1, K), np.float32)])
    return Molecules(elements, positions, bonds, targets)


def trim(molecules: Molecules, atoms: int) -> Molecules:
    """Without padding beyond so many atoms."""
    elements, positions, bonds, targets = molecules
    return Molecules(
        elements[..., :atoms], positions[..., :atoms, :], bonds[..., :atoms, :atoms], targets
    )


class Plan(NamedTuple):
    """How the molecules are used."""

    train: int | None  # how many; None for all that are not held out
    validation: int
    test: int
    scale_by: str = "all"  # as official, or "train": whose mean and deviation make z-scores
    split: Array | None = None  # a permutation for all seeds, instead of one for each

    def rows(self, seed: int, size: int) -> tuple[Array, Array, Array]:
        """For training, validation and test: the test comes first, then validation."""
        order = np.random.default_rng(seed).permutation(size) if self.split is None else self.split
        test, validation, train = np.split(order, [self.test, self.test + self.validation])
        return train[: self.train], validation, test


def epoch_rows(rows: Array, seed: int, epoch: int, batch_size: int, counts: Array) -> Array:
    """``[steps, batch_size]``: all rows once, shuffled, each batch sorted by the atoms.

    What the last batch lacks is filled up with the number of the molecule that is none.
    """
    shuffled = np.random.default_rng([seed, epoch]).permutation(rows)
    lacking = -len(rows) % batch_size
    batches = np.append(shuffled, np.full(lacking, len(counts))).reshape(-1, batch_size)
    sizes = np.append(counts, 0)[batches]
    return np.take_along_axis(batches, np.argsort(sizes, axis=1, kind="stable"), 1).astype(np.int32)


def group_sizes(batches: Array, counts: Array) -> tuple[tuple[int, int], ...]:
    """Where each group of sorted batches ``[..., batch]`` ends, and the atoms of its largest."""
    size = batches.shape[-1]
    ends = [size * (group + 1) // GROUPS for group in range(GROUPS)]
    atoms = np.append(counts, 1)[batches[..., np.array(ends) - 1]].reshape(-1, GROUPS).max(axis=0)
    return tuple((end, int(most)) for end, most in zip(ends, atoms, strict=True))


# --- The network ----------------------------------------------------------------------------------

FEATURES = 11
EDGE_FEATURES = 5
ROUNDS = 3  # of messages, and of Set2Set


def _uniform(fan_in: int) -> Any:
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, fan_in: int | None = None) -> nnx.Linear:
    """Initialised as PyTorch's."""
    init = _uniform(fan_in or inputs)
    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)


class Gru(nnx.Module):
    """As PyTorch's, with its two biases: under Adam these move twice as fast as one would."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.of_input = _linear(width, 3 * width, rngs)
        self.of_hidden = _linear(width, 3 * width, rngs)

    def __call__(self, inputs: jax.Array, hidden: jax.Array) -> jax.Array:
        """``[..., width]`` twice."""
        r_in, z_in, n_in = jnp.split(self.of_input(inputs), 3, axis=-1)
        r_hid, z_hid, n_hid = jnp.split(self.of_hidden(hidden), 3, axis=-1)
        z = jax.nn.sigmoid(z_in + z_hid)
        n = jnp.tanh(n_in + jax.nn.sigmoid(r_in + r_hid) * n_hid)
        return (1 - z) * n + z * hidden


class Lstm(nnx.Module):
    """As PyTorch's."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs) -> None:
        self.of_input = _linear(inputs, 4 * width, rngs, fan_in=width)
        self.of_hidden = _linear(width, 4 * width, rngs)

    def __call__(
        self, inputs: jax.Array, hidden: jax.Array, cell: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """``[..., inputs]`` and ``[..., width]`` twice."""
        gates = self.of_input(inputs) + self.of_hidden(hidden)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


class Network(nnx.Module):
    """The official one at a width of 64 and 128 hidden units of an edge: 617,675 parameters."""

    def __init__(self, rngs: nnx.Rngs, width: int = 64, edge_units: int = 128) -> None:
        self.width = width
        self.lin0 = _linear(FEATURES, width, rngs)
        self.edge = _linear(EDGE_FEATURES, edge_units, rngs)
        self.edge_matrix = _linear(edge_units, width * width, rngs)
        self.root = nnx.Param(_uniform(width)(rngs.params(), (width, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width))
        self.gru = Gru(width, rngs)
        self.lstm = Lstm(2 * width, width, rngs)
        self.lin1 = _linear(2 * width, width, rngs)
        self.heads = _linear(width, K, rngs)

    def encode(self, molecules: Molecules) -> jax.Array:
        """``[B, width]``, of molecules ``[B, ...]``."""
        there = molecules.elements > 0
        both = there[:, :, None] & there[:, None, :] & ~jnp.eye(there.shape[1], dtype=bool)
        neighbours = jnp.maximum(jnp.sum(both, axis=-1, keepdims=True), 1)
        share = both / neighbours  # [B, n, n]: messages are averaged
        hidden = nnx.relu(self.edge(edge_features(molecules))) * share[..., None]
        units = jnp.concatenate([hidden, share[..., None]], axis=-1)  # the last one's is the bias
        assert self.edge_matrix.bias is not None
        matrices = jnp.vstack([self.edge_matrix.kernel[...], self.edge_matrix.bias[...]])
        matrices = matrices.reshape(-1, self.width, self.width)  # [units, in, out]
        kernel = matrices.swapaxes(0, 1).reshape(self.width, -1)  # [in, units x out]
        size, atoms_each = there.shape
        units = units.reshape(size, atoms_each, -1)  # [B, n, n x units]
        atoms = nnx.relu(self.lin0(atom_features(molecules)))
        for _ in range(ROUNDS):
            # What each atom tells by each unit, then the sum over atoms and units at once.
            told = (atoms.reshape(-1, self.width) @ kernel).reshape(size, -1, self.width)
            messages = units @ told + atoms @ self.root + self.bias
            atoms = self.gru(nnx.relu(messages), atoms)
        return nnx.relu(self.lin1(self.read_out(atoms, there)))

    def read_out(self, atoms: jax.Array, there: jax.Array) -> jax.Array:
        """Set2Set: ``[B, n, width]`` to ``[B, 2 width]``, whatever the order of the atoms."""
        query = cell = jnp.zeros_like(atoms[:, 0])
        found = jnp.concatenate([query, query], axis=-1)
        for _ in range(ROUNDS):
            query, cell = self.lstm(found, query, cell)
            scores = jnp.einsum("bnc,bc->bn", atoms, query)
            attention = jax.nn.softmax(jnp.where(there, scores, -jnp.inf))
            found = jnp.concatenate([query, jnp.einsum("bn,bnc->bc", attention, atoms)], axis=-1)
        return found


def count_parameters(width: int, edge_units: int) -> int:
    """Of the network."""
    return _problem.count_parameters(lambda rngs: Network(rngs, width=width, edge_units=edge_units))


def atom_features(molecules: Molecules) -> jax.Array:
    """``[..., n, 11]``: the element, its number, four zeros, and how many hydrogens are bonded.

    The zeros are of aromatic, sp, sp2 and sp3 atoms, which the official data never tell.
    """
    numbers = molecules.elements[..., None]
    kinds = numbers == jnp.array(list(_qm9_files.ELEMENTS.values()), jnp.uint8)
    hydrogens = jnp.sum((molecules.bonds > 0) & (molecules.elements == 1)[..., None, :], axis=-1)
    parts = kinds, numbers, jnp.zeros((*numbers.shape[:-1], 4)), hydrogens[..., None]
    return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)


def edge_features(molecules: Molecules) -> jax.Array:
    """``[..., n, n, 5]``: single, double, triple, aromatic, and the distance in Å."""
    orders = molecules.bonds[..., None] == jnp.arange(1, EDGE_FEATURES, dtype=jnp.uint8)
    apart = molecules.positions[..., :, None, :] - molecules.positions[..., None, :, :]
    distance = jnp.sqrt(jnp.sum(apart**2, axis=-1, keepdims=True))
    return jnp.concatenate([orders.astype(jnp.float32), distance], axis=-1)


# --- The problem ----------------------------------------------------------------------------------


class Scale(NamedTuple):
    """What makes z-scores of targets."""

    mean: Any  # [K]
    std: Any  # [K]


def problem(
    table: _qm9_files.Table,
    plan: Plan,
    seeds: Sequence[int],
    batch_size: int,
    epochs: int,
    *,
    width: int,
    edge_units: int,
) -> Problem:
    """QM-9 at some width, for these seeds, batches and epochs: their sizes are compiled in."""
    network = functools.partial(Network, width=width, edge_units=edge_units)
    graph = nnx.graphdef(nnx.eval_shape(lambda: network(nnx.Rngs(0))))
    size, counts = len(table.counts), table.counts
    rows = {seed: plan.rows(seed, size) for seed in seeds}
    epoch = -(-len(rows[seeds[0]][0]) // batch_size)  # the last batch may be smaller

    def batches(number: int) -> Array:  # [steps, seeds, batch_size] of an epoch
        own = [epoch_rows(rows[seed][0], seed, number, batch_size, counts) for seed in seeds]
        return np.stack(own, axis=1)

    every_size = [group_sizes(batches(number), counts) for number in range(epochs)]
    groups = [max(at) for at in zip(*every_size, strict=True)]

    def load_data(steps: int, seeds: Sequence[int], batch_size: int) -> Data:
        def stream(first: int, last: int) -> Array:
            numbers = range(first // epoch, -(-last // epoch))
            every = np.concatenate([batches(number) for number in numbers])
            return every[first - numbers[0] * epoch :][: last - first]

        pool = pad(table)
        validation, test = (
            _held_out([rows[seed][part] for seed in seeds], pool, counts) for part in (1, 2)
        )
        pool = jax.tree.map(jnp.asarray, pool)
        return Data(stream, validation, test, pool=pool, epoch=epoch)

    def scale(seed: int) -> Scale:
        of = table.targets if plan.scale_by == "all" else table.targets[rows[seed][0]]
        deviation = of.std(axis=0, dtype=np.float64, ddof=1)
        return Scale(of.mean(axis=0, dtype=np.float64), deviation)

    def init(seeds: Sequence[int]) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        scales = [scale(seed) for seed in seeds]
        stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *scales)
        return init_params(network, seeds), stacked

    def encode(params: chex.ArrayTree, state: Scale, batch: Molecules, key: Any) -> jax.Array:
        del state, key
        model, start, parts = nnx.merge(graph, params), 0, []
        for end, atoms in groups:
            part = jax.tree.map(lambda leaf, start=start, end=end: leaf[start:end], batch)
            parts.append(model.encode(trim(part, atoms)))
            start = end
        return jnp.concatenate(parts)

    def heads(
        params: chex.ArrayTree, features: jax.Array, state: Scale, batch: Molecules, key: Any
    ) -> jax.Array:
        del key
        errors = nnx.merge(graph, params).heads(features) - z_scores(batch, state)
        real = is_molecule(batch)[:, None]
        return jnp.sum(jnp.where(real, errors**2, 0), axis=0) / jnp.sum(real)

    def losses(
        params: chex.ArrayTree, state: Scale, batch: Molecules, key: Any
    ) -> tuple[jax.Array, Scale]:
        return heads(params, encode(params, state, batch, key), state, batch, key), state

    def metrics(params: chex.ArrayTree, state: Scale, held_out: tuple[Molecules, ...]) -> jax.Array:
        model = nnx.merge(graph, params)

        def total(chunk: Molecules) -> tuple[jax.Array, jax.Array]:
            errors = jnp.abs(model.heads(model.encode(chunk)) - z_scores(chunk, state))
            real = is_molecule(chunk)[:, None]
            return jnp.sum(jnp.where(real, errors, 0), axis=0), jnp.sum(real)

        totals = [jax.lax.map(total, part) for part in held_out]
        errors = sum(jnp.sum(chunks, axis=0) for chunks, _ in totals)
        found: jax.Array = FACTORS * state.std * errors / sum(jnp.sum(real) for _, real in totals)
        return found

    return Problem(TASKS, load_data, init, losses, metrics, features=(encode, heads))


def z_scores(molecules: Molecules, scale: Scale) -> jax.Array:
    """``[..., K]``."""
    scores: jax.Array = (molecules.targets - scale.mean) / scale.std
    return scores


def is_molecule(molecules: Molecules) -> jax.Array:
    """``[...]``: not what fills up a batch."""
    there: jax.Array = molecules.elements[..., 1] > 0
    return there


def _held_out(rows: Sequence[Array], pool: Molecules, counts: Array) -> tuple[Molecules, ...]:
    """Of each seed, sorted by size: ``[seeds, chunks, chunk, ...]`` in groups padded alike."""
    size = np.append(counts, 0)
    chunk = min(HELD_OUT_CHUNK, len(rows[0]))
    lacking = -len(rows[0]) % chunk
    every = np.stack([np.append(own, np.full(lacking, len(counts))) for own in rows])
    ordered = np.take_along_axis(every, np.argsort(size[every], axis=1, kind="stable"), axis=1)
    parts = np.array_split(ordered.reshape(len(rows), -1, chunk), GROUPS, axis=1)
    return tuple(
        trim(Molecules(*(leaf[part] for leaf in pool)), int(size[part].max()))
        for part in parts
        if part.size
    )
