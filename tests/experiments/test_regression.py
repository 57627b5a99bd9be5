"""The regression on molecules: its molecules, their properties, their splits and units."""

import jax
import numpy as np
import pytest
from rdkit import Chem

from famo_jax.experiments.problems import molecules

# --- Molecules ------------------------------------------------------------------------------------


def test_molecules_are_small_and_there_once():
    texts = molecules.load_smiles()
    assert len(texts) > 3000
    parsed = [Chem.MolFromSmiles(text) for text in texts]
    assert len({Chem.MolToSmiles(molecule) for molecule in parsed}) == len(texts)
    atoms = {atom.GetSymbol() for molecule in parsed for atom in molecule.GetAtoms()}
    assert atoms == {"C", "N", "O", "F"}
    assert max(molecule.GetNumHeavyAtoms() for molecule in parsed) == 9
    assert {"CCO", "c1ccccc1", "NCC(=O)O", "Oc1ccccc1", "C1CO1"} <= set(texts)


def properties(text):
    values = molecules.properties_of(Chem.MolFromSmiles(text))
    return dict(zip((task.name for task in molecules.TASKS), values, strict=True))


def test_properties_of_molecules_known_from_the_literature():
    benzene, propane, ethane, ethanol = map(properties, ["c1ccccc1", "CCC", "CC", "CCO"])
    assert benzene["mass"] == pytest.approx(6 * 12 + 6 * 1.00782503, abs=1e-4)
    # Wildman and Crippen 1999, table 1: aromatic carbon C18 and hydrogen H1
    assert benzene["logP"] == pytest.approx(6 * (0.1581 + 0.1230), abs=1e-4)
    assert benzene["molar refractivity"] == pytest.approx(6 * (3.350 + 1.057), abs=1e-3)
    assert benzene["specific refraction"] == pytest.approx(6 * 4.407 / 78.04695, abs=1e-5)
    assert benzene["Balaban J"] == pytest.approx(3, abs=1e-3)  # Balaban 1982
    # Kier: A atoms, P paths of length 2, (A - 1) (A - 2)² / P²
    assert propane["kappa 2"] == pytest.approx(2 * 1 / 1)
    # Degrees 1, 2, 1; rows of adjacency plus distances add up to 4, 4, 4.
    assert propane["Schultz index"] == 1 * 4 + 2 * 4 + 1 * 4
    # Gasteiger and Marsili 1980, table 3
    assert ethane["mean |charge|"] == pytest.approx(0.068, abs=1e-3)
    assert ethane["largest charge"] == pytest.approx(-0.068, abs=1e-3)
    assert ethanol["polar surface"] == pytest.approx(20.23)  # Ertl et al. 2000: hydroxyl
    assert benzene["polar surface"] == 0


