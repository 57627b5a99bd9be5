"""Augmentation, losses and metrics of NYU-v2 and CityScapes, by hand, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax.experiments.problems import dense
from famo_jax.experiments.problems._dense_files import Scenes

CLASSES = dense.NYUV2.outputs["semantic"]
NAMES = [metric.name for metric in dense.NYUV2.metrics]


def scenes_of(count, height=6, width=8, seed=0):
    """With holes: void labels, missing depth and normals, and a normal whose parts add up to 0."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(count, height, width, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    depth = rng.uniform(0.5, 5, (count, height, width))
    missing = rng.random((count, height, width)) < 0.3
    depth[missing], normal[missing] = 0, 0
    normal[:, 0, 0] = np.array([0.5, -0.5, 0])
    label = rng.integers(-1, CLASSES, (count, height, width)).astype(np.int8)
    image = rng.random((count, height, width, 3))
    to = lambda array: array.astype(np.float32)
    return Scenes(to(image), label, to(depth), to(normal))


def outputs_of(count, height=6, width=8, seed=1):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, height, width, CLASSES))
    normal = rng.normal(size=(count, height, width, 3))
    return {
        "semantic": logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)),
        "depth": rng.uniform(0.5, 5, (count, height, width, 1)),
        "normal": normal / np.linalg.norm(normal, axis=-1, keepdims=True),
    }


# --- Losses ---------------------------------------------------------------------------------------


def test_losses_are_means_over_valid_pixels():
    scenes, outputs = scenes_of(3), outputs_of(3)
    true = scenes.label >= 0
    semantic = -np.take_along_axis(
        outputs["semantic"], scenes.label[..., None] * true[..., None], -1
    )
    depth = np.abs(outputs["depth"][..., 0] - scenes.depth)
    cosine = (outputs["normal"] * scenes.normal).sum(axis=-1)
    seen = scenes.normal.sum(axis=-1) != 0
    expected = [
        semantic[..., 0][true].mean(),
        depth[scenes.depth > 0].mean(),
        1 - cosine[seen].sum() / seen.sum(),
    ]
    assert not seen[:, 0, 0].any()
    np.testing.assert_allclose(dense.task_losses(outputs, scenes), expected, rtol=1e-5)


def test_cross_entropy_is_pytorchs():
    torch = pytest.importorskip("torch")
    scenes, outputs = scenes_of(3), outputs_of(3)
    expected = torch.nn.functional.nll_loss(
        torch.from_numpy(np.moveaxis(outputs["semantic"], -1, 1)),
        torch.from_numpy(scenes.label.astype(np.int64)),
        ignore_index=-1,
    )
    assert float(dense.task_losses(outputs, scenes)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_without_a_valid_pixel_has_losses_and_gradients_of_zero():
    nothing = jax.tree.map(np.zeros_like, scenes_of(2))
    nothing = nothing._replace(label=nothing.label - 1)
    outputs = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), outputs_of(2))
    rows = jax.jacobian(lambda outputs: dense.task_losses(outputs, nothing))(outputs)
    assert not np.any(dense.task_losses(outputs, nothing))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(rows))


# --- Metrics --------------------------------------------------------------------------------------


def by_hand(scenes, outputs, batches):
    """Section by section, from rows of batches; and from all pixels at once."""
    predicted = outputs["semantic"].argmax(axis=-1)
    matrix = np.zeros((CLASSES, CLASSES))
    for true, own in zip(scenes.label.ravel(), predicted.ravel(), strict=True):
        if true >= 0:
            matrix[true, own] += 1
    with np.errstate(invalid="ignore"):
        iou = np.diag(matrix) / (matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix))
    semantic = [100 * np.nanmean(iou), 100 * np.trace(matrix) / matrix.sum()]

    def rest(rows):
        error = np.abs(outputs["depth"][rows][..., 0] - scenes.depth[rows])
        own = scenes.depth[rows] != 0
        with np.errstate(divide="ignore"):
            relative = error / scenes.depth[rows]
        seen = scenes.normal[rows].sum(axis=-1) != 0
        cosine = (outputs["normal"][rows] * scenes.normal[rows]).sum(axis=-1)[seen]
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        within = [100 * np.mean(angle < most) for most in (11.25, 22.5, 30)]
        depth = [error[own].mean(), relative[own].mean()]
        return [*depth, angle.mean(), np.median(angle), *within]

    every = np.mean([rest(rows) for rows in batches], axis=0)
    return np.array([*semantic, *every]), np.array([*semantic, *rest(slice(None))])


