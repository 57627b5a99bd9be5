"""What the command lines of the experiments share, and the words in which they refuse."""

import argparse
import functools
import io
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import jax

_P = ParamSpec("_P")


def command(main: Callable[_P, None]) -> Callable[_P, None]:
    """Lets a program end with a line and status 1, not a traceback, where the machine fails it.

    When the disk is full, for example, or the memory. What a terminal or a pipe has no signs for,
    as an ASCII one has none for a delta, is printed as question marks. Where a pipe's reader has
    gone, as ``head`` does, it ends without a word.
    """

    @functools.wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            main(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)  # as shells count an interrupt
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
            sys.exit(1)
        except OSError as error:
            sys.exit(f"error: {error}")
        except (MemoryError, RuntimeError, AssertionError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                sys.exit(f"error: too little memory for so much at once ({error})")
            if not _has_device():
                platforms = os.environ.get("JAX_PLATFORMS", "")
                sys.exit(
                    f"error: JAX finds no device for JAX_PLATFORMS={platforms!r}. {error}".strip()
                )
            raise

    return run


def _has_device() -> bool:
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):  # the second where a plugin is not installed
        return False


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = _finite_float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return value


def non_negative_float(text: str) -> float:
    """A finite number of at least 0."""
    value = _finite_float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0, got {text!r}")
    return value


def _finite_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """One of the names."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected any of {', '.join(names)}, got {text!r}")
        return text

    return name


def check_distinct(parser: argparse.ArgumentParser, option: str, values: Sequence[Any]) -> None:
    """Refuses a list that holds a value twice."""
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        parser.error(f"argument {option}: expected each value once, got {repeated[0]} twice")


def output_folder(parser: argparse.ArgumentParser, option: str, path: Path, *files: str) -> None:
    """Creates the folder where it does not exist, and refuses one that cannot be written to.

    Args:
      parser: For the errors.
      option: Which names the folder.
      path: The folder.
      files: Names of what will be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        parser.error(f"argument {option}: expected a folder to write to, got {path} ({reason})")
    for file in files:
        if (path / file).is_dir():
            parser.error(f"argument {option}: expected {path / file} to be a file, got a folder")
