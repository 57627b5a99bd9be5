"""``python -m famo_jax.experiments``: the studies, a line each."""

import argparse
import importlib
import pkgutil
from pathlib import Path

from famo_jax import experiments
from famo_jax.experiments import _command, _tables
from famo_jax.experiments._study import Study


def studies() -> dict[str, Study]:
    """All studies, by name."""
    names = [
        module.name
        for module in pkgutil.iter_modules(experiments.__path__)
        if not module.ispkg and not module.name.startswith("_")
    ]
    return {name: importlib.import_module(f"{experiments.__name__}.{name}").STUDY for name in names}


@_command.ends_in_words
def main() -> None:
    """Lists the studies, or writes the tables of kept runs into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m famo_jax.experiments")
    parser.add_argument(
        "--write", nargs="+", type=Path, default=[], metavar="FILE",
        help="write the tables of the runs in docs/runs into these pages",
    )  # fmt: skip
    pages = parser.parse_args().write
    for page in pages:
        page.write_text(_tables.refreshed(page.read_text("utf-8"), Path("docs/runs")), "utf-8")
    if pages:
        return
    for name, study in studies().items():
        took = f"{study.seconds:4} s" if study.seconds else "   GPU"
        print(f"{name:12}{took}  {study.title}")
    print(
        "\npython -m famo_jax.experiments.NAME runs one, in so many seconds on two cores; --help "
        "tells\nits options, and --quick takes about a minute.\n"
        "python -m famo_jax.experiments.make draws data in the formats of the large benchmarks."
    )


if __name__ == "__main__":
    main()
