"""What faces are drawn with."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Colour = tuple[int, ...]

SCALE = 2  # of what is drawn, to be smooth when it is made smaller
MARGIN = 24  # about the picture, from which a turned head's corners come


class Pen:
    """Draws on a larger picture in the coordinates of the final one.

    A colour's fourth number, where it has one, says how much it covers, of 255.
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image, "RGBA")

    def _at(self, points: Any) -> list[float]:
        return [float(each) for each in ((np.asarray(points, float) + MARGIN) * SCALE).ravel()]

    def polygon(self, points: Any, colour: Colour) -> None:
        """Filled."""
        self._draw.polygon(self._at(points), fill=colour)

    def oval(self, x: float, y: float, wide: float, high: float, colour: Colour) -> None:
        """By its centre and half of its lengths."""
        self._draw.ellipse(self._at([[x - wide, y - high], [x + wide, y + high]]), fill=colour)

    def line(self, points: Any, colour: Colour, thick: float) -> None:
        """Through all points."""
        self._draw.line(
            self._at(points), fill=colour, width=max(1, round(thick * SCALE)), joint="curve"
        )

    def ring(
        self, x: float, y: float, wide: float, high: float, colour: Colour, thick: float
    ) -> None:
        """A rounded frame."""
        box = self._at([[x - wide, y - high], [x + wide, y + high]])
        self._draw.rounded_rectangle(
            box, 0.6 * high * SCALE, outline=colour, width=round(thick * SCALE)
        )


def tone(colour: Any, by: float, alpha: int | None = None) -> Colour:
    """A colour, lighter or darker, and how much it covers."""
    mixed = tuple(int(np.clip(each * by, 0, 255)) for each in colour[:3])
    return mixed if alpha is None else (*mixed, alpha)


def arc(x: float, y: float, wide: float, rise: float, count: int = 13) -> Array:
    """A bow whose middle is ``rise`` above its ends."""
    at = np.linspace(-1, 1, count)
    return np.stack([x + wide * at, y - rise * (1 - at**2)], axis=-1)
