r"""NYU-v2, three tasks on indoor scenes: ``python -m famo_jax.experiments.nyuv2``.

The problem is that of :mod:`famo_jax.experiments.problems.dense`, the data are the official ones
(MTAN's, 288 x 384), or drawn in their format. As in the official code the metrics are those on the
test set, mean over the last ten of 200 epochs; there is no validation set, unless ``--held-out``
sets training scenes apart.
"""

import functools
from typing import Any

from famo_jax.experiments import _command, _scenes

PRESETS = {
    "paper": {**_scenes.PAPER, "batch_size": 2},
    "small": _scenes.SMALL,
    "tiny": _scenes.TINY,
}
# Table 1 of the paper: mIoU, pixel accuracy, absolute and relative error, mean and median angle,
# shares within 11.25, 22.5 and 30 degrees.
PAPER = {
    "ls": (39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08),
    "si": (38.45, 64.27, 0.5354, 0.2201, 27.60, 23.37, 22.53, 48.57, 62.32),
    "rlw": (37.17, 63.77, 0.5759, 0.2410, 28.27, 24.18, 22.26, 47.05, 60.62),
    "dwa": (39.11, 65.31, 0.5510, 0.2285, 27.61, 23.18, 24.17, 50.18, 62.39),
    "uw": (36.87, 63.17, 0.5446, 0.2260, 27.04, 22.61, 23.54, 49.05, 63.65),
    "mgda": (30.47, 59.90, 0.6070, 0.2555, 24.88, 19.45, 29.18, 56.88, 69.36),
    "pcgrad": (38.06, 64.64, 0.5550, 0.2325, 27.41, 22.80, 23.86, 49.83, 63.14),
    "graddrop": (39.39, 65.12, 0.5455, 0.2279, 27.48, 22.96, 23.38, 49.44, 62.87),
    "cagrad": (39.79, 65.49, 0.5486, 0.2250, 26.31, 21.58, 25.61, 52.36, 65.58),
    "imtl-g": (39.35, 65.60, 0.5426, 0.2256, 26.02, 21.19, 26.20, 53.13, 66.24),
    "nash-mtl": (40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.40, 55.47, 68.15),
    "famo": (38.88, 64.90, 0.5474, 0.2194, 25.06, 19.57, 29.21, 56.61, 68.98),
}


def benchmark() -> Any:
    """What is run."""
    from famo_jax.experiments.problems import dense

    return dense.NYUV2


def look() -> Any:
    """How it is coloured."""
    from famo_jax.experiments.problems import _views

    return _views.ROOMS


STUDY = _scenes.study(
    "nyuv2",
    "NYU-v2: classes, depth and normals of indoor scenes, as in the paper",
    benchmark,
    look,
    PRESETS,
    PAPER,
    "--gamma 1e-3",
    {},
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
