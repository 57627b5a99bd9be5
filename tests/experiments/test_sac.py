"""Multi-task soft actor-critic: its parts against NumPy, its weighting against loops and traces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import famo_jax
from famo_jax.experiments import _methods
from famo_jax.experiments.problems import sac

K, B, SIZES = 3, 5, (6, 2)
OWN = sac.Settings(
    network="mtsac", identity=True, width=16, depth=2, batch_size=B, learning_rate=1e-3, clip=0.0,
    least_log_std=-5.0, shared_alpha=False, official_c=False,
)  # fmt: skip


@functools.cache
def functions(name="ls", own=OWN, **more):
    return sac.functions(K, SIZES, own, _methods.METHODS[name], more)


def transitions(seed, rows=B):
    rng = np.random.default_rng(seed)
    shapes = (SIZES[0],), (SIZES[1],), (), (SIZES[0],)
    every = [rng.normal(size=(K, rows, *shape)).astype(np.float32) for shape in shapes]
    return sac.Transitions(every[0], np.tanh(every[1]), *every[2:])


# --- Parts ----------------------------------------------------------------------------------------


def test_the_log_probability_is_that_of_a_squashed_normal():
    rng = np.random.default_rng(0)
    mean, log_std, noise = rng.normal(size=(3, 7, 2)).astype(np.float32)
    free = mean + np.exp(log_std) * noise
    action, log_prob = sac.squashed(free, noise, log_std)
    np.testing.assert_allclose(action, np.tanh(free), rtol=1e-6)
    # By a change of variables, in double precision.
    u = np.arctanh(np.tanh(free.astype(np.float64)))
    density = scipy.stats.norm(mean, np.exp(log_std)).pdf(u) / (1 - np.tanh(u) ** 2)
    np.testing.assert_allclose(log_prob, np.log(density).sum(axis=-1), rtol=2e-5)


def test_the_density_of_actions_integrates_to_one():
    mean, log_std = np.float32(0.4), np.float32(-0.3)
    actions = np.linspace(-1, 1, 200_001)[1:-1]
    free = np.arctanh(actions)
    noise = (free - mean) / np.exp(log_std)
    _, log_prob = sac.squashed(free[:, None], noise[:, None], log_std)
    assert np.trapezoid(np.exp(log_prob), actions) == pytest.approx(1, rel=1e-3)


def test_a_saturated_action_has_a_finite_log_probability_and_slope():
    of = lambda free: sac.squashed(free, jnp.zeros(2), jnp.zeros(2))[1]
    far = jnp.array([30.0, -30.0])
    expected = 2 * (-np.log(2 * np.pi) / 2 + 2 * (30 - np.log(2)))
    assert of(far) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(jax.grad(of)(far), [2, -2], rtol=1e-6)


def test_the_log_deviation_stays_within_its_bounds():
    outputs = np.array([0.0, 0.0, 0.0, -100.0, 0.0, 100.0, 0.0, 0.0]).reshape(4, 2)
    mean, log_std = sac.distribution(outputs[:, [0, 1]], -20.0)
    np.testing.assert_allclose(log_std[:, 0], [-9, -20, 2, -9], rtol=1e-6)
    assert not mean.any()


def test_targets_against_a_loop():
    rng = np.random.default_rng(1)
    rewards, values, log_probs = (rng.normal(size=s) for s in ((K, B), (2, K, B), (K, B)))
    alpha = np.array([0.1, 1.0, 3.0])
    found = sac.td_targets(rewards, values, log_probs, alpha, 0.9)
    for k in range(K):
        for b in range(B):
            least = min(values[0, k, b], values[1, k, b])
            expected = rewards[k, b] + 0.9 * (least - alpha[k] * log_probs[k, b])
            assert found[k, b] == pytest.approx(expected, rel=1e-5)


def test_losses_of_the_critics_against_a_loop():
    rng = np.random.default_rng(2)
    values, targets = rng.normal(size=(2, K, B)), rng.normal(size=(K, B))
    found = sac.critic_losses(values, targets)
    for k in range(K):
        total = sum((values[j, k, b] - targets[k, b]) ** 2 for j in range(2) for b in range(B))
        assert found[k] == pytest.approx(total / B, rel=1e-5)


def test_the_loss_of_the_temperatures_and_its_slope():
    rng = np.random.default_rng(3)
    log_probs, log_alpha = rng.normal(size=(K, B)), np.array([-1.0, 0.0, 0.5])
    own, slope = jax.value_and_grad(sac.alpha_loss)(log_alpha, log_probs, -2.0)
    each = np.exp(log_alpha)[:, None] * (-log_probs + 2.0)
    assert own == pytest.approx(each.mean(), rel=1e-5)
    np.testing.assert_allclose(slope, each.mean(axis=1) / K, rtol=1e-5)  # d exp(x) = exp(x)
    shared, slope = jax.value_and_grad(sac.alpha_loss)(np.array([0.5]), log_probs, -2.0)
    assert shared == pytest.approx(np.exp(0.5) * (2 - log_probs.mean()), rel=1e-5)
    np.testing.assert_allclose(slope, [shared], rtol=1e-5)


def test_rewards_are_scaled_by_their_running_deviation():
    rng = np.random.default_rng(4)
    mean, variance = 0.0, 1.0
    estimate = np.zeros(1), np.ones(1)
    for reward in rng.normal(2, 3, 50):
        mean = 0.9 * mean + 0.1 * reward
        variance = 0.9 * variance + 0.1 * (reward - mean) ** 2
        found, estimate = sac.scaled(np.array([reward]), estimate, 0.1)
        assert found[0] == pytest.approx(reward / (np.sqrt(variance) + 1e-8))


# --- Replay ---------------------------------------------------------------------------------------


def test_replay_returns_what_it_got_last_and_nothing_else():
    """Numbered rows: of each task its own, of these the last, all of them, and whole."""
    replay, count = sac.empty(K, 7, SIZES), 0

    def numbered(first, rows):
        own = 100 * np.arange(1, K + 1)[:, None] + np.arange(first, first + rows)
        wide = lambda size: np.repeat(own[..., None], size, axis=-1).astype(np.float32)
        return sac.Transitions(
            wide(SIZES[0]), wide(SIZES[1]), own.astype(np.float32), wide(SIZES[0]) + 0.5
        )

    add = jax.jit(sac.add)
    for rows in (2, 2, 2, 2, 2, 2):
        replay, count = add(replay, numbered(count, rows)), count + rows
        drawn = sac.draw(replay, jax.random.key(count), 200)
        for task in range(K):
            there = 100 * (task + 1) + np.arange(max(0, count - 7), count)
            np.testing.assert_array_equal(np.unique(drawn.rewards[task]), there)
        for leaf, more in ((drawn.observations, 0), (drawn.actions, 0),
                           (drawn.next_observations, 0.5)):  # fmt: skip
            wide = np.broadcast_to(drawn.rewards[..., None] + more, leaf.shape)
            np.testing.assert_array_equal(leaf, wide)
    assert replay.added == count == 12


# --- Networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", list(sac.NETWORKS))
def test_a_network_knows_the_task_and_rows_do_not_mix(network):
    of = functions(own=OWN._replace(network=network))
    actor = of.begin(jax.random.key(0)).actor
    same = np.broadcast_to(np.linspace(-1, 1, SIZES[0], dtype=np.float32), (K, B, SIZES[0]))
    outputs = of.act(actor, same, None)
    assert outputs.shape == (K, B, SIZES[1])
    assert np.ptp(outputs, axis=1).max() < 1e-6
    assert np.ptp(outputs, axis=0).min() > 1e-4
    other = same.copy()
    other[1, 2] += 1
    changed = np.abs(of.act(actor, other, None) - outputs).max(axis=-1) > 1e-4
    assert changed.tolist() == (np.arange(K * B) == B + 2).reshape(K, B).tolist()


def test_a_network_that_is_not_told_the_task_does_not_know_it():
    of = functions(own=OWN._replace(identity=False))
    same = np.ones((K, B, SIZES[0]), np.float32)
    outputs = of.act(of.begin(jax.random.key(0)).actor, same, None)
    assert np.ptp(outputs, axis=0).max() < 1e-6


def test_soft_modularization_against_its_equations():
    own = OWN._replace(network="soft-modularization")
    network = sac.SoftModularization(K, SIZES[0], 4, own, sac.nnx.Rngs(1))
    inputs = transitions(0).observations
    found = network(inputs)
    relu = lambda x: np.maximum(x, 0)
    linear = lambda layer, x: x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    for task in range(K):
        for row, x in enumerate(inputs[task]):
            state = x
            for layer in network.of_state.layers:
                state = relu(linear(layer, state))
            routed = state * linear(network.of_task, np.eye(K)[task])
            scores = linear(network.down[0], relu(routed)).reshape(2, 2)
            p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            first, second = network.modules
            weigh = lambda layer, j, x: relu(
                x @ np.asarray(layer["kernels"][...])[j] + np.asarray(layer["biases"][...])[j, 0, 0]
            )
            made = [weigh(first, j, state) for j in range(2)]
            taken = [sum(p[i, j] * made[j] for j in range(2)) for i in range(2)]
            last = sum(weigh(second, i, taken[i]) for i in range(2))
            np.testing.assert_allclose(found[task, row], linear(network.head, last), atol=1e-5)


# --- An update ------------------------------------------------------------------------------------


def losses_of(of, agent, batch, key):
    """The K losses as a function of the critics, with what the update draws from the key."""
    next_key, _ = jax.random.split(key)
    actor = agent.actor

    def values(critics, seen, done):
        return jnp.stack(
            [of_critic(jax.tree.map(lambda leaf, j=j: leaf[j], critics), seen, done)
             for j in range(2)]
        )  # fmt: skip

    graph = sac.nnx.graphdef(
        sac.nnx.eval_shape(
            lambda: sac.MultiTask(K, sum(SIZES), 1, OWN, sac.nnx.Rngs(jax.random.key(0)))
        )
    )

    def of_critic(params, seen, done):
        return sac.nnx.merge(graph, params)(jnp.concatenate([seen, done], axis=-1))[..., 0]

    actor_graph = sac.nnx.graphdef(
        sac.nnx.eval_shape(
            lambda: sac.MultiTask(K, SIZES[0], 2 * SIZES[1], OWN, sac.nnx.Rngs(jax.random.key(0)))
        )
    )
    outputs = sac.nnx.merge(actor_graph, actor)(batch.next_observations)
    actions, log_probs = sac.sample(*sac.distribution(outputs, OWN.least_log_std), next_key)
    least = jnp.min(values(agent.targets, batch.next_observations, actions), axis=0)
    alpha = np.exp(np.asarray(agent.log_alpha))
    y = batch.rewards + 0.99 * (least - alpha[:, None] * log_probs)

    def losses(critics):
        errors = values(critics, batch.observations, batch.actions) - y
        return jnp.stack([jnp.mean(errors[0, k] ** 2) + jnp.mean(errors[1, k] ** 2)
                          for k in range(K)])  # fmt: skip

    return losses


def test_official_c_is_the_trace_of_its_formula():
    """sum z log(l + 1e-8) times sum z / (l + 1e-8), the second look on the same target."""
    gamma, rate = 1e-2, 0.025
    of = functions("famo-no-c", OWN._replace(official_c=True), gamma=gamma)
    agent, update = of.begin(jax.random.key(5)), jax.jit(of.update)
    xi, m, v = np.zeros(K), np.zeros(K), np.zeros(K)
    critics = agent.critics
    adam = optax.adam(OWN.learning_rate)
    adam_state = adam.init(critics)
    for step in range(4):
        batch, key = transitions(step), jax.random.key(step)
        losses_fn = losses_of(of, agent, batch, key)
        z = np.exp(xi) / np.exp(xi).sum()
        losses = np.asarray(losses_fn(critics), np.float64)
        c = np.sum(z / (losses + 1e-8))
        weighted = lambda p, fn=losses_fn, z=z, c=c: jnp.sum(z * jnp.log(fn(p) + 1e-8)) * c
        changes, adam_state = adam.update(jax.grad(weighted)(critics), adam_state, critics)
        critics = optax.apply_updates(critics, changes)
        after = np.asarray(losses_fn(critics), np.float64)
        delta = np.log(losses + 1e-8) - np.log(after + 1e-8)
        slope = z * (delta - z @ delta) + gamma * xi  # of softmax, and Adam's coupled decay
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        xi = xi - rate * (m / (1 - 0.9 ** (step + 1))) / (
            np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
        )
        agent, told = update(agent, batch, key)
        np.testing.assert_allclose(told.losses, losses, rtol=1e-4)
        np.testing.assert_allclose(told.task_weights, z, rtol=2e-3)
        jax.tree.map(
            lambda mine, own: np.testing.assert_allclose(mine, own, atol=2e-5),
            agent.critics,
            critics,
        )
    assert np.ptp(famo_jax.task_weights(agent.critic_opt)) > 1e-2
    np.testing.assert_allclose(
        famo_jax.task_weights(agent.critic_opt), np.exp(xi) / np.exp(xi).sum(), rtol=2e-3
    )


def test_the_official_scale_is_the_sum_and_nothing_else():
    """Under plain gradient descent, which unlike Adam keeps it."""
    z, losses, grads = np.full(K, 1 / K), np.array([0.1, 2.0, 5.0]), jnp.ones(4)
    tx = optax.chain(optax.sgd(1.0), famo_jax.famo(K, normalizer=None))
    for own, times in ((tx, 1.0), (sac.times_sum(tx), np.sum(z / (losses + 1e-8)))):
        updates, _ = own.update(grads, own.init(grads), grads, losses=losses, new_losses=losses)
        np.testing.assert_allclose(updates, -times * np.ones(4), rtol=1e-6)


@functools.cache
def updated(name):
    """An agent before and after a few updates, and ``(rate, agent, seed) -> (agent, told)``.

    What is rewarded in a task is punished in the next, so that their gradients conflict.
    """
    method = _methods.METHODS[name]
    more = dict.fromkeys(method.takes, 0.01)

    @jax.jit
    def at_rate(rate, agent, *drawn):
        of = sac.functions(K, SIZES, OWN._replace(learning_rate=rate), method, more)
        return of.update(agent, *drawn)

    def update(rate, agent, seed):
        batch = transitions(seed)._replace(rewards=np.full((K, B), [[10], [-10], [20]], np.float32))
        return at_rate(rate, agent, batch, jax.random.key(seed))

    begun = agent = functions(name, **more).begin(jax.random.key(2))
    for seed in range(4):
        agent, _ = update(1e-3, agent, seed)
    return begun, agent, update


@pytest.mark.parametrize("name", ["uw", "nash-mtl", "graddrop", "pcgrad", "famo", "nash-two-pass"])
def test_a_method_changes_the_critics_and_nothing_else(name):
    """Not what reaches the actor, the temperatures and the targets from the same critics."""
    (begun, of_mean, by_mean), (_, agent, by_method) = updated("ls"), updated(name)
    apart = jax.tree.map(lambda own, mean: np.abs(own - mean).max(), agent.critics, of_mean.critics)
    assert max(jax.tree.leaves(apart)) > 1e-5
    # At a rate of 0 the critics stay as they are, and Adam's moments still tell the gradients.
    own, told = by_method(0.0, agent, 9)
    mean, told_of_mean = by_mean(0.0, agent._replace(critic_opt=begun.critic_opt), 9)
    same = [own._replace(critic_opt=None), told._replace(task_weights=None)]
    expected = [mean._replace(critic_opt=None), told_of_mean._replace(task_weights=None)]
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(near, same, expected)


@pytest.mark.parametrize("network", list(sac.NETWORKS))
def test_every_part_of_a_network_learns(network):
    """Each leaf of the actor and of both critics, and in it that of each head or module."""
    of = functions("famo", OWN._replace(network=network), gamma=1e-3)
    begun = agent = of.begin(jax.random.key(2))
    update = jax.jit(of.update)
    for step in range(2):
        agent, told = update(agent, transitions(step), jax.random.key(step))
        assert np.isfinite(told.losses).all()
        assert np.isfinite(told.entropy).all()

    def learns(before, after):
        assert np.isfinite(after).all()
        assert np.any(before != after, axis=tuple(range(max(after.ndim - 2, 0), after.ndim))).all()

    jax.tree.map(learns, begun.actor, agent.actor)
    for twin in range(2):
        jax.tree.map(
            lambda before, after, j=twin: learns(before[j], after[j]), begun.critics, agent.critics
        )


def test_no_loss_of_an_actor_is_below_its_bound():
    """Always the greatest reward, by actions drawn uniformly: an entropy of log 2 each."""
    most, actions, discount = 10.0, 4, 0.9
    log_probs = np.full((1, 1), -actions * np.log(2))  # a density of 1/2 each
    value = np.zeros((1, 1))
    for _ in range(300):
        rewards = np.full((1, 1), most)
        value = np.asarray(sac.td_targets(rewards, value[None], log_probs, np.ones(1), discount))
    least = (log_probs - value).item()
    bound = sac.actor_bound(most, actions, discount)
    assert bound < least < 0.9 * bound
    assert sac.actor_bound(10, 4, 0.99) == pytest.approx(-1280.03, abs=0.01)


def test_an_actor_whose_losses_are_weighed_alike_learns_as_from_their_mean():
    batch, key = transitions(0), jax.random.key(1)
    agents = []
    for own in (OWN, OWN._replace(most_reward=10.0)):
        of = functions("ls", own)
        agents.append(jax.jit(of.update)(of.begin(jax.random.key(2)), batch, key)[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), agents[0].actor, agents[1].actor
    )


def test_weights_of_the_actors_losses_are_its_own():
    of = functions("famo", OWN._replace(most_reward=10.0), gamma=1e-3)
    agent, update = of.begin(jax.random.key(2)), jax.jit(of.update)
    for step in range(3):
        agent, _ = update(agent, transitions(step), jax.random.key(step))
    of_actor, of_critics = map(famo_jax.task_weights, (agent.actor_opt, agent.critic_opt))
    assert min(np.ptp(of_actor), np.ptp(of_critics)) > 1e-3
    assert np.abs(of_actor - of_critics).max() > 1e-3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(agent.actor))


def test_targets_follow_the_critics():
    of = functions()
    before = of.begin(jax.random.key(0))
    after, _ = jax.jit(of.update)(before, transitions(0), jax.random.key(0))
    jax.tree.map(
        lambda old, new, found: np.testing.assert_allclose(
            found, 0.995 * old + 0.005 * new, atol=1e-6
        ),
        before.targets, after.critics, after.targets,
    )  # fmt: skip


def test_updates_of_one_call_are_those_of_single_calls():
    of, key = functions("famo", gamma=1e-3), jax.random.key(3)
    replay = sac.add(sac.empty(K, 30, SIZES), transitions(1, 20))
    keys = jax.random.split(key, 4)
    learn = jax.jit(functools.partial(sac.learn, of, B))
    begun = of.begin(jax.random.key(0))
    together, told = learn(begun, replay, keys)
    agent = begun
    for number in range(4):
        agent, one = learn(agent, replay, keys[number : number + 1])
        np.testing.assert_allclose(one.losses[0], told.losses[number], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together.critics, agent.critics
    )


def test_an_agent_learns_which_action_is_rewarded():
    """A reward for an action near one of the task's own; there is no future to look to."""
    goals = np.array([-0.6, 0.0, 0.6], np.float32)[:, None, None]
    own = OWN._replace(discount=0.0, learning_rate=3e-3, width=32)
    of = functions("ls", own)
    every = transitions(0, 256)
    actions = np.random.default_rng(0).uniform(-1, 1, (K, 256, 2)).astype(np.float32)
    rewards = -10 * np.sum((actions - goals) ** 2, axis=-1)
    replay = sac.add(sac.empty(K, 256, SIZES), every._replace(actions=actions, rewards=rewards))
    learn = jax.jit(functools.partial(sac.learn, of, 32))
    agent, _ = learn(of.begin(jax.random.key(0)), replay, jax.random.split(jax.random.key(1), 800))
    chosen = np.asarray(of.act(agent.actor, every.observations[:, :20], None)).mean(axis=1)
    np.testing.assert_allclose(chosen, np.broadcast_to(goals[:, 0], (K, 2)), atol=0.2)