def metrics_of(scenes, outputs, batches):
    counts = [
        jax.jit(dense.count)(
            {name: own[rows] for name, own in outputs.items()},
            Scenes(*(leaf[rows] for leaf in scenes)),
        )
        for rows in batches
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *counts)
    return np.split(np.asarray(dense.metrics_of(stacked, tuple(outputs))), 2)


def test_metrics_are_the_official_ones_and_pooled_ones_beside_them():
    """Of batches of which the last is smaller, and counts like the others."""
    scenes, outputs = scenes_of(5, 24, 32), outputs_of(5, 24, 32)
    outputs["normal"][:3] = scenes.normal[:3] + 0.3 * outputs["normal"][:3]  # some are near
    outputs["normal"] /= np.linalg.norm(outputs["normal"], axis=-1, keepdims=True)
    batches = [slice(0, 2), slice(2, 4), slice(4, 5)]
    official, pooled = by_hand(scenes, outputs, batches)
    ours, all_at_once = metrics_of(scenes, outputs, batches)
    np.testing.assert_allclose(ours, official, rtol=2e-4)
    median = NAMES.index("Median")
    assert all_at_once[median] == pytest.approx(pooled[median], abs=0.02)
    np.testing.assert_allclose(np.delete(all_at_once, median), np.delete(pooled, median), rtol=2e-4)
    assert np.abs(official - pooled)[2:].min() > 1e-4  # they do differ


def test_a_class_that_is_nowhere_does_not_make_the_mean_nan():
    scenes, outputs = scenes_of(2), outputs_of(2)
    scenes = scenes._replace(label=np.minimum(scenes.label, 5))
    outputs["semantic"] = outputs["semantic"] - 50.0 * (np.arange(CLASSES) > 7)
    official, _ = by_hand(scenes, outputs, [slice(None)])
    np.testing.assert_allclose(metrics_of(scenes, outputs, [slice(None)])[0], official, rtol=2e-4)


def test_a_network_that_diverged_has_no_figures():
    """Of a batch of two: means are NaN as NumPy's are, and so is what is pooled."""
    scenes, outputs = scenes_of(4, 24, 32), outputs_of(4, 24, 32)
    outputs["depth"][2:], outputs["normal"][3] = np.nan, np.nan
    batches = [slice(0, 2), slice(2, 4)]
    for own, expected in zip(
        metrics_of(scenes, outputs, batches), by_hand(scenes, outputs, batches), strict=True
    ):
        np.testing.assert_array_equal(np.isnan(own), np.isnan(expected))
        assert np.isnan(own[2:6]).all()
        np.testing.assert_allclose(own[[0, 1, 6, 7, 8]], expected[[0, 1, 6, 7, 8]], rtol=2e-4)


def test_a_batch_without_a_valid_pixel_counts_nowhere():
    """Whatever is told of it: the official code would have NaN of all."""
    scenes, outputs = scenes_of(4, 24, 32), outputs_of(4, 24, 32)
    for field in (scenes.depth, scenes.normal):
        field[2:] = 0
    outputs["depth"][3] = np.nan
    official, pooled = by_hand(scenes, outputs, [slice(0, 2)])
    ours, all_at_once = metrics_of(scenes, outputs, [slice(0, 2), slice(2, 4)])
    np.testing.assert_allclose(ours[2:], official[2:], rtol=2e-4)
    median = NAMES.index("Median")
    assert all_at_once[median] == pytest.approx(pooled[median], abs=0.1)  # of few angles
    rest = [2, 3, 4, 6, 7, 8]
    np.testing.assert_allclose(all_at_once[rest], pooled[rest], rtol=2e-4)


def test_the_paper_counts_metrics_not_tasks():
    assert NAMES == ["mIoU", "PixAcc", "Abs", "Rel", "Mean", "Median", "<11.25", "<22.5", "<30"]
    assert [metric.name for metric in dense.CITYSCAPES.metrics] == NAMES[:4]
    higher = [metric.higher_is_better for metric in dense.NYUV2.metrics]
    assert higher == [True, True, False, False, False, False, True, True, True]
    for benchmark in (dense.NYUV2, dense.CITYSCAPES):
        assert len(benchmark.stl) == len(benchmark.metrics)


