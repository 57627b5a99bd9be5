r"""QM-9, eleven properties of 130,831 molecules: ``python -m famo_jax.experiments.qm9``.

The problem is that of :mod:`famo_jax.experiments.problems.qm9`. As in the official code a network
is validated after each epoch, by :math:`\Delta m` against the single-task networks' errors that the
code holds, and tested as it was at its best epoch. There are three presets:

* ``small``, the default: a narrower network on 6,000 molecules, for two CPU cores;
* ``paper``: the official settings, for a GPU;
* ``converged``: smaller batches and more patience, by which all methods gain (NTKMTL).

Every method is trained at every learning rate; validation chooses, on the mean over seeds.
"""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _benchmark, _benchmark_report, _command
from famo_jax.experiments._benchmark import METHODS, number_of
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import described
from famo_jax.experiments._study import Option, Study, Summary

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

# --- Settings -------------------------------------------------------------------------------------

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "width": 32,
        "edge_units": 32,
        "molecules": 6000,
        "validation": 1000,
        "batch_size": 100,
        "epochs": 40,
        "patience": 0,
        "learning_rate": [5e-3],
    },
    "paper": {
        "width": 64,
        "edge_units": 128,
        "molecules": 0,
        "validation": 10_000,
        "batch_size": 120,
        "epochs": 300,
        "patience": 5,
        "learning_rate": [1e-3],
    },
}
PRESETS["converged"] = PRESETS["paper"] | {"batch_size": 60, "patience": 10}
TEST = 10_000


OPTIONS = {
    "preset": Option(_command.one_of(list(PRESETS)), " or ".join(PRESETS), metavar="NAME"),
    "methods": _command.methods_option(list(METHODS)),
    "learning_rate": _benchmark.LEARNING_RATE,
    "width": number_of("of the network"),
    "edge_units": number_of("hidden units of an edge"),
    "molecules": number_of("to train on, 0 for all that are left", _command.whole),
    "validation": number_of("molecules to validate on"),
    "test": Option(_command.positive_int, "molecules to test on"),
    "batch_size": number_of("molecules of a step"),
    "epochs": number_of("of a training"),
    "patience": number_of(
        "epochs without progress before the learning rate falls, 0 for a cosine", _command.whole
    ),
    "scale_by": Option(
        _command.one_of(["all", "train"]),
        "molecules whose mean and deviation scale the targets; all is official",
        metavar="WHICH",
    ),
    "data": Option(
        str, "the official raw folder; without it the installed qm9pack", metavar="FOLDER"
    ),
    "split": Option(
        str,
        "a permutation of the molecules (.npy or text), test first, for all seeds",
        metavar="FILE",
    ),
}


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fills in what the preset says, and refuses data that are not there."""
    _benchmark.fill_in(options, PRESETS)
    if options.source:
        return
    from famo_jax.experiments.problems import _qm9_files

    try:
        _qm9_files.find(options.data)
    except FileNotFoundError as error:
        parser.error(f"argument --data: expected {error}")
    if options.split is not None:
        try:
            read_split(Path(options.split))
        except (OSError, ValueError, EOFError) as error:
            parser.error(f"argument --split: expected a permutation in a file, got {error}")


def read_split(path: Path) -> Array:
    """The numbers of all molecules, each once.

    Raises:
      OSError: It cannot be read.
      ValueError: It holds something else.
    """
    split = np.load(path) if path.suffix == ".npy" else np.loadtxt(path)
    if split.ndim != 1 or not np.array_equal(np.sort(split), np.arange(len(split))):
        raise ValueError(f"{path} with shape {split.shape} or numbers that are not each once")
    return np.asarray(split, np.int64)


# --- The run --------------------------------------------------------------------------------------


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Trains every method at every learning rate and seed."""
    from famo_jax.experiments import _epochs
    from famo_jax.experiments.problems import _qm9_files, qm9

    tell = session.row("molecules")
    tell("reading")
    source = _qm9_files.find(options.data)
    table = _qm9_files.load(source)
    tell("done")
    size, seeds = len(table.counts), range(options.first_seed, options.first_seed + options.seeds)
    split = read_split(Path(options.split)) if options.split is not None else None
    if split is not None and len(split) != size:
        raise OSError(f"{options.split}: expected {size} molecules, got {len(split)}")
    held_out, wanted = options.test + options.validation, max(options.molecules, 1)
    if size < held_out + wanted:
        raise OSError(f"expected at least {held_out + wanted} molecules, got {size}")
    plan = qm9.Plan(
        options.molecules or None, options.validation, options.test, options.scale_by, split
    )
    problem = qm9.problem(
        table,
        plan,
        seeds,
        options.batch_size,
        options.epochs,
        width=options.width,
        edge_units=options.edge_units,
    )
    trained_by = functools.partial(
        _epochs.train,
        score=lambda metrics: 100 * (metrics / qm9.STL - 1).mean(),
        reduce=_epochs.plateau(patience=options.patience) if options.patience else None,
    )

    more: dict[str, Any] = {}
    if options.patience:
        more["schedule"] = lambda setting, steps: setting["learning_rate"]
    facts = {
        "molecules": size,
        "trained_on": len(plan.rows(seeds[0], size)[0]),
        "source": source.name,
        "bonds": source.bonds,
        "parameters": qm9.count_parameters(options.width, options.edge_units),
    }
    return _benchmark.train(
        options, session, problem, trained_by, qm9.TASKS, qm9.STL.tolist(), facts, **more
    )


