"""What a method is: a state, known by its type, and what is registered for that type.

A weighting method registers, with :func:`weighting`, the scalar that it makes of K losses, or, with
:func:`directing`, the direction that it makes of few pullbacks; an aggregation method only says,
with :func:`aggregation`, that it needs the gradients of the tasks.
Nothing else changes for a new method.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _tasks

# (state, losses [K], present [K]) -> []. The losses are at least float32, 1 for absent tasks,
# which contribute no term; its gradient are the loss weights.
Scalarize: TypeAlias = Callable[[Any, jax.Array, jax.Array], jax.Array]
# (state, pull, present [K]) -> gradient, where pull(weights [K]) is that of the weighted losses.
Direct: TypeAlias = Callable[[Any, Callable[[jax.Array], chex.ArrayTree], jax.Array], Any]
S = TypeVar("S", bound=type)


class Weighting(NamedTuple):
    """What is registered for the state of a weighting method: one of the first two."""

    scalarize: Scalarize | None
    direct: Direct | None
    tasks: str | None  # the field of the state whose last axis has the length K, if there is one
    last: bool  # whether its two-pass update has to see the updates as they are applied


_weighting: dict[type, Weighting] = {}
_aggregation: dict[type, bool] = {}  # whether they look at task gradients in some steps only


def weighting(
    state_type: type, *, tasks: str | None = None, last: bool = False
) -> Callable[[Scalarize], Scalarize]:
    """Registers, as a decorator, how losses are weighed by states of this type.

    Args:
      state_type: A NamedTuple.
      tasks: The field of the state whose last axis has the length K, if there is one.
      last: Whether ``losses_fn`` is evaluated at the updated parameters, so that the method has to
        stand last in its chain.
    """

    def register(scalarize: Scalarize) -> Scalarize:
        _weighting[state_type] = Weighting(scalarize, None, tasks, last)
        return scalarize

    return register


def directing(state_type: type, *, tasks: str, last: bool = False) -> Callable[[Direct], Direct]:
    """Registers likewise how states of this type make a gradient that no weighted loss has."""

    def register(direct: Direct) -> Direct:
        _weighting[state_type] = Weighting(None, direct, tasks, last)
        return direct

    return register


def aggregation(state_type: S, *, lazy: bool = False) -> S:
    """Registers, as a decorator, the type of the states of an aggregation method.

    Args:
      state_type: A NamedTuple.
      lazy: Whether the method looks at the task gradients in some steps only.
    """
    _aggregation[state_type] = lazy
    return state_type


def is_aggregation(state: Any) -> bool:
    """Whether this is the state of a method that needs the gradients of the tasks."""
    return type(state) in _aggregation


def is_lazy(state: Any) -> bool:
    """Whether this is the state of one that looks at them in some steps only."""
    return _aggregation.get(type(state), False)


def scalarize_by(state: Any) -> tuple[Scalarize, int | None]:
    """How a state weighs losses, and K, or None where it weighs any number of them."""
    scalarize = None if is_aggregation(state) else _weighting[type(state)].scalarize
    if scalarize is None:
        raise ValueError(
            f"`state`: {type(state).__name__} belongs to a method that combines the gradients of "
            "the tasks, which no weighted loss can express: use `losses_and_grads`"
        )
    return scalarize, _num_tasks(state)


def direct_by(state: Any) -> tuple[Direct | None, int | None]:
    """How a state makes a gradient of pullbacks, or None where it weighs losses, and K."""
    return _weighting[type(state)].direct, _num_tasks(state)


def _num_tasks(state: Any) -> int | None:
    tasks = _weighting[type(state)].tasks
    shape = getattr(getattr(state, tasks), "shape", ()) if tasks else ()
    return shape[-1] if shape else None


def from_losses(
    init: Callable[[], Any],
    learn: Callable[[Any, jax.Array, jax.Array], Any],
    *,
    num_tasks: int | None = None,
    needs_losses: bool = True,
    check: Callable[..., Any] = lambda losses, num_tasks: None,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a weighting method that learns from one step's losses, or nothing.

    Args:
      init: Returns the first state.
      learn: ``learn(state, losses, present)``, both ``[K]``, returns the next state.
      num_tasks: K, or None where any number will do.
      needs_losses: Whether ``update`` has to be given ``losses``. Without them ``learn`` gets none.
      check: ``check(losses, num_tasks=K)`` gets the losses as they were given, and their number,
        and raises where they do not fit.
    """
    expected = jax.eval_shape(init)  # before `init` no device is touched

    def init_fn(params: optax.Params) -> Any:
        del params
        return init()

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        losses: chex.ArrayTree | None = None,
        where: chex.ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        _checks.check_state(state, expected)
        if losses is None and not needs_losses:
            return updates, learn(state, jnp.zeros(0), jnp.zeros(0, bool))
        values = _tasks.flatten_tasks(losses, "losses", num_tasks)
        check(losses, num_tasks=values.size)
        present = _tasks.flatten_where(where, losses, values.size)
        return updates, learn(state, values, present)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def learn_nothing(state: Any, losses: jax.Array, present: jax.Array) -> Any:
    """What :func:`from_losses` takes where weights depend on this step's losses alone."""
    del losses, present
    return state


