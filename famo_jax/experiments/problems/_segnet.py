"""SegNet, and MTAN on it, as in the official code (github.com/Cranial-XIX/FAMO) but channels last.

SegNet (Badrinarayanan et al. 2017) is an encoder of five levels, each half as high and wide as the
one before, and a decoder that puts the values of a level back to where the encoder's maxima were.
In MTAN (Liu et al. 2019) every task weighs the maps of all levels by attention of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from famo_jax.experiments.problems._layers import Block, conv, double, max_pool, max_unpool

FILTERS = (64, 128, 256, 512, 512)
_XAVIER = nnx.initializers.variance_scaling(1.0, "fan_avg", "normal")


def _conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> nnx.Conv:
    return conv(inputs, outputs, size, rngs, kernel_init=_XAVIER)


def _block(inputs: int, outputs: int, rngs: nnx.Rngs) -> Block:
    return Block(_conv(inputs, outputs, 3, rngs), outputs)


def _attention(inputs: int, channels: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """Between 0 and 1 for every pixel and channel."""
    of_inputs = Block(_conv(inputs, channels, 1, rngs), channels)
    return nnx.Sequential(
        of_inputs, Block(_conv(channels, channels, 1, rngs), channels, nnx.sigmoid)
    )


class Maps(NamedTuple):
    """What the tasks attend to, from the first level of the encoder, and of the decoder, on."""

    early: list[Any]  # [B, h, w, channels], of a level of the encoder
    late: list[Any]
    unpooled: list[Any]
    decoded: list[Any]


class SegNet(nnx.Module):
    """One trunk, whose last map all heads see ("split"). With one head, a single-task network."""

    def __init__(
        self, outputs: Mapping[str, int], rngs: nnx.Rngs, filters: Sequence[int] = FILTERS
    ) -> None:
        """Of the channels of each task's output: "semantic", "depth", "normal"."""
        self.tasks, self.levels = tuple(outputs), len(filters)
        above = (filters[0], *filters[:-1])  # the channels that a level of the decoder ends in
        twice = [1 if level < 2 else 2 for level in range(self.levels)]
        upwards = range(self.levels - 1, -1, -1)

        def more(channels: int, count: int) -> nnx.Sequential:
            return nnx.Sequential(*(_block(channels, channels, rngs) for _ in range(count)))

        pairs = list(zip((3, *filters), filters, strict=False))
        self.encoder = nnx.Sequential(*(_block(*pair, rngs) for pair in pairs))
        self.encoder_more = nnx.Sequential(*map(more, filters, twice))
        self.decoder = nnx.Sequential(*(_block(filters[i], above[i], rngs) for i in upwards))
        self.decoder_more = nnx.Sequential(*(more(above[i], twice[i]) for i in upwards))
        self.heads = nnx.Sequential(
            *(
                nnx.Sequential(
                    _conv(filters[0], filters[0], 3, rngs), _conv(filters[0], channels, 1, rngs)
                )
                for channels in outputs.values()
            )
        )

    def trunk(self, images: jax.Array) -> Maps:
        """Of images ``[B, H, W, 3]``, height and width multiples of 32."""
        maps, places = Maps([], [], [], []), []
        x = images
        for block, more in zip(self.encoder.layers, self.encoder_more.layers, strict=True):
            maps.early.append(block(x))
            maps.late.append(more(maps.early[-1]))
            x, greatest = max_pool(maps.late[-1])
            places.append(greatest)
        for block, more in zip(self.decoder.layers, self.decoder_more.layers, strict=True):
            maps.unpooled.append(max_unpool(x, places.pop()))
            x = more(block(maps.unpooled[-1]))
            maps.decoded.append(x)
        return maps

    def encode(self, images: jax.Array) -> Any:
        """What the tasks share."""
        return self.trunk(images).decoded[-1]

    def maps_of_tasks(self, shared: Any) -> list[jax.Array]:
        """What each task's head sees."""
        return [shared] * len(self.tasks)

    def decode(self, shared: Any) -> dict[str, jax.Array]:
        """Log probabilities of classes, depth, unit normals: ``[B, H, W, channels]`` each."""
        maps = self.maps_of_tasks(shared)
        pairs = zip(self.heads.layers, maps, strict=True)
        outputs = dict(zip(self.tasks, (head(own) for head, own in pairs), strict=True))
        if "semantic" in outputs:
            outputs["semantic"] = jax.nn.log_softmax(outputs["semantic"])
        if "normal" in outputs:
            normal = outputs["normal"]
            # The official code has no such term, and NaN where all three are zero.
            length = jnp.sqrt(jnp.sum(normal**2, axis=-1, keepdims=True) + 1e-12)
            outputs["normal"] = normal / length
        return outputs

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """From images to outputs."""
        return self.decode(self.encode(images))


class Mtan(SegNet):
    """Attention for each task, between blocks that all tasks go through, one after the other."""

    def __init__(
        self, outputs: Mapping[str, int], rngs: nnx.Rngs, filters: Sequence[int] = FILTERS
    ) -> None:
        """As :class:`SegNet`."""
        super().__init__(outputs, rngs, filters)
        above = (filters[0], *filters[:-1])
        below = (*filters[1:], filters[-1])
        upwards = range(self.levels - 1, -1, -1)
        inputs = [filters[0], *(2 * channels for channels in filters[1:])]

        def encoder(_: str) -> nnx.Sequential:
            pairs = zip(inputs, filters, strict=True)
            return nnx.Sequential(*(_attention(*pair, rngs) for pair in pairs))

        def decoder(_: str) -> nnx.Sequential:
            pairs = ((filters[i] + above[i], above[i]) for i in upwards)
            return nnx.Sequential(*(_attention(*pair, rngs) for pair in pairs))

        self.encoder_attention = nnx.Sequential(*map(encoder, outputs))
        self.decoder_attention = nnx.Sequential(*map(decoder, outputs))
        pairs = zip(filters, below, strict=True)
        self.encoder_shared = nnx.Sequential(*(_block(*pair, rngs) for pair in pairs))
        self.decoder_shared = nnx.Sequential(*(_block(filters[i], above[i], rngs) for i in upwards))

    def encode(self, images: jax.Array) -> Maps:
        """All maps of the trunk."""
        return self.trunk(images)

    def maps_of_tasks(self, shared: Maps) -> list[jax.Array]:
        """By task in turn, so that the statistics of shared blocks see one after the other."""
        found = []
        encoder: Any
        decoder: Any
        x: Any
        for encoder, decoder in zip(
            self.encoder_attention.layers, self.decoder_attention.layers, strict=True
        ):
            x = None
            levels = zip(encoder.layers, self.encoder_shared.layers, shared.early, shared.late,
                         strict=True)  # fmt: skip
            for attend, block, early, late in levels:
                seen = early if x is None else jnp.concatenate([early, x], axis=-1)
                x, _ = max_pool(block(attend(seen) * late))
            levels = zip(decoder.layers, self.decoder_shared.layers, shared.unpooled,
                         shared.decoded, strict=True)  # fmt: skip
            for attend, block, unpooled, decoded in levels:
                seen = jnp.concatenate([unpooled, block(double(x))], axis=-1)
                x = attend(seen) * decoded
            found.append(x)
        return found


NETWORKS = {"mtan": Mtan, "segnet": SegNet}
