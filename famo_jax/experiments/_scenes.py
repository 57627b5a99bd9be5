"""What the studies of NYU-v2 and CityScapes share."""

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from famo_jax.experiments import _benchmark, _benchmark_report, _command
from famo_jax.experiments._benchmark import number_of
from famo_jax.experiments._files import Runs
from famo_jax.experiments._methods import described
from famo_jax.experiments._study import Option, Study, Summary

if TYPE_CHECKING:
    from famo_jax.experiments._train import Session

LEVELS = 5  # that the networks have in full
SMALL = {
    "network": "segnet",
    "width": 8,
    "levels": 4,
    "batch_size": 4,
    "epochs": 12,
    "halve_every": 6,
    "last": 3,
    "learning_rate": [1e-2],
    "at_once": 8,
}
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
    "width": 16,
    "levels": 1,
    "batch_size": 2,
    "epochs": 2,
    "halve_every": 1,
    "last": 1,
    "learning_rate": [1e-2],
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
        **_benchmark.facts_of(options.data),
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
    runs = _benchmark.train(
        options, session, problem, trained_by, own.metrics, own.stl, facts,
        of_task=lambda task: dense.problem(own, train, test, plan, task),
        at_once=options.at_once,
        schedule=lambda setting, steps: setting["learning_rate"],
    )  # fmt: skip
    some = {name: leaf[: dense.SHOWN] for name, leaf in test._asdict().items() if leaf is not None}
    if not runs.arrays:
        return runs
    return Runs(runs.facts | {"shared": [TRUTH]}, runs.arrays | {TRUTH: some})


# --- What networks tell ---------------------------------------------------------------------------

TRUTH = "truth"  # of the scenes that are shown
VIEWS = ("classes", "depth", "normals")
IN_PICTURE = ("ls", "si", "famo", "famo-ema-no-c", "nash-mtl")


def summarize(paper: _benchmark.Paper, look: Callable[[], Any], runs: Runs) -> dict[str, Any]:
    """What :func:`_benchmark.summarize` says, and what networks of the first seed tell."""
    summary = _benchmark.summarize(paper, runs)
    return summary | {"told": told(look(), summary, runs) if TRUTH in runs.arrays else {}}


def told(look: Any, summary: Summary, runs: Runs) -> dict[str, Any]:
    """By method the views of each scene, uint8 ``[scenes, views, H, W, 3]``, after the truth's."""
    from famo_jax.experiments.problems import _views

    truth = runs.arrays[TRUTH]
    normal = truth.get("normal")

    def views(shown: Any) -> Any:
        parts = shown[..., 0], shown[..., 1], shown[..., 2:] if normal is not None else None
        return np.stack(look.views(*parts), axis=1)

    shown = {name: runs.arrays[name]["shown"][at, 0] for name, at in summary["chosen"].items()}
    singles = [shown.pop(name) for name in [*shown] if name.startswith(f"{_benchmark.STL}-")]
    # Each network of one task tells its own, and NaN of the others.
    rows = {_benchmark.STL: functools.reduce(np.fmax, singles)} if singles else {}
    known = [name for name in IN_PICTURE if name in shown]
    rows |= {name: shown[name] for name in known or [*shown][:5]}
    return {
        "picture": _views.colours(truth["image"]),
        "views": {
            "truth": np.stack(look.views(truth["label"], truth["depth"], normal), axis=1),
            **{name: views(own) for name, own in rows.items()},
        },
    }


def draw(summary: Summary) -> Any:
    """A row a method, a column a task of each scene."""
    from famo_jax.experiments import _plots

    rows = summary["told"].get("views", {})
    if not rows:
        with _plots.picture(height=1) as figure:
            return figure
    scenes, across, high, wide = rows["truth"].shape[:4]
    columns = scenes * (across + 1)
    height = len(rows) * 8.5 / columns * high / wide + 0.25
    with _plots.picture(height) as figure:
        figure.set_layout_engine("none")
        edges = {"left": 0.005, "right": 0.995, "bottom": 0.005, "top": 1 - 0.25 / height}
        apart = {"wspace": 0.04, "hspace": 0.04}
        grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=edges | apart)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes_of_row, (name, views) in zip(grid, rows.items(), strict=True):
            for scene in range(scenes):
                start = scene * (across + 1)
                if name == "truth":
                    axes_of_row[start].imshow(
                        summary["told"]["picture"][scene], interpolation="nearest"
                    )
                    axes_of_row[start].set_title("picture")
                else:
                    axes_of_row[start].text(0.95, 0.5, name, ha="right", va="center")
                for axes, view, task in zip(
                    axes_of_row[start + 1 :], views[scene], VIEWS, strict=False
                ):
                    axes.imshow(view, interpolation="nearest")
                    if name == "truth":
                        axes.set_title(task)
    return figure


def data(summary: Summary) -> str:
    """What was trained on."""
    problem = summary["problem"]
    size = " x ".join(map(str, problem["size"]))
    train, test = problem["scenes"]
    return (
        f"{problem['network']} on {train} scenes of {size}, tested on {test}; metrics are means of "
        f"batches, then of the last epochs. {_benchmark.data(problem)}"
    )


SHOWN = "ls si rlw dwa uw mgda pcgrad graddrop cagrad imtl-g nash-mtl famo"


def study(
    name: str,
    title: str,
    benchmark: Callable[[], Any],
    look: Callable[[], Any],
    presets: Mapping[str, Mapping[str, Any]],
    paper: _benchmark.Paper,
    full: str,
    options: Mapping[str, Option],
) -> Study:
    """Of one of the two, which ``benchmark`` returns, as ``look`` how it is coloured."""

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
        summarize=functools.partial(summarize, paper, look),
        tables=functools.partial(_benchmark_report.tables, "Metrics on test", data),
        pictures={f"{name}.png": _benchmark_report.draw, f"{name}_scenes.png": draw},
        options={"preset": preset, **OPTIONS, **options},
        curves=_benchmark.CURVES | {"told"},
        epilog=f"{described(_benchmark.METHODS)}\n\nstl trains a SegNet for each task",
        check=check,
    )
