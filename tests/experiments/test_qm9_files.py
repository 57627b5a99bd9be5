"""QM-9's files, official and of qm9pack: what is read, cached and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from famo_jax.experiments.problems import _qm9_files as files
from famo_jax.experiments.problems import qm9

DATA = Path(__file__).parents[1] / "data" / "qm9"


def numbers(text):
    return [float(number) for number in text.split()]


# Of molecule 1 as DimeNet's published array has it: D, a0^3, eV, eV, a0^2, eV, ..., cal/(mol K).
METHANE = numbers(
    "0 13.21 -10.5499 3.1865 35.3641 1.2177 -17.1722 -17.2868 -17.3897 -16.1519 6.469"
)
# Over all 130,831 molecules, of the same.
MEANS = numbers(
    "2.6730 75.2812 -6.5365 0.3220 1189.41 4.0569 -76.1160 -76.5805 -77.0182 -70.8366 31.6204"
)
DEVIATIONS = numbers(
    "1.5035 8.1738 0.5977 1.2749 280.478 0.9017 10.3238 10.4152 10.4893 9.4983 4.0676"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files.load.cache_clear()
    return tmp_path / "cache" / "famo_jax"


@pytest.fixture
def raw(tmp_path):
    """A copy of the official folder, to damage."""
    return Path(shutil.copytree(DATA / "raw", tmp_path / "raw"))


def package():
    paths = tuple(DATA / f"qm9_part{part}.csv" for part in (1, 2, 3))
    return files.Source("qm9pack of the tests", paths, "determined")


def table_of(folder):
    return files.load(files.find(str(folder)))


# --- What is read ---------------------------------------------------------------------------------


def test_methane_is_dimenets():
    for table in (table_of(DATA), files.load(package())):
        assert table.counts[0] == 5
        assert sorted(table.elements[:5]) == [1, 1, 1, 1, 6]
        np.testing.assert_allclose(table.targets[0], METHANE, atol=1e-4)


def test_official_files_are_read_as_by_pytorch_geometric():
    """Features, edges and targets of all molecules."""
    official = np.load(DATA / "official.npz")
    table = table_of(DATA / "raw")
    assert len(table.counts) == 50
    np.testing.assert_array_equal(np.repeat(np.arange(50), table.counts), official["batch"])
    np.testing.assert_allclose(table.targets, official["y"], rtol=1e-6, atol=1e-6)
    molecules = qm9.Molecules(*(leaf[:-1] for leaf in qm9.pad(table)))
    there = np.asarray(molecules.elements) > 0
    features = np.asarray(qm9.atom_features(molecules))
    np.testing.assert_array_equal(features[there], official["x"])
    assert not features[..., 6:10].any()  # aromatic, sp, sp2 and sp3
    places = np.flatnonzero(there.ravel())[official["edge_index"]]
    molecule, one = np.divmod(places[0], qm9.MOST_ATOMS)
    other = places[1] % qm9.MOST_ATOMS
    edges = np.asarray(qm9.edge_features(molecules))[molecule, one, other]
    np.testing.assert_allclose(edges, official["edge_attr"], atol=1e-6)
    assert len(edges) == np.sum(table.counts.astype(int) * (table.counts.astype(int) - 1))


def test_both_sources_hold_the_same_molecules():
    official, package_ = table_of(DATA), files.load(package())
    for name in ("counts", "elements", "positions", "bond_counts", "bonds"):
        np.testing.assert_array_equal(getattr(official, name), getattr(package_, name))
    # The factors of Hartree and kcal/mol are rounded: 1e-6 of an energy.
    np.testing.assert_allclose(official.targets, package_.targets, rtol=2e-6, atol=1e-6)


def test_determined_bonds_are_those_of_the_smiles():
    from rdkit import Chem

    lines = "\n".join(path.read_text() for path in package().files).splitlines()
    rows = [line.split(",", 3) for line in lines if line]
    smiles = [row[2].strip('"') for row in rows if row[2] != "SMILES"]
    table = files.load(package())
    ends, atom_ends = np.cumsum(table.bond_counts), np.cumsum(table.counts)
    for index, text in enumerate(smiles):
        expected = Chem.MolFromSmiles(text)
        Chem.Kekulize(expected, clearAromaticFlags=True)
        heavy = np.flatnonzero(
            table.elements[atom_ends[index] - table.counts[index] : atom_ends[index]] > 1
        )
        bonds = table.bonds[ends[index] - table.bond_counts[index] : ends[index]]
        own = sorted(order for one, other, order in bonds if {one, other} <= set(heavy))
        orders = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3}
        assert own == sorted(orders[bond.GetBondType()] for bond in expected.GetBonds()), text


def test_bonds_that_do_not_fit_are_single():
    """Four hydrogens about an oxygen: which atoms are near is known, no charge of 0 fits."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.55
    bonds = files.determine_bonds([8, 1, 1, 1, 1], np.vstack([np.zeros(3), corners]))
    assert sorted(bonds) == [(0, other, 1) for other in range(1, 5)]


def test_a_folder_may_be_the_one_above():
    assert files.find(str(DATA)) == files.find(str(DATA / "raw"))


