"""What the experiments report: errors of means, times that can be compared, strict JSON."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import numpy.typing as npt
import optax

import famo_jax

Array = npt.NDArray[Any]

UNFINISHED = ".tmp"  # at the end of the name of what is being written


def standard_error(values: Array) -> float:
    """Of the mean of ``[n]`` values; NaN for a single one."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def interleaved_seconds(
    functions: Mapping[str, Callable[[], Any]], rounds: int = 25
) -> dict[str, list[float]]:
    """Times functions that return JAX arrays, in turns, so that all meet the same disturbances.

    Returns:
      ``rounds`` wall times of each, in seconds, after one call that is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for counts in [False] + rounds * [True]:
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if counts:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def quartiles(values: list[float]) -> list[float]:
    """The first quartile, the median and the third."""
    return statistics.quantiles(values, n=4)


def environment() -> dict[str, Any]:
    """What the figures depend on besides the settings."""
    return {
        "famo_jax": famo_jax.__version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON: arrays as lists, and null for what is not finite."""
    write_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes all of it or nothing: what was there stays until all is written."""
    unfinished = path.with_name(path.name + UNFINISHED)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, np.ndarray | np.generic):
        return _plain(content.tolist())
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content
