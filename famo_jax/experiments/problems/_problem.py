"""What a problem is."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from flax import nnx

Variables = tuple[chex.ArrayTree, chex.ArrayTree]  # parameters, and what else a model carries
Place: TypeAlias = Literal["parameters", "last layer", "features"]


class Task(NamedTuple):
    """A task, by how it is reported."""

    name: str
    loss: str
    metric: str
    decimals: int
    higher_is_better: bool = False  # of the metric


class Data(NamedTuple):
    """All that is seen of a problem, the same for every method. Any pytrees of arrays.

    Training data are one of three: batches, ``[steps, seeds, batch_size, ...]``; the numbers of
    their rows in a ``pool`` that is on the device; or a stream, ``(first, last) -> batches`` of
    these steps, ``epoch`` steps at a time.
    """

    train: Any
    validation: Any
    test: Any
    pool: Any = None
    epoch: int | None = None
    held_out_by_seed: bool = False  # whether each seed has validation and test data of its own

    def batches(self, first: int, last: int) -> Any:
        """``[last - first, seeds, ...]``, in which rows are not looked up yet."""
        if callable(self.train):
            return self.train(first, last)
        return jax.tree.map(lambda leaf: leaf[first:last], self.train)


class Problem(NamedTuple):
    """K tasks, what they are learned from, and the model that learns them.

    ``state`` is what a model carries besides its parameters, such as the statistics of its batch
    norm, and the key is of the step: dropout drawn from it is the same in both passes.
    """

    tasks: tuple[Task, ...]
    load_data: Callable[[int, Sequence[int], int], Data]  # of (steps, seeds, batch_size)
    init: Callable[[Sequence[int]], Variables]  # of seeds: a leading axis on every leaf
    losses: Callable[[Any, Any, Any, Any], Any]  # (params, state, batch, key) -> ([K], state)
    metrics: Callable[[Any, Any, Any], jax.Array]  # (params, state, held-out data) -> [M]
    # One function a loss, of the same arguments, where their gradients are cheaper one by one.
    each: tuple[Callable[..., jax.Array], ...] = ()
    # (params, state, batch, key) -> z and (params, z, state, batch, key) -> [K], of a model that
    # has features z; and which of its parameters are those of the layer that makes z.
    features: tuple[Callable[..., Any], Callable[..., jax.Array]] | None = None
    last_shared: Callable[[Any], Any] | None = None
    # Where aggregation methods take task gradients: without features on the parameters.
    place: Place = "features"


def no_data(steps: int, seeds: Sequence[int], batch_size: int = 0) -> Data:
    """Of a problem all of which is seen in each step."""
    del batch_size
    nothing = jnp.zeros((steps, len(seeds), 0))
    return Data(nothing, nothing[:0], nothing[:0])


class Network(nnx.Module):
    """Two hidden layers, and linear heads. The narrow second one is what the tasks fight for."""

    def __init__(self, sizes: Sequence[int], rngs: nnx.Rngs) -> None:
        inputs, wide, narrow, outputs = sizes
        self.wide = nnx.Linear(inputs, wide, rngs=rngs)
        self.narrow = nnx.Linear(wide, narrow, rngs=rngs)
        self.heads = nnx.Linear(narrow, outputs, rngs=rngs)

    def features(self, inputs: jax.Array) -> jax.Array:
        """``[..., inputs]`` to ``[..., narrow]``."""
        z: jax.Array = nnx.relu(self.narrow(nnx.relu(self.wide(inputs))))
        return z

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """``[..., inputs]`` to ``[..., outputs]``."""
        outputs: jax.Array = self.heads(self.features(inputs))
        return outputs


Make = Callable[[nnx.Rngs], nnx.Module]


def of_network(
    network: Make,
    tasks: tuple[Task, ...],
    load_data: Any,
    task_losses: Any,
    task_metrics: Any,
    inputs: Callable[[Any], jax.Array] | None = None,
) -> Problem:
    """A problem of a network that has nothing but parameters and needs no key.

    Of a :class:`Network` with ``inputs``, its inputs of a batch, task gradients can be taken
    everywhere, as a rule on all parameters; its losses are of features as well, where given these.
    """
    problem = Problem(
        tasks=tasks,
        load_data=load_data,
        init=lambda seeds: (init_params(network, seeds), ()),
        losses=lambda params, state, batch, _: (task_losses(params, batch), state),
        metrics=lambda params, _, held_out: task_metrics(params, held_out),
    )
    if inputs is None:
        return problem
    encode: Any = lambda params, batch: merged(network, params).features(inputs(batch))
    is_narrow: Any = lambda path, _: path[0] == jax.tree_util.DictKey("narrow")
    return problem._replace(
        features=(
            lambda params, state, batch, key: encode(params, batch),
            lambda params, z, state, batch, key: task_losses(params, batch, z),
        ),
        last_shared=functools.partial(jax.tree.map_with_path, is_narrow),
        place="parameters",
    )


def init_params(network: Make, seeds: Sequence[int]) -> chex.ArrayTree:
    """The parameters of one network for each seed: a leading axis on every leaf."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    params: chex.ArrayTree = jax.vmap(lambda key: nnx.split(network(nnx.Rngs(key)))[1])(keys)
    return params


def merged(network: Make, params: chex.ArrayTree) -> Any:
    """The network with these parameters."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: network(nnx.Rngs(0))))
    return nnx.merge(graphdef, params)


def apply(network: Make, params: chex.ArrayTree, inputs: jax.Array, z: Any = None) -> jax.Array:
    """The network as a pure function: of its inputs or, where given, of features z."""
    model = merged(network, params)
    outputs: jax.Array = model(inputs) if z is None else model.heads(z)
    return outputs


def draw_rows(steps: int, seeds: Sequence[int], batch_size: int, key: int, rows: int) -> jax.Array:
    """Numbers of rows, ``[steps, seeds, batch_size]``."""

    def draw(seed: jax.Array) -> jax.Array:
        seed_key = jax.random.fold_in(jax.random.key(key), seed)
        return jax.random.randint(seed_key, (steps, batch_size), 0, rows)

    return jax.vmap(draw, out_axes=1)(jnp.asarray(seeds))


def compose_batches(
    compose: Callable[[jax.Array], Any], key: jax.Array, steps: int, seeds: Sequence[int]
) -> Any:
    """``[steps, seeds]`` batches that ``compose`` draws from a key, of a seed always the same."""

    def composed() -> Any:
        seed_keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.asarray(seeds))

        def one_step(step: jax.Array) -> Any:
            return jax.vmap(lambda key: compose(jax.random.fold_in(key, step)))(seed_keys)

        return jax.lax.map(one_step, jnp.arange(steps))

    return jax.jit(composed)()
