"""The normaliser study: its values of c, its problem, its choice of rates, its command line."""

import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import famo_jax
from famo_jax.experiments import normalizer as study

INDEX = {name: index for index, name in enumerate(study.NORMALIZERS)}


# --- Normalisers ----------------------------------------------------------------------------------


def values_of(losses, logits=(0.0, 0.0, 0.0, 0.0), gradient_norm=1.0, average=None):
    state = famo_jax.famo(study.K).init(None)._replace(logits=jnp.array(logits))
    average = average or study.Average(jnp.zeros(2), jnp.zeros(2))
    return study.normalizers(jnp.array(losses), state, jnp.array(gradient_norm), average)


def test_means_are_scipys_weighted_by_z():
    losses, logits = [0.3, 2.0, 5.0, 0.8], [0.5, -1.0, 0.0, 1.5]
    z = np.exp(logits) / np.sum(np.exp(logits))
    c, _ = values_of(losses, logits)
    assert list(c) == list(study.NORMALIZERS)
    expected = {
        "harmonic": scipy.stats.hmean(losses, weights=z),
        "geometric": scipy.stats.gmean(losses, weights=z),
        "arithmetic": np.average(losses, weights=z),
        "None": 1.0,
        "floored": scipy.stats.hmean(losses, weights=z),  # none is far below their mean
    }
    for name, value in expected.items():
        assert c[name] == pytest.approx(value, rel=1e-5)


def test_the_floored_mean_by_hand():
    c, _ = values_of([1e-4, 1.0, 1.0, 1.0])  # the geometric mean is 0.1, a tenth of it 0.01
    assert c["floored"] == pytest.approx(4 / 103, rel=1e-3)
    assert c["harmonic"] == pytest.approx(4 / 10003, rel=1e-3)


@pytest.mark.parametrize("length", [0.2, 5.0])
def test_clipped_is_what_optax_clips(length):
    gradient = jnp.array([0.6, 0.8]) * length
    c, _ = values_of([1.0, 1.0, 1.0, 1.0], gradient_norm=length)
    clipped, _ = optax.clip_by_global_norm(1.0).update(gradient, optax.EmptyState())
    np.testing.assert_allclose(c["clipped"] * gradient, clipped, rtol=1e-6)


def test_smooth_ones_are_weighted_geometric_means_over_steps():
    history, average = [], None
    for scale in (1.0, 3.0, 0.2):
        c, average = values_of([scale, 2 * scale, scale, scale], average=average)
        history.append(float(c["harmonic"]))
        for name, memory in study.MEMORIES.items():
            weights = memory ** np.arange(len(history))[::-1]
            assert c[name] == pytest.approx(scipy.stats.gmean(history, weights=weights), rel=1e-5)


# --- The problem ----------------------------------------------------------------------------------


def first(seeds):
    return jax.tree.map(lambda leaf: leaf[0], seeds)


def test_the_excess_over_all_inputs_is_what_a_large_sample_has():
    seed = first(study.draw_seeds(1, steps=20_000))
    draws = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), seed.train)
    variances = study.noise_variances(2.0)
    np.testing.assert_allclose(variances, [0.01, 1, 1, 1], rtol=1e-6)
    losses = study.task_losses(seed.params, draws, seed.targets, variances)
    exact = variances * (1 + study.excess(seed.params, seed.targets, variances))
    np.testing.assert_allclose(losses, exact, rtol=0.02)


def test_the_network_holds_every_target():
    seed = first(study.draw_seeds(1, steps=1))
    np.testing.assert_allclose(jnp.linalg.norm(seed.targets, axis=0), 1, rtol=1e-6)
    params = study.Params(jnp.eye(study.FEATURES), seed.targets)
    variances = study.noise_variances(3.0)
    np.testing.assert_allclose(study.excess(params, seed.targets, variances), 0, atol=1e-9)
    losses = study.task_losses(params, seed.validation, seed.targets, variances)
    noise = jnp.mean(seed.validation.noise**2, axis=0) * variances
    np.testing.assert_allclose(losses, noise, rtol=1e-4)


def test_seeds_differ_and_do_not_depend_on_how_many_there_are():
    two, one = study.draw_seeds(2, 3), study.draw_seeds(1, 3)
    for pair, single in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(pair[0], single[0])
        assert np.abs(pair[0] - pair[1]).max() > 0.1


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", study.LIBRARY)
def test_a_step_is_as_long_as_the_librarys_gradient(name):
    seed = first(study.draw_seeds(1, steps=1))
    run = study.train(study.OPTIMIZERS["sgd"], seed, *map(jnp.asarray, (2.0, 0, INDEX[name], 0.1)))
    draws = jax.tree.map(lambda leaf: leaf[0], seed.train)

    def loss_fn(params):
        losses = study.task_losses(params, draws, seed.targets, study.noise_variances(2.0))
        state = famo_jax.famo(study.K).init(None)
        return famo_jax.weighted_loss(losses, state, normalizer=None if name == "None" else name)

    length = 0.1 * optax.tree.norm(jax.grad(loss_fn)(seed.params))
    np.testing.assert_allclose(run.step_length, [length], rtol=1e-5)


