r"""QM-9's files: 130,831 molecules, from the official raw folder or from the package ``qm9pack``.

The official folder holds ``gdb9.sdf`` (geometries and bonds), ``gdb9.sdf.csv`` (properties) and
``uncharacterized.txt`` (the records that are left out). ``qm9pack`` holds the same molecules
without their bonds, which RDKit then determines from the geometry. What was read is cached.

Ramakrishnan et al. 2014; Wu et al., MoleculeNet, 2018.
"""

import csv
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from famo_jax.experiments.problems import _cache

Array = npt.NDArray[Any]

HARTREE = 27.211386246  # eV
KCAL_PER_MOL = 0.04336414  # eV
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
RESOLUTION = 1e-4  # Å, of gdb9.sdf
PACKAGE = "qm9pack"
SDF, CSV, LEFT_OUT = "gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt"

# The eleven targets, in the official order: the column of each, and its unit in D, a0^3, eV, a0^2,
# cal/(mol K). A total energy is told as that of atomisation.
HEADER = (
    "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,"
    "u0_atom,u298_atom,h298_atom,g298_atom"
)
COLUMNS = {
    "mu": 1.0,
    "alpha": 1.0,
    "homo": HARTREE,
    "lumo": HARTREE,
    "r2": 1.0,
    "zpve": HARTREE,
    "u0_atom": KCAL_PER_MOL,
    "u298_atom": KCAL_PER_MOL,
    "h298_atom": KCAL_PER_MOL,
    "g298_atom": KCAL_PER_MOL,
    "cv": 1.0,
}
PACK_COLUMNS = {
    "Dipole_debye": 1.0,
    "Polarizability_bohr3": 1.0,
    "HOMO_au": HARTREE,
    "LUMO_au": HARTREE,
    "R2_bohr2": 1.0,
    "ZPVE_au": HARTREE,
    "InternalEnergy_0K_au": HARTREE,
    "InternalEnergy_298K_au": HARTREE,
    "Enthalphy_298K_au": HARTREE,
    "GibbsFreeEnergy_298K_au": HARTREE,
    "Heatcapacity_Cv_cal_mol_K": 1.0,
}
# Of the free atoms, in Hartree, by element: at 0 K, at 298 K, enthalpy, free energy.
ATOMS = {
    "InternalEnergy_0K_au": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "InternalEnergy_298K_au": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "Enthalphy_298K_au": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "GibbsFreeEnergy_298K_au": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
K = len(COLUMNS)


class Table(NamedTuple):
    """Molecules, one after another."""

    counts: Array  # [N], uint8: atoms
    elements: Array  # [all atoms], uint8: atomic numbers
    positions: Array  # [all atoms, 3], int32, in units of RESOLUTION
    bond_counts: Array  # [N], uint8
    bonds: Array  # [all bonds, 3], uint8: two atoms of a molecule, from 0, and the order
    targets: Array  # [N, K], float32, in the units of COLUMNS


class Molecule(NamedTuple):
    """One of them, as it is read."""

    elements: Sequence[int]
    positions: Array  # [atoms, 3], Å
    bonds: Sequence[tuple[int, int, int]]
    targets: Sequence[float]


class Source(NamedTuple):
    """Where molecules are read from."""

    name: str
    files: tuple[Path, ...]
    bonds: str  # where their orders are from


def find(folder: str | None) -> Source:
    """The official raw folder, or the one in which it is called ``raw``, or the package.

    Raises:
      FileNotFoundError: There is none, or a file is missing.
    """
    if folder is None:
        return find_package()
    root = Path(folder)
    raw = root / "raw" if (root / "raw").is_dir() else root
    files = tuple(raw / name for name in (SDF, CSV, LEFT_OUT))
    if missing := [path.name for path in files if not path.is_file()]:
        raise FileNotFoundError(f"a folder with {SDF}, {CSV} and {LEFT_OUT}, got {raw} without "
                                f"{', '.join(missing)}")  # fmt: skip
    return Source("the official raw files", files, f"those of {SDF}")


def find_package() -> Source:
    """``qm9pack``, which is not imported: its import needs what newer Pythons do not bring."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f'a folder, as {PACKAGE} is not installed: pip install "famo_jax[qm9]" brings it'
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = tuple(folder / f"qm9_part{part}.csv" for part in (1, 2, 3))
    if missing := [path.name for path in files if not path.is_file()]:
        raise FileNotFoundError(f"a whole {PACKAGE}, got {folder} without {', '.join(missing)}")
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    rdkit = importlib.metadata.version("rdkit")
    return Source(f"{PACKAGE} {version}", files, f"determined by RDKit {rdkit} from the geometry")


@functools.cache
def load(source: Source) -> Table:
    """Reads the molecules, or what an earlier call left of them.

    Raises:
      OSError: A file is damaged or a foreign one.
    """

    def read() -> Table:
        if source.name.startswith(PACKAGE):
            return stack(read_package(source.files))
        return stack(read_official(*source.files))

    key = _cache.key(source.files, source.bonds)
    return _cache.cached(f"qm9-{key}", Table, read)


def stack(molecules: Iterator[Molecule]) -> Table:
    """All molecules as arrays."""
    every = list(molecules)
    return Table(
        np.array([len(each.elements) for each in every], np.uint8),
        np.array([z for each in every for z in each.elements], np.uint8),
        np.rint(np.concatenate([each.positions for each in every]) / RESOLUTION).astype(np.int32),
        np.array([len(each.bonds) for each in every], np.uint8),
        np.array([bond for each in every for bond in each.bonds], np.uint8).reshape(-1, 3),
        np.array([each.targets for each in every], np.float32),
    )


# --- The official files ---------------------------------------------------------------------------


def read_official(sdf: Path, table: Path, left_out: Path) -> Iterator[Molecule]:
    """The molecules of the raw folder, without those that are left out."""
    from rdkit import Chem, rdBase

    targets = read_csv(table)
    skipped = read_left_out(left_out)
    with rdBase.BlockLogs():
        if not sdf.stat().st_size:
            raise OSError(f"{sdf}: expected {len(targets)} records, got an empty file")
        # Neither perceives aromaticity nor drops hydrogens, so as the official loader.
        supplier = Chem.SDMolSupplier(str(sdf), removeHs=False, sanitize=False)
        if len(supplier) != len(targets):
            raise OSError(
                f"{sdf}: expected {len(targets)} records, as {table.name} has, got {len(supplier)}"
            )
        for index, molecule in enumerate(supplier):
            if molecule is None or not molecule.GetNumAtoms():
                raise OSError(f"{sdf}: record {index + 1} is damaged")
            if index + 1 in skipped:
                continue
            where = f"{sdf}: record {index + 1}"
            elements = [_element(atom.GetSymbol(), where) for atom in molecule.GetAtoms()]
            positions = _finite(molecule.GetConformer().GetPositions(), where)
            yield Molecule(elements, positions, bonds_of(molecule), targets[index])


def read_csv(path: Path) -> list[list[float]]:
    """The eleven targets of each record."""
    with _text(path) as lines:
        rows = csv.reader(lines)
        header = next(rows, [])
        if header != HEADER.split(","):
            raise OSError(f"{path}: expected the header {HEADER}, got {','.join(header)[:80]!r}")
        places = [(header.index(name), factor) for name, factor in COLUMNS.items()]
        targets = []
        for number, row in enumerate(rows, 1):
            where = f"{path}: line {number + 1}"
            if len(row) != len(header) or row[0] != f"gdb_{number}":
                raise OSError(f"{where}: expected gdb_{number} and {len(header) - 1} numbers, "
                              f"got {','.join(row)[:60]!r}")  # fmt: skip
            targets.append([factor * _number(row[place], where) for place, factor in places])
    return targets


def read_left_out(path: Path) -> set[int]:
    """The records that are left out, counted from 1: between nine lines and a last one."""
    with _text(path) as lines:
        records = [line.split() for line in lines][9:-1]
    if not all(record and record[0].isdecimal() for record in records):
        raise OSError(f"{path}: expected nine lines, a record a line, and a last one")
    return {int(record[0]) for record in records}


# --- The package ----------------------------------------------------------------------------------


def read_package(paths: Sequence[Path]) -> Iterator[Molecule]:
    """The molecules of the package's three files."""
    for path in paths:
        with _text(path) as lines:
            rows = csv.DictReader(lines)
            needed = ["Elements", "XYZ_Ang", *PACK_COLUMNS]
            if missing := [name for name in needed if name not in (rows.fieldnames or ())]:
                raise OSError(f"{path}: expected a column {missing[0]}")
            for number, row in enumerate(rows, 2):
                where = f"{path}: line {number}"
                if None in row or None in row.values():
                    raise OSError(f"{where}: expected {len(rows.fieldnames or ())} values")
                symbols = _listed(row["Elements"])
                elements = [_element(symbol.strip("'\""), where) for symbol in symbols]
                numbers = [_number(text, where) for text in _listed(row["XYZ_Ang"])]
                if len(numbers) != 3 * len(elements):
                    raise OSError(f"{where}: expected three coordinates an atom")
                positions = np.reshape(numbers, (-1, 3))
                targets = []
                for name, factor in PACK_COLUMNS.items():
                    value = _number(row[name], where)
                    if name in ATOMS:
                        atoms = dict(zip(ELEMENTS.values(), ATOMS[name], strict=True))
                        value -= sum(atoms[z] for z in elements)
                    targets.append(factor * value)
                yield Molecule(elements, positions, determine_bonds(elements, positions), targets)


def determine_bonds(elements: Sequence[int], positions: Array) -> list[tuple[int, int, int]]:
    """Which atoms are bonded and how, by their distances; single bonds where no orders fit."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    molecule = Chem.RWMol()
    for z in elements:
        molecule.AddAtom(Chem.Atom(z))
    conformer = Chem.Conformer(len(elements))
    conformer.SetPositions(np.ascontiguousarray(positions, np.float64))
    molecule.AddConformer(conformer)
    # Up to 1.15 times the covalent radii: at RDKit's 1.3 small bridged rings get bonds across.
    near: dict[str, Any] = {"useVdw": True, "covFactor": 1.15}
    with rdBase.BlockLogs():
        determined = Chem.RWMol(molecule)
        try:
            rdDetermineBonds.DetermineBonds(determined, charge=0, embedChiral=False, **near)
            Chem.Kekulize(determined, clearAromaticFlags=True)
        except (ValueError, RuntimeError):
            rdDetermineBonds.DetermineConnectivity(molecule, **near)
            determined = molecule
    return bonds_of(determined)


# --- Parts ----------------------------------------------------------------------------------------


def bonds_of(molecule: Any) -> list[tuple[int, int, int]]:
    """Single, double, triple, aromatic bonds as 1 to 4."""
    from rdkit.Chem import BondType

    orders = {BondType.DOUBLE: 2, BondType.TRIPLE: 3, BondType.AROMATIC: 4}
    return [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), orders.get(bond.GetBondType(), 1))
        for bond in molecule.GetBonds()
    ]


def _text(path: Path) -> Any:
    return path.open(encoding="utf-8", errors="replace", newline="")


def _listed(text: str) -> list[str]:
    """What stands in nested brackets; `1.` and `0.` among it, which are no JSON."""
    return text.replace("[", "").replace("]", "").replace(" ", "").split(",")


def _element(symbol: str, where: str) -> int:
    if symbol not in ELEMENTS:
        raise OSError(f"{where}: expected the elements {', '.join(ELEMENTS)}, got {symbol!r}")
    return ELEMENTS[symbol]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise OSError(f"{where}: expected a finite number, got {text!r}")
    return value


def _finite(positions: Array, where: str) -> Array:
    if not np.isfinite(positions).all():
        raise OSError(f"{where}: expected finite coordinates")
    return positions
