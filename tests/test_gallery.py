"""The gallery's programs run, show what their page says, and print what is stored beside them."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rooms(results):
    for better in ("1 / first loss", "FAMO"):
        assert results[better]["wrong"] < results["mean"]["wrong"]
    assert results["FAMO"]["error"] < 0.8 * results["mean"]["error"]


def pinn(results):
    assert results["FAMO"] < results["mean"] < 0.02


def labels(results):
    for task in ("digit", "holes", "ink"):
        assert results["all, FAMO"][task] < results["complete rows"][task]
        assert results["all, mean"][task] < results["complete rows"][task]


def finetune(results):
    alone, mean, famo = (
        results[name].mean(axis=0) for name in ("new alone", "both, mean", "both, FAMO")
    )
    assert mean[0] < 0.5 * alone[0]  # it does not forget
    assert mean[1] < famo[1]  # and learns what FAMO does not


def critic(results):
    assert (
        np.median(results["1 / first loss"])
        < np.median(results["mean"])
        < np.median(results["FAMO"])
    )
    assert results["1 / first loss"][-1] < 0.3


@pytest.mark.parametrize("check", [rooms, pinn, labels, finetune, critic])
def test_program(check, capsys):
    check(load(DOCS / "gallery" / f"{check.__name__}.py").main())
    printed = capsys.readouterr().out
    stored = (DOCS / "gallery" / f"{check.__name__}.txt").read_text(encoding="utf-8")
    assert without_figures(printed) == without_figures(stored)


def test_all_programs_are_checked():
    programs = {path.stem for path in (DOCS / "gallery").glob("*.py")}
    assert programs == {"rooms", "pinn", "labels", "finetune", "critic"}


def test_why_losses_fight(tmp_path):
    """What docs/why.md says of its picture."""
    figures = load(DOCS / "pictures" / "why.py").main(tmp_path)
    assert (tmp_path / "why.png").stat().st_size > 10_000
    left = figures["left over"]
    assert np.all(left["mean"] > 0.1)
    assert np.all(left["1 / first loss"] < 2e-2)
    assert np.all(left["FAMO"] < 2e-2)
    assert 5 < figures["lengths"] < 50
    assert figures["conflict"] > 0.5


def without_figures(text):
    return re.sub(r"[ \d.]*\d", "#", text)