def synthetic_run(validation, excess=None):
    """One seed, one nearness, one schedule; ``[normalisers, rates, K]``."""
    validation = np.asarray(validation, float)[None, None, None]
    shape = validation.shape[:-1]
    return study.Run(
        validation=validation,
        excess=validation if excess is None else np.asarray(excess, float)[None, None, None],
        c=np.broadcast_to([1.0, 0.01, 0.1], (*shape, 3)),
        step_length=np.ones((*shape, 3)),
        logits_range=np.ones(shape),
    )


def test_rates_are_chosen_on_validation_and_a_run_that_diverged_never_is():
    count = len(study.NORMALIZERS)
    validation = np.ones((count, 3, study.K))
    validation[:, 2] = 0.5  # the best rate of all but the harmonic mean
    validation[INDEX["harmonic"], 1] = 0.1
    validation[INDEX["None"], 2, 0] = np.nan
    validation[INDEX["None"], 0] = 0.9
    excess = np.arange(count * 3 * study.K).reshape(count, 3, study.K)
    results = study.select(synthetic_run(validation, excess), [0.1, 0.2, 0.3])
    assert results["harmonic"].best.rate == results["geometric"].common.rate == 0.2
    assert results["geometric"].best.rate == 0.3
    assert results["None"].best.rate == 0.1
    own = excess[INDEX["geometric"], 2]
    assert results["geometric"].best.near.item() == own[0]
    assert results["geometric"].best.others.item() == own[1:].mean()
    assert results["geometric"].best.every.item() == pytest.approx(np.prod(1 + own) ** 0.25 - 1)
    assert results["geometric"].best.c_decades.item() == pytest.approx(2)


def test_a_ratio_is_paired_by_seed():
    base = np.array([1.0, 10.0, 100.0])
    mean, low, high = study.ratio(base * [2.0, 4.0, 8.0], base)
    assert mean == pytest.approx(4)
    # Student's t with 2 degrees of freedom, of logs 1, 2, 3 to base 2: 4.303 / sqrt(3).
    assert np.log2([low, high]) == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normalizer") / "new" / "folder"
    arguments = ["--quick", "--optimizers", "adam", "adam-frozen", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", "80")
        study.main(arguments)
    return folder, out.getvalue(), json.loads((folder / "normalizer.json").read_text("utf-8"))


def test_it_prints_tables_within_80_columns(whole_run):
    _, printed, _ = whole_run
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    rows = [line.split() for line in printed.splitlines()]
    for name in ("adam", "adam-frozen"):
        cells = [row for row in rows if row[:1] == [name] and row[1] in ("const", "cosin")]
        assert len(cells) == len(study.TABLES) * len(study.SCHEDULES)
        assert all(len(row) == 2 + len(study.NORMALIZERS) for row in cells)


def test_it_writes_every_figure(whole_run):
    folder, _, written = whole_run
    assert written["settings"]["nearness"] == [0.0, 6.0]
    assert set(written["environment"]) >= {"jax", "optax", "famo_jax", "device"}
    assert list(written["results"]) == ["adam", "adam-frozen"]
    for optimizer, schedules in written["results"].items():
        assert list(schedules) == list(study.SCHEDULES)
        for cells in schedules.values():
            assert list(cells) == list(study.NORMALIZERS)
            for cell in cells.values():
                assert cell["common"]["learning_rate"] == cells["harmonic"]["best"]["learning_rate"]
                for figures in cell.values():
                    assert set(figures["learning_rate"]) <= set(study.OPTIMIZERS[optimizer].rates)
                    for quantity in study.QUANTITIES:
                        by_seed = np.array(figures[f"{quantity}_by_seed"])
                        assert by_seed.shape == (2, 2)
                        mean = scipy.stats.gmean(by_seed, axis=1)
                        np.testing.assert_allclose(figures[quantity], mean, rtol=1e-4)
                        assert np.shape(figures[f"{quantity}_over_harmonic"]) == (2, 3)
                    assert np.shape(figures["c"]) == np.shape(figures["step_length"]) == (2, 50)
            assert cells["None"]["best"]["c_decades"] == [0, 0]
            assert cells["harmonic"]["common"]["c_decades"][1] > 1
            drift = cells["harmonic"]["best"]["logits_range"]
            assert (max(drift) == 0) == (optimizer == "adam-frozen")
    picture = (folder / "normalizer.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 1700  # twice the width at which it is shown
