"""What the studies of NYU-v2 and CityScapes share."""

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from famo_jax.experiments import _benchmark, _benchmark_report, _command
from famo_jax.experiments._benchmark import number_of
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import described
from famo_jax.experiments._study import Option, Study, Summary

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

LEVELS = 5  # that the networks have in full
PAPER = {
    "network": "mtan",
    "width": 64,
    "levels": LEVELS,
    "epochs": 200,
    "halve_every": 100,
    "last": 10,
    "learning_rate": [1e-4],
    "at_once": 1,
}
TINY = {
    "network": "segnet",
    "width": 8,
    "levels": 2,
    "batch_size": 4,
    "epochs": 2,
    "halve_every": 1,
    "last": 1,
    "learning_rate": [3e-3],
    "at_once": 8,
}


def one_of(names: str, what: str) -> Option:
    """An option with a few values."""
    return Option(_command.one_of(names.split()), what, metavar="WHICH")


OPTIONS = {
    "data": Option(str, "the official folder, with train and val", metavar="FOLDER"),
    "methods": _command.methods_option([_benchmark.STL, *_benchmark.METHODS]),
    "learning_rate": _benchmark.LEARNING_RATE,
    "network": Option(
        _command.one_of(["mtan", "segnet"]), "mtan or segnet; by the preset", metavar="NAME"
    ),
    "width": number_of("channels of its first level"),
    "levels": number_of(f"levels of its encoder, at most {LEVELS}"),
    "batch_size": number_of("scenes of a step"),
    "epochs": _benchmark.EPOCHS,
    "halve_every": number_of("epochs after which the learning rate is halved"),
    "last": number_of("epochs, of whose metrics the mean counts"),
    "at_once": number_of("methods that are trained beside each other"),
    "augment": one_of("yes no", "whether scenes are cropped, enlarged and mirrored"),
    "statistics": one_of(
        "both first", "passes of a two-pass method that move batch statistics; both is official"
    ),
    "stream": one_of(
        "no yes", "whether scenes come a few steps at a time; no: all are on the device"
    ),
    "aggregate_at": one_of("features parameters", "where task gradients are taken"),
    "held_out": Option(
        _command.whole, "training scenes to choose settings by; 0, as official: by the test"
    ),
}


def run(benchmark: Callable[[], Any], options: argparse.Namespace, session: "Session") -> Runs:
    """Trains every method at every learning rate and seed."""
    from famo_jax.experiments import _epochs
    from famo_jax.experiments.problems import _problem, dense

    tell = session.row("scenes")
    tell("reading")
    own = benchmark()
    train, test = (own.load(options.data, split) for split in ("train", "val"))
    tell("done")
    count, height, width = train.image.shape[:3]
    side = 2**options.levels
    if height % side or width % side or test.image.shape[1:3] != (height, width):
        sizes = " and ".join(
            f"{each.image.shape[1]} x {each.image.shape[2]}" for each in (train, test)
        )
        raise OSError(f"{options.data}: expected scenes of one size, whose sides are multiples of "
                      f"{side}, got {sizes}")  # fmt: skip
    if options.held_out >= count:
        raise OSError(f"{options.data}: expected more than {options.held_out} scenes to train on, "
                      f"got {count}")  # fmt: skip
    plan = dense.Plan(
        network=options.network,
        width=options.width,
        levels=options.levels,
        stream=options.stream == "yes",
        augment=options.augment == "yes",
        inverse_depth=getattr(options, "inverse_depth", "divide"),
        both_passes=options.statistics == "both",
        held_out=options.held_out,
    )
    problem = dense.problem(own, train, test, plan)
    problem = problem._replace(place=options.aggregate_at)
    facts = {
        "data": options.data,
        "size": [height, width],
        "scenes": [count - options.held_out, len(test.image)],
        "network": options.network,
        "parameters": _problem.count_parameters(dense.network_of(own.outputs, plan)),
    }
    trained_by = functools.partial(
        _epochs.train,
        score=None,
        last=options.last,
        reduce=_epochs.stairs(options.halve_every),
    )
    return _benchmark.train(
        options, session, problem, trained_by, own.metrics, own.stl, facts,
        of_task=lambda task: dense.problem(own, train, test, plan, task),
        at_once=options.at_once,
        schedule=lambda setting, steps: setting["learning_rate"],
    )  # fmt: skip


def data(summary: Summary) -> str:
    """What was trained on."""
    problem = summary["problem"]
    size = " x ".join(map(str, problem["size"]))
    train, test = problem["scenes"]
    return (
        f"{problem['network']} on {train} scenes of {size}, tested on {test}; metrics are means of "
        f"batches, then of the last epochs. Data: {problem['data']}."
    )


SHOWN = "ls si rlw dwa uw mgda pcgrad graddrop cagrad imtl-g nash-mtl famo"


def study(
    name: str,
    title: str,
    benchmark: Callable[[], Any],
    presets: Mapping[str, Mapping[str, Any]],
    paper: _benchmark.Paper,
    full: str,
    options: Mapping[str, Option],
) -> Study:
    """Of one of the two. ``benchmark`` returns it, which takes what only a run needs."""

    def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        _benchmark.fill_in(options, presets)
        if options.levels > LEVELS:
            parser.error(f"argument --levels: expected at most {LEVELS}, got {options.levels}")

    preset = Option(_command.one_of(list(presets)), " or ".join(presets), metavar="NAME")
    return Study(
        name=name,
        title=title,
        seconds=0,
        full=f"--preset paper --seeds 3 --first-seed 0 --logits-rate 5e-3 --data dataset --augment "
        "yes --statistics both --stream no --aggregate-at features --held-out 0 --methods "
        f"{SHOWN} {full}",
        quick="--preset tiny --seeds 1 --methods ls si famo famo-one-pass",
        run=functools.partial(run, benchmark),
        summarize=functools.partial(_benchmark.summarize, paper),
        tables=functools.partial(_benchmark_report.tables, "Metrics on test", data),
        pictures={f"{name}.png": _benchmark_report.draw},
        options={"preset": preset, **OPTIONS, **options},
        curves=_benchmark.CURVES,
        epilog=f"{described(_benchmark.METHODS)}\n\nstl trains a SegNet for each task",
        check=check,
    )
