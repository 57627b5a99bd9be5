"""NYU-v2's and CityScapes' files: what is read, cached and refused."""

import io
import os
import shutil

import numpy as np
import pytest

from famo_jax.experiments.problems import _cache
from famo_jax.experiments.problems import _dense_files as files

H, W, COUNT = 6, 8, 11  # so many that names have one digit and two
LOAD = {"nyuv2": files.load_nyuv2, "cityscapes": files.load_cityscapes}
CLASSES = {"nyuv2": 13, "cityscapes": 7}
LABELS = {"nyuv2": "label", "cityscapes": "label_7"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "famo_jax"


def scene(name, index):
    """A picture in the types in which the archives seem to have theirs."""
    draws = np.random.default_rng([CLASSES[name], index])
    normal = draws.normal(size=(H, W, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    arrays = {
        "image": draws.random((H, W, 3)),
        LABELS[name]: draws.integers(-1, CLASSES[name], (H, W)).astype(np.float32),
        "depth": draws.random((H, W, 1), np.float32) * (draws.random((H, W, 1)) < 0.9),
        "normal": normal * (draws.random((H, W, 1)) < 0.9),
    }
    return arrays if name == "nyuv2" else {k: v for k, v in arrays.items() if k != "normal"}


def write(root, scenes):
    for index, arrays in enumerate(scenes):
        for folder, array in arrays.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            np.save(root / folder / f"{index}.npy", array)


@pytest.fixture(params=["nyuv2", "cityscapes"])
def name(request):
    return request.param


@pytest.fixture
def tree(tmp_path, name):
    write(tmp_path / "data" / "val", [scene(name, index) for index in range(COUNT)])
    return tmp_path / "data"


def contents(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


# --- What is read ---------------------------------------------------------------------------------


def test_pictures_are_read_in_the_order_of_their_numbers(tree, name):
    scenes = LOAD[name](tree, "val")
    for index in range(COUNT):
        expected = scene(name, index)
        np.testing.assert_array_equal(scenes.image[index], expected["image"].astype(np.float32))
        np.testing.assert_array_equal(scenes.label[index], expected[LABELS[name]])
        np.testing.assert_array_equal(scenes.depth[index], expected["depth"][..., 0])
        if name == "nyuv2":
            normal = expected["normal"].astype(np.float32)
            np.testing.assert_array_equal(scenes.normal[index], normal)
    assert scenes.image.shape == (COUNT, H, W, 3)
    assert scenes.label.shape == scenes.depth.shape == (COUNT, H, W)
    types = [array.dtype for array in scenes if array is not None]
    assert types == [np.float32, np.int8, np.float32, np.float32][: len(types)]
    assert (scenes.normal is None) == (name == "cityscapes")
    assert all(isinstance(array, np.memmap) for array in scenes if array is not None)


@pytest.mark.parametrize("dtype", ["float16", ">f8", "longdouble"])
def test_any_float_is_read(tree, name, dtype):
    expected = scene(name, 1)
    (tree / "val" / "image" / "1.npy").unlink()
    np.save(tree / "val" / "image" / "1.npy", np.asfortranarray(expected["image"].astype(dtype)))
    image = LOAD[name](tree, "val").image[1]
    np.testing.assert_array_equal(image, expected["image"].astype(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", ["int8", "int64", "float64"])
def test_labels_of_any_type_are_read(tree, name, dtype):
    label = scene(name, 1)[LABELS[name]]
    np.save(tree / "val" / LABELS[name] / "1.npy", label.astype(dtype))
    np.testing.assert_array_equal(LOAD[name](tree, "val").label[1], label)


def test_other_labels_and_hidden_files_do_not_count(tree, name):
    (tree / "val" / "label_19").mkdir()
    (tree / "val" / "label_19" / "0.npy").write_bytes(b"")
    (tree / "val" / "image" / "._0.npy").write_bytes(b"")
    (tree / "val" / "image" / "notes.txt").write_text("")
    assert len(LOAD[name](str(tree), "val").image) == COUNT


def test_libmtls_name_of_cityscapes_labels(tmp_path):
    write(tmp_path / "val", [scene("cityscapes", index) for index in range(COUNT)])
    (tmp_path / "val" / "label_7").rename(tmp_path / "val" / "label")
    labels = files.load_cityscapes(tmp_path, "val").label
    np.testing.assert_array_equal(labels[1], scene("cityscapes", 1)["label_7"])


def test_splits_are_apart(tree, name):
    shutil.copytree(tree / "val", tree / "train")
    for folder in (tree / "train").iterdir():
        (folder / "10.npy").unlink()
    assert [len(LOAD[name](tree, split).image) for split in files.SPLITS] == [COUNT - 1, COUNT]
    with pytest.raises(ValueError, match="split: expected any of train, val, got 'test'"):
        LOAD[name](tree, "test")


# --- The cache ------------------------------------------------------------------------------------


def test_what_was_read_is_cached(tree, name, monkeypatch):
    told = []
    tell = lambda *numbers: told.append(numbers)
    first = LOAD[name](tree, "val", tell)
    assert told == [(done, COUNT) for done in range(1, COUNT + 1)]
    monkeypatch.setattr(files, "_checked", None)
    for one, other in zip(first, LOAD[name](tree, "val", None), strict=True):
        if one is not None:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-1], lambda old: b"foreign"])
def test_a_damaged_cache_is_made_again(tree, name, cache, damage):
    first = np.array(LOAD[name](tree, "val").depth)
    (file,) = cache.rglob("depth.npy")
    content = damage(file.read_bytes())
    file.unlink()
    file.write_bytes(content)
    np.testing.assert_array_equal(LOAD[name](tree, "val").depth, first)
    file.unlink()
    np.testing.assert_array_equal(LOAD[name](tree, "val").depth, first)


def test_changed_files_are_read_again_in_the_old_ones_place(tree, name, cache):
    before = LOAD[name](tree, "val")
    np.save(tree / "val" / "depth" / "3.npy", np.full((H, W, 1), 7.0))
    assert (LOAD[name](tree, "val").depth[3] == 7).all()
    assert (before.depth[3] < 7).all()  # what is mapped stays
    assert len(list(cache.iterdir())) == 1


def test_two_folders_do_not_meet(tree, name, cache):
    shutil.copytree(tree, tree.parent / "other")  # with the same times
    LOAD[name](tree, "val")
    LOAD[name](tree.parent / "other", "val")
    assert len(list(cache.iterdir())) == 2


def test_an_interrupted_cache_leaves_nothing(tree, name, cache, monkeypatch):
    read, reads = files._checked, []

    def stopped(path, *arguments):
        reads.append(path)
        if path.name == "7.npy":
            raise KeyboardInterrupt
        return read(path, *arguments)

    monkeypatch.setattr(files, "_checked", stopped)
    monkeypatch.setattr(_cache, "AT_ONCE", 2)
    with pytest.raises(KeyboardInterrupt):
        LOAD[name](tree, "val")
    assert len(reads) > 2 * len(scene(name, 0))
    assert not list(cache.iterdir())
    monkeypatch.setattr(files, "_checked", read)
    assert len(LOAD[name](tree, "val").image) == COUNT


def test_what_a_killed_program_leaves_is_not_believed(tree, name, cache):
    """Its folder is of another name, and is removed after a day."""
    LOAD[name](tree, "val")
    (whole,) = cache.iterdir()
    unfinished = whole.rename(whole.with_name(whole.name + "-x.tmp"))
    (unfinished / "image.npy").write_bytes(b"")
    assert LOAD[name](tree, "val").image[0].any()
    assert sorted(cache.iterdir()) == sorted([whole, unfinished])
    shutil.rmtree(whole)
    os.utime(unfinished, (0, 0))
    LOAD[name](tree, "val")
    assert list(cache.iterdir()) == [whole]


def test_without_a_place_to_cache_it_is_said(tree, name, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "val" / "image" / "0.npy"))
    with pytest.raises(OSError, match=r"expected a folder to cache data in, as XDG_CACHE_HOME"):
        LOAD[name](tree, "val")


def test_a_full_disk_is_said_and_leaves_nothing(tree, name, cache, limit_files):
    limit_files(1000)
    with pytest.raises(OSError, match=r"XDG_CACHE_HOME may name one, got File too large$"):
        LOAD[name](tree, "val")
    assert not list(cache.iterdir())


# --- What is refused ------------------------------------------------------------------------------


def saved(field, index, change, load=True):
    def damage(root, name):
        path = root / "val" / (LABELS[name] if field == "label" else field) / f"{index}.npy"
        if not load:
            path.write_bytes(change(path.read_bytes()))
            return
        np.save(path, change(np.load(path)), allow_pickle=True)

    return damage


def put(value, place=(2, 3)):
    def change(array):
        array[place] = value
        return array

    return change


def renamed(field, old, new):
    def damage(root, name):
        folder = root / "val" / (LABELS[name] if field == "label" else field)
        (folder / f"{old}.npy").rename(folder / f"{new}.npy")

    return damage


def pickled(array):
    return np.full(array.shape, None)


def archive(content):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((H, W, 3)))
    return buffer.getvalue()


DAMAGES = [
    (
        renamed("image", 4, 11),
        r"val/image: expected 0\.npy to 10\.npy, .* 11 images, got no 4\.npy",
    ),
    (renamed("image", 0, "00"), r"val/image: expected 0\.npy to 10\.npy, .*, got no 0\.npy"),
    (renamed("depth", 10, "10.old"), r"val/depth: expected 0\.npy to 10\.npy, .*, got no 10\.npy"),
    (renamed("label", 3, "003"), r"val/label(_7)?: expected 0\.npy to .*, got no 3\.npy"),
    (
        lambda root, name: shutil.copy(root / "val/depth/0.npy", root / "val/depth/11.npy"),
        r"val/depth: expected 0\.npy to 10\.npy, .*, got 11\.npy besides",
    ),
    (
        lambda root, name: shutil.rmtree(root / "val" / "depth"),
        r"^a folder with image, label(_7)?, depth(, normal)?, got .*/val without depth$",
    ),
    (
        lambda root, name: shutil.rmtree(root / "val"),
        r"^a folder with .*, got .*/val without image, label(_7)?, depth(, normal)?$",
    ),
    (
        lambda root, name: [path.unlink() for path in (root / "val" / "image").iterdir()],
        r"val/image: expected 0\.npy, 1\.npy and so on, got none",
    ),
    (
        saved("image", 5, lambda array: array[:, 1:]),
        r"image/5\.npy: expected shape \(6, 8, 3\), by that of image/0\.npy, got \(6, 7, 3\)",
    ),
    (
        saved("image", 0, lambda array: array.transpose(2, 0, 1)),
        r"image/0\.npy: expected shape \(3, 6, 3\), by that of image/0\.npy, got \(3, 6, 8\)",
    ),
    (saved("image", 0, np.ravel), r"image/0\.npy: expected an array of shape \[H, W, \.\.\.\]"),
    (saved("image", 1, lambda array: array[:0]), r"image/1\.npy: .*, got \(0, 8, 3\)"),
    (
        saved("depth", 2, lambda array: array[..., 0]),
        r"depth/2\.npy: expected shape \(6, 8, 1\), by that of image/0\.npy, got \(6, 8\)",
    ),
    (
        saved("label", 2, lambda array: array[..., None]),
        r"label(_7)?/2\.npy: expected shape \(6, 8\), .*, got \(6, 8, 1\)",
    ),
    (
        saved("depth", 2, put(np.nan)),
        r"depth/2\.npy: expected finite numbers, got nan at \(2, 3, 0\)",
    ),
    (
        saved("image", 10, put(-np.inf, (1, 2, 1))),
        r"image/10\.npy: expected finite numbers, got -inf at \(1, 2, 1\)",
    ),
    (
        saved("image", 9, lambda array: put(1e300, (1, 2, 1))(array)),
        r"image/9\.npy: expected finite numbers, got 1e\+300 at \(1, 2, 1\)",
    ),
    (saved("label", 2, put(np.nan)), r"label(_7)?/2\.npy: expected finite numbers, got nan"),
    (
        saved("label", 2, put(13)),
        r"label(_7)?/2\.npy: expected whole numbers from -1 to (6|12), got .* to 13",
    ),
    (saved("label", 2, put(-2)), r"label(_7)?/2\.npy: expected whole .*, got numbers from -2 to"),
    (saved("label", 2, put(0.5)), r"label(_7)?/2\.npy: expected whole numbers from -1 to"),
    (saved("label", 2, lambda array: (array % 255).astype(np.uint8)), r"from 0 to 254"),
    (
        saved("image", 3, lambda array: np.uint8(array * 255)),
        r"image/3\.npy: expected numbers in \[0, 1\], got \d+ to 2\d\d",
    ),
    (saved("image", 3, lambda array: array * 1j), r"image/3\.npy: expected numbers, .* complex128"),
    (saved("image", 3, lambda array: array.astype("U4")), r"expected numbers, got an array of <U4"),
    (saved("depth", 3, pickled), r"depth/3\.npy: expected an array of NumPy, got"),
    (saved("depth", 3, lambda old: b"", load=False), r"depth/3\.npy: expected an array of NumPy"),
    (saved("depth", 3, lambda old: old[:-9], load=False), r"depth/3\.npy: expected an array of"),
    (saved("depth", 3, lambda old: b"foreign", load=False), r"depth/3\.npy: expected an array of"),
    (saved("depth", 3, archive, load=False), r"depth/3\.npy: expected an array of NumPy"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_files_end_in_one_line(tree, name, cache, damage, message):
    damage(tree, name)
    with pytest.raises(OSError, match=message) as error_info:
        LOAD[name](tree, "val")
    assert "\n" not in str(error_info.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_damaged_normals_end_in_one_line(tmp_path):
    write(tmp_path / "val", [scene("nyuv2", index) for index in range(2)])
    for value, message in [
        (np.zeros((H, W)), r"normal/1\.npy: expected shape \(6, 8, 3\), .*, got \(6, 8\)"),
        (np.full((H, W, 3), 128), r"normal/1\.npy: expected numbers in \[-1, 1\], got 128 to 128"),
        (np.full((H, W, 3), np.nan), r"normal/1\.npy: expected finite numbers, got nan at"),
    ]:
        np.save(tmp_path / "val" / "normal" / "1.npy", value)
        with pytest.raises(OSError, match=message):
            files.load_nyuv2(tmp_path, "val")
