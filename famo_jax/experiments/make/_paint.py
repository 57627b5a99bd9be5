"""What solids look like: patterns, as functions of where on a solid a ray hits it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from famo_jax.experiments.make import _rays

Array = npt.NDArray[Any]
Pattern = Callable[[Array, Array, Array], Array]  # (points [N, 3], half [3], colour [3]) -> [N, 3]


def painted(solids: Sequence[_rays.Solid], hits: _rays.Hits) -> tuple[Array, Array]:
    """What each hit gives back of the light, ``[N, 3]``, and where it shines itself, ``[N]``."""
    colours = np.zeros((len(hits.number), 3))
    shining = np.zeros(len(hits.number), bool)
    order = np.argsort(hits.number, kind="stable")
    numbers, starts = np.unique(hits.number[order], return_index=True)
    for number, at in zip(numbers, np.split(order, starts[1:]), strict=True):
        if number == _rays.SKY:
            continue
        solid = solids[number]
        points = _rays.local(solid, hits.point[at])
        if solid.kind == "room":
            colours[at] = _shell(points, hits.normal[at], solid)
        else:
            colours[at] = PATTERNS[solid.texture](points, solid.half, solid.colour)
        shining[at] = solid.texture in SHINING
    return colours, shining


def _shell(points: Array, normal: Array, room: _rays.Solid) -> Array:
    """Floor, walls and ceiling of a room, which carries the name and the colour of its floor."""
    floor_colour = dict(FLOORS)[room.texture]
    upright = normal[:, 2]
    wall = np.broadcast_to(room.colour, points.shape).copy()
    board = points[:, 2] < -room.half[2] + 0.09
    wall[board] = 0.9
    floor = PATTERNS[room.texture](points, room.half, np.asarray(floor_colour))
    return np.where(
        (upright > 0.5)[:, None], floor, np.where((upright < -0.5)[:, None], 0.92, wall)
    )


def _hash(*whole: Array) -> Array:
    """A number in [0, 1) that looks as if drawn, of whole numbers."""
    total = sum(
        np.asarray(each, float) * factor
        for each, factor in zip(whole, (12.9898, 78.233, 37.719), strict=False)
    )
    return np.modf(np.abs(np.sin(total + 0.37) * 43758.5453))[0]


def _shaded(colour: Array, by: Array) -> Array:
    return colour * by[:, None]


def _plain(points: Array, half: Array, colour: Array) -> Array:
    return np.broadcast_to(colour, points.shape)


def _planks(points: Array, half: Array, colour: Array) -> Array:
    """Boards along y, each of its own tone, with dark joints."""
    x, y = points[:, 0] / 0.14, points[:, 1]
    row = np.floor(x)
    y = y / 1.1 + _hash(row)
    grain = 0.05 * np.sin(40 * points[:, 0] + 3 * np.sin(2 * points[:, 1]) + 9 * row)
    tone = 0.8 + 0.35 * _hash(row, np.floor(y)) + grain
    joint = (x - row < 0.06) | (y - np.floor(y) < 0.01)
    return _shaded(colour, np.where(joint, 0.45, tone))


def _tiles(points: Array, half: Array, colour: Array) -> Array:
    cells = points[:, :2] / 0.4
    whole = np.floor(cells)
    joint = ((cells - whole) < 0.04).any(axis=1)
    dark = (whole.sum(axis=1) % 2) * 0.25
    return _shaded(colour, np.where(joint, 0.6, 1.1 - dark))


def _carpet(points: Array, half: Array, colour: Array) -> Array:
    speck = _hash(np.floor(points[:, 0] / 0.03), np.floor(points[:, 1] / 0.03))
    return _shaded(colour, 0.85 + 0.3 * speck)


def _wood(points: Array, half: Array, colour: Array) -> Array:
    along = points[:, 0] * 3 + points[:, 2] * 2
    return _shaded(
        colour, 1 + 0.08 * np.sin(35 * (points[:, 1] + points[:, 2]) + 3 * np.sin(along))
    )


def _cloth(points: Array, half: Array, colour: Array) -> Array:
    stripes = np.sin(2 * np.pi * points[:, 0] / 0.16) * np.sin(2 * np.pi * points[:, 1] / 0.16)
    return _shaded(colour, 1 + 0.12 * np.sign(stripes))


def _front(points: Array, half: Array, colour: Array, columns: int, rows: int) -> Array:
    """Doors or drawers with dark joints and a knob each, on the side towards the room."""
    x = (points[:, 0] + half[0]) / (2 * half[0]) * columns
    z = (points[:, 2] + half[2]) / (2 * half[2]) * rows
    u, v = x - np.floor(x), z - np.floor(z)
    width, height = 2 * half[0] / columns, 2 * half[2] / rows
    joint = (np.minimum(u, 1 - u) * width < 0.012) | (np.minimum(v, 1 - v) * height < 0.012)
    knob = (u - 0.5) ** 2 * width**2 + (v - 0.6) ** 2 * height**2 < 0.02**2
    front = points[:, 1] > half[1] - 1e-6
    return _shaded(colour, np.where(front & joint, 0.55, np.where(front & knob, 0.25, 1.0)))


def _spines(points: Array, half: Array, colour: Array) -> Array:
    """Backs of books, of their own width, tone and colour."""
    x = points[:, 0] / 0.045
    book = np.floor(x + 0.3 * np.sin(2.1 * x))
    places = [book + channel + 10 * colour.sum() for channel in (0.0, 71.0, 143.0)]
    tint = np.stack([_hash(each) for each in places], axis=-1)
    band = (np.abs(points[:, 2] / half[2] - 0.5) < 0.08) * 0.3
    return np.asarray(0.12 + 0.65 * tint + band[:, None])


def _pages(points: Array, half: Array, colour: Array) -> Array:
    """A book that lies: paper between two covers."""
    return np.where((np.abs(points[:, 2]) < 0.7 * half[2])[:, None], 0.75 + 0.25 * colour, colour)


def _screen(points: Array, half: Array, colour: Array) -> Array:
    """Dark, with a slanting reflection."""
    x, z = points[:, 0] / half[0], points[:, 2] / half[2]
    gleam = 0.12 * (np.abs(x - 0.6 * z - 0.2) < 0.25) * (np.maximum(np.abs(x), np.abs(z)) < 0.92)
    return np.asarray(colour + gleam[:, None] * np.array([0.8, 0.9, 1.1]))


def _view(points: Array, half: Array, colour: Array) -> Array:
    """The sky above hills, behind a window."""
    x, z = points[:, 0], points[:, 2] / half[2]
    sky = np.stack([0.68 - 0.2 * z, 0.82 - 0.1 * z, np.full_like(z, 0.98)], axis=-1)
    hill = z < -0.45 + 0.12 * np.sin(3 * x + 1) + 0.05 * np.sin(9 * x)
    return np.where(hill[:, None], [0.42, 0.58, 0.36], sky)


def _painting(points: Array, half: Array, colour: Array) -> Array:
    """Sun, hills and a frame's mat, in tones of its own."""
    x, z = points[:, 0] / half[0], points[:, 2] / half[2]
    other = colour[[1, 2, 0]]
    picture = np.where(
        (z > 0.15 * np.sin(4 * x + 9 * colour[0]) - 0.1)[:, None], other, 0.6 * colour
    )
    sun = (x - 0.8 * colour[1] + 0.3) ** 2 + (z - 0.45) ** 2 < 0.06
    picture = np.where(sun[:, None], [0.95, 0.8, 0.35], picture)
    return np.where((np.maximum(np.abs(x), np.abs(z)) > 0.85)[:, None], 0.93, picture)


