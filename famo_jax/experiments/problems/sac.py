r"""Multi-task soft actor-critic (Haarnoja et al. 2018) on K tasks at once.

What is learned from comes as ``[K, B, ...]``, B transitions of each task. The K losses are those of
the twin critics,

.. math:: \ell_i = \frac1B \sum_b (Q_1 - y)^2 + (Q_2 - y)^2, \qquad
          y = r + 0.99 \, (\min_j \bar Q_j(s', a') - \alpha_i \log \pi(a' | s')),

and any method of the library weighs them. Actor and temperatures follow the mean over the tasks, as
in FAMO's code (github.com/Cranial-XIX/FAMO, ``mtrl_files``), or a second instance of the method
weighs the actor's losses, above their bound:

.. math:: \frac1B \sum_b \alpha_i \log \pi - \min_j Q_j \ge
          -\frac{r_{\max} + 4 \log 2}{1 - 0.99} - 4 \log 2

for rewards of at most :math:`r_{\max}` and temperatures of at most 1, since four actions between
-1 and 1 have an entropy of at most :math:`4 \log 2`. It holds of true values; a critic that
overestimates by more may pass it. No episode ends but by its time, so
that every target bootstraps, the last of an episode from the observation after it.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import famo_jax
from famo_jax.experiments._methods import Method

EPS = 1e-8  # FAMO's, below which no loss counts
MOST_LOG_STD = 2.0
MODULES = 2  # of soft modularization: layers, and modules of each


class Settings(NamedTuple):
    """Of an agent."""

    network: str  # one of NETWORKS
    identity: bool  # whether the network is told the task; soft modularization has to be
    width: int
    depth: int
    batch_size: int  # transitions of a task
    learning_rate: float
    clip: float  # of the gradients' norms; 0 for none
    least_log_std: float
    shared_alpha: bool
    official_c: bool  # whether gradients are scaled as in FAMO's RL code
    most_reward: float | None = None  # where the actor's losses are weighed too
    discount: float = 0.99
    tau: float = 0.005


class Transitions(NamedTuple):
    """What happened, ``[..., K, B, ...]``."""

    observations: Any  # [..., 39]
    actions: Any  # [..., 4]
    rewards: Any  # [...]
    next_observations: Any  # [..., 39]: after the last step of an episode its final observation


# --- Networks: [K, B, inputs] to [K, B, outputs] --------------------------------------------------

_linear = functools.partial(nnx.Linear, kernel_init=nnx.initializers.glorot_uniform())


def _several(count: int, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Param[Any]:
    """Kernels of as many layers."""
    init = nnx.initializers.glorot_uniform(batch_axis=0)
    return nnx.Param(init(rngs.params(), (count, inputs, outputs), jnp.float32))


def _which(inputs: jax.Array) -> jax.Array:
    """``[K, B, K]``: the task of each row."""
    k, rows = inputs.shape[:2]
    return jnp.broadcast_to(jnp.eye(k, dtype=inputs.dtype)[:, None], (k, rows, k))


class Trunk(nnx.Module):
    """Hidden layers, and ReLU behind each."""

    def __init__(self, inputs: int, width: int, depth: int, rngs: nnx.Rngs) -> None:
        sizes = inputs, *(width for _ in range(depth))
        self.layers = nnx.List(
            [_linear(one, other, rngs=rngs) for one, other in itertools.pairwise(sizes)]
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """``[..., inputs]`` to ``[..., width]``."""
        for layer in self.layers:
            inputs = nnx.relu(layer(inputs))
        return inputs


class MultiTask(nnx.Module):
    """One network, told the task among its inputs or not."""

    def __init__(self, k: int, inputs: int, outputs: int, own: Settings, rngs: nnx.Rngs) -> None:
        self.identity = own.identity
        self.trunk = Trunk(inputs + k * own.identity, own.width, own.depth, rngs)
        self.head = _linear(own.width, outputs, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """``[K, B, inputs]`` to ``[K, B, outputs]``."""
        if self.identity:
            inputs = jnp.concatenate([inputs, _which(inputs)], axis=-1)
        outputs: jax.Array = self.head(self.trunk(inputs))
        return outputs


class MultiHead(nnx.Module):
    """One trunk, and a head for each task."""

    def __init__(self, k: int, inputs: int, outputs: int, own: Settings, rngs: nnx.Rngs) -> None:
        self.trunk = MultiTask(k, inputs, own.width, own._replace(depth=own.depth - 1), rngs)
        self.kernels = _several(k, own.width, outputs, rngs)
        self.biases = nnx.Param(jnp.zeros((k, 1, outputs)))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """``[K, B, inputs]`` to ``[K, B, outputs]``."""
        features = nnx.relu(self.trunk(inputs))
        return jnp.einsum("kbi,kio->kbo", features, self.kernels[...]) + self.biases[...]


class SoftModularization(nnx.Module):
    r"""Modules whose outputs are mixed for each row by a second network (Yang et al. 2020).

    Between two layers of modules, module i takes :math:`\sum_j p_{ij} g_j` of the layer before,
    where the p of each i sum to one.
    """

    def __init__(self, k: int, inputs: int, outputs: int, own: Settings, rngs: nnx.Rngs) -> None:
        width, mixtures = own.width, MODULES * MODULES
        self.of_state = Trunk(inputs, width, own.depth, rngs)
        self.of_task = _linear(k, width, rngs=rngs)
        self.modules = nnx.List(
            [
                nnx.Dict(
                    kernels=_several(MODULES, width, width, rngs),
                    biases=nnx.Param(jnp.zeros((MODULES, 1, 1, width))),
                )
                for _ in range(MODULES)
            ]
        )
        self.down = nnx.List([_linear(width, mixtures, rngs=rngs) for _ in range(MODULES - 1)])
        self.up = nnx.List([_linear(mixtures, width, rngs=rngs) for _ in range(MODULES - 2)])
        self.head = _linear(width, outputs, rngs=rngs)

    def mixtures(self, state: jax.Array, which: jax.Array) -> list[jax.Array]:
        """The p between layers, ``[K, B, MODULES, MODULES]``: sources last."""
        routed = state * self.of_task(which)
        scores = [self.down[0](nnx.relu(routed))]
        for up, down in zip(self.up, list(self.down)[1:], strict=True):
            scores.append(down(nnx.relu(up(scores[-1]) * routed)))
        shape = *state.shape[:-1], MODULES, MODULES
        return [jax.nn.softmax(each.reshape(shape)) for each in scores]

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """``[K, B, inputs]`` to ``[K, B, outputs]``."""
        state = self.of_state(inputs)
        taken = jnp.broadcast_to(state, (MODULES, *state.shape))
        mixtures = [*self.mixtures(state, _which(inputs)), None]
        for layer, mixture in zip(self.modules, mixtures, strict=True):
            made = jnp.einsum("mkbi,mio->mkbo", taken, layer["kernels"][...])
            made = nnx.relu(made + layer["biases"][...])
            if mixture is not None:
                taken = jnp.einsum("kbij,jkbo->ikbo", mixture, made)
        outputs: jax.Array = self.head(made.sum(axis=0))
        return outputs


NETWORKS: dict[str, Any] = {
    "mtsac": MultiTask,
    "multi-head": MultiHead,
    "soft-modularization": SoftModularization,
}

# --- The actor ------------------------------------------------------------------------------------


def distribution(outputs: jax.Array, least_log_std: float) -> tuple[jax.Array, jax.Array]:
    """Mean and log deviation before tanh, ``[..., 4]`` each; the latter within its bounds."""
    mean, free = jnp.split(outputs, 2, axis=-1)
    half = (MOST_LOG_STD - least_log_std) / 2
    return mean, least_log_std + half * (jnp.tanh(free) + 1)


def sample(mean: jax.Array, log_std: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An action ``[..., A]``, tanh of a normal one, and its log probability ``[...]``."""
    noise = jax.random.normal(key, mean.shape)
    return squashed(mean + jnp.exp(log_std) * noise, noise, log_std)


