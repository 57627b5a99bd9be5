r"""CityScapes, two tasks on streets: ``python -m famo_jax.experiments.cityscapes``.

The problem is that of :mod:`famo_jax.experiments.problems.dense`, the data are the official ones
(MTAN's, 128 x 256, seven classes), or drawn in their format. What counts is as on NYU-v2. Depth is
inverse depth, nearly 0 far away, so that relative errors are large.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _scenes

PRESETS = {
    "paper": {**_scenes.PAPER, "batch_size": 8},
    "small": _scenes.SMALL,
    "tiny": _scenes.TINY,
}
# Table 3 of the paper: mIoU, pixel accuracy, absolute and relative error. There the row of ls
# repeats that of si; this one is of the Nash-MTL paper's Table 3, where the others are from.
PAPER = {
    "ls": (75.18, 93.49, 0.0155, 46.77),
    "si": (70.95, 91.73, 0.0161, 33.83),
    "rlw": (74.57, 93.41, 0.0158, 47.79),
    "dwa": (75.24, 93.52, 0.0160, 44.37),
    "uw": (72.02, 92.85, 0.0140, 30.13),
    "mgda": (68.84, 91.54, 0.0309, 33.50),
    "pcgrad": (75.13, 93.48, 0.0154, 42.07),
    "graddrop": (75.27, 93.53, 0.0157, 47.54),
    "cagrad": (75.16, 93.48, 0.0141, 37.60),
    "imtl-g": (75.33, 93.49, 0.0135, 38.41),
    "nash-mtl": (75.41, 93.66, 0.0129, 35.02),
    "famo": (74.54, 93.29, 0.0145, 32.59),
}


def benchmark() -> Any:
    """What is run."""
    from famo_jax.experiments.problems import dense

    return dense.CITYSCAPES


def look() -> Any:
    """How it is coloured."""
    from famo_jax.experiments.problems import _views

    return _views.STREETS


STUDY = _scenes.study(
    "cityscapes",
    "CityScapes: classes and inverse depth of streets, as in the paper",
    benchmark,
    look,
    PRESETS,
    PAPER,
    "--gamma 1e-2 --inverse-depth divide",
    {
        "inverse_depth": _scenes.one_of(
            "divide multiply", "by the scale of an enlarged crop; divide is official"
        )
    },
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
