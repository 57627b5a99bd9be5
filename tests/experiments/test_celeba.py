"""CelebA's losses and F1, what the paper's figures make of them, and the study as a command."""

import contextlib
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import famo_jax
from famo_jax.experiments import _checkpoint
from famo_jax.experiments import celeba as study
from famo_jax.experiments.make import __main__ as make
from famo_jax.experiments.problems import celeba
from famo_jax.experiments.problems._face_files import Faces
from tests.experiments.steps import PlannedError

# F1 by attribute of FairGrad's authors: github.com/OptMN-Lab/FairGrad, issue 1.
FAIRGRAD = [
    *(0.673481, 0.6715126, 0.80895394, 0.59129095, 0.716146, 0.84868795, 0.5293899, 0.6024346),
    *(0.79252076, 0.8232979, 0.49155608, 0.68601424, 0.6678187, 0.50076723, 0.5353463, 0.9543982),
    *(0.6991702, 0.6246493, 0.87510586, 0.85260683, 0.9679586, 0.91303086, 0.53938675, 0.44097534),
    *(0.9698319, 0.30875763, 0.5560105, 0.5475425, 0.5299987, 0.6050991, 0.72113657, 0.9100189),
    *(0.48792267, 0.6447788, 0.7013081, 0.8596742, 0.92936283, 0.40353844, 0.7261722, 0.9126637),
]


def test_delta_m_of_fairgrads_figures_is_the_papers():
    higher = [task.higher_is_better for task in celeba.TASKS]
    found = float(famo_jax.delta_m(jnp.array(FAIRGRAD), jnp.array(celeba.STL), higher))
    assert found == pytest.approx(0.370, abs=5e-4)
    assert np.mean(celeba.STL) == pytest.approx(0.6971, abs=5e-5)


def test_cross_entropies_are_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    odds = 3 * rng.normal(size=(7, 5)).astype(np.float32)
    true = rng.integers(0, 2, (7, 5)).astype(np.uint8)
    loss = torch.nn.BCELoss(reduction="none")
    expected = loss(torch.sigmoid(torch.from_numpy(odds)), torch.from_numpy(true).float())
    np.testing.assert_allclose(
        celeba.losses_of(jnp.asarray(odds), true), expected.numpy().mean(axis=0), rtol=1e-5
    )


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (11, 64, 64, 3)).astype(np.uint8)
    return Faces(image, rng.integers(0, 2, (11, 40)).astype(np.uint8))


def of(problem, faces, batch_size=4):
    """Parameters and statistics of a seed, and its F1 on the faces."""
    params, state = jax.tree.map(lambda leaf: leaf[0], problem.init([0]))
    held_out = problem.load_data(1, [0], batch_size).test
    own = jax.tree.map(lambda leaf: leaf[0], held_out)
    return params, state, jax.jit(problem.metrics)(params, state, own)


def test_the_way_over_the_features_is_the_same(faces):
    problem = celeba.problem(faces, faces, faces, width=4)
    params, state = jax.tree.map(lambda leaf: leaf[0], problem.init([0]))
    encode, heads = problem.features
    z = jax.jit(encode)(params, state, faces, None)
    assert z.shape == (11, 32)
    losses = jax.jit(heads)(params, z, state, faces, None)
    expected, moved = jax.jit(problem.losses)(params, state, faces, None)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True)
    assert all(np.abs(own - new).max() > 1e-3 for own, new in pairs)


@pytest.mark.parametrize("batch_size", [4, 11])
def test_f1_by_hand(faces, batch_size, monkeypatch):
    """Of a network that says what the first pixel says."""
    monkeypatch.setattr(
        celeba.Network, "__call__", lambda self, images: 20 * images[:, 0, :40, 0] - 10
    )
    problem = celeba.problem(faces, faces, faces, width=4)
    *_, found = of(problem, faces, batch_size)
    predicted, true = faces.image[:, 0, :40, 0] / 255 > 0.5, faces.attributes > 0
    hits = (predicted & true).sum(axis=0)
    expected = 2 * hits / (predicted.sum(axis=0) + true.sum(axis=0))  # the harmonic mean
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_networks_are_evaluated_by_the_statistics_that_are_asked_for(faces, statistics):
    """Those of a batch do not hang on those that were learned."""
    problem = celeba.problem(faces, faces, faces, width=4, statistics=statistics)
    params, learned, _ = of(problem, faces)
    losses, metrics = jax.jit(problem.losses), jax.jit(problem.metrics)
    for _ in range(20):
        _, learned = losses(params, learned, faces, None)
    held_out = lambda size: problem.load_data(1, [0], size).test
    of_seed = lambda size: jax.tree.map(lambda leaf: leaf[0], held_out(size))
    found, together = (metrics(params, learned, of_seed(size)) for size in (4, 11))
    moved = jax.tree.map(lambda leaf: leaf + 1, learned)
    again = metrics(params, moved, of_seed(4))
    same = [np.array_equal(found, other) for other in (again, together)]
    # Another batch has other statistics of its own; those that were learned are one for all.
    assert same == ([False, True] if statistics == "running" else [True, False])


