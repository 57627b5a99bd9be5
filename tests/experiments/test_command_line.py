"""What is wrong on the command line is said in words, before the work: no traceback."""

import importlib.util
import io
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from famo_jax import experiments
from famo_jax.experiments import _command, digits

DATA = Path(__file__).parents[1] / "data"
TRAJECTORIES = DATA / "toy_trajectories.npz"
PROGRAMS = [
    module.name
    for module in pkgutil.iter_modules(experiments.__path__)
    if not module.ispkg and not module.name.startswith("_")
    # Its data need not be installed: in test_qm9.py.
    if module.name != "qm9"
]

# Of any experiment: an option that is wrong, and words of what is said of it.
COMMON = [
    ("--out {file}", "argument --out: expected a folder to write to, got "),
    ("--out {file}/below", "argument --out: expected a folder to write to, got "),
    ("--out /proc/none", "argument --out: expected a folder to write to, got /proc/none"),
    ("--out", "argument --out: expected one argument"),
    ("--colour", "unrecognized arguments: --colour"),
    ("--quic", "unrecognized arguments: --quic"),
    ("--quick x", "unrecognized arguments: "),
    ("--quick=x", "argument --quick: ignored explicit argument 'x'"),
    ("everything", "unrecognized arguments: everything"),
    ("--from {file}", "argument --from: expected a folder with runs.npz and study.json, got "),
]

SCENES = [
    ("--preset large", "--preset: expected any of paper, small, tiny, got 'large'"),
    ("--methods adam", "--methods: expected any of stl, ls, si, frozen"),
    ("--network vgg", "--network: expected any of mtan, segnet, got 'vgg'"),
    ("--statistics second", "--statistics: expected any of both, first, got 'second'"),
    ("--augment maybe", "--augment: expected any of yes, no, got 'maybe'"),
    ("--last 0", "--last: expected a positive integer, got '0'"),
    ("--held-out -1", "--held-out: expected a whole number, got '-1'"),
    ("--levels 6", "--levels: expected at most 5, got 6"),
    ("--stream maybe", "--stream: expected any of no, yes, got 'maybe'"),
]

