"""The table of methods: one name, one description, one colour and one recipe each."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import optax

from famo_jax import aggregation, famo, weighting
from famo_jax.experiments.problems._problem import Place

Transformation: TypeAlias = optax.GradientTransformationExtraArgs


class Method(NamedTuple):
    """How K losses become one update."""

    description: str
    colour: str
    make: Callable[..., Transformation]  # of (K, **what it takes)
    # The hyperparameters besides the model's learning rate, each with a list of values; "task" is
    # the K tasks, of which single-task learning takes one at a time.
    takes: tuple[str, ...] = ()
    # Where a method takes the change of the losses from: the step before, the batch of the step,
    # their slope on it, or a batch that the step has not seen.
    measure: Literal["one-pass", "two-pass", "slope", "fresh"] = "one-pass"
    control: str = ""  # the same method with its logits frozen
    has_logits: bool = False
    aggregates: bool = False  # it combines task gradients, so it stands before Adam
    place: Place | None = None  # where it must take them, whatever a problem says

    @property
    def learns(self) -> bool:
        """Whether it has logits that move."""
        return self.has_logits and bool(self.takes)


OTHER = "#aaaaaa"  # the colour of methods that are beside the point
# What remembers task gradients has those of the parameters; GradDrop, as in its paper, of features.
PLACES: dict[str, Place] = dict.fromkeys(("db_mtl", "excess_mtl", "moco"), "parameters")
PLACES["graddrop"] = "features"


def _what(measure: str) -> Any:
    """Is taken of the losses."""
    return "slope" if measure == "slope" else "change"


def _famo(description: str, colour: str, measure: Any = "one-pass", **fixed: Any) -> Method:
    """A form of FAMO: how it measures, and what is fixed of its arguments."""
    fixed["measure"] = _what(measure)
    control = "frozen" if fixed.get("normalizer", "harmonic") == "harmonic" else "si"

    def make(num_tasks: int, gamma: Any, logits_rate: Any = 0.025) -> Transformation:
        more: Any = fixed
        return famo(num_tasks, learning_rate=logits_rate, weight_decay=gamma, **more)

    return Method(description, colour, make, ("gamma",), measure, control, has_logits=True)


def _frozen(description: str, colour: str, normalizer: Any) -> Method:
    make = lambda k: famo(k, learning_rate=0.0, normalizer=normalizer)
    return Method(description, colour, make, has_logits=True)


def _of_the_library() -> dict[str, Method]:
    """Every method of both packages, at its defaults; not those that stand around another one."""
    given: dict[str, Callable[[int], int]] = {"num_tasks": lambda k: k, "key": lambda _: 0}
    found = {}

    def make(k: int, own: Any, takes: Sequence[str]) -> Transformation:
        tx: Transformation = own(**{each: given[each](k) for each in takes})
        return tx

    for name in (*weighting.__all__, *aggregation.__all__):
        own = getattr(weighting, name, getattr(aggregation, name, None))
        if inspect.isfunction(own) and not name.endswith("_weights"):
            parameters = inspect.signature(own).parameters.values()
            takes = [each.name for each in parameters if each.default is each.empty]
            if set(takes) <= given.keys():
                found[name.replace("_", "-")] = Method(
                    (inspect.getdoc(own) or "").partition(":")[0],
                    OTHER,
                    functools.partial(make, own=own, takes=takes),
                    aggregates=name in aggregation.__all__,
                    place=PLACES.get(name),
                )
    return found


def _nash(description: str, colour: str, measure: Any, smoothing: float = 0.0) -> Method:
    def make(num_tasks: int, logits_rate: Any) -> Transformation:
        fixed: Any = {"measure": _what(measure), "smoothing": smoothing}
        return weighting.amortized_nash_mtl(num_tasks, learning_rate=logits_rate, **fixed)

    takes, control = ("logits_rate",), "first-loss"
    return Method(description, colour, make, takes, measure, control, has_logits=True)


def _amortized(description: str, factory: Any, measure: Any = "one-pass") -> Method:
    make = lambda k, gamma: factory(k, weight_decay=gamma, measure=_what(measure))
    return Method(description, OTHER, make, ("gamma",), measure, has_logits=True)


def _on_logs(description: str, method: Any) -> Method:
    return Method(description, OTHER, lambda _: aggregation.log_losses(method()), aggregates=True)


_LIBRARY = _of_the_library()
METHODS: dict[str, Method] = {
    "stl": Method(
        "a network for each task", "#000000", lambda _, task: weighting.stl(task), ("task",)
    ),
    "ls": _LIBRARY["ls"]._replace(description="mean of the losses", colour="#888888"),
    "si": _LIBRARY["si"]._replace(description="mean of the log losses", colour="#56b4e9"),
    "frozen": _frozen("FAMO, logits held at 0", "#0072b2", "harmonic"),
    "frozen-no-c": _frozen("the same without c, which is si", "#56b4e9", None),
    "famo": _famo("FAMO, two-pass", "#d55e00", "two-pass"),
    "famo-no-c": _famo("FAMO, two-pass, without c", "#e69f00", "two-pass", normalizer=None),
    "famo-one-pass": _famo("FAMO, one-pass", "#009e73"),
    "famo-one-pass-no-c": _famo("FAMO, one-pass, without c", "#cc79a7", normalizer=None),
    "famo-ema": _famo("FAMO, one-pass, changes smoothed by 0.9", "#7a4b1f", smoothing=0.9),
    "famo-ema-no-c": _famo("the same without c", "#b8860b", smoothing=0.9, normalizer=None),
    "famo-fresh": _famo("FAMO by the change on a fresh batch", "#5e3c99", "fresh"),
    "famo-fresh-no-c": _famo("the same without c", "#9970ab", "fresh", normalizer=None),
    "rlw": _LIBRARY["rlw"],
    "dwa": Method("weights by rates of change", OTHER, lambda k: weighting.dwa(k, window=25)),
    "uw": _LIBRARY["uw"]._replace(colour="#999933"),
    "first-loss": _LIBRARY["first-loss"]._replace(colour="#117733"),
    "famo-slope": _famo("FAMO by slope", "#882255", "slope"),
    "famo-slope-no-c": _famo("the same without c", "#aa4499", "slope", normalizer=None),
    "amortized-nash-mtl": _nash("amortized Nash-MTL, one-pass", "#44aa99", "one-pass"),
    "nash-two-pass": _nash("amortized Nash-MTL, two-pass", "#6699cc", "two-pass"),
    "nash-slope": _nash("amortized Nash-MTL, by slope", "#332288", "slope"),
    "nash-ema": _nash("amortized Nash-MTL, shares smoothed by 0.9", "#88ccee", "one-pass", 0.9),
    "amortized-cagrad": _amortized("amortized CAGrad", weighting.amortized_cagrad),
    "cagrad-slope": _amortized("amortized CAGrad, by slope", weighting.amortized_cagrad, "slope"),
    "amortized-mgda": _amortized("FAMO without logarithms", weighting.amortized_mgda),
    "mgda-slope": _amortized("amortized MGDA, by slope", weighting.amortized_mgda, "slope"),
    "log-mgda": _on_logs("MGDA on log losses", aggregation.mgda),
    "log-cagrad": _on_logs("CAGrad on log losses", aggregation.cagrad),
}
METHODS |= {name: method for name, method in _LIBRARY.items() if name not in METHODS}
CONTROLS = ("si", "frozen")  # they learn no weights: what FAMO's are worth is beyond them


def described(methods: dict[str, Method]) -> str:
    """A line each, for `--help`."""
    lines = "\n".join(f"  {name:20}{method.description}" for name, method in methods.items())
    return f"methods (c is FAMO's normaliser):\n{lines}"