def test_faces_may_come_a_few_steps_at_a_time(faces):
    data = celeba.problem(faces, faces, faces, width=4).load_data(6, [0, 1], 4)
    streamed = celeba.problem(faces, faces, faces, width=4, stream=True).load_data(6, [0, 1], 4)
    assert streamed.pool is None
    assert (streamed.epoch, streamed.at_once) == (data.epoch, 16)
    for rows, own in zip(data.batches(0, 3), streamed.batches(0, 3), strict=True):
        np.testing.assert_array_equal(own.image, faces.image[rows])
        np.testing.assert_array_equal(own.attributes, faces.attributes[rows])


def test_a_network_of_one_attribute_tells_nothing_of_the_others(faces):
    problem = celeba.problem(faces, faces, faces, width=4, task="Smiling")
    params, state, found = of(problem, faces)
    assert [task.name for task in problem.tasks] == ["Smiling"]
    assert np.isfinite(np.asarray(found)).sum() == 1
    assert np.isfinite(found[celeba._face_files.NAMES.index("Smiling")])
    losses, _ = jax.jit(problem.losses)(params, state, faces, None)
    assert losses.shape == (1,)


# --- The study ------------------------------------------------------------------------------------

TABLE = tomllib.loads((Path(__file__).parents[1] / "data" / "paper_tables.toml").read_text())


SIZES = ["--quick", "--width", "16", "--batch-size", "8"]


