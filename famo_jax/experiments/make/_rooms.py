"""Rooms in NYU-v2's format: furnished, lit, and seen by a depth camera.

A scene is a pure function of its seed. What is drawn is known exactly: the depth and the normals of
every pixel, up to rounding, and its class. As in the measured data some of it is missing: depth and
normal together, in a border, about edges and in blots; labels in blots, and those of some objects.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from famo_jax.experiments.make import _furniture, _paint, _rays
from famo_jax.experiments.make._furniture import CEILING, FLOOR, OBJECTS, TV, WALL, WINDOW
from famo_jax.experiments.make._rays import VOID, Solid, block, pick

Array = npt.NDArray[Any]
WALLS = (
    (0.80, 0.76, 0.66),
    (0.66, 0.74, 0.78),
    (0.72, 0.78, 0.66),
    (0.82, 0.70, 0.64),
    (0.78, 0.78, 0.78),
)


class Room(NamedTuple):
    """A room that is being furnished. Its corner is at the origin; walls are left, back, right."""

    size: Array  # [3]
    draws: np.random.Generator
    solids: list[Solid]
    taken: list[tuple[str, float, float, float]]  # wall, from, to, height of what stands there


def scene(seed: Sequence[int], size: Sequence[int]) -> dict[str, Array]:
    """The arrays of a picture, ``[H, W, ...]``, in the types that files have."""
    draws = np.random.default_rng(list(seed))
    room, camera = furnished(draws, size)
    hits, image = _rays.picture(camera, room.solids, _shader(room))
    label, whole = labels(room.solids, hits).reshape(size), hits.depth.reshape(size)
    normal = (hits.normal @ camera.axes.T).reshape(*size, 3)  # as the camera sees them
    image += np.random.default_rng([*seed, 1]).normal(scale=0.012, size=image.shape)
    missing = holes(np.random.default_rng([*seed, 2]), whole, label)
    label = np.where(_rays.waves(np.random.default_rng([*seed, 3]), size, 5) > 0.93, VOID, label)
    return {
        "image": np.clip(image, 0, 1),
        "label": label.astype(np.float32),
        "depth": np.where(missing, 0, whole).astype(np.float32)[..., None],
        "normal": np.where(missing[..., None], 0, normal),
    }


def labels(solids: Sequence[Solid], hits: _rays.Hits) -> Array:
    """The class of each hit, of which the room has three."""
    own = np.array([solid.label for solid in solids])[hits.number]
    upright = hits.normal[:, 2]
    shell = np.where(upright > 0.5, FLOOR, np.where(upright < -0.5, CEILING, WALL))
    return np.asarray(np.where(hits.number == 0, shell, own))


def holes(draws: np.random.Generator, depth: Array, label: Array) -> Array:
    """Where a depth camera measures nothing."""
    height, width = depth.shape
    y, x = np.mgrid[:height, :width]
    edge = max(1, round(height / 60))
    border = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y)) < edge
    # To the side of near things its lamp casts shadows.
    step = max(1, round(width / 130))
    jump = np.zeros_like(border)
    jump[:, step:] = depth[:, step:] - depth[:, :-step] > 0.12 * depth[:, step:]
    noise = _rays.waves(draws, depth.shape, 7)
    mirror = np.isin(label, (WINDOW, TV)) & (noise > 0.62)
    return np.asarray(border | jump | mirror | (noise > 0.95))


def _shader(room: Room) -> Callable[[Array, _rays.Hits], Array]:
    """Light from a lamp at the ceiling, from the camera and, in corners less, from everywhere."""
    lamp = room.size * [0.5, 0.55, 0] + [0, 0, room.size[2] - 0.45]
    # What shines casts no shadow.
    solid = [each for each in room.solids if each.texture != "glow" and each.kind != "room"]

    def shade(rays: Array, hits: _rays.Hits) -> Array:
        colours, shining = _paint.painted(room.solids, hits)
        away = np.linalg.norm(hits.point - lamp, axis=1)
        direct = _rays.lit(lamp, hits, solid) / (0.5 + 0.16 * away**2)
        fill = np.abs(np.einsum("ni,ni->n", rays, hits.normal)) / np.linalg.norm(rays, axis=1)
        corner = np.ones(len(rays))
        for axis in range(3):
            near = np.minimum(hits.point[:, axis], room.size[axis] - hits.point[:, axis])
            apart = np.abs(hits.normal[:, axis]) < 0.5
            corner *= np.where(apart, 1 - 0.35 * np.exp(-np.maximum(near, 0) / 0.25), 1)
        light = (0.26 + 0.16 * fill) * corner + 0.72 * direct
        shown = colours * np.where(shining, 1.0, light)[:, None]
        return np.asarray(np.clip(shown, 0, 1) ** (1 / 1.7))

    return shade


# --- Rooms ----------------------------------------------------------------------------------------

Make = Callable[[np.random.Generator], list[Solid]]


class Kind(NamedTuple):
    """What a kind of room holds, in this order as long as there is a place for it."""

    standing: tuple[Make, ...]
    before: Make | None  # stands before the first of them
    distance: float  # from its wall
    turned: bool  # whether to the wall
    hanging: tuple[Make, ...] = (_furniture.window, _furniture.painting, _furniture.painting)


BEDROOM = Kind(
    (
        *(_furniture.bed, _furniture.bedside, _furniture.wardrobe),
        *(_furniture.chair, _furniture.cupboard, _furniture.shelf),
    ),
    None, 0.0, False,
)  # fmt: skip
LIVING_ROOM = Kind(
    (
        *(_furniture.sofa, _furniture.bench, _furniture.shelf),
        *(_furniture.cupboard, _furniture.chair),
    ),
    _furniture.low_table, 1.25, False,
)  # fmt: skip
STUDY = Kind(
    (_furniture.desk, _furniture.shelf, _furniture.cupboard, _furniture.table),
    _furniture.chair, 1.5, True,
)  # fmt: skip
YAWS = {"back": np.pi, "left": -np.pi / 2, "right": np.pi / 2}


def furnished(draws: np.random.Generator, size: Sequence[int]) -> tuple[Room, _rays.Camera]:
    """A room of one of three kinds, and a camera in it."""
    lengths = draws.uniform([3.2, 3.6, 2.4], [4.8, 5.2, 2.9])
    floor, _ = pick(draws, _paint.FLOORS)
    shell = Solid("room", lengths / 2, lengths / 2, 0.0, WALL, np.array(pick(draws, WALLS)), floor)
    room = Room(lengths, draws, [shell], [])
    kind = pick(draws, (BEDROOM, LIVING_ROOM, STUDY))
    first = pick(draws, ("back", "back", "left", "right"))
    for index, make in enumerate(kind.standing):
        walls = [first] if not index else []
        placed = _place(room, make(draws), [*walls, *draws.permutation(list(YAWS))])
        if not index and placed and kind.before:
            wall, low, high, _ = room.taken[-1]
            turn = np.pi + draws.uniform(-0.5, 0.5) if kind.turned else 0.0
            at = (low + high) / 2 + draws.uniform(-0.15, 0.15)
            _put(room, kind.before(draws), wall, at, kind.distance, turn)
    for make in kind.hanging:
        _place(room, make(draws), draws.permutation(list(YAWS)), low=0.9)
    lamp = lengths * [0.5, 0.55, 1]
    bulb = (0.15, 0.15, 0.15)
    shade = block(
        lamp[0], lamp[1], lamp[2] - 0.3, bulb, OBJECTS, (1, 0.98, 0.9), "glow", "ellipsoid"
    )
    room.solids.append(shade)
    x = draws.uniform(0.3, 0.7) * lengths[0]
    look = np.arctan2((x - lengths[0] * draws.uniform(0.35, 0.65)), lengths[1])
    pitch, roll = draws.uniform(-0.24, 0.02), draws.uniform(-0.03, 0.03)
    position = (x, 0.12, draws.uniform(1.25, 1.65))
    return room, _rays.camera_at(position, look, pitch, roll, 0.81 * size[1], size)


def _place(room: Room, parts: list[Solid], walls: Any, low: float = 0.0) -> bool:
    """At the first of the walls where it fits; ``low`` is how high what hangs there begins."""
    reach = [abs(part.centre[0]) + part.half[0] for part in parts]
    deep = max(part.centre[1] + part.half[1] for part in parts)
    half, height = max(reach) + 0.03, max(part.centre[2] + part.half[2] for part in parts)
    for wall in walls:
        length = room.size[0] if wall == "back" else room.size[1]
        # Corners belong to the back wall, and the camera's end of the others is not seen.
        begin, end = (
            (0.05, length - 0.05) if wall == "back" else (1.6, length - (0.05 if low else 0.75))
        )
        for _ in range(8):
            if end - begin <= 2 * half:
                break
            at = room.draws.uniform(begin + half, end - half)
            others = [each for each in room.taken if each[0] == wall]
            if all(at + half < a or at - half > b or top < low for _, a, b, top in others):
                if not low and wall == "back" and _meets_sides(room, at, half, deep):
                    continue
                room.taken.append((str(wall), at - half, at + half, height))
                _put(room, parts, str(wall), at, 0.0)
                return True
    return False


def _meets_sides(room: Room, at: float, half: float, deep: float) -> bool:
    """Whether something at the back wall would stand in what stands at the side walls."""
    for wall, _, end, top in room.taken:
        side = at - half < 0.75 if wall == "left" else at + half > room.size[0] - 0.75
        if wall != "back" and top > 0 and side and end > room.size[1] - deep - 0.05:
            return True
    return False


def _put(
    room: Room, parts: list[Solid], wall: str, at: float, away: float, turn: float = 0.0
) -> None:
    yaw = YAWS[wall]
    x, y, _ = room.size
    start = {"back": (at, y), "left": (0.0, at), "right": (x, at)}[wall]
    outward = np.array([-np.sin(yaw), np.cos(yaw)])
    origin = np.array([*(start + away * outward), 0.0])
    for part in parts:
        spun = _rotated(part.centre, turn)
        room.solids.append(
            part._replace(centre=origin + _rotated(spun, yaw), yaw=part.yaw + yaw + turn)
        )


def _rotated(point: Array, yaw: float) -> Array:
    x, y, z = point
    return np.array([np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y, z])
