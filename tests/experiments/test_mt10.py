"""Reinforcement of ten robots: its loop, what it saves, its command; on made robots but for one."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from famo_jax.experiments import _checkpoint, _command
from famo_jax.experiments import mt10 as study
from famo_jax.experiments.problems import _metaworld, sac
from tests.experiments import made_metaworld

TASKS = ["reach", "drawer-close", "window-open"]
SMALL = ["--quick", "--tasks", *TASKS, "--horizon", "20", "--evaluate", "2", "--steps", "120"]
SMALL += ["--random-steps", "20", "--batch-size", "4", "--width", "8", "--buffer", "120"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made_metaworld.write(tmp_path_factory.mktemp("made")))
        yield


@pytest.fixture(scope="module")
def lanes(made):
    with _metaworld.lanes(TASKS, count=2) as lanes:
        yield lanes


def options_of(tmp_path, *arguments):
    return _command.parse(study.STUDY, [*SMALL, *arguments, "--out", str(tmp_path)])


# --- Robots ---------------------------------------------------------------------------------------


def test_lanes_step_every_robot_by_its_own_action(lanes):
    first = lanes.reset(7, 0)
    assert first.shape == (3, 39)
    actions = np.array([[1, 0, 0, 0], [0, -5, 0, 0], [0, 0, 0.5, 9]], np.float32)
    after = lanes.step(actions)
    moved = (after.observations - first)[:, :3]
    np.testing.assert_allclose(moved, 0.05 * np.clip(actions, -1, 1)[:, :3], atol=1e-6)
    distance = np.linalg.norm(after.observations[:, :3] - after.observations[:, -3:], axis=1)
    np.testing.assert_allclose(after.rewards, -distance, atol=1e-5)
    # Others of another kind, and another goal.
    other = lanes._replace(kind="evaluate")
    np.testing.assert_array_equal(other.reset(7, 0), first)
    other.step(-actions)
    again = lanes.step(np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(again.observations, after.observations)
    assert not np.array_equal(lanes.reset(7, 1), first)
    np.testing.assert_array_equal(lanes.reset(7, 0), first)


def test_rewards_of_the_first_version_are_others(lanes):
    lanes.reset(7, 0)
    first = lanes._replace(rewards="v1")
    first.reset(7, 0)
    still = np.zeros((3, 4), np.float32)
    np.testing.assert_allclose(first.step(still).rewards, 10 * lanes.step(still).rewards)


# --- The loop -------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def states_of(options, name, lanes, saved=None, until=None, folder=None):
    """The states that a training saves, as they are read again."""
    states = {}

    def save(episode, state):
        states[episode] = jax.tree.map(np.array, state._replace(took=np.zeros(4, np.float32)))
        if folder:
            _checkpoint.save(folder, "a", episode, state)
        if episode == until:
            raise KilledError

    try:
        study.train(options, name, 3, lanes, saved, save)
    except KilledError:
        assert until
    return states


@pytest.mark.parametrize(
    ("name", "more"),
    [("famo", []), ("si", ["--alphas", "shared", "--rewards", "v2-scaled", "--goals", "2"])],
)
def test_it_goes_on_to_the_bit_where_it_was_stopped(name, more, lanes, tmp_path):
    options = options_of(tmp_path / "out", *more)
    whole = states_of(options, name, lanes)
    assert list(whole) == [2, 4, 6]
    states_of(options, name, lanes, until=4, folder=tmp_path)
    with np.load(tmp_path / "a.npz") as arrays:
        saved = _checkpoint.Saved(*(arrays[field] for field in _checkpoint.Saved._fields))
    resumed = states_of(options, name, lanes, saved)
    assert list(resumed) == [6]
    for mine, other in zip(jax.tree.leaves(resumed[6]), jax.tree.leaves(whole[6]), strict=True):
        np.testing.assert_array_equal(mine, other)
    curves = resumed[6].curves
    assert np.isfinite(curves.success).all()
    assert np.isfinite(curves.losses).all()
    # What one without logits weighs with is not known.
    assert (np.isfinite if name == "famo" else np.isnan)(curves.task_weights).all()


@pytest.mark.parametrize(
    ("name", "rate", "learns"),
    [("nash-slope", "0.1", True), ("nash-slope", "1e-9", False), ("famo", "1e-9", True)],
)
def test_the_rate_of_logits_is_that_of_amortized_nash_mtl(name, rate, learns, lanes, tmp_path):
    options = options_of(tmp_path, "--logits-rate", rate)
    (*_, last) = states_of(options, name, lanes).values()
    z = last.curves.task_weights
    np.testing.assert_allclose(z.sum(axis=1), 1, rtol=1e-4)
    assert (np.ptp(z[-1]) > 1e-2) == learns
    assert (np.ptp(z[-1]) > 1e-5) == learns


def test_what_is_learned_from_is_what_happened(lanes, tmp_path):
    """The last transition of an episode leads to its final observation, not to a new start."""
    options = options_of(tmp_path)
    (*_, last) = states_of(options, "ls", lanes).values()
    rows = sac.Transitions(*last.replay.rows)
    assert last.replay.added == 120
    moved = (rows.next_observations - rows.observations)[..., :3]
    np.testing.assert_allclose(moved, 0.05 * np.clip(rows.actions, -1, 1)[..., :3], atol=1e-6)
    follows = np.all(rows.next_observations[:, :-1] == rows.observations[:, 1:], axis=(0, 2))
    assert follows.tolist() == [(step + 1) % 20 != 0 for step in range(119)]
    np.testing.assert_array_equal(rows.observations[:, 0], rows.observations[:, 20])  # one goal
    gone = rows.next_observations[..., :3] - rows.next_observations[..., -3:]
    gone = np.linalg.norm(gone, axis=-1)
    np.testing.assert_allclose(rows.rewards, -gone, atol=1e-5)
    returns = rows.rewards.reshape(3, 3, 2, 20).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(last.curves.returns, returns.T, rtol=1e-4)


def towards(seen):
    """The goal, at full speed."""
    way = seen[:, -3:] - seen[:, :3]
    return np.pad(np.sign(way) * (np.abs(way) > 0.05), ((0, 0), (0, 1)))


def test_an_evaluation_counts_success_at_any_step(lanes, tmp_path):
    """Straight through the goal and on; or nowhere, or through one goal of three."""
    options = options_of(tmp_path, "--horizon", "60", "--steps", "120", "--episodes", "3",
                         "--goals", "3")  # fmt: skip
    own, ways = lanes._replace(kind="evaluate"), {}
    for goal in range(3):
        seen = own.reset(study.GOALS_OF + 3, goal)
        way = np.pad(seen[:, -3:] - seen[:, :3], ((0, 0), (0, 1)))
        ways[seen[:, -3:].tobytes()] = way / np.abs(way).max(axis=1, keepdims=True)
    through = lambda seen: ways[seen[:, -3:].tobytes()]
    for goal in range(3):
        seen = own.reset(study.GOALS_OF + 3, goal)
        for _ in range(60):
            seen, _, success = own.step(through(seen))
        assert not success.any()
    np.testing.assert_array_equal(study.evaluate(options, 3, lanes, through), np.ones(3))
    last = seen[:, -3:].tobytes()
    one = lambda seen: through(seen) * (seen[:, -3:].tobytes() == last)
    np.testing.assert_allclose(study.evaluate(options, 3, lanes, one), np.full(3, 1 / 3))
    still = lambda seen: np.zeros((len(seen), 4))
    np.testing.assert_array_equal(study.evaluate(options, 3, lanes, still), np.zeros(3))


# --- Frames ---------------------------------------------------------------------------------------


def test_frames_show_an_episode_the_right_way_up_and_who_has_succeeded(made, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    options = options_of(tmp_path, "--horizon", "60", "--steps", "120", "--frames", "3")
    own, side = ["reach", "drawer-close"], _metaworld.SIDE
    options.tasks = own
    # The second one stays where it is.
    act = lambda seen: towards(seen) * np.array([[1], [0]])
    with _metaworld.lanes(own, count=2) as lanes:
        frames = study.film(options, 3, lanes, act)
        seen = [lanes.reset(study.GOALS_OF + 3, 0)]
        for _ in range(60):
            seen.append(lanes.step(act(seen[-1])).observations)
    assert frames.shape == (3, 2, side, side, 3)
    red, green = (np.all(frames == colour, axis=-1) for colour in ((255, 0, 0), study.GREEN))
    for place, step in enumerate((0, 30, 60)):
        for robot in range(2):
            (found,) = np.argwhere(red[place, robot])
            expected = (seen[step][robot, :2].clip(-1, 1) + 1) / 2 * (side - 1)
            np.testing.assert_allclose(found, expected, atol=1)
    assert green.any(axis=(2, 3)).tolist() == [[False, False], [True, False], [True, False]]
    edge = green[-1, 0]
    assert edge[0].all()
    assert edge[:, -1].all()
    assert not edge[study.EDGE :, study.EDGE :][: -study.EDGE, : -study.EDGE].any()


def test_a_run_draws_frames_where_it_is_told_to(made, whole_run, tmp_path, monkeypatch, run_study):
    folder, printed, _ = whole_run
    assert not (folder / "out" / "mt10_robots.png").exists()
    assert "mt10_robots" not in printed
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    options = [*SMALL, "--methods", "ls", "--frames", "2", "--seeds", "2"]
    printed, summary = run_study("mt10", tmp_path, *options)
    assert "mt10_robots.png" in printed.replace("\n", "")
    frames = summary["methods"]["ls"]["frames"]
    shown = [image.get_array() for axes in study.draw_frames(summary).get_axes()
             for image in axes.get_images()]  # fmt: skip
    np.testing.assert_array_equal(shown, np.reshape(frames, (6, *frames.shape[2:])))
    assert "frames" not in (tmp_path / "mt10.json").read_text().partition("summary")[2]
    assert (tmp_path / "mt10_robots.png").exists()
    run_study("mt10", tmp_path, "--from", str(folder / "out"))
    assert not (tmp_path / "mt10_robots.png").exists()


def test_without_a_renderer_it_ends_before_it_trains(made, tmp_path, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(SystemExit, match="error: MuJoCo can draw no frames with MUJOCO_GL=''"):
        study.main([*SMALL, "--methods", "ls", "--frames", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        options_of(tmp_path, "--frames", "21")


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(made, tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("mt10")
    saves = ["--checkpoint-dir", str(folder / "saved")]
    return folder, *run_study("mt10", folder / "out", *SMALL, *saves, "--methods", "ls", "famo")


def test_a_run_prints_success_and_says_that_it_compares_nothing(whole_run):
    folder, printed, summary = whole_run
    assert "…" not in printed
    assert list(summary["methods"]) == ["ls", "famo"]
    assert "A demonstration, of one seed: it compares nothing." in printed
    assert summary["per_second"]["updates"] > 0
    assert summary["per_second"]["robot_steps"] > 0
    for each in summary["methods"].values():
        assert list(each["success_by_task"]) == TASKS
        assert each["success"]["mean"] == pytest.approx(each["curve"][-1])
    assert (folder / "out" / "mt10.png").read_bytes().startswith(b"\x89PNG")
    success, losses, weights, _ = study.draw(summary).get_axes()
    for line in success.get_lines():
        own = summary["methods"][line.get_label()]
        np.testing.assert_allclose(line.get_ydata(), own["curve"])
    for axes, field in ((losses, "losses"), (weights, "task_weights")):
        assert axes.get_title(loc="left").endswith("of famo")
        for line, curve in zip(axes.get_lines(), np.transpose(summary["methods"]["famo"][field]),
                               strict=True):  # fmt: skip
            np.testing.assert_allclose(line.get_ydata(), curve)


def test_task_weights_are_shown_of_a_method_with_logits_alone(whole_run):
    folder, printed, summary = whole_run
    kept = json.loads((folder / "out" / "mt10.json").read_text())["summary"]["methods"]
    assert not [field for field in (*kept["ls"], *summary["methods"]["ls"]) if "weights" in field]
    last = kept["famo"]["last_task_weights"]
    assert list(last) == TASKS
    assert sum(last.values()) == pytest.approx(1, rel=1e-4)
    assert "Task weights then (%)" in printed
    alone = summary | {"methods": {"ls": summary["methods"]["ls"]}}
    _, losses, weights, alphas = study.draw(alone).get_axes()
    assert not weights.axison
    assert not weights.get_lines()
    assert not weights.get_title(loc="left")
    assert all(len(axes.get_lines()) == len(TASKS) for axes in (losses, alphas))
    (_, _, table) = study.tables(alone)
    assert table.title == "Critics' losses then"


def test_the_command_goes_on_where_it_was_stopped(whole_run, tmp_path, run_study, capsys):
    """Without the second method's checkpoint, which is then trained anew."""
    folder, _, summary = whole_run
    saved = tmp_path / "saved"
    shutil.copytree(folder / "saved", saved)
    (saved / "famo 0.npz").unlink()
    more = ["--methods", "ls", "famo", "--checkpoint-dir", str(saved), "--resume"]
    _, again = run_study("mt10", tmp_path / "out", *SMALL, *more)
    np.testing.assert_equal(again["methods"], summary["methods"])
    (saved / "ls 0.npz").write_bytes(b"damaged")
    with pytest.raises(SystemExit) as exit_info:
        study.main([*SMALL, *more, "--out", str(tmp_path / "out")])
    assert exit_info.value.code == 2
    said = capsys.readouterr().err.partition(": error: ")[2]
    place = f"argument --checkpoint-dir: expected a checkpoint in {saved / 'ls 0.npz'}"
    assert said.startswith(f"{place}, which is damaged (")
    assert said.count("\n") == 1


