"""A run that is saved with Orbax, stopped, restored and continued ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import famo_jax
from famo_jax import famo, losses_and_grads, task_weights
from famo_jax.experiments import _checkpoint, _files, _train, digits
from tests.methods import chains

K, STEPS = 4, 5  # before the checkpoint, and as many after it
RNG = np.random.default_rng(0)
X = jnp.array(RNG.normal(size=(2 * STEPS, 16, 6)), jnp.float32)
Y = jnp.array(RNG.normal(size=(2 * STEPS, 16, K)) * [0.1, 1, 10, 100], jnp.float32)
ADAM = optax.adam(1e-2)
METHODS = {name: (tx, False) for name, tx in chains(K, ADAM).items()} | {
    "famo two-pass": (optax.chain(ADAM, famo(K, learning_rate=0.1, min_losses=-1.0)), True),
    "famo with a schedule": (
        optax.chain(ADAM, famo(K, learning_rate=optax.linear_schedule(0.1, 0.0, 2 * STEPS))),
        False,
    ),
    "famo, smoothed": (optax.chain(ADAM, famo(K, smoothing=0.9, normalizer=None)), False),
    "MultiSteps": (optax.MultiSteps(optax.chain(ADAM, famo(K)), 2), False),
    "apply_if_finite": (optax.apply_if_finite(optax.chain(ADAM, famo(K)), 3), True),
}


def task_losses(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["kernel"]) @ params["heads"] - y) ** 2, axis=0)


def start(tx):
    params = {"kernel": jnp.full((6, 8), 0.1) + jnp.eye(6, 8), "heads": jnp.full((8, K), 0.1)}
    return params, tx.init(params)


def make_step(tx, two_pass):
    """``(carry, x, y) -> carry``, jitted."""

    def step(carry, x, y):
        params, opt_state = carry
        losses_fn = lambda params: task_losses(params, x, y)
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
        extra = {"losses_fn": losses_fn} if two_pass else {}
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(step)


def run(step, carry, first, last):
    for x, y in zip(X[first:last], Y[first:last], strict=True):
        # Several virtual devices on few cores stall in a collective when many steps are queued.
        carry = jax.block_until_ready(step(carry, x, y))
    return carry


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore(path, like):
    """``like`` tells structure, dtypes and shardings: without it all states come back as dicts."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_bits(name, tmp_path):
    tx, two_pass = METHODS[name]
    step = make_step(tx, two_pass)
    whole = run(step, start(tx), 0, 2 * STEPS)
    save(tmp_path / "checkpoint", run(step, start(tx), 0, STEPS))
    restored = restore(tmp_path / "checkpoint", start(tx))
    continued = run(step, restored, STEPS, 2 * STEPS)
    chex.assert_trees_all_equal_structs(continued, whole)
    chex.assert_trees_all_equal(continued, whole)
    # The restored state mattered: from a fresh one it would have ended elsewhere.
    fresh = run(step, (restored[0], tx.init(restored[0])), STEPS, 2 * STEPS)
    assert np.abs(fresh[0]["kernel"] - whole[0]["kernel"]).max() > 1e-4


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.heads = nnx.Linear(8, K, rngs=rngs)

    def __call__(self, x):
        return self.heads(self.dropout(jnp.tanh(self.hidden(x))))


@nnx.jit
def nnx_step(model, optimizer, x, y):
    def loss_fn(model):
        losses = jnp.mean((model(x) - y) ** 2, axis=0)
        return famo_jax.weighted_loss(losses, optimizer.opt_state), losses

    (_, losses), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads, losses=losses)


