"""How a benchmark's summary is shown: metrics beside the paper's, delta m, changes, a picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from famo_jax.experiments import _statistics, _tables
from famo_jax.experiments._benchmark import METHODS
from famo_jax.experiments._study import Summary

# --- Tables ---------------------------------------------------------------------------------------

MANY = 12  # more metrics than that do not fit into 80 columns


def tables(title: str, data: Callable[[Summary], str], summary: Summary) -> list[Any]:
    """Metrics beside the paper's, delta m, changes against the mean of the losses."""
    parts: list[Any] = [notes(data, summary)]
    if summary["steps"]:
        return [*parts, steps_table(summary)]
    if len(summary["problem"]["tasks"]) <= MANY:
        parts += [errors_table(title, summary), delta_m_table(summary)]
        parts += [changes_table(summary)] if "ls" in summary["methods"] else []
        parts.append(training_table(summary))
        pooled = any("pooled" in each for each in summary["methods"].values())
        return parts + ([pooled_table(summary)] if pooled else [])
    more = delta_m_table(summary), training_table(summary)
    return [*parts, spread_table(title, summary), *more]


def notes(data: Callable[[Summary], str], summary: Summary) -> str:
    """What was run, on what data."""
    problem, methods = summary["problem"], summary["methods"]
    seeds = sorted({len(each["seeds"]) for each in methods.values()}) or [1]
    counted = "a seed" if seeds == [1] else f"{' or '.join(map(str, seeds))} seeds"
    lines = [
        f"Preset {summary['preset']}: {problem['parameters']:,} parameters, "
        f"{problem['steps']:,} steps, {counted}. {data(summary)}"
    ]
    switches = [f"{name.replace('_', '-')} {own}" for name, own in summary["switches"].items()]
    lines += [f"With {', '.join(switches)}."] if switches else []
    if summary["stl"]:
        lines.append("stl: a network of one task each, of this run; Δm is against it.")
    lines += [
        f"{name}: at the end of its list: {', '.join(each['edges'])}."
        for name, each in methods.items()
        if each["edges"]
    ]
    return "\n".join(lines)


def short(value: float) -> str:
    """Three digits in at most five characters."""
    if not np.isfinite(value):
        return "nan"
    text = f"{value:#.3g}"
    return f"{value:.0f}" if "e" in text or value >= 100 else text.removeprefix("0")


def cells(values: Mapping[str, float], tasks: Sequence[Any]) -> list[str]:
    """Of metrics whose range is known with their decimals, of others with three digits."""
    if not any(task["higher_is_better"] for task in tasks):
        return [short(values[task["name"]]) for task in tasks]
    return [f"{values[task['name']]:.{task['decimals']}f}".removeprefix("0") for task in tasks]


def errors_table(title: str, summary: Summary) -> Any:
    """A row a method; below it the paper's, and by how much ours is worse than that."""
    tasks = summary["problem"]["tasks"]
    table = _tables.new(title, ["method"], [task["name"] for task in tasks])
    if summary["stl"]:
        table.add_row("stl", *cells(summary["stl"], tasks))
    for name, each in summary["methods"].items():
        table.add_row(name, *cells(each["test"], tasks))
        if "paper" in each:
            table.add_row("  paper", *cells(each["paper"], tasks))
            ours, paper = (list(each[key].values()) for key in ("test", "paper"))
            higher = [task["higher_is_better"] for task in tasks]
            worse = _statistics.changes(ours, paper, higher)
            table.add_row("  worse %", *(f"{change:+.0f}" for change in worse))
    return table


def pooled_table(summary: Summary) -> Any:
    """Metrics of all pixels at once, not means over batches."""
    tasks = summary["problem"]["tasks"]
    names = [task["name"] for task in tasks]
    table = _tables.new("The same over all pixels, not batch by batch", ["method"], names)
    for name, each in summary["methods"].items():
        table.add_row(name, *cells(each["pooled"], tasks))
    return table