def test_without_the_simulator_it_says_what_to_install(tmp_path, monkeypatch):
    find = _metaworld.importlib.util.find_spec
    without = lambda name: None if name == "metaworld" else find(name)
    monkeypatch.setattr(_metaworld.importlib.util, "find_spec", without)
    with pytest.raises(SystemExit) as exit_info:
        study.main([*SMALL, "--methods", "ls", "--out", str(tmp_path)])
    assert exit_info.value.code == (
        'error: metaworld is not installed: pip install "famo_jax[metaworld]" brings the simulator'
    )


def test_a_process_that_dies_ends_the_run_in_one_line(made, tmp_path, monkeypatch):
    monkeypatch.setenv("MADE_METAWORLD_DIES", "1")
    before = set(multiprocessing.active_children())
    with pytest.raises(SystemExit) as exit_info:
        study.main([*SMALL, "--methods", "ls", "--out", str(tmp_path)])
    message = "error: a process of the simulator died, for want of memory perhaps"
    assert exit_info.value.code == message
    assert set(multiprocessing.active_children()) <= before


STARTING = """
import os
import time
if __name__ == "__mp_main__":  # what a process that starts runs first
    print("starts", flush=True)
    time.sleep(0.5)
from famo_jax.experiments import _command
from famo_jax.experiments.problems import _metaworld

def main():
    with _metaworld.processes(1) as pool:
        pool.submit(os.getpid).result()

if __name__ == "__main__":
    _command.ends_in_words(main)()
"""


