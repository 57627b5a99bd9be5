"""The passes study: what each measure measures, its controls, its choices, its command line."""

import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import famo_jax
from famo_jax.experiments import _study, passes

STEPS, SEEDS, SIZE, K = 12, 2, 5, 3


# --- A problem whose metrics are its parameters ---------------------------------------------------


def task_losses(params, rows):
    """Means of (params - row)^2, so at least the variance of the rows."""
    return jnp.mean((params - rows) ** 2, axis=0)


def load_data(steps, seeds, batch_size):
    generator = np.random.default_rng(0)
    shapes = (steps, seeds, batch_size, K), (50, K), (50, K)
    scales = np.array([0.5, 1.0, 3.0])
    return _study.Data(*(jnp.asarray(scales * generator.normal(size=each)) for each in shapes))


PROBLEM = _study.Problem(
    name="small",
    title="",
    rows="rows",
    tasks=tuple(_study.Task(name, "", "", 1) for name in "abc"),
    load_data=load_data,
    init_params=lambda seeds: jnp.full((seeds, K), 4.0) + jnp.arange(seeds)[:, None],
    task_losses=task_losses,
    task_metrics=lambda params, rows: params,
    facts=dict,
    full={},
    quick={},
)


@pytest.fixture(scope="module")
def data():
    return load_data(STEPS, SEEDS, 2 * SIZE)


@pytest.fixture(scope="module")
def call(data):
    return passes.compile_runs(PROBLEM, data)


@pytest.fixture(scope="module")
def runs(call):
    return {name: call(passes.setting(name, 0.1, 1e-3, "harmonic")) for name in passes.VARIANTS}


# --- Measures -------------------------------------------------------------------------------------


def test_the_changes_of_the_first_step_by_hand(data):
    """Two-pass looks at the batch of the step again, the oracle at rows that it has not seen."""
    first = data._replace(train=data.train[:1])
    run = passes.compile_runs(PROBLEM, first)(passes.setting("frozen", 0.1, 0.0, "harmonic"))
    for seed, before in enumerate(PROBLEM.init_params(SEEDS)):
        after = run.test[seed]
        assert np.abs(before - after).min() > 0.05
        rows = data.train[0, seed]
        for measure, own in (("two-pass", rows[:SIZE]), ("oracle", rows[SIZE:])):
            expected = jnp.log(task_losses(before, own) / task_losses(after, own))
            changes = run.trace.changes[seed, 0, passes.MEASURES.index(measure)]
            np.testing.assert_allclose(changes, expected, rtol=1e-4)
        assert not run.trace.changes[seed, 0, passes.MEASURES.index("one-pass")].any()


def test_one_pass_telescopes(runs):
    for name in ("frozen", "one-pass", "one-pass-ema"):
        losses = np.asarray(runs[name].trace.losses)
        total = passes.sums(runs[name])["one-pass"]
        np.testing.assert_allclose(total, np.log(losses[:, 0] / losses[:, -1]), atol=1e-5)


def test_held_out_decrease_is_that_of_the_validation_rows(runs, data):
    for seed, before in enumerate(PROBLEM.init_params(SEEDS)):
        after = runs["frozen"].validation[seed]
        losses = [task_losses(each, data.validation) for each in (before, after)]
        np.testing.assert_allclose(
            passes.sums(runs["frozen"])["held-out"][seed], np.log(losses[0] / losses[1]), rtol=1e-5
        )


def test_only_the_frozen_run_records_what_does_not_move_it(runs):
    for name, run in runs.items():
        recorded = ~np.isnan(run.trace.changes).any(axis=(0, 1, 3))
        own = np.array([measure in ("one-pass", passes.VARIANTS[name].measure)
                        for measure in passes.MEASURES])  # fmt: skip
        np.testing.assert_array_equal(recorded, own | (name == "frozen"))


# --- Variants -------------------------------------------------------------------------------------


def test_controls_have_equal_weights_and_the_others_move(runs):
    for name, run in runs.items():
        if name in passes.CONTROLS:
            np.testing.assert_array_equal(run.trace.task_weights, np.float32(1 / K))
            np.testing.assert_array_equal(run.trace.logits_range, 0)
        else:
            assert np.asarray(run.trace.logits_range)[:, -1].min() > 1e-3


