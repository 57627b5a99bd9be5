r"""Eleven properties of small molecules.

A regression in the shape of QM9's, without a download. Molecules of at most nine heavy atoms (C, N,
O, F), as QM9's are, come from scaffolds with two places for substituents, all combinations of them,
each molecule once by its canonical SMILES. RDKit computes eleven properties in the units that are
usual for them, of standard deviations from 0.04 to over 100. No property is scaled.

The input is the Morgan fingerprint of radius 1 (Rogers and Hahn 2010): how often each neighbourhood
of an atom occurs, folded onto 64 counts. Many neighbourhoods share a count, and how the
neighbourhoods are joined is not told: what that leaves open is the noise of a task, none is added.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from famo_jax.experiments.problems import _problem
from famo_jax.experiments.problems._problem import Data, Task

Array = npt.NDArray[Any]

# --- Molecules ------------------------------------------------------------------------------------

# SMILES, {} where a substituent goes: chains, carbonyls, rings, and aromatic rings.
_SCAFFOLDS = (
    "C({})({}) C({})C{} C({})CC{} C({})=C{} O(C{})C{} N({})C{} C(=O)({}){} C1({})CC1{} "
    "C1({})CCC1{} C1({})CCCC1{} C1({})OC1{} C1({})CCOC1{} C1({})CN1{} c1c({})cccc1{} "
    "c1c({})ccc({})c1 c1c({})nccc1{} c1c({})oc({})c1 c1({})nc({})[nH]c1"
)
_SUBSTITUENTS = "[H] F O N C C#N C=O CC CO CN CF OC NC C=C C#C C(F)F C(=O)O C(N)=O C(C)=O C(C)C"
SCAFFOLDS, SUBSTITUENTS = _SCAFFOLDS.split(), _SUBSTITUENTS.split()
MOST_ATOMS = 9  # without hydrogen
COUNTS = 64
SHARES = (0.6, 0.2)  # of the molecules, to train on and to choose by; the rest is the test


class Molecules(NamedTuple):
    """Molecules, or batches of them."""

    counts: Any  # [..., 64], uint8, the folded fingerprint
    properties: Any  # [..., K], float32, in the units of TASKS


@functools.cache
def load_smiles() -> tuple[str, ...]:
    """The molecules, in canonical SMILES, each once."""
    from rdkit import Chem

    pairs = list(itertools.product(SUBSTITUENTS, repeat=2))
    texts = (scaffold.format(*pair) for scaffold in SCAFFOLDS for pair in pairs)
    molecules = map(Chem.MolFromSmiles, texts)
    small = (each for each in molecules if 2 <= each.GetNumHeavyAtoms() <= MOST_ATOMS)
    return tuple(sorted(set(map(Chem.MolToSmiles, small))))


def counts_of(molecule: Any) -> Array:
    """The folded fingerprint, ``[64]``: how often each neighbourhood of an atom occurs."""
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=1, fpSize=COUNTS)
    counts: Array = generator.GetCountFingerprintAsNumPy(molecule).astype(np.uint8)
    return counts


def properties_of(molecule: Any) -> list[float]:
    """The K properties, in the order and units of ``TASKS``."""
    from rdkit import Chem
    from rdkit.Chem import GraphDescriptors, rdMolDescriptors, rdPartialCharges

    rdPartialCharges.ComputeGasteigerCharges(molecule)
    charges = [atom.GetDoubleProp("_GasteigerCharge") for atom in molecule.GetAtoms()]
    log_p, refractivity = rdMolDescriptors.CalcCrippenDescriptors(molecule)
    mass = rdMolDescriptors.CalcExactMolWt(molecule)
    adjacency = Chem.GetAdjacencyMatrix(molecule)
    schultz = adjacency.sum(axis=0) @ (adjacency + Chem.GetDistanceMatrix(molecule))
    return [
        refractivity / mass,
        float(np.mean(np.abs(charges))),
        max(charges),
        GraphDescriptors.BalabanJ(molecule),
        log_p,
        rdMolDescriptors.CalcKappa2(molecule),
        refractivity,
        rdMolDescriptors.CalcLabuteASA(molecule),
        mass,
        rdMolDescriptors.CalcTPSA(molecule),
        float(schultz.sum()),
    ]


@functools.cache
def load_molecules() -> Molecules:
    """Computes the inputs and the properties of all molecules."""
    from rdkit import Chem

    molecules = list(map(Chem.MolFromSmiles, load_smiles()))
    counts = np.stack(list(map(counts_of, molecules)))
    return Molecules(counts, np.array(list(map(properties_of, molecules)), np.float32))


def splits(seed: int) -> list[Array]:
    """The numbers of the molecules to train on, to validate on and to test, at random."""
    order = np.random.default_rng(seed).permutation(len(load_smiles()))
    return np.split(order, (np.cumsum(SHARES) * len(order)).astype(int))


def load_data(steps: int, seeds: Sequence[int], batch_size: int) -> Data:
    """Draws the batches of each seed: the numbers of molecules, from a split of its own."""
    train, validation, test = map(np.stack, zip(*map(splits, seeds), strict=True))
    places = _problem.draw_rows(steps, seeds, batch_size, 1, train.shape[1])
    rows = jnp.asarray(train)[jnp.arange(len(seeds))[:, None], places]

    def of(rows: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[rows]), load_molecules())

    return Data(rows, of(validation), of(test), pool=of(slice(None)))


TASKS = tuple(
    Task(name, f"{name}, MSE", f"{name} MAE ({unit})", decimals)
    for name, unit, decimals in (
        ("specific refraction", "cm³/g", 4),  # molar refractivity over mass
        ("mean |charge|", "e", 4),  # Gasteiger and Marsili
        ("largest charge", "e", 4),
        ("Balaban J", "1", 3),
        ("logP", "1", 3),  # Wildman and Crippen
        ("kappa 2", "1", 3),  # Hall and Kier's shape
        ("molar refractivity", "cm³/mol", 2),
        ("surface", "Å²", 2),  # Labute's approximation
        ("mass", "Da", 2),
        ("polar surface", "Å²", 2),  # Ertl's, topological
        ("Schultz index", "1", 1),  # the sum of v (A + D): degrees, adjacency, distances
    )
)
K = len(TASKS)


network = functools.partial(_problem.Network, (COUNTS, 64, 32, K))


def units(seeds: Sequence[int], standardised: bool) -> tuple[Array, Array]:
    """Of each property in training the mean and the standard deviation or 1, ``[seeds, K]``."""
    train = np.stack([load_molecules().properties[splits(seed)[0]] for seed in seeds])
    deviations = train.std(axis=1) if standardised else np.ones((len(seeds), K), np.float32)
    return train.mean(axis=1), deviations


def inputs(molecules: Any) -> jax.Array:
    """The counts, ``[..., 64]``."""
    counts: jax.Array = molecules.counts.astype(float)
    return counts


def predict(
    params: chex.ArrayTree, molecules: Any, mean: Any, unit: Any, z: Any = None
) -> jax.Array:
    """The K properties, ``[..., K]``: what is learned are their distances from the mean.

    Of the molecules' fingerprints or, where given, of features z.
    """
    outputs = _problem.apply(network, params, inputs(molecules), z)
    properties: jax.Array = mean + unit * outputs
    return properties


def task_losses(
    params: chex.ArrayTree, molecules: Molecules, mean: Any, unit: Any, z: Any = None
) -> jax.Array:
    """The K mean squared errors, ``[K]``, in the squares of the units."""
    errors = predict(params, molecules, mean, unit, z) - molecules.properties
    return jnp.mean((errors / unit) ** 2, axis=0)


def task_metrics(params: chex.ArrayTree, molecules: Molecules, mean: Any, unit: Any) -> jax.Array:
    """The K mean absolute errors, ``[K]``, in the units of ``TASKS``."""
    errors = predict(params, molecules, mean, unit) - molecules.properties
    return jnp.mean(jnp.abs(errors), axis=0)


PROBLEM, STANDARDISED = (
    _problem.of_network(
        network, TASKS, load_data, task_losses, task_metrics, inputs,
        functools.partial(units, standardised=standardised),
    )
    for standardised in (False, True)
)  # fmt: skip
