"""What was once read from files, kept where later calls find it."""

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from famo_jax.experiments import _files

Array = npt.NDArray[Any]
T = TypeVar("T", bound=tuple[Array, ...])
Tell = Callable[[int, int], None]  # of how many rows are written, and of how many

AT_ONCE = 64  # rows that are read before they are written
DAY = 86_400  # seconds, after which what is unfinished was given up


def silent(written: int, count: int) -> None:
    """Tells nothing."""


def folder() -> Path:
    """Of all that is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "famo_jax")


def key(files: Sequence[Path], *more: Any) -> str:
    """Changes with the files' names, sizes and times, and with what is told besides."""
    about = [[path.name, stat.st_size, stat.st_mtime_ns]
             for path, stat in ((path, path.stat()) for path in files)]  # fmt: skip
    return hashlib.sha256(repr((*more, about)).encode()).hexdigest()[:16]


def cached(name: str, kind: type[T], make: Callable[[], T]) -> T:
    """A named tuple of arrays, as an earlier call left it in the user's cache, or made and kept.

    What is damaged there is made again, and so it is the next time where it cannot be kept.
    """
    fields: Sequence[str] = kind._fields  # type: ignore[attr-defined]
    path = folder() / f"{name}.npz"
    try:
        arrays = _files.load(path)
        return kind(*(arrays[field] for field in fields))
    except _files.DAMAGED:
        pass
    made, buffer = make(), io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(zip(fields, made, strict=True)))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.write_bytes(path, buffer.getvalue())
    return made


def mapped(
    name: str,
    source: Path,
    files: Sequence[Path],
    fields: Sequence[str],
    read: Callable[[int], Sequence[Array]],
    count: int,
    tell: Tell,
) -> list[Array]:
    """One array a field, mapped into memory: row i of all of them is ``read(i)``.

    They are written once, and again where ``files`` changed, in whose place they then stand. What
    is unfinished is never opened. ``tell`` is called as rows are written.

    Raises:
      OSError: There is no place or no room for them. And what ``read`` raises.
    """
    whose = f"{name}-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]}-"
    place = folder() / (whose + key(files))
    try:
        return _open(place, fields)
    except _files.DAMAGED:
        shutil.rmtree(place, ignore_errors=True)  # damaged, if there: they are made again
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(_files.UNFINISHED, whose, place.parent))
    except OSError as error:
        raise _no_place(place.parent, error) from None
    try:
        _write(unfinished, fields, _rows(read, count), count, tell)
        _remove_old(each for each in place.parent.glob(whose + "*") if each != place)
        with suppress(OSError):  # where another process was quicker
            unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return _open(place, fields)


def _remove_old(places: Iterable[Path]) -> None:
    """All but what may yet be written."""
    for place in places:
        with suppress(FileNotFoundError):
            given_up = place.stat().st_mtime < time.time() - DAY
            if given_up or place.suffix != _files.UNFINISHED:
                shutil.rmtree(place, ignore_errors=True)


def _open(place: Path, fields: Sequence[str]) -> list[Array]:
    return [np.load(place / f"{field}.npy", mmap_mode="r") for field in fields]


def _rows(read: Callable[[int], Sequence[Array]], count: int) -> Iterator[Sequence[Array]]:
    """All rows in order, several read at a time: files and decoders leave Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, count, AT_ONCE):
            yield from pool.map(read, range(first, min(first + AT_ONCE, count)))


def _write(
    place: Path, fields: Sequence[str], rows: Iterator[Sequence[Array]], count: int, tell: Tell
) -> None:
    # By writing, not through a map, where a full disk would end the process; and unbuffered, so
    # that it fails here and not where the files are closed.
    with ExitStack() as stack:
        for number, row in enumerate(rows):
            try:
                if not number:
                    files = [stack.enter_context((place / f"{field}.npy").open("wb", buffering=0))
                             for field in fields]  # fmt: skip
                for file, array in zip(files, row, strict=True):
                    if not number:
                        _append(file, _header(array, count))
                    _append(file, array.tobytes())
                    if number == count - 1:
                        os.fsync(file.fileno())
            except OSError as error:
                raise _no_place(place.parent, error) from None
            tell(number + 1, count)


def _header(row: Array, count: int) -> bytes:
    header = np.lib.format.header_data_from_array_1_0(row)
    header |= {"shape": (count, *row.shape), "fortran_order": False}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _append(file: io.FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _no_place(path: Path, error: OSError) -> OSError:
    reason = error.strerror or type(error).__name__
    return OSError(f"{path}: expected a folder to cache data in, as XDG_CACHE_HOME may name one, "
                   f"got {reason}")  # fmt: skip
