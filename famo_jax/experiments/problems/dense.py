r"""NYU-v2 and CityScapes: what is told of each pixel of a picture, as in the FAMO paper.

Augmentation, losses and metrics are those of the official code (github.com/Cranial-XIX/FAMO,
``experiments/nyuv2`` and ``cityscapes``), with what is odd about them:

* metrics of depth and normals are means, and medians, over batches, of which the last may be
  smaller; what pools all pixels stands beside them;
* interpolated normals are shorter than 1, and are let be so;
* CityScapes' "depth" is inverse, and yet divided by the scale to which a picture is enlarged. With
  ``inverse_depth="multiply"`` it is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from famo_jax.experiments.problems import _dense_files, _problem, _segnet
from famo_jax.experiments.problems._dense_files import Scenes
from famo_jax.experiments.problems._layers import cropped
from famo_jax.experiments.problems._problem import Data, Problem, Task

# --- Tasks ----------------------------------------------------------------------------------------

_SEMANTIC = (
    Task("mIoU", "cross-entropy", "mean IoU (%)", 2, True),
    Task("PixAcc", "cross-entropy", "pixel accuracy (%)", 2, True),
)
_DEPTH = (
    Task("Abs", "mean absolute error", "absolute error", 4),
    Task("Rel", "mean absolute error", "relative error", 4),
)
_NORMAL = (
    Task("Mean", "1 - cosine", "mean angle (°)", 2),
    Task("Median", "1 - cosine", "median angle (°)", 2),
    Task("<11.25", "1 - cosine", "within 11.25° (%)", 2, True),
    Task("<22.5", "1 - cosine", "within 22.5° (%)", 2, True),
    Task("<30", "1 - cosine", "within 30° (%)", 2, True),
)
METRICS = {"semantic": _SEMANTIC, "depth": _DEPTH, "normal": _NORMAL}
WITHIN = (11.25, 22.5, 30.0)
SHOWN = 2  # scenes
BINS = 100  # of a degree, in which the pooled median is found


class Benchmark(NamedTuple):
    """One of the two."""

    outputs: Mapping[str, int]  # the channels of each task's output
    load: Any  # (folder, split) -> scenes
    stl: Sequence[float]  # the single-task networks' metrics by which the official code judges

    @property
    def metrics(self) -> tuple[Task, ...]:
        """Of all tasks."""
        return tuple(metric for task in self.outputs for metric in METRICS[task])


NYUV2 = Benchmark(
    {"semantic": len(_dense_files.NYUV2_CLASSES), "depth": 1, "normal": 3},
    _dense_files.load_nyuv2,
    (38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15),
)
CITYSCAPES = Benchmark(
    {"semantic": len(_dense_files.CITYSCAPES_CLASSES), "depth": 1},
    _dense_files.load_cityscapes,
    (74.01, 93.16, 0.0125, 27.77),
)

# --- Augmentation ---------------------------------------------------------------------------------

SCALES = (1.0, 1.2, 1.5)


def augment(scenes: Scenes, key: jax.Array, inverse_depth: str = "divide") -> Scenes:
    """Enlarges a crop of each scene ``[B, H, W]`` by one of the scales, and mirrors every other."""
    full = np.array(scenes.image.shape[1:3])
    sizes = jnp.array([[int(length / scale) for length in full] for scale in SCALES])

    def one(scene: Scenes, key: jax.Array) -> Scenes:
        keys = jax.random.split(key, 3)
        which = jax.random.randint(keys[0], (), 0, len(SCALES))
        size, scale = sizes[which], jnp.array(SCALES)[which]
        corner = jax.random.randint(keys[1], (2,), 0, full - size + 1)
        mirrored = jax.random.bernoulli(keys[2])

        def enlarge(leaf: jax.Array) -> jax.Array:
            crop = cropped(leaf, corner, size, smooth=leaf.ndim == 3)
            return jnp.where(mirrored, crop[:, ::-1], crop)

        image, label, depth, normal = jax.tree.map(enlarge, scene)
        depth = depth * scale if inverse_depth == "multiply" else depth / scale
        if normal is not None:
            normal *= jnp.where(mirrored, jnp.array([-1.0, 1, 1]), 1)
        return Scenes(image, label, depth, normal)

    augmented: Scenes = jax.vmap(one)(scenes, jax.random.split(key, len(scenes.image)))
    return augmented


# --- Losses and metrics ---------------------------------------------------------------------------

Outputs = Mapping[str, jax.Array]  # [B, H, W, channels], by task


def mean(values: jax.Array, valid: jax.Array, empty: float = 0.0) -> jax.Array:
    """Over what is valid; ``empty`` of nothing."""
    total, count = jnp.sum(jnp.where(valid, values, 0)), jnp.sum(valid)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), empty)


def is_normal(scenes: Scenes) -> jax.Array:
    """``[..., H, W]``. As in the official code one whose parts add up to 0 is none either."""
    return jnp.sum(scenes.normal, axis=-1) != 0


def task_losses(outputs: Outputs, scenes: Scenes) -> jax.Array:
    """``[K]``: means over the batch's valid pixels; 0 where there are none, not NaN."""
    found = []
    if "semantic" in outputs:
        label = scenes.label.astype(jnp.int32)[..., None]
        own = jnp.take_along_axis(outputs["semantic"], jnp.maximum(label, 0), axis=-1)
        found.append(mean(-own, label >= 0))
    if "depth" in outputs:
        error = jnp.abs(outputs["depth"][..., 0] - scenes.depth)
        found.append(mean(error, scenes.depth != 0))
    if "normal" in outputs:
        cosine = jnp.sum(outputs["normal"] * scenes.normal, axis=-1)
        found.append(mean(1 - cosine, is_normal(scenes)))
    return jnp.stack(found)


