"""The runner: arms are trained, each a method at all its settings and seeds.

An arm is one compiled call of :func:`jax.lax.scan` over the steps, mapped over settings and seeds;
where it is saved, or its batches are streamed, a call a stretch of steps. Every method sees the
same initial parameters, batches and keys, seed for seed, so that differences are paired.
"""

import contextlib
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

import famo_jax
from famo_jax.experiments import _checkpoint, _statistics
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import Method
from famo_jax.experiments.problems._problem import Data, Problem

Setting = Mapping[str, float]  # the model's "learning_rate", and what the method takes
SEGMENTS = 10  # of a training that is saved after each
# jaxlib shares a batch of Cholesky factorizations out among the threads on which it also waits for
# them. Two such calls at once may wait for each other for ever, if there are two threads.
_SOLVING = threading.Lock()


class Arm(NamedTuple):
    """A method, and all at which it is trained on a problem."""

    name: str
    problem: Problem
    data: Data
    steps: int
    method: Method
    settings: Sequence[Setting]
    seeds: Sequence[int]
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] = optax.adam
    schedule: Callable[[Any, int], Any] = lambda setting, steps: optax.cosine_decay_schedule(
        setting["learning_rate"], steps
    )
    # Beside each other where their networks fit into a cache together, else one after the other.
    settings_at_once: bool = True
    seeds_at_once: bool = True
    keeps_params: bool = False  # whether what is trained is among the arrays
    halved: bool = False  # the second half of a batch's rows is not for the step: see "fresh"
    # (batch, fresh rows, carries before and after the step, losses) -> what to record besides.
    probe: Callable[[Any, Any, "Carry", "Carry", jax.Array], Any] | None = None
    # [settings, seeds, steps, ...] of that -> the arrays that are kept.
    keep: Callable[[Any], dict[str, Array]] = lambda probed: {"probed": np.asarray(probed)}
    # In place of `train`, with its arguments, where a training is another than that.
    trained_by: Callable[..., dict[str, Array]] | None = None


class Carry(NamedTuple):
    """What a training step hands to the next."""

    params: chex.ArrayTree
    opt_state: Any
    state: chex.ArrayTree


class Trace(NamedTuple):
    """What a training step leaves behind."""

    losses: jax.Array  # [K]
    task_weights: jax.Array | None  # [K], z, of a method that has logits
    probed: Any


class Functions(NamedTuple):
    """The start, some steps and the end of a training."""

    begin: Callable[..., Any]  # (setting, variables) -> carry
    advance: Callable[..., Any]  # (setting, carry, key, pool, first, batches) -> (carry, trace)
    finish: Callable[..., Any]  # (carry, validation, test) -> metrics of both


