"""Means, errors, choices: NumPy and SciPy alone, so that a report needs no device."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

Array = npt.NDArray[Any]
Estimate = dict[str, float]  # mean, se, low, high: the ends are those of the 95% interval


def estimate(values: npt.ArrayLike) -> Estimate:
    """The mean of ``[n]`` values, its standard error and 95% interval by Student's t.

    Of a single value there is no error: NaN.
    """
    array = np.asarray(values, np.float64)
    n = len(array)
    mean = float(array.mean())
    se = float(np.std(array, ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    half = float(scipy.stats.t.ppf(0.975, n - 1) * se) if n > 1 else np.nan
    return {"mean": mean, "se": se, "low": mean - half, "high": mean + half}


def difference(values: npt.ArrayLike) -> Estimate:
    """The mean of ``[n]`` paired differences, its interval, and ``p`` by Student's t."""
    array = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = array.mean() / scipy.stats.sem(array) if len(array) > 1 else np.nan
    return estimate(array) | {"p": float(2 * scipy.stats.t.sf(abs(t), len(array) - 1))}


def holm(p_values: npt.ArrayLike) -> Array:
    """P values corrected for their number (Holm 1979). NaN is none at all: 1."""
    p = np.nan_to_num(np.asarray(p_values, np.float64), nan=1.0)
    order = np.argsort(p)
    steps = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def geometric(values: npt.ArrayLike) -> Estimate:
    """The geometric mean of ``[n]`` values, and its interval from that of their logarithms."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = estimate(np.log(np.asarray(values, np.float64)))
        return {key: float(np.exp(logs[key])) for key in ("mean", "low", "high")}


def finite(values: npt.ArrayLike) -> Array:
    """In float64, with NaN for all that a run which diverged left behind."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def choose(scores: npt.ArrayLike) -> int:
    """Where the least score is. NaN is never the least."""
    array = np.asarray(scores, np.float64)
    return int(np.argmin(np.where(np.isfinite(array), array, np.inf)))


def edges(
    settings: Sequence[Mapping[str, float]], grid: Mapping[str, Sequence[float]]
) -> list[str]:
    """What was chosen at an end of its list: a better value may lie beyond, but for 0."""
    found = {
        f"{name.replace('_', ' ')} {value:g}": None
        for name, value in itertools.chain(*(setting.items() for setting in settings))
        if value and len(grid.get(name, ())) > 1 and value in (min(grid[name]), max(grid[name]))
    }
    return list(found)


def changes(values: npt.ArrayLike, baseline: npt.ArrayLike, higher_is_better: Any = False) -> Array:
    """How much worse metrics ``[..., K]`` are than a baseline's, in percent each."""
    values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    with np.errstate(invalid="ignore"):
        worse = np.where(higher_is_better, -1, 1) * (values - baseline) / baseline
    return np.asarray(100 * worse)


def delta_m(values: npt.ArrayLike, baseline: npt.ArrayLike, higher_is_better: Any = False) -> Array:
    """Their mean over tasks, ``[...]``."""
    return np.asarray(changes(values, baseline, higher_is_better).mean(axis=-1))


def mean_ranks(values: Array, higher_is_better: Any = False) -> Array:
    """Of methods by ``[methods, K]`` metrics, mean over metrics: 1 is best, NaN comes last."""
    costs = np.where(higher_is_better, -1, 1) * values
    ranks = scipy.stats.rankdata(np.where(np.isnan(costs), np.inf, costs), axis=0)
    return np.asarray(ranks.mean(axis=1))


def thin(curve: Array, points: int = 100, axis: int = 0) -> Array:
    """Means over at most ``points`` stretches of steps of equal length."""
    parts = np.array_split(curve, min(points, curve.shape[axis]), axis=axis)
    return np.stack([part.mean(axis=axis) for part in parts], axis=axis)


def middles(steps: int, points: int) -> Array:
    """Where the points of a thinned curve are on the axis of the steps, ``[points]``."""
    return np.array([part.mean() for part in np.array_split(np.arange(steps), points)])


def quartiles(values: npt.ArrayLike) -> dict[str, float]:
    """The median and what lies about it."""
    q1, median, q3 = map(float, np.quantile(np.asarray(values), [0.25, 0.5, 0.75]))
    return {"q1": q1, "median": median, "q3": q3}
