"""The digits experiment: its pictures, its methods, its choice of settings, its command line."""

import contextlib
import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from famo_jax.experiments import _report, digits

STEPS, SEEDS = 6, 2
RATES, GAMMAS = ["0.001", "0.003"], ["0", "0.01"]


# --- Pictures -------------------------------------------------------------------------------------


def rows_of(images):
    """Images as sorted tuples, to compare sets of them."""
    return sorted(map(tuple, np.asarray(images).reshape(len(images), -1).astype(int).tolist()))


def test_splits_cover_the_digits_and_share_none():
    splits = digits.load_splits()
    assert [len(split.labels) for split in splits] == [1200, 297, 300]
    every = rows_of(load_digits().images)
    assert len(set(every)) == len(every)  # so that images tell digits apart
    assert rows_of(np.concatenate([split.images for split in splits])) == every
    for split in splits:
        assert np.bincount(split.labels).min() >= len(split.labels) // 11  # each class


def test_held_out_pictures_show_no_digit_of_training():
    splits = digits.load_splits()
    data = digits.load_data(steps=20, seeds=2, batch_size=32)
    for pictures, split in zip(data, splits, strict=True):
        own = dict(zip(map(bytes, split.images), split.labels, strict=True))
        clean = np.asarray(pictures.clean).reshape(-1, 64)
        assert [own[bytes(digit)] for digit in clean] == np.ravel(pictures.left).tolist()
        inks = set(zip(split.images.sum(axis=(1, 2)).tolist(), split.labels, strict=True))
        right = zip(np.ravel(pictures.ink).tolist(), np.ravel(pictures.right), strict=True)
        assert inks.issuperset(right)
    assert data.validation.left.shape == data.test.left.shape == (digits.HELD_OUT,)


def test_a_picture_is_the_maximum_of_two_placed_digits(monkeypatch):
    monkeypatch.setattr(digits, "NOISE", 0.0)
    images = np.random.default_rng(0).integers(0, 17, (2, 8, 8)).astype(np.uint8)
    sources = digits.Sources(images, np.array([3, 7], np.int32))

    def canvas(digit, row, column):
        picture = np.zeros((10, 14))
        picture[row : row + 8, column : column + 8] = images[digit]
        return picture

    places = list(itertools.product(range(2), range(3), range(3)))
    expected = {}
    for (left, row, column), (right, row_, column_) in itertools.product(places, places):
        picture = np.maximum(canvas(left, row, column), canvas(right, row_, column_ + 4))
        target = (sources.labels[left], sources.labels[right], bytes(images[left]))
        expected[np.round(255 * picture / 16).astype(np.uint8).tobytes()] = (
            *target,
            images[right].sum(),
        )

    pictures = digits.compose(jax.random.key(0), sources, 3000)
    shown = set()
    for pixels, left, right, clean, ink in zip(*map(np.asarray, pictures), strict=True):
        assert expected[pixels.tobytes()] == (left, right, clean.tobytes(), ink)
        shown.add(pixels.tobytes())
    assert shown == set(expected)  # every pair of digits at every pair of places


def test_noise_is_fresh_and_of_its_standard_deviation():
    grey = digits.Sources(np.full((1, 8, 8), 8, np.uint8), np.zeros(1, np.int32))
    train = digits.compose(jax.random.key(0), grey, 2000).pixels / 255
    # Pixels of the middle always show a digit, half-way between black and white.
    middle = train.reshape(-1, 10, 14)[:, 2:8, 2:12]
    assert np.std(middle) == pytest.approx(digits.NOISE, rel=0.06)  # clipped at 2 of them
    assert np.abs(np.corrcoef(middle.reshape(2000, -1).T) - np.eye(60)).max() < 0.15


def test_pictures_differ_by_step_and_seed_and_not_by_the_number_of_seeds():
    two = digits.load_data(steps=3, seeds=2, batch_size=8)
    one = digits.load_data(steps=3, seeds=1, batch_size=8)
    np.testing.assert_array_equal(one.train.pixels[:, 0], two.train.pixels[:, 0])
    np.testing.assert_array_equal(one.test.pixels, two.test.pixels)
    assert len(np.unique(two.train.pixels.reshape(-1, 140), axis=0)) == 3 * 2 * 8
    assert two.train.pixels.dtype == np.uint8


# --- Tasks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    return digits.compose(jax.random.key(0), digits.load_splits().train, 256)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf[0], digits.init_params(1))


def test_losses_span_orders_of_magnitude(params, pictures):
    losses = digits.task_losses(params, pictures)
    assert losses.shape == (digits.K,)
    assert losses.max() / losses.min() > 1e5