def test_si_is_adam_on_the_mean_of_the_log_losses(runs, data):
    params = PROBLEM.init_params(1)[0]
    adam = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
    opt_state = adam.init(params)
    for batch in data.train[:, 0, :SIZE]:
        grads = jax.grad(lambda p, rows: jnp.mean(jnp.log(task_losses(p, rows))))(params, batch)
        updates, opt_state = adam.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(runs["si"].test[0], params, rtol=1e-5)


def test_c_separates_frozen_from_si_and_nothing_else_does(call, runs):
    without = call(passes.setting("frozen", 0.1, 0.0, "None"))
    np.testing.assert_allclose(without.test, runs["si"].test, rtol=1e-6)
    assert np.abs(runs["frozen"].test - runs["si"].test).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("one-pass", None),
        ("one-pass-ema", optax.chain(optax.ema(0.9), optax.adam(0.025))),
    ],
)
def test_one_pass_logits_are_the_librarys_on_the_same_losses(name, optimizer, runs):
    famo = famo_jax.famo(K, weight_decay=1e-3, optimizer=optimizer)
    state = famo.init(None)
    for losses in runs[name].trace.losses[1]:
        _, state = famo.update({}, state, losses=losses)
    np.testing.assert_allclose(
        jnp.ptp(state.logits), runs[name].trace.logits_range[1, -1], rtol=1e-4
    )


@pytest.mark.parametrize("name", ["two-pass", "oracle"])
def test_two_pass_logits_follow_their_own_measure(name, runs):
    """The library's optimizer of the logits, fed with the changes that were recorded."""
    optimizer = famo_jax.logits_optimizer(0.025, 1e-3)
    state = famo_jax.famo(K).init(None)
    for change in runs[name].trace.changes[0, :, passes.MEASURES.index(name)]:
        state = famo_jax.update_logits(state, jnp.exp(change), jnp.ones(K), optimizer)
    np.testing.assert_allclose(
        jnp.ptp(state.logits), runs[name].trace.logits_range[0, -1], rtol=1e-3
    )


def test_gamma_goes_through_the_smoothing():
    """xi steps by -mean of the last (gamma xi), where delta is 0: decay is added before the ema."""
    optimizer = famo_jax.logits_optimizer(0.0, 0.5, optax.chain(optax.ema(0.9), optax.sgd(0.1)))
    xi, opt_state = jnp.array([1.0, -2.0]), None
    opt_state = optimizer.init(xi)
    expected, pulls = np.array([1.0, -2.0]), []
    for _ in range(4):
        updates, opt_state = optimizer.update(jnp.zeros(2), opt_state, xi)
        xi = optax.apply_updates(xi, updates)
        pulls.append(0.5 * expected)
        weights = 0.9 ** np.arange(len(pulls))[::-1]
        expected = expected - 0.1 * np.average(pulls, axis=0, weights=weights)
        np.testing.assert_allclose(xi, expected, rtol=1e-5)


# --- Figures --------------------------------------------------------------------------------------


def synthetic_run(changes):
    """``[seeds, steps, 3, K]``"""
    changes = np.asarray(changes)
    trace = passes.Trace(None, changes, None, None)
    return passes.Run(trace, np.zeros((len(changes), changes.shape[-1])), None, None)


def test_signal_to_noise_of_known_signals():
    steps = 1 + 10 * 400
    changes = np.zeros((4, steps, 3, 2))
    changes[..., 0], changes[..., 1] = 7.3, 5.3  # so each is 1 from their mean
    noise = np.random.default_rng(0).normal(size=(4, steps))
    for measure, size in enumerate((2.0, 1.0, 0.5)):
        changes[:, :, measure, 0] += size * noise
        changes[:, :, measure, 1] -= size * noise
    ratios = passes.signal_to_noise(synthetic_run(changes))
    for measure, ratio in zip(passes.MEASURES, (0.5, 1.0, 2.0), strict=True):
        assert ratios[measure].shape == (passes.WINDOWS,)
        np.testing.assert_allclose(ratios[measure], ratio, rtol=0.1)


