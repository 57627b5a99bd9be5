"""The cost study: what is compared is what it says, and its files are complete."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax.experiments import cost


def test_the_steps_share_one_problem():
    """One forward pass of each gives the same losses; what differs is what is done with them."""
    calls = cost.make_calls(num_tasks=3, width=4, batch_size=5)
    outputs = {name: compiled(*arguments) for name, (compiled, arguments) in calls.items()}
    for _, _, losses in outputs.values():
        np.testing.assert_allclose(losses, outputs["forward"][2], rtol=1e-6)
    logits = {name: outputs[name][1][1].logits for name in ("one-pass", "two-pass")}
    assert np.ptp(logits["one-pass"]) == 0  # its first update only remembers
    assert np.ptp(logits["two-pass"]) > 0


def test_task_losses_by_hand():
    params = [{"kernel": jnp.eye(2), "bias": jnp.zeros(2)}] * 3
    x, y = jnp.array([[1.0, -2.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0], [3.0, 2.0]])
    # relu: [1, 0], [3, 4]; errors: [1, -1], [0, 2]
    np.testing.assert_allclose(cost.task_losses(params, (x, y)), [0.5, 2.5])


def test_command_line(tmp_path, capsys):
    cost.main(
        ["--tasks", "2", "5", "--width", "4", "--rounds", "3", "--out", str(tmp_path / "new")]
    )
    report = json.loads((tmp_path / "new" / "cost.json").read_text())
    assert report["settings"]["tasks"] == [2, 5]
    assert report["environment"]["jax"] == jax.__version__
    assert [result["num_tasks"] for result in report["results"]] == [2, 5]
    for result in report["results"]:
        assert set(result["seconds"]) == {"plain", "one-pass", "two-pass", "forward"}
        for figures in (*result["seconds"].values(), *result["ratios"].values()):
            assert len(figures) == 3
            assert all(figure > 0 for figure in figures)
        assert all(size >= 0 for size in result["temporary_bytes"].values())
    assert (tmp_path / "new" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert "two-pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "0"], "argument --tasks: expected a positive integer, got '0'"),
        (["--tasks", "2", "2"], "argument --tasks: expected each value once, got 2 twice"),
        (["--width", "x"], "argument --width: expected a positive integer, got 'x'"),
        (["--rounds", "1"], "argument --rounds: expected at least 2, got 1"),
        (["--batch-size", "-1"], "argument --batch-size: expected a positive integer, got '-1'"),
        (["--out", __file__], "argument --out: expected a folder to write to"),
    ],
)
def test_bad_options(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cost.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
