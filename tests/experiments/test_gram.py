"""The study of places: what a form looks at and when, choices, figures, its command."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import _method, famo, loss_weights
from famo_jax.aggregation import _aggregator
from famo_jax.experiments import _files, _methods, _tables, _train, gram

# --- What a form looks at -------------------------------------------------------------------------


@functools.cache
def small(name, steps=1, batch_size=8):
    """A cell of a few small steps, and its data for one seed."""
    cell = gram.PROBLEMS[name]._replace(steps=steps, batch_size=batch_size, rates=(1e-2,))
    return cell, cell.problem.load_data(steps, [0], batch_size)


def start_of(cell, data):
    """Parameters, what else the model carries, and the first batch."""
    params, state = jax.tree.map(lambda leaf: leaf[0], cell.problem.init([0]))
    batch = jax.tree.map(lambda leaf: leaf[0, 0], data.train)
    if data.pool is not None:
        batch = jax.tree.map(lambda leaf: leaf[batch], data.pool)
    return params, state, batch


@pytest.mark.parametrize("name", ["digits", "molecules", "attributes"])
def test_the_way_over_the_features_is_the_same(name):
    cell, data = small(name)
    params, *given = start_of(cell, data)
    encode, heads = cell.problem.features
    z = encode(params, *given, None)
    assert z.shape == (8, params["narrow"]["bias"].get_value().shape[0])
    expected, _ = cell.problem.losses(params, *given, None)
    np.testing.assert_allclose(heads(params, z, *given, None), expected, rtol=1e-6)


@functools.partial(_method.aggregation)
class Spied(NamedTuple):
    """The Gram matrix that was last looked at, and how often one was."""

    gram: Any
    looks: Any


def spy(k):
    """Weighs all tasks alike, and remembers what it was shown."""

    def weigh(matrix, present, state):
        return jnp.ones(k) / k, Spied(matrix, state.looks + 1)

    init = lambda: Spied(jnp.zeros((k, k)), jnp.zeros((), int))
    return _aggregator.from_gram(weigh, init, shared=None, heads="weights")


@pytest.fixture
def spied(monkeypatch):
    """Trains a form and says what was looked at after each step: ``[steps, K, K]``, ``[steps]``."""
    method = _methods.METHODS["mgda"]._replace(make=spy)
    monkeypatch.setitem(_methods.METHODS, "mgda", method)

    def look(name, form, steps=1):
        cell, data = small(name, steps)
        arm = gram.arm_of("", cell, form, data, gram.settings_of(cell, form), [0])

        def probe(batch, fresh, before, after, losses):
            own = after.opt_state[0]
            return getattr(own, "method", own)

        keep = lambda own: {"gram": own.gram[0, 0], "looks": own.looks[0, 0]}
        return _train.train(arm._replace(probe=probe, keep=keep))

    return look


def by_hand(cell, data):
    """The Gram matrix at the start, by place, in float64, from Jacobians that JAX writes out."""
    params, *given = start_of(cell, data)
    own = jax.jacrev(lambda p: cell.problem.losses(p, *given, None)[0])(params)
    encode, heads = cell.problem.features
    z = encode(params, *given, None)
    at_z = jax.jacrev(lambda z: heads(params, z, *given, None))(z)
    taken = {"parameters": own, "last layer": own["narrow"], "features": at_z}
    found = {}
    for place, jacobian in taken.items():
        flat = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(jacobian)]
        rows = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in flat], axis=1)
        found[place] = rows @ rows.T
    return found


@pytest.mark.parametrize("name", ["digits", "molecules"])
def test_the_gram_matrix_is_that_of_its_place(name, spied):
    cell, data = small(name)
    expected = by_hand(cell, data)
    for index, place in enumerate(gram.PLACES):
        (found,) = spied(name, gram.Form("mgda", place, (5, 1, 5)[index]))["gram"]
        # Relative to the norms of the two gradients.
        norms = np.sqrt(np.diag(expected[place]))
        scale = norms[:, None] * norms
        np.testing.assert_allclose(found / scale, expected[place] / scale, atol=1e-4)
    for one, other in itertools.combinations(gram.PLACES, 2):
        assert not np.allclose(expected[one], expected[other], rtol=0.1)


@pytest.mark.parametrize("place", gram.PLACES)
def test_it_looks_every_so_many_steps(place, spied):
    looks = spied("molecules", gram.Form("mgda", place, 5), steps=12)["looks"]
    np.testing.assert_array_equal(looks, 5 * [1] + 5 * [2] + 2 * [3])


def test_without_a_period_it_looks_at_every_step(spied):
    looks = spied("molecules", gram.Form("mgda", "features"), steps=12)["looks"]
    np.testing.assert_array_equal(looks, np.arange(1, 13))


def test_a_cheaper_place_takes_fewer_operations():
    """As XLA counts them, of a step with forty tasks, over the mean of the losses."""
    cell, data = small("attributes", batch_size=64)

    def operations(form):
        arm = gram.arm_of("", cell, form, data, (), ())
        each, (*start, _) = _train.functions(arm), start_of(cell, data)
        setting, batches = (
            {"learning_rate": 1e-2},
            jax.tree.map(lambda leaf: leaf[:, 0], data.train),
        )
        carry = jax.eval_shape(each.begin, setting, start)
        given = setting, carry, jax.random.key(0), None, 0, batches
        return jax.jit(each.advance).lower(*given).compile().cost_analysis()["flops"]

    plain = operations(gram.Form("ls"))
    whole, last, features = (
        operations(gram.Form("nash-mtl", place)) / plain for place in gram.PLACES
    )
    assert whole > 15
    assert whole > 3 * last
    assert last > 1.5 * features


# --- Training -------------------------------------------------------------------------------------


def test_one_network_after_the_other_is_the_same_training():
    """As that of the runner, whose networks are mapped; the last call is a shorter one."""
    cell = gram.PROBLEMS["molecules"]._replace(steps=40, rates=(1e-3, 1e-2))
    data, form = cell.problem.load_data(40, [3, 4], 16), gram.Form("nash-mtl", "features", 5)
    arm = gram.arm_of("", cell, form, data, gram.settings_of(cell, form), [3, 4])
    (compiled,) = gram.compile_all(cell, [form], data).values()
    found, expected = gram.train(compiled, arm), _train.train(arm)
    for split, values in found.items():
        assert values.shape == (2, 2, 11)
        np.testing.assert_allclose(values, expected[split], rtol=1e-3)
    assert not np.allclose(found["test"][0], found["test"][1], rtol=0.01)


def test_famo_stands_beside_at_the_gamma_that_is_advised():
    own = gram.YARDSTICKS["famo"].make(4)
    advised = famo(4, normalizer=None, smoothing=0.9, weight_decay=0.1 / 4)
    states = [own.init(None), advised.init(None)]
    for losses in ([1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 2.0, 4.0], [0.4, 1.0, 2.0, 4.0]):
        for index, tx in enumerate((own, advised)):
            _, states[index] = tx.update((), states[index], losses=jnp.array(losses))
    np.testing.assert_array_equal(states[0].logits, states[1].logits)
    np.testing.assert_array_equal(*(loss_weights(jnp.array(losses), state) for state in states))
    assert np.ptp(states[0].logits) > 1e-3


# --- Choices and figures --------------------------------------------------------------------------


def test_validation_chooses_for_each_task_of_stl_and_once_for_others():
    single = np.full((2, 3, 1, 2), np.nan)  # tasks, rates, seeds, K; of a task its own counts
    single[0, :, 0, 0] = [3.0, 1.0, 2.0]
    single[1, :, 0, 1] = [np.nan, 20.0, 10.0]
    form = np.array([[[1.5, 10.0]], [[1.1, 11.0]], [[np.inf, 1.0]]])  # +25, +10, diverged
    found = list(gram.choose([single.reshape(6, 1, 2), form, form[::-1]]))
    assert found == [[1, 5], [1], [1]]


@pytest.fixture(scope="module")
def quick(tmp_path_factory, run_study):
    folder = tmp_path_factory.mktemp("gram")
    arguments = ["--quick", "--methods", "nash-mtl", "--learning-rate", "3e-3", "3e-2"]
    return folder, *run_study("gram", folder, *arguments)


def test_a_quick_run(quick):
    folder, printed, summary = quick
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    rows = {str(row.form): row.figures for row in gram.rows_of(summary)}
    places = [f"nash-mtl, {place}, {every}" for place in gram.PLACES for every in (1, 5)]
    assert list(rows) == ["ls", "si", "famo", *places]
    arms = _files.read(None, "gram", [folder])[str(folder)].facts["arms"]
    with np.load(folder / "runs.npz") as arrays:
        test = {name: arrays[f"molecules: {name}/test"] for name in (*rows, "stl")}
        validation = {name: arrays[f"molecules: {name} tuning/validation"] for name in rows}
        assert test["stl"].shape == (11, 2, 11)
        single = np.stack([test["stl"][task, :, task].mean() for task in range(11)])
        delta_m = {name: 100 * (own[0] / single - 1).mean(axis=1) for name, own in test.items()}
        for name, figures in rows.items():
            assert validation[name].shape == (2, 1, 11)  # by the seed that does not report
            assert arms[f"molecules: {name}"]["seeds"] == [0, 1]
            assert arms[f"molecules: {name} tuning"]["seeds"] == [2]
            reference = name if "," not in name else "nash-mtl, parameters, 1"
            assert figures["delta_m"] == pytest.approx(delta_m[name].mean(), rel=1e-4)
            above = np.mean(delta_m[name] - delta_m[reference])
            assert figures["above"] == pytest.approx(above, abs=1e-2)
            assert figures["learning_rate"] in (3e-3, 3e-2)
            assert figures["step"] > 0
    assert rows["ls"]["step"] == 1


def made_up():
    """A summary with figures of our own, two problems, two methods."""
    summary = {}
    for shift, problem in enumerate(("digits", "molecules")):
        methods = {}
        for form in gram.forms_of({"methods": ["mgda", "nash-mtl"], "every": [1, 25]}):
            place, method = gram.PLACES.index(form.place), form.method
            above = 0.0 if form == form.reference else 10 * place - form.every - 20 * shift
            half = 12.0 if method == "mgda" else 3.0
            own = {
                **{"delta_m": 50 + above, "se": 1.0, "learning_rate": 0.1 if place else 0.01},
                **{"above": above, "low": above - half, "high": above + half},
                "step": 10.0 - 3 * place - form.every / 10,
            }
            methods.setdefault(method, {}).setdefault(form.place, {})[str(form.every)] = own
        summary[problem] = {"tasks": 4, "rates": [1e-3, 1e-2, 0.1], "methods": methods}
    return summary


def test_the_tables_say_what_is_worse_and_what_is_better():
    summary = made_up()
    printed = _tables.text(gram.tables(summary))
    overall = {tuple(line.split()) for line in printed.splitlines()}
    # Above by 9 on digits and by -11 on molecules: by +-12 nothing is decided, by +-3 both are.
    assert ("last", "layer", "step", "1", "1", "6.90", "6.90") in overall
    # By -5 and -25: of four cases one is undecided.
    assert ("features", "25", "steps", "0", "3", "1.50", "1.50") in overall
    assert ("parameters", "step", "9.90", "9.90") in overall
    row = next(line for line in printed.splitlines() if line.split()[:1] == ["nash-mtl"])
    assert row.split() == ["nash-mtl", "50.0±1.0", "9.90", "50.0±1.0", "9.90"]
    row = [line.split() for line in printed.splitlines() if "mgda  " in line][1:]
    assert row[0] == ["mgda", "parameters", "9.90", "-25.0±12.0", "7.50"]
    ends = (
        "digits, at the end of its list, learning rate 0.1: mgda, last layer, 1; mgda, last layer,"
    )
    assert ends in " ".join(printed.split())


def test_the_picture_shows_delta_m_over_cost():
    summary = made_up()
    for axes, (problem, own) in zip(gram.draw(summary).get_axes(), summary.items(), strict=True):
        assert axes.get_title(loc="left") == f"{problem}: Δm (%)"
        shown = {
            (line.get_color(), line.get_marker(), line.get_fillstyle()): line.get_xydata().tolist()
            for line in axes.get_lines()
            if line.get_marker() in "os^" and len(line.get_xdata()) == 1
        }
        assert len(shown) == 2 * 3 * 2
        for method, places in own["methods"].items():
            for (place, mark), (every, fill) in itertools.product(
                gram.MARKS.items() if method in gram.COLOURS else (),
                {"1": "full", "25": "none"}.items(),
            ):
                each = places[place][every]
                found = shown[gram.COLOURS[method], mark, fill]
                assert found == [[each["step"], each["delta_m"]]]
