"""Furniture of rooms, by NYU-v2's classes.

Each stands at a wall, or hangs at it: x along the wall, y away from it, z upwards.
"""

from typing import Any

import numpy as np

from famo_jax.experiments.make._rays import VOID, Solid, block, pick
from famo_jax.experiments.problems._dense_files import NYUV2_CLASSES

BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PAINTING, SOFA, TABLE, TV, WALL, WINDOW = (
    range(len(NYUV2_CLASSES))
)
WOODS = (0.62, 0.42, 0.24), (0.40, 0.25, 0.14), (0.75, 0.60, 0.42), (0.86, 0.84, 0.80)
CLOTHS = (
    (0.30, 0.38, 0.55),
    (0.55, 0.22, 0.20),
    (0.28, 0.45, 0.33),
    (0.70, 0.62, 0.50),
    (0.42, 0.36, 0.46),
)


def bed(draws: np.random.Generator) -> list[Solid]:
    """With pillows and a blanket."""
    wood, cloth = pick(draws, WOODS), pick(draws, CLOTHS)
    w, d = draws.uniform(0.5, 0.9), draws.uniform(0.95, 1.05)
    parts = [
        block(0, 0.04, 0, (w + 0.04, 0.04, draws.uniform(0.4, 0.6)), BED, wood, "wood"),
        block(0, d, 0.08, (w, d - 0.05, 0.1), BED, wood, "wood"),
        block(0, d, 0.28, (w - 0.02, d - 0.07, 0.11), BED, (0.9, 0.89, 0.86)),
        block(0, d + 0.3, 0.3, (w + 0.02, d - 0.33, 0.13), BED, cloth, "cloth"),
    ]
    count = 1 if w < 0.65 else 2
    for x in np.linspace(-0.5, 0.5, count + 2)[1:-1] * 2 * w if count > 1 else [0.0]:
        parts.append(
            block(x, 0.3, 0.45, (0.3, 0.2, 0.09), BED, (0.95, 0.94, 0.9), kind="ellipsoid")
        )
    return parts


def sofa(draws: np.random.Generator) -> list[Solid]:
    """With cushions and a pillow."""
    cloth = np.array(pick(draws, CLOTHS))
    w = draws.uniform(0.8, 1.1)
    parts = [
        block(0, 0.45, 0.06, (w, 0.4, 0.15), SOFA, cloth, "cloth"),
        block(0, 0.14, 0.06, (w, 0.12, 0.38), SOFA, cloth * 0.95, "cloth"),
        block(-w - 0.08, 0.45, 0.03, (0.1, 0.42, 0.29), SOFA, cloth * 0.9, "cloth"),
        block(w + 0.08, 0.45, 0.03, (0.1, 0.42, 0.29), SOFA, cloth * 0.9, "cloth"),
    ]
    for x in (-w / 2, w / 2):
        parts.append(block(x, 0.52, 0.36, (w / 2 - 0.02, 0.33, 0.07), SOFA, cloth * 1.1, "cloth"))
    pillow = pick(draws, CLOTHS)
    parts.append(
        block(
            draws.choice([-0.65, 0.6]) * w,
            0.36,
            0.46,
            (0.2, 0.1, 0.18),
            SOFA,
            pillow,
            kind="ellipsoid",
        )
    )
    return parts


def _legs(w: float, d: float, height: float, label: int, colour: Any, y: float) -> list[Solid]:
    return [
        block(x, y + by, 0, (0.025, 0.025, height / 2), label, colour)
        for x in (-w + 0.05, w - 0.05)
        for by in (-d + 0.05, d - 0.05)
    ]


