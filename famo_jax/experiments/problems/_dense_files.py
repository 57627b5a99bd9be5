"""NYU-v2's and CityScapes' files, in the folders in which MTAN's authors have them.

``train`` and ``val`` hold ``image``, ``label``, ``depth`` and, of NYU-v2, ``normal``: folders with
an array a picture, ``0.npy``, ``1.npy`` and so on. What was read is cached.

Liu, Johns, Davison, End-to-End Multi-Task Learning with Attention, 2019.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from famo_jax.experiments.problems import _cache

Array = npt.NDArray[Any]
Places = dict[str, tuple[str, ...]]  # names of the folder of each field

SPLITS = ("train", "val")
NYUV2_CLASSES = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "painting", "sofa"),
    *("table", "tv", "wall", "window"),
)
CITYSCAPES_CLASSES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")


class Scenes(NamedTuple):
    """Pictures and what is to be told of each of their pixels, mapped into memory."""

    image: Any  # [N, H, W, 3], float32, in [0, 1]
    label: Any  # [N, H, W], int8; -1 is void
    depth: Any  # [N, H, W], float32: metres, of CityScapes inverse depth; 0 is missing
    normal: Any  # [N, H, W, 3], float32, of length 1; (0, 0, 0) is missing; CityScapes': None


def load_nyuv2(folder: str | Path, split: str, tell: _cache.Tell = _cache.silent) -> Scenes:
    """``train`` or ``val``, which the field tests on.

    The first call reads minutes long and calls ``tell(read, count)``; later ones take what it left.

    Raises:
      OSError: A file is missing, damaged or a foreign one.
    """
    places: Places = {name: (name,) for name in Scenes._fields}
    return _load("nyuv2", folder, split, places, len(NYUV2_CLASSES), tell)


def load_cityscapes(folder: str | Path, split: str, tell: _cache.Tell = _cache.silent) -> Scenes:
    """``train`` or ``val``, which the field tests on. Labels are those of seven classes.

    The first call reads minutes long and calls ``tell(read, count)``; later ones take what it left.

    Raises:
      OSError: A file is missing, damaged or a foreign one.
    """
    # LibMTL's archive calls the same labels by the second name.
    places: Places = {"image": ("image",), "label": ("label_7", "label"), "depth": ("depth",)}
    return _load("cityscapes", folder, split, places, len(CITYSCAPES_CLASSES), tell)


def _load(
    name: str, folder: str | Path, split: str, places: Places, num_classes: int, tell: _cache.Tell
) -> Scenes:
    if split not in SPLITS:
        raise ValueError(f"split: expected any of {', '.join(SPLITS)}, got {split!r}")
    root = Path(folder) / split
    found = {
        field: next((root / each for each in names if (root / each).is_dir()), None)
        for field, names in places.items()
    }
    folders = {field: path for field, path in found.items() if path}
    if missing := [places[field][0] for field in places if field not in folders]:
        needed = ", ".join(names[0] for names in places.values())
        raise FileNotFoundError(f"a folder with {needed}, got {root} without {', '.join(missing)}")
    count = _count(folders["image"])
    files = {field: _numbered(path, count) for field, path in folders.items()}
    height, width = _array(files["image"][0]).shape[:2]
    shapes = {
        "image": (height, width, 3),
        "label": (height, width),
        "depth": (height, width, 1),
        "normal": (height, width, 3),
    }

    def read(index: int) -> Sequence[Array]:
        return [
            _checked(files[field][index], field, shapes[field], num_classes) for field in places
        ]

    every = [path for each in files.values() for path in each]
    image, label, depth, *normal = _cache.mapped(
        f"{name}-{split}", root, every, list(places), read, count, tell
    )
    return Scenes(image, label, depth, normal[0] if normal else None)


def _count(folder: Path) -> int:
    count = len(_arrays(folder))
    if not count:
        raise FileNotFoundError(f"{folder}: expected 0.npy, 1.npy and so on, got none")
    return count


def _arrays(folder: Path) -> set[str]:
    # Some systems leave hidden files of the same endings.
    return {path.name for path in folder.glob("*.npy") if not path.name.startswith(".")}


def _numbered(folder: Path, count: int) -> list[Path]:
    """The files of a folder, which are to be as many as there are images."""
    names = [f"{index}.npy" for index in range(count)]
    there = _arrays(folder)
    wrong = next((f"no {name}" for name in names if name not in there), "")
    wrong = wrong or next((f"{name} besides" for name in sorted(there - set(names))), "")
    if wrong:
        raise FileNotFoundError(f"{folder}: expected 0.npy to {count - 1}.npy, one for each of "
                                f"{count} images, got {wrong}")  # fmt: skip
    return [folder / name for name in names]


def _array(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{path}: expected an array of NumPy, got {reason[:80]!r}") from None
    if array.dtype.kind not in "fiu":
        raise OSError(f"{path}: expected numbers, got an array of {array.dtype}")
    if array.ndim < 2 or not array.size:
        raise OSError(f"{path}: expected an array of shape [H, W, ...], got {array.shape}")
    return array


def _checked(path: Path, field: str, shape: tuple[int, ...], num_classes: int) -> Array:
    """A file's array as it is kept."""
    array = _array(path)
    if array.shape != shape:
        raise OSError(f"{path}: expected shape {shape}, by that of image/0.npy, got {array.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        bad = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        raise OSError(f"{path}: expected finite numbers, got {array[bad]} at {bad}")
    low, high = float(values.min()), float(values.max())
    if field == "label":
        labels = values.astype(np.int8) if low >= -1 and high < num_classes else None
        if labels is None or (labels != values).any():
            raise OSError(f"{path}: expected whole numbers from -1 to {num_classes - 1}, "
                          f"got numbers from {low:g} to {high:g}")  # fmt: skip
        return labels
    # What resizing may overshoot is let through.
    if field != "depth" and (high > 1.5 or low < {"image": -0.5, "normal": -1.5}[field]):
        expected = {"image": "[0, 1]", "normal": "[-1, 1]"}[field]
        raise OSError(f"{path}: expected numbers in {expected}, got {low:g} to {high:g}")
    return values[..., 0] if field == "depth" else values
