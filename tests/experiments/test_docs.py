"""The documentation's tables are those of the runs that are kept, at the studies' full settings."""

import json
import re
from pathlib import Path

import pytest

from famo_jax.experiments import __main__ as listing
from famo_jax.experiments import _command, _files, _tables

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "studies.md"
STUDIES = listing.studies()
KEPT = sorted(path.stem for path in (DOCS / "runs").glob("*.json"))


def test_every_table_is_made_of_a_run_that_is_kept():
    page = PAGE.read_text("utf-8")
    assert _tables.refreshed(page, DOCS / "runs") == page
    blocks = re.findall(r"^```(.*)\n(.*)$", page, re.M)[::2]
    assert sorted(re.findall(r"experiments\.(\w+)", " ".join(first for _, first in blocks))) == KEPT
    assert all(first.startswith("$ python -m famo_jax.experiments.") for _, first in blocks)
    assert not re.findall(r"^ *\|", page, re.M)  # no table by hand
    assert "…" not in page


def test_what_is_kept_is_of_studies():
    assert set(KEPT) <= set(STUDIES)


@pytest.mark.parametrize("name", KEPT)
def test_a_run_that_is_kept_is_of_the_command_that_the_page_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    kept = json.loads((DOCS / "runs" / f"{name}.json").read_text("utf-8"))
    shown = re.search(
        rf"^\$ python -m famo_jax.experiments.{name}(.*)", PAGE.read_text("utf-8"), re.M
    )
    options = vars(_command.parse(STUDIES[name], [*shown[1].split(), "--out", str(tmp_path)]))
    for key, value in _files.plain(options, None).items():
        if key in kept["settings"]:
            assert kept["settings"][key] == value, key
    assert (DOCS / "runs" / f"{name}.json").stat().st_size < 80_000


def test_every_study_has_a_section_and_every_picture_is_shown():
    page = PAGE.read_text("utf-8")
    for name, study in STUDIES.items():
        assert f"`python -m famo_jax.experiments.{name}`" in page
        if name in KEPT:
            assert all(f"]({picture})" in page for picture in study.pictures)
    shown = set(re.findall(r"\]\((\w+\.png)\)", page))
    assert shown == {path.name for path in DOCS.glob("*.png")}


def test_a_table_is_written_into_a_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("a\n```text\n$ python -m famo_jax.experiments.toy\nold\n```\nb\n")
    monkeypatch.chdir(DOCS.parent)
    monkeypatch.setattr("sys.argv", ["", "--write", str(page)])
    listing.main()
    text = page.read_text()
    assert text.startswith("a\n```text\n$ python -m famo_jax.experiments.toy\nDistance of")
    assert text.endswith("\n```\nb\n")
    assert not capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [""])
    listing.main()
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in STUDIES)
