"""Checkpoints of one study: a folder that a later process finds as an earlier one left it.

The folder holds ``study.json``, which says whose it is, and a folder for each method with the state
of its training, by the number of steps. Orbax writes a state beside its place and then renames it;
a digest is written last. So a process may be killed at any moment, and what is damaged is noticed
before it is read.
"""

import argparse
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import orbax.checkpoint as ocp

from famo_jax.experiments import _command, _files

Array = npt.NDArray[Any]

OPTION = "--checkpoint-dir"
STUDY = "study.json"
DIGEST = ".sha256"  # beside a checkpoint that is whole, with the seconds that the run had taken
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what Orbax was writing when it was killed
_ONE_AT_A_TIME = threading.Lock()  # of the threads that train: to Orbax they would be one process


class Saved(NamedTuple):
    """The state of a method's training."""

    steps: int
    buffer: Array  # the bytes of all leaves, one after another
    seconds: float  # that the run had taken


def open_folder(
    parser: argparse.ArgumentParser,
    folder: Path | None,
    resume: bool,
    study: Mapping[str, Any],
) -> dict[str, Saved]:
    """What the folder holds of this study. Ends with a usage error where it is not this one's.

    Args:
      parser: For the errors.
      folder: Created where it does not exist; None for no checkpoints.
      resume: Whether to go on. Without it the folder must be empty.
      study: What the figures depend on: settings and environment.
    """
    if folder is None:
        if resume:
            parser.error("argument --resume: expected --checkpoint-dir, which says from where")
        return {}
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs whatever it raises as well
    _command.output_folder(parser, OPTION, folder)
    # A process that was killed may leave behind what it had not finished writing.
    entries = sorted(
        path.name for path in folder.iterdir() if not path.name.endswith(_files.UNFINISHED)
    )
    if not entries:
        _files.write_json(folder / STUDY, study)
        return {}
    if not resume:
        _refuse(parser, f"an empty folder, or --resume to go on, got {folder} with {entries}")
    if STUDY not in entries:
        _refuse(parser, f"the checkpoints of one study, got {folder} with {entries}")
    try:
        other = _flat(json.loads((folder / STUDY).read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError, AttributeError):
        _refuse(parser, f"JSON in {folder / STUDY}, which is damaged")
    own = _flat(_files.plain(study, None))
    for key in sorted(own.keys() | other.keys()):
        if own.get(key) != other.get(key):
            _refuse(
                parser,
                f"checkpoints with {key} {own.get(key)}, got {folder} with {other.get(key)}",
            )
    loaded = {name: _load(parser, folder / name) for name in entries if name != STUDY}
    return {name: saved for name, saved in loaded.items() if saved is not None}


def _flat(study: Any) -> dict[str, Any]:
    """Settings and environment by name, without what the figures do not depend on."""
    flat = study["settings"] | study["environment"] | {"study": study["study"]}
    return {key: value for key, value in flat.items() if key not in ("quick", "cores")}


def save(folder: Path, name: str, steps: int, state: Any, seconds: float = 0.0) -> None:
    """Saves a method's state, any pytree, and removes the one before it.

    Raises:
      OSError: It could not be written. The one before it is still there.
    """
    path = (folder / name / str(steps)).absolute()
    shutil.rmtree(path, ignore_errors=True)  # of a process that was killed before the digest
    # As one array: where one of several cannot be written, the others' failures would be printed.
    leaves = b"".join(np.asarray(_plain(leaf)).tobytes() for leaf in jax.tree.leaves(state))
    try:
        with _ONE_AT_A_TIME, ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, {"leaves": np.frombuffer(leaves, np.uint8)})
    except ValueError as error:  # which TensorStore raises where a file cannot be written
        raise OSError(f"no checkpoint could be written to {path}: {error}") from error
    _files.write_bytes(path.with_suffix(DIGEST), f"{_digest(path)} {seconds:.1f}".encode())
    for other in path.parent.iterdir():
        if other.is_file() and other != path.with_suffix(DIGEST):
            other.unlink()
        elif other.is_dir() and other != path:
            shutil.rmtree(other)


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


def _load(parser: argparse.ArgumentParser, folder: Path) -> Saved | None:
    """The last state in the folder of a method, or None if it was killed before the first."""
    if not folder.is_dir():
        _refuse(parser, f"a folder of checkpoints, got the file {folder}")
    names = [path.name for path in folder.iterdir() if UNFINISHED not in path.name]
    names = [name for name in names if not name.endswith(_files.UNFINISHED)]
    if not all(name.removesuffix(DIGEST).isdecimal() for name in names):
        _refuse(parser, f"folders named by numbers of steps, got {folder} with {sorted(names)}")
    steps = [int(name.removesuffix(DIGEST)) for name in names if name.endswith(DIGEST)]
    if not steps:
        return None
    last = folder.absolute() / str(max(steps))
    digest, _, seconds = last.with_suffix(DIGEST).read_text(encoding="utf-8").partition(" ")
    if digest != _digest(last):
        _refuse(parser, f"a checkpoint in {last}, which is damaged")
    with ocp.StandardCheckpointer() as checkpointer:
        content = checkpointer.restore(last)
    if set(content) != {"leaves"}:
        _refuse(parser, f"checkpoints of this version of famo_jax, got {last}")
    return Saved(max(steps), np.asarray(content["leaves"]), float(seconds or 0))


def _digest(folder: Path) -> str:
    """SHA-256 of all that it holds."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _refuse(parser: argparse.ArgumentParser, expected: str) -> NoReturn:
    parser.error(f"argument {OPTION}: expected {expected}")