def test_choices_by_validation_and_differences_by_seed():
    """What a fake trainer returns for each setting tells which were chosen."""

    def call(setting):
        rate, gamma = float(setting.rate), float(setting.gamma)
        measure, learns = int(setting.measure), float(setting.logits_rate) > 0
        seeds = np.array([[1.0], [2.0]])  # a seed's own luck, which all variants share
        if not learns:  # si is best at rate 0.2, frozen at rate 0.1
            level = 10 + abs(rate - (0.1 if setting.normalized else 0.2))
        else:
            assert rate == pytest.approx(0.1)
            level = 9 + abs(gamma - (0.01, 0.0, 0.1)[measure]) * 10
        metrics = (level + seeds) * np.ones(K)
        trace = passes.Trace(None, None, None, np.full((2, 4), gamma))
        return passes.Run(trace, None, metrics, metrics * 2)

    counted = []
    results = passes.run_study(
        PROBLEM, "harmonic", [0.1, 0.2], [0.0, 0.01, 0.1], call, lambda: counted.append(1)
    )
    assert len(counted) == 2 * 2 + 4 * 3
    assert (results["si"].rate, results["frozen"].rate) == (0.2, 0.1)
    chosen = {name: result.gammas[result.chosen] for name, result in results.items()}
    assert chosen == {
        "si": 0, "frozen": 0, "one-pass": 0.01, "one-pass-ema": 0.01, "two-pass": 0, "oracle": 0.1,
    }  # fmt: skip
    np.testing.assert_array_equal(results["si"].best, 0)
    # 9 + seed against 10 + seed, where the mean of si is 11.5: what a seed has is taken off.
    np.testing.assert_allclose(results["two-pass"].best, [-100 / 11.5] * 2)
    np.testing.assert_allclose(results["oracle"].logits_range[results["oracle"].chosen], 0.1)


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passes") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", "80")
        passes.main(["--quick", "--out", str(folder)])
    return folder, out.getvalue(), json.loads((folder / "passes.json").read_text("utf-8"))


def test_it_prints_three_tables_for_each_normalizer(whole_run):
    _, printed, _ = whole_run
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    for normalizer in passes.NORMALIZERS:
        assert printed.count(f"normalizer={normalizer}") == 1
    for title in ("Δm against si", "Differences of Δm", "Sums of each measure"):
        assert printed.count(title) == 2
    assert printed.count("regression 8 ") == 3 * 2
    assert "regression: a step over that of si: " in printed


def test_it_writes_every_figure(whole_run):
    folder, _, written = whole_run
    assert written["settings"]["gamma"] == [0.0, 0.01]
    assert set(written["environment"]) >= {"jax", "optax", "famo_jax", "device"}
    assert set(written["step_relative_to_si_at_the_last_batch_size"]["regression"]) == set(
        passes.TIMED
    )
    assert list(written["results"]) == ["harmonic", "None"]
    for normalizer, problems in written["results"].items():
        (figures,) = problems["regression"].values()
        assert list(figures["variants"]) == list(passes.VARIANTS)
        tasks = len(figures["tasks"])
        for name, own in figures["variants"].items():
            assert np.shape(own["delta_m_by_seed"]) == (2,)
            assert own["delta_m"] == pytest.approx(np.mean(own["delta_m_by_seed"]), abs=1e-3)
            assert len(own["by_gamma"]) == (1 if name in passes.CONTROLS else 2)
            assert np.shape(own["test"]) == np.shape(own["task_weights"]) == (tasks,)
            for other, against in own["against"].items():
                pair = (figures["variants"][each]["delta_m_by_seed"] for each in (name, other))
                assert against["mean"] == pytest.approx(np.mean(np.subtract(*pair)), abs=1e-3)
        frozen = figures["variants"]["frozen"]
        assert (np.abs(frozen["delta_m_by_seed"]).max() < 1e-2) == (normalizer == "None")
        assert list(figures["pairs"]) == [f"{name} - {other}" for name, other in passes.PAIRS]
        for totals in figures["sums_of_frozen"].values():
            assert np.shape(totals["mean"]) == (tasks,)
            assert np.shape(totals["beyond_held_out_interval"]) == (tasks, 2)
        for ratios in figures["signal_to_noise_of_frozen"].values():
            assert np.shape(ratios) == (passes.WINDOWS,)
    for name in passes.NORMALIZERS.values():
        picture = (folder / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert int.from_bytes(picture[16:20]) == 1700  # twice the width at which it is shown
