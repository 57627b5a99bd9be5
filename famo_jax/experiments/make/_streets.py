"""Streets in CityScapes' format: what a car sees ahead, and the inverse of how far away it is.

A scene is a pure function of its seed. Inverse depth is ``SCALE / depth`` up to rounding, as a pair
of cameras tells it. It is 0, missing, in the sky, on the hood of the own car, in blots and at the
left border, where one of the two sees nothing; labels are missing on the hood and in blots.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from famo_jax.experiments.make import _paint, _rays
from famo_jax.experiments.make._rays import VOID, Solid, block, pick
from famo_jax.experiments.problems._dense_files import CITYSCAPES_CLASSES

Array = npt.NDArray[Any]

FLAT, CONSTRUCTION, OBJECT, NATURE, SKY, HUMAN, VEHICLE = range(len(CITYSCAPES_CLASSES))
SCALE = 0.3  # metres; the median is then about 0.02
SUN = np.array([-0.5, -0.35, 0.79])
HAZE = np.array([0.80, 0.84, 0.88])
FACADES = (
    *((0.72, 0.62, 0.50), (0.62, 0.42, 0.34), (0.78, 0.74, 0.66), (0.55, 0.55, 0.56)),
    *((0.80, 0.70, 0.48), (0.66, 0.56, 0.52)),
)
CARS = (
    *((0.55, 0.10, 0.10), (0.12, 0.20, 0.42), (0.75, 0.76, 0.78), (0.13, 0.13, 0.14)),
    *((0.86, 0.86, 0.84), (0.30, 0.36, 0.34), (0.70, 0.55, 0.15)),
)
SKINS = (0.85, 0.66, 0.53), (0.62, 0.44, 0.32), (0.40, 0.28, 0.20)


def scene(seed: Sequence[int], size: Sequence[int]) -> dict[str, Array]:
    """The arrays of a picture, ``[H, W, ...]``, in the types that files have."""
    draws = np.random.default_rng(list(seed))
    solids, camera = built(draws, size)
    sun = SUN * [draws.choice([-1, 1]) * draws.uniform(0.3, 1.3), draws.uniform(-1, 1), 1]
    hits, image = _rays.picture(camera, solids, _shader(solids, sun, draws.uniform(0, 9, 2)))
    whole = hits.depth.reshape(size)
    own = np.array([*(solid.label for solid in solids), SKY])
    label = own[hits.number].reshape(size)
    image += np.random.default_rng([*seed, 1]).normal(scale=0.01, size=image.shape)
    hood = _hood(draws, size)
    image[hood] = _metal(draws, size)[hood]
    blots = [_rays.waves(np.random.default_rng([*seed, part]), size, 5) for part in (2, 3)]
    strip = np.arange(size[1]) < size[1] // 20
    missing = (blots[0] > 0.95) | hood | strip
    return {
        "image": np.clip(image, 0, 1).astype(np.float32),
        "label_7": np.where(hood | (blots[1] > 0.95), VOID, label).astype(np.float32),
        # What no ray meets is infinitely far away.
        "depth": np.where(missing, 0, SCALE / whole).astype(np.float32)[..., None],
    }


def _hood(draws: np.random.Generator, size: Sequence[int]) -> Array:
    """The own car, at the lower border."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    across = (x / size[1] - 0.5) / 0.5
    return np.asarray(
        y / size[0] > 1.0 - draws.uniform(0.06, 0.1) * np.sqrt(np.maximum(1 - across**2, 0))
    )


def _metal(draws: np.random.Generator, size: Sequence[int]) -> Array:
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    gleam = 0.16 + 0.5 * np.exp(-(((x - draws.uniform(0.3, 0.7)) / 0.14) ** 2)) * (1.0 - y) * 6
    return np.asarray(gleam[..., None] * np.array([0.9, 0.95, 1.05]))