class Counts(NamedTuple):
    """What metrics are made of, by batch."""

    confusion: Any = None  # [classes, classes], int32: true, predicted
    depth: Any = None  # [2]: mean error and mean relative error
    depth_pixels: Any = None  # []
    normal: Any = None  # [5]: mean and median angle in degrees, shares within
    normal_pixels: Any = None  # []
    angles: Any = None  # [180 x BINS + 1], int32: how many pixels


def count(outputs: Outputs, scenes: Scenes) -> Counts:
    """Of a batch."""
    found: dict[str, Any] = {}
    if "semantic" in outputs:
        classes = outputs["semantic"].shape[-1]
        label = scenes.label.astype(jnp.int32)
        # Void is of no class, so that it counts nowhere.
        true, predicted = (
            jax.nn.one_hot(each.ravel(), classes)
            for each in (label, jnp.argmax(outputs["semantic"], axis=-1))
        )
        confusion = jnp.matmul(true.T, predicted, precision="highest")
        found["confusion"] = confusion.astype(jnp.int32)
    if "depth" in outputs:
        valid = scenes.depth != 0
        error = jnp.abs(outputs["depth"][..., 0] - scenes.depth)
        each = mean(error, valid, jnp.nan), mean(error / scenes.depth, valid, jnp.nan)
        found |= {"depth": jnp.stack(each), "depth_pixels": jnp.sum(valid)}
    if "normal" in outputs:
        valid = is_normal(scenes)
        cosine = jnp.sum(outputs["normal"] * scenes.normal, axis=-1)
        angle = jnp.rad2deg(jnp.arccos(jnp.clip(cosine, -1, 1)))
        average = mean(angle, valid, jnp.nan)  # NaN where one of them is
        median = jnp.nanmedian(jnp.where(valid, angle, jnp.nan))
        median = jnp.where(jnp.isnan(average), jnp.nan, median)
        shares = [mean(angle < most, valid, jnp.nan) for most in WITHIN]
        found["normal"] = jnp.stack([average, median, *shares])
        found["normal_pixels"] = jnp.sum(valid)
        bins = (angle * BINS).astype(jnp.int32).ravel()
        length = 180 * BINS + 1
        found["angles"] = jnp.bincount(bins, valid.ravel().astype(jnp.int32), length=length)
    return Counts(**found)


