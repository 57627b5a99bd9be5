"""The cost study: what is compared is what it says, stops are results, its files are complete."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import aggregation, weighting
from famo_jax.experiments import cost

TINY = {
    "mlp": cost.Network("", (3,), ((3, 4), (4, 2)), 5),
    "conv": cost.Network("", (4, 4, 2), ((3, 3, 2, 3), (12, 4)), 5),
}


def test_every_method_of_the_library():
    offered = {
        name.replace("_", "-")
        for name in (*weighting.__all__, *aggregation.__all__)
        if name.islower() and not name.endswith("_weights")
    }
    ours = set(cost.METHODS) - {"famo-one-pass", "famo-two-pass"}
    # A network for each task; what stands around another method; what is not timed here.
    assert offered - ours == {
        *("stl", "log-losses", "periodic"),
        *("first-loss", "imtl-l", "upgrad", "dualproj", "fairgrad", "aligned-mtl", "config"),
        *("ntkmtl", "gradvac", "gradnorm", "db-mtl", "moco", "excess-mtl"),
    }
    assert ours < offered
    assert set(cost.PEERS) < set(cost.METHODS)


def test_task_losses_by_hand():
    params = [{"kernel": jnp.eye(2), "bias": jnp.zeros(2)}] * 3
    x, y = jnp.array([[1.0, -2.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0], [3.0, 2.0]])
    # relu: [1, 0], [3, 4]; errors: [1, -1], [0, 2]
    np.testing.assert_allclose(cost.task_losses(params, cost.Batch(x, y)), [0.5, 2.5])


def test_convolution_by_hand():
    params = [
        {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.ones(1)},
        {"kernel": jnp.eye(4), "bias": jnp.zeros(4)},
    ]
    batch = cost.Batch(jnp.ones((1, 4, 4, 1)), jnp.zeros((1, 4)))
    # Under the kernel lie 2 x 2 pixels in the corner, 2 x 3 at the edges, 3 x 3 inside; bias 1.
    np.testing.assert_allclose(cost.task_losses(params, batch), np.square([5, 7, 7, 10]))


@pytest.mark.parametrize("network", TINY)
def test_the_steps_share_one_problem(network):
    """One step of each sees the same losses; what differs is what is done with them."""
    params, batch = cost.make_problem(TINY[network], 3)
    names = (*cost.YARDSTICKS, *(cost.METHODS if network == "mlp" else ("famo-two-pass", "mgda")))
    outputs = {}
    for name in names:
        _, tx = cost.make_step(name, 3)
        compiled = cost.compile_step(name, 3, params, batch)
        own = jax.tree.map(jnp.copy, params)
        outputs[name] = compiled(own, tx.init(own), batch)
    first = outputs["forward"][2]
    for name in set(names) - {"look-again"}:
        np.testing.assert_allclose(outputs[name][2], first, rtol=1e-5)
    after = cost.task_losses(outputs["plain"][0], batch)
    np.testing.assert_allclose(outputs["look-again"][2], first + after, rtol=1e-5)
    if network == "mlp":
        jax.tree.map(
            lambda ours, plain: np.testing.assert_allclose(ours, plain, atol=1e-6),
            outputs["ls"][0],
            outputs["plain"][0],
        )
        assert np.ptp(outputs["famo-one-pass"][1][1].logits) == 0  # its first update only remembers
    assert np.ptp(outputs["famo-two-pass"][1][1].logits) > 0


@pytest.mark.parametrize("network", TINY)
def test_aggregation_keeps_at_least_the_task_gradients(network):
    """The prediction that needs no compilation is not above what the compiled step takes."""
    params, batch = cost.make_problem(TINY[network], 16)
    predicted = cost.task_gradients_bytes(params, 16)
    assert predicted == 16 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    compiled = cost.compile_step("mgda", 16, params, batch)
    assert compiled.memory_analysis().temp_size_in_bytes >= predicted


SECONDS = {
    "plain": 1.0,
    "carry": 1.005,
    "forward": 0.3,
    "look-again": 1.25,
    "ls": 1.0,
    "famo-one-pass": 1.01,
    "famo-two-pass": 1.4,
    "pcgrad": 3.0,
    "mgda": 5.0,
    "cagrad": 50.0,
}


@pytest.fixture
def clock(monkeypatch):
    """Steps that take exactly what SECONDS says, and 1,000 bytes."""
    now = [0.0]
    calls = dict.fromkeys(SECONDS, 0)

    def make_call(compiled, name, *_):
        def call():
            now[0] += SECONDS[name]
            calls[name] += 1
            return np.ones(2)

        return call

    memory = SimpleNamespace(temp_size_in_bytes=1000)
    compiled = SimpleNamespace(memory_analysis=lambda: memory)
    monkeypatch.setattr(cost, "make_call", make_call)
    monkeypatch.setattr(cost, "compile_step", lambda *_: compiled)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    return calls


def run(limits, num_tasks=2, before=None):
    methods = [name for name in SECONDS if name not in cost.YARDSTICKS]
    return cost.run_setting(TINY["mlp"], num_tasks, methods, limits, peers=False, before=before)


def test_figures_of_known_times(clock):
    figures = run(cost.Limits(scan=1, rounds=60, max_gib=1, max_seconds=110))
    for name, seconds in SECONDS.items():
        assert figures[name]["seconds"]["median"] == pytest.approx(seconds)
        assert figures[name]["over_plain"]["median"] == pytest.approx(seconds)
    two_pass = figures["famo-two-pass"]
    assert two_pass["over_plain_and_forward"]["median"] == pytest.approx(1.4 / 1.3)
    assert two_pass["over_look_again"]["median"] == pytest.approx(1.4 / 1.25)
    assert two_pass["second_forward"]["median"] == pytest.approx(0.25)
    assert two_pass["own_arithmetic"]["median"] == pytest.approx(0.15)
    assert two_pass["less_plain_and_forward"]["median"] == pytest.approx(0.1)
    assert figures["famo-one-pass"]["own_arithmetic"]["median"] == pytest.approx(0.005)
    assert figures["famo-one-pass"]["over_carry"]["median"] == pytest.approx(1.01 / 1.005)
    assert figures["mgda"]["temporary_bytes"] == 1000


def test_seconds_of_a_scan_are_those_of_its_steps(clock):
    figures = run(cost.Limits(scan=4, rounds=60, max_gib=1, max_seconds=110))
    assert figures["plain"]["seconds"]["median"] == pytest.approx(1 / 4)
    assert figures["mgda"]["over_plain"]["median"] == pytest.approx(5)


@pytest.mark.parametrize("name", ["carry", "famo-one-pass", "pcgrad"])
def test_a_scan_makes_the_same_steps(name):
    params, batch = cost.make_problem(TINY["mlp"], 3)
    losses = []
    for scan in (1, 4):
        compiled = cost.compile_step(name, 3, params, batch, scan)
        call = cost.make_call(compiled, name, 3, params, batch)
        losses.append([call() for _ in range(8 // scan)][-1])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert np.all(losses[0] < 0.999 * cost.task_losses(params, batch))


def test_a_scan_makes_the_forward_pass_anew_in_each_step():
    params, batch = cost.make_problem(TINY["mlp"], 3)
    functions, entry = cost.compile_step("forward", 3, params, batch, 4).as_text().split("ENTRY")
    assert functions.count(" dot(") == len(params)  # in the loop's body
    assert " dot(" not in entry  # as they would be if they were made once for all steps


def test_dear_steps_are_timed_less_often(clock):
    figures = run(cost.Limits(scan=1, rounds=60, max_gib=1, max_seconds=110))
    timed = {name: each["timed"] for name, each in figures.items()}
    assert timed.pop("mgda") == cost.FEW
    assert timed.pop("cagrad") == 1  # 20 rounds of 50 s are more than 110 s
    assert set(timed.values()) == {60}
    assert clock["mgda"] == cost.FEW + 2
    assert clock["cagrad"] == 2


def test_ratios_are_of_the_rounds_that_steps_share(clock, monkeypatch):
    monkeypatch.setitem(SECONDS, "forward", 5.0)  # dear, so timed less often than two-pass
    figures = run(cost.Limits(scan=1, rounds=60, max_gib=1, max_seconds=110))
    assert figures["forward"]["timed"] == cost.FEW
    two_pass = figures["famo-two-pass"]
    assert two_pass["timed"] == 60
    assert two_pass["over_plain_and_forward"]["median"] == pytest.approx(1.4 / 6)


def test_time_stops(clock):
    limits = cost.Limits(scan=1, rounds=4, max_gib=1, max_seconds=110)
    before = {"num_tasks": 2, "figures": run(limits)}
    figures = run(limits, num_tasks=6, before=before)
    assert figures["cagrad"]["stopped"]["predicted"] == pytest.approx(9 * 50)
    assert figures["cagrad"]["stopped"]["limit"] == "time"
    assert figures["cagrad"]["temporary_bytes"] == 1000  # which takes no running
    assert figures["mgda"]["stopped"] is None  # 45 s
    later = run(limits, num_tasks=12, before={"num_tasks": 6, "figures": figures})
    assert later["cagrad"]["stopped"]["predicted"] == pytest.approx(36 * 50)


def test_memory_stops(clock):
    by_gradients = run(cost.Limits(scan=1, rounds=2, max_gib=100 / cost.GIB, max_seconds=110))
    assert by_gradients["mgda"]["stopped"]["limit"] == "memory"
    assert by_gradients["mgda"]["stopped"]["predicted"] == 2 * 4 * (3 * 4 + 4 + 4 * 2 + 2 + 2 * 3)
    by_compiler = run(cost.Limits(scan=1, rounds=2, max_gib=300 / cost.GIB, max_seconds=110))
    assert by_compiler["mgda"]["stopped"]["predicted"] == 1000
    assert by_compiler["mgda"]["seconds"] is None
    assert clock["mgda"] == 0


def test_goals(clock):
    figures = run(cost.Limits(scan=1, rounds=4, max_gib=1, max_seconds=110))
    results = [{"network": "mlp", "num_tasks": 2, "figures": figures}]
    one_pass, two_pass, memory = cost.goals(results)
    assert "one-pass / plain at most 1.02" in one_pass
    assert "missed" not in one_pass
    assert "two-pass / (plain + forward) at most 1.02: missed: 1.077" in two_pass
    assert "missed" not in memory


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cost, "NETWORKS", TINY)


def test_quick(tmp_path, run_study):
    printed, summary = run_study("cost", tmp_path / "new", "--quick", "--rounds", "3")
    assert [result["num_tasks"] for result in summary["results"]] == [2, 10]
    for result in summary["results"]:
        assert set(result["figures"]) == {*cost.YARDSTICKS, *cost.STUDY.quick["methods"]}
        for figures in result["figures"].values():
            assert figures["seconds"]["median"] > 0
            assert figures["temporary_bytes"] > 0
        assert result["figures"]["famo-two-pass"]["timed"] == 3
    assert (tmp_path / "new" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert "over plain + forward" in printed
    assert "TorchJD was left out" in printed
    assert max(map(len, printed.splitlines())) <= 80
    times, _ = cost.draw(summary).get_axes()
    (line,) = (line for line in times.get_lines() if line.get_label() == "famo-two-pass")
    own = [each["figures"]["famo-two-pass"]["over_plain"]["median"] for each in summary["results"]]
    np.testing.assert_allclose(line.get_ydata(), own)


def test_where_it_stops_is_a_result(tiny, tmp_path, run_study):
    """Nothing of the aggregation runs, and table, figure and JSON say so."""
    arguments = ["--tasks", "3", "--methods", "famo-two-pass", "graddrop", "--max-gib", "1e-7"]
    more = [*arguments, "--network", "mlp", "conv", "--rounds", "2", "--peers", "no"]
    printed, summary = run_study("cost", tmp_path, *more)
    for result in summary["results"]:
        assert result["figures"]["graddrop"]["stopped"]["limit"] == "memory"
        assert "seconds" not in result["figures"]["graddrop"]
    assert "GiB" in printed


def test_one_method_alone(tiny, tmp_path, run_study):
    arguments = ["--tasks", "3", "--network", "mlp", "--methods", "famo-one-pass", "--scan", "3"]
    printed, _ = run_study("cost", tmp_path, *arguments, "--rounds", "2", "--peers", "no")
    assert "one-pass / plain at most 1.02: " in printed
    assert "A call of ours makes 3 steps" in printed


def test_without_torchjd(monkeypatch):
    monkeypatch.setattr(cost.importlib.util, "find_spec", lambda name: None)
    assert cost.why_no_peers() == "TorchJD takes no part: it is not installed (extra `peers`)."


@pytest.mark.parametrize("network", TINY)
@pytest.mark.parametrize("name", ["plain", "famo-two-pass"])
def test_torchjd_trains_the_same_network(network, name):
    """The same losses for ten steps, from PyTorch's and JAX's own convolutions and Adams."""
    pytest.importorskip("torchjd")
    params, batch = cost.make_problem(TINY[network], 3)
    compiled = cost.compile_step(name, 3, params, batch)
    ours = cost.make_call(compiled, name, 3, params, batch)
    theirs = cost.make_peer(name, params, batch)
    losses = np.array([(ours(), theirs()) for _ in range(10)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-3)
    assert np.all(np.abs(losses[0, 0] - losses[-1, 0]) > 1e-2 * losses[0, 0])


def test_torchjd_takes_turns(tiny, tmp_path, run_study):
    pytest.importorskip("torchjd")
    arguments = ["--tasks", "3", "--network", "conv", "--rounds", "2"]
    more = ["--methods", "famo-two-pass", *cost.AGGREGATION]
    printed, summary = run_study("cost", tmp_path, *arguments, *more)
    (result,) = summary["results"]
    for name in ("plain", *cost.PEERS):
        assert result["figures"][f"torchjd-{name}"]["seconds"]["median"] > 0
    assert result["figures"]["torchjd-famo-two-pass"]["over_torchjd_plain"]["median"] > 0
    assert "torchjd-nash-mtl" in printed