def _leaves(points: Array, half: Array, colour: Array) -> Array:
    cell = np.floor(points / (0.18 * half.max()))
    return _shaded(colour, 0.6 + 0.7 * _hash(cell[:, 0], cell[:, 1], cell[:, 2]))


def _facade(points: Array, half: Array, colour: Array) -> Array:
    """Rows of windows, with doors below."""
    along = np.where(np.abs(points[:, 0]) > half[0] - 1e-6, points[:, 1], points[:, 0])
    x, z = along / 2.4, (points[:, 2] + half[2]) / 3.0
    u, v = x - np.floor(x), z - np.floor(z)
    pane = (np.abs(u - 0.5) < 0.24) & (np.abs(v - 0.55) < 0.27) & (points[:, 2] < half[2] - 0.7)
    bar = pane & ((np.abs(u - 0.5) < 0.02) | (np.abs(v - 0.6) < 0.02))
    bright = _hash(np.floor(x), np.floor(z))[:, None]
    glass = np.array([0.22, 0.28, 0.34]) + 0.3 * bright
    ledge = (v < 0.05) | (points[:, 2] > half[2] - 0.4)
    wall = np.where(
        ledge[:, None],
        colour * 1.15,
        colour * (0.97 + 0.06 * _hash(np.floor(4 * x), np.floor(9 * z)))[:, None],
    )
    return np.where((pane & ~bar)[:, None], glass, np.where(bar[:, None], 0.85, wall))