def metrics_of(counts: Counts, outputs: Sequence[str]) -> jax.Array:
    """From counts of all batches, which lead every leaf: official, then pooled, ``[2 M]``.

    What is official of segmentation is pooled; the pooled median is that of hundredths of a degree.
    """
    official, pooled = [], []
    if "semantic" in outputs:
        confusion = jnp.sum(counts.confusion, axis=0).astype(float)
        right, both = jnp.diag(confusion), jnp.sum(confusion, axis=0) + jnp.sum(confusion, axis=1)
        # Of a class that is neither there nor predicted the official code makes NaN of all.
        iou = jnp.nanmean(right / (both - right))
        official.append(jnp.stack([iou, jnp.sum(right) / jnp.sum(confusion)]))
        pooled.append(official[0])
    for name in ("depth", "normal"):
        if name in outputs:
            own, pixels = getattr(counts, name), getattr(counts, f"{name}_pixels")[:, None]
            # A batch without a valid pixel, of which the official code makes NaN, counts nowhere.
            official.append(jnp.mean(own, axis=0, where=pixels > 0))
            total = jnp.sum(own * pixels, axis=0, where=pixels > 0)
            pooled.append(total / jnp.sum(pixels))
    if "normal" in outputs:
        angles = jnp.cumsum(jnp.sum(counts.angles, axis=0))
        half = jnp.searchsorted(angles, (angles[-1] + 1) // 2)
        median = jnp.where(jnp.isnan(pooled[-1][0]), jnp.nan, (half + 0.5) / BINS)
        pooled[-1] = pooled[-1].at[1].set(median)
    every = [metric for task in outputs for metric in METRICS[task]]
    percent = jnp.array([100.0 if "%" in metric.metric else 1.0 for metric in every])
    return jnp.concatenate([percent * jnp.concatenate(own) for own in (official, pooled)])


def told(outputs: Outputs) -> jax.Array:
    """``[B, H, W, 5]``, float16: the class, depth and the normal; NaN of what is no task."""
    parts = dict(outputs)
    if "semantic" in outputs:
        parts["semantic"] = jnp.argmax(outputs["semantic"], axis=-1)[..., None]
    shape = next(iter(parts.values())).shape[:-1]
    channels = {"semantic": 1, "depth": 1, "normal": 3}
    every = [parts.get(name, jnp.full((*shape, of), jnp.nan)) for name, of in channels.items()]
    return jnp.concatenate([each.astype(jnp.float16) for each in every], axis=-1)


# --- The problem ----------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How scenes are used."""

    network: str = "mtan"
    width: int = 64  # channels of the first level
    levels: int = 5
    stream: bool = False  # whether scenes come some steps at a time, or all are on the device
    augment: bool = True
    inverse_depth: str = "divide"  # as official, or "multiply"
    both_passes: bool = True  # as official: the second pass moves batch statistics too
    held_out: int = 0  # training scenes to choose settings by; 0, as official, chooses by the test


def network_of(outputs: Mapping[str, int], plan: Plan) -> Any:
    """A function of ``nnx.Rngs``."""
    channels = _segnet.FILTERS[: plan.levels]
    filters = [plan.width * each // channels[0] for each in channels]
    return lambda rngs: _segnet.NETWORKS[plan.network](outputs, rngs, filters)


def problem(benchmark: Benchmark, train: Scenes, test: Scenes, plan: Plan,
            task: str | None = None) -> Problem:  # fmt: skip
    """All tasks, or one: then of SegNet, as the official baseline, and the others' metrics are NaN.

    Args:
      benchmark: Whose outputs and metrics.
      train: Scenes to train on.
      test: Scenes to test on.
      plan: How.
      task: The one task. None: all.
    """
    outputs = {name: of for name, of in benchmark.outputs.items() if task in (None, name)}
    make = network_of(outputs, plan if task is None else plan._replace(network="segnet"))
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    at: list[int] = []
    start = 0
    for name in benchmark.outputs:
        places = range(start, start := start + len(METRICS[name]))
        at += places if name in outputs else []
    of_all = len(benchmark.metrics)

    def load_data(steps: int, seeds: Sequence[int], batch_size: int) -> Data:
        order = np.random.default_rng(0).permutation(len(train.image))
        chosen_by, rows = np.split(order, [plan.held_out])
        stream, epoch = _problem.epochs_of(rows, seeds, batch_size)
        held_out = _problem.held_out_of(test, seeds, batch_size)
        validation = held_out
        if plan.held_out:
            apart = jax.tree.map(lambda leaf: leaf[np.sort(chosen_by)], train)
            validation = _problem.held_out_of(apart, seeds, batch_size)
        if plan.stream:
            from_map, at_once = _problem.streamed(stream, train), _problem.AT_ONCE
            return Data(from_map, validation, held_out, epoch=epoch, at_once=at_once)
        pool = jax.tree.map(jnp.asarray, train)
        return Data(stream, validation, held_out, pool, epoch)

    def prepare(batch: Scenes, key: jax.Array) -> Scenes:
        return augment(batch, key, plan.inverse_depth) if plan.augment else batch

    def encode(params: chex.ArrayTree, state: Any, batch: Scenes, key: jax.Array) -> Any:
        return nnx.merge(graph, params, state, copy=True).encode(prepare(batch, key).image)

    def heads(
        params: chex.ArrayTree, shared: Any, state: Any, batch: Scenes, key: jax.Array
    ) -> jax.Array:
        decoded = nnx.merge(graph, params, state, copy=True).decode(shared)
        return task_losses(decoded, prepare(batch, key))

    def losses(
        params: chex.ArrayTree, state: Any, batch: Scenes, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, state, copy=True)
        batch = prepare(batch, key)
        found = task_losses(model(batch.image), batch)
        return found, _problem.split(model)[1]

    def metrics(params: chex.ArrayTree, state: Any, held_out: tuple[Scenes, ...]) -> jax.Array:
        model = nnx.merge(graph, params, state, copy=True)
        model.eval()
        one = lambda scenes: count(model(scenes.image), scenes)
        parts = [jax.lax.map(one, part) for part in held_out]
        counts = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        both = metrics_of(counts, tuple(outputs)).reshape(2, -1)
        return jnp.full((2, of_all), jnp.nan).at[:, jnp.array(at)].set(both).ravel()

    def shown(params: chex.ArrayTree, state: Any) -> jax.Array:
        model = nnx.merge(graph, params, state, copy=True)
        model.eval()
        return told(model(jnp.asarray(test.image[:SHOWN])))

    tasks = tuple(Task(name, METRICS[name][0].loss, name, 4) for name in outputs)
    return Problem(
        tasks, load_data, lambda seeds: _problem.init_stateful(make, seeds), losses, metrics,
        features=(encode, heads), both_passes=plan.both_passes,
        step_by_step=jax.default_backend() == "cpu", shown=shown,
    )  # fmt: skip