def test_the_same_bits_in_flax_nnx(tmp_path):
    """Parameters, optimizer, FAMO and the keys of the dropout."""

    def begin():
        model = Model(nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.chain(ADAM, famo(K)), wrt=nnx.Param)

    def advance(both, first, last):
        for x, y in zip(X[first:last], Y[first:last], strict=True):
            nnx_step(*both, x, y)
        return both

    whole = advance(begin(), 0, 2 * STEPS)
    save(tmp_path / "checkpoint", nnx.to_pure_dict(nnx.state(advance(begin(), 0, STEPS))))
    resumed = begin()
    state = nnx.state(resumed)
    restored = restore(tmp_path / "checkpoint", nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(resumed, state)
    advance(resumed, STEPS, 2 * STEPS)
    expected, actual = (nnx.to_pure_dict(nnx.state(each)) for each in (whole, resumed))
    chex.assert_trees_all_equal(actual, expected)
    assert np.ptp(task_weights(resumed[1].opt_state)) > 0


# --- Onto another sharding ------------------------------------------------------------------------

# The methods that have a state.
MOVED = (
    *("famo", "famo two-pass", "rlw", "dwa", "uw", "amortized_mgda", "pcgrad", "graddrop"),
    "MultiSteps",
)
TWO_DEVICES = """
import importlib.util, pathlib, sys, tempfile
import chex, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

spec = importlib.util.spec_from_file_location("test_resume", sys.argv[1])
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
assert len(jax.devices()) == 2
mesh = Mesh(np.array(jax.devices()), ("devices",))

def placed(leaf):
    "Kernels, and the moments of their optimizer, are split over the devices by columns."
    spec = P(None, "devices") if leaf.ndim == 2 and leaf.shape in ((6, 8), (8, 4)) else P()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[2]))
for index, name in enumerate(test.MOVED):
    tx, two_pass = test.METHODS[name]
    step = test.make_step(tx, two_pass)
    half = test.run(step, test.start(tx), 0, test.STEPS)
    alone = test.run(step, half, test.STEPS, 2 * test.STEPS)
    moved = jax.tree.map(placed, half)
    test.save(folder / str(index), half)
    restored = test.restore(folder / str(index), jax.tree.map(placed, test.start(tx)))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(moved), strict=True):
        assert ours.sharding == theirs.sharding
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(restored))
    chex.assert_trees_all_equal(restored, moved)
    continued, expected = (
        test.run(step, each, test.STEPS, 2 * test.STEPS) for each in (restored, moved)
    )
    chex.assert_trees_all_equal(continued, expected)
    chex.assert_trees_all_close(continued[0], alone[0], rtol=1e-3, atol=1e-5)
    # And back onto one device.
    test.save(folder / f"{index} back", restored)
    chex.assert_trees_all_equal(test.restore(folder / f"{index} back", test.start(tx)), half)
print(len(test.MOVED), "methods")
"""


def test_the_same_bits_on_another_sharding(tmp_path):
    """Saved on one device, restored onto two: as the run that was moved there without a stop."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-W", "error", "-c", TWO_DEVICES, __file__, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip() == f"{len(MOVED)} methods"


# --- The digits, killed ---------------------------------------------------------------------------

ARGUMENTS = "--steps 20 --seeds 1 --batch-size 8 --methods rlw --learning-rate 3e-3 --gamma 1e-3"
KILLS = int(os.environ.get("FAMO_JAX_KILLS", "2"))


def figures(folder):
    """All that ``digits.json`` holds, but for times."""
    report = _files.read_summary(folder / "digits.json")
    columns = report["summary"]["columns"]
    methods = {label: column["methods"] for label, column in columns.items()}
    for method in (each for column in methods.values() for each in column.values()):
        for key in [key for key in method if key.startswith("step_")]:
            del method[key]
    return report["settings"], json.dumps(methods)  # in which NaN is like NaN


def steps_saved(folder):
    """Of all methods together."""
    steps = 0
    for path in folder.glob("*.npz"):
        with np.load(path) as saved:
            steps += int(saved["steps"])
    return steps


def test_the_digits_killed_at_random_moments_end_with_the_same_figures(tmp_path):
    rng = np.random.default_rng()
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-m", "famo_jax.experiments.digits", *ARGUMENTS.split()]
    command += ["--out", f"{tmp_path}/killed", "--checkpoint-dir", str(folder), "--resume"]
    kills = 0
    while True:
        before = steps_saved(folder)
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        # Now and then before anything is saved, else after one save or several, or during one.
        goal = before + rng.integers(0, 10) if kills < KILLS else np.inf
        while process.poll() is None and steps_saved(folder) <= goal:
            assert steps_saved(folder) >= before  # it goes on, and does not start anew
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break
        kills += 1
    assert process.returncode == 0, (tmp_path / "log").read_text()[-2000:]
    assert kills >= min(KILLS, 1)
    # rlw in both units and stl in one, each to choose and to report.
    assert steps_saved(folder) == 6 * 20
    digits.main([*ARGUMENTS.split(), "--out", str(tmp_path / "untouched")])
    assert figures(tmp_path / "killed") == figures(tmp_path / "untouched")


# --- Checkpoints that are not to be had -----------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The folder of a run that was interrupted after its first save."""
    folder = tmp_path / "checkpoints"

    def interrupted(*_):
        _checkpoint.save(folder, "stl", 4, {"params": jnp.arange(999.0), "key": jax.random.key(0)})
        raise KeyboardInterrupt

    monkeypatch.setattr(_train, "train_arms", interrupted)
    with pytest.raises(SystemExit) as stop:
        resume(folder)
    assert stop.value.code == 130  # as a shell counts an interrupt
    monkeypatch.setattr(_train, "train_arms", lambda *_: pytest.fail("it was not refused"))
    return folder


def resume(folder, *more):
    arguments = [*ARGUMENTS.split(), "--out", f"{folder.parent}/out"]
    digits.main([*arguments, "--checkpoint-dir", str(folder), "--resume", *more])


def other_version(folder):
    text = (folder / "study.json").read_text()
    (folder / "study.json").write_text(text.replace(jax.__version__, "0.0.1"))


def change_data(folder, change):
    """Of the file of the checkpoint."""
    path = folder / "stl.npz"
    path.write_bytes(change(path.read_bytes()))


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


BAD = {
    "other settings": (lambda folder: None, "checkpoints with steps 21, got ", "--steps 21"),
    "other version": (other_version, f"expected checkpoints with jax {jax.__version__}, got "),
    "no study": (lambda folder: (folder / "study.json").unlink(), "the checkpoints of one study"),
    "study of another kind": (
        lambda folder: (folder / "study.json").write_text("[1]"),
        "study.json, which is damaged",
    ),
    "study cut off": (
        lambda folder: (folder / "study.json").write_text('{"steps": 20,'),
        "study.json, which is damaged",
    ),
    "another file": (lambda folder: (folder / "thesis.txt").touch(), "/thesis.txt"),
    "a folder in a file's place": (lambda folder: (folder / "rlw.npz").mkdir(), "/rlw.npz"),
    "cut off": (
        lambda folder: change_data(folder, lambda data: data[:-100]),
        "stl.npz, which is damaged",
    ),
    "other content": (
        lambda folder: np.savez(folder / "stl.npz", params=np.zeros(3)),
        "stl.npz, which is damaged",
    ),
    "one bit wrong": (lambda folder: change_data(folder, flip), "stl.npz, which is damaged"),
    "emptied": (lambda folder: change_data(folder, lambda _: b""), "stl.npz, which is damaged"),
}  # fmt: skip


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_kept(name, checkpoints, capsys):
    damage, words, *more = BAD[name]
    damage(checkpoints)
    before = content(checkpoints)
    with pytest.raises(SystemExit) as stop:
        resume(checkpoints, *" ".join(more).split())
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "argument --checkpoint-dir: expected " in printed
    assert words in printed.replace("\n", "")
    assert content(checkpoints) == before


def test_a_folder_in_use_needs_resume_and_resume_a_folder(checkpoints, capsys):
    before = content(checkpoints)
    arguments = [*ARGUMENTS.split(), "--out", f"{checkpoints.parent}/out"]
    for more, words in (
        (["--checkpoint-dir", str(checkpoints)], "expected an empty folder, or --resume to go on"),
        (["--checkpoint-dir", __file__], "argument --checkpoint-dir: expected a folder to write"),
        (["--checkpoint-dir", "/proc/none"], "expected a folder to write to, got /proc/none"),
        (["--resume"], "argument --resume: expected --checkpoint-dir"),
    ):
        with pytest.raises(SystemExit) as stop:
            digits.main([*arguments, *more])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert content(checkpoints) == before


def test_a_resumed_run_counts_what_was_before(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    session = []

    def interrupted(now, _):
        session.append(now)
        _checkpoint.save(folder, "stl", 4, jnp.zeros(3), seconds=1000.0 * len(session))
        raise KeyboardInterrupt

    monkeypatch.setattr(_train, "train_arms", interrupted)
    for _ in range(3):
        with pytest.raises(SystemExit):
            resume(folder)
    elapsed = [time.perf_counter() - each.begun for each in session]
    np.testing.assert_allclose(np.subtract(elapsed, elapsed[0]), [0, 1000, 2000], atol=600)


def test_what_was_not_finished_is_passed_over(checkpoints, monkeypatch):
    """What a process leaves behind that is killed while it writes."""
    (checkpoints / "stl.npz.tmp").touch()
    (checkpoints / "study.json.tmp").touch()
    found = []
    monkeypatch.setattr(
        _train, "train_arms", lambda session, _: found.append(session.saved) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        resume(checkpoints)
    assert found[0]["stl"].steps == 4
    like = {"params": jnp.zeros(999), "key": jax.random.key(1)}
    state = _checkpoint.restore(found[0]["stl"], like)
    np.testing.assert_array_equal(state["params"], np.arange(999.0))
    assert state["key"] == jax.random.key(0)
    _checkpoint.save(checkpoints, "stl", 6, like)
    assert not (checkpoints / "stl.npz.tmp").exists()


@pytest.mark.parametrize("size", [1000, 8192], ids="{} bytes a file".format)
def test_a_full_disk_ends_in_words_and_loses_nothing(
    size, checkpoints, monkeypatch, capfd, limit_files
):
    def save(*_):
        limit_files(size)
        layers = list(jax.random.normal(jax.random.key(0), (9, 999)))
        _checkpoint.save(checkpoints, "stl", 6, {"params": layers})

    before = content(checkpoints)
    monkeypatch.setattr(_train, "train_arms", save)
    with pytest.raises(SystemExit, match=r"^error: no checkpoint could be written to .*stl.npz: "):
        resume(checkpoints)
    assert "Traceback" not in capfd.readouterr().err  # of Orbax's threads, say
    assert content(checkpoints).items() >= before.items()
