"""The regression on molecules: its molecules, their properties, its files."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
from rdkit import Chem

from famo_jax.experiments import _study, regression

NAMES = ["stl", "ls", "si", "frozen", "famo", "famo-one-pass"]
STEPS, SEEDS = 6, 2


# --- Molecules ------------------------------------------------------------------------------------


def test_molecules_are_small_and_there_once():
    texts = regression.load_smiles()
    assert len(texts) > 3000
    molecules = [Chem.MolFromSmiles(text) for text in texts]
    assert len({Chem.MolToSmiles(molecule) for molecule in molecules}) == len(texts)
    atoms = {atom.GetSymbol() for molecule in molecules for atom in molecule.GetAtoms()}
    assert atoms == {"C", "N", "O", "F"}
    assert max(molecule.GetNumHeavyAtoms() for molecule in molecules) == 9
    assert {"CCO", "c1ccccc1", "NCC(=O)O", "Oc1ccccc1", "C1CO1"} <= set(texts)


def properties(text):
    values = regression.properties_of(Chem.MolFromSmiles(text))
    return dict(zip((task.name for task in regression.TASKS), values, strict=True))


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
    splits = regression.load_splits()
    rows = [set(map(bytes, np.hstack(split).astype(np.float32))) for split in splits]
    assert sum(len(split.counts) for split in splits) == len(regression.load_smiles())
    assert all(rows[one].isdisjoint(rows[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_spreads_grow_from_task_to_task_over_three_orders_of_magnitude():
    splits = regression.load_splits()
    spreads = splits.train.properties.std(axis=0)
    assert spreads.shape == (11,)
    assert spreads[0] < 0.05
    assert spreads[-1] > 100
    assert np.all(np.diff(np.log(spreads)) > 0)
    assert np.isfinite(splits.train.properties).all()


def test_a_fingerprint_counts_neighbourhoods():
    # Six equal atoms, each by itself and each with its neighbours.
    benzene = regression.counts_of(Chem.MolFromSmiles("c1ccccc1"))
    assert benzene.shape == (regression.COUNTS,)
    assert np.sort(benzene)[-3:].tolist() == [0, 6, 6]
    # The order of the atoms does not matter.
    one, other = (regression.counts_of(Chem.MolFromSmiles(text)) for text in ("OCCN", "NCCO"))
    np.testing.assert_array_equal(one, other)


def test_batches_are_training_molecules_and_do_not_depend_on_the_number_of_seeds():
    two = regression.load_data(steps=5, seeds=2, batch_size=8)
    one = regression.load_data(steps=5, seeds=1, batch_size=8)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b[:, 0]), one.train, two.train)
    own = set(map(bytes, regression.load_splits().train.properties))
    drawn = np.asarray(two.train.properties).reshape(-1, regression.K)
    assert {bytes(row) for row in drawn} <= own
    assert len(np.unique(drawn, axis=0)) > 70  # of 80
    assert two.train.counts.shape == (5, 2, 8, regression.COUNTS)


# --- Tasks ----------------------------------------------------------------------------------------


def test_losses_span_orders_of_magnitude():
    params = jax.tree.map(lambda leaf: leaf[0], regression.init_params(1))
    losses = regression.task_losses(params, regression.load_splits().train)
    assert losses.shape == (regression.K,)
    assert losses.max() / losses.min() > 1e4


def test_a_network_that_says_nothing_predicts_the_mean_of_training():
    params = jax.tree.map(lambda leaf: 0 * leaf[0], regression.init_params(1))
    losses = regression.task_losses(params, regression.load_splits().train)
    variances = regression.load_splits().train.properties.astype(float).var(axis=0)
    np.testing.assert_allclose(losses, variances, rtol=1e-3)


def test_losses_and_metrics_are_those_of_their_names(monkeypatch):
    molecules = regression.load_splits().test
    errors = np.outer(np.where(np.arange(len(molecules.counts)) % 2, 3.0, -1.0), np.arange(11))
    monkeypatch.setattr(regression, "predict", lambda params, counts: molecules.properties + errors)
    np.testing.assert_allclose(
        regression.task_losses(None, molecules), 5.0 * np.arange(11) ** 2, rtol=1e-4
    )
    np.testing.assert_allclose(
        regression.task_metrics(None, molecules), 2.0 * np.arange(11), rtol=1e-4
    )


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", "80")
        regression.main(
            ["--quick", "--steps", str(STEPS), "--gamma", "0", "0.01", "--out", f"{folder}"]
        )
    return folder, out.getvalue(), json.loads((folder / "regression.json").read_text("utf-8"))


def test_it_prints_a_row_for_every_method_within_80_columns(whole_run):
    _, printed, _ = whole_run
    assert "…" not in printed
    lines = printed.partition("Means over")[0].splitlines()
    for name in NAMES:
        cells = next(line.split() for line in reversed(lines) if line.split()[:1] == [name])
        logits = {"frozen": 1, "famo": 2, "famo-one-pass": 2}.get(name, 0)
        assert len(cells) == 9 + logits  # with "±" by itself; gamma and the range if it has any


def test_it_writes_every_figure(whole_run):
    folder, _, written = whole_run
    assert list(written["methods"]) == NAMES
    splits = regression.load_splits()._asdict()
    assert written["molecules"] == {name: len(split.counts) for name, split in splits.items()}
    tasks = [task.name for task in regression.TASKS]
    assert list(written["spread"]) == tasks
    for name, figures in written["methods"].items():
        variants = {"none": 1, "gamma": 2, "task": 11}[_study.METHODS[name].variants]
        assert np.shape(figures["validation_by_seed"]) == (variants, 1, SEEDS, 11)
        assert np.shape(figures["losses"]) == (STEPS, 11)
        assert list(figures["test"]) == list(figures["change"]) == tasks
        assert np.mean(list(figures["change"].values())) == pytest.approx(
            figures["delta_m"], rel=1e-3, abs=1e-3
        )
        assert len(figures["delta_m_interval"]) == 2
        assert len(figures["by_gamma"] or [1, 2]) == 2
    against = written["methods"]["famo"]["against_si"]
    assert against["method"] == "si"
    assert against["interval"][0] < against["delta_m"] < against["interval"][1]
    picture = (folder / "regression.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 1700
