"""Tables of at most 80 columns, and how numbers stand in them."""

import importlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from famo_jax.experiments import _files


def new(title: str | None, names: Sequence[str], headers: Iterable[str], padding: int = 0) -> Table:
    """A table with columns of names, and of numbers."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, padding, 0, 0),
        show_edge=False,
    )
    for name in names:
        table.add_column(name, no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def with_error(estimate: Mapping[str, float], sign: str = "", space: str = " ") -> str:
    """The mean and its standard error, which a single seed does not have."""
    error = f"{space}±{space}{estimate['se']:.1f}" if np.isfinite(estimate["se"]) else ""
    return f"{estimate['mean']:{sign}z.1f}" + error


def with_interval(estimate: Mapping[str, float] | None, sign: str = "+") -> str:
    """The mean, and how far its 95% interval extends either way; nothing for nothing."""
    if not estimate:
        return ""
    mean, half = estimate["mean"], (estimate["high"] - estimate["low"]) / 2
    if abs(mean) >= 1e4:  # it failed: by how much is beside the point
        return f"{mean:{sign}.0e}"
    decimals = 1 if abs(mean) < 100 else 0
    return f"{mean:{sign}z.{decimals}f}±{half:.{decimals}f}"


def in_points(estimate: Mapping[str, float]) -> str:
    """The same without decimals."""
    return f"{estimate['mean']:+z.0f}±{(estimate['high'] - estimate['low']) / 2:.0f}"


def ratio(estimate: Mapping[str, float]) -> str:
    """A geometric mean, and the factor by which its interval extends either way."""
    mean, factor = estimate["mean"], estimate["high"] / estimate["mean"]
    return f"{mean:.0f} ({factor:.2g})" if 10 <= mean < 1e4 else f"{mean:.2g} ({factor:.2g})"


def text(parts: Iterable[Any]) -> str:
    """What is printed, as the documentation shows it."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    for part in parts:
        console.print(part, highlight=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


# A block of the documentation: the command, and below it what the run printed that is kept.
BLOCK = re.compile(r"(?s)(```text\n\$ python -m famo_jax\.experiments\.(\w+)([^\n]*)).*?(?=\n```)")


def refreshed(page: str, runs: Path) -> str:
    """A page of the documentation whose blocks are the tables of the runs kept in a folder.

    A run is kept under the name of the folder in ``results`` that its command writes to: that of
    its study, or another that ``--out`` says.
    """

    def block(match: re.Match[str]) -> str:
        first, name, arguments = match.groups()
        study = importlib.import_module(f"famo_jax.experiments.{name}").STUDY
        other = re.search(r" --out results/(\S+)", arguments)
        kept = runs / f"{other[1] if other else name}.json"
        return f"{first}\n{text(study.tables(_files.read_summary(kept)['summary']))}"

    return BLOCK.sub(block, page)
