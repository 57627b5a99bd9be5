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
from collections.abc import Callable, Sequence
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


class Splits(NamedTuple):
    """Three sets that have no molecule in common."""

    train: Molecules
    validation: Molecules
    test: Molecules


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
def load_splits() -> Splits:
    """Computes the molecules' inputs and properties, and splits them at random."""
    from rdkit import Chem

    molecules = list(map(Chem.MolFromSmiles, load_smiles()))
    counts = np.stack(list(map(counts_of, molecules)))
    properties = np.array(list(map(properties_of, molecules)), np.float32)
    order = np.random.default_rng(0).permutation(len(molecules))
    ends = (np.cumsum(SHARES) * len(order)).astype(int)
    return Splits(*(Molecules(counts[own], properties[own]) for own in np.split(order, ends)))


def load_data(steps: int, seeds: Sequence[int], batch_size: int) -> Data:
    """Draws the batches: the numbers of molecules in the training set."""
    splits = load_splits()
    rows = _problem.draw_rows(steps, seeds, batch_size, 1, len(splits.train.counts))
    pool = jax.tree.map(jnp.asarray, splits.train)
    return Data(rows, splits.validation, splits.test, pool=pool)


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


def spreads() -> Array:
    """The standard deviations over the training molecules, ``[K]``."""
    deviations: Array = load_splits().train.properties.std(axis=0)
    return deviations


def predict(
    params: chex.ArrayTree, counts: jax.Array, units: Any = 1.0, z: Any = None
) -> jax.Array:
    """The K properties, ``[..., K]``: deviations in these units from the mean of the training.

    Of the fingerprints or, where given, of features z.
    """
    deviations = _problem.apply(network, params, counts.astype(float), z)
    mean = jnp.asarray(load_splits().train.properties.mean(axis=0))
    properties: jax.Array = mean + units * deviations
    return properties


def of_units(units: Callable[[], Any]) -> _problem.Problem:
    """The problem in which properties are learned in these units, ``[K]`` or one for all."""

    def inputs(molecules: Molecules) -> jax.Array:
        counts: jax.Array = molecules.counts.astype(float)
        return counts

    def errors(params: chex.ArrayTree, molecules: Molecules, z: Any = None) -> jax.Array:
        predicted = predict(params, molecules.counts, units(), z)
        return jnp.asarray(predicted - molecules.properties)

    def losses(params: chex.ArrayTree, molecules: Molecules, z: Any = None) -> jax.Array:
        """The K mean squared errors, ``[K]``, in the squares of the units."""
        return jnp.mean((errors(params, molecules, z) / units()) ** 2, axis=0)

    def metrics(params: chex.ArrayTree, molecules: Molecules) -> jax.Array:
        """The K mean absolute errors, ``[K]``, in the units of ``TASKS``."""
        return jnp.mean(jnp.abs(errors(params, molecules)), axis=0)

    return _problem.of_network(network, TASKS, load_data, losses, metrics, inputs)


PROBLEM = of_units(lambda: 1.0)
STANDARDISED = of_units(spreads)