def test_losses_and_metrics_are_those_of_their_names(params, pictures, monkeypatch):
    size = len(pictures.left)
    wrong = (pictures.left + 1) % 10
    outputs = digits.Outputs(
        left=100.0 * jax.nn.one_hot(jnp.where(jnp.arange(size) < 64, wrong, pictures.left), 10),
        right=jnp.zeros((size, 10)),
        clean=pictures.clean / 16 + 0.5,
        ink=pictures.ink - 3.0,
    )
    monkeypatch.setattr(digits, "apply", lambda params, pictures: outputs)
    losses = digits.task_losses(params, pictures)
    np.testing.assert_allclose(losses, [25.0, np.log(10), 0.25, 9.0], rtol=1e-5)
    left, _, clean, ink = digits.task_metrics(params, pictures)
    np.testing.assert_allclose([left, clean, ink], [25.0, 0.5, 3.0], rtol=1e-5)


def test_seeds_have_parameters_of_their_own():
    kernels = [leaf for leaf in jax.tree.leaves(digits.init_params(2)) if leaf.ndim == 3]
    assert sorted(kernel.shape for kernel in kernels) == [(2, 64, 85), (2, 96, 64), (2, 140, 96)]
    assert all(np.abs(kernel[0] - kernel[1]).max() > 0.1 for kernel in kernels)


# --- Methods --------------------------------------------------------------------------------------


def one_step(name, params, pictures, variant=0.0):
    init, step = digits.training_step(digits.METHODS[name], 1e-2, jnp.asarray(variant))
    return jax.jit(lambda params: step(init(params), pictures))(params)


@pytest.mark.parametrize(
    ("name", "variant", "scalar"),
    [
        ("ls", 0.0, jnp.mean),
        ("si", 0.0, lambda losses: jnp.mean(jnp.log(losses))),
        ("stl", 2, lambda losses: losses[2]),
        ("frozen-no-c", 0.0, lambda losses: jnp.mean(jnp.log(losses))),
        ("frozen", 0.0, lambda losses: jax.lax.stop_gradient(4 / jnp.sum(1 / losses))
         * jnp.mean(jnp.log(losses))),
    ],
)  # fmt: skip
def test_a_step_is_adam_on_the_gradient_of_a_scalar(name, variant, scalar, params, pictures):
    (after, _), trace = one_step(name, params, pictures, variant)
    grads = jax.grad(lambda params: scalar(digits.task_losses(params, pictures)))(params)
    updates, _ = optax.adam(1e-2).update(grads, optax.adam(1e-2).init(params))
    expected = optax.apply_updates(params, updates)
    # Adam's first step is the gradient's sign: it is what a gradient near 0 does that may differ.
    for leaf, leaf_ in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        assert np.mean(np.abs(leaf - leaf_) > 1e-4) < 1e-3
    np.testing.assert_allclose(trace.losses, digits.task_losses(params, pictures), rtol=1e-5)


def test_two_pass_sees_the_change_of_its_own_step(params, pictures):
    (after, _), trace = one_step("famo", params, pictures)
    drop = trace.losses / digits.task_losses(after, pictures)
    # Adam's first step on the logits: up for the tasks that fell less than the mean, else down.
    z = trace.task_weights
    assert np.all((z > 0.25) == (np.log(drop) < np.mean(np.log(drop))))
    (_, _), trace = one_step("famo-one-pass", params, pictures)
    np.testing.assert_allclose(trace.task_weights, 0.25, rtol=1e-6)


# --- Choice and summaries -------------------------------------------------------------------------


def test_standard_error_by_hand():
    assert _report.standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
    assert np.isnan(_report.standard_error(np.array([1.0])))


def synthetic_run(validation, task_weights=None):
    """A run whose validation metrics [variants, rates, seeds, K] are given; test is 100 more."""
    validation = np.asarray(validation, float)
    losses = np.broadcast_to(validation[..., None, :], (*validation.shape[:-1], 5, digits.K))
    return digits.Run(digits.Trace(losses, task_weights), validation, validation + 100)


def test_single_task_learning_chooses_a_rate_for_each_task():
    validation = np.full((4, 3, 2, 4), 50.0)
    for task, rate in enumerate([2, 0, 1, 1]):
        validation[task, rate, :, task] = [1.0, 3.0]  # its own task
        validation[task, :, :, (task + 1) % 4] = 0.0  # a task that this network was not trained on
    validation[3, 2, 0, 3] = np.nan  # a seed that diverged excludes the setting
    validation[3, 2, 1, 3] = -100.0
    run = synthetic_run(validation)
    rates = [0.1, 0.2, 0.3]
    stl = digits.select(digits.METHODS["stl"], run, rates, [0.0], None)
    assert stl.learning_rate == (0.3, 0.1, 0.2, 0.2)
    np.testing.assert_array_equal(stl.test, np.repeat([[101.0], [103.0]], 4, axis=1))
    np.testing.assert_array_equal(stl.losses, np.tile([[[1.0] * 4, [3.0] * 4]], (5, 1, 1)))
    np.testing.assert_array_equal(digits.baseline_of(stl, rates), 4 * [2.0])