# Of each experiment: an option that is wrong, and words of what is said of it.
OPTIONS = {
    "nyuv2": [*SCENES, ("--inverse-depth divide", "unrecognized arguments: --inverse-depth")],
    "cityscapes": [*SCENES, ("--inverse-depth keep", "expected any of divide, multiply")],
    "celeba": [
        ("--preset large", "--preset: expected any of paper, tiny, got 'large'"),
        ("--stl-statistics none", "--stl-statistics: expected any of batch, running"),
        ("--aggregate-at heads", "--aggregate-at: expected any of features, parameters"),
    ],
    "digits": [
        ("--steps 0", "--steps: expected a positive integer, got '0'"),
        ("--steps -3", "--steps: expected a positive integer, got '-3'"),
        ("--steps 1.5", "--steps: expected a positive integer, got '1.5'"),
        ("--seeds 0", "--seeds: expected a positive integer, got '0'"),
        ("--seeds five", "--seeds: expected a positive integer, got 'five'"),
        ("--batch-size 0", "--batch-size: expected a positive integer, got '0'"),
        ("--steps 1000000000", "--steps: expected steps x seeds x batch size of at most"),
        ("--methods famo adam", "--methods: expected any of all, stl, ls, si, frozen"),
        ("--methods famo adam", "got 'adam'"),
        ("--aggregate-at heads", "--aggregate-at: expected any of parameters, last-layer, feat"),
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
        ("--step 3", "unrecognized arguments: --step 3"),
    ],
    "toy": [
        ("--steps 0", "--steps: expected a positive integer, got '0'"),
        ("--methods sgd", "--methods: expected any of adam, famo"),
        ("--methods si si", "--methods: expected each value once, got si twice"),
        ("--starts mine", "--starts: expected any of official, paper, got 'mine'"),
        ("--sign 0", "--sign: expected any of plus, minus, got '0'"),
        ("--reference nowhere.npz", "--reference: expected trajectories, got "),
        (f"--reference {__file__}", "--reference: expected trajectories, got "),
        (f"--reference {DATA}/famo_sequences.npz", "famo_sequences.npz, which holds none"),
        (f"--reference {TRAJECTORIES} --sign minus", "expected the official starts and sign"),
        (f"--reference {TRAJECTORIES} --starts paper", "expected the official starts and sign"),
    ],
    "cost": [
        ("--tasks 0", "--tasks: expected a positive integer, got '0'"),
        ("--tasks 2 2", "--tasks: expected each value once, got 2 twice"),
        ("--methods stl", "--methods: expected any of ls, si"),
        ("--rounds 1", "--rounds: expected at least 2, got 1"),
        ("--most 0", "--most: expected a positive integer, got '0'"),
    ],
    "gamma": [
        ("--steps 0", "expected a positive integer, got '0'"),
        ("--gamma -1", "expected a finite number of at least 0"),
        ("--logits-rate 0", "expected a finite number above 0, got '0'"),
        ("--tasks two", "expected a positive integer, got 'two'"),
        ("--gamma 0.1 0.10", "expected each value once"),
        ("--batch-size 1000000", "held in memory"),
    ],
    "gram": [
        ("--problems waves", "--problems: expected any of digits, molecules, standardised"),
        ("--methods pcgrad", "--methods: expected any of mgda, cagrad, nash-mtl, imtl-g"),
        ("--every 0", "--every: expected a positive integer, got '0'"),
        ("--every 5 5", "--every: expected each value once, got 5 twice"),
        ("--rounds 1", "--rounds: expected at least 2, got 1"),
        ("--learning-rate 0", "--learning-rate: expected a finite number above 0, got '0'"),
        ("--steps 100000000", "held in memory"),
        ("--resume", "unrecognized arguments: --resume"),
    ],
    "regression": [
        ("--steps 0", "--steps: expected a positive integer, got '0'"),
        ("--methods adam", "--methods: expected any of all, stl, ls, si, frozen"),
        ("--gamma -1", "--gamma: expected a finite number of at least 0, got '-1'"),
    ],
    "attributes": [
        ("--seeds 0", "--seeds: expected a positive integer, got '0'"),
        ("--methods ls adam", "--methods: expected any of all, stl, ls, si, frozen"),
        ("--learning-rate 0", "--learning-rate: expected a finite number above 0, got '0'"),
    ],
    "amortize": [
        ("--steps 1000000", "--steps: expected steps x seeds x batch size of at most"),
        ("--gamma 0 1", "--gamma: expected as many values as of --logits-rate, 5, got 2"),
        ("--batch-size 8 8", "--batch-size: expected each value once, got 8 twice"),
        ("--logits-rate 0", "--logits-rate: expected a finite number above 0, got '0'"),
    ],
    "conflicts": [
        ("--gamma 0 1", "--gamma: expected as many values as of --logits-rate, 3, got 2"),
        ("--first-seed 995", "--seeds: expected seeds below 1000, which are those that choose"),
        ("--methods adam", "--methods: expected any of all, stl, ls, si, frozen"),
        ("--logits-rate 0", "--logits-rate: expected a finite number above 0, got '0'"),
    ],
    "regret": [
        ("--runs nowhere", "--runs: expected nowhere/digits.json, which python -m famo_jax.exp"),
        ("--studies toy", "--studies: expected any of digits, regression"),
    ],
    "imitation": [
        ("--tasks reach fly", "--tasks: expected any of reach, push, pick-place"),
        ("--tasks reach reach", "--tasks: expected each value once, got reach twice"),
        ("--goals 51", "--goals: expected at most 50, got 51"),
        ("--demonstrations 51", "--demonstrations: expected at most 50, got 51"),
        ("--steps 100000", "--steps: expected steps x seeds x batch size of at most"),
        ("--methods adam", "--methods: expected any of all, stl, ls, si, frozen"),
    ],
    "mt10": [
        ("--tasks reach fly", "--tasks: expected any of reach, push, pick-place"),
        ("--network mlp", "--network: expected any of mtsac, multi-head, soft-modularization"),
        ("--preset big", "--preset: expected any of small, paper, got 'big'"),
        ("--methods stl", "--methods: expected any of ls, si"),
        ("--goals 51", "--goals: expected at most 50, got 51"),
        ("--episodes 2", "--episodes: expected at most --goals, 1, got 2"),
        ("--logits-rate 0", "--logits-rate: expected a finite number above 0, got '0'"),
        ("--horizon 501", "--horizon: expected at most 500, got 501"),
        ("--horizon 155", "--horizon: expected a multiple of --call, 10, got 155"),
        ("--random-steps 5", "--random-steps: expected a multiple of --call, 10, got 5"),
        ("--steps 500", "--steps: expected whole evaluations, a multiple of --horizon times"),
        ("--buffer 9", "--buffer: expected at least --call, got 9"),
        ("--network soft-modularization --identity untold", "--identity: expected told"),
        ("--least-log-std 2", "--least-log-std: expected less than 2, got 2.0"),
        ("--scope actor", "--scope: expected any of critics, both, got 'actor'"),
        ("--scope both --rewards v1", "--rewards: expected v2 for --scope both, got v1"),
    ],
    "pinn": [
        ("--steps 0", "--steps: expected a positive integer, got '0'"),
        ("--seeds 1.5", "--seeds: expected a positive integer, got '1.5'"),
        ("--tuning-seeds none", "--tuning-seeds: expected a positive integer, got 'none'"),
        ("--problems heat", "--problems: expected any of burgers, helmholtz"),
        ("--methods famo adam", "got 'adam'"),
        ("--methods ls si ls", "--methods: expected each value once, got ls twice"),
        ("--learning-rate 0", "--learning-rate: expected a finite number above 0, got '0'"),
        ("--gamma -1", "--gamma: expected a finite number of at least 0, got '-1'"),
        ("--weight inf", "--weight: expected a finite number above 0, got 'inf'"),
        ("--weight 1 10 1e1", "--weight: expected each value once, got 10.0 twice"),
        ("--step 50", "unrecognized arguments: --step 50"),
    ],
    "passes": [
        ("--steps 1000000000", "--steps: expected steps x seeds x batch size of at most"),
        ("--seeds 0", "--seeds: expected a positive integer, got '0'"),
        ("--batch-size 8 8", "--batch-size: expected each value once, got 8 twice"),
        ("--problems toy", "--problems: expected any of regression, digits, attributes"),
        ("--learning-rate 0", "--learning-rate: expected a finite number above 0, got '0'"),
        ("--gamma -1", "--gamma: expected a finite number of at least 0, got '-1'"),
    ],
    "normalizer": [
        ("--steps 0", "--steps: expected a positive integer, got '0'"),
        ("--seeds x", "--seeds: expected a positive integer, got 'x'"),
        ("--nearness -1", "--nearness: expected a finite number of at least 0, got '-1'"),
        ("--nearness 1 1", "--nearness: expected each value once, got 1.0 twice"),
        ("--optimizers adamw", "--optimizers: expected any of sgd, adam"),
        ("--optimizers sgd sgd", "--optimizers: expected each value once, got sgd twice"),
    ],
}


