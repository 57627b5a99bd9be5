"""How multi-task methods are compared: two summaries of a table of test metrics."""

import jax
import jax.numpy as jnp
import numpy as np


def delta_m(
    values: jax.typing.ArrayLike,
    baseline: jax.typing.ArrayLike,
    higher_is_better: jax.typing.ArrayLike,
) -> jax.Array:
    r"""How much worse than a baseline, in percent, on average over the metrics. Lower is better.

    .. math:: \Delta m = \frac{100}{N} \sum_n (-1)^{s_n} \frac{M_n - B_n}{B_n}

    with :math:`s_n` 1 where higher is better. The baseline is as a rule the single-task networks'.

    Args:
      values: ``[..., N]``, the metrics M of a method, or of any number of them.
      baseline: ``[N]`` or broadcastable, the metrics B of the baseline, above 0. One that is 0
        gives an infinite or NaN result.
      higher_is_better: Booleans, ``[N]``, or one for all metrics.

    Returns:
      ``[...]``, percent.

    Raises:
      ValueError: If the shapes do not broadcast, there are no metrics, a baseline is seen to be
        negative, or ``higher_is_better`` does not hold booleans.

    Example:
      >>> from famo_jax import delta_m
      >>> # accuracy 80% instead of 100%, error 0.11 instead of 0.10
      >>> print(delta_m([80.0, 0.11], [100.0, 0.10], [True, False]).round(1))
      15.0

    References:
      Maninis et al., `Attentive Single-Tasking of Multiple Tasks
      <https://arxiv.org/abs/1904.08918>`_, CVPR 2019; Liu et al., FAMO, section 5
    """
    values, baseline, higher = _arrays(values, baseline, higher_is_better)
    if not isinstance(baseline, jax.core.Tracer) and np.any(np.asarray(baseline) < 0):
        raise ValueError(f"`baseline`: expected metrics above 0, got {baseline}")
    worse = jnp.where(higher, -1, 1) * (values - baseline) / baseline
    return 100 * jnp.mean(worse, axis=-1)


def mean_rank(values: jax.typing.ArrayLike, higher_is_better: jax.typing.ArrayLike) -> jax.Array:
    """The rank of each method among all, averaged over the metrics. Lower is better.

    Args:
      values: ``[..., M, N]``, a row of N metrics for each of M methods. Equal values share the
        mean of their ranks, and NaN ranks last.
      higher_is_better: Booleans, ``[N]``, or one for all metrics.

    Returns:
      ``[..., M]``, from 1 for a method that is best everywhere to M.

    Raises:
      ValueError: If ``values`` is no table, the shapes do not broadcast, or ``higher_is_better``
        does not hold booleans.

    Example:
      >>> from famo_jax import mean_rank
      >>> accuracy_and_error = [[0.9, 0.3], [0.8, 0.1], [0.7, 0.3]]
      >>> print(mean_rank(accuracy_and_error, [True, False]))
      [1.75 1.5  2.75]

    References:
      Liu et al., FAMO, section 5: mean rank (MR)
    """
    values, _, higher = _arrays(values, 0.0, higher_is_better)
    if values.ndim < 2:
        raise ValueError(f"`values`: expected [..., M, N], got shape {values.shape}")
    cost = jnp.where(higher, -values, values)
    own, other = cost[..., :, None, :], cost[..., None, :, :]
    own_nan, other_nan = jnp.isnan(own), jnp.isnan(other)
    better = jnp.sum((other < own) | (own_nan & ~other_nan), axis=-2)
    equal = jnp.sum((other == own) | (own_nan & other_nan), axis=-2)
    return jnp.mean(better + (equal + 1) / 2, axis=-1)


def _arrays(
    values: jax.typing.ArrayLike,
    baseline: jax.typing.ArrayLike,
    higher_is_better: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    names = ("values", "baseline", "higher_is_better")
    tables = list(map(_array, names, (values, baseline, higher_is_better)))
    if tables[2].dtype != bool:
        raise ValueError(f"`higher_is_better`: expected booleans, got {tables[2].dtype}")
    for index, name in enumerate(names[:2]):
        dtype = tables[index].dtype
        if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
            raise ValueError(f"`{name}`: expected real numbers, got {dtype}")
        tables[index] = tables[index].astype(jnp.result_type(dtype, float))
    if tables[0].ndim == 0:
        raise ValueError("`values`: expected [..., N], got a scalar")
    if tables[0].shape[-1] == 0:
        raise ValueError(f"`values`: expected at least one metric, got shape {tables[0].shape}")
    for name, table in zip(names[1:], tables[1:], strict=True):
        try:
            fits = jnp.broadcast_shapes(tables[0].shape, table.shape) == tables[0].shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"`{name}`: expected a shape that broadcasts to that of `values`, "
                f"{tables[0].shape}, got {table.shape}"
            )
    return tables[0], tables[1], tables[2]


def _array(name: str, table: jax.typing.ArrayLike) -> jax.Array:
    try:
        return jnp.asarray(table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}`: expected an array, got {type(table).__name__}") from error
