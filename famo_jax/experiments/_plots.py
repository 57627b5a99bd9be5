"""Parts of pictures. As wide as a README shows them at 100 pixels an inch: 8 points are that."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Estimate = Mapping[str, float]  # mean, low and high

PALE = "#d8d8d8"
LINES = ("-", "--", ":", "-.")  # of tasks, whose colours would be those of methods


def style() -> contextlib.AbstractContextManager[None]:
    """Of all pictures."""
    return rc_context(
        {
            "font.size": 8,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.4,
            "legend.frameon": False,
        }
    )


@contextlib.contextmanager
def picture(height: float) -> Iterator[Figure]:
    """A figure to draw on, in the style of all, so many inches high."""
    with style():
        figure = Figure(figsize=(8.5, height), dpi=200, layout="constrained")
        yield figure
        figure.draw_without_rendering()  # in this style, and with all labels in place


def estimates(
    axes: Axes, rows: Mapping[str, tuple[Estimate, str, Sequence[float]]], xlabel: str
) -> None:
    """A row for each name: the mean, its 95% interval, and each seed.

    Args:
      axes: Where.
      rows: By name the estimate, the colour, and the values by seed.
      xlabel: What they are.
    """
    for place, (estimate, colour, seeds) in enumerate(rows.values()):
        axes.plot(seeds, np.full(len(seeds), place), ".", color=PALE, markersize=3, zorder=1)
        axes.plot(estimate["mean"], place, "o", color=colour, markersize=5, zorder=3)
        ends = [estimate["low"], estimate["high"]]
        if np.isfinite(ends).all():
            axes.plot(ends, [place, place], color=colour, linewidth=2, zorder=2)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel)


def lines(
    axes: Axes,
    x: Array,
    curves: Mapping[str, tuple[Array, str]],
    styles: Sequence[Any] = ("-",),
    labelled: bool = True,
) -> None:
    """A line for each name, labelled at its end.

    Args:
      axes: Where.
      x: ``[n]``
      curves: By name the values ``[n]`` and the colour.
      styles: Taken in turns.
      labelled: Whether to write the names.
    """
    for index, (name, (values, colour)) in enumerate(curves.items()):
        axes.plot(x, values, styles[index % len(styles)], color=colour, label=name)
    if labelled:
        label_ends(axes, {name: (x[-1], y[-1], colour) for name, (y, colour) in curves.items()})


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Writes names beside the ends of their lines, spread where they would hide each other."""
    shown = {name: end for name, end in ends.items() if np.isfinite(end[1])}
    if not shown:
        return
    axes.set_ylim(axes.get_ylim())  # the names stay where they are
    scale: Any = np.log if axes.get_yscale() == "log" else np.asarray
    low, high = map(scale, axes.get_ylim())
    places = {name: float((scale(y) - low) / (high - low)) for name, (_, y, _) in shown.items()}
    root = axes.get_figure(root=True)
    assert root
    gap = 0.13 / max(axes.bbox.height / root.dpi, 0.5)
    order = sorted(places, key=places.__getitem__)
    spread = np.array([places[name] for name in order])
    for _ in range(200):  # neighbours push each other apart
        apart = np.diff(spread)
        push = np.maximum(gap - apart, 0) / 2
        if not push.any():
            break
        spread[:-1] -= push
        spread[1:] += push
    for name, place in zip(order, spread, strict=True):
        axes.annotate(
            name,
            (1.0, float(place)),
            xycoords="axes fraction",
            xytext=(3, 0),
            textcoords="offset points",
            color=shown[name][2],
            va="center",
            annotation_clip=False,
        )


def over_values(
    axes: Axes,
    values: Sequence[Any],
    series: Mapping[str, tuple[Sequence[Estimate], str]],
    xlabel: str,
    labelled: bool = True,
    joined: bool = True,
) -> None:
    """Estimates with their 95% intervals over a list of values, which are equally far apart.

    Args:
      axes: Where.
      values: Of the horizontal axis.
      series: By name an estimate for each value, and the colour.
      xlabel: What the values are.
      labelled: Whether to write the names.
      joined: Whether by lines: what is between two values of one kind means something.
    """
    curves = {}
    for place, (name, (own, colour)) in enumerate(series.items()):
        means = np.array([each["mean"] for each in own])
        ends = np.array([[each["low"], each["high"]] for each in own]).T
        bars = np.abs(ends - means) if np.isfinite(ends).all() else None
        # Side by side, so that intervals do not hide each other.
        x = np.arange(len(values)) + 0.07 * (place - (len(series) - 1) / 2)
        line = "-" if joined else "none"
        axes.errorbar(x, means, bars, color=colour, fmt="o", ls=line, markersize=3, linewidth=1.2)
        curves[name] = (x[-1], float(means[-1]), colour)
    axes.set_xticks(range(len(values)), [_shown(value) for value in values])
    axes.set_xlabel(xlabel)
    if labelled:
        label_ends(axes, curves)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def plain_numbers(axis: Any) -> None:
    """On a logarithmic axis."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