def squashed(free: jax.Array, noise: jax.Array, log_std: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What :func:`sample` makes of its noise."""
    normal = -(noise**2) / 2 - log_std - jnp.log(2 * jnp.pi) / 2
    # log(1 - tanh(u)^2), without the cancellation.
    slope = 2 * (jnp.log(2.0) - free - jax.nn.softplus(-2 * free))
    return jnp.tanh(free), jnp.sum(normal - slope, axis=-1)


# --- Losses ---------------------------------------------------------------------------------------


def td_targets(
    rewards: jax.Array,
    next_values: jax.Array,
    log_probs: jax.Array,
    alpha: jax.Array,
    discount: Any,
) -> jax.Array:
    """``[K, B]``, of the twins' next values ``[2, K, B]`` and temperatures ``[K]``."""
    soft = next_values.min(axis=0) - alpha[:, None] * log_probs
    targets: jax.Array = rewards + discount * soft
    return targets


def critic_losses(values: jax.Array, targets: jax.Array) -> jax.Array:
    """``[K]``, of the twins' values ``[2, K, B]``."""
    return jnp.mean(jnp.sum((values - targets) ** 2, axis=0), axis=-1)


def alpha_loss(log_alpha: jax.Array, log_probs: jax.Array, target_entropy: float) -> jax.Array:
    """``[]``: a temperature rises where the entropy is below its target."""
    alpha = jnp.exp(log_alpha)[:, None]
    loss: jax.Array = jnp.mean(alpha * jax.lax.stop_gradient(-log_probs - target_entropy))
    return loss


# --- The agent ------------------------------------------------------------------------------------


class Agent(NamedTuple):
    """All that is learned."""

    actor: chex.ArrayTree
    critics: chex.ArrayTree  # with a leading axis of 2
    targets: chex.ArrayTree  # what the critics were, on average
    log_alpha: jax.Array  # [K], or [1] where it is shared
    actor_opt: Any
    critic_opt: Any
    alpha_opt: Any


class Told(NamedTuple):
    """What an update leaves behind."""

    losses: jax.Array  # [K], of the critics
    task_weights: jax.Array  # [K], z; NaN of a method without logits
    entropy: jax.Array  # [K], minus the mean log probability


def times_sum(tx: Any) -> optax.GradientTransformationExtraArgs:
    r"""FAMO whose gradients are scaled by :math:`\sum_i z_i / (\ell_i + 10^{-8})`.

    By which the paper divides, and FAMO's code for reinforcement learning multiplies. ``tx`` is to
    hold FAMO without its normaliser.
    """

    def update(grads: Any, state: Any, params: Any = None, *, losses: Any, **more: Any) -> Any:
        times = jnp.sum(famo_jax.task_weights(state) / (losses + EPS))
        scaled = jax.tree.map(lambda leaf: times * leaf, grads)
        return tx.update(scaled, state, params, losses=losses, **more)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def actor_bound(most_reward: float, actions: int, discount: float) -> float:
    """What no loss of an actor is below: see above."""
    most_entropy = actions * math.log(2)
    return -(most_reward + most_entropy) / (1 - discount) - most_entropy


class Functions(NamedTuple):
    """Of an agent."""

    begin: Callable[..., Any]  # (key) -> agent
    update: Callable[..., Any]  # (agent, transitions, key) -> (agent, told)
    act: Callable[..., Any]  # (actor, [K, B, 39], key or None for the mean's) -> [K, B, 4]


def functions(
    k: int, sizes: tuple[int, int], own: Settings, method: Method, more: Any
) -> Functions:
    """Of K tasks with as many observations and actions, and a method with its hyperparameters."""
    observations, actions = sizes
    make = NETWORKS[own.network]

    def build(inputs: int, outputs: int) -> tuple[Any, Any]:
        def of(key: Any) -> nnx.Module:
            network: nnx.Module = make(k, inputs, outputs, own, nnx.Rngs(key))
            return network

        def apply(params: Any, x: jax.Array) -> Any:
            model: Any = nnx.merge(graph, params)
            return model(x)

        graph = nnx.graphdef(nnx.eval_shape(lambda: of(jax.random.key(0))))
        return lambda key: nnx.split(of(key))[1], apply

    init_actor, apply_actor = build(observations, 2 * actions)
    init_critic, apply_critic = build(observations + actions, 1)
    adam = optax.adam(own.learning_rate)
    plain = optax.chain(optax.clip_by_global_norm(own.clip), adam) if own.clip else adam
    weigh = method.make(k, **more)
    tx = optax.chain(weigh, plain) if method.aggregates else optax.chain(plain, weigh)
    if own.official_c:
        tx = times_sum(tx)
    of_actor, bound = plain, 0.0
    if own.most_reward is not None:
        of_actor, bound = tx, actor_bound(own.most_reward, actions, own.discount)

    def values(critics: Any, seen: jax.Array, done: jax.Array) -> jax.Array:  # [2, K, B]
        inputs = jnp.concatenate([seen, done], axis=-1)
        found: jax.Array = jax.vmap(apply_critic, (0, None))(critics, inputs)[..., 0]
        return found

    def policy(actor: Any, seen: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sample(*distribution(apply_actor(actor, seen), own.least_log_std), key)

    def weighed(losses_fn: Any, params: Any, opt_state: Any) -> tuple[jax.Array, Any, Any, Any]:
        """A step by the method: losses and what else there was; parameters and state after it."""
        of = famo_jax.losses_and_grads(losses_fn, has_aux=True)
        (losses, more), grads = of(params, state=opt_state)
        extra: dict[str, Any] = {"losses": losses}
        if method.measure != "one-pass":
            extra["losses_fn"] = lambda params: losses_fn(params)[0]
        changes, opt_state = tx.update(grads, opt_state, params, **extra)
        return losses, more, optax.apply_updates(params, changes), opt_state

    def begin(key: jax.Array) -> Agent:
        actor_key, critic_key = jax.random.split(key)
        actor = init_actor(actor_key)
        critics = jax.vmap(init_critic)(jax.random.split(critic_key))
        log_alpha = jnp.zeros(1 if own.shared_alpha else k)
        copied = jax.tree.map(jnp.copy, critics)  # both are donated
        of = of_actor.init(actor), tx.init(critics), adam.init(log_alpha)
        return Agent(actor, critics, copied, log_alpha, *of)

    def update(agent: Agent, batch: Transitions, key: jax.Array) -> tuple[Agent, Told]:
        next_key, own_key = jax.random.split(key)
        alpha = jnp.broadcast_to(jnp.exp(agent.log_alpha), (k,))
        following = batch.next_observations
        next_actions, next_log_probs = policy(agent.actor, following, next_key)
        next_values = values(agent.targets, following, next_actions)
        y = td_targets(batch.rewards, next_values, next_log_probs, alpha, own.discount)

        def losses_fn(critics: Any) -> tuple[jax.Array, None]:
            return critic_losses(values(critics, batch.observations, batch.actions), y), None

        z = jnp.full(k, jnp.nan)
        if method.has_logits:
            z = famo_jax.task_weights(agent.critic_opt)
        losses, _, critics, critic_opt = weighed(losses_fn, agent.critics, agent.critic_opt)

        def actor_losses(actor: Any) -> tuple[jax.Array, jax.Array]:
            chosen, log_probs = policy(actor, batch.observations, own_key)
            worth = values(critics, batch.observations, chosen).min(axis=0)
            return jnp.mean(alpha[:, None] * log_probs - worth, axis=-1) - bound, log_probs

        def actor_loss(actor: Any) -> tuple[jax.Array, jax.Array]:
            losses, log_probs = actor_losses(actor)
            return jnp.mean(losses), log_probs

        if own.most_reward is None:
            grads, log_probs = jax.grad(actor_loss, has_aux=True)(agent.actor)
            changes, actor_opt = plain.update(grads, agent.actor_opt, agent.actor)
            actor = optax.apply_updates(agent.actor, changes)
        else:
            _, log_probs, actor, actor_opt = weighed(actor_losses, agent.actor, agent.actor_opt)

        grads = jax.grad(alpha_loss)(agent.log_alpha, log_probs, -float(actions))
        changes, alpha_opt = adam.update(grads, agent.alpha_opt, agent.log_alpha)
        log_alpha = optax.apply_updates(agent.log_alpha, changes)
        targets = optax.incremental_update(critics, agent.targets, own.tau)
        after = Agent(actor, critics, targets, log_alpha, actor_opt, critic_opt, alpha_opt)
        return after, Told(losses, z, -log_probs.mean(axis=-1))

    def act(actor: Any, seen: jax.Array, key: jax.Array | None) -> jax.Array:
        mean, log_std = distribution(apply_actor(actor, seen), own.least_log_std)
        return jnp.tanh(mean) if key is None else sample(mean, log_std, key)[0]

    return Functions(begin, update, act)


# --- Replay ---------------------------------------------------------------------------------------


class Replay(NamedTuple):
    """The last transitions of each task, on the device."""

    rows: Transitions  # [K, capacity, ...]
    added: jax.Array  # [], int32: to each task, in all


def empty(k: int, capacity: int, sizes: tuple[int, int]) -> Replay:
    """For K tasks."""
    observations, actions = (jnp.zeros((k, capacity, size)) for size in sizes)
    rows = Transitions(observations, actions, jnp.zeros((k, capacity)), jnp.copy(observations))
    return Replay(rows, jnp.zeros((), jnp.int32))


def add(replay: Replay, new: Transitions) -> Replay:
    """With ``[K, n, ...]`` more, in place of the oldest. There may be no more than fit."""
    capacity, count = replay.rows.rewards.shape[1], new.rewards.shape[1]
    places = (replay.added + jnp.arange(count)) % capacity
    rows = jax.tree.map(lambda old, own: old.at[:, places].set(own), replay.rows, new)
    return Replay(Transitions(*rows), replay.added + count)


def draw(replay: Replay, key: jax.Array, batch_size: int) -> Transitions:
    """``[K, batch_size, ...]``, uniformly from what there is."""
    k, capacity = replay.rows.rewards.shape
    there = jnp.minimum(replay.added, capacity)
    places = jax.random.randint(key, (k, batch_size), 0, there)
    tasks = jnp.arange(k)[:, None]
    return Transitions(*(leaf[tasks, places] for leaf in replay.rows))


def learn(
    each: Functions, batch_size: int, agent: Agent, replay: Replay, keys: jax.Array
) -> tuple[Agent, Told]:
    """An update for each of the keys ``[n]``; what they left behind, ``[n, ...]``."""

    def step(agent: Agent, key: jax.Array) -> tuple[Agent, Told]:
        draw_key, own_key = jax.random.split(key)
        after: tuple[Agent, Told] = each.update(agent, draw(replay, draw_key, batch_size), own_key)
        return after

    return jax.lax.scan(step, agent, keys)


def scaled(
    rewards: Any, estimate: tuple[Any, Any], rate: float = 0.001
) -> tuple[Any, tuple[Any, Any]]:
    """Rewards over their running deviation, which forgets at this rate, as mtenv has it.

    ``estimate`` is mean and variance, at first 0 and 1.
    """
    mean, variance = estimate
    mean = (1 - rate) * mean + rate * rewards
    variance = (1 - rate) * variance + rate * (rewards - mean) ** 2
    return rewards / (variance**0.5 + 1e-8), (mean, variance)