def functions(arm: Arm) -> Functions:
    """Of one network: of one setting and one seed."""
    problem, method = arm.problem, arm.method
    place = (method.place or problem.place) if problem.features else "parameters"

    def tx_of(setting: Setting) -> optax.GradientTransformationExtraArgs:
        more = {name: setting[name] for name in method.takes}
        adam = arm.optimizer(arm.schedule(setting, arm.steps))
        own = method.make(len(problem.tasks), **more)
        return optax.chain(own, adam) if method.aggregates else optax.chain(adam, own)

    def begin(setting: Setting, variables: Any) -> Carry:
        params, state = variables
        return Carry(params, tx_of(setting).init(params), state)

    def advance(
        setting: Setting, carry: Carry, seed_key: jax.Array, pool: Any, first: Any, batches: Any
    ) -> tuple[Carry, Trace]:
        tx = tx_of(setting)

        def step(carry: Carry, each: Any) -> tuple[Carry, Trace]:
            index, batch = each
            if pool is not None:
                batch = jax.tree.map(lambda leaf: leaf[batch], pool)
            key = jax.random.fold_in(seed_key, index)
            params, opt_state, state = carry
            batch, fresh = halves(batch) if arm.halved else (batch, None)
            where = problem.present(batch) if problem.present else None

            def losses_fn(params: Any, rows: Any = batch) -> Any:
                return problem.losses(params, state, rows, key)

            if method.aggregates and problem.each and place == "parameters":
                of_params = lambda term: lambda params: term(params, state, batch, key)
                terms = list(map(of_params, problem.each))
                by_term = famo_jax.losses_and_grads(terms)
                losses, grads = by_term(params, state=opt_state, where=where)
                losses, new_state = jnp.stack(losses), state
            elif method.aggregates and problem.features and place == "features":
                encode, heads = problem.features
                at_features = famo_jax.losses_and_grads(heads, encoder=encode)
                batched = state, batch, key
                losses, grads = at_features(params, *batched, state=opt_state, where=where)
                new_state = losses_fn(params)[1]  # of the same pass: it is computed once
            else:
                mask = problem.last_shared if place == "last layer" else None
                weighed = famo_jax.losses_and_grads(losses_fn, has_aux=True, gram_at=mask)
                (losses, new_state), grads = weighed(params, state=opt_state, where=where)
            extra: dict[str, Any] = {"losses": losses}
            if where is not None:
                extra["where"] = where
            if method.measure != "one-pass":
                rows = fresh if method.measure == "fresh" else batch
                extra["losses_fn"] = lambda params: losses_fn(params, rows)[0]
            if method.measure == "fresh":
                extra["losses"] = extra["losses_fn"](params)
            z = famo_jax.task_weights(opt_state) if method.has_logits else None
            updates, opt_state = tx.update(grads, opt_state, params, **extra)
            params = optax.apply_updates(params, updates)
            if problem.both_passes and method.measure == "two-pass":
                # The pass that `update` makes, after which the state is known: computed once too.
                new_state = problem.losses(params, new_state, batch, key)[1]
            after = Carry(params, opt_state, new_state)
            probed = arm.probe(batch, fresh, carry, after, losses) if arm.probe else None
            return after, Trace(losses, z, probed)

        traces = []
        for part in batches if isinstance(batches, list) else [batches]:
            count = len(jax.tree.leaves(part)[0])
            every = first + jnp.arange(count), part
            if count == 1:  # without a loop, in which XLA's convolutions are slow on a CPU
                carry, trace = step(carry, jax.tree.map(lambda leaf: leaf[0], every))
                trace = jax.tree.map(lambda leaf: leaf[None], trace)
            else:
                carry, trace = jax.lax.scan(step, carry, every)
            traces.append(trace)
            first += count
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)

    def finish(carry: Carry, validation: Any, test: Any) -> tuple[jax.Array, jax.Array]:
        own = carry.params, carry.state
        return problem.metrics(*own, validation), problem.metrics(*own, test)

    return Functions(begin, advance, finish)


def halves(rows: Any) -> tuple[Any, Any]:
    """Of the first axis of every leaf."""
    size = len(jax.tree.leaves(rows)[0]) // 2
    first = jax.tree.map(lambda leaf: leaf[:size], rows)
    return first, jax.tree.map(lambda leaf: leaf[size:], rows)


def over_all(arm: Arm) -> Functions:
    """Of all settings and seeds, ``[settings, seeds]``."""
    each = functions(arm)

    def over(function: Any, beside: bool) -> Any:  # the first axis of all arguments
        if beside:
            return jax.vmap(function)
        return lambda *args: jax.lax.map(lambda own: function(*own), args)

    def lift(function: Any, by_setting: Any, by_both: Any, by_seed: Any) -> Any:
        def over_seeds(setting: Any, both: Any) -> Any:
            return over(functools.partial(function, setting), arm.seeds_at_once)(both, by_seed)

        return over(over_seeds, arm.settings_at_once)(by_setting, by_both)

    def begin(settings: Any, variables: Any) -> Any:
        return lift(lambda own, _, start: each.begin(own, start), settings, (), variables)

    def advance(settings: Any, carry: Any, keys: Any, pool: Any, first: Any, batches: Any) -> Any:
        # Seeds have batches of their own, which all settings of one seed share.
        by_seed = keys, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batches)
        one = lambda setting, carry, own: each.advance(setting, carry, own[0], pool, first, own[1])
        return lift(one, settings, carry, by_seed)

    def finish(carry: Any, validation: Any, test: Any) -> Any:
        return lift(lambda _, carry, own: each.finish(carry, *own), (), carry, (validation, test))

    return Functions(begin, advance, finish)