def _shader(solids: list[Solid], sun: Array, clouds: Array) -> Callable[[Array, _rays.Hits], Array]:
    """Sun, sky, haze with distance; and clouds."""
    lamp = 400 * sun / np.linalg.norm(sun)

    def shade(rays: Array, hits: _rays.Hits) -> Array:
        colours, shining = _paint.painted(solids, hits)
        direct = _rays.lit(lamp, hits, solids)
        light = 0.27 + 0.12 * hits.normal[:, 2] + 0.85 * direct
        colours = colours * np.where(shining, 1.0, light)[:, None] * [1.04, 1.0, 0.95]
        seen = np.isfinite(hits.depth)
        away = np.where(seen, hits.depth, 0.0) * np.linalg.norm(rays, axis=1)
        clear = np.exp(-away / 180)[:, None]
        colours = np.where(seen[:, None], clear * colours + (1 - clear) * HAZE, _sky(rays, clouds))
        return np.clip(colours, 0, 1) ** (1 / 1.5)

    return shade


def _sky(rays: Array, clouds: Array) -> Array:
    up = np.clip(rays[:, 2] / np.linalg.norm(rays, axis=1), 0.02, 1)[:, None]
    blue = np.array([0.30, 0.50, 0.78]) + (HAZE - [0.30, 0.50, 0.78]) * np.exp(-5 * up)
    # Where a ray meets the clouds' height.
    place = rays[:, :2] / up / np.linalg.norm(rays, axis=1, keepdims=True) * 2 + clouds
    puff = sum(
        np.sin(k * place[:, 0] + np.sin(k * place[:, 1] + k))
        * np.sin(1.3 * k * place[:, 1] + k)
        / k
        for k in (1, 2, 4)
    )
    cover = np.clip(puff - 0.1, 0, 0.8)[:, None] * np.clip(6 * up - 0.2, 0, 1)
    return np.asarray(blue + (np.array([0.92, 0.92, 0.93]) - blue) * cover)


# --- What stands in a street ----------------------------------------------------------------------


def _car(draws: np.random.Generator, x: float, y: float, away: bool) -> list[Solid]:
    """Seen from behind where it drives away."""
    yaw = np.pi * away + draws.normal(scale=0.02)
    colour, w = pick(draws, CARS), draws.uniform(0.82, 0.92)
    length, height = draws.uniform(1.9, 2.3), draws.uniform(0.27, 0.32)
    body = block(x, y, 0.25, (w, length, height), VEHICLE, colour, "car", yaw=yaw)
    ahead = np.array([-np.sin(yaw), np.cos(yaw)]) * -0.25
    top = 0.25 + 2 * height
    cabin = block(
        x + ahead[0],
        y + ahead[1],
        top - 0.02,
        (w * 0.86, length * 0.52, 0.27),
        VEHICLE,
        colour,
        "cabin",
        yaw=yaw,
    )
    wheels = _wheels(x, y, np.array([w - 0.08, length * 0.62]), (0.12, 0.31, 0.31), yaw)
    return [body, cabin, *wheels]


def _wheels(x: float, y: float, at: Array, half: Sequence[float], yaw: float = 0.0) -> list[Solid]:
    """Four, of which ``at`` tells where the one ahead on the right is."""
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    places = [turn @ (at * sign) for sign in ([1, 1], [1, -1], [-1, 1], [-1, -1])]
    black = (0.06, 0.06, 0.06)
    return [
        block(x + dx, y + dy, 0, half, VEHICLE, black, kind="ellipsoid", yaw=yaw)
        for dx, dy in places
    ]


def _truck(draws: np.random.Generator, x: float, y: float) -> list[Solid]:
    """A van, a lorry or a bus, which has windows."""
    colour, length = pick(draws, CARS), draws.uniform(2.8, 4.5)
    half = (1.1, length, draws.uniform(0.95, 1.25))
    body = block(x, y, 0.4, half, VEHICLE, colour, "cabin" if length > 4 else "car")
    return [body, *_wheels(x, y, np.array([0.95, length * 0.7]), (0.15, 0.42, 0.42))]