def test_the_whole_package_has_the_published_statistics():
    try:
        source = files.find(None)
    except FileNotFoundError:
        pytest.skip("qm9pack is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME")
        table = files.load(source)
    assert len(table.counts) == 130_831
    assert table.counts.max() == qm9.MOST_ATOMS
    assert np.sum(table.counts.astype(int) * (table.counts.astype(int) - 1)) == 41_316_946
    targets = table.targets.astype(np.float64)
    np.testing.assert_allclose(targets.mean(axis=0), MEANS, rtol=1e-5, atol=6e-5)
    np.testing.assert_allclose(targets.std(axis=0, ddof=1), DEVIATIONS, rtol=1e-5, atol=6e-5)
    np.testing.assert_allclose(targets[0], METHANE, atol=1e-4)


# --- The cache ------------------------------------------------------------------------------------


def test_what_was_read_is_cached(cache, monkeypatch):
    first = table_of(DATA)
    (file,) = cache.iterdir()
    files.load.cache_clear()
    monkeypatch.setattr(files, "read_official", None)
    for one, other in zip(first, table_of(DATA), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert file.suffix == ".npz"


def test_a_damaged_cache_is_made_again(cache):
    first = table_of(DATA)
    (file,) = cache.iterdir()
    for content in (b"", file.read_bytes()[:-100], b"foreign"):
        file.write_bytes(content)
        files.load.cache_clear()
        np.testing.assert_array_equal(table_of(DATA).positions, first.positions)


def test_other_files_are_not_taken_from_the_cache(raw, cache):
    before = table_of(raw)
    text = (raw / files.CSV).read_text()
    (raw / files.CSV).write_text(
        text.replace("gdb_1,157.7118,157.70997,157.70699,0.0", "gdb_1,1,1,1,9")
    )
    files.load.cache_clear()
    assert table_of(raw).targets[0, 0] == 9
    assert before.targets[0, 0] == 0
    assert len(list(cache.iterdir())) == 2


def test_without_a_place_to_cache_it_works(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(table_of(DATA).counts) == 50


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [files.SDF, files.CSV, files.LEFT_OUT])
def test_a_missing_file_is_named(raw, name):
    (raw / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"without {name}$"):
        files.find(str(raw))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match=r'pip install "famo_jax\[qm9\]"'):
        files.find(None)


def replaced(name, old, new, count=1):
    def damage(raw):
        text = (raw / name).read_text()
        assert old in text
        (raw / name).write_text(text.replace(old, new, count))

    return damage


def truncated(name, share):
    def damage(raw):
        content = (raw / name).read_bytes()
        (raw / name).write_bytes(content[: int(share * len(content))])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated(files.SDF, 0.5), r"gdb9\.sdf: (expected 52 records|record \d+ is damaged)"),
        (truncated(files.SDF, 0.999), r"gdb9\.sdf: record 52 is damaged"),
        (truncated(files.SDF, 0.0), r"gdb9\.sdf: expected 52 records, got an empty file"),
        (replaced(files.SDF, "    1.0858", "       nan"), r"gdb9\.sdf: record 1"),
        (replaced(files.SDF, "    1.0858", "    1.0x58"), r"gdb9\.sdf: record 1 is damaged"),
        (replaced(files.SDF, " C   0", " Cl  0"), r"record 1: expected the elements H, .*'Cl'"),
        (replaced(files.SDF, " C   0", " Xx  0"), r"gdb9\.sdf: record 1"),
        (truncated(files.CSV, 0.5), r"gdb9\.sdf(\.csv: line \d+: expected|: expected \d+ records)"),
        (truncated(files.CSV, 0.0), r"gdb9\.sdf\.csv: expected the header mol_id,A,"),
        (replaced(files.CSV, "mu,alpha", "alpha,mu"), r"gdb9\.sdf\.csv: expected the header"),
        (replaced(files.CSV, ",13.21,", ",nan,"), r"line 2: expected a finite number, got 'nan'"),
        (replaced(files.CSV, ",13.21,", ",x,"), r"line 2: expected a finite number, got 'x'"),
        (replaced(files.CSV, "gdb_2,", "gdb_3,"), r"line 3: expected gdb_2 and 19 numbers"),
        (replaced(files.LEFT_OUT, "    21 ", "    ?? "), r"uncharacterized\.txt: expected nine"),
    ],
)
def test_damaged_official_files_end_in_one_line(raw, damage, message):
    damage(raw)
    with pytest.raises(OSError, match=message) as error_info:
        table_of(raw)
    assert "\n" not in str(error_info.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Dipole_debye", "Dipole", r"qm9_part1\.csv: expected a column Dipole_debye"),
        (",13.21,", ",inf,", r"line 2: expected a finite number, got 'inf'"),
        (
            "['C','H','H','H','H']",
            "['Si','H','H','H','H']",
            r"line 2: expected the elements .*'Si'",
        ),
        ("['C','H','H','H','H']", "['C','H','H','H']", r"line 2: expected three coordinates"),
        (",13.21,", ",", r"line 2: expected 25 values"),
    ],
)
def test_a_damaged_package_ends_in_one_line(tmp_path, old, new, message):
    paths = [Path(shutil.copy(path, tmp_path)) for path in package().files]
    text = paths[0].read_text()
    assert old in text
    paths[0].write_text(text.replace(old, new, 1))
    with pytest.raises(OSError, match=message):
        files.load(files.Source("qm9pack", tuple(paths), ""))
