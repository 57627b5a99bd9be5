"""``python -m famo_jax.experiments.make``: rooms, streets or faces, in the official formats."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from famo_jax.experiments import _command
from famo_jax.experiments.make import _sheet, _write

MULTIPLE = 32  # what heights and widths have to be of, for five times halved pictures
MOST = 100_000  # of which the names have six digits


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete. Exits with status 2 where one is bad."""
    kinds = _write.KINDS
    lines = [
        f"{name:8} {each.title}; --count {' '.join(map(str, each.counts))}, of "
        f"{', '.join(each.splits)}; --size "
        + " or ".join(f"{size} ({high}x{wide})" for size, (high, wide) in each.sizes.items())
        for name, each in kinds.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m famo_jax.experiments.make",
        description="Draws data in the official formats, and a contact sheet of them.",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", type=_command.one_of([*kinds]), help=", ".join(kinds), metavar="NAME"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="to write to")
    parser.add_argument(
        "--count", type=_command.positive_int, nargs="+", metavar="N", help="how many of each split"
    )
    parser.add_argument(
        "--size", metavar="SIZE", help=f"small, full, or HEIGHTxWIDTH in multiples of {MULTIPLE}"
    )
    parser.add_argument("--seed", type=_command.whole, default=0, help="of all that is drawn (0)")
    parser.add_argument(
        "--processes", type=_command.positive_int, metavar="N", help="that draw (one a core)"
    )
    options = parser.parse_args(arguments)
    kind = kinds[options.name]
    options.count = options.count or list(kind.counts)
    if len(options.count) != len(kind.splits):
        parser.error(f"argument --count: expected {len(kind.splits)} numbers, of "
                     f"{', '.join(kind.splits)}, got {len(options.count)}")  # fmt: skip
    if sum(options.count) > MOST:
        parser.error(f"argument --count: expected at most {MOST} in all, got {sum(options.count)}")
    options.size = _size(parser, kind, options.size or next(iter(kind.sizes)))
    options.processes = options.processes or _write.default_processes(options.count)
    _command.output_folder(parser, "--out", options.out, _write.FACTS, _write.SHEET)
    if there := [each for each in kind.folders if (options.out / each).exists()]:
        parser.error(f"argument --out: expected a folder without {', '.join(kind.folders)}, "
                     f"got {options.out} with {', '.join(there)}")  # fmt: skip
    return options


def _size(parser: argparse.ArgumentParser, kind: _write.Kind, text: str) -> tuple[int, int]:
    if text in kind.sizes:
        return kind.sizes[text]
    numbers = [int(each) for each in text.split("x") if each.isdecimal() and each.isascii()]
    fits = len(numbers) == 2 == len(text.split("x")) and all(
        0 < each <= 4096 and each % MULTIPLE == 0 for each in numbers
    )
    own = "" if len(kind.sizes) == 1 else f" or HEIGHTxWIDTH in multiples of {MULTIPLE} up to 4096"
    if not own or not fits:
        parser.error(f"argument --size: expected {', '.join(kind.sizes)}{own}, got {text!r}")
    return numbers[0], numbers[1]


@_command.ends_in_words
def main(arguments: Sequence[str] | None = None) -> None:
    """Draws and writes."""
    begun = time.perf_counter()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(options.name, total=sum(options.count))
        _write.write(
            options.name, options.out, options.count, options.size, options.seed, options.processes,
            lambda: progress.advance(task),
        )  # fmt: skip
    _sheet.draw(options.name, options.out, options.count).save(options.out / _write.SHEET)
    kind = _write.KINDS[options.name]
    numbers = ", ".join(
        f"{count} {split}" for split, count in zip(kind.splits, options.count, strict=True)
    )
    seconds = time.perf_counter() - begun
    console.print(
        f"{options.out}: {numbers}, {_write.SHEET}, {seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
