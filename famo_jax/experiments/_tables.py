"""Tables of at most 80 columns, and how numbers stand in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table


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
    decimals = 1 if abs(mean) < 100 else 0
    return f"{mean:{sign}z.{decimals}f}±{half:.{decimals}f}"


def between(estimate: Mapping[str, float], form: str = "z.1f") -> str:
    """The ends of the interval."""
    return f"{estimate['low']:{form}} to {estimate['high']:{form}}"


def ratio(estimate: Mapping[str, float]) -> str:
    """A geometric mean and its interval."""
    return f"{estimate['mean']:.2g} ({between(estimate, '.2g')})"


def distinct(rows: Iterable[Mapping[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    """The values of these keys, each once, in order."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
