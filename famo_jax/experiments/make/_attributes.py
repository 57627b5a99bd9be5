"""What drawn faces have of CelebA's forty attributes.

How often an attribute occurs, and with which others, is near CelebA's. All are drawn but for two,
which follow from others.
"""

import numpy as np

from famo_jax.experiments.problems._face_files import NAMES

FOLLOW = ("Attractive", "No_Beard")  # from the others
BEARD = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")


def attributes(draws: np.random.Generator) -> dict[str, bool]:
    """What a face has, by name."""
    has = dict.fromkeys(NAMES, False)

    def give(name: str, share: float) -> bool:
        has[name] = bool(draws.random() < share)
        return has[name]

    def one_of(shares: dict[str, float]) -> None:
        total, place = 0.0, draws.random()
        for name, share in shares.items():
            has[name] = bool(total <= place < total + share)
            total += share

    male, young = give("Male", 0.42), give("Young", 0.77)
    bald = give("Bald", 0.07 if male and not young else 0.03 if male else 0)
    if bald:
        draws.random(2)
    else:
        one_of({
            "Black_Hair": 0.26, "Blond_Hair": 0.04 if male else 0.24, "Brown_Hair": 0.22,
            "Gray_Hair": 0.02 if young else 0.16,
        })  # fmt: skip
        one_of({"Straight_Hair": 0.22, "Wavy_Hair": 0.15 if male else 0.45})
        give("Bangs", 0.09 if male else 0.2) or give("Receding_Hairline", 0.05 if young else 0.2)
    give("Wearing_Hat", 0.07 if male else 0.035)
    if male and draws.random() < 0.42:
        one_of({"5_o_Clock_Shadow": 0.55, "Goatee": 0.3})
        give("Mustache", 0.2)
        give("Sideburns", 0.3)
    give("Wearing_Lipstick", 0.01 if male else 0.8)
    give("Heavy_Makeup", 0.0 if male else 0.8 if has["Wearing_Lipstick"] else 0.15)
    give("Rosy_Cheeks", 0.17 if has["Heavy_Makeup"] else 0.005)
    smiling = give("Smiling", 0.42 if male else 0.53)
    give("Mouth_Slightly_Open", 0.76 if smiling else 0.23)
    give("High_Cheekbones", 0.8 if smiling else 0.13)
    chubby = give("Chubby", 0.11 if male else 0.02)
    give("Double_Chin", 0.55 if chubby else 0.015)
    give("Oval_Face", 0.0 if chubby else 0.3)
    give("Big_Nose", 0.42 if male else 0.1) or give("Pointy_Nose", 0.36)
    give("Arched_Eyebrows", 0.06 if male else 0.42)
    give("Bushy_Eyebrows", 0.28 if male else 0.05)
    give("Eyeglasses", 0.04 if young else 0.15)
    give("Bags_Under_Eyes", 0.35 if male else 0.1)
    give("Wearing_Necktie", 0.17 if male else 0)
    give("Wearing_Necklace", 0.02 if male else 0.2)
    give("Wearing_Earrings", 0.02 if male else 0.31)
    for name, share in (
        ("Narrow_Eyes", 0.12),
        ("Big_Lips", 0.24),
        ("Pale_Skin", 0.045),
        ("Blurry", 0.05),
    ):
        give(name, share)
    return followed(has)


def followed(has: dict[str, bool]) -> dict[str, bool]:
    """With the two that follow from the others."""
    spoils = (
        "Blurry",
        "Chubby",
        "Double_Chin",
        "Bald",
        "Bags_Under_Eyes",
        "Big_Nose",
        "Eyeglasses",
    )
    rule = has["Young"] and not any(has[name] for name in spoils)
    return has | {"Attractive": rule, "No_Beard": not any(has[name] for name in BEARD)}
