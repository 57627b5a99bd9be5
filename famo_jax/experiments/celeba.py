r"""CelebA, forty attributes of faces: ``python -m famo_jax.experiments.celeba``.

The problem is that of :mod:`famo_jax.experiments.problems.celeba`, the data are the official ones,
or drawn in their format. As in the official code a network is validated after each epoch, by the
mean of the forty F1, and tested as it was at its best epoch, unless ``--tested last``.
"""

import argparse
import functools
from typing import TYPE_CHECKING

from famo_jax.experiments import _benchmark, _benchmark_report, _command, _scenes
from famo_jax.experiments._benchmark import number_of
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import described
from famo_jax.experiments._study import Option, Study, Summary

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

PRESETS = {
    "paper": {
        "width": 64,
        "batch_size": 256,
        "epochs": 15,
        "learning_rate": [3e-4],
        "at_once": 1,
    },
    "tiny": {"width": 8, "batch_size": 16, "epochs": 2, "learning_rate": [3e-3], "at_once": 8},
}
# Delta m of the paper's Table 3, whose heads of these two columns are the wrong way round.
PAPER = {
    "ls": 4.15,
    "si": 7.20,
    "rlw": 1.46,
    "dwa": 3.20,
    "uw": 3.23,
    "mgda": 14.85,
    "pcgrad": 3.17,
    "graddrop": 3.29,
    "cagrad": 2.48,
    "imtl-g": 0.84,
    "nash-mtl": 2.84,
    "famo": 1.21,
}
OPTIONS = {
    "preset": Option(_command.one_of(list(PRESETS)), " or ".join(PRESETS), metavar="NAME"),
    "stl_statistics": _scenes.one_of(
        "batch running", "that single-task networks are evaluated with; batch is official"
    ),
    "tested": _scenes.one_of(
        "best last", "epoch: that of the best mean F1 on validation, which is official, or the last"
    ),
    "stream": _scenes.one_of(
        "no yes", "whether faces come a few steps at a time; no: all are on the device"
    ),
    **{
        name: _scenes.OPTIONS[name]
        for name in ("methods", "learning_rate", "epochs", "at_once", "statistics", "aggregate_at")
    },
    "data": Option(str, "the official folder, or torchvision's", metavar="FOLDER"),
    "width": number_of("channels of the first level"),
    "batch_size": number_of("faces of a step"),
}


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fills in what the preset says."""
    del parser
    _benchmark.fill_in(options, PRESETS)


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Trains every method at every learning rate and seed."""
    import jax.numpy as jnp

    from famo_jax.experiments import _epochs
    from famo_jax.experiments.problems import _face_files, _problem, celeba

    tell = session.row("faces")
    tell("reading")
    parts = [_face_files.load_celeba(options.data, split) for split in _face_files.SPLITS]
    tell("done")
    counts = [len(part.image) for part in parts]
    # Batch norm needs two of them, in validation and test where these have batch statistics too.
    singles = _benchmark.STL in options.methods and options.stl_statistics == "batch"
    for count in counts if singles else counts[:1]:
        if (count % options.batch_size or options.batch_size) == 1:
            raise OSError(
                f"{options.data}: expected a batch size by which none of the {count} faces is "
                f"alone in the last batch, got {options.batch_size}"
            )
    make = functools.partial(
        celeba.problem, *parts, width=options.width, both_passes=options.statistics == "both",
        stream=options.stream == "yes",
    )  # fmt: skip
    problem = make()._replace(place=options.aggregate_at)
    network = functools.partial(celeba.Network, len(celeba.TASKS), width=options.width)
    facts = {
        **_benchmark.facts_of(options.data),
        "faces": counts,
        "parameters": _problem.count_parameters(network),
    }
    # Of the attributes that a network has.
    score = (lambda f1: -jnp.nanmean(f1)) if options.tested == "best" else None
    trained_by = functools.partial(_epochs.train, score=score, last=1)
    of_task = functools.partial(make, statistics=options.stl_statistics)
    return _benchmark.train(
        options, session, problem, trained_by, celeba.TASKS, celeba.STL, facts,
        of_task=lambda task: of_task(task=task),
        at_once=options.at_once,
        schedule=lambda setting, steps: setting["learning_rate"],
    )  # fmt: skip


def data(summary: Summary) -> str:
    """What was trained on."""
    train, validation, test = summary["problem"]["faces"]
    return (
        f"Trained on {train:,} faces, validated on {validation:,}, tested on {test:,}. "
        f"{_benchmark.data(summary['problem'])}"
    )


STUDY = Study(
    name="celeba",
    title="CelebA: forty attributes of faces, as in the paper",
    seconds=0,
    full="--preset paper --seeds 3 --first-seed 0 --gamma 1e-3 --logits-rate 5e-3 --data dataset "
    "--statistics both --stl-statistics batch --tested best --stream no --aggregate-at features "
    f"--methods {_scenes.SHOWN}",
    quick="--preset tiny --seeds 1 --methods ls si famo famo-one-pass",
    run=run,
    summarize=functools.partial(_benchmark.summarize, PAPER),
    tables=functools.partial(_benchmark_report.tables, "F1 on test", data),
    pictures={"celeba.png": _benchmark_report.draw},
    options=OPTIONS,
    curves=_benchmark.CURVES,
    epilog=f"{described(_benchmark.METHODS)}\n\nstl trains a network for each attribute",
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