# --- The state in an optimizer state --------------------------------------------------------------


def find_state(state: chex.ArrayTree) -> Any:
    """The one state of a method that ``state`` is or holds, as arrays.

    Args:
      state: A method's own state or any pytree that holds exactly one: an Optax state (nested,
        chained, injected, wrapped), the ``opt_state`` of an NNX optimizer, a train state.

    Raises:
      ValueError: If there is none, or more than one in the containers that Optax builds.
    """
    # Where Optax puts states first. Only without success everywhere: a flattening of the whole
    # tree takes a hundred times as long as the arithmetic when the model is large.
    found = list(_states_among_tuples(state)) or [
        leaf for leaf in jax.tree.leaves(state, is_leaf=_is_method_state) if _is_method_state(leaf)
    ]
    if len(found) > 1:
        names = " and ".join(type(each).__name__ for each in found)
        raise ValueError(
            f"`state`: expected the state of exactly one method, got {names}: a chain has one "
            "method, `chain(adam, famo(K))` or `chain(mgda(), adam)`"
        )
    if not found:
        raise ValueError(
            "`state`: expected the state of a method, or an optimizer state that holds exactly "
            f"one, got none in a {type(state).__name__}"
        )
    return jax.tree.map(_without_variable, found[0], is_leaf=_is_variable)


def check_first(state: chex.ArrayTree) -> None:
    """Raises ValueError where an aggregation method is seen not to stand first in its chain.

    What stands before it would take task-stacked gradients for those of the parameters. A link
    without arrays in its state, first of three, passes: this is what
    ``optax.experimental.aggregating.process`` builds of a preprocessor, which is meant to see them.
    """
    for node in _chains(state):
        for index, link in enumerate(node):
            if not any(is_aggregation(each) for each in _states_among_tuples(link)):
                continue
            processed = index == 1 and len(node) == 3 and not jax.tree.leaves(node[0])
            if index > 0 and not processed:
                name = type(next(_states_among_tuples(link))).__name__
                raise ValueError(
                    f"`state`: expected an aggregation method first in its chain, where it "
                    f"combines the gradients of the tasks, got {name} in place {index + 1} of "
                    f"{len(node)}: write `chain(mgda(), adam)`, not `chain(adam, mgda())`"
                )


def check_last(state: chex.ArrayTree) -> None:
    """Raises ValueError where a method that evaluates ``losses_fn`` is not the last of its chain.

    What follows would change the updates after it has looked where they lead.
    """
    for node in _chains(state):
        for index, link in enumerate(node[:-1]):
            for each in _states_among_tuples(link):
                if type(each) in _weighting and _weighting[type(each)].last:
                    raise ValueError(
                        "`losses_fn`: expected the method last in its chain, where the updates are "
                        f"those to be applied, got {type(each).__name__} in place {index + 1} of "
                        f"{len(node)}: write `chain(adam, famo(K))`, not `chain(famo(K), adam)`"
                    )


def _is_method_state(node: Any) -> bool:
    return type(node) in _weighting or type(node) in _aggregation


def _states_among_tuples(node: Any) -> Iterator[Any]:
    """Descends NamedTuples, and containers whose first child is a tuple, as Optax builds them.

    Moments shaped like parameters are so passed over.
    """
    if _is_method_state(node):
        yield node
    else:
        for child in _children(node):
            yield from _states_among_tuples(child)


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, tuple | list | dict):
        children: Any = node.values() if isinstance(node, dict) else node
        if hasattr(node, "_fields") or isinstance(next(iter(children), None), tuple):
            return children  # type: ignore[no-any-return]
    return ()


def _chains(node: Any) -> Iterator[list[Any]]:
    """The states of ``optax.chain`` and ``optax.named_chain`` in a state, link by link."""
    children = () if _is_method_state(node) else _children(node)
    # A plain dict has forgotten the order of its links: jit sorts its keys.
    if type(node) in (tuple, list, collections.OrderedDict):
        yield list(children)
    for child in children:
        yield from _chains(child)


def _is_variable(leaf: Any) -> bool:
    """Whether this is an NNX Variable, in which Flax keeps each leaf of an optimizer state."""
    return hasattr(leaf, "__jax_array__") and not isinstance(leaf, jax.Array)


def _without_variable(leaf: Any) -> Any:
    return leaf.__jax_array__() if _is_variable(leaf) else leaf
