r"""Where task gradients are taken, and how often: ``python -m famo_jax.experiments.gram``.

MGDA, CAGrad, Nash-MTL and IMTL-G weigh tasks by the matrix G of the products of their gradients. It
is taken on all parameters; on those of the last layer that the tasks share, by ``gram_at``; or at
the features which that layer makes, by ``encoder``; and anew at every step or, by ``periodic``,
every R-th. What does the cheap way cost in quality? On each problem every form is trained at the
same number of learning rates by some seeds, whose validation chooses one, and reported on the test
by others. All forms share the seeds, so that each is paired with the same method on all parameters
at every step. :math:`\Delta m` is against the mean of single-task learning, each task at its rate.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import jax
import numpy as np

from famo_jax import aggregation
from famo_jax.experiments import _command, _comparison, _methods, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import METHODS, Method
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import attributes, digits, molecules
from famo_jax.experiments.problems._problem import Data, Place, Problem

if TYPE_CHECKING:
    from famo_jax.experiments import _train

# --- What is compared -----------------------------------------------------------------------------


class Cell(NamedTuple):
    """A problem, and how it is trained on."""

    problem: Problem
    steps: int
    batch_size: int
    rates: tuple[float, ...]


PROBLEMS = {
    "digits": Cell(digits.PROBLEM, 1500, 64, (1e-3, 3e-3, 1e-2, 3e-2)),
    "molecules": Cell(molecules.PROBLEM, 2000, 64, (3e-3, 1e-2, 3e-2, 1e-1)),
    "standardised": Cell(molecules.STANDARDISED, 2000, 64, (3e-3, 1e-2, 3e-2, 1e-1)),
    "attributes": Cell(attributes.PROBLEM, 400, 256, (3e-3, 1e-2, 3e-2, 1e-1)),
}
PLACES: tuple[Place, ...] = get_args(Place)
COLOURS = {"mgda": "#882255", "cagrad": "#e69f00", "nash-mtl": "#332288", "imtl-g": "#117733"}
CALL = 25  # steps in a call, and when they are timed: of so many one looks by `every` of 25


def _famo(num_tasks: int) -> Any:
    return METHODS["famo-ema-no-c"].make(num_tasks, gamma=0.1 / num_tasks)


YARDSTICKS = {
    "ls": METHODS["ls"],
    "si": METHODS["si"],
    "famo": METHODS["famo-ema-no-c"]._replace(make=_famo, takes=()),
}


class Form(NamedTuple):
    """A method, where it looks at the task gradients, and every how many steps."""

    method: str
    place: Place = "parameters"
    every: int = 1

    @property
    def reference(self) -> "Form":
        """The same method as its authors have it."""
        return Form(self.method)

    def __str__(self) -> str:
        name = f"{self.method}, {self.place}, {self.every}"
        return name if self.method in COLOURS else self.method


def forms_of(settings: Any) -> list[Form]:
    """All that is compared."""
    own = itertools.product(settings["methods"], PLACES, settings["every"])
    return [*map(Form, YARDSTICKS), *itertools.starmap(Form, own)]


def method_of(form: Form) -> Method:
    """As the runner takes it."""
    method = {**METHODS, **YARDSTICKS}[form.method]
    if form.every == 1:
        return method
    make = lambda k: aggregation.periodic(method.make(k), k, every=form.every)
    return method._replace(make=make)


def cell_of(name: str, settings: Any) -> Cell:
    """A problem as it is trained on with these options."""
    given = {"steps": settings["steps"], "rates": settings["learning_rate"]}
    return PROBLEMS[name]._replace(**{key: own for key, own in given.items() if own})


def settings_of(cell: Cell, form: Form) -> list[dict[str, Any]]:
    """All at which a form is tried."""
    grid = {"learning_rate": cell.rates, "task": range(len(cell.problem.tasks))}
    return _comparison.settings_of(method_of(form), grid)


# --- Training -------------------------------------------------------------------------------------


class Compiled(NamedTuple):
    """What all trainings of a form share, and the timing of its step."""

    begin: Callable[..., Any]
    advance: Callable[..., Any]
    metrics: Callable[..., jax.Array]


def arm_of(
    name: str, cell: Cell, form: Form, data: Data, settings: Sequence[Any], seeds: Sequence[int]
) -> "_train.Arm":
    """A form on a problem."""
    from famo_jax.experiments import _train

    problem = cell.problem._replace(place=form.place)
    return _train.Arm(
        name, problem, data, cell.steps, method_of(form), settings, seeds, settings_at_once=False
    )


def compile_all(cell: Cell, forms: Sequence[Form], data: Data) -> dict[Form, Compiled]:
    """Of each form; compiled when they are called for the first time."""
    from famo_jax.experiments import _train

    each = {form: _train.functions(arm_of("", cell, form, data, (), ())) for form in forms}
    metrics = jax.jit(cell.problem.metrics)
    return {
        form: Compiled(jax.jit(own.begin), jax.jit(own.advance), metrics)
        for form, own in each.items()
    }


def train(compiled: Compiled, arm: "_train.Arm", *_: Any) -> dict[str, Array]:
    """Trains one network after the other.

    Beside each other, all would look at the task gradients as soon as one of them does.
    """
    start = arm.problem.init(arm.seeds)
    rows = jax.tree.map(np.asarray, arm.data.train)
    found: dict[str, list[Any]] = {"validation": [], "test": []}
    for setting, place in itertools.product(arm.settings, range(len(arm.seeds))):
        carry = compiled.begin(setting, jax.tree.map(lambda leaf, i=place: leaf[i], start))
        key = jax.random.key(arm.seeds[place])
        for first in range(0, arm.steps, CALL):
            own = lambda leaf, first=first, i=place: leaf[first : first + CALL, i]
            batches = jax.tree.map(own, rows)
            carry, _ = compiled.advance(setting, carry, key, arm.data.pool, first, batches)
        for split, metrics in found.items():
            held_out = jax.tree.map(lambda leaf, i=place: leaf[i], getattr(arm.data, split))
            metrics.append(compiled.metrics(carry.params, carry.state, held_out))
    shape = len(arm.settings), len(arm.seeds), -1
    return {split: np.stack(metrics).reshape(shape) for split, metrics in found.items()}


def measure(
    cell: Cell, compiled: Mapping[Form, Compiled], data: Data, rounds: int
) -> dict[str, dict[str, float]]:
    """By form the time of a step over that of the mean of the losses, within a round."""
    from famo_jax.experiments import _train

    batches = jax.tree.map(lambda leaf: np.asarray(leaf[:CALL, 0]), data.train)
    start = jax.tree.map(lambda leaf: leaf[0], cell.problem.init([0]))
    calls = {}
    for form, own in compiled.items():
        setting = settings_of(cell, form)[0]
        given = setting, own.begin(setting, start), jax.random.key(0), data.pool, 0, batches
        calls[str(form)] = functools.partial(own.advance, *given)
    seconds = _train.interleaved_seconds(calls, rounds)
    plain = seconds[str(Form("ls"))]
    return {name: _statistics.quartiles(np.divide(own, plain)) for name, own in seconds.items()}


def run(options: argparse.Namespace, session: "_train.Session") -> Runs:
    """Trains all forms at all rates by the last seeds, then at the chosen by the others."""
    from famo_jax.experiments import _train

    cells = {name: cell_of(name, vars(options)) for name in options.problems}
    stl, forms = Form("stl"), forms_of(vars(options))
    reporting = range(options.seeds)
    tuning = range(options.seeds, options.seeds + options.tuning_seeds)
    data = {
        (name, seeds): cell.problem.load_data(cell.steps, seeds, cell.batch_size)
        for name, cell in cells.items()
        for seeds in (reporting, tuning)
    }
    compiled = {
        name: compile_all(cell, forms, data[name, reporting]) for name, cell in cells.items()
    }

    def arm(name: str, form: Form, settings: Sequence[Any], seeds: range) -> _train.Arm:
        title = f"{name}: {form}" + (" tuning" if seeds == tuning else "")
        made = arm_of(title, cells[name], form, data[name, seeds], settings, seeds)
        if form == stl:
            return made
        return made._replace(trained_by=functools.partial(train, compiled[name][form]))

    def plan() -> _train.Plan:
        every = {
            (name, form): settings_of(cell, form)
            for name, cell in cells.items()
            for form in (stl, *forms)
        }
        done = yield [arm(*pair, settings, tuning) for pair, settings in every.items()]
        chosen: dict[tuple[str, Form], list[int]] = {}
        for name in cells:
            own = [done[f"{name}: {form} tuning"]["validation"] for form in (stl, *forms)]
            pairs = itertools.product([name], (stl, *forms))
            chosen |= dict(zip(pairs, choose(own), strict=True))
        yield [
            arm(*pair, [every[pair][index] for index in own], reporting)
            for pair, own in chosen.items()
        ]

    runs = _train.run(plan(), session)
    times: dict[str, dict[str, float]] = {}
    for name, cell in cells.items():
        tell = session.row(f"{name}: time of a step")
        tell("measuring")
        found = measure(cell, compiled[name], data[name, reporting], options.rounds)
        times |= {f"{name}: {form}": own for form, own in found.items()}
        tell("done")
    return runs._replace(facts=runs.facts | {"times": times})


def choose(validation: Sequence[Array]) -> Iterator[list[int]]:
    """Which settings validation chooses, of *stl*, first, and of others.

    Args:
      validation: ``[settings, seeds, K]`` each; the settings of *stl* are of each task all rates.

    Yields:
      K places of *stl*, and one of each other.
    """
    stl, *others = map(_statistics.finite, validation)
    best, baseline = _comparison.single_tasks(stl)
    yield best
    for metrics in others:
        yield [_statistics.choose(_statistics.delta_m(metrics.mean(axis=1), baseline))]


# --- What is shown --------------------------------------------------------------------------------


def summarize(runs: Runs) -> dict[str, Any]:
    """By problem, method, place and period: delta m, what it is above the reference's, time."""
    settings, arms, times = (runs.facts[key] for key in ("settings", "arms", "times"))
    forms = forms_of(settings)

    def figures(problem: str, delta_m: Mapping[Form, Array], form: Form) -> dict[str, Any]:
        name = f"{problem}: {form}"
        own = _statistics.estimate(delta_m[form])
        above = _statistics.estimate(delta_m[form] - delta_m[form.reference])
        (setting,) = arms[name]["settings"]
        return {
            **{"delta_m": own["mean"], "se": own["se"]},
            **{"above": above["mean"], "low": above["low"], "high": above["high"]},
            "learning_rate": setting["learning_rate"],
            "step": times[name]["median"],
        }

    found: dict[str, Any] = {}
    for problem in settings["problems"]:
        test = {
            form: _statistics.finite(runs.arrays[f"{problem}: {form}"]["test"])
            for form in (Form("stl"), *forms)
        }
        each = np.arange(len(PROBLEMS[problem].problem.tasks))
        baseline = test[Form("stl")][each, :, each].mean(axis=-1)
        delta_m = {form: _statistics.delta_m(test[form][0], baseline) for form in forms}
        methods: dict[str, Any] = {}
        for form in forms:
            places = methods.setdefault(form.method, {}).setdefault(form.place, {})
            places[str(form.every)] = figures(problem, delta_m, form)
        rates = [each["learning_rate"] for each in arms[f"{problem}: ls tuning"]["settings"]]
        found[problem] = {"tasks": len(each), "rates": rates, "methods": methods}
    return found


