"""The table of methods: one name, one description, one colour and one recipe each."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import optax

from famo_jax import aggregation, famo, weighting

Transformation: TypeAlias = optax.GradientTransformationExtraArgs


class Method(NamedTuple):
    """How K losses become one update."""

    description: str
    colour: str
    make: Callable[..., Transformation]  # of (K, **what it takes)
    # The hyperparameters besides the model's learning rate, each with a list of values; "task" is
    # the K tasks, of which single-task learning takes one at a time.
    takes: tuple[str, ...] = ()
    # Where FAMO takes the change of the losses from: the step before, the batch of the step (their
    # change on it, or their slope), or one that the step has not seen.
    measure: Literal["one-pass", "two-pass", "slope", "fresh"] = "one-pass"
    control: str = ""  # the same method with its logits frozen
    has_logits: bool = False
    aggregates: bool = False  # it combines task gradients, so it stands before Adam


OTHER = "#aaaaaa"  # the colour of methods that are beside the point


def _what(measure: str) -> Literal["change", "slope"]:
    """Is taken of the losses."""
    return "slope" if measure == "slope" else "change"


def _famo(description: str, colour: str, **fixed: Any) -> Method:
    """A form of FAMO: what is fixed of its arguments, and how it measures."""
    measure = fixed.pop("measure", "one-pass")
    normalizer = fixed.get("normalizer", "harmonic")
    what = _what(measure)

    def make(num_tasks: int, gamma: Any) -> Transformation:
        tx: Transformation = famo(num_tasks, weight_decay=gamma, measure=what, **fixed)
        return tx

    control = "frozen" if normalizer == "harmonic" else "si"
    return Method(description, colour, make, ("gamma",), measure, control, has_logits=True)


def _frozen(description: str, colour: str, normalizer: Any) -> Method:
    def make(num_tasks: int) -> Transformation:
        tx: Transformation = famo(num_tasks, learning_rate=0.0, normalizer=normalizer)
        return tx

    return Method(description, colour, make, has_logits=True)


def _nash(description: str, colour: str, measure: Any, smoothing: float = 0.0) -> Method:
    def make(num_tasks: int, logits_rate: Any) -> Transformation:
        tx: Transformation = weighting.amortized_nash_mtl(
            num_tasks, learning_rate=logits_rate, measure=_what(measure), smoothing=smoothing
        )
        return tx

    return Method(
        description, colour, make, ("logits_rate",), measure, "first-loss", has_logits=True
    )


def _amortized(
    description: str, transformation: Callable[..., Transformation], measure: Any = "one-pass"
) -> Method:
    def make(num_tasks: int, gamma: Any) -> Transformation:
        return transformation(num_tasks, weight_decay=gamma, measure=_what(measure))

    return Method(description, OTHER, make, ("gamma",), measure, has_logits=True)


def _aggregation(description: str, make: Callable[[], Transformation]) -> Method:
    return Method(description, OTHER, lambda _: make(), aggregates=True)


METHODS: dict[str, Method] = {
    "stl": Method(
        "a network for each task", "#000000", lambda _, task: weighting.stl(task), ("task",)
    ),
    "ls": Method("mean of the losses", "#888888", lambda _: weighting.ls()),
    "si": Method("mean of the log losses", "#56b4e9", lambda _: weighting.si()),
    "frozen": _frozen("FAMO, logits held at 0", "#0072b2", "harmonic"),
    "frozen-no-c": _frozen("the same without c, which is si", "#56b4e9", None),
    "famo": _famo("FAMO, two-pass", "#d55e00", measure="two-pass"),
    "famo-no-c": _famo("FAMO, two-pass, without c", "#e69f00", measure="two-pass", normalizer=None),
    "famo-one-pass": _famo("FAMO, one-pass", "#009e73"),
    "famo-one-pass-no-c": _famo("FAMO, one-pass, without c", "#cc79a7", normalizer=None),
    "famo-ema": _famo("FAMO, one-pass, changes smoothed by 0.9", "#7a4b1f", smoothing=0.9),
    "famo-ema-no-c": _famo("the same without c", "#b8860b", smoothing=0.9, normalizer=None),
    "famo-fresh": _famo("FAMO by the change on a fresh batch", "#5e3c99", measure="fresh"),
    "famo-fresh-no-c": _famo("the same without c", "#9970ab", measure="fresh", normalizer=None),
    "rlw": Method("random weights", OTHER, lambda k: weighting.rlw(k, key=0)),
    "dwa": Method("weights by rates of change", OTHER, lambda k: weighting.dwa(k, window=25)),
    "uw": Method("learned uncertainties", "#999933", lambda k: weighting.uw(k)),
    "first-loss": Method(
        "1 / first loss, held fixed", "#117733", lambda k: weighting.first_loss(k)
    ),
    "famo-slope": _famo("FAMO by slope", "#882255", measure="slope"),
    "famo-slope-no-c": _famo("the same without c", "#aa4499", measure="slope", normalizer=None),
    "nash-slope": _nash("amortized Nash-MTL, by slope", "#332288", "slope"),
    "nash-two-pass": _nash("amortized Nash-MTL, two-pass", "#6699cc", "two-pass"),
    "nash-one-pass": _nash("amortized Nash-MTL, one-pass", "#44aa99", "one-pass"),
    "nash-ema": _nash("the same, shares smoothed by 0.9", "#88ccee", "one-pass", 0.9),
    "cagrad-slope": _amortized("amortized CAGrad, by slope", weighting.amortized_cagrad, "slope"),
    "mgda-slope": _amortized("amortized MGDA, by slope", weighting.amortized_mgda, "slope"),
    "amortized-mgda": _amortized("FAMO without logarithms", weighting.amortized_mgda),
    "mgda": _aggregation("the least convex combination", aggregation.mgda),
    "pcgrad": _aggregation(
        "conflicts projected away", functools.partial(aggregation.pcgrad, key=0)
    ),
    "cagrad": _aggregation("conflict-averse around the mean", aggregation.cagrad),
    "imtl-g": _aggregation("equal projections", aggregation.imtl_g),
    "graddrop": _aggregation(
        "one sign for each entry", functools.partial(aggregation.graddrop, key=0)
    ),
    "nash-mtl": _aggregation("the Nash bargaining solution", aggregation.nash_mtl),
    "log-mgda": _aggregation(
        "mgda on log losses", lambda: aggregation.log_losses(aggregation.mgda())
    ),
    "log-cagrad": _aggregation(
        "cagrad on log losses", lambda: aggregation.log_losses(aggregation.cagrad())
    ),
}
CONTROLS = ("si", "frozen")  # they learn no weights: what FAMO's are worth is beyond them


def described(methods: dict[str, Method]) -> str:
    """A line each, for `--help`."""
    lines = "\n".join(f"  {name:20}{method.description}" for name, method in methods.items())
    return f"methods (c is FAMO's normaliser):\n{lines}"
