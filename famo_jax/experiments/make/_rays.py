"""Ray casting of boxes, ellipsoids and upright cylinders: exact depth, normals and what is seen.

The world has z upwards. A camera's x is to the right, its y upwards, its z towards the viewer;
depth is the distance along the camera's axis, as a depth camera measures it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NEAR = 1e-3  # metres, closer than which nothing is seen
SKY = -1  # the number of what no ray hits
VOID = -1  # the label of what is not labelled


class Solid(NamedTuple):
    """Something to be seen."""

    kind: str  # box, ellipsoid, cylinder; or room, a box from inside
    centre: Array  # [3], metres
    half: Array  # [3], half of its lengths along its own axes
    yaw: float  # about z
    label: int
    colour: Array  # [3], of what light it gives back
    texture: str = "plain"


class Camera(NamedTuple):
    """A pinhole."""

    position: Array  # [3]
    axes: Array  # [3, 3]: right, up, towards the viewer
    focal: float  # pixels
    height: int
    width: int

    def rays(self, rows: Array, columns: Array) -> Array:
        """Directions in the world, ``[N, 3]``, of points of the picture: a step is a metre deep."""
        x = (columns - self.width / 2) / self.focal
        y = (self.height / 2 - rows) / self.focal
        inside: Array = np.stack([x, y, -np.ones_like(x)], axis=-1)
        return inside @ self.axes


class Hits(NamedTuple):
    """What rays meet first."""

    depth: Array  # [N]: how many steps of its ray; inf where it meets nothing
    number: Array  # [N], int: of the solid, or SKY
    normal: Array  # [N, 3]: in the world, of length 1, to where the ray comes from; 0 where nothing
    point: Array  # [N, 3]


def block(
    x: float, y: float, z: float, half: Sequence[float] | Array, label: int, colour: Any,
    texture: str = "plain", kind: str = "box", yaw: float = 0.0,
) -> Solid:  # fmt: skip
    """A solid that stands on a height of z."""
    sizes = np.asarray(half, float)
    centre = np.array([x, y, z + sizes[2]])
    return Solid(kind, centre, sizes, yaw, label, np.asarray(colour, float), texture)


def pick(draws: np.random.Generator, among: Sequence[Any]) -> Any:
    """One of them."""
    return among[int(draws.integers(len(among)))]


def camera_at(
    position: Sequence[float],
    yaw: float,
    pitch: float,
    roll: float,
    focal: float,
    size: Sequence[int],
) -> Camera:
    """Looks along y, turned to the left, then upwards, then about its axis, by radians."""
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    ahead = np.array([-np.sin(yaw), np.cos(yaw), 0.0]) * np.cos(pitch) + [0, 0, np.sin(pitch)]
    up = np.cross(right, ahead)
    turned = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    return Camera(np.asarray(position, float), np.stack([*turned, -ahead]), focal, *size)


def centres(camera: Camera) -> Array:
    """The rays of all pixels, ``[H * W, 3]``."""
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    return camera.rays(rows.ravel(), columns.ravel())


def trace(origin: Array, rays: Array, solids: Sequence[Solid]) -> Hits:
    """What rays of one origin meet first."""
    lengths = np.sqrt(np.einsum("ni,ni->n", rays, rays))
    depth = np.full(len(rays), np.inf)
    number = np.full(len(rays), SKY)
    normal = np.zeros((len(rays), 3))
    for index, solid in enumerate(solids):
        near = _towards(origin, rays, lengths, solid)
        turn = _turn(solid.yaw)
        start = (origin - solid.centre) @ turn
        found, outward = MEET[solid.kind](start, rays[near] @ turn, solid.half)
        closer = found < depth[near]
        at = near[closer]
        depth[at] = found[closer]
        number[at] = index
        normal[at] = outward[closer] @ turn.T
    point = origin + np.where(np.isfinite(depth), depth, 0.0)[:, None] * rays
    return Hits(depth, number, normal, point)


def lit(light: Array, hits: Hits, solids: Sequence[Solid]) -> Array:
    """How much each point gets of a lamp: the cosine of its angle, 0 where something is between."""
    ways = hits.point - light
    lengths = np.sqrt(np.einsum("ni,ni->n", ways, ways))
    cosine: Array = np.maximum(
        -np.einsum("ni,ni->n", ways, hits.normal) / np.maximum(lengths, NEAR), 0
    )
    at = np.flatnonzero(cosine)
    steps = trace(light, ways[at], solids).depth
    cosine[at[steps * lengths[at] < lengths[at] - 1e-2]] = 0
    return cosine


def local(solid: Solid, points: Array) -> Array:
    """Points from a solid's centre along its axes."""
    return np.asarray((points - solid.centre) @ _turn(solid.yaw))


def _turn(yaw: float) -> Array:
    """Its columns are a solid's axes."""
    return np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])


def _towards(origin: Array, rays: Array, lengths: Array, solid: Solid) -> Array:
    """The rays that may meet a solid: those within the cone about the ball that holds it."""
    way = solid.centre - origin
    distance, radius = np.linalg.norm(way), np.linalg.norm(solid.half)
    if distance <= radius:
        return np.arange(len(rays))
    least = np.sqrt(1 - (radius / distance) ** 2)
    return np.flatnonzero(rays @ (way / distance) >= (least - 1e-9) * lengths)