class Row(NamedTuple):
    """What is shown of a form."""

    problem: str
    form: Form
    figures: dict[str, float]


def rows_of(summary: Summary) -> list[Row]:
    """All there are."""
    return [
        Row(problem, Form(method, place, int(every)), figures)
        for problem, own in summary.items()
        for method, places in own["methods"].items()
        for place, periods in places.items()
        for every, figures in periods.items()
    ]


def tables(summary: Summary) -> list[Any]:
    """Over all cases, the methods as they are, and every form against these."""
    rows = rows_of(summary)
    parts = [overall(rows), references(rows)]
    parts += [against(summary[name]["tasks"], [*own]) for name, own in _by_problem(rows).items()]
    parts.append(
        "Lower is better. ± by 95% intervals, paired by seed; worse or better where 0 is outside. "
        "Settings chosen on other seeds. / ls: time of a step over that of the mean of the losses; "
        "over all, the median of the methods. famo: smoothed one-pass, without c, gamma 0.1/K."
    )
    for problem, own in _by_problem(rows).items():
        rates = {"learning_rate": summary[problem]["rates"]}
        ends: dict[str, list[str]] = {}
        for row in own:
            for end in _statistics.edges([{"learning_rate": row.figures["learning_rate"]}], rates):
                ends.setdefault(end, []).append(str(row.form))
        for end, forms in ends.items():
            parts.append(f"{problem}, at the end of its list, {end}: {'; '.join(forms)}.")
    return parts