def _things(
    draws: np.random.Generator, width: float, y: float, z: float, count: int
) -> list[Solid]:
    """What lies and stands about on something: vases, balls, boxes, lamps, piles of books."""
    parts = []
    for x in (np.arange(count) + draws.uniform(0.25, 0.75, count)) / max(
        count, 1
    ) * 2 * width - width:
        colour = draws.uniform(0.15, 0.9, 3)
        kind = draws.choice(["vase", "ball", "box", "lamp", "pile", "pile"])
        if kind == "vase":
            parts.append(block(x, y, z, (0.05, 0.05, 0.12), OBJECTS, colour, kind="cylinder"))
            parts.append(
                block(
                    x,
                    y,
                    z + 0.2,
                    (0.12, 0.12, 0.14),
                    OBJECTS,
                    (0.25, 0.5, 0.2),
                    "leaves",
                    "ellipsoid",
                )
            )
        elif kind == "ball":
            parts.append(block(x, y, z, (0.09, 0.09, 0.09), OBJECTS, colour, kind="ellipsoid"))
        elif kind == "box":
            label = VOID if draws.random() < 0.3 else OBJECTS
            parts.append(
                block(x, y, z, (0.09, 0.07, 0.08), label, colour, yaw=draws.uniform(-0.6, 0.6))
            )
        elif kind == "lamp":
            parts.append(
                block(x, y, z, (0.02, 0.02, 0.16), OBJECTS, (0.5, 0.45, 0.3), kind="cylinder")
            )
            parts.append(
                block(
                    x, y, z + 0.26, (0.12, 0.12, 0.1), OBJECTS, (1, 0.95, 0.75), "glow", "cylinder"
                )
            )
        else:
            for level in range(draws.integers(2, 5)):
                turn = draws.uniform(-0.4, 0.4)
                tone = draws.uniform(0.15, 0.85, 3)
                parts.append(
                    block(
                        x, y, z + 0.05 * level, (0.12, 0.09, 0.025), BOOKS, tone, "pages", yaw=turn
                    )
                )
    return parts


def _table(draws: np.random.Generator) -> tuple[list[Solid], float, float, float]:
    """Half its width, its middle and its height too."""
    wood = pick(draws, WOODS)
    w, d, height = draws.uniform(0.5, 0.9), draws.uniform(0.32, 0.42), draws.uniform(0.68, 0.76)
    y = d + 0.05
    top = block(0, y, height - 0.04, (w, d, 0.02), TABLE, wood, "wood")
    return [top, *_legs(w, d, height - 0.04, TABLE, wood, y)], w, y, height


def table(draws: np.random.Generator) -> list[Solid]:
    """With things on it."""
    parts, w, y, height = _table(draws)
    return [*parts, *_things(draws, w * 0.9, y, height, 3)]


def desk(draws: np.random.Generator) -> list[Solid]:
    """A table with a screen."""
    parts, w, y, height = _table(draws)
    screen = _screen(0, y - 0.1, height, draws.uniform(0.25, 0.33))
    return [*parts, *screen, *_things(draws, w * 0.3, y + 0.15, height, 1)]


def low_table(draws: np.random.Generator) -> list[Solid]:
    """Before a sofa."""
    wood = pick(draws, WOODS)
    w, d, height = draws.uniform(0.4, 0.6), draws.uniform(0.25, 0.32), draws.uniform(0.38, 0.45)
    parts = [
        block(0, d, height - 0.05, (w, d, 0.025), TABLE, wood, "wood"),
        *_legs(w, d, height - 0.05, TABLE, wood, d),
    ]
    return parts + _things(draws, w * 0.8, d, height, 2)


def chair(draws: np.random.Generator) -> list[Solid]:
    """Of wood, with a back."""
    colour = pick(draws, (*WOODS, *CLOTHS))
    parts = [
        block(0, 0.22, 0.42, (0.21, 0.21, 0.025), CHAIR, colour, "wood"),
        block(0, 0.03, 0.47, (0.2, 0.02, 0.25), CHAIR, colour, "wood"),
    ]
    return parts + _legs(0.23, 0.23, 0.42, CHAIR, colour, 0.22)


def _screen(x: float, y: float, z: float, w: float) -> list[Solid]:
    return [
        block(x, y, z, (0.12, 0.08, 0.01), TV, (0.1, 0.1, 0.1)),
        block(x, y, z + 0.02, (0.03, 0.02, 0.04), TV, (0.1, 0.1, 0.1)),
        block(x, y, z + 0.07, (w, 0.02, 0.6 * w), TV, (0.05, 0.05, 0.06), "screen"),
    ]


