"""The studies of NYU-v2 and CityScapes as commands, on scenes that are drawn."""

import json
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from famo_jax.experiments import (
    _benchmark,
    _checkpoint,
    _command,
    _epochs,
    _files,
    _methods,
    _scenes,
    _train,
    cityscapes,
    nyuv2,
)
from famo_jax.experiments.make import __main__ as make
from famo_jax.experiments.problems import _problem, _views, dense
from tests.experiments.steps import PlannedError

TABLES = tomllib.loads((Path(__file__).parents[1] / "data" / "paper_tables.toml").read_text())
NAMES = ["ls", "si", "famo", "famo-one-pass"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    make.main(["rooms", "--out", str(folder), "--count", "16", "8", "--size", "32x64"])
    return folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, rooms, run_study):
    folder = tmp_path_factory.mktemp("nyuv2")
    return folder, *run_study("nyuv2", folder, "--quick", "--data", str(rooms))


# --- What is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_two_epochs_lower_every_loss(whole_run, name):
    _, _, summary = whole_run
    losses = np.array(summary["methods"][name]["losses"])
    assert losses.shape == (2, 3)
    assert (losses[1] < losses[0]).all()
    values = np.array(list(summary["methods"][name]["test"].values()))
    assert np.isfinite(values).all()


def test_killed_and_resumed_it_ends_with_the_same_figures(
    whole_run, rooms, tmp_path, run_study, monkeypatch
):
    """After an epoch, at which the learning rate falls, in a training with batch statistics."""
    folder, _, _ = whole_run
    own = ["--methods", "famo", "--data", str(rooms), "--checkpoint-dir", str(tmp_path / "saved")]
    save = _checkpoint.save

    def then_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint, "save", then_stop)
        with pytest.raises(SystemExit):
            run_study("nyuv2", tmp_path / "out", "--quick", *own)
    run_study("nyuv2", tmp_path / "out", "--quick", *own, "--resume")
    with np.load(folder / "runs.npz") as whole, np.load(tmp_path / "out" / "runs.npz") as resumed:
        assert {name for name in whole if name.startswith(("famo/", "truth/"))} == set(resumed)
        for name in resumed:
            np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


@pytest.fixture(scope="module")
def parts(rooms):
    return [dense.NYUV2.load(rooms, split) for split in ("train", "val")]


def arm_of(parts, method, steps=1, network="segnet", **plan):
    problem = dense.problem(dense.NYUV2, *parts, dense.Plan(network, 8, 1, **plan))
    data = problem.load_data(steps, [0], 4)
    settings = [{"learning_rate": 1e-3, "gamma": 1e-3}]
    constant = lambda setting, steps: setting["learning_rate"]
    return _train.Arm("one", problem, data, steps, method, settings, [0], schedule=constant)


def stepped(arm):
    """A step: before, after, and the problem's function of a batch."""
    begin, advance, _ = _train.functions(arm)
    setting, variables = arm.settings[0], jax.tree.map(lambda leaf: leaf[0], arm.problem.init([0]))
    key, rows = jax.random.key(0), arm.data.batches(0, 1)[:, 0]

    @jax.jit
    def run(variables, pool):
        before = begin(setting, variables)
        after, trace = advance(setting, before, key, pool, 0, rows)
        batch = jax.tree.map(lambda leaf: leaf[rows[0]], pool)
        at = lambda params, state: arm.problem.losses(
            params, state, batch, jax.random.fold_in(key, 0)
        )
        first = at(before.params, before.state)
        return after, trace, first, at(after.params, first[1])

    return run(variables, arm.data.pool)


@pytest.mark.parametrize(("network", "both"), [("segnet", True), ("segnet", False), ("mtan", True)])
def test_batch_statistics_move_once_or_in_both_passes(parts, network, both):
    """Of the same augmented batch."""
    arm = arm_of(parts, _methods.METHODS["famo"], network=network, both_passes=both)
    after, trace, (losses, once), (_, twice) = stepped(arm)
    np.testing.assert_allclose(trace.losses[0], losses, rtol=1e-5)
    expected, other = (twice, once) if both else (once, twice)
    leaves = [jax.tree.leaves(tree) for tree in (after.state, expected, other)]
    for own, same, _ in zip(*leaves, strict=True):
        np.testing.assert_allclose(own, same, rtol=1e-4, atol=1e-6)
    assert max(float(jnp.abs(own - far).max()) for own, _, far in zip(*leaves, strict=True)) > 1e-3