@contextlib.contextmanager
def one_level(cache):
    """Of convolutions, not four; and a folder for what is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(celeba, "FILTERS", celeba.FILTERS[:1])
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture
def small(tmp_path):
    with one_level(tmp_path / "cache"):
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    make.main(["faces", "--out", str(folder), "--count", "256", "16", "16"])
    return ["--data", str(folder)]


@pytest.fixture(scope="module")
def whole_run(drawn, tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("celeba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return folder, *run_study("celeba", folder / "out", "--quick", *drawn)


@pytest.mark.parametrize("name", ["ls", "si", "famo", "famo-one-pass"])
def test_two_epochs_lower_every_loss(whole_run, name):
    losses = np.array(whole_run[2]["methods"][name]["losses"])
    assert losses.shape == (2, 40)
    assert (losses[1] < losses[0]).all()


def test_the_best_epoch_is_that_of_the_greatest_mean_f1(whole_run):
    folder, _, summary = whole_run
    with np.load(folder / "out" / "runs.npz") as arrays:
        for name, each in summary["methods"].items():
            curve = arrays[f"{name}/validation_curve"][0, 0]
            assert curve.shape == (2, 40)
            best = curve.mean(axis=1).max()
            assert each["best_epoch"] == [1 + np.flatnonzero(curve.mean(axis=1) == best)[-1]]
            np.testing.assert_allclose(arrays[f"{name}/validation"][0, 0].mean(), best, rtol=1e-5)


@pytest.fixture
def two(small, monkeypatch):
    """The first two attributes alone."""
    for name in ("TASKS", "STL"):
        monkeypatch.setattr(celeba, name, getattr(celeba, name)[:2])


def test_networks_of_one_attribute_are_tested_at_their_own_best_epoch(
    two, drawn, tmp_path, run_study, monkeypatch
):
    """Also where the run was killed after an epoch and resumed."""
    options = [*SIZES, *drawn, "--methods", "ls", "stl", "--epochs", "3"]
    _, summary = run_study("celeba", tmp_path / "whole", *options)
    names = [f"stl-{task.name}" for task in celeba.TASKS]
    with np.load(tmp_path / "whole" / "runs.npz") as arrays:
        whole = dict(arrays)
    for index, name in enumerate(names):
        curve = whole[f"{name}/validation_curve"][0, 0]
        assert np.isfinite(curve).sum(axis=0).tolist() == [3 * (index == i) for i in range(2)]
        best = np.flatnonzero(curve[:, index] == curve[:, index].max())[-1]
        assert whole[f"{name}/best_epoch"][0, 0] == 1 + best
        assert whole[f"{name}/validation"][0, 0, index] == pytest.approx(curve[best, index])
        of_test = whole[f"{name}/test"][0, 0, index]
        assert summary["stl"][celeba.TASKS[index].name] == pytest.approx(of_test, rel=1e-4)

    save = _checkpoint.save

    def then_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    options += ["--checkpoint-dir", str(tmp_path / "saved")]
    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint, "save", then_stop)
        with pytest.raises(SystemExit):
            run_study("celeba", tmp_path / "again", *options)
    run_study("celeba", tmp_path / "again", *options, "--resume")
    with np.load(tmp_path / "again" / "runs.npz") as arrays:
        assert arrays.keys() == whole.keys()
        for name in arrays:
            np.testing.assert_array_equal(arrays[name], whole[name], err_msg=name)


def test_the_last_epoch_may_be_tested_instead(two, drawn, tmp_path, run_study):
    options = [*SIZES, *drawn, "--methods", "ls", "--tested", "last"]
    printed, summary = run_study("celeba", tmp_path, *options)
    with np.load(tmp_path / "runs.npz") as arrays:
        curve = arrays["ls/validation_curve"][0, 0]
        np.testing.assert_array_equal(arrays["ls/validation"][0, 0], curve[-1])
        assert not np.array_equal(arrays["ls/test"], arrays["ls/validation"])
    assert summary["methods"]["ls"]["best_epoch"] == [2]
    assert "tested last" in printed


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ([], {}),
        (["--statistics", "first"], {"both_passes": False}),
        (["--stl-statistics", "running"], {"statistics": "running"}),
        (["--stream", "yes"], {"stream": True}),
        (["--aggregate-at", "parameters"], {"place": "parameters"}),
    ],
)
def test_what_is_odd_is_official_by_default_and_has_a_switch(
    given, changed, drawn, small, tmp_path, monkeypatch
):
    own = celeba.problem
    calls = []

    def problem(*parts, **how):
        calls.append(how)
        return own(*parts, **how)

    def train(options, session, problem, *arguments, of_task, **more):
        of_task("Smiling")
        calls.append(calls.pop() | {"place": problem.place})
        raise PlannedError

    monkeypatch.setattr(celeba, "problem", problem)
    monkeypatch.setattr(study._benchmark, "train", train)
    with pytest.raises(PlannedError):
        study.main([*SIZES, *drawn, *given, "--out", str(tmp_path)])
    official = {"both_passes": True, "statistics": "batch", "stream": False, "place": "features"}
    assert calls[-1] == official | changed | {"width": 16, "task": "Smiling"}


def test_forty_tasks_are_told_by_their_spread(whole_run, as_if_real):
    _, drawn, of_drawings = whole_run
    assert "drawings" in drawn
    assert "paper_delta_m" not in of_drawings["methods"]["famo"]
    printed, summary = as_if_real("celeba", whole_run[0] / "out")
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    table = printed.partition("F1 on test")[2].partition("Δm, and")[0].splitlines()
    row = next(line.split() for line in table if line.split()[:1] == ["famo"])
    values = np.array(list(summary["methods"]["famo"]["test"].values()))
    changes = 100 * (1 - values / celeba.STL)
    assert float(row[1]) == pytest.approx(values.mean(), abs=1e-4)
    assert float(row[2]) == pytest.approx(changes.max(), abs=0.1)
    assert row[3] in [celeba.TASKS[i].name for i in np.flatnonzero(changes == changes.max())]
    assert int(row[4]) == (changes < 0).sum()
    assert summary["methods"]["famo"]["delta_m"]["mean"] == pytest.approx(changes.mean(), rel=1e-4)
    assert summary["methods"]["famo"]["paper_delta_m"] == 1.21


def test_the_papers_delta_m_stands_the_right_way_round():
    rows = [line.split() for line in TABLE["celeba"]["rows"].strip().splitlines()]
    assert {name.lower(): float(delta_m) for name, delta_m, _ in rows} == study.PAPER
    assert all(1 <= float(rank) <= 12 for _, _, rank in rows)  # of twelve methods


def test_presets_are_the_official_settings():
    paper = study.PRESETS["paper"]
    official = {"width": 64, "batch_size": 256, "epochs": 15, "learning_rate": [3e-4]}
    assert paper == official | {"at_once": 1}
    assert study.PRESETS["tiny"].keys() == paper.keys()


@pytest.mark.parametrize("batch_size", ["255", "1"])
def test_a_face_alone_in_the_last_batch_is_refused(batch_size, drawn, small, tmp_path):
    expected = r"^error: .* expected a batch size by which none of the 256 faces is alone"
    with pytest.raises(SystemExit, match=expected):
        study.main(["--quick", "--batch-size", batch_size, *drawn, "--out", str(tmp_path)])


def test_one_of_validation_may_be_alone_but_for_batch_statistics(tmp_path, monkeypatch):
    faces = Faces(np.zeros((10, 64, 64, 3), np.uint8), np.zeros((10, 40), np.uint8))
    parts = {"train": faces, "val": Faces(*(leaf[:9] for leaf in faces)), "test": faces}
    monkeypatch.setattr(celeba._face_files, "load_celeba", lambda data, split: parts[split])
    monkeypatch.setattr(celeba._face_files, "SPLITS", tuple(parts))

    def train(*arguments, **more):
        raise PlannedError

    monkeypatch.setattr(study._benchmark, "train", train)
    options = ["--quick", "--batch-size", "8", "--methods", "ls", "stl", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="none of the 9 faces is alone"):
        study.main(options)
    with pytest.raises(PlannedError):
        study.main([*options, "--stl-statistics", "running"])
