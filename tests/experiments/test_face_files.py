"""CelebA's files: what is read, cached and refused."""

import io

import numpy as np
import pytest
from PIL import Image

from famo_jax.experiments.problems import _face_files as files

COUNT = 11
PARTS = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "famo_jax"


def picture(index):
    """Smooth enough that JPEG changes it little."""
    y, x = np.mgrid[:218, :178]
    waves = [np.sin(x / (20 + index)), np.cos(y / 30 + index), np.sin((x + y) / 40)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=-1) * 100 + 128))


ATTRIBUTES = np.random.default_rng(0).integers(0, 2, (COUNT, 40))


@pytest.fixture
def root(tmp_path):
    """The official folders."""
    root = tmp_path / "data"
    for folder in ("Img/img_align_celeba", "Anno", "Eval"):
        (root / folder).mkdir(parents=True)
    lines = [str(COUNT), " ".join(files.NAMES)]
    for index, row in enumerate(ATTRIBUTES):
        signs = "".join("  1" if value else " -1" for value in row)  # of three signs each
        lines.append(f"{index + 1:06d}.jpg{signs}")
        picture(index).save(root / f"Img/img_align_celeba/{index + 1:06d}.jpg", quality=90)
    (root / "Anno/list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    parts = "".join(f"{index + 1:06d}.jpg {part}\n" for index, part in enumerate(PARTS))
    (root / "Eval/list_eval_partition.txt").write_text(parts)
    return root


def test_names_are_the_official_ones_in_order():
    assert len(files.NAMES) == 40
    assert list(files.NAMES) == sorted(files.NAMES)
    places = [4, 20, 24, 31, 39]
    assert [files.NAMES[at] for at in places] == ["Bald", "Male", "No_Beard", "Smiling", "Young"]


def test_faces_are_read_by_split(root):
    for part, split in enumerate(files.SPLITS):
        rows = np.flatnonzero(np.array(PARTS) == part)
        faces = files.load_celeba(root, split)
        assert [array.dtype for array in faces] == [np.uint8, np.uint8]
        assert all(isinstance(array, np.memmap) for array in faces)
        np.testing.assert_array_equal(faces.attributes, ATTRIBUTES[rows])
        assert faces.image.shape == (len(rows), 64, 64, 3)
        for row, image in zip(rows, faces.image, strict=True):
            drawn = np.asarray(picture(row).resize((64, 64), Image.Resampling.BILINEAR), float)
            assert np.abs(drawn - image).mean() < 3


def test_pictures_are_resized_with_antialiasing(root):
    """Each kept pixel is a mean of some, weighed by triangles of 178/64 and 218/64 pixels."""

    def triangles(size):
        centres = (np.arange(64) + 0.5) * size / 64
        distance = np.abs(centres[:, None] - np.arange(size) - 0.5) / (size / 64)
        weights = np.maximum(1 - distance, 0)
        return weights / weights.sum(axis=1, keepdims=True)

    file = root / "Img/img_align_celeba/000003.jpg"
    whole = np.asarray(Image.open(file), float)
    expected = np.einsum("yi,xj,ijc->yxc", triangles(218), triangles(178), whole)
    assert np.abs(expected - files.read_picture(file)).max() <= 1


def test_the_flat_folder_of_torchvision(root):
    expected = np.array(files.load_celeba(root, "val").image)
    for path in list(root.glob("*/*")):
        path.rename(root / path.name)
    for folder in ("Img", "Anno", "Eval"):
        (root / folder).rmdir()
    np.testing.assert_array_equal(files.load_celeba(str(root), "val").image, expected)


def test_the_last_picture_is_read_without_a_last_newline(root):
    for file in (root / "Anno/list_attr_celeba.txt", root / "Eval/list_eval_partition.txt"):
        file.write_text(file.read_text().rstrip("\n"))
    assert len(files.load_celeba(root, "test").image) == 3


def test_grey_pictures_have_three_channels(root):
    picture(0).convert("L").save(root / "Img/img_align_celeba/000001.jpg")
    first = files.load_celeba(root, "train").image[0]
    np.testing.assert_array_equal(first, np.repeat(first[..., :1], 3, axis=-1))


def test_other_splits_are_refused(root):
    with pytest.raises(ValueError, match="split: expected any of train, val, test, got 'all'"):
        files.load_celeba(root, "all")


def test_what_was_read_is_cached(root, monkeypatch):
    first = files.load_celeba(root, "train")
    monkeypatch.setattr(files, "read_picture", None)
    for one, other in zip(first, files.load_celeba(root, "train"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_attributes_are_not_taken_from_the_cache(root):
    before = files.load_celeba(root, "train").attributes
    file = root / "Anno/list_attr_celeba.txt"
    file.write_text(file.read_text().replace(" -1", "  1", 1))
    assert files.load_celeba(root, "train").attributes.sum() == before.sum() + 1


# --- What is refused ------------------------------------------------------------------------------


ATTR, SPLIT = "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"
JPEG = "Img/img_align_celeba/000009.jpg"


def replaced(name, old, new):
    def damage(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return damage


def put(content, name=JPEG):
    return lambda root: (root / name).write_bytes(content(root) if callable(content) else content)


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


DAMAGES = [
    (
        lambda root: (root / ATTR).unlink(),
        r"^a folder with img_align_celeba, list_attr_celeba\.txt, list_eval_partition\.txt, "
        r"got .*data without list_attr_celeba\.txt$",
    ),
    (lambda root: (root / SPLIT).unlink(), r"got .*data without list_eval_partition\.txt$"),
    (
        lambda root: (root / "Img/img_align_celeba").rename(root / "Img/pictures"),
        r"got .*data without img_align_celeba$",
    ),
    (
        lambda root: (root / JPEG).unlink(),
        r"000009\.jpg: expected a picture, as list_attr_celeba\.txt has it, got none$",
    ),
    (put(b""), r"000009\.jpg: expected a picture \(cannot identify image file it\)$"),
    (put(b"foreign"), r"000009\.jpg: expected a picture \(cannot identify image file it\)$"),
    (
        put(lambda root: (root / JPEG).read_bytes()[:2000]),
        r"000009\.jpg: expected a picture \(image file is truncated",
    ),
    (put(png(64, 64)), r"000009\.jpg: expected a picture of 178 x 218, got 64 x 64$"),
    (put(png(218, 178)), r"000009\.jpg: expected a picture of 178 x 218, got 218 x 178$"),
    (put(b"", ATTR), r"list_attr_celeba\.txt: expected 40 names in line 2, from 5_o_Clock"),
    (replaced(ATTR, "Bald Bangs", "Bangs Bald"), r"expected 40 names in line 2"),
    (replaced(ATTR, "Young", "Young Old"), r"expected 40 names in line 2"),
    (
        replaced(ATTR, "11\n", "12\n"),
        r"list_attr_celeba\.txt: expected the number of its faces, 11, in line 1, got '12'$",
    ),
    (
        put(lambda root: (root / ATTR).read_bytes()[:-200], ATTR),
        r"expected the number of its faces, 10, in line 1, got '11'$",
    ),
    (replaced(ATTR, " -1", " 0"), r"line 3: expected a name and 40 of -1 and 1, got '000001\.jpg"),
    (replaced(ATTR, "  1\n", "\n"), r"line \d+: expected a name and 40 of -1 and 1"),
    (replaced(ATTR, "000004.jpg", ""), r"line 6: expected a name and 40 of -1 and 1"),
    (
        replaced(SPLIT, "000004.jpg 0\n", ""),
        r"list_eval_partition\.txt: expected 11 lines, as list_attr_celeba\.txt .*, got 10$",
    ),
    (
        replaced(SPLIT, "000004", "000005"),
        r"line 4: expected 000004\.jpg and 0, 1 or 2, got '000005\.jpg 0'$",
    ),
    (
        replaced(SPLIT, "000009.jpg 2", "000009.jpg 3"),
        r"line 9: expected 000009\.jpg and 0, 1 or 2",
    ),
    (replaced(SPLIT, "000009.jpg 2", "000009.jpg"), r"line 9: expected .*, got '000009\.jpg'$"),
    (replaced(SPLIT, "000009.jpg 2", ""), r"line 9: expected 000009\.jpg and 0, 1 or 2, got ''$"),
    (
        lambda root: (root / SPLIT).write_text((root / SPLIT).read_text().replace(" 2", " 1")),
        r"list_eval_partition\.txt: expected faces of test, got none$",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_files_end_in_one_line(root, cache, damage, message):
    damage(root)
    with pytest.raises(OSError, match=message) as error_info:
        files.load_celeba(root, "test")
    assert "\n" not in str(error_info.value)
    assert not cache.exists() or not list(cache.iterdir())
