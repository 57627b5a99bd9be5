"""Comparisons of methods, on the digits: who chooses, who reports, equal budgets, files."""

import json

import jax
import numpy as np
import pytest
import scipy.stats

from famo_jax.experiments import _comparison, _files, _methods, _statistics, _tables, _train
from famo_jax.experiments import digits as study
from famo_jax.experiments.problems import attributes, conflicts, digits, molecules
from tests.experiments import steps

STEPS, SEEDS, TUNING = 6, 3, 2
RATES, GAMMAS = [0.001, 0.003], [0.0, 0.01]
NAMES = ["stl", "ls", "si", "frozen", "famo", "famo-ema-no-c", "first-loss", "nash-mtl"]
GRID = f"--steps {STEPS} --seeds {SEEDS} --tuning-seeds {TUNING} --batch-size 16".split()
GRID += ["--learning-rate", *map(str, RATES), "--gamma", *map(str, GAMMAS)]
COLUMNS = ["natural", "standardised"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("digits") / "new" / "folder"
    return folder, *run_study("digits", folder, *GRID, "--methods", *NAMES)


@pytest.fixture(scope="module")
def arrays(whole_run):
    with np.load(whole_run[0] / "runs.npz") as flat:
        return dict(flat)


def test_it_prints_a_row_for_every_main_method_within_80_columns(whole_run):
    _, printed, summary = whole_run
    assert "…" not in printed
    lines = printed[printed.index("natural  ") :].partition("Mean over")[0].splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines if line.strip()}
    rows = {name: line for name, line in rows.items() if name in _comparison.MAIN}
    assert list(rows) == [name for name in _comparison.MAIN if name in NAMES]
    for name, row in rows.items():
        cells = row.replace(" ± ", "±").split()[1:]
        for column, values in zip(COLUMNS, (cells, cells[len(cells) // 2 :]), strict=True):
            each = summary["columns"][column]["methods"][name]
            mean, error = map(float, values[0].split("±"))
            assert mean == pytest.approx(each["delta_m"]["mean"], abs=0.051)
            assert error == pytest.approx(each["delta_m"]["se"], abs=0.051)
            assert ("gain" in each) == (name not in _comparison.FIXED)
            if "gain" in each:
                shown = float(values[1].partition("±")[0])
                assert shown == pytest.approx(each["gain"]["mean"], abs=0.51)


def test_seeds_that_report_chose_nothing(whole_run):
    facts = json.loads((whole_run[0] / "study.json").read_text())
    for name, arm in facts["arms"].items():
        chooses = name.endswith(" choosing")
        first = _comparison.TUNING if chooses else 0
        assert arm["seeds"] == list(range(first, first + (TUNING if chooses else SEEDS)))
        single = 4 if " stl" in name else 1
        assert len(arm["settings"]) == single * (len(RATES) * len(GAMMAS) if chooses else 1)
    assert "natural stl" not in facts["arms"]


def test_every_method_has_as_many_settings():
    grid = {"learning_rate": [1e-3, 1e-2], "gamma": [0.0, 0.1], "logits_rate": [1e-3, 1e-1]}
    for name, method in _methods.METHODS.items():
        if name != "stl":
            own = _comparison.settings_of(method, _comparison.evenly(method, grid))
            assert len(own) == len({tuple(each.items()) for each in own}) == 4, name
            assert {each["learning_rate"] for each in own} >= {1e-3, 1e-2}
    single = grid | {"gamma": [0.0, 0.1], "learning_rate": [0.01]}
    assert _comparison.evenly(_methods.METHODS["ls"], single) == single


@pytest.mark.parametrize("column", COLUMNS)
def test_settings_are_those_of_least_delta_m_on_validation(column, whole_run, arrays):
    facts = json.loads((whole_run[0] / "study.json").read_text())
    single = arrays["standardised stl choosing/validation"].reshape(4, 4, TUNING, 4)
    by_rate = np.stack([single[k, :, :, k].mean(axis=1) for k in range(4)])
    chosen = [own["learning_rate"] for own in facts["arms"]["standardised stl"]["settings"]]
    rates = np.geomspace(*RATES, 4)
    np.testing.assert_allclose(chosen, rates[by_rate.argmin(axis=1)], rtol=1e-5)
    for name in NAMES[1:]:
        own = arrays[f"{column} {name} choosing/validation"]
        scores = (own / by_rate.min(axis=1)).mean(axis=(1, 2))
        settings = facts["arms"][f"{column} {name} choosing"]["settings"]
        (setting,) = facts["arms"][f"{column} {name}"]["settings"]
        assert scores[settings.index(setting)] == pytest.approx(scores.min(), rel=1e-6), name


@pytest.mark.parametrize("column", COLUMNS)
def test_summaries_recompute_from_the_arrays(column, whole_run, arrays):
    found = whole_run[2]["columns"][column]
    methods = found["methods"]
    assert list(methods) == [name for name in _methods.METHODS if name in NAMES]
    single = arrays["standardised stl/test"]
    baseline = single[np.arange(4), :, np.arange(4)].mean(axis=1)
    by_seed = {}
    for name in NAMES[1:]:
        test = arrays[f"{column} {name}/test"][0]
        by_seed[name] = 100 * np.mean(test / baseline - 1, axis=1)
        np.testing.assert_allclose(methods[name]["delta_m_by_seed"], by_seed[name], atol=1e-2)
        assert methods[name]["delta_m"]["mean"] == pytest.approx(by_seed[name].mean(), abs=1e-2)
        changes = 100 * (test.mean(axis=0) / baseline - 1)
        np.testing.assert_allclose(list(methods[name]["change"].values()), changes, atol=1e-2)
    assert found["units_of_stl"] == "standardised"
    assert methods["stl"]["delta_m"]["mean"] == pytest.approx(0, abs=1e-6)
    best = found["fixed"]
    assert best in _comparison.FIXED
    for name in ("famo", "nash-mtl"):
        expected = scipy.stats.ttest_rel(by_seed[name], by_seed[best])
        gain = methods[name]["gain"]
        assert gain["mean"] == pytest.approx(np.mean(by_seed[name] - by_seed[best]), abs=1e-2)
        assert gain["p"] == pytest.approx(expected.pvalue, rel=1e-2)


def test_the_best_fixed_weights_are_those_that_validation_chose(whole_run, arrays):
    single = arrays["standardised stl choosing/validation"].reshape(4, 4, TUNING, 4)
    least = np.stack([single[k, :, :, k].mean(axis=1) for k in range(4)]).min(axis=1)
    for column in COLUMNS:
        scores = {
            name: (arrays[f"{column} {name} choosing/validation"] / least).mean(axis=(1, 2)).min()
            for name in _comparison.FIXED
        }
        assert whole_run[2]["columns"][column]["fixed"] == min(scores, key=scores.get)


def test_a_star_is_for_what_is_certain_after_holms_correction():
    p_values = {"uw": 0.001, "famo": 0.02, "nash-slope": 0.03}
    gain = lambda p: {"mean": 1.0, "low": 0.5, "high": 1.5, "p": p}
    methods = {name: {"gain": gain(p)} for name, p in p_values.items()} | {"ls": {}}
    assert _comparison.stars(methods, list(methods)) == {"uw", "famo", "nash-slope"} - {
        name for name, p in zip(p_values, _statistics.holm([*p_values.values()]), strict=True)
        if p >= 0.05
    }  # fmt: skip
    assert _comparison.stars(methods, ["famo", "nash-slope"]) == {"famo", "nash-slope"}


def test_the_time_of_a_step_is_over_that_of_ls(whole_run):
    times = json.loads((whole_run[0] / "study.json").read_text())["times"]
    for name, figures in whole_run[2]["columns"]["natural"]["methods"].items():
        label = "standardised stl" if name == "stl" else f"natural {name}"
        own = times[label]["median"] / times["natural ls"]["median"]
        networks = 4 if name == "stl" else 1
        assert figures["step_relative_to_ls"] == pytest.approx(networks * own, rel=1e-4)


def test_methods_start_alike_and_only_learned_weights_move(whole_run):
    for column in whole_run[2]["columns"].values():
        methods = {name: each for name, each in column["methods"].items() if name != "stl"}
        first = [figures["losses"][0] for figures in methods.values()]
        np.testing.assert_allclose(first, len(first) * [first[0]], rtol=1e-5)
        for name, figures in methods.items():
            z = figures.get("task_weights")
            if name == "frozen":
                np.testing.assert_array_equal(z, np.full((STEPS, 4), 0.25))
                assert figures["logit_range"] == {"end": 0, "most": 0, "mean": 0}
            elif _methods.METHODS[name].has_logits:
                np.testing.assert_allclose(np.sum(z, axis=1), 1, rtol=1e-5)
                assert figures["logit_range"]["most"] >= figures["logit_range"]["end"] > 0
            else:
                assert z is None


def test_earlier_runs_are_shown_again_and_change_no_figure(whole_run, tmp_path, run_study):
    folder, printed, _ = whole_run
    again, _ = run_study("digits", tmp_path, "--from", str(folder))
    for name in ("digits.json", "digits.png", "problem.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "runs.npz").exists()
    assert again in printed


def test_parts_join_to_the_whole(whole_run, tmp_path, run_study):
    _, _, summary = whole_run
    part = [*GRID[:2], *GRID[4:]]
    for name, seeds, methods in (
        ("0", "0 2", ["famo"]), ("1", "2 1", ["famo", "ls"]), ("2", "0 2", ["ls"]),
    ):  # fmt: skip
        first, count = seeds.split()
        more = ["--first-seed", first, "--seeds", count, "--methods", *methods]
        run_study("digits", tmp_path / name, *part, *more)
    parts = [str(tmp_path / str(index)) for index in range(3)]
    _, joined = run_study("digits", tmp_path / "joined", "--from", *parts)
    for label, column in joined["columns"].items():
        assert list(column["methods"]) == ["stl", "ls", "famo"]
        for name, figures in column["methods"].items():
            whole = summary["columns"][label]["methods"][name]
            np.testing.assert_allclose(figures["test_by_seed"], whole["test_by_seed"], rtol=1e-4)


def test_what_is_kept_has_no_curves_and_makes_the_same_tables(whole_run):
    folder, printed, _ = whole_run
    kept = json.loads((folder / "digits.json").read_text())
    assert len(kept["settings_sha256"]) == 64
    summary = _files.read_summary(folder / "digits.json")["summary"]
    assert "losses" not in summary["columns"]["natural"]["methods"]["ls"]
    for line in _tables.text(study.STUDY.tables(summary)).splitlines():
        assert line in [each.rstrip() for each in printed.splitlines()]


def test_a_picture_shows_what_its_titles_say(whole_run):
    _, _, summary = whole_run
    above, below = np.reshape(study.draw(summary).get_axes(), (2, 2))
    for label, tasks, delta_m in zip(COLUMNS, above, below, strict=True):
        methods = summary["columns"][label]["methods"]
        assert tasks.get_title(loc="left").startswith(label)
        for line in tasks.get_lines()[:-1]:
            own = methods[line.get_label()]
            np.testing.assert_allclose(line.get_ydata(), list(own["change"].values()))
            assert line.get_color() == _methods.METHODS[line.get_label()].colour
        dots = [line for line in delta_m.get_lines() if line.get_marker() == "o"]
        shown = [name for name in _comparison.MAIN if name in methods]
        for name, dot in zip(shown, dots, strict=True):
            assert dot.get_xdata() == [methods[name]["delta_m"]["mean"]]
    assert [each.get_text() for each in below[0].get_yticklabels()] == shown
    assert int.from_bytes((whole_run[0] / "digits.png").read_bytes()[16:20]) == 1700


def test_the_problem_shows_a_quiet_loss_the_loudest_and_the_errors(whole_run):
    _, _, summary = whole_run
    natural, fair = (summary["columns"][label]["methods"] for label in COLUMNS)
    quiet, loud, errors = study.draw_problem(summary).get_axes()
    for axes, task in ((quiet, 1), (loud, 3)):
        assert [line.get_label() for line in axes.get_lines()] == ["ls", "si", study.FAMO]
        for line in axes.get_lines():
            expected = np.array(natural[line.get_label()]["losses"])[:, task]
            np.testing.assert_allclose(line.get_ydata(), expected)
    own = [natural["ls"], natural["si"], natural[study.FAMO], fair["ls"]]
    for bars, each in zip(errors.containers, own, strict=True):
        change = list(each["change"].values())
        np.testing.assert_allclose(bars.lines[0].get_ydata(), change, rtol=1e-3, atol=1e-3)
    assert errors.containers[-1].get_label() == "mean, ink standardised"


def test_a_run_that_diverges_is_reported_as_such(tmp_path, run_study):
    printed, summary = run_study(
        "digits", tmp_path, "--quick", "--steps", "20", "--learning-rate", "1e30", "--methods", "ls"
    )
    assert "nan" in printed
    assert np.isnan(summary["columns"]["natural"]["methods"]["ls"]["delta_m"]["mean"])


def test_help_lists_every_method(capsys):
    with pytest.raises(SystemExit) as exit_info:
        study.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    for name, method in _methods.METHODS.items():
        assert f"  {name} " in printed
        assert method.description in printed


def test_columns_with_tasks_of_their_own_have_single_networks_of_their_own():
    one = digits.PROBLEM
    other = one._replace(tasks=one.tasks[::-1])
    pairs = _comparison.columns_of({"a": one, "b": other}, ["stl", "ls"])
    assert pairs == [("a", "stl"), ("a", "ls"), ("b", "stl"), ("b", "ls")]
    pairs = _comparison.columns_of({"a": one, "b": one}, ["stl", "ls"])
    assert pairs == [("a", "ls"), ("b", "stl"), ("b", "ls")]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ([], "last layer"),
        (["--aggregate-at", "parameters"], "parameters"),
        (["--aggregate-at", "features"], "features"),
    ],
)
def test_task_gradients_are_taken_where_it_is_said(given, place, monkeypatch, tmp_path):
    def run(plan, session, **more):
        assert [arm.problem.place for arm in next(plan)] == [place] * 3
        raise steps.PlannedError

    monkeypatch.setattr(_train, "run", run)
    with pytest.raises(steps.PlannedError):
        study.main([*GRID, "--methods", "nash-mtl", *given, "--out", str(tmp_path)])


@pytest.mark.parametrize("name", [*_methods.METHODS])
@pytest.mark.parametrize("place", ["features", "last layer"])
def test_every_method_can_be_compared_wherever_task_gradients_are_taken(place, name):
    """Those that cannot take them there have a place of their own."""
    problem = molecules.PROBLEM._replace(place=place)
    variables, (_, (after, trace)) = steps.traced(problem, name)
    assert trace.losses.shape == (2, molecules.K)
    assert jax.tree.map(lambda leaf: leaf.shape, after.params) == jax.tree.map(
        lambda leaf: leaf.shape[1:], variables[0]
    )


@pytest.mark.parametrize(
    "problem", [digits.PROBLEM, molecules.PROBLEM, attributes.PROBLEM, conflicts.PROBLEMS["drift"]]
)
def test_each_place_of_task_gradients_makes_another_step(problem):
    assert steps.differ(problem) == 3