def stacked(settings: Sequence[Setting]) -> dict[str, jax.Array]:
    """``[settings]`` of each hyperparameter."""
    return {name: jnp.asarray([setting[name] for setting in settings]) for name in settings[0]}


def train(
    arm: Arm,
    saved: _checkpoint.Saved | None = None,
    save: Callable[[int, Any], None] | None = None,
    tell: Callable[[str], None] = lambda status: None,
) -> dict[str, Array]:
    """Trains all networks of an arm, from where an earlier process came to, saved now and then.

    Returns:
      Its arrays, of axes ``[settings, seeds, ...]``: the metrics ``validation`` and ``test``, the
      curves ``losses`` and ``task_weights``, thinned, the ``logit_range`` at the end, at most and
      on average, what was probed, and ``params`` where they are kept.
    """
    begin, advance, finish = map(jax.jit, over_all(arm))
    alone = _SOLVING if arm.method.aggregates else contextlib.nullcontext()
    compiled: dict[int, Any] = {}  # by how many steps
    settings = stacked(arm.settings)
    keys = jax.vmap(jax.random.key)(jnp.asarray(arm.seeds))
    carry: Any = begin(settings, arm.problem.init(arm.seeds))
    trace: Any = None
    done, length = 0, arm.data.epoch or (-(-arm.steps // SEGMENTS) if save else arm.steps)
    if saved:
        done = int(saved.steps)
        past = arm.data.batches(0, done)
        _, shapes = jax.eval_shape(advance, settings, carry, keys, arm.data.pool, 0, past)
        carry, trace = _checkpoint.restore(saved, (carry, shapes))
    tell("compiling and training")
    for first in range(done, arm.steps, length):
        last = min(first + length, arm.steps)
        given = settings, carry, keys, arm.data.pool, first, arm.data.batches(first, last)
        if last - first not in compiled:
            compiled[last - first] = advance.lower(*given).compile()
        with alone:
            carry, new = jax.block_until_ready(compiled[last - first](*given))
        # Behind the axes of settings and seeds is that of the steps.
        both = functools.partial(jax.tree.map, lambda *parts: jnp.concatenate(parts, axis=2))
        trace = both(trace, new) if trace else new
        if save:
            save(last, (carry, trace))
        tell(f"{last} steps" + (" saved" if save else ""))
    validation, test = finish(carry, arm.data.validation, arm.data.test)
    arrays = _arrays(arm, trace, validation, test)
    if arm.keeps_params:  # [settings, seeds, P], the leaves one after another
        shape = len(arm.settings), len(arm.seeds), -1
        leaves = [np.reshape(leaf, shape) for leaf in jax.tree.leaves(carry.params)]
        arrays["params"] = np.concatenate(leaves, axis=-1)
    return arrays


def _arrays(arm: Arm, trace: Trace, validation: Any, test: Any) -> dict[str, Array]:
    losses = _statistics.finite(trace.losses)
    if "task" in arm.method.takes:  # of a network for one task the others' say nothing
        own = [int(setting["task"]) for setting in arm.settings]
        losses = np.take_along_axis(losses, np.reshape(own, (-1, 1, 1, 1)), axis=-1)
    arrays = {
        "validation": np.asarray(validation),
        "test": np.asarray(test),
        "losses": _statistics.thin(losses, axis=2).astype(np.float32),
    }
    if trace.task_weights is not None:
        z = _statistics.finite(trace.task_weights)
        with np.errstate(divide="ignore"):  # softmax keeps the differences; of 0 they are infinite
            ranges = np.log(z.max(axis=-1)) - np.log(z.min(axis=-1))
        columns = ranges[..., -1], ranges.max(axis=-1), ranges.mean(axis=-1)
        arrays["logit_range"] = np.stack(columns, axis=-1)
        arrays["task_weights"] = _statistics.thin(z, axis=2).astype(np.float32)
    return arrays | (arm.keep(trace.probed) if arm.probe else {})


class Session(NamedTuple):
    """What a run reports to, and where it is saved."""

    progress: Progress
    begun: float  # by `time.perf_counter`, as if without a stop
    checkpoint_dir: Path | None = None
    saved: Mapping[str, _checkpoint.Saved] = {}

    def row(self, name: str) -> Callable[[str], None]:
        """A row of the display; what is returned changes its status."""
        row = self.progress.add_task(name, status="waiting", start=False, total=1)

        def tell(status: str) -> None:
            self.progress.start_task(row)
            self.progress.update(row, status=status, completed=int(status == "done"))

        return tell


Results = dict[str, dict[str, Array]]  # by arm


def train_arms(session: Session, arms: Sequence[Arm]) -> Results:
    """Trains arms on threads, beside each other: one compiles while another trains."""
    tells = {arm.name: session.row(arm.name) for arm in arms}

    def one(arm: Arm) -> dict[str, Array]:
        def save(steps: int, state: Any) -> None:
            assert session.checkpoint_dir
            seconds = time.perf_counter() - session.begun
            _checkpoint.save(session.checkpoint_dir, arm.name, steps, state, seconds)

        tell = tells[arm.name]
        saver = save if session.checkpoint_dir else None
        arrays = (arm.trained_by or train)(arm, session.saved.get(arm.name), saver, tell)
        tell("done")
        return arrays

    # The longest first, so that none is left alone at the end.
    order = sorted(arms, key=lambda arm: -len(arm.settings) * len(arm.problem.tasks))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip([arm.name for arm in order], pool.map(one, order), strict=True))
    return {arm.name: results[arm.name] for arm in arms}


# Yields arms, gets the results of all so far, and may yield others that depend on them.
Plan = Generator[Sequence[Arm], Results, None]


def run(
    plan: Plan | Iterator[Sequence[Arm]], session: Session, timed: str = "", rounds: int = 25
) -> Runs:
    """Trains the arms of a plan, then times a step of those whose names match ``timed``."""
    results: Results = {}
    arms: list[Arm] = []
    tell = session.row("data")
    tell("composing")
    now: Any = next(plan)
    tell("done")
    while now:
        arms += now
        results |= train_arms(session, now)
        try:
            now = plan.send(results) if isinstance(plan, Generator) else None
        except StopIteration:
            now = None
    times = {}
    if timed:
        tell = session.row("time of a step")
        tell("measuring")
        picked = [arm for arm in arms if re.fullmatch(timed, arm.name)]
        times = measure_steps(picked, rounds=rounds)
        tell("done")
    about = {
        arm.name: {"settings": list(map(dict, arm.settings)), "seeds": list(arm.seeds)}
        for arm in arms
    }
    return Runs({"arms": about, "times": times}, results)


def interleaved_seconds(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 25
) -> dict[str, list[float]]:
    """The seconds of functions that return JAX arrays, in turns, after a round not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for counts in [False] + rounds * [True]:
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if counts:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_steps(arms: Sequence[Arm], steps: int = 20, rounds: int = 25) -> dict[str, Any]:
    """The seconds of a training step of one network, by arm: median and quartiles.

    Beside them the bytes of temporary memory and the operations that the compiler counts, the
    latter of one step.
    """

    def compiled(arm: Arm) -> Any:
        each = functions(arm)
        setting = {name: values[0] for name, values in stacked(arm.settings).items()}
        variables = jax.tree.map(lambda leaf: leaf[0], arm.problem.init(arm.seeds[:1]))
        batches = jax.tree.map(lambda leaf: leaf[:, 0], arm.data.batches(0, min(steps, arm.steps)))

        def several(setting: Any, variables: Any, pool: Any, batches: Any) -> Any:
            carry = each.begin(setting, variables)
            return each.advance(setting, carry, jax.random.key(0), pool, 0, batches)

        arguments = setting, variables, arm.data.pool, batches
        return jax.jit(several).lower(*arguments).compile(), arguments

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = dict(zip([arm.name for arm in arms], pool.map(compiled, arms), strict=True))
    counted = min(steps, arms[0].steps)
    calls = {name: functools.partial(own, *given) for name, (own, given) in programs.items()}
    return {
        name: _statistics.quartiles(np.array(values) / counted) | _counted(programs[name][0])
        for name, values in interleaved_seconds(calls, rounds).items()
    }


def _counted(program: Any) -> dict[str, float]:
    memory, operations = program.memory_analysis(), program.cost_analysis()
    return {
        "temporary_bytes": float(getattr(memory, "temp_size_in_bytes", np.nan)),
        "operations": float((operations or {}).get("flops", np.nan)),
    }