# --- Where rays meet solids that stand at the origin, and the normals there -----------------------
# (origin [3], rays [N, 3], half [3]) -> (steps [N], inf where they do not meet, normals [N, 3])


def _slabs(origin: Array, rays: Array, half: Array) -> tuple[Array, Array]:
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (-half - origin) / rays, (half - origin) / rays
    return np.minimum(first, second), np.maximum(first, second)


def _along(rays: Array, axis: Array, sign: float) -> Array:
    normal = np.zeros_like(rays)
    at = np.arange(len(rays))
    normal[at, axis] = sign * np.sign(rays[at, axis])
    return normal


def _box(origin: Array, rays: Array, half: Array) -> tuple[Array, Array]:
    enter, leave = _slabs(origin, rays, half)
    axis = enter.argmax(axis=1)
    steps = enter.max(axis=1)
    met = (steps < leave.min(axis=1)) & (steps > NEAR)
    return np.where(met, steps, np.inf), _along(rays, axis, -1)


def _room(origin: Array, rays: Array, half: Array) -> tuple[Array, Array]:
    _, leave = _slabs(origin, rays, half)
    return leave.min(axis=1), _along(rays, leave.argmin(axis=1), -1)


def _ellipsoid(origin: Array, rays: Array, half: Array) -> tuple[Array, Array]:
    start, ways = origin / half, rays / half
    steps = _roots(ways, start)
    points = origin + np.where(np.isfinite(steps), steps, 0.0)[:, None] * rays
    normal = points / half**2
    return steps, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def _cylinder(origin: Array, rays: Array, half: Array) -> tuple[Array, Array]:
    side = _roots(rays[:, :2] / half[:2], origin[:2] / half[:2])
    with np.errstate(divide="ignore", invalid="ignore"):
        side = np.where(np.abs(origin[2] + side * rays[:, 2]) <= half[2], side, np.inf)
        top = (np.copysign(half[2], -rays[:, 2]) - origin[2]) / rays[:, 2]
        across = (origin[:2] + top[:, None] * rays[:, :2]) / half[:2]
    top = np.where((np.sum(across**2, axis=1) <= 1) & (top > NEAR), top, np.inf)
    steps = np.minimum(side, top)
    points = origin + np.where(np.isfinite(side), side, 0.0)[:, None] * rays
    normal = np.column_stack([points[:, :2] / half[:2] ** 2, np.zeros(len(rays))])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    upright = np.column_stack([np.zeros((len(rays), 2)), -np.sign(rays[:, 2])])
    return steps, np.where((top < side)[:, None], upright, normal)


def _roots(ways: Array, start: Array) -> Array:
    """Steps to the unit sphere, from outside."""
    a, b = np.sum(ways**2, axis=1), ways @ start
    under = b**2 - a * (start @ start - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = (-b - np.sqrt(np.maximum(under, 0))) / a
    return np.where((under > 0) & (steps > NEAR), steps, np.inf)


MEET: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "box": _box,
    "room": _room,
    "ellipsoid": _ellipsoid,
    "cylinder": _cylinder,
}


# --- Pictures -------------------------------------------------------------------------------------


def picture(
    camera: Camera, solids: Sequence[Solid], shade: Callable[[Array, Hits], Array]
) -> tuple[Hits, Array]:
    """What all pixels see at their centres, and the picture, ``[H, W, 3]``, smooth at edges.

    ``shade(rays, hits)`` tells colours.
    """
    rays = centres(camera)
    hits = trace(camera.position, rays, solids)
    colours = shade(rays, hits)
    numbers = hits.number.reshape(camera.height, camera.width)
    edge = np.zeros(numbers.shape, bool)
    down, right = numbers[1:] != numbers[:-1], numbers[:, 1:] != numbers[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    rows, columns = np.nonzero(edge)
    down_by, right_by = np.array([[0.125, 0.375, 0.625, 0.875], [0.625, 0.125, 0.875, 0.375]])
    parts = camera.rays((rows[:, None] + down_by).ravel(), (columns[:, None] + right_by).ravel())
    smooth = shade(parts, trace(camera.position, parts, solids))
    image = colours.reshape(camera.height, camera.width, 3)
    image[rows, columns] = smooth.reshape(len(rows), -1, 3).mean(axis=1)
    return hits, image


def waves(draws: np.random.Generator, size: Sequence[int], cells: float) -> Array:
    """Smooth noise over a picture, ``[H, W]`` in [0, 1], whose blots are 1/cells of the height."""
    y, x = np.mgrid[: size[0], : size[1]] / size[0] * cells
    total = np.zeros(tuple(size))
    for _ in range(6):
        angle, phase = draws.uniform(0, 2 * np.pi, 2)
        total += np.sin(
            3 * (np.cos(angle) * x + np.sin(angle) * y) * draws.uniform(0.6, 1.6) + phase
        )
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-12))