# --- Summaries ------------------------------------------------------------------------------------

# Table 2 of the paper, with the decimals of the Nash-MTL paper's Table 6 where that has them.
PAPER = {
    "ls": (0.106, 0.325, 73.57, 89.67, 5.19, 14.06, 143.4, 144.2, 144.6, 140.3, 0.128),
    "si": (0.309, 0.345, 149.8, 135.7, 1.00, 4.50, 55.3, 55.75, 55.82, 55.27, 0.112),
    "rlw": (0.113, 0.340, 76.95, 92.76, 5.86, 15.46, 156.3, 157.1, 157.6, 153.0, 0.137),
    "dwa": (0.107, 0.325, 74.06, 90.61, 5.09, 13.99, 142.3, 143.0, 143.4, 139.3, 0.125),
    "uw": (0.386, 0.425, 166.2, 155.8, 1.06, 4.99, 66.4, 66.78, 66.80, 66.24, 0.122),
    "mgda": (0.217, 0.368, 126.8, 104.6, 3.22, 5.69, 88.37, 89.4, 89.32, 88.01, 0.120),
    "pcgrad": (0.106, 0.293, 75.85, 88.33, 3.94, 9.15, 116.36, 116.8, 117.2, 114.5, 0.110),
    "cagrad": (0.118, 0.321, 83.51, 94.81, 3.21, 6.93, 113.99, 114.3, 114.5, 112.3, 0.116),
    "imtl-g": (0.136, 0.287, 98.31, 93.96, 1.75, 5.69, 101.4, 102.4, 102.0, 100.1, 0.096),
    "nash-mtl": (0.102, 0.248, 82.95, 81.89, 2.42, 5.38, 74.5, 75.02, 75.10, 74.16, 0.093),
    "famo": (0.15, 0.30, 94.0, 95.2, 1.63, 4.95, 70.82, 71.2, 71.2, 70.3, 0.10),
}


def data(summary: Summary) -> str:
    """What was trained on."""
    problem = summary["problem"]
    return (
        f"Trained on {problem['trained_on']:,} molecules of {problem['source']}; bonds: "
        f"{problem['bonds']}."
    )


TITLE = "Mean absolute error on test (meV for energies)"
METHODS_SHOWN = "ls si frozen first-loss uw famo famo-ema-no-c nash-slope imtl-g"
FULL = "--preset small --seeds 3 --first-seed 0 --gamma 1e-3 --logits-rate 5e-3 --scale-by all "
FULL += f"--test {TEST} --methods {METHODS_SHOWN}"
STUDY = Study(
    name="qm9",
    title="QM-9: eleven properties of real molecules, as in the paper",
    seconds=4661,
    full=FULL,
    quick="--seeds 1 --methods ls si famo famo-ema-no-c --learning-rate 3e-3 --molecules 1000 "
    "--epochs 3 --test 2000",
    run=run,
    summarize=functools.partial(_benchmark.summarize, PAPER),
    tables=functools.partial(_benchmark_report.tables, TITLE, data),
    pictures={"qm9.png": _benchmark_report.draw},
    options=OPTIONS,
    curves=_benchmark.CURVES,
    epilog=f"{described(METHODS)}\n\nmethods that aggregate do so at the features",
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
