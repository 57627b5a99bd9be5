"""Checkpoints of one study: a folder that a later process finds as an earlier one left it.

The folder holds ``study.json``, which says whose it is, and a file for each method with the state
of its training. A file is written beside its place and then renamed, and the archive has checksums:
so a process may be killed at any moment, and what is damaged is noticed before it is read.
"""

import argparse
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from famo_jax.experiments import _command, _files

OPTION, STUDY, SUFFIX = "--checkpoint-dir", "study.json", ".npz"


class Saved(NamedTuple):
    """The state of a method's training."""

    steps: int
    seconds: float  # that the run had taken
    buffer: Any  # uint8, the bytes of all leaves, one after another


def open_folder(
    parser: argparse.ArgumentParser, folder: Path | None, resume: bool, study: Mapping[str, Any]
) -> dict[str, Saved]:
    """What the folder holds of this study. Ends with a usage error where it is not this one's.

    Without ``resume`` the folder must be empty. ``study`` is what the figures depend on.
    """

    def refuse(expected: str) -> NoReturn:
        parser.error(f"argument {OPTION}: expected {expected}")

    if folder is None:
        if resume:
            parser.error("argument --resume: expected --checkpoint-dir, which says from where")
        return {}
    _command.output_folder(parser, OPTION, folder)
    # A process that was killed may leave behind what it had not finished writing.
    paths = sorted(path for path in folder.iterdir() if path.suffix != _files.UNFINISHED)
    entries = [path.name for path in paths]
    if not entries:
        _files.write_json(folder / STUDY, study)
        return {}
    if not resume:
        refuse(f"an empty folder, or --resume to go on, got {folder} with {entries}")
    if STUDY not in entries:
        refuse(f"the checkpoints of one study, got {folder} with {entries}")
    try:
        other = _flat(json.loads((folder / STUDY).read_text(encoding="utf-8")))
    except _files.DAMAGED:
        refuse(f"JSON in {folder / STUDY}, which is damaged")
    own = _flat(_files.plain(study, None))
    for key in sorted(own.keys() | other.keys()):
        if own.get(key) != other.get(key):
            refuse(f"checkpoints with {key} {own.get(key)}, got {folder} with {other.get(key)}")
    found = {}
    for path in paths:
        if path.name == STUDY:
            continue
        if path.suffix != SUFFIX or not path.is_file():
            refuse(f"nothing but checkpoints, got {path}")
        try:
            arrays: Any = _files.load(path)
            found[path.stem] = Saved(*(arrays[field] for field in Saved._fields))
        except _files.DAMAGED as error:
            refuse(f"a checkpoint in {path}, which is damaged ({type(error).__name__}: {error})")
    return found


def _flat(study: Any) -> dict[str, Any]:
    """Settings and environment by name, without what the figures do not depend on."""
    flat = study["settings"] | study["environment"] | {"study": study["study"]}
    return {key: value for key, value in flat.items() if key not in ("quick", "cores")}


def save(folder: Path, name: str, steps: int, state: Any, seconds: float = 0.0) -> None:
    """Saves a method's state, any pytree, in the place of the one before it.

    Raises:
      OSError: It could not be written. The one before it is still there.
    """
    leaves = b"".join(np.asarray(_plain(leaf)).tobytes() for leaf in jax.tree.leaves(state))
    saved = Saved(steps, seconds, np.frombuffer(leaves, np.uint8))
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **saved._asdict())
    path = folder / f"{name}{SUFFIX}"
    try:
        _files.write_bytes(path, archive.getvalue())
    except OSError as error:
        raise OSError(f"no checkpoint could be written to {path}: {error}") from error


def _plain(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def restore(saved: Saved, like: Any) -> Any:
    """The state, with the structure, shapes and dtypes of ``like``, of which no value is used."""
    end = 0

    def next_leaf(leaf: Any) -> jax.Array:
        nonlocal end
        plain = jax.eval_shape(_plain, leaf)
        start, end = end, end + plain.size * plain.dtype.itemsize
        value = jnp.array(saved.buffer[start:end].view(plain.dtype).reshape(plain.shape))
        if not _is_key(leaf):
            return value
        key: jax.Array = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        return key

    state: Any = jax.tree.map(next_leaf, like)
    assert end == saved.buffer.size
    return state
