"""``python -m famo_jax.experiments``: the studies, a line each."""

import importlib
import pkgutil

from rich import box
from rich.console import Console
from rich.table import Table

from famo_jax import experiments
from famo_jax.experiments import _command
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
    """Lists the studies."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for header in ("python -m famo_jax.experiments.", "what it shows", "on two cores"):
        table.add_column(header)
    for name, study in studies().items():
        table.add_row(name, study.title, f"{study.seconds} s")
    Console().print(table, "--help tells a study's options; --quick takes under a minute.")


if __name__ == "__main__":
    main()
