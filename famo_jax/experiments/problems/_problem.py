"""What a problem is."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Variables = tuple[chex.ArrayTree, chex.ArrayTree]  # parameters, and what else a model carries
AT_ONCE = 16  # steps whose batches are on the device at once, where data are streamed
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
    these steps, of one epoch, ``epoch`` steps or ``at_once`` at a time. Held-out data are of each
    seed: ``[seeds, ...]``.
    """

    train: Any
    validation: Any
    test: Any
    pool: Any = None
    epoch: int | None = None
    at_once: int | None = None

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
    # Of a batch, which tasks it has: [K] booleans. None: all of them, always.
    present: Callable[[Any], jax.Array] | None = None
    # One function a loss, of the same arguments, where their gradients are cheaper one by one.
    each: tuple[Callable[..., jax.Array], ...] = ()
    # (params, state, batch, key) -> z and (params, z, state, batch, key) -> [K], of a model that
    # has features z; and which of its parameters are those of the layer that makes z.
    features: tuple[Callable[..., Any], Callable[..., jax.Array]] | None = None
    last_shared: Callable[[Any], Any] | None = None
    # Where aggregation methods take task gradients: without features on the parameters.
    place: Place = "features"
    # Whether the second pass of a two-pass method moves the state too, as in the official code.
    both_passes: bool = False
    # Whether each step is a call of its own, not one of a loop, in which XLA's convolutions are
    # slow on a CPU.
    step_by_step: bool = False
    # (params, state) -> what a network tells of a few test examples, to be looked at.
    shown: Callable[[Any, Any], jax.Array] | None = None


def no_data(steps: int, seeds: Sequence[int], batch_size: int = 0) -> Data:
    """Of a problem all of which is seen in each step."""
    del batch_size
    nothing = jnp.zeros((steps, len(seeds), 0))
    return Data(nothing, jnp.zeros((len(seeds), 0)), jnp.zeros((len(seeds), 0)))


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
    inputs: Callable[[Any], jax.Array],
    units: Callable[[Sequence[int]], tuple[Any, ...]] = lambda seeds: (),
) -> Problem:
    """A problem of a :class:`Network`, which has nothing but parameters and needs no key.

    Aggregation methods compare task gradients on the layer that makes the features.

    Args:
      network: Makes it.
      tasks: The K tasks.
      load_data: Of a problem.
      task_losses: ``(params, batch, *units, z=None)``: of the batch's inputs or of features z.
      task_metrics: ``(params, held_out, *units)``.
      inputs: The network's, of a batch.
      units: Of seeds, ``[seeds, ...]``: what of the training data losses and metrics depend on.
    """
    encode: Any = lambda params, batch: merged(network, params).features(inputs(batch))
    is_narrow: Any = lambda path, _: path[0] == jax.tree_util.DictKey("narrow")
    return Problem(
        tasks=tasks,
        load_data=load_data,
        init=lambda seeds: (init_params(network, seeds), units(seeds)),
        losses=lambda params, state, batch, _: (task_losses(params, batch, *state), state),
        metrics=lambda params, state, held_out: task_metrics(params, held_out, *state),
        features=(
            lambda params, state, batch, key: encode(params, batch),
            lambda params, z, state, batch, key: task_losses(params, batch, *state, z=z),
        ),
        last_shared=functools.partial(jax.tree.map_with_path, is_narrow),
        place="last layer",
    )


def init_params(network: Make, seeds: Sequence[int]) -> chex.ArrayTree:
    """The parameters of one network for each seed: a leading axis on every leaf."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    params: chex.ArrayTree = jax.vmap(lambda key: nnx.split(network(nnx.Rngs(key)))[1])(keys)
    return params


def init_stateful(network: Make, seeds: Sequence[int]) -> Variables:
    """The same of a network that also carries statistics."""

    @jax.jit
    def init(key: jax.Array) -> Variables:
        return split(network(nnx.Rngs(key)))

    # Of this generator many draws take a fifth of the time to compile.
    every = [init(jax.random.key(seed, impl="rbg")) for seed in seeds]
    variables: Variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
    return variables


def split(network: nnx.Module) -> Variables:
    """Its parameters, and what else it carries."""
    _, params, *state = nnx.split(network, nnx.Param, ...)
    return params, state[0]


def count_parameters(network: Make) -> int:
    """Of a network."""
    shapes = nnx.eval_shape(lambda: network(nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))


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
    compose: Callable[[jax.Array, Any], Any],
    sources: Any,
    key: jax.Array,
    steps: int,
    seeds: Sequence[int],
) -> Any:
    """``[steps, seeds]`` batches that ``compose`` draws by a key from a seed's own sources.

    Those of a seed do not depend on which others there are.
    """

    def composed(sources: Any) -> Any:
        seed_keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.asarray(seeds))

        def one_step(step: jax.Array) -> Any:
            own: Any = lambda key, each: compose(jax.random.fold_in(key, step), each)
            return jax.vmap(own)(seed_keys, sources)

        return jax.lax.map(one_step, jnp.arange(steps))

    return jax.jit(composed)(sources)


def epochs_of(
    rows: Any, seeds: Sequence[int], batch_size: int
) -> tuple[Callable[[int, int], Any], int]:
    """All rows once an epoch, in an order of each seed's: a stream, and the steps of an epoch.

    A last batch that is smaller stands apart, so that the stream then is a list of two.
    """
    epoch = -(-len(rows) // batch_size)

    @functools.lru_cache(maxsize=1)
    def order(number: int) -> Any:  # [rows, seeds]
        orders = [np.random.default_rng([seed, number]).permutation(rows) for seed in seeds]
        return np.stack(orders, axis=1).astype(np.int32)

    def stream(first: int, last: int) -> Any:
        number = first // epoch
        start, end = ((step - number * epoch) * batch_size for step in (first, last))
        parts = _batches(order(number)[start:end], batch_size)
        parts = [part.swapaxes(1, 2) for part in parts]
        return parts if len(parts) > 1 else parts[0]

    return stream, epoch


def streamed(rows: Callable[[int, int], Any], arrays: Any) -> Callable[[int, int], Any]:
    """A stream of what stands in the rows that another stream names, read when it is asked for."""

    def stream(first: int, last: int) -> Any:
        look_up: Any = lambda part: jax.tree.map(lambda leaf: leaf[part], arrays)
        parts = rows(first, last)
        return list(map(look_up, parts)) if isinstance(parts, list) else look_up(parts)

    return stream


def for_each_seed(arrays: Any, seeds: Sequence[int]) -> Any:
    """What is the same for all seeds, ``[seeds, ...]``, uncopied."""
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(seeds), *leaf.shape)), arrays)


def held_out_of(arrays: Any, seeds: Sequence[int], batch_size: int) -> tuple[Any, ...]:
    """Batches ``[seeds, batches, batch_size, ...]`` and, where there are, the rest, uncopied."""
    leaves: list[Any]
    tree: Any
    leaves, tree = jax.tree.flatten(arrays)
    parts = zip(*(_batches(leaf, batch_size) for leaf in leaves), strict=True)
    return tuple(for_each_seed(tree.unflatten(part), seeds) for part in parts)


def _batches(leaf: Any, size: int) -> list[Any]:
    """``[n, size, ...]`` and ``[1, less, ...]``, or one of the two."""
    end = len(leaf) // size * size
    parts = leaf[:end].reshape(-1, size, *leaf.shape[1:]), leaf[None, end:]
    return [part for part in parts if part.size]
