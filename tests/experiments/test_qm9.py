"""The QM-9 benchmark as a command, on 50 real molecules."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from famo_jax.experiments import _benchmark, _benchmark_report, _files, _methods
from famo_jax.experiments import qm9 as study
from famo_jax.experiments.problems import qm9

DATA = Path(__file__).parents[1] / "data" / "qm9"
TABLES = tomllib.loads((DATA.parent / "paper_tables.toml").read_text())["qm9"]
NAMES = ["ls", "famo", "imtl-g"]
SMALL = {
    "data": DATA,
    "molecules": 20,
    "validation": 10,
    "test": 20,
    "batch-size": 8,
    "epochs": 3,
    "width": 4,
    "edge-units": 3,
}
SMALL = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
RATES = ["--learning-rate", "0.003", "0.03"]


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile(tmp_path_factory):
    """What is compiled grows by the group and the round. And a cache for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9, "GROUPS", 1)
        patch.setattr(qm9, "ROUNDS", 1)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("qm9")
    return folder, *run_study(
        "qm9", folder, "--quick", *SMALL, *RATES, "--seeds", "2", "--methods", *NAMES
    )


# --- What is run ----------------------------------------------------------------------------------


def test_presets_are_the_official_settings_and_those_by_which_all_gain():
    paper, converged = study.PRESETS["paper"], study.PRESETS["converged"]
    assert qm9.count_parameters(paper["width"], paper["edge_units"]) == 617_675
    assert (paper["batch_size"], paper["epochs"], paper["patience"]) == (120, 300, 5)
    assert (paper["learning_rate"], paper["validation"], study.TEST) == ([1e-3], 10_000, 10_000)
    assert paper["molecules"] == 0  # all that are left: 110,831
    assert (converged["batch_size"], converged["patience"]) == (60, 10)
    assert {**converged, "batch_size": 120, "patience": 5} == paper
    small = study.PRESETS["small"]
    steps = -(-small["molecules"] // small["batch_size"]) * small["epochs"]
    assert steps >= 2400
    assert small.keys() == paper.keys()


def test_every_method_has_as_many_settings():
    options = type(
        "Options", (), {"learning_rate": [0.1, 0.2], "gamma": [1e-3], "logits_rate": [5e-3]}
    )
    counts = {
        len(_benchmark.settings_of(study.METHODS[name], options))
        for name in study.METHODS_SHOWN.split()
    }
    assert counts == {2}


def test_uncertainty_weighting_follows_the_models_rate():
    for scale, expected in ((1.0, 0.025), (0.1, 0.0025)):
        method = study.METHODS["uw"]
        tx = method.make(2, scale=scale)
        losses = np.array([2.0, 0.5], np.float32)
        _, state = tx.update((), tx.init(None), losses=losses)
        assert np.abs(state.log_variances).max() == pytest.approx(expected, rel=1e-3)


def test_the_papers_rows_are_those_of_its_table():
    rows = {line.split()[0]: line.split()[1:] for line in TABLES["rows"].strip().splitlines()}
    keys = {name.lower(): row for name, row in rows.items()}
    for name, own in study.PAPER.items():
        for value, printed in zip(own, keys[name], strict=False):
            # Here with a digit more: the printed one is that, rounded or cut off.
            unit = 10 ** -len(printed.partition(".")[2])
            assert abs(value - float(printed)) <= 1.001 * unit, (name, value, printed)
    for value, printed in zip(qm9.STL, keys["stl"], strict=True):
        assert value == pytest.approx(float(printed), rel=0.05)
    assert len(study.PAPER) == len(rows) - 1


def test_delta_m_against_the_official_stl_is_the_papers():
    """But for what rounding of the row makes."""
    for name, printed in {"ls": 177.6, "si": 77.8, "nash-mtl": 62.0, "famo": 58.5}.items():
        found = 100 * np.mean(np.array(study.PAPER[name]) / qm9.STL - 1)
        assert found == pytest.approx(printed, abs=0.5), name


# --- What is reported -----------------------------------------------------------------------------


def test_it_prints_all_within_80_columns(whole_run):
    _, printed, summary = whole_run
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "bonds: those of gdb9.sdf" in printed.replace("\n", " ")
    errors = printed.partition("Mean absolute error")[2].partition("Δm, and")[0].splitlines()
    for name in NAMES:
        index = next(i for i, line in enumerate(errors) if line.split()[:1] == [name])
        ours = [float(cell) for cell in errors[index].split()[1:]]
        expected = summary["methods"][name]["test"]
        np.testing.assert_allclose(ours, list(expected.values()), rtol=5e-3)
        paper = [float(cell) for cell in errors[index + 1].split()[1:]]
        np.testing.assert_allclose(paper, study.PAPER[name], rtol=5e-3)
        more = [float(cell) for cell in errors[index + 2].split()[2:]]
        np.testing.assert_allclose(
            more, 100 * (np.array(list(expected.values())) / study.PAPER[name] - 1), atol=0.51
        )
    assert list(expected) == [task.name for task in qm9.TASKS]


def test_summaries_recompute_from_the_arrays(whole_run):
    folder, _, summary = whole_run
    tests = {name: np.array(each["test_by_seed"]) for name, each in summary["methods"].items()}
    base = tests["ls"].mean(axis=0)
    with np.load(folder / "runs.npz") as arrays:
        for name, each in summary["methods"].items():
            assert arrays[f"{name}/validation_curve"].shape == (2, 2, 3, 11)
            scores = 100 * np.mean(arrays[f"{name}/validation"] / qm9.STL - 1, axis=-1)
            np.testing.assert_allclose(scores, arrays[f"{name}/score"], rtol=1e-4)
            chosen = int(np.argmin(scores.mean(axis=1)))
            np.testing.assert_allclose(each["validation_delta_m"], scores.mean(axis=1), rtol=1e-4)
            assert each["setting"]["learning_rate"] == [0.003, 0.03][chosen]
            np.testing.assert_allclose(tests[name], arrays[f"{name}/test"][chosen], rtol=1e-4)
            own = 100 * np.mean(tests[name] / qm9.STL - 1, axis=1)
            assert each["delta_m"]["mean"] == pytest.approx(own.mean(), rel=1e-4)
            if name != "ls":
                changes = 100 * (tests[name] - tests["ls"]) / base  # paired by seed
                against = each["against"]["ls"]
                assert against["mean"] == pytest.approx(changes.mean(), abs=1e-2)
                half = 12.706 * np.std(changes.mean(axis=1), ddof=1) / 2**0.5  # t, 1 degree
                assert against["high"] - against["mean"] == pytest.approx(half, rel=1e-3, abs=1e-3)
                means = [task["mean"] for task in each["change_over_ls"]]
                np.testing.assert_allclose(means, changes.mean(axis=0), atol=1e-2)


def test_the_picture_shows_changes_means_curves_and_weights(whole_run):
    folder, _, summary = whole_run
    figure = study.STUDY.pictures["qm9.png"](summary)
    titles = [axes.get_title(loc="left") for axes in figure.get_axes()]
    assert titles[:3] == ["each error against ls", "their mean, lower is better",
                          "Δm on validation, against the official STL (%)"]  # fmt: skip
    assert titles[3] == "task weights of famo"
    curves = {line.get_label(): line.get_ydata() for line in figure.get_axes()[2].get_lines()}
    for name in NAMES:
        np.testing.assert_allclose(curves[name], summary["methods"][name]["validation_curve"])
    assert (folder / "qm9.png").read_bytes().startswith(b"\x89PNG")


def test_short_numbers():
    values = [0.1055, 0.5, 5.19, 14.06, 73.57, 144.6, 12345.6, np.nan]
    assert [_benchmark_report.short(value) for value in values] == [
        *(".105", ".500", "5.19", "14.1", "73.6", "145", "12346", "nan")
    ]


# --- Parts ----------------------------------------------------------------------------------------


def test_parts_join_to_the_whole(whole_run, tmp_path, run_study):
    """Of other seeds, or methods."""
    _, _, summary = whole_run
    parts = [("ls", "0", "1"), ("ls", "1", "1"), ("famo", "0", "2")]
    for index, (name, first, seeds) in enumerate(parts):
        own = ["--methods", name, "--first-seed", first, "--seeds", seeds]
        run_study("qm9", tmp_path / f"{index}", "--quick", *SMALL, *RATES, *own)
    folders = [str(tmp_path / f"{index}") for index in range(3)]
    printed, joined = run_study("qm9", tmp_path / "joined", "--from", *folders)
    assert "2 seeds" in printed
    for name in ("ls", "famo"):
        one, other = joined["methods"][name], summary["methods"][name]
        np.testing.assert_allclose(one["test_by_seed"], other["test_by_seed"], rtol=1e-2)
        assert one["seeds"] == [0, 1]


def test_killed_and_resumed_it_ends_with_the_same_figures(whole_run, tmp_path, run_study):
    folder, _, _ = whole_run
    command = [*SMALL, *RATES, "--quick", "--seeds", "2", "--methods", *NAMES]
    command += ["--checkpoint-dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out")]
    source = (
        "from famo_jax.experiments.problems import qm9; qm9.GROUPS = qm9.ROUNDS = 1; "
        "from famo_jax.experiments import qm9; qm9.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source, *command],
        env={**os.environ, "PYTHONPATH": str(Path(study.__file__).parents[2])},
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 500
        while not list(tmp_path.glob("checkpoints/*.npz")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out" / "runs.npz").exists()
    run_study("qm9", tmp_path / "out", *command[: command.index("--out")], "--resume")
    with np.load(folder / "runs.npz") as whole, np.load(tmp_path / "out" / "runs.npz") as resumed:
        assert set(whole) == set(resumed)
        for name in whole:
            np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "/nowhere"], "argument --data: expected a folder with gdb9.sdf"),
        (["--split", "/nowhere.npy"], "argument --split: expected a permutation in a file"),
        (["--preset", "large"], "argument --preset: expected any of small, paper, converged"),
        (["--scale-by", "none"], "argument --scale-by: expected any of all, train"),
        (["--methods", "stl"], "argument --methods: expected any of ls,"),
        (["--epochs", "0"], "argument --epochs: expected a positive integer"),
    ],
)
def test_a_bad_option(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        study.main([*SMALL, *arguments, "--out", str(tmp_path)])
    assert exit_info.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (np.arange(49), "expected 50 molecules, got 49"),
        (np.zeros(50), "argument --split: expected a permutation"),
        (np.arange(50).reshape(5, 10), "argument --split: expected a permutation"),
    ],
)
def test_a_bad_split(numbers, words, tmp_path, capsys):
    np.save(tmp_path / "split.npy", numbers)
    with pytest.raises(SystemExit) as exit_info:
        study.main([*SMALL, "--split", str(tmp_path / "split.npy"), "--out", str(tmp_path)])
    assert words in f"{exit_info.value.code}{capsys.readouterr().err}"


