"""The digits experiment: its pictures, its methods, its choice of settings, its command line."""

import contextlib
import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from famo_jax.experiments import _study, digits

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
    for name in _study.METHODS
    if name in {*digits.FULL["methods"], "frozen-no-c", "dwa", "amortized-mgda", "nash-mtl"}
]
GRID = ("--batch-size", "16", "--learning-rate", *RATES, "--gamma", *GAMMAS)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "new" / "folder"
    return folder, *run_main(folder, *GRID, "--methods", *NAMES)


def test_it_prints_a_row_for_every_method_within_80_columns(whole_run):
    _, printed, written = whole_run
    assert "…" not in printed
    lines = printed.partition("Means over")[0].splitlines()
    for name in NAMES:
        cells = next(line.split() for line in reversed(lines) if line.split()[:1] == [name])
        assert len(cells) in (11, 12)  # "±" stands by itself; gamma is empty for some
    differences = printed.partition("Differences of Δm, paired by seed")[2].splitlines()
    (row,) = (line.split() for line in differences if line.split()[:1] == ["famo"])
    against = written["methods"]["famo"]["against_si"]["delta_m"]
    assert row[1].startswith(f"{against:+.{1 if abs(against) < 100 else 0}f}±")


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
        variants = {"none": 1, "gamma": 2, "task": 4}[_study.METHODS[name].variants]
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
        for other in ("control", "ls", "si", "frozen", "two_pass", "one_pass"):
            against = figures[f"against_{other}"]
            if against:
                other = np.array(written["methods"][against["method"]]["delta_m_by_seed"])
                paired = np.mean(by_seed - other)
                assert against["delta_m"] == pytest.approx(paired, abs=1e-2)
                low, high = against["interval"]
                assert (low + high) / 2 == pytest.approx(paired, abs=1e-2)
                # Student's t of one degree of freedom, from a table
                assert (high - low) / 2 == pytest.approx(12.706 * against["se"], abs=1e-2)


def test_every_gamma_meets_the_test_at_the_rate_that_validation_chose(whole_run):
    _, _, written = whole_run
    for name, figures in written["methods"].items():
        if _study.METHODS[name].variants != "gamma":
            assert figures["by_gamma"] is None
            continue
        scores = np.array(figures["validation_delta_m"])
        for each, gamma, own in zip(figures["by_gamma"], [0, 0.01], scores, strict=True):
            assert each["gamma"] == gamma
            assert each["learning_rate"] == [0.001, 0.003][np.argmin(own)]
            assert each["validation_delta_m"] == pytest.approx(own.min())
            assert each["logit_range"]["most"] >= each["logit_range"]["end"] > 0
        chosen = next(each for each in figures["by_gamma"] if each["gamma"] == figures["gamma"])
        assert chosen["delta_m"] == pytest.approx(figures["delta_m"])
        assert chosen["logit_range"] == figures["logit_range"]


def test_only_logits_have_a_range(whole_run):
    _, _, written = whole_run
    for name, figures in written["methods"].items():
        if name in ("frozen", "frozen-no-c"):
            assert figures["logit_range"] == {"end": 0, "most": 0}
        elif figures["task_weights"] is None:
            assert figures["logit_range"] is None
        else:
            assert figures["logit_range"]["most"] >= figures["logit_range"]["end"] > 0


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
        elif _study.METHODS[name].variants == "gamma":
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


def test_help_lists_every_method(capsys):
    with pytest.raises(SystemExit) as exit_info:
        digits.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    for name, method in _study.METHODS.items():
        assert f"  {name} " in printed
        assert method.description in printed