def bench(draws: np.random.Generator) -> list[Solid]:
    """A low cupboard with a television set."""
    w = draws.uniform(0.6, 0.9)
    parts = [block(0, 0.22, 0, (w, 0.2, 0.22), FURNITURE, pick(draws, WOODS), "drawers")]
    return parts + _screen(0, 0.2, 0.44, draws.uniform(0.4, 0.58))


def cupboard(draws: np.random.Generator) -> list[Solid]:
    """Of the height of a table, with things on it."""
    w, height = draws.uniform(0.35, 0.5), draws.uniform(0.38, 0.55)
    body = block(0, 0.24, 0, (w, 0.22, height), FURNITURE, pick(draws, WOODS), "drawers")
    return [body, *_things(draws, w * 0.8, 0.24, 2 * height, 2)]


def bedside(draws: np.random.Generator) -> list[Solid]:
    """A small cupboard with something on it."""
    body = block(0, 0.2, 0, (0.22, 0.18, 0.25), FURNITURE, pick(draws, WOODS), "drawers")
    return [body, *_things(draws, 0.1, 0.2, 0.5, 1)]


def wardrobe(draws: np.random.Generator) -> list[Solid]:
    """With two doors."""
    half = (draws.uniform(0.5, 0.8), 0.28, draws.uniform(0.95, 1.08))
    return [block(0, 0.3, 0, half, FURNITURE, pick(draws, WOODS), "doors")]


def shelf(draws: np.random.Generator) -> list[Solid]:
    """Boards between two sides, and books on them."""
    wood, w = pick(draws, WOODS), draws.uniform(0.4, 0.6)
    levels = int(draws.integers(3, 6))
    height = 0.36 * levels + 0.04
    parts = [block(x, 0.16, 0, (0.015, 0.14, height / 2), FURNITURE, wood) for x in (-w, w)]
    parts.append(block(0, 0.02, 0, (w, 0.008, height / 2), FURNITURE, np.array(wood) * 0.8))
    for level in range(levels + 1):
        z = 0.36 * level
        parts.append(block(0, 0.16, z, (w, 0.14, 0.015), FURNITURE, wood))
        if level < levels:
            left, right = sorted(draws.uniform(-w + 0.02, w - 0.02, 2))
            left, right = (left, right) if right - left > 0.3 else (-w + 0.03, w * 0.6)
            middle, tall = (left + right) / 2, draws.uniform(0.11, 0.14)
            half = ((right - left) / 2, 0.1, tall)
            parts.append(
                block(middle, 0.16, z + 0.03, half, BOOKS, draws.uniform(0.3, 0.8, 3), "spines")
            )
            if w - right > 0.25:
                parts += _things(draws, 0.01, 0.16, z + 0.03, 1)[:1]
    return parts


def window(draws: np.random.Generator) -> list[Solid]:
    """With a frame, and the sky behind it."""
    w, height = draws.uniform(0.45, 0.8), draws.uniform(0.5, 0.65)
    z, white = draws.uniform(0.85, 1.0), (0.92, 0.92, 0.9)
    parts = [block(0, 0.01, z, (w, 0.01, height), WINDOW, (1, 1, 1), "view")]
    for x in (-w, 0, w):
        parts.append(block(x, 0.03, z, (0.03, 0.03, height), WINDOW, white))
    for up in (0, 2 * height - 0.06):
        parts.append(block(0, 0.03, z + up, (w + 0.03, 0.03, 0.03), WINDOW, white))
    return parts


def painting(draws: np.random.Generator) -> list[Solid]:
    """In a frame."""
    w, height = draws.uniform(0.22, 0.5), draws.uniform(0.2, 0.35)
    z = 1.65 - height
    return [
        block(0, 0.012, z - 0.04, (w + 0.04, 0.012, height + 0.04), PAINTING, pick(draws, WOODS)),
        block(0, 0.016, z, (w, 0.016, height), PAINTING, draws.uniform(0.2, 0.8, 3), "painting"),
    ]
