"""CelebA's files: aligned pictures of faces, and forty attributes of each.

The official folder has the pictures in ``Img/img_align_celeba``, their attributes in ``Anno`` and
the split in ``Eval``; torchvision has the three side by side. What was read is cached.

Liu, Luo, Wang, Tang, Deep Learning Face Attributes in the Wild, 2015.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from famo_jax.experiments.problems import _cache

Array = npt.NDArray[Any]

SPLITS = ("train", "val", "test")  # 0, 1 and 2 in the official list
WIDTH, HEIGHT = 178, 218
SIDE = 64  # of what is kept, whose sides are equal as the networks see them
PICTURES = "img_align_celeba"
ATTRIBUTES, SPLIT = "list_attr_celeba.txt", "list_eval_partition.txt"
OFFICIAL = {PICTURES: "Img", ATTRIBUTES: "Anno", SPLIT: "Eval"}  # the folder of each
_NAMES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard "
    "Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair "
    "Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie "
    "Young"
)
NAMES = tuple(_NAMES.split())


class Faces(NamedTuple):
    """Faces, mapped into memory."""

    image: Any  # [N, 64, 64, 3], uint8
    attributes: Any  # [N, 40], uint8: 1 where a face has it, in the order of NAMES


def load_celeba(folder: str | Path, split: str, tell: _cache.Tell = _cache.silent) -> Faces:
    """``train``, ``val`` or ``test``.

    The first call reads minutes long and calls ``tell(read, count)``; later ones take what it left.

    Raises:
      OSError: A file is missing, damaged or a foreign one.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected any of {', '.join(SPLITS)}, got {split!r}")
    root = Path(folder)
    places = {
        name: next((path for path in (root / within / name, root / name) if path.exists()), None)
        for name, within in OFFICIAL.items()
    }
    found = {name: path for name, path in places.items() if path}
    if missing := [name for name in OFFICIAL if name not in found]:
        raise FileNotFoundError(f"a folder with {', '.join(OFFICIAL)}, got {root} without "
                                f"{', '.join(missing)}")  # fmt: skip
    names, attributes = read_attributes(found[ATTRIBUTES])
    parts = read_split(found[SPLIT], names)
    rows = np.flatnonzero(parts == SPLITS.index(split))
    if not len(rows):
        raise OSError(f"{found[SPLIT]}: expected faces of {split}, got none")
    files = [found[PICTURES] / names[row] for row in rows]
    if absent := next((path for path in files if not path.is_file()), None):
        raise FileNotFoundError(f"{absent}: expected a picture, as {ATTRIBUTES} has it, got none")

    def read(index: int) -> Sequence[Array]:
        return read_picture(files[index]), attributes[rows[index]]

    every = [found[ATTRIBUTES], found[SPLIT], *files]
    arrays = _cache.mapped(f"celeba-{split}", root, every, Faces._fields, read, len(rows), tell)
    return Faces(*arrays)


def read_attributes(path: Path) -> tuple[list[str], Array]:
    """The pictures' names, and the attributes of each."""
    lines = _lines(path)
    if len(lines) < 2 or lines[1].split() != list(NAMES):
        raise OSError(f"{path}: expected {len(NAMES)} names in line 2, from {NAMES[0]} to "
                      f"{NAMES[-1]}, got {' '.join(lines[1:2])[:60]!r}")  # fmt: skip
    if lines[0].strip() != str(len(lines) - 2):
        raise OSError(f"{path}: expected the number of its faces, {len(lines) - 2}, in line 1, "
                      f"got {lines[0].strip()[:60]!r}")  # fmt: skip
    names, attributes = [], np.zeros((len(lines) - 2, len(NAMES)), np.uint8)
    signs = {"-1": 0, "1": 1}
    for number, line in enumerate(lines[2:]):
        name, *values = line.split() or [""]
        if len(values) != len(NAMES) or not set(values) <= set(signs):
            raise OSError(f"{path}: line {number + 3}: expected a name and {len(NAMES)} of -1 "
                          f"and 1, got {line[:60]!r}")  # fmt: skip
        names.append(name)
        attributes[number] = [signs[value] for value in values]
    return names, attributes


def read_split(path: Path, names: Sequence[str]) -> Array:
    """Of which split each picture is."""
    lines = _lines(path)
    if len(lines) != len(names):
        raise OSError(f"{path}: expected {len(names)} lines, as {ATTRIBUTES} has faces, "
                      f"got {len(lines)}")  # fmt: skip
    parts = np.zeros(len(names), np.uint8)
    for number, (line, name) in enumerate(zip(lines, names, strict=True)):
        first, *rest = line.split() or [""]
        if first != name or rest not in (["0"], ["1"], ["2"]):
            raise OSError(f"{path}: line {number + 1}: expected {name} and 0, 1 or 2, "
                          f"got {line[:60]!r}")  # fmt: skip
        parts[number] = int(rest[0])
    return parts


def read_picture(path: Path) -> Array:
    """A picture as the networks see it: both sides resized, nothing cropped."""
    try:
        with Image.open(path) as file:
            if file.size != (WIDTH, HEIGHT):
                raise OSError(f"{path}: expected a picture of {WIDTH} x {HEIGHT}, "
                              f"got {' x '.join(map(str, file.size))}")  # fmt: skip
            picture = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if str(error).startswith(f"{path}: "):
            raise
        reason = " ".join(str(error).replace(repr(str(path)), "it").split())
        raise OSError(f"{path}: expected a picture ({reason})") from None
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