def test_the_least_delta_m_on_validation_chooses_rate_and_gamma():
    validation = np.full((2, 3, 2, 4), 8.0)
    validation[1, 0] = [[4.0, 8, 8, 8], [2.0, 8, 8, 8]]
    validation[0, 2] = [[4.0, 8, 8, 8], [4.0, 8, 8, 8]]
    validation[0, 1] = np.inf
    run = synthetic_run(validation, task_weights=np.full((2, 3, 2, 5, 4), 0.25))
    result = digits.select(
        digits.METHODS["famo"], run, [0.1, 0.2, 0.3], [0.0, 0.5], np.array([1.0, 9, 9, 9])
    )
    assert result.learning_rate == (0.1,)
    assert result.gamma == 0.5
    np.testing.assert_array_equal(result.test, 100 + validation[1, 0])
    assert result.losses.shape == result.task_weights.shape == (5, 2, 4)


# --- The command ----------------------------------------------------------------------------------


def run_main(folder, *arguments):
    """What is printed, and what the JSON holds."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", "80")
        digits.main(
            [*arguments, "--steps", str(STEPS), "--seeds", str(SEEDS), "--out", f"{folder}"]
        )
    return out.getvalue(), json.loads((folder / "digits.json").read_text(encoding="utf-8"))


# What runs by default, and one of each kind that does not.
NAMES = [
    name
    for name in digits.METHODS
    if name in {*digits.FULL["methods"], "frozen-no-c", "dwa", "amortized-mgda", "nash-mtl"}
]
GRID = ("--batch-size", "16", "--learning-rate", *RATES, "--gamma", *GAMMAS)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "new" / "folder"
    return folder, *run_main(folder, *GRID, "--methods", *NAMES)


def test_it_prints_a_row_for_every_method_within_80_columns(whole_run):
    _, printed, _ = whole_run
    assert "…" not in printed
    lines = printed.splitlines()
    for name in NAMES:
        cells = next(line.split() for line in reversed(lines) if line.split()[:1] == [name])
        assert len(cells) in (11, 12)  # "±" stands by itself; gamma is empty for some
    assert "famo - frozen, its control: Δm" in printed


def test_it_writes_every_figure(whole_run):
    folder, _, written = whole_run
    assert list(written["methods"]) == NAMES
    assert written["settings"] == {
        "steps": STEPS,
        "seeds": SEEDS,
        "batch_size": 16,
        "methods": NAMES,
        "learning_rate": [0.001, 0.003],
        "gamma": [0.0, 0.01],
        "out": str(folder),
        "quick": False,
    }
    assert set(written["environment"]) >= {"jax", "optax", "flax", "famo_jax", "device"}
    assert written["sources"] == {"train": 1200, "validation": 297, "test": 300}
    for name, figures in written["methods"].items():
        variants = {"none": 1, "gamma": 2, "task": 4}[digits.METHODS[name].variants]
        assert np.shape(figures["validation_by_seed"]) == (variants, 2, SEEDS, 4)
        assert np.shape(figures["test_by_seed"]) == (SEEDS, 4)
        assert np.shape(figures["losses"]) == (STEPS, 4)
        assert list(figures["test"]) == [task.name for task in digits.TASKS]
        assert figures["delta_m"] == pytest.approx(np.mean(figures["delta_m_by_seed"]), abs=1e-3)
        assert 1 <= figures["mean_rank"] <= len(NAMES)
        assert set(figures["learning_rate"]) <= {0.001, 0.003}
        assert (figures["gamma"] in (0.0, 0.01)) == (variants == 2)
        times = figures["step_seconds_of_one_network"]
        assert 0 < times["q1"] <= times["median"] <= times["q3"]
        assert figures["step_relative_to_ls"] > 0
    picture = (folder / "digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 1700  # twice the width at which it is shown


def test_summaries_recompute_from_the_figures_by_seed(whole_run):
    _, _, written = whole_run
    tests = {name: np.array(f["test_by_seed"]) for name, f in written["methods"].items()}
    baseline = tests["stl"].mean(axis=0)
    for name, figures in written["methods"].items():
        by_seed = 100 * np.mean(tests[name] / baseline - 1, axis=1)
        np.testing.assert_allclose(figures["delta_m_by_seed"], by_seed, atol=1e-2)
        error = abs(by_seed[0] - by_seed[1]) / 2  # of two
        assert figures["delta_m_se"] == pytest.approx(error, abs=1e-2)
        control = figures["against_control"]
        if control:
            other = np.array(written["methods"][control["method"]]["delta_m_by_seed"])
            assert control["delta_m"] == pytest.approx(np.mean(by_seed - other), abs=1e-2)


def test_every_method_starts_from_the_same_parameters_and_pictures(whole_run):
    _, _, written = whole_run
    first = [figures["losses"][0] for figures in written["methods"].values()]
    np.testing.assert_allclose(first, len(first) * [first[0]], rtol=1e-5)


def test_frozen_weights_stay_equal_and_the_others_move(whole_run):
    _, _, written = whole_run
    for name, figures in written["methods"].items():
        z = figures["task_weights"]
        if name in ("frozen", "frozen-no-c"):
            np.testing.assert_array_equal(z, np.full((STEPS, 4), 0.25))
        elif digits.METHODS[name].variants == "gamma":
            np.testing.assert_allclose(np.sum(z, axis=1), 1, rtol=1e-5)
            assert np.ptp(z[-1]) > 1e-3
        else:
            assert z is None


def test_frozen_without_c_is_si(whole_run):
    _, _, written = whole_run
    si, frozen = (written["methods"][name] for name in ("si", "frozen-no-c"))
    np.testing.assert_allclose(frozen["losses"], si["losses"], rtol=1e-3)
    assert frozen["learning_rate"] == si["learning_rate"]


def test_a_run_repeats_whatever_runs_beside_it(whole_run, tmp_path):
    _, _, written = whole_run
    _, again = run_main(tmp_path, *GRID, "--methods", "famo-one-pass")
    assert list(again["methods"]) == ["stl", "famo-one-pass"]  # the baseline is always run
    for name, figures in again["methods"].items():
        for key in ("losses", "test_by_seed", "validation_by_seed", "task_weights"):
            assert figures[key] == written["methods"][name][key]


def test_a_run_that_diverges_is_reported_as_such(tmp_path):
    printed, written = run_main(tmp_path, "--quick", "--learning-rate", "1e30", "--methods", "ls")
    assert "nan" in printed
    assert written["methods"]["ls"]["delta_m"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--steps 0", "--steps: expected a positive integer, got '0'"),
        ("--steps -3", "--steps: expected a positive integer, got '-3'"),
        ("--steps 1.5", "--steps: expected a positive integer, got '1.5'"),
        ("--seeds 0", "--seeds: expected a positive integer, got '0'"),
        ("--seeds five", "--seeds: expected a positive integer, got 'five'"),
        ("--batch-size 0", "--batch-size: expected a positive integer, got '0'"),
        ("--steps 1000000000", "--steps: expected steps x seeds x batch size of at most"),
        ("--methods famo adam", "--methods: expected any of stl, ls, si, frozen"),
        ("--methods famo adam", "got 'adam'"),
        ("--methods ls si ls", "--methods: expected each value once, got ls twice"),
        ("--methods", "--methods: expected at least one argument"),
        ("--learning-rate 0", "--learning-rate: expected a finite number above 0, got '0'"),
        ("--learning-rate 0.1 -1", "--learning-rate: expected a finite number above 0, got '-1'"),
        ("--learning-rate nan", "--learning-rate: expected a finite number above 0, got 'nan'"),
        ("--learning-rate fast", "--learning-rate: expected a finite number above 0, got 'fast'"),
        ("--learning-rate .1 1e-1", "--learning-rate: expected each value once, got 0.1 twice"),
        ("--gamma -1", "--gamma: expected a finite number of at least 0, got '-1'"),
        ("--gamma inf", "--gamma: expected a finite number of at least 0, got 'inf'"),
        ("--gamma 0 1 0", "--gamma: expected each value once, got 0.0 twice"),
        ("--out {file}", "--out: expected a folder to write to, got"),
        ("--out {file}/below", "--out: expected a folder to write to, got"),
        ("--step 3", "unrecognized arguments: --step 3"),
        ("everything", "unrecognized arguments: everything"),
    ],
)
def test_a_bad_option_is_a_usage_error(arguments, words, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as exit_info:
        digits.main(["--out", f"{tmp_path}", *arguments.format(file=file).split()])
    assert exit_info.value.code == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("usage: python -m famo_jax.experiments.digits")
    assert not printed.out


def test_help_lists_every_method(capsys):
    with pytest.raises(SystemExit) as exit_info:
        digits.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    for name, method in digits.METHODS.items():
        assert f"  {name} " in printed
        assert method.description in printed
