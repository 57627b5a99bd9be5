"""Parts of pictures. As wide as a README shows them at 100 pixels an inch: 8 points are that."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments._files import Array

if TYPE_CHECKING:  # which takes a second that `--help` does not have
    from matplotlib.figure import Figure

Estimate = Mapping[str, float]  # mean, low and high

PALE = "#d8d8d8"
LINES = ("-", "--", ":", "-.")  # of tasks, whose colours would be those of methods
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
}


@contextlib.contextmanager
def picture(height: float) -> "Iterator[Figure]":
    """A figure to draw on, in the style of all, so many inches high."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8.5, height), dpi=200, layout="constrained")
        yield figure
        figure.draw_without_rendering()  # in this style, and with all labels in place


def estimates(
    axes: Any, rows: Mapping[str, tuple[Estimate, str, Sequence[float]]], xlabel: str
) -> None:
    """A row for each name, from its estimate, colour and seeds: mean, 95% interval, each seed."""
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
    axes: Any,
    x: Array,
    curves: Mapping[str, tuple[Array, str]],
    styles: Sequence[Any] = ("-",),
    labelled: bool = True,
) -> None:
    """A line for each name, from its values and colour, with the styles in turns."""
    for index, (name, (values, colour)) in enumerate(curves.items()):
        axes.plot(x, values, styles[index % len(styles)], color=colour, label=name)
    if labelled:
        label_ends(axes, {name: (y[-1], colour) for name, (y, colour) in curves.items()})


def apart(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """The places, in their order, and none nearer to its neighbours than the gap."""
    order = sorted(places, key=places.__getitem__)
    spread = np.array([places[name] for name in order])
    for _ in range(200):  # neighbours push each other apart
        push = np.maximum(gap - np.diff(spread), 0) / 2
        spread[:-1] -= push
        spread[1:] += push
    return dict(zip(order, spread.tolist(), strict=True))


def label_ends(axes: Any, ends: Mapping[str, tuple[float, str]]) -> None:
    """Writes names beside the ends of their lines, spread where they would hide each other."""
    shown = {name: end for name, end in ends.items() if np.isfinite(end[0])}
    if not shown:
        return
    axes.set_ylim(axes.get_ylim())  # the names stay where they are
    scale = axes.transScale.transform
    low, high = (scale((1, end))[1] for end in axes.get_ylim())
    places = {
        name: float((scale((1, y))[1] - low) / (high - low)) for name, (y, _) in shown.items()
    }
    gap = 0.13 / max(axes.bbox.height / axes.get_figure(root=True).dpi, 0.5)
    for name, place in apart(places, gap).items():
        axes.annotate(
            name, (1.0, place), xycoords="axes fraction", xytext=(3, 0),
            textcoords="offset points", color=shown[name][1], va="center", annotation_clip=False,
        )  # fmt: skip


def over_values(
    axes: Any,
    values: Sequence[str],
    series: Mapping[str, tuple[Sequence[Estimate], str]],
    xlabel: str,
    labelled: bool = True,
    line: str = "-",
) -> None:
    """For each name, from estimates and colour: their 95% intervals over values in a list.

    The values are equally far apart. ``line`` is "none" where nothing lies between two of them.
    """
    ends = {}
    for place, (name, (own, colour)) in enumerate(series.items()):
        means = np.array([each["mean"] for each in own])
        bars = np.abs(np.array([[each["low"], each["high"]] for each in own]).T - means)
        # Side by side, so that intervals do not hide each other.
        x = np.arange(len(values)) + 0.07 * (place - (len(series) - 1) / 2)
        axes.errorbar(x, means, np.where(np.isfinite(bars), bars, 0), color=colour, fmt="o",
                      ls=line, markersize=3, linewidth=1.2, label=name)  # fmt: skip
        ends[name] = float(means[-1]), colour
    axes.set_xticks(range(len(values)), values)
    axes.set_xlabel(xlabel)
    if labelled:
        label_ends(axes, ends)


def plain_numbers(axis: Any) -> None:
    """On a logarithmic axis."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