def refused(name, arguments, capsys):
    """What an experiment says of bad arguments."""
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"famo_jax.experiments.{name}").main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"usage: python -m famo_jax.experiments.{name}")
    assert "Traceback" not in printed.err
    assert not printed.out
    return " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [(name, *each) for name in PROGRAMS for each in (*COMMON, *OPTIONS[name])],
)
def test_a_bad_option(name, arguments, words, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = arguments.format(file=tmp_path / "file").split()
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path)]
    assert words in refused(name, arguments, capsys)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("ending", ["png", "json"])
def test_a_folder_in_the_place_of_a_result(name, ending, tmp_path, capsys):
    (tmp_path / f"{name}.{ending}").mkdir()
    printed = refused(name, ["--quick", "--out", str(tmp_path)], capsys)
    words = f"argument --out: expected {tmp_path}/{name}.{ending} to be a file, got a folder"
    assert words in printed


def test_a_full_disk_ends_in_words_after_the_table(tmp_path, capsys, limit_files):
    limit_files(8192)
    sizes = "--methods ls --steps 2 --seeds 2 --batch-size 2 --learning-rate 0.01"
    with pytest.raises(SystemExit, match=r"^error: \[Errno \d+\] File too large$"):
        digits.main([*sizes.split(), "--out", str(tmp_path)])
    assert "Mean over 2 seeds" in capsys.readouterr().out


def test_too_little_memory_ends_in_words():
    @_command.ends_in_words
    def main(message):
        raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(SystemExit, match=r"^error: too little memory .*RESOURCE_EXHAUSTED: Out of"):
        main("RESOURCE_EXHAUSTED: Out of memory")
    with pytest.raises(jax.errors.JaxRuntimeError):
        main("INTERNAL: a fault of ours keeps its traceback")


def test_a_terminal_without_a_delta_gets_question_marks(monkeypatch):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    _command.ends_in_words(lambda: print("Δm"))()
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"?m\n"


@pytest.mark.parametrize("platform", ["none", "cuda"])
def test_no_device(platform, tmp_path):
    plugins = [f"jax_cuda{version}_plugin" for version in (12, 13)]
    if platform == "cuda" and any(map(importlib.util.find_spec, plugins)):
        pytest.skip("there may be one")
    sizes = "--methods ls --steps 2 --seeds 2 --batch-size 2 --learning-rate 0.01"
    ran = subprocess.run(
        [sys.executable, "-m", "famo_jax.experiments.digits", *sizes.split(), "--out", tmp_path],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    words = f"error: JAX finds no device for JAX_PLATFORMS='{platform}'."
    assert ran.stderr.splitlines()[-1].startswith(words)
    assert "Traceback" not in ran.stderr


def test_a_reader_that_has_gone():
    endless = "[print(_) for _ in iter(int, 1)]"
    program = (
        f"from famo_jax.experiments import _command\n_command.ends_in_words(lambda: {endless})()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.read(1) == b"0"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_as_the_shell_sees_it():
    command = [sys.executable, "-m", "famo_jax.experiments.digits", "--steps", "none"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].endswith(
        "error: argument --steps: expected a positive integer, got 'none'"
    )
    assert "Traceback" not in ran.stderr
    assert not ran.stdout