@pytest.mark.parametrize("network", ["segnet", "mtan"])
def test_aggregation_at_the_features_moves_the_statistics_too(parts, network):
    arm = arm_of(parts, _methods.METHODS["mgda"], network=network)
    after, trace, (losses, once), _ = stepped(arm)
    np.testing.assert_allclose(trace.losses[0], losses, rtol=1e-5)
    for own, same in zip(*map(jax.tree.leaves, (after.state, once)), strict=True):
        np.testing.assert_allclose(own, same, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["segnet", "mtan"])
def test_networks_are_evaluated_by_running_statistics(parts, network):
    """So that how many scenes are looked at together makes no difference to pooled metrics."""
    problem = dense.problem(dense.NYUV2, *parts, dense.Plan(network, 8, 1))
    params, state = jax.tree.map(lambda leaf: leaf[0], problem.init([0]))
    own = lambda size: jax.tree.map(lambda leaf: leaf[0], problem.load_data(1, [0], size).test)
    metrics = jax.jit(problem.metrics)
    (_, one), (_, four) = (np.split(metrics(params, state, own(size)), 2) for size in (1, 4))
    np.testing.assert_allclose(one, four, rtol=1e-4)
    moved = jax.tree.map(lambda leaf: leaf + 1, state)
    assert np.abs(np.split(metrics(params, moved, own(4)), 2)[1] - four).max() > 1e-3


def test_an_epoch_is_all_scenes_once_and_a_smaller_batch_at_the_end(parts):
    arm = arm_of(parts, _methods.METHODS["ls"], held_out=3)
    assert arm.data.epoch == 4
    whole, rest = arm.data.batches(0, 4)
    assert (whole.shape, rest.shape) == ((3, 1, 4), (1, 1, 1))
    rows = np.concatenate([whole.ravel(), rest.ravel()])
    assert len(set(rows.tolist())) == 13
    second = arm.data.batches(4, 8)[0]
    assert not np.array_equal(second, whole)
    assert set(second.ravel().tolist()) <= set(rows.tolist())
    assert arm.data.batches(1, 3).shape == (2, 1, 4)
    (held_out,) = arm.data.validation
    assert held_out.image.shape == (1, 1, 3, 32, 64, 3)
    assert [part.image.shape[1:3] for part in arm.data.test] == [(2, 4)]
    assert held_out.image.strides[0] == 0  # no copy for each seed


