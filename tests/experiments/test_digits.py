"""The digits experiment: its pictures, its methods, its choice of settings, its command line."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from famo_jax.experiments import _comparison, _files, _methods, _tables
from famo_jax.experiments import digits as study
from famo_jax.experiments.problems import digits

STEPS, SEEDS = 6, 2
RATES, GAMMAS = [0.001, 0.003], [0.0, 0.01]


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
    data = digits.load_data(steps=20, seeds=range(2), batch_size=32)
    for pictures, split in zip(data[:3], splits, strict=True):
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
    two = digits.load_data(steps=3, seeds=range(2), batch_size=8)
    one = digits.load_data(steps=3, seeds=range(1), batch_size=8)
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
    return jax.tree.map(lambda leaf: leaf[0], digits.PROBLEM.init([0])[0])


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
    monkeypatch.setattr(digits, "apply", lambda *_: outputs)
    losses = digits.task_losses(params, pictures)
    np.testing.assert_allclose(losses, [25.0, np.log(10), 0.25, 9.0], rtol=1e-5)
    left, _, clean, ink = digits.task_metrics(params, pictures)
    np.testing.assert_allclose([left, clean, ink], [25.0, 0.5, 3.0], rtol=1e-5)


def test_seeds_have_parameters_of_their_own():
    kernels = [leaf for leaf in jax.tree.leaves(digits.PROBLEM.init([0, 1])[0]) if leaf.ndim == 3]
    assert sorted(kernel.shape for kernel in kernels) == [(2, 64, 85), (2, 96, 64), (2, 140, 96)]
    assert all(np.abs(kernel[0] - kernel[1]).max() > 0.1 for kernel in kernels)


# --- The command ----------------------------------------------------------------------------------

# What runs by default, and one of each kind that does not.
NAMES = [
    name
    for name in _methods.METHODS
    if name in {"stl", "ls", "si", "frozen", *_comparison.FORMS.split()}
    or name in {"frozen-no-c", "dwa", "amortized-mgda", "nash-mtl"}
]
GRID = ["--steps", f"{STEPS}", "--seeds", f"{SEEDS}", "--batch-size", "16"]
GRID += ["--learning-rate", *map(str, RATES), "--gamma", *map(str, GAMMAS)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("digits") / "new" / "folder"
    return folder, *run_study("digits", folder, *GRID, "--methods", *NAMES)


def test_it_prints_a_row_for_every_method_within_80_columns(whole_run):
    _, printed, summary = whole_run
    assert "…" not in printed
    lines = printed.partition("Means over")[0].splitlines()
    assert max(map(len, lines)) <= 80
    for name in NAMES:
        cells = next(line.split() for line in reversed(lines) if line.split()[:1] == [name])
        assert len(cells) in (11, 12)  # "±" stands by itself; gamma is empty for some
    differences = printed.partition("Differences of Δm, paired by seed")[2].splitlines()
    methods = summary["methods"]
    rows = {line.split()[0]: line.split()[1:] for line in differences if line.startswith("famo")}
    # The columns are what their headers say: - si, - frozen, - two-pass, - one-pass.
    for name, others in {
        "famo": ["si", "frozen", "famo-one-pass"],
        "famo-ema-no-c": ["si", "frozen", "famo-no-c", "famo-one-pass-no-c"],
    }.items():
        for cell, other in zip(rows[name], others, strict=True):
            mean = methods[name]["against"][other]["mean"]
            assert float(cell.partition("±")[0]) == pytest.approx(mean, abs=0.51)


def test_the_time_of_a_step_is_over_that_of_ls(whole_run):
    folder, _, summary = whole_run
    times = json.loads((folder / "study.json").read_text())["times"]
    for name, figures in summary["methods"].items():
        own = times[name]["median"] / times["ls"]["median"]
        networks = 4 if name == "stl" else 1
        assert figures["step_relative_to_ls"] == pytest.approx(networks * own, rel=1e-4)


def test_summaries_recompute_from_the_arrays(whole_run):
    folder, _, summary = whole_run
    assert list(summary["methods"]) == NAMES
    tests = {name: np.array(each["test_by_seed"]) for name, each in summary["methods"].items()}
    baseline = tests["stl"].mean(axis=0)
    with np.load(folder / "runs.npz") as arrays:
        for name, figures in summary["methods"].items():
            variants = {"stl": 4}.get(name, 2 if "gamma" in _methods.METHODS[name].takes else 1)
            assert arrays[f"{name}/validation"].shape == (2 * variants, SEEDS, 4)
            by_seed = 100 * np.mean(tests[name] / baseline - 1, axis=1)
            np.testing.assert_allclose(figures["delta_m_by_seed"], by_seed, atol=1e-2)
            assert figures["delta_m"]["mean"] == pytest.approx(by_seed.mean(), abs=1e-2)
            if variants == 2:
                own = arrays["stl/validation"].reshape(4, 2, SEEDS, 4).mean(axis=2)
                on_validation = np.min([own[k, :, k] for k in range(4)], axis=1)
                scores = (arrays[f"{name}/validation"].mean(axis=1) / on_validation).mean(axis=1)
                chosen = GAMMAS.index(figures["gamma"]), RATES.index(figures["learning_rate"][0])
                assert scores[2 * chosen[0] + chosen[1]] == scores.min()
                own = arrays[f"{name}/test"][2 * chosen[0] + chosen[1]]
                np.testing.assert_allclose(tests[name], own, rtol=1e-4)
            for other, against in figures["against"].items():
                paired = by_seed - summary["methods"][other]["delta_m_by_seed"]
                assert against["mean"] == pytest.approx(paired.mean(), abs=1e-2)
    picture = (folder / "digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 1700  # twice the width at which it is shown


def test_methods_start_alike_and_only_learned_weights_move(whole_run):
    _, _, summary = whole_run
    methods = summary["methods"]
    first = [figures["losses"][0] for figures in methods.values()]
    np.testing.assert_allclose(first, len(first) * [first[0]], rtol=1e-5)
    for name, figures in methods.items():
        z = figures.get("task_weights")
        if name.startswith("frozen"):
            np.testing.assert_array_equal(z, np.full((STEPS, 4), 0.25))
            assert figures["logit_range"] == {"end": 0, "most": 0, "mean": 0}
        elif _methods.METHODS[name].has_logits:
            np.testing.assert_allclose(np.sum(z, axis=1), 1, rtol=1e-5)
            assert figures["logit_range"]["most"] >= figures["logit_range"]["end"] > 0
        else:
            assert z is None
    # Without c frozen logits are the mean of the log losses.
    si, frozen = methods["si"], methods["frozen-no-c"]
    np.testing.assert_allclose(frozen["losses"], si["losses"], rtol=1e-3)


def test_earlier_runs_are_shown_again_and_change_no_figure(whole_run, tmp_path, run_study):
    folder, printed, _ = whole_run
    _, _ = run_study("digits", tmp_path, "--from", str(folder))
    for name in ("digits.json", "digits.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "runs.npz").exists()
    again, _ = run_study("digits", tmp_path, "--from", str(folder))
    assert again in printed


def test_parts_join_to_the_whole(whole_run, tmp_path, run_study):
    _, _, summary = whole_run
    one = [*GRID[:2], *GRID[4:], "--seeds", "1"]
    for index, methods in enumerate([["famo-one-pass"], ["famo-one-pass", "ls"]]):
        more = ["--first-seed", str(index), "--methods", *methods]
        run_study("digits", tmp_path / str(index), *one, *more)
    run_study("digits", tmp_path / "2", *one, "--methods", "ls")
    parts = [str(tmp_path / str(index)) for index in range(3)]
    _, joined = run_study("digits", tmp_path / "joined", "--from", *parts)
    assert list(joined["methods"]) == ["stl", "ls", "famo-one-pass"]
    for name, figures in joined["methods"].items():
        whole = summary["methods"][name]
        np.testing.assert_allclose(figures["test_by_seed"], whole["test_by_seed"], rtol=1e-4)
        assert figures["delta_m"]["mean"] == pytest.approx(whole["delta_m"]["mean"], rel=1e-4)


def test_other_settings_are_shown_side_by_side(whole_run, tmp_path, run_study):
    folder, _, _ = whole_run
    few = [*GRID, "--methods", "ls"]
    run_study("digits", tmp_path / "other", *few, "--steps", "5")
    out = tmp_path / "both"
    printed, _ = run_study("digits", out, "--from", str(folder), str(tmp_path / "other"))
    assert printed.count("Means over 2 seeds") == 2
    assert printed.index(folder.name) < printed.index("Means over") < printed.index("/other")
    assert (out / "2" / "digits.json").exists()


def test_what_is_kept_has_no_curves_and_makes_the_same_tables(whole_run):
    folder, printed, _ = whole_run
    kept = _files.read_summary(folder / "digits.json")["summary"]
    assert "losses" not in kept["methods"]["ls"]
    assert (folder / "digits.json").stat().st_size < 40_000
    table = _tables.text(study.STUDY.tables(kept))
    assert table.splitlines() == [line.rstrip() for line in _after_progress(printed)]


def _after_progress(printed):
    lines = printed.splitlines()
    first = next(index for index, line in enumerate(lines) if line.split()[:2] == ["left", "right"])
    last = max(index for index, line in enumerate(lines) if line.startswith("famo-ema-no-c"))
    return lines[first : last + 1]


def test_the_problem_shows_a_quiet_loss_the_loudest_and_the_errors(whole_run):
    _, _, summary = whole_run
    quiet, loud, errors = study.draw_problem(summary).get_axes()
    for axes, task in ((quiet, 1), (loud, 3)):
        assert [line.get_label() for line in axes.get_lines()] == ["ls", "si", "famo-ema-no-c"]
        for line in axes.get_lines():
            expected = np.array(summary["methods"][line.get_label()]["losses"])[:, task]
            np.testing.assert_allclose(line.get_ydata(), expected)
    for bars in errors.containers:
        change = list(summary["methods"][bars.get_label()]["change"].values())
        np.testing.assert_allclose(bars.lines[0].get_ydata(), change, rtol=1e-3, atol=1e-3)


def test_a_picture_shows_what_its_titles_say(whole_run):
    _, _, summary = whole_run
    figure = study.draw(summary)
    panels = figure.get_axes()
    for task, axes in enumerate(panels[:4]):
        assert {line.get_label() for line in axes.get_lines()} == set(study.SHOWN)
        assert axes.get_title(loc="left") == digits.TASKS[task].loss
        for line in axes.get_lines():
            expected = np.array(summary["methods"][line.get_label()]["losses"])[:, task]
            np.testing.assert_allclose(line.get_ydata(), expected)
            assert line.get_color() == _methods.METHODS[line.get_label()].colour
    weights = np.array(summary["methods"]["famo-ema-no-c"]["task_weights"])
    for line, curve in zip(panels[4].get_lines(), weights.T, strict=True):
        np.testing.assert_allclose(line.get_ydata(), curve)
    shown = [name for name in summary["methods"] if name != "stl"]
    dots = [line for line in panels[5].get_lines() if line.get_marker() == "o"]
    assert [label.get_text() for label in panels[5].get_yticklabels()] == shown
    for name, dot in zip(shown, dots, strict=True):
        by_seed = summary["methods"][name]["delta_m_by_seed"]
        np.testing.assert_allclose(dot.get_xdata(), [np.mean(by_seed)], rtol=1e-4, atol=1e-3)


def test_a_run_that_diverges_is_reported_as_such(tmp_path, run_study):
    printed, summary = run_study(
        "digits", tmp_path, "--quick", "--steps", "20", "--learning-rate", "1e30", "--methods", "ls"
    )
    assert "nan" in printed
    assert np.isnan(summary["methods"]["ls"]["delta_m"]["mean"])


def test_help_lists_every_method(capsys):
    with pytest.raises(SystemExit) as exit_info:
        study.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    for name, method in _methods.METHODS.items():
        assert f"  {name} " in printed
        assert method.description in printed