# --- Augmentation ---------------------------------------------------------------------------------

HEIGHT, WIDTH = 48, 64


def numbered(count):
    """Pixels that tell where they are from: labels and depth by column, images by both axes."""
    row, column = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    image = np.stack([row, column, row + column], axis=-1).astype(np.float32)
    scene = Scenes(image, column.astype(np.int8), 1.0 + row.astype(np.float32), image - 20)
    return jax.tree.map(lambda leaf: np.stack([leaf] * count), scene)


@pytest.fixture(scope="module")
def augmented():
    scenes = numbered(300)
    return scenes, jax.jit(dense.augment)(scenes, jax.random.key(0))


def read(image):
    """From the corners of a crop: its height, width and first pixel, and whether it is mirrored."""
    top, bottom, left, right = image[0, 0, 0], image[-1, 0, 0], image[0, 0, 1], image[0, -1, 1]
    mirrored = left > right
    height, width = bottom - top + 1, abs(right - left) + 1
    return round(height), round(width), (round(top), round(min(left, right))), mirrored


def test_crops_are_of_three_scales_anywhere_and_every_other_is_mirrored(augmented):
    _, (image, *_) = augmented
    found = [read(own) for own in np.asarray(image)]
    sizes = {(48, 64): 0, (40, 53): 0, (32, 42): 0}  # int(48 / 1.2), int(64 / 1.2), ...
    for height, width, (top, left), _ in found:
        sizes[height, width] += 1
        assert 0 <= top <= HEIGHT - height
        assert 0 <= left <= WIDTH - width
    assert min(sizes.values()) > 70
    small = [corner for height, _, corner, _ in found if height == 32]
    # Both ends are drawn: 16 rows and 22 columns are left over, by 0.003 none of 100 is at one end.
    assert {min(top for top, _ in small), max(top for top, _ in small)} == {0, 16}
    assert 110 < sum(mirrored for *_, mirrored in found) < 190


def test_all_of_a_scene_is_cropped_alike_and_depth_divided(augmented):
    torch = pytest.importorskip("torch")
    scenes, (image, label, depth, normal) = augmented
    for index in range(12):
        height, width, (top, left), mirrored = read(np.asarray(image[index]))
        rows, columns = slice(top, top + height), slice(left, left + width)
        scale = {48: 1.0, 40: 1.2, 32: 1.5}[height]

        def resized(leaf, window=(rows, columns), mirrored=mirrored, **how):
            channels_first = np.moveaxis(np.atleast_3d(leaf)[window], -1, 0)
            tensor = torch.from_numpy(channels_first.astype(np.float32))[None]
            resize = torch.nn.functional.interpolate(tensor, (HEIGHT, WIDTH), **how)
            array = np.moveaxis(resize[0].numpy(), 0, -1)
            return array[:, ::-1] if mirrored else array

        smooth = {"mode": "bilinear", "align_corners": True}
        one = lambda leaf: resized(leaf, mode="nearest")[..., 0]
        np.testing.assert_allclose(image[index], resized(scenes.image[0], **smooth), atol=1e-3)
        np.testing.assert_array_equal(label[index], one(scenes.label[0]))
        np.testing.assert_allclose(depth[index], one(scenes.depth[0]) / scale, rtol=1e-6)
        turned = resized(scenes.normal[0], **smooth) * ([-1, 1, 1] if mirrored else 1)
        np.testing.assert_allclose(normal[index], turned, atol=1e-3)


def test_inverse_depth_may_be_multiplied_instead():
    scenes = numbered(20)._replace(normal=None)
    divided, multiplied = (
        jax.jit(dense.augment, static_argnums=2)(scenes, jax.random.key(1), how)
        for how in ("divide", "multiply")
    )
    assert multiplied.normal is None
    scale = np.sqrt(multiplied.depth / divided.depth).mean(axis=(1, 2))
    np.testing.assert_allclose(np.unique(np.round(scale, 3)), dense.SCALES, rtol=1e-6)
    np.testing.assert_array_equal(divided.label, multiplied.label)
