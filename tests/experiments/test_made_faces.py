"""Faces that the project draws: each attribute is to be seen."""

import functools

import numpy as np
import pytest
from PIL import Image

from famo_jax.experiments.make import _attributes, _faces
from famo_jax.experiments.problems._face_files import NAMES

NONE = dict.fromkeys(NAMES, False)
# Where each is drawn, in shares of height and width from above and the left.
EYES, LOWER, HEAD, NECK, ALL = (
    *((0.35, 0.64, 0.15, 0.85), (0.5, 0.95, 0.15, 0.85)),
    *((0.0, 0.92, 0.05, 0.95), (0.55, 1.0, 0.1, 0.9), (0, 1, 0, 1)),
)
PLACES = {
    "5_o_Clock_Shadow": LOWER, "Arched_Eyebrows": EYES, "Bags_Under_Eyes": EYES, "Bald": ALL,
    "Bangs": HEAD, "Big_Lips": LOWER, "Big_Nose": LOWER, "Black_Hair": ALL, "Blond_Hair": ALL,
    "Blurry": ALL, "Brown_Hair": ALL, "Bushy_Eyebrows": EYES, "Chubby": ALL, "Double_Chin": NECK,
    "Eyeglasses": EYES, "Goatee": LOWER, "Gray_Hair": ALL, "Heavy_Makeup": EYES,
    "High_Cheekbones": LOWER, "Male": ALL, "Mouth_Slightly_Open": LOWER, "Mustache": LOWER,
    "Narrow_Eyes": EYES, "Oval_Face": ALL, "Pale_Skin": ALL, "Pointy_Nose": (0.48, 0.7, 0.3, 0.7),
    "Receding_Hairline": HEAD, "Rosy_Cheeks": LOWER, "Sideburns": (0.4, 0.75, 0.1, 0.9),
    "Smiling": LOWER, "Straight_Hair": ALL, "Wavy_Hair": ALL, "Wearing_Earrings": (0.5, 0.75, 0, 1),
    "Wearing_Hat": HEAD, "Wearing_Lipstick": LOWER, "Wearing_Necklace": NECK,
    "Wearing_Necktie": NECK, "Young": HEAD,
}  # fmt: skip


def small(has, number):
    picture = _faces.drawn(has, np.random.default_rng(number))
    assert picture.size == (178, 218)
    return np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR), float)


plain = functools.cache(lambda number: small(NONE, number))


@pytest.mark.parametrize("name", PLACES)
def test_each_attribute_is_drawn_and_nothing_else_changes(name):
    """In pictures of the size in which they are learned from."""
    for number in range(3):
        change = np.abs(small(NONE | {name: True}, number) - plain(number)).max(axis=-1)
        top, bottom, left, right = np.multiply(PLACES[name], 64).astype(int)
        within = change[top:bottom, left:right].copy()
        assert (within > 12).sum() >= 8, (name, number)
        change[top:bottom, left:right] = 0
        assert change.max() < 4 or PLACES[name] is ALL, (name, number)


def test_the_two_others_follow_from_those_that_are_drawn():
    assert set(PLACES) | set(_attributes.FOLLOW) == set(NAMES)
    for name in _attributes.FOLLOW:
        np.testing.assert_array_equal(small(NONE | {name: True}, 0), plain(0))
    beards = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")
    for has in drawn_lots():
        assert has["No_Beard"] == (not any(has[name] for name in beards))
        assert _attributes.followed(has) == has
    assert _attributes.followed(NONE | {"Young": True})["Attractive"]
    for spoilt in ("Bald", "Blurry", "Chubby", "Eyeglasses"):
        assert not _attributes.followed(NONE | {"Young": True, spoilt: True})["Attractive"]


@functools.cache
def drawn_lots():
    draws = np.random.default_rng(0)
    return [_attributes.attributes(draws) for _ in range(4000)]


def test_attributes_are_as_rare_and_as_frequent_as_in_celeba():
    shares = {name: np.mean([has[name] for has in drawn_lots()]) for name in NAMES}
    assert list(drawn_lots()[0]) == list(NAMES)
    assert min(shares.values()) > 0.012
    assert 0.7 < shares["No_Beard"] < 0.9
    assert 0.7 < shares["Young"] < 0.85
    assert 0.35 < shares["Attractive"] < 0.6
    assert 0.35 < shares["Male"] < 0.5
    for rare in ("Bald", "Blurry", "Mustache", "Pale_Skin", "Wearing_Hat", "Double_Chin"):
        assert shares[rare] < 0.08, rare


def test_attributes_go_together_and_exclude_each_other():
    lots = drawn_lots()
    share = lambda name, of: np.mean([has[name] for has in lots if of(has)])
    assert share("Wearing_Lipstick", lambda has: has["Male"]) < 0.03
    assert share("Wearing_Lipstick", lambda has: not has["Male"]) > 0.7
    assert share("High_Cheekbones", lambda has: has["Smiling"]) > 0.7
    hair = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Bald")
    for names in (hair, ("Straight_Hair", "Wavy_Hair", "Bald"), ("Bangs", "Receding_Hairline")):
        assert max(sum(has[name] for name in names) for has in lots) == 1
    beard = ("Goatee", "Mustache", "Sideburns", "5_o_Clock_Shadow", "Bald", "Wearing_Necktie")
    assert all(has["Male"] for has in lots if any(has[name] for name in beard))


def test_a_seed_is_a_face():
    first, again, other = (_faces.face([3, 0, number]) for number in (1, 1, 2))
    assert first[0].tobytes() == again[0].tobytes()
    np.testing.assert_array_equal(first[1], again[1])
    assert np.mean(np.asarray(first[0]) != np.asarray(other[0])) > 0.5
    assert first[1].dtype == np.uint8
    assert first[1].shape == (40,)


def test_a_linear_classifier_tells_attributes_of_faces_that_it_has_not_seen():
    """From few and small pictures, and far from all of them: there is more to learn."""
    made = [_faces.face([5, 0, number]) for number in range(260)]
    x = np.stack([np.asarray(picture.resize((24, 24)), float).ravel() / 255 for picture, _ in made])
    x, y = x - x[:200].mean(axis=0), np.stack([attributes for _, attributes in made])
    gram = x[:200] @ x[:200].T + 3 * np.eye(200)
    scores = x[200:] @ (x[:200].T @ np.linalg.solve(gram, y[:200] - y[:200].mean(axis=0)))
    found = {}
    for name in ("Male", "Smiling", "Wearing_Lipstick", "Wavy_Hair", "Mouth_Slightly_Open"):
        place = NAMES.index(name)
        has, lacks = (scores[y[200:, place] == value, place] for value in (1, 0))
        found[name] = np.mean(has[:, None] > lacks)  # the area under the curve
    assert min(found.values()) > 0.75, found
