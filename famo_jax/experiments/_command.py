"""The command line of every study, and the words in which it refuses."""

import argparse
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import jax
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from famo_jax.experiments import _files
from famo_jax.experiments._study import Option, Study

_P = ParamSpec("_P")


def ends_in_words(main: Callable[_P, None]) -> Callable[_P, None]:
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
        except ModuleNotFoundError as error:
            sys.exit(
                f'error: {error.name} not found: pip install "famo_jax[experiments]" brings what '
                "the experiments need"
            )
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


def _number(parse: Callable[[str], Any], least: float, expected: str, above: bool = False) -> Any:
    def kind(text: str) -> Any:
        try:
            value = parse(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value > least if above else value >= least)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return kind


positive_int = _number(int, 1, "a positive integer")
whole = _number(int, 0, "a whole number")
positive_float = _number(float, 0, "a finite number above 0", above=True)
non_negative_float = _number(float, 0, "a finite number of at least 0")


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """One of the names."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected any of {', '.join(names)}, got {text!r}")
        return text

    return name


OPTIONS = {  # what means the same is called the same
    "steps": Option(positive_int, "training steps"),
    "seeds": Option(positive_int, "seeds of every setting"),
    "tuning_seeds": Option(positive_int, "others, to choose settings on"),
    "first_seed": Option(whole, "the first of the seeds: parts of a run join by --from"),
    "batch_size": Option(positive_int, "rows of a step"),
    "learning_rate": Option(
        positive_float, "of the model's optimizer, to choose from", True, "RATE"
    ),
    "logits_rate": Option(
        positive_float, "learning rate of the logits, to choose from", True, "RATE"
    ),
    "gamma": Option(non_negative_float, "decay of FAMO's logits, to choose from", True, "GAMMA"),
    "aggregate_at": Option(
        one_of(["parameters", "last-layer", "features"]),
        "where task gradients are taken by methods that leave it open",
        metavar="WHERE",
    ),
}


def methods_option(names: Sequence[str], more: str = "") -> Option:
    """``--methods``."""
    return Option(one_of(names), f"what to compare{more}", several=True, metavar="NAME")


def parser_of(study: Study) -> argparse.ArgumentParser:
    """The options of a study: its own, and the shared ones that it has values for."""
    parser = argparse.ArgumentParser(
        prog=f"python -m famo_jax.experiments.{study.name}",
        description=f"{study.title}.",
        epilog=study.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    given = (words.strip().partition(" ") for words in study.full.split("--")[1:])
    defaults = {name.replace("-", "_"): f" ({value})" for name, _, value in given}
    for name in defaults | dict.fromkeys(study.options):
        option = {**OPTIONS, **study.options}[name]
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=option.kind,
            nargs="+" if option.several else None,
            metavar=option.metavar,
            help=(option.what + defaults.get(name, "")).replace("%", "%%"),
        )
    folder: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
    parser.add_argument("--quick", action="store_true", help=f"with {study.quick}, where not given")
    parser.add_argument("--out", help=f"for what is written (results/{study.name})", **folder)
    again = "make tables and pictures of earlier runs, without training: parts of one are joined, "
    again += "others shown one after the other"
    parser.add_argument("--from", dest="source", nargs="+", help=again, **folder)
    if study.saves:
        save = "save the training here every now and then, to go on after a stop"
        parser.add_argument("--checkpoint-dir", help=save, **folder)
        resume = "go on from what --checkpoint-dir holds"
        parser.add_argument("--resume", action="store_true", help=resume)
    return parser


def parse(study: Study, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    parser = parser_of(study)
    given = sys.argv[1:] if arguments is None else arguments
    defaults = study.full + (f" {study.quick}" if "--quick" in given else "")
    options = parser.parse_args([*defaults.split(), "--out", f"results/{study.name}", *given])
    for name in {**OPTIONS, **study.options}:
        value = getattr(options, name, None)
        if isinstance(value, list) and len(set(value)) < len(value):
            twice = next(each for index, each in enumerate(value) if each in value[:index])
            flag = name.replace("_", "-")
            parser.error(f"argument --{flag}: expected each value once, got {twice} twice")
    files = _files.RUNS, _files.STUDY, f"{study.name}.json", *study.pictures
    output_folder(parser, "--out", options.out, *files)
    study.check(parser, options)
    return options


def output_folder(parser: argparse.ArgumentParser, option: str, path: Path, *files: str) -> None:
    """Creates the folder that an option names, or refuses it and what stands in its files' way."""
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


@ends_in_words
def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """Runs a study or reads its runs, prints tables, and writes pictures and figures."""
    options = parse(study, arguments)
    console = Console()
    if options.source:
        groups = _files.read(parser_of(study), study.name, options.source)
        for index, (folders, runs) in enumerate(groups.items()):
            if len(groups) > 1:
                console.print(f"{folders}:", soft_wrap=True, highlight=False)
            show(study, runs, options.out / f"{index + 1}" if index else options.out, console)
        return
    runs = _run(study, options, console)
    with contextlib.ExitStack() as stack:
        # Where it cannot be written it is shown at least.
        stack.callback(lambda: show_tables(study, study.summarize(runs), console))
        _files.write(options.out, runs)
    show(study, runs, options.out, None)
    pictures = [name for name in study.pictures if (options.out / name).exists()]
    names = ", ".join([_files.RUNS, _files.STUDY, f"{study.name}.json", *pictures])
    console.print(f"{options.out}: {names}, {runs.facts['seconds']:.0f} s", highlight=False)


def _run(study: Study, options: argparse.Namespace, console: Console) -> _files.Runs:
    from famo_jax.experiments import _checkpoint, _train  # Flax, which only a run needs

    apart = ("source", "checkpoint_dir", "resume", "out")
    settings = {name: value for name, value in vars(options).items() if name not in apart}
    facts = {"study": study.name, "settings": settings, "environment": _files.environment()}
    folder = getattr(options, "checkpoint_dir", None)
    resume = getattr(options, "resume", False)
    saved = _checkpoint.open_folder(parser_of(study), folder, resume, facts)
    before = max((float(each.seconds) for each in saved.values()), default=0.0)
    columns = SpinnerColumn(), TextColumn("{task.description:32}{task.fields[status]:24}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        session = _train.Session(progress, time.perf_counter() - before, folder, saved)
        runs = study.run(options, session)
    seconds = time.perf_counter() - session.begun
    return runs._replace(facts=_files.plain(facts | runs.facts | {"seconds": seconds}))


def show_tables(study: Study, summary: Any, console: Console) -> None:
    """Prints what a study says of a summary."""
    for part in study.tables(_files.plain(summary)):
        console.print(part, highlight=False)


def show(study: Study, runs: _files.Runs, out: Path, console: Console | None) -> None:
    """Prints the tables, where there is a console, and writes pictures and ``NAME.json``.

    The latter holds what the tables need, and no curves: little enough to be kept.
    """
    summary = _files.plain(study.summarize(runs))
    if console:
        show_tables(study, summary, console)
    out.mkdir(parents=True, exist_ok=True)
    about = {key: runs.facts[key] for key in ("settings", "environment", "seconds")}
    settled = json.dumps([study.name, _files.plain(about["settings"], None)], sort_keys=True)
    about["settings_sha256"] = hashlib.sha256(settled.encode()).hexdigest()
    kept = _files.without(summary, study.curves)
    _files.write_json(out / f"{study.name}.json", about | {"summary": kept})
    for name, draw in study.pictures.items():
        if figure := draw(summary):
            figure.savefig(out / name)
        else:  # what an earlier run left is not of this one
            (out / name).unlink(missing_ok=True)