def test_an_interrupt_while_a_process_starts_ends_without_a_word(tmp_path):
    (tmp_path / "program.py").write_text(STARTING)
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout.readline() == "starts\n"
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    assert program.communicate(timeout=120) == ("", "")
    assert program.returncode == 130


INTERRUPTED = """
import os
import signal
import sys
import threading
import time
from famo_jax.experiments import _command
from famo_jax.experiments.problems import _metaworld

def main():
    interrupt = threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with _metaworld.processes(2):
        time.sleep(60)

if __name__ == "__main__":
    _command.ends_in_words(main)()
"""


@pytest.mark.parametrize("delay", ["0.005", "0.02"])
def test_an_interrupt_while_processes_are_made_waits_until_they_are(delay, tmp_path):
    (tmp_path / "program.py").write_text(INTERRUPTED)
    own = [sys.executable, str(tmp_path / "program.py"), delay]
    program = subprocess.run(own, capture_output=True, text=True, timeout=50)
    assert (program.returncode, program.stdout, program.stderr) == (130, "", "")


def test_the_paper_is_the_official_protocol(tmp_path):
    options = _command.parse(study.STUDY, ["--preset", "paper", "--out", str(tmp_path)])
    own = study.settings_of(options, study.OFFICIAL)
    expected = sac.Settings(
        network="mtsac", identity=False, width=400, depth=3, batch_size=128, learning_rate=3e-4,
        clip=0, least_log_std=-20, shared_alpha=True, official_c=True, discount=0.99, tau=0.005,
    )  # fmt: skip
    assert own == expected
    assert options.tasks == list(_metaworld.TASKS)
    assert options.buffer * len(options.tasks) == 1_000_000
    assert (options.horizon, options.random_steps, options.gamma) == (150, 1500, 0.01)
    assert options.horizon * options.evaluate == 30_000
    assert (options.steps, options.call) == (1_980_000, 1)
    assert (options.goals, options.episodes) == (1, 1)
    assert options.rewards == "v1-scaled"
    assert not study.settings_of(options, "famo").official_c
