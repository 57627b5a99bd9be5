"""What a study is."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # which takes a second that `--help` does not have
    from matplotlib.figure import Figure
    from rich.table import Table

    from famo_jax.experiments._files import Runs
    from famo_jax.experiments._train import Session

Summary = Mapping[str, Any]  # as strict JSON, but with NaN for what is not finite


class Option(NamedTuple):
    """An option of the command line."""

    kind: Callable[[str], Any]
    what: str
    several: bool = False
    metavar: str = "N"


class Study(NamedTuple):
    """What is run, what its runs are summed up to, and how that is shown."""

    name: str
    title: str
    seconds: int  # that it takes on two cores; 0 of what takes a GPU
    full: str  # the options where none are given, as one would give them
    quick: str  # with --quick
    run: "Callable[[argparse.Namespace, Session], Runs]"
    summarize: "Callable[[Runs], Summary]"
    tables: "Callable[[Summary], Sequence[Table | str]]"
    # By the names of their files; nothing where there is nothing to be drawn.
    pictures: "Mapping[str, Callable[[Summary], Figure | None]]"
    options: Mapping[str, Option] = {}  # besides those that all studies share
    curves: frozenset[str] = frozenset()  # keys of the summary that no table needs
    epilog: str = ""
    saves: bool = True  # whether a run can be saved and resumed
    # Ends with a usage error where options do not go together.
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] = lambda *_: None
