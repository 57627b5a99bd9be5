"""Training by epochs: each ends in a validation, and the best or the last ones count.

What the rate of learning does from epoch to epoch is up to a plateau of the score or a staircase,
as PyTorch has them, or to the schedule of the arm. Networks are trained one after the
other, all up to an epoch before any goes on, so that a stop costs an epoch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax.experiments import _checkpoint, _train
from famo_jax.experiments._files import Array

Score = Callable[[jax.Array], jax.Array]  # of metrics [M] on validation: the less the better


class Watch(NamedTuple):
    """What validation has found so far."""

    score: jax.Array  # [], the least
    epoch: jax.Array  # [], int32: when that was, counted from 1
    params: chex.ArrayTree  # then
    state: chex.ArrayTree
    plateau: Any  # its state, with the scale of the learning rate


class Epoch(NamedTuple):
    """What an epoch leaves behind: means over its steps, and its end."""

    losses: jax.Array  # [K]
    task_weights: jax.Array | None  # [K], of a method that has logits
    logit_range: jax.Array | None  # [2]: at the end, and at most
    validation: jax.Array  # [M]
    test: jax.Array | None  # [M], where the last epochs count
    scale: jax.Array  # [], of the learning rate


Network: TypeAlias = tuple[_train.Carry, Watch]
Left: TypeAlias = tuple[list[Network], list[Epoch]]  # of each network


def plateau(
    factor: float = 0.7, patience: int = 5, least: float = 0.01
) -> optax.GradientTransformationExtraArgs:
    """PyTorch's ``ReduceLROnPlateau``, with its threshold of 1e-4, relative.

    Args:
      factor: Of the learning rate, where there was no progress.
      patience: Epochs without progress that are let pass, PyTorch's count. Optax counts the one
        that ends them.
      least: The least scale: PyTorch's ``min_lr`` over the first learning rate.
    """
    tx: optax.GradientTransformationExtraArgs = optax.contrib.reduce_on_plateau(
        factor=factor, patience=patience + 1, rtol=1e-4, atol=0.0, min_scale=least
    )
    return tx


class Stairs(NamedTuple):
    """Where a staircase of the learning rate is."""

    scale: jax.Array  # []
    epoch: jax.Array  # [], int32: how many are over


def stairs(every: int, factor: float = 0.5) -> optax.GradientTransformationExtraArgs:
    """PyTorch's ``StepLR``: the rate is multiplied by ``factor`` after ``every`` so many epochs."""

    def update(updates: Any, state: Stairs, params: Any = None, **_: Any) -> tuple[Any, Stairs]:
        del params
        epoch = state.epoch + 1
        return updates, Stairs(factor ** (epoch // every).astype(float), epoch)

    start = lambda _: Stairs(jnp.ones(()), jnp.zeros((), jnp.int32))
    return optax.GradientTransformationExtraArgs(start, update)


def train(
    arm: _train.Arm,
    saved: _checkpoint.Saved | None,
    save: Callable[[int, Any], None] | None,
    tell: Callable[[str], None],
    *,
    score: Score | None,
    last: int = 0,
    reduce: optax.GradientTransformationExtraArgs | None = None,
) -> dict[str, Array]:
    """Trains all networks of an arm; the first four arguments are those of :func:`_train.train`.

    A setting's ``scale``, which a method may take, is that of the learning rate.

    Args:
      arm: With streamed data, whose ``epoch`` divides the steps, and validation and test data of
        each seed: a leading axis on every leaf.
      saved: Where an earlier process came to.
      save: Called with the number of steps made and the state, after each epoch.
      tell: Called with what is being done.
      score: What is least at the best epoch. None: the last epochs count.
      last: How many at most. Their mean is what is returned, the best epoch is the last.
      reduce: What scales the learning rate after each epoch. None: nothing.

    Returns:
      Its arrays, of axes ``[settings, seeds, ...]``: of the best epoch the metrics ``validation``
      and ``test``, its ``score`` and number ``best_epoch``; by epoch ``losses``, ``task_weights``,
      ``validation_curve`` and ``scale``; ``logit_range``, at the end and at most; and what is
      ``shown`` of the problem.
    """
    data, length = arm.data, arm.data.epoch
    assert length
    assert arm.steps % length == 0
    begin, advance, finish = _train.functions(arm)

    @jax.jit
    def start(setting: Any, variables: Any) -> Network:
        carry = begin(setting | {"scale": 1.0}, variables)
        rate = reduce.init(carry.params) if reduce else ()
        at_first = jnp.asarray(jnp.inf), jnp.zeros((), jnp.int32)
        return carry, Watch(*at_first, carry.params, carry.state, rate)

    def scale_of(watch: Watch) -> Any:
        return watch.plateau.scale if reduce else jnp.ones(())

    @jax.jit
    def steps(
        setting: Any, network: Network, key: Any, pool: Any, first: Any, batches: Any
    ) -> tuple[Network, _train.Trace]:
        carry, watch = network
        scale = scale_of(watch)
        scaled = setting | {"learning_rate": setting["learning_rate"] * scale, "scale": scale}
        carry, trace = advance(scaled, carry, key, pool, first, batches)
        return (carry, watch), trace

    @jax.jit
    def end_of_epoch(
        network: Network, trace: _train.Trace, first: Any, held_out: Any
    ) -> tuple[Network, Epoch]:
        carry, watch = network
        validation, *test = (
            arm.problem.metrics(carry.params, carry.state, own) for own in held_out
        )
        now = score(validation) if score else jnp.zeros(())
        rate = reduce.update((), watch.plateau, value=now)[1] if reduce else ()
        found = Watch(now, 1 + first // length, carry.params, carry.state, rate)
        best = optax.tree.where(now <= watch.score, found, watch._replace(plateau=rate))
        z, ends = trace.task_weights, None
        if z is not None:
            ranges = jnp.log(z.max(axis=-1)) - jnp.log(z.min(axis=-1))
            z, ends = z.mean(axis=0), jnp.stack([ranges[-1], ranges.max()])
        left = Epoch(trace.losses.mean(axis=0), z, ends, validation, next(iter(test), None),
                     scale_of(watch))  # fmt: skip
        return (carry, best), left

    settings, variables = _train.stacked(arm.settings), arm.problem.init(arm.seeds)
    keys = jax.vmap(jax.random.key)(jnp.asarray(arm.seeds))
    pairs = [(i, j) for i in range(len(arm.settings)) for j in range(len(arm.seeds))]

    def epoch(networks: list[Network], first: int, tell: Callable[[str], None]) -> Left:
        """All networks, one after the other, go through what is on the device at once."""
        networks = [*networks]
        traces: list[list[_train.Trace]] = [[] for _ in pairs]
        end = first + length
        at_once = 1 if arm.problem.step_by_step else data.at_once or length
        for now in range(first, end, at_once):
            until = min(now + at_once, end)
            batches = data.batches(now, until)
            for index, (i, j) in enumerate(pairs):
                own = _at(settings, i), networks[index], keys[j], data.pool, now
                networks[index], trace = steps(*own, _at(batches, (slice(None), j)))
                traces[index].append(trace)
                tell(f"{until} steps, {index + 1} of {len(pairs)}")
        ends = [
            end_of_epoch(network, _joined(own), first, _at(held_out, j))
            for network, own, (_, j) in zip(networks, traces, pairs, strict=True)
        ]
        return [network for network, _ in ends], [left for _, left in ends]

    # Where the last epochs count, what is validated on may be the test.
    apart = not score and data.validation is not data.test
    held_out = [data.validation, data.test] if apart else [data.validation]
    networks = [start(_at(settings, i), _at(variables, j)) for i, j in pairs]
    past: list[list[Epoch]] = [[] for _ in pairs]
    done = saved.steps if saved else 0
    if saved:
        _, (left, *_) = jax.eval_shape(lambda: epoch(networks, 0, lambda status: None))
        curves = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((done // length, *leaf.shape), leaf.dtype), left
        )
        networks, every = _checkpoint.restore(saved, (networks, len(pairs) * [curves]))
        past = [[_at(curve, epoch) for epoch in range(done // length)] for curve in every]
    tell("compiling and training")
    for first in range(done, arm.steps, length):
        networks, lefts = epoch(networks, first, tell)
        for curve, left in zip(past, lefts, strict=True):
            curve.append(jax.tree.map(np.asarray, left))
        if save:
            save(first + length, (networks, list(map(_stacked, past))))
    curves, tests = _stacked(list(map(_stacked, past))), []
    ends = [carry for carry, _ in networks]
    if not score:
        both = curves.validation, curves.validation if curves.test is None else curves.test
        tests = [own[:, -last:].mean(axis=1) for own in both]
    else:
        tell("testing")
        ends = [end._replace(params=best.params, state=best.state) for end, best in networks]
        end = jax.jit(finish)
        for (_, j), best in zip(pairs, ends, strict=True):
            tests.append(end(best, _at(data.validation, j), _at(data.test, j)))
        tests = _stacked(tests)
    # Of the watches, only what is small.
    watches = [watch._replace(params=(), state=()) for _, watch in networks]
    shape = len(arm.settings), len(arm.seeds)
    arrays = _arrays(shape, tests, _stacked(watches), curves)
    if arm.problem.shown:
        show = jax.jit(arm.problem.shown)
        shown = np.stack([show(own.params, own.state) for own in ends])
        arrays["shown"] = shown.reshape(*shape, *shown.shape[1:])
    return arrays


def _at(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _joined(traces: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _arrays(shape: tuple[int, int], tests: Any, watch: Watch, past: Epoch) -> dict[str, Array]:
    # What never had a finite score has no best epoch.
    validation, test = (np.where(watch.epoch[:, None] > 0, each, np.nan) for each in tests)
    arrays: dict[str, Any] = {
        "validation": validation,
        "test": test,
        "score": watch.score,
        "best_epoch": watch.epoch,
        "losses": past.losses,
        "validation_curve": past.validation,
        "scale": past.scale,
    }
    if past.task_weights is not None and past.logit_range is not None:
        ends = past.logit_range[:, -1, 0], past.logit_range[:, :, 1].max(axis=1)
        arrays |= {"task_weights": past.task_weights, "logit_range": np.stack(ends, axis=-1)}
    return {name: np.asarray(own).reshape(*shape, *own.shape[1:]) for name, own in arrays.items()}