def test_streamed_or_step_by_step_it_is_the_same_training(parts, monkeypatch):
    """In two pieces of an epoch, or four, and a smaller batch at the end."""
    monkeypatch.setattr(_problem, "AT_ONCE", 2)

    def run(stream, step_by_step=False):
        arm = arm_of(parts, _methods.METHODS["famo"], steps=8, held_out=3, stream=stream)
        # So little that what rounding does to the one is not magnified.
        problem = arm.problem._replace(step_by_step=step_by_step)
        arm = arm._replace(problem=problem, settings=[{"learning_rate": 1e-5, "gamma": 1e-3}])
        return arm.data, _epochs.train(arm, None, None, lambda status: None, score=None, last=1)

    data, whole = run(stream=False)
    streamed_data, streamed = run(stream=True)
    assert (data.epoch, streamed_data.epoch, data.at_once) == (4, 4, None)
    assert streamed_data.pool is None
    rows, batch = data.batches(2, 4), streamed_data.batches(2, 4)
    assert [part.shape for part in rows] == [(1, 1, 4), (1, 1, 1)]
    for of_rows, of_batch in zip(rows, batch, strict=True):
        np.testing.assert_array_equal(of_batch.depth, parts[0].depth[of_rows])
    _, alone = run(stream=True, step_by_step=True)
    for name, own in whole.items():
        if name != "shown":  # which class is the greatest hangs on rounding
            np.testing.assert_allclose(streamed[name], own, rtol=2e-3, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(alone[name], own, rtol=2e-3, atol=1e-6, err_msg=name)


# --- The last epochs count ------------------------------------------------------------------------


def test_a_staircase_is_pytorchs():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    ours = _epochs.stairs(3)
    state, scales, expected = ours.init(None), [], []
    for _ in range(10):
        scales.append(float(state.scale))
        expected.append(optimizer.param_groups[0]["lr"])
        _, state = ours.update((), state, value=0.0)
        optimizer.step()
        theirs.step()
    assert scales == expected


def test_metrics_are_means_of_the_last_epochs(whole_run):
    folder, _, _ = whole_run
    with np.load(folder / "runs.npz") as arrays:
        for name in NAMES:
            curve = arrays[f"{name}/validation_curve"]
            assert curve.shape == (1, 1, 2, 18)
            np.testing.assert_allclose(arrays[f"{name}/test"], curve[:, :, -1], rtol=1e-6)
            np.testing.assert_array_equal(arrays[f"{name}/scale"], [[[1, 0.5]]])


# --- What is reported -----------------------------------------------------------------------------


def test_drawings_do_not_stand_beside_the_papers_rows(whole_run):
    _, printed, summary = whole_run
    assert "drawings" in printed
    assert "paper" not in printed.partition("Metrics on test")[2].partition("Δm, and")[0]
    assert not any("paper" in each for each in summary["methods"].values())


def test_it_prints_all_within_80_columns(whole_run, as_if_real):
    printed, summary = as_if_real("nyuv2", whole_run[0])
    assert "…" not in printed
    assert "drawings" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    table = printed.partition("Metrics on test")[2].partition("Δm, and")[0].splitlines()
    for name in NAMES[:3]:
        index = next(i for i, line in enumerate(table) if line.split()[:1] == [name])
        ours = list(summary["methods"][name]["test"].values())
        paper = [float(cell) for cell in table[index + 1].split()[1:]]
        np.testing.assert_allclose([float(cell) for cell in table[index].split()[1:]], ours,
                                   atol=0.0051)  # fmt: skip
        np.testing.assert_allclose(paper, nyuv2.PAPER[name], atol=1e-9)
        higher = [metric.higher_is_better for metric in dense.NYUV2.metrics]
        worse = np.where(higher, -100.0, 100.0) * (np.array(ours) / paper - 1)
        shown = [float(cell) for cell in table[index + 2].split()[2:]]
        np.testing.assert_allclose(shown, worse, atol=0.51)
    assert "over all pixels" in printed
    assert set(summary["methods"]["ls"]["pooled"]) == set(summary["methods"]["ls"]["test"])


def test_delta_m_is_against_the_official_networks(whole_run, as_if_real):
    _, summary = as_if_real("nyuv2", whole_run[0])
    signs = np.array([-1, -1, 1, 1, 1, 1, -1, -1, -1])
    for each in summary["methods"].values():
        changes = signs * (np.array(list(each["test"].values())) / dense.NYUV2.stl - 1)
        assert each["delta_m"]["mean"] == pytest.approx(100 * changes.mean(), rel=1e-4)
    assert summary["methods"]["famo"]["paper_delta_m"] == pytest.approx(-4.10, abs=0.01)


def test_what_networks_tell_of_a_scene_is_shown_beside_what_is_there(whole_run, rooms):
    """The pictures of the figure, read back from it."""
    folder, _, _ = whole_run
    runs = _files.read(None, "nyuv2", [folder])[str(folder)]
    shown = runs.arrays["famo"]["shown"]
    assert shown.shape == (1, 1, dense.SHOWN, 32, 64, 5)
    figure = _scenes.draw(_files.plain(nyuv2.STUDY.summarize(runs)))
    grid = np.reshape(figure.axes, (-1, 8))
    names = [row[0].texts[0].get_text() for row in grid[1:]]
    assert names == ["ls", "si", "famo"]
    image = lambda axes: np.asarray(axes.images[0].get_array())
    own = {field: np.load(rooms / "val" / field / "1.npy") for field in ("image", "depth")}
    np.testing.assert_allclose(image(grid[0, 4]), 255 * np.clip(own["image"], 0, 1), atol=1)
    # Of the second scene, without the normals; the palette's place tells the class.
    palette = _views.colours(_views.ROOMS.palette)
    told = palette[shown[0, 0, 1, ..., 0].astype(int)]
    np.testing.assert_array_equal(image(grid[3, 5]), told)
    for axes, depth in ((grid[0, 6], own["depth"][..., 0]), (grid[3, 6], shown[0, 0, 1, ..., 1])):
        near = matplotlib.colormaps["turbo"](1 - np.clip(depth / 6, 0, 1))[..., :3]
        expected = np.where((depth == 0)[..., None], 0, 255 * near)
        np.testing.assert_allclose(image(axes), expected, atol=1)


def test_single_tasks_networks_tell_each_their_own():
    """Put together, and at the setting that validation chose for each."""
    nothing = np.full((2, 1, 1, 4, 4, 5), np.nan, np.float16)
    semantic, depth, normal = (nothing.copy() for _ in range(3))
    semantic[1, ..., 0], depth[0, ..., 1], normal[1, ..., 2:] = 3, 1.5, [0, 1, 0]
    parts = {"stl-semantic": semantic, "stl-depth": depth, "stl-normal": normal}
    one = np.ones((1, 4, 4))
    truth = {"image": np.zeros((1, 4, 4, 3)), "label": -one, "depth": 0 * one,
             "normal": np.zeros((1, 4, 4, 3))}  # fmt: skip
    arrays = {name: {"shown": own} for name, own in parts.items()} | {"truth": truth}
    summary = {"chosen": {"stl-semantic": 1, "stl-depth": 0, "stl-normal": 1}}
    views = _scenes.told(_views.ROOMS, summary, _files.Runs({}, arrays))["views"]
    assert list(views) == ["truth", "stl"]
    assert not views["truth"].any()  # nothing is known: no class, no depth, no normal
    near = np.array(matplotlib.colormaps["turbo"](0.75)[:3])
    expected = [255 * _views.ROOMS.palette[3], 255 * near, [127, 255, 127]]
    for view, colour in zip(views["stl"][0], expected, strict=True):
        np.testing.assert_allclose(view, np.broadcast_to(colour, (4, 4, 3)), atol=1)


def test_a_network_that_diverged_is_black():
    for bad in (np.nan, np.inf):
        shown = np.full((4, 4, 5), np.nan, np.float16)
        shown[..., 1] = bad
        for view in _views.ROOMS.views(shown[..., 0], shown[..., 1], shown[..., 2:]):
            assert view.dtype == np.uint8
            assert not view.any()


def test_earlier_runs_need_no_data(whole_run, tmp_path, run_study):
    folder, _, _ = whole_run
    run_study("nyuv2", tmp_path, "--from", str(folder))
    assert (tmp_path / "nyuv2.json").read_bytes() == (folder / "nyuv2.json").read_bytes()
    facts = json.loads((folder / _files.STUDY).read_text())["problem"]
    assert (facts["scenes"], facts["size"]) == ([16, 8], [32, 64])


def test_the_papers_rows_are_those_of_its_tables():
    for name, study in {"nyu_v2": nyuv2, "cityscapes": cityscapes}.items():
        rows = TABLES[name]["rows"] + TABLES[name].get("true_rows", "")
        keys = {line.split()[0].lower(): line.split()[1:] for line in rows.strip().splitlines()}
        assert study.PAPER.keys() | {"stl"} == keys.keys()
        for method, own in {**study.PAPER, "stl": study.benchmark().stl}.items():
            assert own == tuple(map(float, keys[method][: len(own)])), method


def test_presets_are_the_official_settings():
    for study, batch_size in ((nyuv2, 2), (cityscapes, 8)):
        assert study.PRESETS["paper"] == {
            "network": "mtan", "width": 64, "levels": 5, "batch_size": batch_size,
            "epochs": 200, "halve_every": 100, "last": 10, "learning_rate": [1e-4], "at_once": 1,
        }  # fmt: skip
        for other in ("small", "tiny"):
            assert study.PRESETS[other].keys() == study.PRESETS["paper"].keys()


def test_without_an_epoch_a_step_of_each_method_is_measured(rooms, tmp_path, run_study):
    """The second pass, whose statistics count, is computed once: a third of a plain step."""
    own = ["--epochs", "0", "--augment", "no", "--data", str(rooms), "--methods", "famo", "mgda"]
    printed, summary = run_study("nyuv2", tmp_path, "--quick", *own)
    assert set(summary["steps"]) == {"ls", "famo", "mgda"}
    cost = {name: each["operations"] for name, each in summary["steps"].items()}
    assert 1.2 < cost["famo"] / cost["ls"] < 1.45
    assert 1.0 < cost["mgda"] / cost["ls"] < 2
    assert all(each["temporary_bytes"] > 0 for each in summary["steps"].values())
    assert "A training step" in printed
    assert max(map(len, printed.splitlines())) <= 80


# --- CityScapes, single-task networks -------------------------------------------------------------


@pytest.fixture(scope="module")
def streets(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("streets")
    make.main(["streets", "--out", str(folder / "data"), "--count", "16", "4", "--size", "32x64"])
    options = ["--data", str(folder / "data"), "--methods", *NAMES, "stl"]
    return folder / "out", *run_study("cityscapes", folder / "out", "--quick", *options)


@pytest.mark.parametrize("name", NAMES)
def test_two_epochs_on_streets_lower_both_losses(streets, name):
    losses = np.array(streets[2]["methods"][name]["losses"])
    assert losses.shape == (2, 2)
    assert (losses[1] < losses[0]).all()


def test_single_task_networks_are_the_baseline_where_they_are_trained(streets):
    """Each tells its own metrics alone."""
    folder, printed, summary = streets
    with np.load(folder / "runs.npz") as arrays:
        semantic, depth = (arrays[f"stl-{task}/test"][0, 0, :4] for task in ("semantic", "depth"))
        ours = arrays["ls/test"][0, 0, :4]
    np.testing.assert_array_equal(np.isfinite(semantic), [True, True, False, False])
    np.testing.assert_array_equal(np.isfinite(depth), [False, False, True, True])
    stl = np.array([*semantic[:2], *depth[2:]])
    np.testing.assert_allclose(list(summary["stl"].values()), stl, rtol=1e-4)
    changes = np.array([-1, -1, 1, 1]) * (ours / stl - 1)
    assert summary["methods"]["ls"]["delta_m"]["mean"] == pytest.approx(
        100 * changes.mean(), rel=1e-3
    )
    assert "Δm is against it" in printed
    assert list(summary["methods"]) == NAMES


def test_of_several_rates_a_task_takes_what_is_best_for_it():
    higher = np.array([True, False])
    first = {"validation": np.array([[[1, np.nan]], [[3, np.nan]], [[2, np.nan]]])}
    other = {"validation": np.array([[[np.nan, 5]], [[np.nan, 4]], [[np.nan, 6]]])}
    parts = [own | {"test": own["validation"] + 10} for own in (first, other)]
    found, settings = _benchmark._single_tasks(parts, higher)
    assert settings == [1, 1]
    np.testing.assert_array_equal(found["validation"], [3, 4])
    np.testing.assert_array_equal(found["test"], [13, 14])


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ([], {}),
        (["--statistics", "first"], {"both_passes": False}),
        (["--inverse-depth", "multiply"], {"inverse_depth": "multiply"}),
        (["--augment", "no"], {"augment": False}),
        (["--held-out", "2"], {"held_out": 2}),
        (["--stream", "yes"], {"stream": True}),
    ],
)
def test_what_is_odd_is_official_by_default_and_has_a_switch(
    given, changed, rooms, tmp_path, monkeypatch
):
    def problem(benchmark, train, test, plan, task=None):
        assert plan == dense.Plan("segnet", 16, 1)._replace(**changed)
        raise PlannedError

    assert dense.Plan() == ("mtan", 64, 5, False, True, "divide", True, 0)
    scenes = dense.NYUV2.load(rooms, "train")
    monkeypatch.setattr(dense, "problem", problem)
    cities = dense.CITYSCAPES._replace(load=lambda data, split: scenes)
    monkeypatch.setattr(dense, "CITYSCAPES", cities)
    with pytest.raises(PlannedError):
        cityscapes.main(["--quick", *given, "--data", str(rooms), "--out", str(tmp_path)])
    options = _command.parse(cityscapes.STUDY, ["--out", str(tmp_path)])
    assert (options.gamma, options.aggregate_at) == ([1e-2], "features")


# --- What is refused ------------------------------------------------------------------------------


def test_what_does_not_fit_ends_in_one_line(rooms, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*expected more than 16 scenes to train on"):
        nyuv2.main(["--quick", "--data", str(rooms), "--held-out", "16", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .*a folder with image, label, depth, normal"):
        nyuv2.main(["--quick", "--data", str(tmp_path), "--out", str(tmp_path)])
