"""Every public name explains itself: ``help`` alone is enough to use it."""

import inspect

import pytest

import famo_jax

FUNCTIONS = {
    name: value for name in famo_jax.__all__ if inspect.isfunction(value := getattr(famo_jax, name))
}
STATES = {
    name: value
    for name in famo_jax.__all__
    if inspect.isclass(value := getattr(famo_jax, name)) and hasattr(value, "_fields")
}
SECTIONS = ("Args", "Returns", "Raises", "Example", "References")
WITHOUT = {"check_losses": {"Returns", "References"}, "losses_and_grads": {"References"}}


def test_all_names_are_covered():
    rest = set(famo_jax.__all__) - set(FUNCTIONS) - set(STATES)
    assert rest <= {"TrainState"}, rest
    assert len(FUNCTIONS) > 25
    assert len(STATES) == 14


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