def _person(draws: np.random.Generator, x: float, y: float) -> list[Solid]:
    """Mid-stride."""
    tall, skin, step = draws.uniform(0.92, 1.08), pick(draws, SKINS), draws.uniform(0.06, 0.16)
    shirt, trousers = draws.uniform(0.1, 0.85, 3), draws.uniform(0.08, 0.35, 3)
    hair = draws.uniform(0.03, 0.35, 3) * [1, 0.8, 0.6]
    leg, arm = (0.085 * tall, 0.11, 0.42 * tall), (0.06, 0.08, 0.3 * tall)
    parts = [
        block(x, y, 0.76 * tall, (0.22, 0.15, 0.36 * tall), HUMAN, shirt, kind="ellipsoid"),
        block(x, y, 1.44 * tall, (0.105, 0.11, 0.145 * tall), HUMAN, skin, kind="ellipsoid"),
        block(x, y + 0.01, 1.58 * tall, (0.11, 0.115, 0.085), HUMAN, hair, kind="ellipsoid"),
    ]
    for side in (-1, 1):
        foot = x + side * step, y + side * 0.1
        parts.append(block(*foot, 0.0, leg, HUMAN, trousers, kind="cylinder"))
        hand = x + side * 0.24, y - side * 0.05
        parts.append(block(*hand, 0.8 * tall, arm, HUMAN, shirt * 0.9, kind="ellipsoid"))
    return parts


def _tree(draws: np.random.Generator, x: float, y: float) -> list[Solid]:
    height, wide = draws.uniform(1.1, 1.7), draws.uniform(1.1, 1.8)
    green = np.array([0.24, 0.42, 0.14]) * draws.uniform(0.8, 1.25, 3)
    parts = [block(x, y, 0, (0.14, 0.14, height), NATURE, (0.32, 0.24, 0.17), kind="cylinder")]
    for _ in range(6):
        dx, dy = draws.normal(scale=0.45 * wide, size=2)
        half = draws.uniform(0.55, 0.95, 3) * [wide, wide, wide * 0.85]
        z = 2 * height - 0.5 + draws.uniform(0, 1.1) * wide
        parts.append(
            block(
                x + dx,
                y + dy,
                z,
                half,
                NATURE,
                green * draws.uniform(0.85, 1.15),
                "leaves",
                "ellipsoid",
            )
        )
    return parts


def _post(draws: np.random.Generator, x: float, y: float, inward: float) -> list[Solid]:
    """A street lamp, traffic lights or a sign."""
    grey, kind = (0.35, 0.36, 0.37), draws.choice(["lamp", "lights", "sign"])
    height = {"lamp": 3.2, "lights": 1.7, "sign": 1.25}[kind]
    parts = [block(x, y, 0, (0.075, 0.075, height), OBJECT, grey, kind="cylinder")]
    if kind == "lamp":
        parts.append(
            block(x + 0.7 * inward, y, 2 * height - 0.06, (0.75, 0.05, 0.04), OBJECT, grey)
        )
        parts.append(
            block(
                x + 1.4 * inward,
                y,
                2 * height - 0.14,
                (0.35, 0.12, 0.06),
                OBJECT,
                (0.85, 0.85, 0.8),
            )
        )
    elif kind == "lights":
        parts.append(
            block(
                x,
                y - 0.1,
                2 * height - 1.0,
                (0.17, 0.13, 0.5),
                OBJECT,
                draws.uniform(0, 1, 3),
                "signal",
            )
        )
    else:
        colour = pick(
            draws, ((0.75, 0.08, 0.08), (0.1, 0.22, 0.6), (0.1, 0.22, 0.6), (0.85, 0.7, 0.1))
        )
        parts.append(
            block(x, y - 0.09, 2 * height - 0.65, (0.34, 0.02, 0.34), OBJECT, colour, "sign")
        )
    return parts


# --- Streets --------------------------------------------------------------------------------------


