"""Drawn faces in CelebA's format, each with the forty attributes.

A face is a pure function of its seed. How often an attribute occurs, and with which others, is near
CelebA's; 38 of them are drawn, and the two others follow from those by a rule.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from famo_jax.experiments.make import _attributes
from famo_jax.experiments.make._pen import MARGIN, SCALE, Pen, arc, tone
from famo_jax.experiments.problems._face_files import HEIGHT, NAMES, WIDTH

Array = npt.NDArray[Any]

SKINS = (244, 208, 178), (228, 182, 148), (198, 148, 112), (150, 104, 76), (108, 74, 54)
HAIR = {
    "Black_Hair": (28, 24, 26),
    "Blond_Hair": (222, 186, 112),
    "Brown_Hair": (104, 66, 38),
    "Gray_Hair": (172, 172, 176),
    "": (150, 70, 36),  # red, which has no name among the forty
}


def face(seed: Sequence[int]) -> tuple[Image.Image, Array]:
    """A picture, and 0 or 1 for each of NAMES."""
    draws = np.random.default_rng(list(seed))
    has = _attributes.attributes(draws)
    return drawn(has, draws), np.array([has[name] for name in NAMES], np.uint8)


# --- Drawing --------------------------------------------------------------------------------------


CX, EYES, MOUTH = WIDTH / 2, 111.0, 152.0  # as CelebA's faces are aligned


def drawn(has: dict[str, bool], draws: np.random.Generator) -> Image.Image:
    """A face. What is drawn from ``draws`` does not depend on its attributes."""
    skin_kind, shift, turn = (
        int(draws.choice(5, p=[0.35, 0.3, 0.2, 0.1, 0.05])),
        draws.normal(size=2),
        draws.normal(),
    )
    backdrop, clothes, eyes = (
        _muted(draws.uniform(*range_, 3)) for range_ in ((50, 240), (30, 220), (50, 140))
    )
    bright, seed = draws.uniform(-1, 1, 2), int(draws.integers(2**31))
    skin = np.array(SKINS[skin_kind]) * (1 + 0.06 * bright[0] * np.array([0.8, 1.0, 1.1]))
    if has["Pale_Skin"]:
        skin = 0.25 * skin + 0.75 * np.array([255, 243, 238])
    name = next((name for name in HAIR if name and has[name]), "")
    hair = np.array(HAIR[name]) * (1 + 0.12 * bright[1])
    wide = 44.0 + 8 * has["Chubby"] - 5 * has["Oval_Face"] + 2 * has["Male"]
    chin = 183.0 + 6 * has["Oval_Face"] - 2 * has["Chubby"] + 3 * has["Male"]
    pen = Pen(_out_of_focus(backdrop, draws))
    if not has["Bald"]:
        _back_hair(pen, has, hair, wide)
    _body(pen, has, skin, clothes, chin)
    _head(pen, has, skin, wide, chin)
    _eyes(pen, has, skin, hair, eyes)
    _nose(pen, has, skin)
    _mouth(pen, has, skin)
    _beard(pen, has, hair, wide, chin, np.random.default_rng(seed))
    if not has["Bald"]:
        _front_hair(pen, has, hair, wide)
    if has["Wearing_Hat"]:
        hat = tone(clothes[[2, 0, 1]], 0.9)
        pen.oval(CX, 62, wide + 4, 40, hat)
        pen.polygon(
            [[CX - wide - 20, 84], [CX + wide + 20, 84], [CX + wide + 6, 72], [CX - wide - 6, 72]],
            tone(hat, 0.75),
        )
        pen.polygon(
            [[CX - wide - 3, 72], [CX + wide + 3, 72], [CX + wide + 4, 64], [CX - wide - 4, 64]],
            tone(hat, 0.4),
        )
    if has["Eyeglasses"]:
        for side in (-1, 1):
            pen.oval(CX + 20 * side, EYES, 15, 11, (220, 235, 245, 60))
            pen.ring(CX + 20 * side, EYES + 1, 16, 12, (25, 22, 24), 2.2)
            pen.line(
                [[CX + 36 * side, EYES - 3], [CX + (wide + 1) * side, EYES - 6]], (25, 22, 24), 2.2
            )
        pen.line(arc(CX, EYES - 1, 5, 2.5), (25, 22, 24), 2.2)
    return _photographed(pen, has, shift, turn, np.random.default_rng(seed))


def _muted(colour: Array) -> Array:
    return np.asarray(0.5 * colour + 0.5 * colour.mean())


def _out_of_focus(colour: Array, draws: np.random.Generator) -> Image.Image:
    """What is behind a face, drawn small, as it is all blurred."""
    size = WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN
    image = Image.new("RGB", (size[0] // 2, size[1] // 2), tone(colour, 1))
    pen = ImageDraw.Draw(image, "RGBA")
    for _ in range(6):
        x, y, wide, bright = draws.uniform([0, 0, 8, 0.6], [*image.size, 30, 1.4])
        pen.ellipse((x - wide, y - wide, x + wide, y + wide), fill=tone(colour, bright, 150))
    large = size[0] * SCALE, size[1] * SCALE
    return image.filter(ImageFilter.GaussianBlur(4)).resize(large, Image.Resampling.BILINEAR)


def _photographed(
    pen: Pen, has: dict[str, bool], shift: Array, turn: float, draws: np.random.Generator
) -> Image.Image:
    """Lit from above, turned a little, and with a camera's noise."""
    angle, move = 2.5 * float(np.clip(turn, -2, 2)), np.clip(1.5 * shift, -3, 3).tolist()
    image = pen.image.reduce(SCALE).rotate(angle, Image.Resampling.BICUBIC, translate=move)
    image = image.crop((MARGIN, MARGIN, MARGIN + WIDTH, MARGIN + HEIGHT))
    if has["Blurry"]:
        image = image.filter(ImageFilter.GaussianBlur(3.5))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    light = 1.08 - 0.16 * y / HEIGHT - 0.10 * ((x - CX) / CX) ** 2
    noise = draws.normal(scale=1.0 if has["Blurry"] else 3.0, size=(HEIGHT, WIDTH, 1))
    return Image.fromarray(np.uint8(np.clip(np.asarray(image) * light[..., None] + noise, 0, 255)))


