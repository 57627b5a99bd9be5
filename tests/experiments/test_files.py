"""What is damaged on the disk is made again or refused in words: caches, checkpoints, runs."""

import argparse
import zipfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax.experiments import _checkpoint, _files
from famo_jax.experiments.problems import _cache


class Table(NamedTuple):
    numbers: np.ndarray
    names: np.ndarray


TABLE = Table(np.arange(12.0).reshape(3, 4), np.array(["reach", "push"]))
STUDY = {
    "study": "toy",
    "settings": {"steps": 3, "methods": ["a"]},
    "environment": {"jax": "0.0.1"},
    "arms": {"a": {"settings": [{"gamma": 0.1}], "seeds": [0]}},
    "seconds": 1.5,
}
LONG = jnp.arange(9000, dtype=jnp.float32)  # longer than what is read of an archive at once


class RefusedError(Exception):
    pass


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise RefusedError(message)


def damages(content):
    """One bit wrong in each byte in turn, and cut off before every third."""
    wrong = [content[:place] + bytes([byte ^ 1 << place % 8]) + content[place + 1 :]
             for place, byte in enumerate(content)]  # fmt: skip
    return wrong + [content[:place] for place in range(0, len(content), 3)]


def read_checkpoint(folder):
    found = _checkpoint.open_folder(Parser(), folder, True, STUDY)["a"]
    return np.asarray(_checkpoint.restore(found, LONG[:9])), found.steps, found.seconds


def read_runs(folder):
    (runs,) = _files.read(Parser(), "toy", [folder]).values()
    return runs.arrays["a"]["numbers"], runs.arrays["a"]["names"]


def write_checkpoint(folder, state=LONG[:9]):
    _checkpoint.open_folder(Parser(), folder, False, STUDY)
    _checkpoint.save(folder, "a", 3, state, 1.5)


def write_runs(folder):
    _files.write(folder, _files.Runs(STUDY, {"a": TABLE._asdict()}))


def test_a_damaged_cache_is_made_again_whatever_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    make = lambda: made.append(1) or TABLE
    _cache.cached("table", Table, make)
    path = tmp_path / "famo_jax" / "table.npz"
    every = damages(path.read_bytes())
    for content in every:
        path.write_bytes(content)
        for one, other in zip(_cache.cached("table", Table, make), TABLE, strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(every) > 500
    assert len(made) > len(every) / 2


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # as if Python 2 had written it
def test_a_damaged_map_is_made_again_or_opened(tmp_path, monkeypatch):
    """It has no checksum: numbers may be others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    read = lambda row: made.append(row) or (TABLE.numbers[row],)
    again = lambda: _cache.mapped("map", tmp_path, [], ["numbers"], read, 3, _cache.silent)
    again()
    (path,) = tmp_path.rglob("*.npy")
    for content in damages(path.read_bytes()):
        path.unlink()  # what is mapped stays as it is
        path.write_bytes(content)
        again()
    assert len(made) > 100


@pytest.mark.parametrize(
    ("write", "read", "file", "words"),
    [
        (write_checkpoint, read_checkpoint, "a.npz", "a checkpoint in {}, which is damaged ("),
        (write_checkpoint, read_checkpoint, "study.json", ""),
        (write_runs, read_runs, "runs.npz", "a folder with runs.npz and study.json, got {parent}"),
        (write_runs, read_runs, "study.json", ""),
    ],
)
def test_what_is_damaged_is_refused_in_a_line(write, read, file, words, tmp_path):
    write(tmp_path)
    path, right, refused = tmp_path / file, read(tmp_path), []
    every = damages(path.read_bytes())
    for content in every:
        path.write_bytes(content)
        try:
            found = read(tmp_path)
        except RefusedError as error:
            refused.append(str(error))
        else:
            for one, other in zip(found, right, strict=True):
                np.testing.assert_array_equal(one, other)
    assert all(words.format(path, parent=tmp_path) in said for said in refused)
    assert "\n" not in "".join(refused)
    assert len(every) > 200
    assert len(refused) > len(every) / 3


def test_less_than_is_there_or_another_compression_is_noticed(tmp_path):
    write_checkpoint(tmp_path, LONG)
    path = tmp_path / "a.npz"
    whole = path.read_bytes()
    method = whole.rindex(b"PK\x01\x02") + 10  # in the entry of the last array
    assert (whole.count(b"(36000,)"), whole[method]) == (1, zipfile.ZIP_STORED)
    less = whole.replace(b"(36000,)", b"(30000,)")
    for damaged in (less, whole[:method] + bytes([zipfile.ZIP_LZMA]) + whole[method + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(RefusedError, match=f"a checkpoint in {path}, which is damaged"):
            read_checkpoint(tmp_path)
