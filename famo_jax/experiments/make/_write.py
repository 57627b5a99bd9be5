"""Writes what is drawn as the official folders."""

import functools
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from famo_jax.experiments import _files
from famo_jax.experiments.make import _faces, _rooms, _streets
from famo_jax.experiments.problems import _face_files
from famo_jax.experiments.problems._dense_files import SPLITS

Array = npt.NDArray[Any]

FACTS, SHEET = "made.json", "sheet.png"
STRAY = "label_19"  # other labels of the same pictures, as the archive of CityScapes has


class Kind(NamedTuple):
    """What can be made."""

    title: str
    splits: tuple[str, ...]
    counts: tuple[int, ...]  # of each split, where none are given
    sizes: dict[str, tuple[int, int]]  # by name, the first where none is given
    folders: tuple[str, ...]  # that are written
    draw: Callable[[Sequence[int], Sequence[int]], Any]  # of (seed, size)


def _face(seed: Sequence[int], size: Sequence[int]) -> Any:
    del size
    return _faces.face(seed)


KINDS = {
    "rooms": Kind("rooms as NYU-v2 has them", SPLITS, (200, 50),
                  {"small": (96, 128), "full": (288, 384)}, SPLITS, _rooms.scene),
    "streets": Kind("streets as CityScapes has them", SPLITS, (200, 50),
                    {"small": (64, 128), "full": (128, 256)}, SPLITS, _streets.scene),
    "faces": Kind("faces as CelebA has them", _face_files.SPLITS, (800, 100, 100),
                  {"full": (_face_files.HEIGHT, _face_files.WIDTH)},
                  ("Img", "Anno", "Eval"), _face),
}  # fmt: skip


class Job(NamedTuple):
    """A picture that is to be drawn."""

    split: int
    number: int  # within its split, from 0
    place: int  # among all, from 0


def write(
    name: str,
    out: Path,
    counts: Sequence[int],
    size: tuple[int, int],
    seed: int,
    processes: int,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """All pictures of a kind. Before all are there none is where a reader would look.

    Args:
      name: Of ``KINDS``.
      out: The folder, which is there and holds none of the kind's folders.
      counts: How many of each split.
      size: Height and width.
      seed: Of all. A picture depends on it, its split and its number alone.
      processes: How many work at a time.
      tell: Called after each picture.

    Raises:
      OSError: They cannot be written.
    """
    kind = KINDS[name]
    unfinished = Path(tempfile.mkdtemp(_files.UNFINISHED, name, out))
    try:
        jobs = [
            Job(split, number, place)
            for place, (split, number) in enumerate(
                (split, number) for split, count in enumerate(counts) for number in range(count)
            )
        ]
        _prepare(name, unfinished)
        one = functools.partial(_write_one, name, unfinished, size, seed)
        lines = []
        for line in _each(one, jobs, processes):
            lines.append(line)
            tell()
        if name == "faces":
            _write_lists(unfinished, jobs, lines)
        facts = {"made": name, "counts": dict(zip(kind.splits, counts, strict=True)),
                 "height": size[0], "width": size[1], "seed": seed}  # fmt: skip
        for folder in kind.folders:
            (unfinished / folder).rename(out / folder)
        _files.write_json(out / FACTS, facts)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _each(one: Callable[[Job], Any], jobs: Sequence[Job], processes: int) -> Iterator[Any]:
    if processes == 1:
        yield from map(one, jobs)
        return
    # Spawned, as what was forked from a program with JAX's threads may hang.
    with ProcessPoolExecutor(processes, get_context("spawn"), _leave_interrupts) as pool:
        try:
            yield from pool.map(one, jobs, chunksize=4)
        except BrokenProcessPool:
            raise OSError(
                f"one of {processes} processes ended early, for want of memory?"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """To the program, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _prepare(name: str, root: Path) -> None:
    if name == "faces":
        for file, folder in _face_files.OFFICIAL.items():
            (root / folder).mkdir()
            if file == _face_files.PICTURES:
                (root / folder / file).mkdir()
        return
    fields = ("label", "depth", "image", "normal")
    if name == "streets":
        fields = ("label_7", "depth", "image", STRAY)
    for split, field in itertools.product(SPLITS, fields):
        (root / split / field).mkdir(parents=True)


def _write_one(name: str, root: Path, size: tuple[int, int], seed: int, job: Job) -> Any:
    """A picture's files; of a face its attributes, which stand in a list."""
    kind = KINDS[name]
    made = kind.draw([seed, job.split, job.number], size)
    if name == "faces":
        picture, attributes = made
        folder = root / _face_files.OFFICIAL[_face_files.PICTURES] / _face_files.PICTURES
        picture.save(folder / _face_name(job), quality=90)
        return attributes
    if name == "streets":
        made[STRAY] = np.where(made["label_7"] < 0, -1, made["label_7"] + 12)
    for field, array in made.items():
        np.save(root / kind.splits[job.split] / field / f"{job.number}.npy", array)
    return None


def _face_name(job: Job) -> str:
    return f"{job.place + 1:06d}.jpg"


def _write_lists(root: Path, jobs: Sequence[Job], every: Sequence[Array]) -> None:
    """Both lists, with a blank more before positive numbers, as the official one has it."""
    signs = [" ".join(" 1" if value else "-1" for value in row) for row in every]
    rows = [f"{_face_name(job)} {line}" for job, line in zip(jobs, signs, strict=True)]
    lists = {
        _face_files.ATTRIBUTES: [str(len(jobs)), " ".join(_face_files.NAMES) + " ", *rows],
        _face_files.SPLIT: [f"{_face_name(job)} {job.split}" for job in jobs],
    }
    for file, lines in lists.items():
        text = "".join(f"{line}\n" for line in lines)
        (root / _face_files.OFFICIAL[file] / file).write_text(text, encoding="utf-8")


def default_processes(counts: Sequence[int]) -> int:
    """As many as there are cores, where there is enough to do."""
    return min(os.cpu_count() or 1, 1 + sum(counts) // 100)