def _outline(has: dict[str, bool], wide: float, chin: float) -> Array:
    """Of the head, from ear to ear about the chin and back over the crown."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x, y = np.cos(angle), np.sin(angle)
    middle = 112.0
    full = 0.78 if has["Male"] else 1.0  # how square the jaw is
    jaw = np.sign(x) * np.abs(x) ** np.where(y > 0, full * (0.75 if has["Chubby"] else 0.95), 1.0)
    jaw *= 1 - 0.14 * np.clip(y, 0, 1) ** 2 * (not has["Chubby"])
    return np.stack(
        [CX + wide * jaw, middle + np.where(y > 0, (chin - middle) * y, 64 * y)], axis=-1
    )


def _head(pen: Pen, has: dict[str, bool], skin: Array, wide: float, chin: float) -> None:
    for side in (-1, 1):
        pen.oval(CX + side * (wide + 1), 118, 6, 11, tone(skin, 0.9))
        pen.oval(CX + side * (wide + 1), 118, 3, 7, tone(skin, 0.78))
        if has["Wearing_Earrings"]:
            pen.oval(CX + side * (wide + 4), 137, 4.2, 6.5, (150, 110, 20))
            pen.oval(CX + side * (wide + 4), 136, 3.2, 5, (250, 222, 110))
    if has["Double_Chin"]:
        pen.oval(CX, chin - 4, wide * 0.78, 15, tone(skin, 0.92))
        pen.line(arc(CX, chin - 2, wide * 0.62, -13), tone(skin, 0.66), 2.2)
    outline = _outline(has, wide, chin)
    pen.polygon(outline, tone(skin, 0.86))
    inner = (outline - [CX, 114]) * [0.9, 0.94] + [CX, 112]
    pen.polygon(inner, tone(skin, 1))
    pen.oval(CX, 78, 24, 12, tone(skin, 1.06, 90))
    if has["Bald"]:
        pen.oval(CX - 10, 62, 15, 7, (255, 255, 255, 90))
    if has["Double_Chin"]:
        pen.line(arc(CX, chin - 9, 17, -5), tone(skin, 0.74), 1.8)
    for side in (-1, 1):
        cheek = CX + 27 * side
        if has["High_Cheekbones"]:
            pen.oval(cheek, 130, 10, 5, tone(skin, 1.14, 170))
            pen.line(
                [[CX + 38 * side, 134], [CX + 26 * side, 145], [CX + 22 * side, 154]],
                tone(skin, 0.8, 190),
                4,
            )
        if has["Rosy_Cheeks"]:
            pen.oval(cheek, 136, 11, 9, (235, 70, 90, 95))
            pen.oval(cheek, 136, 7, 6, (235, 60, 85, 80))
        if not has["Young"]:
            line = tone(skin, 0.72)
            pen.line(
                [[CX + 13 * side, 136], [CX + 20 * side, 145], [CX + 23 * side, 156]], line, 1.6
            )
            for rise in (-4, 0, 4):
                pen.line(
                    [[CX + 33 * side, EYES + rise * 0.4], [CX + 40 * side, EYES + rise * 1.3]],
                    line,
                    1.1,
                )
    if not has["Young"]:
        for y in (76, 83, 90):
            pen.line(arc(CX, y, 24, 2), tone(skin, 0.78), 1.4)


def _body(pen: Pen, has: dict[str, bool], skin: Array, clothes: Array, chin: float) -> None:
    neck = 25 if has["Male"] else 19
    pen.oval(CX, 246, 88 if has["Male"] else 76, 52, tone(clothes, 1))
    pen.polygon(
        [[CX - neck, 150], [CX + neck, 150], [CX + neck + 3, 212], [CX - neck - 3, 212]],
        tone(skin, 0.84),
    )
    pen.oval(CX, 208, neck + 5, 12, tone(skin, 0.84))
    pen.oval(CX, chin + 2, neck - 2, 8, tone(skin, 0.7, 150))
    if has["Wearing_Necktie"]:
        pen.polygon(
            [[CX - 34, 196], [CX, 226], [CX + 34, 196], [CX + 40, 245], [CX - 40, 245]],
            (240, 240, 243),
        )
        tie = tone(clothes[[1, 2, 0]], 0.8)
        pen.polygon([[CX - 8, 205], [CX + 8, 205], [CX + 6, 214], [CX - 6, 214]], tone(tie, 0.8))
        pen.polygon([[CX - 6, 214], [CX + 6, 214], [CX + 13, 245], [CX - 13, 245]], tie)
    if has["Wearing_Necklace"]:
        for x, y in arc(CX, 196, neck + 3, -15, 15):
            pen.oval(x, y, 2.6, 2.6, (160, 120, 30))
            pen.oval(x - 0.4, y - 0.4, 1.9, 1.9, (252, 232, 150))


def _waved(has: dict[str, bool], x: Array, y: Array) -> Array:
    """An edge of hair: straight, in waves, or slightly uneven."""
    swing = 5.0 if has["Wavy_Hair"] else 0.0 if has["Straight_Hair"] else 1.6
    return np.stack([x + swing * np.sin(y / 5.5), y], axis=-1)


def _back_hair(pen: Pen, has: dict[str, bool], hair: Array, wide: float) -> None:
    behind = tone(hair, 0.8)
    if has["Male"]:
        pen.oval(CX, 84, wide + 4, 42, behind)
        return
    y = np.linspace(70, 208, 40)
    out = wide + 11 + 5 * has["Wavy_Hair"] + 6 * np.sin((y - 70) / 138 * np.pi)
    left, right = _waved(has, CX - out, y), _waved(has, CX + out, y)
    pen.oval(CX, 82, wide + 13, 46, behind)
    pen.polygon([*left, *right[::-1]], behind)
    for inset in (5, 12):  # strands
        pen.line(_waved(has, CX - out + inset, y), tone(hair, 1.05), 1.6)
        pen.line(_waved(has, CX + out - inset, y), tone(hair, 0.6), 1.6)


def _front_hair(pen: Pen, has: dict[str, bool], hair: Array, wide: float) -> None:
    """From the crown to the hairline."""
    at = np.linspace(-1, 1, 31)
    crown = np.stack(
        [CX + (wide + 5) * at, 88 - (56 + 4 * has["Wavy_Hair"]) * np.sqrt(1 - at**2)], axis=-1
    )
    if has["Receding_Hairline"]:
        line = 62 + 6 * np.cos(3 * np.pi * at) + 34 * np.abs(at) ** 5
    elif has["Bangs"]:
        line = 101 + 2.0 * np.sin(40 * at) + 6 * np.abs(at) ** 4
    else:
        line = 74 + 4 * at + 26 * np.abs(at) ** 3
    if has["Wavy_Hair"]:
        line = line + 2.5 * np.sin(22 * at)
    hairline = np.stack([CX + wide * at, line], axis=-1)
    pen.polygon([*crown, *hairline[::-1]], tone(hair, 1))
    for number in range(2, 29, 3 if has["Straight_Hair"] else 4):  # strands
        share = np.linspace(0.12, 0.94, 8)[:, None]
        strand = crown[number] * (1 - share) + hairline[number] * share
        strand[:, 0] += (2.2 if has["Wavy_Hair"] else 0) * np.sin(8 * share[:, 0])
        pen.line(strand, tone(hair, 0.78 if number % 2 else 1.22), 1.2)
    if has["Wavy_Hair"]:
        for x in at[3:-3:4]:
            pen.oval(
                CX + (wide + 3) * x, 89 - 58 * float(np.sqrt(1 - x**2)), 9, 7, tone(hair, 1.08)
            )
    side = 104 if has["Male"] else 128
    for sign in (-1, 1):
        x = CX + sign * wide
        pen.polygon(
            [
                [x + 5 * sign, 80],
                [x + 4 * sign, side],
                [x - 2 * sign, side - 6],
                [x - 5 * sign, 84],
            ],
            tone(hair, 0.92),
        )


def _eyes(pen: Pen, has: dict[str, bool], skin: Array, hair: Array, iris: Array) -> None:
    high = 2.6 if has["Narrow_Eyes"] else 6.2
    dark = tone(0.55 * hair + 0.12 * skin, 0.8)
    for side in (-1, 1):
        x = CX + 20 * side
        if has["Heavy_Makeup"]:
            pen.oval(x, EYES - 3, 14, 8.5, (110, 60, 130, 130))
            pen.oval(x, EYES - 2, 13, 7, (60, 40, 70, 110))
        if has["Bags_Under_Eyes"]:
            pen.oval(x, EYES + 11, 10, 4.5, tone(skin * [0.8, 0.7, 0.78], 1, 190))
            pen.line(arc(x, EYES + 11, 10, -5), tone(skin, 0.62), 1.7)
        pen.oval(x, EYES, 10.5, high, (247, 246, 244))
        pen.oval(x, EYES, min(5.2, high + 1.2), min(5.2, high), tone(iris, 1))
        pen.oval(x, EYES, min(2.5, high), min(2.5, high), (12, 10, 12))
        pen.oval(x - 1.8, EYES - min(2.0, high / 2), 1.2, 1.2, (255, 255, 255))
        lash = 3.0 if has["Heavy_Makeup"] else 1.4
        pen.line(arc(x, EYES - 0.5, 11, high), (30, 22, 24), lash)
        if has["Heavy_Makeup"]:
            pen.line([[x + 10 * side, EYES], [x + 15 * side, EYES - 5]], (30, 22, 24), 2)
        thick = 6.0 if has["Bushy_Eyebrows"] else 2.6
        rise = 7.5 if has["Arched_Eyebrows"] else 1.5
        pen.line(arc(x + side, EYES - 14, 13, rise), dark, thick)


def _nose(pen: Pen, has: dict[str, bool], skin: Array) -> None:
    line = tone(skin, 0.72)
    if has["Pointy_Nose"]:
        pen.polygon([[CX, 112], [CX + 6.5, 137], [CX, 141], [CX - 1, 137]], tone(skin, 0.83))
        pen.line([[CX - 1, 114], [CX - 5.5, 136], [CX, 141], [CX + 5.5, 136]], line, 1.6)
        pen.oval(CX - 1, 134, 1.6, 3.5, tone(skin, 1.2))
        return
    wide = 12.5 if has["Big_Nose"] else 7.0
    if has["Big_Nose"]:
        pen.oval(CX, 133, wide, 8, tone(skin, 0.92))
        pen.oval(CX, 131, wide * 0.55, 6, tone(skin, 1.07))
    pen.line([[CX + 4, 116], [CX + 0.5 * wide, 128]], tone(skin, 0.84), 1.8)
    for side in (-1, 1):
        pen.line(arc(CX + side * wide * 0.8, 136, 3.2, 4), line, 1.7)
        pen.oval(CX + side * wide * 0.42, 138, 1.2 + 0.13 * wide, 1.6, tone(skin, 0.5))
    pen.line(arc(CX, 138, wide * 0.5, -2.5), line, 1.5)


def _mouth(pen: Pen, has: dict[str, bool], skin: Array) -> None:
    lips = np.array([196, 30, 56]) if has["Wearing_Lipstick"] else skin * [0.86, 0.6, 0.58]
    smile, wide = (7.0, 23.0) if has["Smiling"] else (-1.0, 17.0)
    full = 6.5 if has["Big_Lips"] else 3.0
    gap = 8.0 if has["Mouth_Slightly_Open"] else 0.0
    middle = arc(CX, MOUTH - 0.4 * smile, wide, -smile)
    taper = (1 - np.linspace(-1, 1, len(middle)) ** 2) ** 0.7
    down = np.stack([np.zeros_like(taper), taper], axis=-1)
    upper = middle - down * (full + 0.3 * gap)
    lower = middle + down * (1.25 * full + 0.7 * gap)
    pen.polygon([*upper, *lower[::-1]], tone(lips, 1))
    pen.line(lower, tone(lips, 0.82), 1.2)
    if gap:
        inside = [*(middle - down * 0.3 * gap), *(middle + down * 0.7 * gap)[::-1]]
        pen.polygon(inside, (70, 18, 24))
        teeth = [*(middle - down * 0.3 * gap), *(middle + down * 0.15 * gap)[::-1]]
        pen.polygon(teeth, (246, 243, 236))
    else:
        pen.line(middle, tone(lips, 0.5), 1.5)
    if has["Smiling"]:
        for side in (-1, 1):
            x = CX + side * (wide + 3)
            pen.line(
                [[x - side, MOUTH - 8], [x + 2 * side, MOUTH - 3], [x, MOUTH + 3]],
                tone(skin, 0.72),
                1.7,
            )


def _beard(
    pen: Pen,
    has: dict[str, bool],
    hair: Array,
    wide: float,
    chin: float,
    draws: np.random.Generator,
) -> None:
    dark = tone(0.75 * hair, 1)
    if has["5_o_Clock_Shadow"]:
        outline = _outline(has, wide, chin)
        jaw = outline[outline[:, 1] > 126]
        jaw = jaw[np.argsort(jaw[:, 0])] + [0, -1]
        shade = [*jaw, [CX + 30, 143], *arc(CX, 146, 24, 4)[::-1], [CX - 30, 143]]
        pen.polygon(shade, (52, 54, 66, 105))
        for x, y in draws.uniform([6 - wide, 146], [wide - 6, chin - 4], (260, 2)):
            within = abs(x) < (wide - 4) * (1 - 0.5 * ((y - 146) / (chin - 146)) ** 2)
            if within and (abs(x) > 24 or y > 163):
                pen.oval(CX + x, y, 0.55, 0.55, (40, 38, 44, 170))
    if has["Goatee"]:
        pen.oval(CX, chin - 9, 14, 12, dark)
    for side in (-1, 1):
        if has["Goatee"]:
            strip = [[24 * side, 146], [25 * side, 160], [11 * side, chin - 6]]
            pen.line(np.array(strip, float) + np.array([CX, 0]), dark, 5)
        if has["Mustache"]:
            half = [[0, 141], [14 * side, 143], [25 * side, 151], [10 * side, 148.5], [0, 147]]
            pen.polygon(np.array(half) + np.array([CX, 0]), dark)
        if has["Sideburns"]:
            strip = [[side, 100], [-8 * side, 102], [-11 * side, 148], [-side, 142]]
            pen.polygon(np.array(strip) + np.array([CX + side * wide, 0]), dark)
