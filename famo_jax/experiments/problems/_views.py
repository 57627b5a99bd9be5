"""What is known, or told, of a scene's pixels, as colours."""

from typing import Any, NamedTuple

import matplotlib
import numpy as np

from famo_jax.experiments._files import Array
from famo_jax.experiments.problems._dense_files import CITYSCAPES_CLASSES, NYUV2_CLASSES


class Look(NamedTuple):
    """How scenes are coloured."""

    classes: tuple[str, ...]
    colours: Any  # of the classes
    most: float  # of depth
    inverse: bool  # whether what is far away has a depth of 0

    @property
    def palette(self) -> Array:
        """A colour a class, ``[classes + 1, 3]``, and black for what has none."""
        colours = matplotlib.colors.to_rgba_array(self.colours)
        return np.vstack([colours[:, :3], np.zeros(3)])

    def views(self, label: Any, depth: Any, normal: Any = None) -> list[Array]:
        """Classes, depth, and normals where they are known: uint8, ``[..., H, W, 3]`` each.

        Normals are red to the right, green up, blue to the viewer. Black is what is not known, or
        was told by a network that diverged.

        Args:
          label: ``[..., H, W]``, numbers of classes.
          depth: ``[..., H, W]``, 0 where it is not known.
          normal: ``[..., H, W, 3]``, 0 where it is not known.
        """
        label, depth = np.nan_to_num(label, nan=-1), np.nan_to_num(depth, posinf=0, neginf=0)
        share = np.clip(depth / self.most, 0, 1)
        near = matplotlib.colormaps["turbo"](share if self.inverse else 1 - share)[..., :3]
        found = [self.palette[label.astype(int)], np.where(depth[..., None] == 0, 0, near)]
        if normal is not None:
            normal = np.nan_to_num(normal)
            known = (normal != 0).any(axis=-1, keepdims=True)
            found.append(np.where(known, (normal + 1) / 2, 0))
        return [colours(each) for each in found]


def colours(picture: Any) -> Array:
    """Of numbers between 0 and 1: uint8."""
    return np.asarray(255 * np.clip(picture, 0, 1), np.uint8)


ROOMS = Look(
    tuple(NYUV2_CLASSES), matplotlib.colormaps["tab20"](np.arange(len(NYUV2_CLASSES))), 6.0, False
)
STREETS = Look(
    tuple(CITYSCAPES_CLASSES),
    ("#7a5c85", "#6b6b6b", "#e6cf3c", "#5d9440", "#79b4e0", "#d8273e", "#24348c"),
    0.06,
    True,
)