def test_splits_share_no_molecule_and_leave_none_out():
    splits = molecules.splits(0)
    assert np.sort(np.concatenate(splits)).tolist() == list(range(len(molecules.load_smiles())))
    assert [round(10 * len(split) / len(molecules.load_smiles())) for split in splits] == [6, 2, 2]
    other = molecules.splits(1)
    assert set(other[2]) != set(splits[2])
    every = molecules.load_molecules()
    rows = np.hstack([every.counts, every.properties])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_spreads_grow_from_task_to_task_over_three_orders_of_magnitude():
    (mean,), (spreads,) = molecules.units([0], standardised=True)
    train = molecules.load_molecules().properties[molecules.splits(0)[0]].astype(float)
    np.testing.assert_allclose(mean, train.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(spreads, train.std(axis=0), rtol=1e-4)
    assert spreads.shape == (11,)
    assert spreads[0] < 0.05
    assert spreads[-1] > 100
    assert np.all(np.diff(np.log(spreads)) > 0)
    assert np.isfinite(molecules.load_molecules().properties).all()


def test_a_fingerprint_counts_neighbourhoods():
    # Six equal atoms, each by itself and each with its neighbours.
    benzene = molecules.counts_of(Chem.MolFromSmiles("c1ccccc1"))
    assert benzene.shape == (molecules.COUNTS,)
    assert np.sort(benzene)[-3:].tolist() == [0, 6, 6]
    # The order of the atoms does not matter.
    one, other = (molecules.counts_of(Chem.MolFromSmiles(text)) for text in ("OCCN", "NCCO"))
    np.testing.assert_array_equal(one, other)


def test_batches_are_training_molecules_and_do_not_depend_on_the_number_of_seeds():
    two = molecules.load_data(steps=5, seeds=range(2), batch_size=8)
    one = molecules.load_data(steps=5, seeds=range(1), batch_size=8)
    np.testing.assert_array_equal(one.train[:, 0], two.train[:, 0])
    for seed in range(2):
        train, validation, test = molecules.splits(seed)
        assert set(np.ravel(two.train[:, seed]).tolist()) <= set(train.tolist())
        for held_out, rows in ((two.validation, validation), (two.test, test)):
            expected = molecules.load_molecules().properties[rows]
            np.testing.assert_array_equal(held_out.properties[seed], expected)
    assert len(np.unique(two.train)) > 70  # of 80
    assert two.train.shape == (5, 2, 8)


# --- Tasks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf[0], molecules.PROBLEM.init([0])[0])


def rows_of(which):
    own = molecules.splits(0)[which]
    return jax.tree.map(lambda leaf: leaf[own], molecules.load_molecules())


def units_of(problem):
    return jax.tree.map(lambda leaf: leaf[0], problem.init([0])[1])


def losses_of(params, rows, problem=molecules.PROBLEM):
    return problem.losses(params, units_of(problem), rows, None)[0]


def metrics_of(params, rows, problem=molecules.PROBLEM):
    return problem.metrics(params, units_of(problem), rows)


def test_losses_span_orders_of_magnitude(params):
    losses = losses_of(params, rows_of(0))
    assert losses.shape == (molecules.K,)
    assert losses.max() / losses.min() > 1e4


def test_a_network_that_says_nothing_predicts_the_mean_of_training(params):
    silent = jax.tree.map(lambda leaf: 0 * leaf, params)
    variances = rows_of(0).properties.astype(float).var(axis=0)
    np.testing.assert_allclose(losses_of(silent, rows_of(0)), variances, rtol=1e-3)
    np.testing.assert_allclose(
        losses_of(silent, rows_of(0), molecules.STANDARDISED), 1.0, rtol=1e-3
    )


def test_losses_and_metrics_are_those_of_their_names(monkeypatch):
    rows = rows_of(2)
    errors = np.outer(np.where(np.arange(len(rows.counts)) % 2, 3.0, -1.0), np.arange(11))
    monkeypatch.setattr(molecules, "predict", lambda *_: rows.properties + errors)
    np.testing.assert_allclose(losses_of(None, rows), 5.0 * np.arange(11) ** 2, rtol=1e-2)
    np.testing.assert_allclose(metrics_of(None, rows), 2.0 * np.arange(11), rtol=1e-2)


def test_standardised_losses_are_over_the_variance_and_metrics_are_in_units(monkeypatch):
    rows, (_, (spreads,)) = rows_of(2), molecules.units([0], standardised=True)
    errors = np.where(np.arange(len(rows.counts)) % 2, 3.0, -1.0)[:, None] * spreads
    monkeypatch.setattr(molecules, "predict", lambda *_: rows.properties + errors)
    share = np.mean(np.arange(len(rows.counts)) % 2)
    expected = 9 * share + (1 - share)
    np.testing.assert_allclose(losses_of(None, rows, molecules.STANDARDISED), expected, rtol=1e-3)
    expected = (3 * share + (1 - share)) * spreads
    np.testing.assert_allclose(metrics_of(None, rows, molecules.STANDARDISED), expected, rtol=1e-3)


def test_a_network_speaks_of_deviations_in_these_units(params):
    rows = jax.tree.map(lambda leaf: leaf[:3], rows_of(2))
    mean = rows_of(0).properties.mean(axis=0)
    plain, tenfold = (molecules.predict(params, rows, mean, unit) - mean for unit in (1.0, 10.0))
    np.testing.assert_allclose(tenfold, 10 * plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("problem", [molecules.PROBLEM, molecules.STANDARDISED])
def test_losses_of_features_are_those_of_the_molecules(problem, params):
    rows = jax.tree.map(lambda leaf: leaf[:20], rows_of(0))
    encode, heads = problem.features
    z = encode(params, units_of(problem), rows, None)
    assert z.shape == (20, 32)
    losses = heads(params, z, units_of(problem), rows, None)
    np.testing.assert_allclose(losses, losses_of(params, rows, problem), rtol=1e-5)