def _road(points: Array, half: Array, colour: Array) -> Array:
    """Asphalt with a broken line in the middle and one at each side."""
    x, y = points[:, 0], points[:, 1]
    speck = _hash(np.floor(x / 0.12), np.floor(y / 0.4))
    line = (np.abs(x) < 0.08) & (y % 6 < 3) | (np.abs(np.abs(x) - half[0] + 0.35) < 0.07)
    return np.where(line[:, None], 0.82, colour * (0.9 + 0.2 * speck)[:, None])


def _paving(points: Array, half: Array, colour: Array) -> Array:
    cells = points[:, :2] / 0.8
    joint = (cells - np.floor(cells) < 0.05).any(axis=1)
    return _shaded(colour, np.where(joint, 0.75, 0.95 + 0.1 * _hash(*np.floor(cells).T)))


def _grass(points: Array, half: Array, colour: Array) -> Array:
    speck = _hash(np.floor(points[:, 0] / 0.2), np.floor(points[:, 1] / 0.5))
    return _shaded(colour, 0.75 + 0.5 * speck)


def _bricks(points: Array, half: Array, colour: Array) -> Array:
    along, z = (points[:, 0] + points[:, 1]) / 0.5, points[:, 2] / 0.22
    row = np.floor(z)
    along = along + 0.5 * (row % 2)
    joint = (z - row < 0.12) | (along - np.floor(along) < 0.06)
    return _shaded(colour, np.where(joint, 1.25, 0.85 + 0.25 * _hash(np.floor(along), row)))


def _cabin(points: Array, half: Array, colour: Array) -> Array:
    """A car's windows on all sides, below its roof and between its posts."""
    x, y, z = (points / half).T
    side = np.abs(x) > 1 - 1e-6
    post = np.where(side, np.abs(np.abs(y) - 0.5) > 0.44, np.abs(x) > 0.88) | (
        side & (np.abs(y) < 0.05)
    )
    glass = (z < 0.75) & (z > -0.8) & ~post
    return np.where(glass[:, None], [0.12, 0.15, 0.18], colour)


def _car(points: Array, half: Array, colour: Array) -> Array:
    """Head and tail lamps, a number plate, and doors' joints."""
    x, y, z = (points / half).T
    ends = np.abs(y) > 1 - 1e-6
    lamp = ends & (np.abs(np.abs(x) - 0.78) < 0.16) & (np.abs(z - 0.25) < 0.25)
    plate = ends & (np.abs(x) < 0.25) & (np.abs(z + 0.2) < 0.18)
    lamps = np.where((y > 0)[:, None], [0.98, 0.96, 0.85], [0.75, 0.08, 0.06])
    joint = ~ends & (np.abs(np.abs(y) - 0.25) < 0.012)
    body = _shaded(colour, np.where(joint | (z < -0.8), 0.5, 1.0))
    return np.where(lamp[:, None], lamps, np.where(plate[:, None], 0.9, body))


def _sign(points: Array, half: Array, colour: Array) -> Array:
    """A white mark on a coloured board with a white rim."""
    x, z = points[:, 0] / half[0], points[:, 2] / half[2]
    rim = np.maximum(np.abs(x), np.abs(z)) > 0.8
    mark = (np.abs(x) < 0.2) & (np.abs(z) < 0.55)
    return np.where((rim | mark)[:, None], 0.93, colour)


def _signal(points: Array, half: Array, colour: Array) -> Array:
    """Three lights, of which colour says the one that is on."""
    z = points[:, 2] / half[2]
    on = int(3 * colour[0])
    total = np.full(points.shape, 0.08)
    for place, light in enumerate(([0.1, 0.8, 0.3], [0.95, 0.7, 0.1], [0.95, 0.12, 0.1])):
        spot = (points[:, 0] / half[0]) ** 2 + (
            (z - 0.62 * (place - 1)) * half[2] / half[0]
        ) ** 2 < 0.5
        total[spot] = np.array(light) * (1.0 if place == on else 0.25)
    return total


PATTERNS: dict[str, Pattern] = {
    "plain": _plain, "glow": _plain, "planks": _planks, "tiles": _tiles, "carpet": _carpet,
    "wood": _wood, "cloth": _cloth, "spines": _spines, "pages": _pages, "screen": _screen,
    "view": _view, "painting": _painting, "leaves": _leaves, "facade": _facade, "road": _road,
    "paving": _paving, "grass": _grass, "bricks": _bricks, "cabin": _cabin, "car": _car,
    "sign": _sign, "signal": _signal,
    "doors": lambda points, half, colour: _front(points, half, colour, 2, 1),
    "drawers": lambda points, half, colour: _front(points, half, colour, 2, 2),
}  # fmt: skip
FLOORS = (
    ("planks", (0.55, 0.36, 0.20)),
    ("tiles", (0.72, 0.68, 0.62)),
    ("carpet", (0.52, 0.47, 0.44)),
)
SHINING = ("glow", "view")
