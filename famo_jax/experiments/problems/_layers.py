"""Layers as PyTorch has them, channels last: what the vision networks are made of."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class BatchNorm(nnx.Module):
    """Over all axes but the last. As PyTorch's, the running variance is that of a sample."""

    def __init__(self, channels: int) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))
        self.use_running_average = False  # what `train` and `eval` set

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., channels]``."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            if count == 1:
                raise ValueError(f"batch norm: expected several values a channel, got {x.shape}")
            mean, var = jnp.mean(x, axes), jnp.var(x, axes)
            # Anew: of `[...] =` Flax asks the sharding, which a tracer takes long to deny.
            self.mean = nnx.BatchStat(0.9 * self.mean[...] + 0.1 * mean)
            self.var = nnx.BatchStat(0.9 * self.var[...] + 0.1 * var * (count / (count - 1)))
        return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * self.scale[...]) + self.bias[...]


class Block(nnx.Module):
    """A layer, batch norm, and a nonlinearity."""

    def __init__(
        self, layer: nnx.Module, channels: int, activate: Callable[..., Any] = nnx.relu
    ) -> None:
        self.layer, self.norm, self.activate = layer, BatchNorm(channels), activate

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., inputs]`` to ``[..., channels]``."""
        layer: Any = self.layer
        activated: jax.Array = self.activate(self.norm(layer(x)))
        return activated


def conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, **more: Any) -> nnx.Conv:
    """Of ``size`` x ``size``, padded so that the map keeps its own."""
    return nnx.Conv(inputs, outputs, (size, size), rngs=rngs, **more)


def uniform(fan_in: int) -> Any:
    """PyTorch's default for the weights and biases of a layer."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def max_pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of 2 x 2: ``[B, H, W, C]`` to half of it, and which of four was greatest, the first of equal.

    Returns:
      ``[B, H/2, W/2, C]``, and bool ``[B, H/2, W/2, 4, C]``.
    """
    b, h, w, c = x.shape
    windows = x.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4, c)
    of_four = jnp.arange(4)[:, None]
    greatest = jnp.argmax(windows, axis=3, keepdims=True) == of_four
    return jnp.sum(jnp.where(greatest, windows, 0), axis=3), greatest


def max_unpool(x: jax.Array, greatest: jax.Array) -> jax.Array:
    """Puts values back to where :func:`max_pool` took them from, among zeros."""
    b, h, w, c = x.shape
    windows = jnp.where(greatest, x[:, :, :, None], 0).reshape(b, h, w, 2, 2, c)
    return windows.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, c)


def double(x: jax.Array) -> jax.Array:
    """Twice as high and wide, bilinear with aligned corners: ``[B, H, W, C]``."""

    def interpolation(size: int) -> np.ndarray[Any, Any]:  # [2 size, size]
        places = np.linspace(0, size - 1, 2 * size)[:, None]
        shares: np.ndarray[Any, Any] = np.maximum(1 - np.abs(places - np.arange(size)), 0)
        return shares.astype(x.dtype)

    rows, columns = map(interpolation, x.shape[1:3])
    # Exact where products are rounded to fewer digits otherwise: they are cheap.
    doubled: jax.Array = jnp.einsum(
        "ih,jw,bhwc->bijc", rows, columns, x, precision="highest", optimize="optimal"
    )
    return doubled


def cropped(image: jax.Array, corner: Any, size: Any, smooth: bool) -> jax.Array:
    """A crop, as large as the image again: bilinear with aligned corners, or nearest.

    Args:
      image: ``[H, W]`` or ``[H, W, C]``.
      corner: Row and column of the crop's first pixel. May be traced.
      size: Its height and width. May be traced.
      smooth: Whether bilinear.
    """
    for axis, (start, length, full) in enumerate(zip(corner, size, image.shape, strict=False)):
        steps = jnp.arange(full, dtype=jnp.float32)
        length = jnp.asarray(length, jnp.float32)
        rows = functools.partial(_rows, image, start, axis=axis)
        if smooth:
            place = steps * ((length - 1) / (full - 1))
            low = jnp.minimum(jnp.floor(place), length - 1)
            share = (place - low).reshape(-1, *(image.ndim - axis - 1) * [1])
            image = rows(low) * (1 - share) + rows(jnp.minimum(low + 1, length - 1)) * share
        else:
            # In float32, as in PyTorch: in float64 other pixels are taken.
            image = rows(jnp.minimum(jnp.floor(steps * (length / full)), length - 1))
    return image


def _rows(image: jax.Array, start: Any, places: jax.Array, *, axis: int) -> jax.Array:
    return jnp.take(image, start + places.astype(jnp.int32), axis=axis)
