"""Imitation: demonstrations, what is learned from them, success, and processes that end.

But for one test the robots are points of `made_metaworld`, simulated in real processes.
"""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from famo_jax.experiments import _train
from famo_jax.experiments import imitation as study
from famo_jax.experiments.problems import _metaworld, robots
from tests.experiments import made_metaworld, steps

TASKS = ["reach", "drawer-close", "window-open"]
STRENGTHS = [len(f"{task}-v3") for task in TASKS]
EPISODES = 4
NAMES = ["stl", "ls", "frozen", "famo"]
SMALL = ["--tasks", *TASKS, "--demonstrations", f"{EPISODES}", "--steps", "30", "--goals", "3"]
SMALL += ["--methods", *NAMES]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The made package, and a cache for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made_metaworld.write(tmp_path_factory.mktemp("made")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def untimed(monkeypatch):
    """What a step takes is compiled for each method: once is enough."""
    same = {"q1": 1.0, "median": 1.0, "q3": 1.0}
    times = lambda arms, **_: {arm.name: same for arm in arms}
    monkeypatch.setattr(_train, "measure_steps", times)


@pytest.fixture(scope="module")
def shown(made):
    return robots.demonstrate(TASKS, EPISODES)


# --- Demonstrations -------------------------------------------------------------------------------


def test_rows_are_those_of_their_split_and_task(shown):
    assert shown.lengths.shape == shown.success.shape == (3, len(TASKS), EPISODES)
    assert shown.success.all()
    starts = []
    for split in range(3):
        for task, rows in enumerate(shown.rows(split)):
            starts.append(rows.start)
            seen, done = shown.observations[rows], shown.actions[rows]
            assert len(seen) == shown.lengths[split, task].sum()
            # The expert's own wish, however it was disturbed: by its strength this is the task's.
            wanted = STRENGTHS[task] * (seen[:, -3:] - seen[:, :3])
            np.testing.assert_allclose(done[:, :3], wanted, atol=1e-5)
            assert np.abs(done).max() > 1  # not clipped
            # Noise: what happened is not what it wanted.
            moved = np.diff(seen[: shown.lengths[split, task, 0], :3], axis=0) / 0.05
            off = moved - np.clip(wanted[: len(moved)], -1, 1)
            assert 0.1 < np.std(off) < 0.3
    assert starts == sorted(starts)
    assert shown.rows(2)[-1].stop == len(shown.observations)


def test_each_place_of_task_gradients_makes_another_step(shown):
    """On all parameters one task's loss after the other, which is cheaper."""
    assert steps.differ(robots.problem(TASKS, shown)) == 3


def test_no_goal_is_in_two_splits(shown):
    goals = [
        {tuple(goal) for goal in shown.observations[rows][:, -3:]}
        for split in range(3)
        for rows in shown.rows(split)
    ]
    assert [len(each) for each in goals] == 3 * len(TASKS) * [EPISODES]
    assert len(set.union(*goals)) == 3 * len(TASKS) * EPISODES


def test_they_are_recorded_once_and_again_where_the_file_is_damaged(shown, monkeypatch):
    (cache,) = (robots._cache.Path(os.environ["XDG_CACHE_HOME"]) / "famo_jax").glob("*.npz")
    whole = cache.read_bytes()
    asked = []

    def processes():
        asked.append(1)
        raise OSError("asked for processes")

    monkeypatch.setattr(_metaworld, "processes", processes)
    for mine, other in zip(robots.demonstrate(TASKS, EPISODES), shown, strict=True):
        np.testing.assert_array_equal(mine, other)
    try:
        for damaged in (whole[:-100], b"", whole[:300] + bytes(50) + whole[350:]):
            cache.write_bytes(damaged)
            with pytest.raises(OSError, match="asked for processes"):
                robots.demonstrate(TASKS, EPISODES)
    finally:
        cache.write_bytes(whole)
    with pytest.raises(OSError, match="asked for processes"):
        robots.demonstrate(TASKS, EPISODES + 1)
    assert len(asked) == 4


# --- The problem ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem(shown):
    return robots.problem(TASKS, shown)


@pytest.fixture(scope="module")
def params(problem):
    return jax.tree.map(lambda leaf: leaf[0], problem.init([3])[0])


def test_batches_hold_rows_of_each_task_from_training_alone(problem, shown):
    data = problem.load_data(20, [0, 1], 8)
    assert data.train.shape == (20, 2, len(TASKS), 8)
    scale = robots.scale_of(shown)
    for task, rows in enumerate(shown.rows(0)):
        own = np.asarray(data.train)[:, :, task]
        assert own.min() >= rows.start
        assert own.max() < rows.stop
        assert len(np.unique(own)) > 0.9 * (rows.stop - rows.start)
        inputs = np.asarray(data.pool.inputs[rows])
        np.testing.assert_array_equal(inputs[:, 39:], np.eye(3)[[task] * len(inputs)])
        np.testing.assert_allclose(
            inputs[:, :39] * scale.std + scale.mean, shown.observations[rows], atol=1e-5
        )
    assert not np.array_equal(data.train[:, 0], data.train[:, 1])
    np.testing.assert_array_equal(problem.load_data(20, [1], 8).train[:, 0], data.train[:, 1])
    for split, held_out in ((1, data.validation), (2, data.test)):
        size = min(robots.HELD_OUT, shown.lengths[split].sum(axis=-1).min())
        assert held_out.actions.shape == (2, len(TASKS), size, 4)
        for task, rows in enumerate(shown.rows(split)):
            own = set(map(bytes, shown.actions[rows]))
            assert own.issuperset(map(bytes, np.asarray(held_out.actions[0, task])))


def test_losses_are_those_of_a_loop_over_tasks_and_rows(problem, params, shown):
    data = problem.load_data(1, [0], 8)
    batch = jax.tree.map(lambda leaf: leaf[data.train[0, 0]], data.pool)
    losses, _ = problem.losses(params, (), batch, None)
    scale = robots.scale_of(shown)
    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    for task, own in enumerate(np.asarray(data.train[0, 0])):
        layers = robots.layers_of(vector, len(TASKS), task, scale)
        errors = [
            _metaworld.forward(layers, shown.observations[row].astype(np.float64))
            - shown.actions[row]
            for row in own
        ]
        assert losses[task] == pytest.approx(np.mean(np.square(errors)), rel=1e-4)
        alone = problem.each[task](params, (), batch, None)
        assert alone == pytest.approx(float(losses[task]), rel=1e-6)
    test = problem.metrics(params, (), batch)
    np.testing.assert_allclose(test, np.sqrt(losses), rtol=1e-6)


def test_losses_differ_by_how_hard_experts_push(problem, params):
    data = problem.load_data(1, [0], 64)
    batch = jax.tree.map(lambda leaf: leaf[data.train[0, 0]], data.pool)
    losses, _ = problem.losses(params, (), batch, None)
    assert losses.max() > 1.5 * losses.min()


# --- Success --------------------------------------------------------------------------------------


def test_a_network_that_knows_the_expert_succeeds_and_one_that_does_nothing_does_not(made):
    """In this process, where the made package is imported for once."""
    towards, still = np.zeros((39, 4)), np.zeros((39, 4))
    towards[-3:, :3], towards[:3, :3] = np.eye(3), -np.eye(3)
    # ReLU keeps both signs apart.
    both = [np.hstack([towards, -towards]), np.zeros(8)]
    layers = [*both, np.vstack([np.eye(4), -np.eye(4)]), np.zeros(4)]
    try:
        assert _metaworld.roll_out("reach", 3, 5, layers).tolist() == 5 * [True]
        for nothing in (0.0, np.nan):
            found = _metaworld.roll_out("reach", 3, 5, [still, np.full(4, nothing)])
            assert not found.any()
    finally:
        for cached in (_metaworld.goals, _metaworld.robot):
            cached.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "metaworld"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def quick(made, tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("imitation")
    return folder, *run_study("imitation", folder, "--quick", *SMALL)


def test_a_quick_run(quick):
    folder, printed, summary = quick
    assert "…" not in printed
    methods = summary["columns"][study.COLUMN]["methods"]
    assert list(methods) == NAMES
    assert list(summary["problem"]["expert"].values()) == [1, 1, 1]
    assert f"{EPISODES} demonstrations a task" in printed
    for name, each in methods.items():
        rates = np.array(list(each["success_by_task"].values()))
        assert np.all((rates >= 0) & (rates <= 100)), name
        assert each["success"]["mean"] == pytest.approx(rates.mean(), rel=1e-4)
        assert each["success"]["mean"] == pytest.approx(np.mean(each["success_by_seed"]), rel=1e-4)
    fixed = summary["columns"][study.COLUMN]["fixed"]
    ends = [methods[name]["success"]["mean"] for name in ("famo", fixed)]
    assert methods["famo"]["success_gain"]["mean"] == pytest.approx(ends[0] - ends[1], abs=1e-3)
    ends = [methods[name]["success"]["mean"] for name in ("famo", "frozen")]
    found = methods["famo"]["success_over_control"]["mean"]
    assert found == pytest.approx(ends[0] - ends[1], abs=1e-3)
    assert "success_over_control" not in methods["frozen"]
    with np.load(folder / "runs.npz") as arrays:
        assert not [name for name in arrays if name.endswith("params")]
        assert arrays["robots stl/success"].shape == arrays["robots ls/success"].shape == (1, 2, 3)
    assert (folder / "imitation.png").read_bytes().startswith(b"\x89PNG")


def test_tasks_in_which_methods_differ_most_are_told(quick):
    _, _, summary = quick
    names = [f"task {index}" for index in range(7)]
    summary = copy.deepcopy(summary)
    for key in ("expert", "demonstrations", "shown"):
        summary["problem"][key] = dict.fromkeys(names, 1)
    methods = summary["columns"][study.COLUMN]["methods"]
    for number, each in enumerate(methods.values()):
        rates = [90, 10 * number, 80, 9 * number, 8 * number, 7 * number, 6 * number]
        each["success_by_task"] = dict(zip(names, rates, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_metaworld, "TASKS", {name: f"t{name[-1]}" for name in names})
        *_, table, told = study.tables(summary)
    shown = [column.header for column in table.columns[1:6]]
    assert shown == ["t1", "t3", "t4", "t5", "t6"]
    assert [*table.columns[1].cells][:3] == ["0", "10", "20"]
    assert "every method succeeds in 80% at least" in told


def test_success_is_that_of_the_network_that_validation_chose(made, untimed, tmp_path, run_study):
    """At two rates, of which one learns nothing."""
    rates = ["--learning-rate", "1e-9", "1e-2", "--methods", "ls", "--seeds", "1"]
    long = ["--steps", "400"]  # the last of two is what counts
    _, summary = run_study("imitation", tmp_path, "--quick", *SMALL, *rates, *long)
    methods = summary["columns"][study.COLUMN]["methods"]
    assert methods["ls"]["learning_rate"] == [0.01]
    assert methods["ls"]["success"]["mean"] > 70


def test_every_task_s_error_and_weight_is_told(quick):
    """Errors over those of a network for each task, and weights as means over training."""
    _, printed, summary = quick
    methods = summary["columns"][study.COLUMN]["methods"]
    errors, _, weights = printed.partition("Held-out")[2].partition("Task weights")
    row = lambda text, name: next(line for line in text.splitlines() if line.startswith(name + " "))
    assert not any(line.startswith("stl ") for line in errors.splitlines())
    for name in ("ls", "famo"):
        shown = [float(cell) for cell in row(errors, name).split()[1:]]
        np.testing.assert_allclose(shown, list(methods[name]["change"].values()), atol=0.51)
    shown = [float(cell) for cell in row(weights, "famo").split()[1:]]
    expected = 100 * np.mean(methods["famo"]["task_weights"], axis=0)
    np.testing.assert_allclose(shown, expected, atol=0.051)
    assert sum(shown) == pytest.approx(100, abs=0.2)
    fixed = {name: methods[name] for name in ("stl", "ls")}
    column = summary["columns"][study.COLUMN] | {"methods": fixed}
    without = study.tables(summary | {"columns": {study.COLUMN: column}})
    assert not any("Task weights" in str(getattr(part, "title", "")) for part in without)
    assert not study.draw(summary | {"columns": {study.COLUMN: column}}).get_axes()[1].get_visible()


def test_parts_of_a_run_are_joined(quick, untimed, tmp_path, run_study):
    _, _, both = quick
    parts = []
    for seed in range(2):
        parts.append(str(tmp_path / f"{seed}"))
        first = ["--seeds", "1", "--first-seed", f"{seed}", "--methods", "ls"]
        run_study("imitation", tmp_path / f"{seed}", "--quick", *SMALL, *first)
    _, joined = run_study("imitation", tmp_path / "joined", "--from", *parts)
    for name in ("stl", "ls"):
        found, whole = (each["columns"][study.COLUMN]["methods"][name] for each in (joined, both))
        np.testing.assert_allclose(found["success_by_seed"], whole["success_by_seed"], atol=1e-3)


def test_a_picture_shows_what_its_titles_say(quick):
    _, _, summary = quick
    changes, weights, below, success = study.draw(summary).get_axes()
    methods = summary["columns"][study.COLUMN]["methods"]
    for line in changes.get_lines()[:-1]:
        expected = list(methods[line.get_label()]["change"].values())
        np.testing.assert_allclose(line.get_xdata(), expected)
    dots = [line for line in success.get_lines() if line.get_marker() == "o"]
    for name, dot in zip(methods, dots, strict=True):
        expected = methods[name]["success"]["mean"]
        np.testing.assert_allclose(dot.get_xdata(), [expected], rtol=1e-4)
    assert weights.get_title(loc="left") == "task weights of famo"
    curves = np.array(methods["famo"]["task_weights"])
    lines = [line.get_ydata() for line in weights.get_lines()]
    np.testing.assert_allclose(np.array(lines).T, curves, rtol=1e-6)
    assert "Δm" in below.get_title(loc="left")


# --- What may go wrong ----------------------------------------------------------------------------


def test_without_the_simulator_it_says_what_to_install(tmp_path, monkeypatch):
    find = _metaworld.importlib.util.find_spec
    without = lambda name: None if name == "metaworld" else find(name)
    monkeypatch.setattr(_metaworld.importlib.util, "find_spec", without)
    with pytest.raises(SystemExit) as exit_info:
        study.main(["--quick", "--out", str(tmp_path)])
    assert exit_info.value.code == (
        'error: metaworld is not installed: pip install "famo_jax[metaworld]" brings the simulator'
    )


def test_a_process_that_dies_ends_the_run_in_one_line(made, tmp_path, monkeypatch):
    monkeypatch.setenv("MADE_METAWORLD_DIES", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = set(multiprocessing.active_children())
    with pytest.raises(SystemExit) as exit_info:
        study.main(["--quick", *SMALL, "--out", str(tmp_path)])
    message = "error: a process of the simulator died, for want of memory perhaps"
    assert exit_info.value.code == message
    assert set(multiprocessing.active_children()) <= before


def test_no_process_outlives_one_that_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\n"
        "from famo_jax.experiments.problems import _metaworld\n"
        "if __name__ == '__main__':\n"
        "    with _metaworld.processes(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(100)\n"
    )
    killed = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    child = int(killed.stdout.readline())
    os.kill(child, 0)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it was still there after 10 s")