def steps_table(summary: Summary) -> Any:
    """What a step costs, where nothing was trained: of all methods in turns."""
    headers = ("seconds", "quartiles", "/ ls", "memory\n(MiB)", "GFLOP", "/ ls")
    table = _tables.new("A training step; temporary memory", ["method"], headers, padding=1)
    base = summary["steps"]["ls"]
    for name, each in summary["steps"].items():
        table.add_row(
            name,
            f"{each['median']:.3g}",
            f"{each['q1']:.3g}-{each['q3']:.3g}",
            f"{each['median'] / base['median']:.2f}",
            f"{each['temporary_bytes'] / 2**20:.0f}",
            f"{each['operations'] / 1e9:.3g}",
            f"{each['operations'] / base['operations']:.2f}",
        )
    return table


def spread_table(title: str, summary: Summary) -> Any:
    """Of many metrics their mean, and how the changes against single-task networks are spread."""
    tasks = summary["problem"]["tasks"]
    higher = [task["higher_is_better"] for task in tasks]
    stl = summary["stl"] or summary["problem"]["stl"]
    headers = ("mean", "worst change\nagainst stl (%)", "of", f"better\nof {len(tasks)}")
    table = _tables.new(title, ["method"], headers, padding=2)
    table.add_row("stl", f"{np.mean(list(stl.values())):.4f}")
    for name, each in summary["methods"].items():
        values = list(each["test"].values())
        changes = _statistics.changes(values, list(stl.values()), higher)
        worst = int(np.argmax(np.where(np.isnan(changes), -np.inf, changes)))
        better = f"{int(np.sum(changes < 0))}"
        mean = f"{np.mean(values):.4f}"
        table.add_row(name, mean, f"{changes[worst]:+.1f}", tasks[worst]["name"], better)
    return table


def delta_m_table(summary: Summary) -> Any:
    """Against the official single-task networks, and against others of this run."""
    methods = summary["methods"]
    others = [name for name in ("ls", "si", "first-loss") if name in methods]
    whose = "stl (%)" if summary["stl"] else "official\nstl (%)"
    papers = any("paper_delta_m" in each for each in methods.values())
    headers = (f"Δm to\n{whose}", *(["paper's\nΔm"] if papers else []))
    table = _tables.new(
        "Δm, and the mean change of the errors against others, paired by seed: mean±95%",
        ["method"],
        (*headers, *(f"- {name}\n(%)" for name in others if "ls" in methods)),
        padding=1,
    )
    for name, each in methods.items():
        against = (
            [each.get("against", {}).get(other) for other in others] if "ls" in methods else []
        )
        table.add_row(
            name,
            _told(each["delta_m"], sign=""),
            *([f"{each['paper_delta_m']:.1f}" if "paper_delta_m" in each else ""] * papers),
            *map(_told, against),
        )
    return table


def training_table(summary: Summary) -> Any:
    """At which rate, until when, how far the logits went, and what a step costs."""
    headers = ("learning\nrate", "best\nepoch", "range of the\nlogits", "step\n/ ls")
    table = _tables.new("Training", ["method"], headers, padding=1)
    for name, each in summary["methods"].items():
        step, ranges = each.get("step_relative_to_ls"), each.get("logit_range")
        table.add_row(
            name,
            f"{each['setting']['learning_rate']:g}",
            f"{np.mean(each['best_epoch']):.0f}",
            f"{ranges[0]:.2f}" if ranges else "",
            f"{step:.2f}" if step else "",
        )
    return table


def _told(estimate: Any, sign: str = "+") -> str:
    """Of a single seed there is no interval."""
    if not isinstance(estimate, Mapping):
        return ""
    if not np.isfinite(estimate["se"]):
        return f"{estimate['mean']:{sign}.1f}"
    return _tables.with_interval(estimate, sign)


def changes_table(summary: Summary) -> Any:
    """Of each error against that of the mean of the losses; a star where 95% leave out 0."""
    tasks = [task["name"] for task in summary["problem"]["tasks"]]
    table = _tables.new(
        "Change of each error against ls (%), *: zero is outside of its 95%", ["method"], tasks
    )
    for name, each in summary["methods"].items():
        if isinstance(each.get("change_over_ls"), list):
            table.add_row(
                name,
                *(
                    f"{task['mean']:+.0f}{'*' if task['low'] * task['high'] > 0 else ''}"
                    for task in each["change_over_ls"]
                ),
            )
    return table


