"""The overlapping digits: their pictures, splits, units, losses and metrics."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from famo_jax.experiments.problems import digits

# --- Pictures -------------------------------------------------------------------------------------


def rows_of(images):
    """Images as sorted tuples, to compare sets of them."""
    return sorted(map(tuple, np.asarray(images).reshape(len(images), -1).astype(int).tolist()))


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_cover_the_digits_and_share_none(seed):
    splits = digits.load_splits(seed)
    assert [len(split.labels) for split in splits] == [1200, 297, 300]
    every = rows_of(load_digits().images)
    assert len(set(every)) == len(every)  # so that images tell digits apart
    assert rows_of(np.concatenate([split.images for split in splits])) == every
    for split in splits:
        assert np.bincount(split.labels).min() >= len(split.labels) // 11  # each class


def test_each_seed_has_splits_of_its_own():
    one, other = (rows_of(digits.load_splits(seed).test.images) for seed in (0, 1))
    assert one != other


def test_held_out_pictures_show_no_digit_of_training():
    seeds = [3, 5]
    data = digits.load_data(steps=20, seeds=seeds, batch_size=32)
    data = data._replace(train=jax.tree.map(lambda leaf: np.moveaxis(leaf, 1, 0), data.train))
    for place, seed in enumerate(seeds):
        for pictures, split in zip(data[:3], digits.load_splits(seed), strict=True):
            shown = jax.tree.map(lambda leaf, place=place: np.asarray(leaf)[place], pictures)
            own = dict(zip(map(bytes, split.images), split.labels, strict=True))
            clean = shown.clean.reshape(-1, 64)
            assert [own[bytes(digit)] for digit in clean] == np.ravel(shown.left).tolist()
            inks = set(zip(split.images.sum(axis=(1, 2)).tolist(), split.labels, strict=True))
            right = zip(np.ravel(shown.ink).tolist(), np.ravel(shown.right), strict=True)
            assert inks.issuperset(right)
    assert data.validation.left.shape == data.test.left.shape == (2, digits.HELD_OUT)


def test_a_picture_is_the_maximum_of_two_placed_digits(monkeypatch):
    monkeypatch.setattr(digits, "NOISE", 0.0)
    images = np.random.default_rng(0).integers(0, 17, (2, 8, 8)).astype(np.uint8)
    sources = digits.sources_of(images, np.array([3, 7], np.int32))

    def canvas(digit, row, column):
        picture = np.zeros((10, 14))
        picture[row : row + 8, column : column + 8] = images[digit]
        return picture

    places = list(itertools.product(range(2), range(3), range(3)))
    expected = {}
    for (left, row, column), (right, row_, column_) in itertools.product(places, places):
        picture = np.maximum(canvas(left, row, column), canvas(right, row_, column_ + 4))
        target = (sources.labels[left], sources.labels[right], bytes(images[left]))
        expected[np.round(255 * picture / 16).astype(np.uint8).tobytes()] = (
            *target,
            images[right].sum(),
        )

    pictures = digits.compose(jax.random.key(0), sources, 3000)
    shown = set()
    for pixels, left, right, clean, ink in zip(*map(np.asarray, pictures), strict=True):
        assert expected[pixels.tobytes()] == (left, right, clean.tobytes(), ink)
        shown.add(pixels.tobytes())
    assert shown == set(expected)  # every pair of digits at every pair of places


def test_noise_is_fresh_and_of_its_standard_deviation():
    grey = digits.sources_of(np.full((1, 8, 8), 8, np.uint8), np.zeros(1, np.int32))
    train = digits.compose(jax.random.key(0), grey, 2000).pixels / 255
    # Pixels of the middle always show a digit, half-way between black and white.
    middle = train.reshape(-1, 10, 14)[:, 2:8, 2:12]
    assert np.std(middle) == pytest.approx(digits.NOISE, rel=0.06)  # clipped at 2 of them
    assert np.abs(np.corrcoef(middle.reshape(2000, -1).T) - np.eye(60)).max() < 0.15


def test_pictures_differ_by_step_and_seed_and_not_by_the_number_of_seeds():
    two = digits.load_data(steps=3, seeds=range(2), batch_size=8)
    one = digits.load_data(steps=3, seeds=range(1), batch_size=8)
    np.testing.assert_array_equal(one.train.pixels[:, 0], two.train.pixels[:, 0])
    np.testing.assert_array_equal(one.test.pixels[0], two.test.pixels[0])
    assert len(np.unique(two.train.pixels.reshape(-1, 140), axis=0)) == 3 * 2 * 8
    assert two.train.pixels.dtype == np.uint8


# --- Tasks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    return digits.compose(jax.random.key(0), digits.load_splits(0).train, 256)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf[0], digits.PROBLEM.init([0])[0])


def test_losses_span_orders_of_magnitude(params, pictures):
    losses = digits.task_losses(params, pictures)
    assert losses.shape == (digits.K,)
    assert losses.max() / losses.min() > 1e5


def test_losses_and_metrics_are_those_of_their_names(params, pictures, monkeypatch):
    size = len(pictures.left)
    wrong = (pictures.left + 1) % 10
    outputs = digits.Outputs(
        left=100.0 * jax.nn.one_hot(jnp.where(jnp.arange(size) < 64, wrong, pictures.left), 10),
        right=jnp.zeros((size, 10)),
        clean=pictures.clean / 16 + 0.5,
        ink=pictures.ink - 3.0,
    )
    monkeypatch.setattr(digits, "apply", lambda *_: outputs)
    losses = digits.task_losses(params, pictures)
    np.testing.assert_allclose(losses, [25.0, np.log(10), 0.25, 9.0], rtol=1e-5)
    left, _, clean, ink = digits.task_metrics(params, pictures)
    np.testing.assert_allclose([left, clean, ink], [25.0, 0.5, 3.0], rtol=1e-5)


def test_seeds_have_parameters_of_their_own():
    kernels = [leaf for leaf in jax.tree.leaves(digits.PROBLEM.init([0, 1])[0]) if leaf.ndim == 3]
    assert sorted(kernel.shape for kernel in kernels) == [(2, 64, 85), (2, 96, 64), (2, 140, 96)]
    assert all(np.abs(kernel[0] - kernel[1]).max() > 0.1 for kernel in kernels)


def test_standardised_ink_is_in_deviations_from_the_mean_of_training(params, pictures):
    (mean,), (unit,) = digits.spreads([0])
    inks = digits.load_splits(0).train.images.astype(float).sum(axis=(1, 2))
    assert [mean, unit] == pytest.approx([inks.mean(), inks.std()], rel=1e-5)
    plain = digits.apply(params, pictures).ink
    outputs = np.asarray(digits.apply(params, pictures, mean, unit).ink)
    np.testing.assert_allclose(outputs, mean + unit * plain, rtol=1e-5)
    state = digits.STANDARDISED.init([0])[1]
    own = jax.tree.map(lambda leaf: leaf[0], state)
    losses = digits.STANDARDISED.losses(params, own, pictures, None)[0]
    natural = digits.task_losses(params, pictures)
    np.testing.assert_allclose(losses[:3], natural[:3], rtol=1e-6)
    expected = np.mean((outputs - np.asarray(pictures.ink)) ** 2) / unit**2
    np.testing.assert_allclose(losses[3], expected, rtol=1e-5)
    metrics = digits.STANDARDISED.metrics(params, own, pictures)
    expected = np.abs(outputs - np.asarray(pictures.ink)).mean()
    np.testing.assert_allclose(metrics[3], expected, rtol=1e-5)


@pytest.mark.parametrize("problem", [digits.PROBLEM, digits.STANDARDISED])
def test_losses_of_features_are_those_of_the_pictures(problem, params, pictures):
    state = jax.tree.map(lambda leaf: leaf[0], problem.init([0])[1])
    encode, heads = problem.features
    z = encode(params, state, pictures, None)
    assert z.shape == (256, 64)
    losses = heads(params, z, state, pictures, None)
    np.testing.assert_allclose(losses, problem.losses(params, state, pictures, None)[0], rtol=1e-5)
