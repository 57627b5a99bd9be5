"""The passes study: what each measure measures, its controls, its choices, its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from famo_jax.experiments import _gains, _methods, _train, passes
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
    shapes = (STEPS, 2, 2 * SIZE, K), (2, 50, K), (2, 50, K)
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


MEASURED = {"famo-one-pass": 0, "famo": 1, "famo-fresh": 2}  # places among the changes


@pytest.mark.parametrize("name", MEASURED)
def test_the_logits_follow_their_own_measure(name, data):
    run = train(name, data)
    changes = run["changes"][0, 0, :-1, MEASURED[name]]
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


def test_sums_of_known_changes():
    """Three seeds, two tasks: of the second, two-pass's sums are above the held-out fall."""
    start, end = np.ones((3, 4)), np.ones((3, 4))
    end[:, 2:] = np.exp([[-1.0, -2.0]])  # metrics come first, then losses: they fall by 1 and 2
    changes = np.zeros((3, 3, 2))
    changes[:, 0] = [1.0, 2.0]
    changes[:, 1] = [1.0, 5.0]
    changes[:, 2] = [0.5, 1.5]
    changes += 1e-3 * np.arange(-1, 2)[:, None, None]
    found = passes.sums({"changes": changes, "validation": end, "validation_start": start})
    assert found["held-out"] == pytest.approx(1.5)
    for measure, mean, above in (("one-pass", 1.5, 0), ("two-pass", 3, 1), ("fresh", 1, 0)):
        assert found[measure]["mean"] == pytest.approx(mean)
        assert found[measure]["tasks_above"] == above


def test_a_quick_run(tmp_path, run_study):
    printed, summary = run_study("passes", tmp_path, "--quick", "--steps", "12")
    assert max(map(len, printed.splitlines())) <= 80
    assert sum(line.startswith("regression 8 ") for line in printed.splitlines()) == 2 * 2
    assert "…" not in printed
    with np.load(tmp_path / "runs.npz") as arrays:
        for condition, c in passes.CONDITIONS.items():
            own = summary[condition]["regression 8"]
            control = arrays[f"regression 8 {_gains.control_of('famo' + c)}/test"][0, :, :11]
            base = arrays["regression 8 frozen-no-c/test"][0, :, :11].mean(axis=0)
            delta_m = {"": 100 * (control / base - 1).mean(axis=1)}
            for form, gain in own["gains"].items():
                index = [0.0, 1e-2].index(gain["gamma"])
                test = arrays[f"regression 8 {form}{c}/test"][index, :, :11]
                delta_m[form] = 100 * (test / base - 1).mean(axis=1)
                expected = np.mean(delta_m[form] - delta_m[""])
                assert gain["mean"] == pytest.approx(expected, abs=1e-2)
            for (form, other), lead in zip(passes.LEADS, own["leads"], strict=True):
                expected = np.mean(delta_m[form] - delta_m[other])
                assert lead["mean"] == pytest.approx(expected, abs=1e-2)
    for axes, condition in zip(passes.draw(summary).get_axes(), passes.CONDITIONS, strict=True):
        means = [bars.lines[0].get_ydata()[0] for bars in axes.containers]
        gains = summary[condition]["regression 8"]["gains"]
        np.testing.assert_allclose(means, [gains[form]["mean"] for form in passes.FORMS])
        assert condition in axes.get_title(loc="left")
