"""``python -m famo_jax.experiments.make``: it writes what readers read, or words are said."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from famo_jax.experiments.make import __main__ as make
from famo_jax.experiments.make import _faces, _rooms, _streets, _write
from famo_jax.experiments.problems import _dense_files, _face_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(out, arguments):
    make.main([*arguments.split(), "--out", str(out)])
    return out


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- What is written ------------------------------------------------------------------------------


def test_rooms_are_read_to_the_bit(tmp_path, capsys):
    out = made(tmp_path / "rooms", "rooms --count 3 2 --size 64x96 --seed 5")
    for split, (name, count) in enumerate({"train": 3, "val": 2}.items()):
        scenes = _dense_files.load_nyuv2(out, name)
        assert len(scenes.image) == count
        for number in range(count):
            drawn = _rooms.scene([5, split, number], (64, 96))
            np.testing.assert_array_equal(scenes.image[number], drawn["image"].astype(np.float32))
            np.testing.assert_array_equal(scenes.label[number], drawn["label"])
            np.testing.assert_array_equal(scenes.depth[number], drawn["depth"][..., 0])
            np.testing.assert_array_equal(scenes.normal[number], drawn["normal"].astype(np.float32))
    assert "rooms: 3 train, 2 val, sheet.png, " in capsys.readouterr().out
    facts = json.loads((out / "made.json").read_text())
    assert facts == {"made": "rooms", "counts": {"train": 3, "val": 2}, "height": 64, "width": 96,
                     "seed": 5}  # fmt: skip
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size[0] > 4 * 96
    assert not list(out.glob("*.tmp"))


def test_streets_are_read_to_the_bit_and_other_labels_are_not(tmp_path):
    out = made(tmp_path / "streets", "streets --count 2 3 --size 32x64")
    scenes = _dense_files.load_cityscapes(out, "val")
    assert scenes.normal is None
    for number in range(3):
        drawn = _streets.scene([0, 1, number], (32, 64))
        np.testing.assert_array_equal(scenes.image[number], drawn["image"])
        np.testing.assert_array_equal(scenes.label[number], drawn["label_7"])
        np.testing.assert_array_equal(scenes.depth[number], drawn["depth"][..., 0])
    assert np.load(out / "val" / "label_19" / "2.npy").max() > 6


def test_faces_are_read_to_the_bit(tmp_path):
    out = made(tmp_path / "faces", "faces --count 4 2 3 --seed 1")
    for split, (name, count) in enumerate({"train": 4, "val": 2, "test": 3}.items()):
        faces = _face_files.load_celeba(out, name)
        assert len(faces.image) == count
        for number in range(count):
            picture, attributes = _faces.face([1, split, number])
            np.testing.assert_array_equal(faces.attributes[number], attributes)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=90)
            small = Image.open(buffer).resize((64, 64), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(faces.image[number], np.asarray(small))
    lines = (out / "Anno" / "list_attr_celeba.txt").read_text().splitlines()
    assert lines[0] == "9"
    assert lines[2].startswith("000001.jpg ")
    assert {len(line) for line in lines[2:]} == {10 + 3 * 40}  # two blanks before a 1
    assert (out / "Eval" / "list_eval_partition.txt").read_text().endswith("000009.jpg 2\n")


@pytest.mark.parametrize("name", ["rooms --size 32x32", "streets --size 32x32", "faces"])
def test_a_seed_is_a_folder(tmp_path, name):
    counts = " 2 2" if name == "faces" else " 2"
    first = contents(made(tmp_path / "first", f"{name} --count 2{counts} --seed 3"))
    assert contents(made(tmp_path / "again", f"{name} --count 2{counts} --seed 3")) == first
    other = contents(made(tmp_path / "other", f"{name} --count 2{counts} --seed 4"))
    assert other.keys() == first.keys()
    assert sum(other[path] == first[path] for path in first) <= 1  # the split's list is the same


def test_more_of_them_begin_with_the_same(tmp_path):
    few = contents(made(tmp_path / "few", "rooms --count 1 1 --size 32x32"))
    more = contents(made(tmp_path / "more", "rooms --count 3 2 --size 32x32 --processes 2"))
    assert all(more[path] == few[path] for path in few if path.endswith(".npy"))
    assert len(more) == len(few) + 4 * 3


def test_sizes_and_counts_where_none_are_given(tmp_path):
    for name, size, counts in [
        ("rooms", (96, 128), [200, 50]),
        ("streets", (64, 128), [200, 50]),
        ("faces", (218, 178), [800, 100, 100]),
    ]:
        options = make.parse([name, "--out", str(tmp_path)])
        assert (options.size, options.count, options.seed) == (size, counts, 0)
    assert make.parse(["rooms", "--out", str(tmp_path), "--size", "full"]).size == (288, 384)
    assert make.parse(["streets", "--out", str(tmp_path), "--size", "full"]).size == (128, 256)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: NAME, --out"),
        ("rooms", "the following arguments are required: --out"),
        ("cars --out {new}", "NAME: expected any of rooms, streets, faces, got 'cars'"),
        ("rooms --out {file}", "--out: expected a folder to write to, got "),
        ("rooms --out {full}", "--out: expected a folder without train, val, got "),
        ("rooms --out {full}", "full with val"),
        ("rooms --out {new} --count 3", "--count: expected 2 numbers, of train, val, got 1"),
        ("faces --out {new} --count 3 3", "--count: expected 3 numbers, of train, val, test"),
        ("rooms --out {new} --count 3 0", "--count: expected a positive integer, got '0'"),
        ("rooms --out {new} --count 100000 1", "--count: expected at most 100000 in all"),
        ("rooms --out {new} --size huge", "--size: expected small, full or HEIGHTxWIDTH in mul"),
        ("rooms --out {new} --size 33x64", "got '33x64'"),
        ("rooms --out {new} --size 32x", "got '32x'"),
        ("rooms --out {new} --size 32x32x32", "got '32x32x32'"),
        ("rooms --out {new} --size 0x32", "got '0x32'"),
        ("faces --out {new} --size 64x64", "--size: expected full, got '64x64'"),
        ("rooms --out {new} --seed -1", "--seed: expected a whole number, got '-1'"),
        ("rooms --out {new} --processes 0", "--processes: expected a positive integer, got '0'"),
        ("rooms --out {new} --siz full", "unrecognized arguments: --siz full"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, capsys, arguments, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "full" / "val").mkdir(parents=True)
    paths = {name: tmp_path / name for name in ("new", "file", "full")}
    with pytest.raises(SystemExit) as exit_info:
        make.main(arguments.format(**paths).split())
    assert exit_info.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert words in last


def test_what_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def stopped(seed, size):
        if seed[2] == 2:
            raise KeyboardInterrupt
        return _rooms.scene(seed, size)

    kind = _write.KINDS["rooms"]._replace(draw=stopped)
    monkeypatch.setitem(_write.KINDS, "rooms", kind)
    with pytest.raises(SystemExit) as exit_info:
        make.main(["rooms", "--out", str(tmp_path / "out"), "--count", "4", "1", "--size", "32x32"])
    assert exit_info.value.code == 130
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_said_in_a_line(tmp_path, limit_files):
    limit_files(1000)
    with pytest.raises(SystemExit) as exit_info:
        make.main(["rooms", "--out", str(tmp_path / "out"), "--count", "2", "1", "--size", "32x32"])
    assert str(exit_info.value.code).startswith("error: ")
    assert "\n" not in str(exit_info.value.code)
    assert not list((tmp_path / "out").iterdir())
