"""The two summaries, by hand and against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from famo_jax import delta_m, mean_rank


def test_delta_m_by_hand():
    """Errors doubled, accuracy halved, one metric as it was: (100 + 50 + 0) / 3."""
    values, baseline = [0.2, 40.0, 7.0], [0.1, 80.0, 7.0]
    np.testing.assert_allclose(delta_m(values, baseline, [False, True, False]), 50, rtol=1e-6)
    np.testing.assert_allclose(delta_m(baseline, baseline, [False, True, False]), 0)
    np.testing.assert_allclose(delta_m([0.05], [0.1], False), -50, rtol=1e-6)  # better: negative
    np.testing.assert_allclose(delta_m([0.05], [0.1], True), 50, rtol=1e-6)


def test_delta_m_of_a_stack():
    values = np.random.default_rng(0).uniform(1, 2, (4, 5, 3))
    baseline, higher = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    stacked = jax.jit(delta_m)(values, baseline, higher)
    assert stacked.shape == (4, 5)
    np.testing.assert_allclose(stacked[2, 3], delta_m(values[2, 3], baseline, higher), rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_mean_rank_is_scipy_s(seed):
    """Ties share the average rank."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, (6, 5)).astype(float)
    higher = rng.random(5) < 0.5
    signed = np.where(higher, -values, values)
    expected = np.mean(stats.rankdata(signed, method="average", axis=0), axis=1)
    np.testing.assert_allclose(jax.jit(mean_rank)(values, higher), expected, rtol=1e-6)
    stacked = jax.vmap(lambda table: mean_rank(table, higher))(np.stack([values, values[::-1]]))
    np.testing.assert_allclose(mean_rank(np.stack([values, values[::-1]]), higher), stacked)


def test_mean_rank_puts_nan_last():
    np.testing.assert_array_equal(mean_rank([[np.nan], [5.0], [1.0]], False), [3, 2, 1])
    np.testing.assert_array_equal(mean_rank([[np.nan], [5.0], [1.0]], True), [3, 1, 2])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: delta_m(jnp.ones(3), jnp.ones(2), False), "`baseline`: expected a shape that"),
        (lambda: delta_m(jnp.ones(3), jnp.ones((2, 3)), False), "`baseline`: expected a shape"),
        (
            lambda: delta_m(jnp.ones(3), jnp.ones(3), [True] * 2),
            "`higher_is_better`: expected a sh",
        ),
        (lambda: delta_m(jnp.ones(3), jnp.ones(3), 1), "`higher_is_better`: expected booleans"),
        (lambda: mean_rank(jnp.ones(3), True), "`values`: expected [..., M, N], got shape (3,)"),
        (lambda: mean_rank(jnp.ones((2, 3)), [0, 1, 1]), "`higher_is_better`: expected booleans"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=r"`\w+`") as error:
        call()
    assert words in str(error.value)