# --- The picture ----------------------------------------------------------------------------------


def draw(summary: Summary) -> Any:
    """Changes against ls by task and on average, validation over epochs, task weights."""
    from matplotlib import colormaps

    from famo_jax.experiments import _plots

    methods = summary["methods"]
    tasks = [task["name"] for task in summary["problem"]["tasks"]]
    losses = summary["problem"]["losses"]
    epochs = np.arange(1, summary["epochs"] + 1)
    figure: Any
    with _plots.picture(height=8.4) as figure:
        above, middle, below = figure.subfigures(3, 1, height_ratios=(1, 1.1, 1))
        _draw_changes(above.subplots(), methods, tasks)
        left, right = middle.subplots(1, 2)
        _draw_means(left, methods)
        curves = {
            name: (np.array(each["validation_curve"]), METHODS[name].colour)
            for name, each in methods.items()
        }
        everywhere = [value for values, _ in curves.values() for value in values]
        if min(everywhere, default=0) > 0:
            right.set_yscale("log")
            _plots.plain_numbers(right.yaxis)
        _plots.lines(right, epochs, curves)
        whose = "stl" if summary["stl"] else "the official STL"
        right.set_title(f"Δm on validation, against {whose} (%)")
        right.set_xlabel("epoch")
        forms = [
            name for name in ("famo", "famo-ema-no-c") if "task_weights" in methods.get(name, {})
        ]
        forms = forms or [name for name, each in methods.items() if "task_weights" in each][:2]
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(losses)))
        for axes, name in zip(
            np.atleast_1d(below.subplots(1, max(len(forms), 1))), forms, strict=False
        ):
            weights = np.array(methods[name]["task_weights"])
            series = dict(zip(losses, zip(weights.T, colours, strict=True), strict=True))
            _plots.lines(axes, epochs, series, labelled=len(losses) <= MANY)
            axes.set_title(f"task weights of {name}")
            axes.set_xlabel("epoch")
    return figure


def _draw_changes(axes: Any, methods: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """Of each error against ls, a point a method, with its 95%."""
    shown = {
        name: each["change_over_ls"]
        for name, each in methods.items()
        if isinstance(each.get("change_over_ls"), list)
    }
    for place, (name, changes) in enumerate(shown.items()):
        x = np.arange(len(tasks)) + 0.07 * (place - (len(shown) - 1) / 2)
        means = np.array([task["mean"] for task in changes])
        half = np.array([(task["high"] - task["low"]) / 2 for task in changes])
        axes.errorbar(
            x,
            means,
            half if np.isfinite(half).all() else None,
            fmt="o",
            color=METHODS[name].colour,
            markersize=3.5,
            linewidth=1,
            label=name,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    crowded = {"rotation": 90, "fontsize": 5} if len(tasks) > MANY else {}
    axes.set_xticks(range(len(tasks)), tasks, **crowded)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_ylabel("change (%)")
    axes.set_title("each error against ls")
    if shown:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=min(len(shown), 6))


def _draw_means(axes: Any, methods: Mapping[str, Any]) -> None:
    """The mean over tasks."""
    from famo_jax.experiments import _plots

    rows = {}
    for name, each in methods.items():
        if isinstance(each.get("against", {}).get("ls"), Mapping):
            ls = np.array(methods["ls"]["over_ls_by_seed"])
            own = np.array(each["over_ls_by_seed"])
            if len(own) == len(ls):
                own = own - ls
            rows[name] = (each["against"]["ls"], METHODS[name].colour, own.tolist())
    axes.set_title("their mean, lower is better")
    axes.axvline(0, color="black", linewidth=0.8)
    if rows:
        _plots.estimates(axes, rows, "against ls (%): mean, 95%, each seed")
