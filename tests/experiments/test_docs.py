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
TEXT = PAGE.read_text("utf-8")
COMMANDS = re.findall(r"^```text\n\$ python -m famo_jax\.experiments\.(\w+)(.*)$", TEXT, re.M)
APART = ("source", "checkpoint_dir", "resume", "out")
# The name of the folder in results that it writes to: that of the study, or what --out says.
RUNS = {
    re.sub(r".* --out results/(\S+).*|.*", r"\1", arguments) or name: (name, arguments.split())
    for name, arguments in COMMANDS
}


def test_every_table_is_made_of_a_run_that_is_kept():
    assert _tables.refreshed(TEXT, DOCS / "runs") == TEXT
    assert sorted(RUNS) == sorted(path.stem for path in (DOCS / "runs").glob("*.json"))
    assert len(RUNS) == len(COMMANDS) == len(re.findall(r"^```", TEXT, re.M)) / 2
    assert not re.findall(r"^ *\|", TEXT, re.M)  # no table by hand
    assert "…" not in TEXT


@pytest.mark.parametrize("kept", RUNS)
def test_a_run_that_is_kept_is_of_the_command_that_the_page_shows(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    path = DOCS / "runs" / f"{kept}.json"
    settings = json.loads(path.read_text("utf-8"))["settings"]
    name, arguments = RUNS[kept]
    options = vars(_command.parse(STUDIES[name], [*arguments, "--out", str(tmp_path)]))
    options = _files.plain({key: own for key, own in options.items() if key not in APART}, None)
    place = "parameters" if name == "imitation" else "last-layer"
    # Options that came after a run, which did what they say now.
    later = {"aggregate_at": place, "logits_rate": 5e-3}
    assert {key: value for key, value in later.items() if key in options} | settings == options
    assert path.stat().st_size < 80_000


def test_every_study_has_a_section_and_every_picture_is_shown():
    for name, study in STUDIES.items():
        assert f"`python -m famo_jax.experiments.{name}`" in TEXT
        if name in RUNS:
            assert all(f"]({picture})" in TEXT for picture in study.pictures)
    shown = set(re.findall(r"\]\((\w+\.png)\)", TEXT))
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