def built(draws: np.random.Generator, size: Sequence[int]) -> tuple[list[Solid], _rays.Camera]:
    """A street along y, and the camera of a car on its right lane."""
    road = draws.uniform(4.7, 5.8)  # half of its width
    walk = draws.uniform(2.2, 3.4)
    solids = [
        block(0, 150, -0.5, (road, 160, 0.25), FLAT, (0.33, 0.33, 0.35), "road"),
        block(0, 150, -1.2, (160, 160, 0.34), NATURE, (0.30, 0.42, 0.18), "grass"),
    ]
    for side in (-1, 1):
        solids += _side(draws, side, road, walk)
    lane = 0.37 * road
    solids += _car(draws, lane * draws.uniform(0.9, 1.1), draws.uniform(9, 35), True)
    for y in draws.uniform(14, 60, int(draws.integers(1, 3))):
        solids += _truck(draws, -lane, y) if draws.random() < 0.25 else _car(draws, -lane, y, False)
    if draws.random() < 0.4:  # somebody crosses
        solids += _person(draws, draws.uniform(-road, road), draws.uniform(9, 16))
    # Where the street ends.
    end = draws.uniform(90, 140)
    if draws.random() < 0.5:
        half = (draws.uniform(8, 16), 6, draws.uniform(4, 9))
        solids.append(
            block(
                draws.uniform(-12, 12),
                end + 6,
                0,
                half,
                CONSTRUCTION,
                pick(draws, FACADES),
                "facade",
            )
        )
    for x in np.arange(-40, 41, 9.0):
        solids.append(
            block(
                x,
                end + 20,
                -2,
                draws.uniform([5, 4, 3], [9, 6, 7]),
                NATURE,
                (0.22, 0.36, 0.15),
                "leaves",
                "ellipsoid",
            )
        )
    camera = _rays.camera_at(
        (lane + draws.uniform(-0.4, 0.4), 0.0, draws.uniform(1.2, 1.45)), draws.uniform(-0.06, 0.1),
        draws.uniform(-0.03, 0.02), draws.uniform(-0.015, 0.015), 1.105 * size[1], size,
    )  # fmt: skip
    return solids, camera


def _side(draws: np.random.Generator, side: int, road: float, walk: float) -> list[Solid]:
    """Pavement, parked cars, people, posts, trees and houses of one side, with gaps between."""
    edge = road + walk
    solids = [
        block(
            side * (road + walk / 2),
            150,
            -0.3,
            (walk / 2, 160, 0.2),
            FLAT,
            (0.52, 0.50, 0.50),
            "paving",
        )
    ]
    y = draws.uniform(-4, 6)
    while y < 110:
        length, kind = draws.uniform(8, 20), draws.random()
        if kind < 0.72:
            deep = draws.uniform(4, 6)
            x = side * (edge + deep + draws.choice([0.0, 0.0, 2.5]))
            half = (deep, length / 2, draws.uniform(3, 9))
            solids.append(
                block(x, y + length / 2, 0, half, CONSTRUCTION, pick(draws, FACADES), "facade")
            )
        elif kind < 0.86:
            half = (0.15, length / 2, draws.uniform(0.5, 0.9))
            solids.append(
                block(
                    side * (edge + 0.3),
                    y + length / 2,
                    0,
                    half,
                    CONSTRUCTION,
                    (0.60, 0.38, 0.30),
                    "bricks",
                )
            )
            solids += _tree(draws, side * (edge + 3), y + length / 2)
        else:
            for at in np.arange(y + 2, y + length, 4.0):
                solids += _tree(draws, side * (edge + draws.uniform(2, 5)), at)
        y += length + draws.choice([0.0, 0.0, 3.0])
    y = draws.uniform(4, 12)
    while y < 60:
        if draws.random() < 0.55:
            solids += _car(draws, side * (road - 1.0), y, side > 0)
        y += draws.uniform(5, 12)
    for at in np.arange(draws.uniform(6, 14), 70, draws.uniform(10, 17)):
        solids += _post(draws, side * (road + 0.4), at, -side)
        if draws.random() < 0.45:
            solids += _tree(draws, side * (road + 0.9), at + 5)
    for _ in range(int(draws.integers(2, 6))):
        solids += _person(
            draws, side * (road + draws.uniform(0.8, walk - 0.4)), draws.uniform(7, 35)
        )
    return solids