def _by_problem(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.problem, []).append(row)
    return groups


def overall(rows: Sequence[Row]) -> Any:
    """By place and period: in how many cases it is worse or better, and its time."""
    problems = list(_by_problem(rows))
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.form.method in COLOURS:
            groups.setdefault((row.form.place, row.form.every), []).append(row)
    cases = len(groups[PLACES[0], 1])
    table = _tables.new(
        f"Against all parameters at every step, in {cases} cases: methods on problems",
        ["gradients of", "every"],
        ["worse", "better", *(f"/ ls\n{name}" for name in problems)],
    )
    for (place, every), own in groups.items():
        worse = sum(row.figures["low"] > 0 for row in own)
        better = sum(row.figures["high"] < 0 for row in own)
        counts = ("", "") if own[0].form == own[0].form.reference else (str(worse), str(better))
        each = _by_problem(own).values()
        steps = [np.median([row.figures["step"] for row in group]) for group in each]
        table.add_row(place, _steps(every), *counts, *map(_ratio, steps))
    return table


def references(rows: Sequence[Row]) -> Any:
    """Delta m and time of the methods on all parameters at every step, and of the yardsticks."""
    own = [row for row in rows if row.form == row.form.reference]
    problems = _by_problem(own)
    headers = itertools.chain.from_iterable((f"{name}\nΔm (%)", "/ ls") for name in problems)
    title = "On all parameters at every step: Δm±standard error"
    table = _tables.new(title, ["method"], headers)
    for group in zip(*problems.values(), strict=True):
        cells: list[str] = []
        for row in group:
            own_mean = {"mean": row.figures["delta_m"], "se": row.figures["se"]}
            cells += [_tables.with_error(own_mean, space=""), _ratio(row.figures["step"])]
        table.add_row(group[0].form.method, *cells)
    return table


