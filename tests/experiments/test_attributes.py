"""The forty attributes: what they say, how often, their losses and metrics, its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss

from famo_jax.experiments import attributes as study
from famo_jax.experiments.problems import attributes, digits

NAMES = ["stl", "ls", "si", "frozen", "famo", "famo-one-pass"]


# --- Attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "names"),
    [
        (
            (4, 2, 300, 400),
            "left is 4, right is 2, left is even, right is even, left is greater, "
            "sum is 4 or more, they read 42",
        ),
        (
            (1, 1, 370, 365),
            "left is 1, right is 1, both are straight, they are equal, both are 1, "
            "left has more ink, left is heavy, both are heavy",
        ),
        (
            (7, 9, 250, 250),
            "left is 7, right is 9, left is prime, right has a loop, sum is 4 or more, "
            "sum is 10 or more, sum is 16 or more, right is light",
        ),
        (
            (0, 1, 300, 300),
            "left is 0, right is 1, left is even, they are neighbours, sum is odd, one is 0",
        ),
        (
            (8, 0, 300, 300),
            "left is 8, right is 0, left is even, right is even, right has a loop, "
            "both have loops, left is greater, sum is 4 or more, one is 0",
        ),
    ],
)
def test_what_is_true_of_a_pair(pair, names):
    true = attributes.attributes_of(attributes.Pair(*map(np.array, pair)))
    told = {name for name, each in zip(attributes.ATTRIBUTES, true, strict=True) if each}
    assert told == set(names.split(", "))


def test_there_are_forty_from_very_rare_to_very_common():
    rates = attributes.load_base_rates()
    assert len(rates) == attributes.K == 40
    assert rates.min() < 0.02
    assert rates.max() > 0.85
    assert np.all((rates > 0) & (rates < 1))


@pytest.fixture(scope="module")
def pictures():
    return attributes.compose(jax.random.key(0), digits.load_splits().train, 8000)


def test_base_rates_are_those_of_the_pictures(pictures):
    rates = attributes.load_base_rates()
    often = np.mean(pictures.attributes, axis=0)
    assert np.all(np.abs(often - rates) < 4 * np.sqrt(rates * (1 - rates) / 8000))


def test_pictures_are_those_of_the_digits_and_attributes_are_true_of_them(pictures):
    shown = digits.compose(jax.random.key(0), digits.load_splits().train, 8000)
    np.testing.assert_array_equal(pictures.pixels, shown.pixels)
    names = list(attributes.ATTRIBUTES)
    expected = {
        "right is 7": np.equal(shown.right, 7),
        "sum is 10 or more": np.asarray(shown.left) + shown.right >= 10,
        "left has more ink": np.sum(shown.clean, axis=1, dtype=int) > np.asarray(shown.ink),
    }
    for name, column in expected.items():
        np.testing.assert_array_equal(pictures.attributes[:, names.index(name)], column)


def test_held_out_pictures_show_every_attribute_and_pictures_differ():
    two = attributes.load_data(steps=3, seeds=range(2), batch_size=8)
    one = attributes.load_data(steps=3, seeds=range(1), batch_size=8)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b[:, 0]), one.train, two.train)
    assert len(np.unique(two.train.pixels.reshape(-1, 140), axis=0)) == 3 * 2 * 8
    for held_out in (two.validation, two.test):
        positives = np.sum(held_out.attributes, axis=0)
        assert held_out.attributes.shape == (attributes.HELD_OUT, attributes.K)
        assert positives.min() >= 10
        assert positives.max() <= attributes.HELD_OUT - 10
    assert not np.array_equal(two.validation.attributes, two.test.attributes)


# --- Tasks ----------------------------------------------------------------------------------------


def test_losses_and_metrics_against_scikit_learn(pictures, monkeypatch):
    log_odds = np.random.default_rng(0).normal(-1, 2, pictures.attributes.shape).astype("f")
    monkeypatch.setattr(attributes, "apply", lambda *_: log_odds)
    losses = attributes.task_losses(None, pictures)
    metrics = attributes.task_metrics(None, pictures)
    probabilities, rates = 1 / (1 + np.exp(-log_odds)), attributes.load_base_rates()
    for k in range(attributes.K):
        true = np.asarray(pictures.attributes[:, k])
        assert losses[k] == pytest.approx(log_loss(true, probabilities[:, k]), rel=1e-4)
        right = balanced_accuracy_score(true, probabilities[:, k] > rates[k])
        assert metrics[k] == pytest.approx(100 * (1 - right), rel=1e-4)


def test_a_network_that_knows_nothing_errs_by_half_and_one_that_diverged_is_no_number(
    pictures, monkeypatch
):
    shape = pictures.attributes.shape
    for value, expected in ((-9.0, 50.0), (9.0, 50.0), (np.nan, np.nan)):
        log_odds = jnp.full(shape, value)
        monkeypatch.setattr(attributes, "apply", lambda *_, own=log_odds: own)
        np.testing.assert_allclose(attributes.task_metrics(None, pictures), expected)


# --- The command ----------------------------------------------------------------------------------


def test_a_quick_run(tmp_path, run_study):
    printed, summary = run_study("attributes", tmp_path, "--quick", "--steps", "4")
    assert "…" not in printed
    assert list(summary["methods"]) == NAMES
    rates = summary["problem"]["base_rates"]
    assert list(rates) == list(attributes.ATTRIBUTES)
    changes, *_ = study.draw(summary).get_axes()
    assert [line.get_label() for line in changes.get_lines()[:-1]] == ["ls", "si", "famo"]
    for line in changes.get_lines()[:-1]:
        # From the rarest to the commonest.
        shown = [value for _, value in sorted(zip(line.get_xdata(), rates.values(), strict=True))]
        assert shown == sorted(rates.values())
        own = summary["methods"][line.get_label()]["change"]
        np.testing.assert_allclose(line.get_ydata(), list(own.values()))