def test_too_few_molecules_and_damaged_files_end_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: expected at least 71 molecules, got 50$"):
        study.main([*SMALL, "--test", "60", "--molecules", "1", "--out", str(tmp_path)])
    for name in ("gdb9.sdf", "uncharacterized.txt"):
        (tmp_path / name).write_bytes((DATA / "raw" / name).read_bytes())
    (tmp_path / "gdb9.sdf.csv").write_text("mol_id,mu\n")
    with pytest.raises(SystemExit, match=r"^error: .*gdb9\.sdf\.csv: expected the header"):
        study.main([*SMALL, "--data", str(tmp_path), "--out", str(tmp_path)])


def test_a_split_from_a_file_is_used(tmp_path):
    np.savetxt(tmp_path / "split.txt", np.arange(50)[::-1], fmt="%d")
    split = study.read_split(tmp_path / "split.txt")
    assert split.dtype == np.int64
    np.testing.assert_array_equal(qm9.Plan(20, 10, 20, "all", split).rows(7, 50)[2], split[:20])


def test_earlier_runs_need_no_data(whole_run, tmp_path, run_study, monkeypatch):
    folder, _, _ = whole_run
    facts = json.loads((folder / _files.STUDY).read_text())
    assert facts["problem"]["source"] == "the official raw files"
    monkeypatch.setattr(qm9, "problem", None)
    run_study("qm9", tmp_path, "--from", str(folder))
    for name in ("qm9.json", "qm9.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_help_lists_every_method(capsys):
    with pytest.raises(SystemExit):
        study.main(["--help"])
    printed = capsys.readouterr().out
    for name in study.METHODS:
        assert f"  {name} " in printed
    assert "None" not in printed
    assert set(study.METHODS_SHOWN.split()) <= study.METHODS.keys()
    assert _methods.METHODS["uw"].takes == ()  # the others' is as it was