def against(num_tasks: int, rows: Sequence[Row]) -> Any:
    """On one problem every form against the same method on all parameters at every step."""
    own = [row for row in rows if row.form.method in COLOURS]
    periods = list(dict.fromkeys(row.form.every for row in own))
    headers = itertools.chain.from_iterable((_steps(every), "/ ls") for every in periods)
    title = f"{own[0].problem}, {num_tasks} tasks: Δm (%) above all parameters', every step"
    table = _tables.new(title, ["method", "gradients of"], headers, padding=1)
    places = itertools.groupby(own, lambda row: row.form[:2])
    for (method, place), group in places:
        cells: list[str] = []
        for row in group:
            is_reference = row.form == row.form.reference
            interval = row.figures | {"mean": row.figures["above"]}
            above = "" if is_reference else _tables.with_interval(interval)
            cells += [above, _ratio(row.figures["step"])]
        table.add_row(method if place == PLACES[0] else "", place, *cells)
    return table


def _steps(every: int) -> str:
    return "step" if every == 1 else f"{every} steps"


def _ratio(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1}f}"


MARKS = {"parameters": "o", "last layer": "s", "features": "^"}


def draw(summary: Summary) -> Any:
    """Delta m over the time of a step, a panel for each problem.

    Filled is what looks at every step, hollow what looks least often. From the reference, at the
    right, a line goes to the left: what loses nothing lies on it or below. Bars are the intervals
    of the distance from that line.
    """
    groups = _by_problem(rows_of(summary))
    seldom = max(row.form.every for row in rows_of(summary))
    columns = min(len(groups), 2)
    lines = -(-len(groups) // columns)
    figure: Any
    with _plots.picture(height=2.5 * lines + 0.5) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (problem, rows) in zip(grid, groups.items(), strict=False):
            _draw_over_cost(axes, rows, seldom)
            axes.set_title(f"{problem}: Δm (%)")
        for axes in grid[len(groups) :]:
            axes.set_visible(False)
        for axes in grid[len(groups) - columns : len(groups)]:
            axes.set_xlabel("time of a step over that of the mean of the losses")
        shown = [(place, {"marker": mark}) for place, mark in MARKS.items()]
        hollow = {"marker": "o", "fillstyle": "none"}
        handles = [
            grid[0].plot([], [], color="#444444", linestyle="", markersize=5, label=name, **own)[0]
            for name, own in [*shown, (f"hollow: every {seldom} steps", hollow)]
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _draw_over_cost(axes: Any, rows: Sequence[Row], seldom: int) -> None:
    ends = {}
    for row in rows:
        x, y = row.figures["step"], row.figures["delta_m"]
        if row.form.method not in COLOURS:
            axes.plot(x, y, "x", color="#888888", markersize=4)
            axes.annotate(row.form.method, (x, y), xytext=(-4, 0), ha="right", va="center",
                          textcoords="offset points", color="#666666")  # fmt: skip
            continue
        if row.form.every not in (1, seldom):
            continue
        colour = COLOURS[row.form.method]
        fill = "full" if row.form.every == 1 else "none"
        axes.plot(x, y, MARKS[row.form.place], color=colour, markersize=5, fillstyle=fill)
        if row.form == row.form.reference:
            axes.plot([1, x], [y, y], ":", color=colour, linewidth=0.8, zorder=0)
            ends[row.form.method] = y, colour
        else:
            bar = [y - row.figures["above"] + row.figures[end] for end in ("low", "high")]
            axes.plot([x, x], bar, color=colour, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(left=0.6)  # room for the names
    # What fails would squeeze the rest: it is in the tables.
    means = [row.figures["delta_m"] for row in rows]
    usual = [row.figures["delta_m"] for row in rows if row.form == row.form.reference]
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, min(0, *means)), min(high, 1.5 * max(usual)))
    _plots.plain_numbers(axes.xaxis)
    _plots.label_ends(axes, ends)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses batches that memory would not hold, and adds the reference."""
    seeds = options.seeds + options.tuning_seeds
    cells = [cell_of(name, vars(options)) for name in options.problems]
    _comparison.check_rows(parser, max(seeds * each.steps * each.batch_size for each in cells))
    if options.rounds < 2:
        parser.error(f"argument --rounds: expected at least 2, got {options.rounds}")
    options.every = sorted({1, *options.every})
    options.problems = [name for name in PROBLEMS if name in options.problems]
    options.methods = [name for name in COLOURS if name in options.methods]


_INSTEAD = "in place of each problem's own"
STUDY = Study(
    name="gram",
    title="Where task gradients are taken, and how often: quality over cost",
    seconds=1750,
    full="--problems digits molecules standardised attributes --seeds 10 --tuning-seeds 3 "
    "--every 1 5 25 --methods mgda cagrad nash-mtl imtl-g --rounds 15",
    quick="--problems molecules --steps 50 --seeds 2 --tuning-seeds 1 --every 1 5 "
    "--methods mgda nash-mtl --learning-rate 1e-2 --rounds 3",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"gram.png": draw},
    options={
        "problems": Option(_command.one_of([*PROBLEMS]), "what is learned", True, "NAME"),
        "steps": _command.OPTIONS["steps"]._replace(what=f"training steps, {_INSTEAD}"),
        "learning_rate": Option(
            _command.positive_float, f"to choose from, {_INSTEAD}", True, "RATE"
        ),
        "every": Option(_command.positive_int, "steps between two looks; 1 is added", True),
        "methods": _command.methods_option(list(COLOURS)),
        "rounds": Option(_command.positive_int, "how many times a step is timed, at least 2"),
    },
    epilog=_methods.described({name: METHODS[name] for name in COLOURS}),
    check=check,
    saves=False,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
