"""Rooms and streets that are drawn: their geometry, by closed form and finite differences."""

import functools

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from famo_jax.experiments.make import _rays, _rooms, _streets
from famo_jax.experiments.problems._dense_files import CITYSCAPES_CLASSES, NYUV2_CLASSES

ROOM, STREET = (96, 128), (64, 128)
COLOUR = np.full(3, 0.5)


@functools.cache
def room(number, split=0):
    return _rooms.scene([7, split, number], ROOM)


@functools.cache
def street(number, split=0):
    return _streets.scene([7, split, number], STREET)


def solid(kind, centre, half, yaw=0.0):
    return _rays.Solid(kind, np.array(centre, float), np.array(half, float), yaw, 0, COLOUR)


def rays_of(size, focal):
    """Of all pixels, as the camera sees them: x to the right, y upwards, one metre deep."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([(x - size[1] / 2) / focal, (size[0] / 2 - y) / focal, -np.ones(size)], axis=-1)


def of_class(names, *wanted):
    return [names.index(name) for name in wanted]


# --- Rays -----------------------------------------------------------------------------------------


def test_planes_are_as_far_as_by_closed_form():
    """The floor under a camera that looks down, and the wall ahead of one that does not."""
    height, pitch, focal, size = 1.4, -0.3, 50.0, (60, 80)
    shell = solid("room", (0, 0, 3), (50, 50, 3))
    camera = _rays.camera_at((0, 0, height), 0.0, pitch, 0.0, focal, size)
    hits = _rays.trace(camera.position, _rays.centres(camera), [shell])
    up = rays_of(size, focal)[..., 1]
    falls = -(np.sin(pitch) + up * np.cos(pitch))  # of a ray, a metre deep
    floor = falls > height / 50
    depth = hits.depth.reshape(size)
    np.testing.assert_allclose(depth[floor], (height / falls)[floor], rtol=1e-12)
    straight = _rays.camera_at((0, 0, height), 0.0, 0.0, 0.0, focal, size)
    wall = solid("box", (0, 5, 0), (90, 1, 90))
    hits = _rays.trace(straight.position, _rays.centres(straight), [wall])
    np.testing.assert_allclose(hits.depth, 4, rtol=1e-12)
    np.testing.assert_array_equal(hits.normal, np.broadcast_to([0, -1, 0], hits.normal.shape))


def test_a_ball_is_as_large_as_by_closed_form():
    focal, size, distance, radius = 200.0, (150, 150), 4.0, 1.0
    ball = solid("ellipsoid", (0, distance, 0), (radius,) * 3)
    camera = _rays.camera_at((0, 0, 0), 0.0, 0.0, 0.0, focal, size)
    hits = _rays.trace(camera.position, _rays.centres(camera), [ball])
    seen = (hits.number == 0).reshape(size)
    across = focal * radius / np.sqrt(distance**2 - radius**2)
    off = np.hypot(*rays_of(size, focal)[..., :2].transpose(2, 0, 1)) * focal
    np.testing.assert_array_equal(seen, off < across)
    assert abs(hits.depth.min() - (distance - radius)) < 1e-4


def inside(solid, points):
    x, y = points[:, 0] - solid.centre[0], points[:, 1] - solid.centre[1]
    c, s = np.cos(solid.yaw), np.sin(solid.yaw)
    own = np.stack([c * x + s * y, c * y - s * x, points[:, 2] - solid.centre[2]], axis=-1)
    own /= solid.half
    if solid.kind == "box":
        return np.abs(own).max(axis=1)
    if solid.kind == "cylinder":
        return np.maximum(np.hypot(own[:, 0], own[:, 1]), np.abs(own[:, 2]))
    return np.linalg.norm(own, axis=1)


@pytest.mark.parametrize("kind", ["box", "cylinder", "ellipsoid"])
def test_rays_end_on_the_surface_and_nowhere_before(kind):
    draws = np.random.default_rng(0)
    for _ in range(5):
        half = draws.uniform(0.3, 1.5, 3)
        body = solid(kind, draws.normal(size=3), half, draws.uniform(0, 3))
        origin = body.centre + 4 * np.array([0.6, 0.64, 0.48])
        rays = body.centre + draws.uniform(-2, 2, (4000, 3)) - origin
        hits = _rays.trace(origin, rays, [body])
        met = hits.number == 0
        assert 0.02 < met.mean() < 0.98
        np.testing.assert_allclose(inside(body, hits.point[met]), 1, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(hits.normal[met], axis=1), 1, atol=1e-12)
        assert (np.einsum("ni,ni->n", hits.normal[met], rays[met]) < 0).all()
        # The normal is where the surface is steepest: a little along it is a little outside.
        assert (inside(body, hits.point[met] + 1e-4 * hits.normal[met]) > 1).all()
        assert (inside(body, hits.point[met] - 1e-4 * hits.normal[met]) < 1).all()
        steps = np.where(met, hits.depth, 3.0)
        for share in np.linspace(0.02, 0.98, 30):
            assert (inside(body, origin + share * steps[:, None] * rays) > 1 - 1e-9).all()
        assert (hits.depth[~met] == np.inf).all()
        assert not hits.normal[~met].any()


def test_the_nearest_of_many_is_seen():
    draws = np.random.default_rng(1)
    bodies = [
        solid(
            kind,
            draws.uniform([-3, 4, -2], [3, 12, 2]),
            draws.uniform(0.2, 1, 3),
            draws.uniform(0, 3),
        )
        for kind in ("box", "cylinder", "ellipsoid") * 5
    ]
    camera = _rays.camera_at((0, 0, 0), 0.1, -0.05, 0.2, 80.0, (60, 90))
    rays = _rays.centres(camera)
    together = _rays.trace(camera.position, rays, bodies)
    alone = np.stack([_rays.trace(camera.position, rays, [body]).depth for body in bodies])
    np.testing.assert_array_equal(together.depth, alone.min(axis=0))
    seen = np.isfinite(together.depth)
    np.testing.assert_array_equal(together.number[seen], alone.argmin(axis=0)[seen])


def test_a_box_casts_a_shadow():
    """A lamp 4 above the floor, a board of 1 x 1 half way: a shadow of 2 x 2."""
    floor, board = solid("box", (0, 0, -1), (9, 9, 1)), solid("box", (0, 0, 2), (0.5, 0.5, 1e-6))
    x, y = (each.ravel() for each in np.meshgrid(np.linspace(-3, 3, 50), np.linspace(-3, 3, 50)))
    points = np.stack([x, y, np.zeros_like(x)], axis=-1)
    up = np.broadcast_to([0.0, 0.0, 1.0], points.shape)
    hits = _rays.Hits(np.ones(len(x)), np.zeros(len(x), int), up, points)
    lamp = np.array([0.0, 0.0, 4.0])
    expected = np.where(np.maximum(np.abs(x), np.abs(y)) < 1, 0, 4 / np.sqrt(x**2 + y**2 + 16))
    np.testing.assert_allclose(_rays.lit(lamp, hits, [floor, board]), expected, atol=1e-9)


# --- Rooms ----------------------------------------------------------------------------------------


def unprojected(scene):
    depth = scene["depth"].astype(np.float64)
    return rays_of(ROOM, 0.81 * ROOM[1]) * depth


def alike(normal, depth):
    """Pixels whose neighbours lie in one plane with them."""
    same = (depth > 0)[..., 0]
    for axis in (0, 1):
        for shift in (-1, 1):
            other = np.roll(normal, shift, axis)
            same &= np.abs(other - normal).max(axis=-1) < 1e-9
    return same


@pytest.mark.parametrize("number", range(4))
def test_normals_are_those_of_the_unprojected_depth(number):
    scene = room(number)
    points, normal = unprojected(scene), scene["normal"]
    right = np.roll(points, -1, 1) - np.roll(points, 1, 1)
    up = np.roll(points, 1, 0) - np.roll(points, -1, 0)
    own = np.cross(right, up)
    own /= np.maximum(np.linalg.norm(own, axis=-1, keepdims=True), 1e-12)
    # Neighbours in two planes of one direction, as of a box and the wall behind it, are apart.
    near = alike(normal, scene["depth"])
    near &= np.abs(np.einsum("hwi,hwi->hw", right, normal)) < 1e-3
    near &= np.abs(np.einsum("hwi,hwi->hw", up, normal)) < 1e-3
    assert near.mean() > 0.5
    assert np.degrees(np.arccos(np.clip(np.sum(own * normal, -1)[near], -1, 1))).max() < 0.5


@pytest.mark.parametrize("number", range(4))
def test_what_is_missing_is_missing_in_depth_and_normals_together(number):
    scene = room(number)
    missing = scene["depth"][..., 0] == 0
    assert 0.05 < missing.mean() < 0.4
    assert missing[0].all()
    assert missing[-1].all()
    assert missing[:, 0].all()
    assert missing[:, -1].all()
    np.testing.assert_array_equal((scene["normal"] == 0).all(axis=-1), missing)
    lengths = np.linalg.norm(scene["normal"][~missing], axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-12)
    assert 0.2 < scene["depth"][~missing].min() < scene["depth"].max() < 8
    # Seen from the front.
    facing = np.sum(scene["normal"] * rays_of(ROOM, 0.81 * ROOM[1]), axis=-1)
    assert (facing[~missing] < 0).all()
    assert 0 < (scene["label"] == -1).mean() < 0.2
    assert ((scene["label"] == -1) & ~missing).any()


def test_rooms_have_the_types_of_the_archive():
    types = {field: (array.dtype, array.shape) for field, array in room(0).items()}
    assert types == {
        "image": (np.float64, (96, 128, 3)),
        "label": (np.float32, (96, 128)),
        "depth": (np.float32, (96, 128, 1)),
        "normal": (np.float64, (96, 128, 3)),
    }
    assert 0 <= room(0)["image"].min() < 0.2 < 0.8 < room(0)["image"].max() <= 1


@pytest.mark.parametrize("number", range(6))
def test_floors_are_planes_and_walls_stand_on_them(number):
    scene = room(number)
    floor, ceiling, wall = of_class(NYUV2_CLASSES, "floor", "ceiling", "wall")
    points, there = unprojected(scene), scene["depth"][..., 0] > 0
    label, normal = np.where(there, scene["label"], -1), scene["normal"]
    up = normal[label == floor]
    np.testing.assert_allclose(up, np.broadcast_to(up[0], up.shape), atol=1e-12)
    heights = points[label == floor] @ up[0]
    np.testing.assert_allclose(heights, heights[0], atol=1e-5)
    assert -1.7 < heights[0] < -1.2  # as low as the camera is high
    np.testing.assert_allclose(normal[label == ceiling] @ up[0], -1, atol=1e-12)
    np.testing.assert_allclose(normal[label == wall] @ up[0], 0, atol=1e-12)
    assert (points[label != -1] @ up[0] > heights[0] - 1e-5).all()


def test_a_dozen_rooms_hold_all_classes():
    labels = np.stack([room(number, split=1)["label"] for number in range(12)])
    counts = np.bincount(labels.astype(int).ravel() + 1, minlength=14)
    assert (counts[1:] > 100).all(), dict(zip(NYUV2_CLASSES, counts[1:], strict=True))


def features(scenes, size):
    """Of each pixel: its colour, that of its surroundings, and where it is."""
    y, x = np.mgrid[: size[0], : size[1]] / size[0]
    total = []
    for scene in scenes:
        image = scene["image"]
        around = [np.roll(image, shift, axis) for axis in (0, 1) for shift in (-6, 6)]
        total.append(np.concatenate([image, *around, np.stack([y, x], axis=-1)], axis=-1))
    return np.stack(total).reshape(-1, 17)[::5]


@pytest.mark.parametrize(("draw", "field"), [(room, "label"), (street, "label_7")])
def test_classes_and_depth_can_be_told_from_the_pictures(draw, field):
    """By far more than by what is most frequent, on scenes that were not seen."""
    size = ROOM if draw is room else STREET
    scenes = [draw(number) for number in range(16)], [draw(number, 1) for number in range(8)]
    (x, new_x), (labels, new_labels), (depth, new_depth) = (
        [features(part, size) for part in scenes],
        *(
            [np.stack([scene[name] for scene in part]).ravel()[::5] for part in scenes]
            for name in (field, "depth")
        ),
    )
    known, new_known = labels >= 0, new_labels >= 0
    tree = DecisionTreeClassifier(min_samples_leaf=20, random_state=0)
    right = tree.fit(x[known], labels[known]).score(new_x[new_known], new_labels[new_known])
    guess = np.bincount(new_labels[new_known].astype(int)).max() / new_known.sum()
    assert right > guess + 0.15, (right, guess)
    known, new_known = depth > 0, new_depth > 0
    tree = DecisionTreeRegressor(min_samples_leaf=20, random_state=0).fit(x[known], depth[known])
    error = np.abs(tree.predict(new_x[new_known]) - new_depth[new_known]).mean()
    blind = np.abs(np.median(depth[known]) - new_depth[new_known]).mean()
    assert error < 0.8 * blind, (error, blind)


# --- Streets --------------------------------------------------------------------------------------


def test_streets_have_the_types_of_the_archive():
    types = {field: (array.dtype, array.shape) for field, array in street(0).items()}
    assert types == {
        "image": (np.float32, (64, 128, 3)),
        "label_7": (np.float32, (64, 128)),
        "depth": (np.float32, (64, 128, 1)),
    }
    assert 0 <= street(0)["image"].min() < 0.2 < 0.8 < street(0)["image"].max() <= 1


@pytest.mark.parametrize("number", range(4))
def test_roads_are_planes_at_the_inverse_of_inverse_depth(number):
    """Of two heights, the road's and the pavement's, under the camera."""
    _, camera = _streets.built(np.random.default_rng([7, 0, number]), STREET)
    scene = street(number)
    (flat,) = of_class(CITYSCAPES_CLASSES, "flat")
    there = (scene["label_7"] == flat) & (scene["depth"][..., 0] > 0)
    focal = 1.105 * STREET[1]
    rays = rays_of(STREET, focal)[there] @ camera.axes
    depth = _streets.SCALE / scene["depth"][..., 0][there].astype(np.float64)
    heights = camera.position[2] + depth * rays[:, 2]
    curb = np.isclose(heights, 0.1, atol=1e-3)
    assert np.isclose(heights[~curb & (depth < 80)], 0, atol=1e-3).mean() > 0.97  # else its edge
    assert there.mean() > 0.1


@pytest.mark.parametrize("number", range(4))
def test_skies_and_the_own_car_have_no_depth(number):
    scene = street(number)
    label, inverse = scene["label_7"], scene["depth"][..., 0]
    (sky,) = of_class(CITYSCAPES_CLASSES, "sky")
    assert (label == sky).any()
    assert not inverse[label == sky].any()
    assert not inverse[:, : STREET[1] // 20].any()
    assert (label[-1, 40:88] == -1).all()
    assert not inverse[-1, 40:88].any()
    assert 0.03 < (label == -1).mean() < 0.2
    assert ((label == -1) & (inverse > 0)).any()
    assert 0.2 < (inverse > 0).mean() < 0.95
    # From some metres to the end of the street.
    there = inverse[inverse > 0]
    assert 0.008 < np.median(there) < 0.03
    assert there.min() < 0.005
    assert 0.025 < there.max() < 0.3


def test_a_dozen_streets_hold_all_classes():
    labels = np.stack([street(number, split=1)["label_7"] for number in range(12)])
    counts = np.bincount(labels.astype(int).ravel() + 1, minlength=8)
    assert (counts[1:] > 100).all(), dict(zip(CITYSCAPES_CLASSES, counts[1:], strict=True))


# --- Seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "size"), [(_rooms, ROOM), (_streets, STREET)])
def test_a_seed_is_a_scene(module, size):
    first, again, other = (module.scene([7, 0, number], size) for number in (3, 3, 4))
    for field, array in first.items():
        np.testing.assert_array_equal(array, again[field])
        assert (array != other[field]).mean() > 0.05
    # Of the same scene, whatever its size: a pixel in the middle of three is one of the smaller.
    large = module.scene([7, 0, 3], (3 * size[0], 3 * size[1]))
    depth, small = large["depth"][1::3, 1::3], first["depth"]
    both = (depth > 0) & (small > 0)
    np.testing.assert_allclose(depth[both], small[both], rtol=1e-6)
    assert both.mean() > 0.3
