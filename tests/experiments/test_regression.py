"""The regression on molecules: its molecules, their properties, its files."""

import jax
import numpy as np
import pytest
from rdkit import Chem

from famo_jax.experiments.problems import molecules

NAMES = ["stl", "ls", "si", "frozen", "famo", "famo-one-pass"]


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
    splits = molecules.load_splits()
    rows = [set(map(bytes, np.hstack(split).astype(np.float32))) for split in splits]
    assert sum(len(split.counts) for split in splits) == len(molecules.load_smiles())
    assert all(rows[one].isdisjoint(rows[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_spreads_grow_from_task_to_task_over_three_orders_of_magnitude():
    splits = molecules.load_splits()
    spreads = splits.train.properties.std(axis=0)
    assert spreads.shape == (11,)
    assert spreads[0] < 0.05
    assert spreads[-1] > 100
    assert np.all(np.diff(np.log(spreads)) > 0)
    assert np.isfinite(splits.train.properties).all()


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
    drawn = np.asarray(two.pool.properties)[two.train].reshape(-1, molecules.K)
    np.testing.assert_array_equal(two.pool.properties, molecules.load_splits().train.properties)
    assert len(np.unique(drawn, axis=0)) > 70  # of 80
    assert two.train.shape == (5, 2, 8)


# --- Tasks ----------------------------------------------------------------------------------------


def losses_of(params, rows, problem=molecules.PROBLEM):
    return problem.losses(params, (), rows, None)[0]


def metrics_of(params, rows, problem=molecules.PROBLEM):
    return problem.metrics(params, (), rows)


def test_losses_span_orders_of_magnitude():
    params = jax.tree.map(lambda leaf: leaf[0], molecules.PROBLEM.init([0])[0])
    losses = losses_of(params, molecules.load_splits().train)
    assert losses.shape == (molecules.K,)
    assert losses.max() / losses.min() > 1e4


def test_a_network_that_says_nothing_predicts_the_mean_of_training():
    params = jax.tree.map(lambda leaf: 0 * leaf[0], molecules.PROBLEM.init([0])[0])
    losses = losses_of(params, molecules.load_splits().train)
    variances = molecules.load_splits().train.properties.astype(float).var(axis=0)
    np.testing.assert_allclose(losses, variances, rtol=1e-3)


def test_losses_and_metrics_are_those_of_their_names(monkeypatch):
    rows = molecules.load_splits().test
    errors = np.outer(np.where(np.arange(len(rows.counts)) % 2, 3.0, -1.0), np.arange(11))
    monkeypatch.setattr(molecules, "predict", lambda params, counts, _: rows.properties + errors)
    np.testing.assert_allclose(losses_of(None, rows), 5.0 * np.arange(11) ** 2, rtol=1e-4)
    np.testing.assert_allclose(metrics_of(None, rows), 2.0 * np.arange(11), rtol=1e-4)


def test_standardised_losses_are_over_the_variance_and_metrics_are_in_units(monkeypatch):
    rows, spreads = molecules.load_splits().test, molecules.spreads()
    errors = np.where(np.arange(len(rows.counts)) % 2, 3.0, -1.0)[:, None] * spreads
    monkeypatch.setattr(
        molecules, "predict", lambda params, counts, units: rows.properties + errors
    )
    np.testing.assert_allclose(losses_of(None, rows, molecules.STANDARDISED), 5.0, rtol=1e-4)
    np.testing.assert_allclose(
        metrics_of(None, rows, molecules.STANDARDISED), 2 * spreads, rtol=1e-4
    )


def test_a_network_speaks_of_deviations_in_these_units():
    params = jax.tree.map(lambda leaf: leaf[0], molecules.PROBLEM.init([0])[0])
    counts = molecules.load_splits().test.counts[:3]
    mean = molecules.load_splits().train.properties.mean(axis=0)
    plain, tenfold = (molecules.predict(params, counts, units) - mean for units in (1.0, 10.0))
    np.testing.assert_allclose(tenfold, 10 * plain, rtol=1e-3, atol=1e-3)


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("regression")
    return folder, *run_study(
        "regression", folder, "--quick", "--steps", "6", "--gamma", "0", "0.01"
    )


def test_it_prints_a_row_for_every_method_within_80_columns(whole_run):
    _, printed, _ = whole_run
    assert "…" not in printed
    lines = printed.partition("Means over")[0].splitlines()
    for name in NAMES:
        cells = next(line.split() for line in reversed(lines) if line.split()[:1] == [name])
        logits = {"frozen": 1, "famo": 2, "famo-one-pass": 2}.get(name, 0)
        assert len(cells) == 9 + logits  # with "±" by itself; gamma and the range if it has any


def test_it_writes_every_figure(whole_run):
    folder, _, summary = whole_run
    assert list(summary["methods"]) == NAMES
    tasks = [task.name for task in molecules.TASKS]
    for figures in summary["methods"].values():
        assert np.shape(figures["losses"]) == (6, 11)
        assert list(figures["change"]) == tasks
        mean = np.mean(list(figures["change"].values()))
        assert mean == pytest.approx(figures["delta_m"]["mean"], rel=1e-3, abs=1e-3)
    assert (folder / "regression.png").read_bytes().startswith(b"\x89PNG")


def test_its_picture_shows_changes_and_delta_m(whole_run):
    from famo_jax.experiments import regression

    _, _, summary = whole_run
    changes, delta_m = regression.draw(summary).get_axes()
    for line in changes.get_lines()[:-1]:
        expected = list(summary["methods"][line.get_label()]["change"].values())
        np.testing.assert_allclose(line.get_ydata(), expected)
    dots = [line.get_xdata()[0] for line in delta_m.get_lines() if line.get_marker() == "o"]
    means = [each["delta_m"]["mean"] for name, each in summary["methods"].items() if name != "stl"]
    np.testing.assert_allclose(dots, means)
