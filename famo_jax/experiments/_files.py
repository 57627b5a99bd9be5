"""What a run leaves: ``runs.npz`` holds its arrays, ``study.json`` all else.

Tables and pictures are made from these two alone.
"""

import argparse
import importlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

RUNS, STUDY = "runs.npz", "study.json"
UNFINISHED = ".tmp"  # at the end of the name of what is being written
PART = ("methods", "seeds", "first_seed")  # options in which parts of a run may differ
# What reading a damaged file raises: JSON, an archive, an array in it.
DAMAGED = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip


class Runs(NamedTuple):
    """A run. Of each arm ``facts["arms"]`` tells settings and seeds, ``arrays`` what came of it."""

    facts: dict[str, Any]
    # By arm, as a rule [settings, seeds, ...]; and what all share, by names in facts["shared"].
    arrays: dict[str, dict[str, Array]]


def environment() -> dict[str, Any]:
    """What figures depend on besides the settings."""
    import jax  # only a run needs it

    return {
        **{name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")},
        "famo_jax": importlib.import_module("famo_jax").__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def write(folder: Path, runs: Runs) -> None:
    """Writes both files."""
    pairs = ((arm, own) for arm, fields in runs.arrays.items() for own in fields.items())
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, allow_pickle=False, **{f"{arm}/{field}": array for arm, (field, array) in pairs}
    )
    write_bytes(folder / RUNS, buffer.getvalue())
    write_json(folder / STUDY, runs.facts)


def read(parser: argparse.ArgumentParser, name: str, folders: Sequence[Path]) -> dict[str, Runs]:
    """The runs in the folders: those that are parts of one are joined, the others stay apart.

    Ends with a usage error where a folder holds none of this study. Each run is named by its
    folders.
    """
    groups: dict[str, Runs] = {}
    for folder in folders:
        try:
            facts = json.loads((folder / STUDY).read_text(encoding="utf-8"))
            names = *facts["arms"], *facts.get("shared", ())
            arrays: dict[str, dict[str, Array]] = {name: {} for name in names}
            for key, array in load(folder / RUNS).items():
                arm, field = key.rsplit("/", 1)
                arrays[arm][field] = array
        except DAMAGED as error:
            parser.error(
                f"argument --from: expected a folder with {RUNS} and {STUDY}, got {folder} "
                f"({type(error).__name__}: {error})"
            )
        if facts.get("study") != name:
            other = facts.get("study")
            parser.error(f"argument --from: expected a run of {name}, got one of {other}")
        runs = Runs(facts, arrays)
        parts = [name for name, group in groups.items() if _whole(group) == _whole(runs)]
        try:
            joined = join(groups.pop(parts[0]), runs) if parts else runs
        except ValueError as error:
            parser.error(f"argument --from: expected parts that fit together, {error}")
        groups[" + ".join([*parts, str(folder)])] = joined
    return groups


def load(path: Path) -> dict[str, Array]:
    """All arrays of an archive, if all of its checksums are right.

    NumPy by itself, where a damaged header asks for less than is there, does not come to see them.

    Raises:
      One of DAMAGED: It is no archive, or damaged.
    """
    with path.open("rb") as file, np.load(file) as arrays:
        entries = arrays.zip.infolist()
        file.seek(-12, os.SEEK_END)
        whole = int.from_bytes(file.read(2), "little") == len(entries)
        numpys = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # others raise errors of their own
        known = all(each.compress_type in numpys for each in entries)
        if not (whole and known) or arrays.zip.testzip():
            raise zipfile.BadZipFile("wrong checksums, or entries lost")
        return dict(arrays)


def _whole(runs: Runs) -> Any:
    """What parts of one run share."""
    settings = {
        key: value for key, value in runs.facts["settings"].items() if key not in (*PART, "quick")
    }
    versions = {key: value for key, value in runs.facts["environment"].items() if key != "cores"}
    return settings, versions


def join(one: Runs, other: Runs) -> Runs:
    """Two parts as one run: other methods, or the same on other seeds.

    Raises:
      ValueError: An arm that both hold was trained at different settings.
    """
    arms, arrays = dict(one.facts["arms"]), dict(one.arrays)
    for name, own in other.facts["arms"].items():
        if name not in arms:
            arms[name], arrays[name] = own, other.arrays[name]
            continue
        if arms[name]["settings"] != own["settings"]:
            raise ValueError(f"got {name} at {arms[name]['settings']} and at {own['settings']}")
        both = [*arms[name]["seeds"], *own["seeds"]]
        seeds, places = np.unique(both, return_index=True)
        arms[name] = own | {"seeds": seeds.tolist()}
        arrays[name] = {
            field: np.concatenate([arrays[name][field], other.arrays[name][field]], 1)[:, places]
            for field in arrays[name]
        }
    settings = dict(one.facts["settings"])
    if "methods" in settings:
        more = other.facts["settings"]["methods"]
        settings["methods"] = list(dict.fromkeys([*settings["methods"], *more]))
    if arms:
        every = [arm["seeds"] for arm in arms.values()]
        settings |= {"seeds": max(map(len, every)), "first_seed": min(map(min, every))}
    times = other.facts.get("times", {}) | one.facts.get("times", {})
    seconds = one.facts["seconds"] + other.facts["seconds"]
    facts = one.facts | {"settings": settings, "arms": arms, "times": times, "seconds": seconds}
    return Runs(facts, arrays)


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON: arrays as lists, and null for what is not finite."""
    text = json.dumps(plain(content, None), indent=1, allow_nan=False, ensure_ascii=False)
    # What holds no further lists takes one line.
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda flat: " ".join(flat[0].split()), text)
    write_bytes(path, (text + "\n").encode())


def without(content: Any, keys: Collection[str]) -> Any:
    """All but these entries of mappings, however deep."""
    if isinstance(content, list):
        return [without(value, keys) for value in content]
    if not isinstance(content, Mapping):
        return content
    return {key: without(value, keys) for key, value in content.items() if key not in keys}


def write_bytes(path: Path, content: bytes) -> None:
    """Writes all of it or nothing: what was there stays until all is written."""
    unfinished = path.with_name(path.name + UNFINISHED)
    unfinished.write_bytes(content)
    unfinished.replace(path)


def read_summary(path: Path) -> Any:
    """What :func:`write_json` wrote of a summary, in which null is what was not finite."""
    return plain(json.loads(path.read_text(encoding="utf-8")), math.nan)


def plain(content: Any, not_finite: float | None = math.nan) -> Any:
    """Lists for all arrays but pictures, six digits, ``not_finite`` for what is not finite."""
    if isinstance(content, Mapping):
        return {str(key): plain(value, not_finite) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype == np.uint8:
        return content  # a picture
    if isinstance(content, np.ndarray | np.generic):
        return plain(content.tolist(), not_finite)
    if isinstance(content, list | tuple):
        return [plain(value, not_finite) for value in content]
    if content is None:
        return not_finite
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else not_finite
    return content
