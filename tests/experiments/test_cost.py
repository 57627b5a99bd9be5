"""The cost study: what is compared is what it says, its figures, its table and picture."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import famo
from famo_jax.experiments import _methods, _tables, _train, cost

K = 3
AGGREGATION = [name for name in cost.TIMED if _methods.METHODS[name].aggregates]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(cost, "SIZES", (4, 8, 5))
    monkeypatch.setattr(cost, "BATCH_SIZE", 6)


def test_every_method_of_the_table_that_costs_something_else():
    forms = {"famo", "famo-one-pass", "famo-ema"}
    assert forms < set(cost.TIMED)
    others = {name for name, each in _methods.METHODS.items() if not each.control}
    assert others - set(cost.TIMED) == {"stl", "frozen", "frozen-no-c"}
    assert len(AGGREGATION) >= 17


def test_task_losses_by_hand():
    params = [{"kernel": jnp.eye(2), "bias": jnp.zeros(2)}] * 3
    x, y = jnp.array([[1.0, -2.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0], [3.0, 2.0]])
    # relu: [1, 0], [3, 4]; errors: [1, -1], [0, 2]
    np.testing.assert_allclose(cost.task_losses(params, (x, y)), [0.5, 2.5])


def stepped(name, steps=1):
    """What a step of each leaves behind: parameters, state, losses."""
    params, batch = cost.make_problem(K)
    step, tx = cost.make_step(name, K)
    outputs = params, tx.init(params), None
    for _ in range(steps):
        outputs = jax.jit(step)(*outputs[:2], batch)
    return outputs


def test_plain_is_ls_and_so_is_carry():
    expected, _, losses = stepped("plain", 3)
    for name in ("ls", "carry"):
        own, _, seen = stepped(name, 3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), own, expected)
        np.testing.assert_allclose(seen, losses, rtol=1e-5)
    _, (_, handed), _ = stepped("carry", 3)  # FAMO's state, through and untouched
    jax.tree.map(np.testing.assert_array_equal, handed, famo(K).init(None))
    kept, _, at_start = stepped("forward", 3)
    jax.tree.map(np.testing.assert_array_equal, kept, cost.make_problem(K)[0])
    np.testing.assert_allclose(at_start, stepped("plain", 1)[2], rtol=1e-6)


@pytest.mark.parametrize("name", cost.TIMED)
def test_a_step_of_every_method_sees_the_same_losses(name):
    np.testing.assert_allclose(stepped(name)[2], stepped("forward")[2], rtol=1e-5)


def test_one_pass_remembers_and_two_pass_looks_again():
    assert np.ptp(stepped("famo-one-pass")[1][1].logits) == 0  # its first update only remembers
    assert np.ptp(stepped("famo")[1][1].logits) > 0


def test_at_the_features_the_whole_network_learns_and_less_is_computed():
    before, _ = cost.make_problem(K)
    params, *_ = stepped("mgda" + cost.AT_FEATURES)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, before)
    assert min(jax.tree.leaves(moved)) > 1e-4
    params, batch = cost.make_problem(16)
    flops = {
        name: cost.compile_step(name, 16, params, batch).cost_analysis()["flops"]
        for name in ("mgda", "mgda" + cost.AT_FEATURES)
    }
    assert 2 * flops["mgda z"] < flops["mgda"]


def test_what_has_no_form_at_features_is_left_out():
    params, batch = cost.make_problem(K)
    compiled = {name: cost.compile_step(name + " z", K, params, batch) for name in AGGREGATION}
    assert {name for name, own in compiled.items() if own is None} == {
        "db-mtl", "moco", "excess-mtl"  # which remember the gradients of the parameters
    }  # fmt: skip


SECONDS = {"plain": 1.0, "forward": 0.3, "ls": 1.0, "famo": 1.4, "mgda": 5.0, "mgda z": 1.5}


def test_figures_of_known_times(monkeypatch):
    memory = {"plain": 1000, "mgda": 9000}

    def compile_step(name, **_):
        analysis = SimpleNamespace(temp_size_in_bytes=memory.get(name, 2000))
        step = lambda *carry: (*carry[:2], jnp.ones(K))
        step.memory_analysis = lambda: analysis
        return step

    monkeypatch.setattr(cost, "compile_step", compile_step)
    monkeypatch.setattr(
        _train,
        "interleaved_seconds",
        lambda calls, rounds: {name: [SECONDS[name], 2 * SECONDS[name]] for name in calls},
    )
    figures = cost.measure(K, list(SECONDS), rounds=2)
    for name, seconds in SECONDS.items():
        assert figures[name]["time"]["median"] == pytest.approx(seconds)  # within a round
        assert figures[name]["milliseconds"] == pytest.approx(1500 * seconds)
        assert figures[name]["memory"] == memory.get(name, 2000) / 1000
    more = {name: own for name, own in figures.items() if "mgda" not in name}
    summary = {"tasks": {"3": figures, "1000": more}}
    table = _tables.text(cost.tables(summary)).splitlines()
    rows = {line.partition("  ")[0]: line.split() for line in table}
    assert rows["mgda z"][2:] == ["1.50", "2.00", "3"]
    assert rows["famo"][1:] == ["1.40", "1.40", "2.00", "1,000"]
    times, space = cost.draw(summary).get_axes()
    for axes, key in ((times, lambda each: each["time"]["median"]), (space, lambda e: e["memory"])):
        ends = {text.get_text() for text in axes.texts}
        assert ends == {"other weighting", "aggregation", "at features", "famo"}
        (line,) = (line for line in axes.get_lines() if len(line.get_xdata()) == 2 and
                   line.get_color() == _methods.METHODS["famo"].colour)  # fmt: skip
        np.testing.assert_allclose(line.get_ydata(), 2 * [key(figures["famo"])])


def test_quick(tmp_path, run_study):
    printed, summary = run_study("cost", tmp_path / "new", "--quick", "--rounds", "3")
    assert list(summary["tasks"]) == ["2", "10"]
    names = {*cost.YARDSTICKS, "ls", "famo", "famo-one-pass", "mgda", "mgda z"}
    for figures in summary["tasks"].values():
        assert set(figures) == names
        assert all(each["time"]["median"] > 0 and each["memory"] > 0 for each in figures.values())
        assert figures["plain"]["time"]["median"] == 1
    assert (tmp_path / "new" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert max(map(len, printed.splitlines())) <= 80


def test_with_more_tasks_aggregation_is_left_out(tmp_path, run_study):
    arguments = ["--quick", "--rounds", "2", "--most", "5", "--tasks", "2", "7"]
    _, summary = run_study("cost", tmp_path, *arguments)
    assert set(summary["tasks"]["2"]) - set(summary["tasks"]["7"]) == {"mgda", "mgda z"}
