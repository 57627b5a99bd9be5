"""Every public name explains itself: ``help`` alone is enough to use it."""

import inspect
import pathlib
import re

import pytest

import famo_jax

PACKAGES = (famo_jax, famo_jax.weighting, famo_jax.aggregation)
NAMES = {name: getattr(package, name) for package in PACKAGES for name in package.__all__}
FUNCTIONS = {name: value for name, value in NAMES.items() if inspect.isfunction(value)}
STATES = {name: value for name, value in NAMES.items() if hasattr(value, "_fields")}
SECTIONS = ("Args", "Returns", "Raises", "Example", "References")
WITHOUT = {"check_losses": {"Returns", "References"}, "losses_and_grads": {"References"}}


def test_all_names_are_covered():
    assert set(NAMES) - set(FUNCTIONS) - set(STATES) == {"aggregation", "weighting"}
    assert len(FUNCTIONS) > 25
    assert len(STATES) >= 16


def test_a_name_has_one_home():
    assert len(NAMES) == sum(len(package.__all__) for package in PACKAGES)
    assert len(famo_jax.__all__) + len(["TrainState"]) <= 16
    assert "TrainState" in dir(famo_jax)


def test_the_site_documents_all_of_the_root():
    page = (pathlib.Path(__file__).parents[1] / "docs/api/famo_jax.md").read_text(encoding="utf-8")
    documented = re.findall(r"^.. auto\w+:: (\w+)$", page, re.MULTILINE)
    modules = {"aggregation", "weighting"}
    assert sorted(documented) == sorted({*famo_jax.__all__, "TrainState"} - modules)


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'fame'"):
        famo_jax.fame  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_sections(name):
    doc = inspect.getdoc(FUNCTIONS[name])
    absent = {section for section in SECTIONS if f"{section}:\n" not in doc}
    assert absent == WITHOUT.get(name, set())
    assert ">>> " in doc
    arguments = doc.split("Args:")[1].split("Example:")[0]
    for argument in inspect.signature(FUNCTIONS[name]).parameters:
        assert f"  {argument}: " in arguments, argument


@pytest.mark.parametrize("name", STATES)
def test_every_field_of_a_state_has_its_shape(name):
    lines = inspect.getsource(STATES[name]).splitlines()
    for field in STATES[name]._fields:
        (line,) = [line for line in lines if line.strip().startswith(f"{field}:")]
        assert " # " in line, line
