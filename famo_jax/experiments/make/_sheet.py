"""A contact sheet of what was made: a row a scene, or many faces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from famo_jax.experiments.problems import _views
from famo_jax.experiments.problems._face_files import OFFICIAL, PICTURES

Array = npt.NDArray[Any]

GAP = 4  # pixels
WIDE = 256  # pixels, to which smaller pictures are drawn larger
LOOKS = {"rooms": _views.ROOMS, "streets": _views.STREETS}


def draw(name: str, root: Path, counts: Sequence[int]) -> Image.Image:
    """Of the folder in which they were written."""
    if name == "faces":
        return _faces(root, sum(counts))
    rows = [_row(name, root / "val", number) for number in range(min(6, counts[1]))]
    sheet = _grid(rows)
    across = (sheet.width - GAP) // 90
    height = -(-len(LOOKS[name].classes) // across) * 18
    whole = Image.new("RGB", (sheet.width, sheet.height + height), "white")
    whole.paste(sheet)
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for number, each in enumerate(LOOKS[name].classes):
        x, y = GAP + number % across * 90, sheet.height + number // across * 18
        colour = tuple(int(255 * part) for part in LOOKS[name].palette[number])
        pen.rectangle((x, y + 3, x + 10, y + 13), fill=colour)
        pen.text((x + 14, y + 1), each, "black", font)
    return whole


def _row(name: str, folder: Path, number: int) -> list[Array]:
    """Picture, classes, depth; and of rooms normals."""

    def load(field: str) -> Array:
        return np.asarray(np.load(folder / field / f"{number}.npy"))

    of_rooms = name == "rooms"
    label, normal = (load("label"), load("normal")) if of_rooms else (load("label_7"), None)
    views = LOOKS[name].views(label, load("depth")[..., 0], normal)
    return [_views.colours(load("image")), *views]


def _faces(root: Path, count: int) -> Image.Image:
    files = sorted((root / OFFICIAL[PICTURES] / PICTURES).iterdir())[: min(count, 40)]
    pictures = [np.asarray(Image.open(file)) for file in files]
    wide = min(8, len(pictures))
    pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % wide)
    return _grid([pictures[at : at + wide] for at in range(0, len(pictures), wide)])


def _grid(rows: Sequence[Sequence[Array]]) -> Image.Image:
    times = max(1, WIDE // rows[0][0].shape[1]) if len(rows[0]) < 8 else 1
    rows = [[each.repeat(times, 0).repeat(times, 1) for each in row] for row in rows]
    height, width, _ = rows[0][0].shape
    size = len(rows[0]) * (width + GAP) + GAP, len(rows) * (height + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            place = GAP + right * (width + GAP), GAP + down * (height + GAP)
            sheet.paste(Image.fromarray(picture), place)
    return sheet
