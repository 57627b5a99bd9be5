"""The passes study: what each measure measures, its controls, its choices, its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax.experiments import _methods, _train, passes
from famo_jax.experiments.problems import _problem

STEPS, SIZE, K = 12, 5, 3


def task_losses(params, rows):
    """Means of (params - row)^2, so at least the variance of the rows."""
    return jnp.mean((params - rows) ** 2, axis=0)


PROBLEM = _problem.Problem(
    tasks=tuple(_problem.Task(name, "", "", 1) for name in "abc"),
    load_data=lambda *_: None,
    init=lambda seeds: (jnp.full((len(seeds), K), 4.0) + jnp.asarray(seeds)[:, None], ()),
    losses=lambda params, state, rows, key: (task_losses(params, rows), state),
    metrics=lambda params, state, rows: params,
)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    scales = np.array([0.5, 1.0, 3.0])
    shapes = (STEPS, 2, 2 * SIZE, K), (50, K), (50, K)
    return _problem.Data(*(jnp.asarray(scales * generator.normal(size=each)) for each in shapes))


def train(name, data, steps=STEPS):
    method = _methods.METHODS[name]
    setting = {"learning_rate": 0.1} | ({"gamma": 1e-3} if method.takes else {})
    data = data._replace(train=data.train[:steps])
    arm = _train.Arm(
        name, PROBLEM, data, STEPS, method, [setting], [0, 1], halved=True,
        probe=passes.changes_of(PROBLEM), keep=lambda probed: {"changes": np.asarray(probed)},
    )  # fmt: skip
    return _train.train(arm._replace(steps=steps) if steps < STEPS else arm)


def test_the_changes_of_the_first_step_by_hand(data):
    """Two-pass looks at the batch of the step again, fresh at rows that it has not seen."""
    run = train("frozen", data, steps=1)
    for seed, before in enumerate(PROBLEM.init([0, 1])[0]):
        after, rows = run["test"][0, seed], data.train[0, seed]
        assert np.abs(before - after).min() > 0.05
        one_pass, two_pass, fresh = run["changes"][0, seed, 0]
        for found, own in ((two_pass, rows[:SIZE]), (fresh, rows[SIZE:])):
            expected = jnp.log(task_losses(before, own) / task_losses(after, own))
            np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert not one_pass.any()


def test_one_pass_telescopes(data):
    run = train("frozen", data)
    total = run["changes"][0, :, :, 0].sum(axis=1)
    losses = run["losses"][0]
    np.testing.assert_allclose(total, np.log(losses[:, 0] / losses[:, -1]), atol=1e-5)


@pytest.mark.parametrize("name", ["famo-one-pass", "famo", "famo-fresh"])
def test_the_logits_follow_their_own_measure(name, data):
    run = train(name, data)
    changes = run["changes"][0, 0, :-1, [*passes.MEASURES.values()].index(name)]
    tx = _methods.METHODS["famo"].make(K, gamma=1e-3)
    state = tx.init(None)
    start = 1 if name == "famo-one-pass" else 0  # the first call only remembers
    for change in changes[start:]:
        _, state = tx.update((), state, losses=jnp.exp(change), new_losses=jnp.ones(K))
    np.testing.assert_allclose(jnp.ptp(state.logits), run["logit_range"][0, 0, 0], rtol=1e-3)


def test_si_is_adam_on_the_mean_of_the_log_losses_by_a_cosine(data):
    params = PROBLEM.init([0])[0][0]
    adam = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
    opt_state = adam.init(params)
    for batch in data.train[:, 0, :SIZE]:
        grads = jax.grad(lambda p, rows: jnp.mean(jnp.log(task_losses(p, rows))))(params, batch)
        updates, opt_state = adam.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    for name in ("si", "frozen-no-c"):
        method = _methods.METHODS[name]
        arm = _train.Arm(
            name, PROBLEM, data, STEPS, method, [{"learning_rate": 0.1}], [0, 1], halved=True
        )  # fmt: skip
        np.testing.assert_allclose(_train.train(arm)["test"][0, 0], params, rtol=1e-5)


def test_signal_to_noise_of_known_signals():
    steps = 1 + 10 * 400
    changes = np.zeros((4, steps, 3, 2))
    changes[..., 0], changes[..., 1] = 7.3, 5.3  # so each is 1 from their mean
    noise = np.random.default_rng(0).normal(size=(4, steps))
    for measure, size in enumerate((2.0, 1.0, 0.5)):
        changes[:, :, measure, 0] += size * noise
        changes[:, :, measure, 1] -= size * noise
    ratios = passes.signal_to_noise(changes)
    for measure, ratio in zip(passes.MEASURES, (0.5, 1.0, 2.0), strict=True):
        assert ratios[measure].shape == (passes.WINDOWS,)
        np.testing.assert_allclose(ratios[measure], ratio, rtol=0.1)


def test_a_quick_run(tmp_path, run_study):
    printed, summary = run_study("passes", tmp_path, "--quick", "--steps", "12")
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("regression 8 ") >= 3 * 2
    figure = passes.draw(summary)
    for axes, (condition, own) in zip(figure.get_axes(), summary["results"].items(), strict=True):
        figures = own["regression"]["8"]
        names = [passes.CONTROL[condition]]
        names += [form + passes.CONDITIONS[condition] for form in passes.FORMS]
        means = [bars.lines[0].get_ydata()[0] for bars in axes.containers]
        expected = [figures["variants"][name]["delta_m"]["mean"] for name in names]
        np.testing.assert_allclose(means, expected)
        for (form, other), pair in zip(passes.PAIRS, figures["pairs"].values(), strict=True):
            ending = passes.CONDITIONS[condition]
            second = other + ending if other else passes.CONTROL[condition]
            both = (
                figures["variants"][name]["delta_m_by_seed"] for name in (form + ending, second)
            )
            assert pair["mean"] == pytest.approx(np.mean(np.subtract(*both)), abs=1e-3)
