"""Every code block of README.md and of the site runs, and every link leads somewhere."""

import contextlib
import importlib.util
import io
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from famo_jax import aggregation, weighting

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE = sorted(path for path in (ROOT / "docs").rglob("*.md") if not path.match("docs/_build/*"))
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *SITE)}
MARKDOWN = PAGES | {name: ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(source, namespace, name="README.md"):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, name, "exec"), namespace)
    return printed.getvalue()


def side(diff, kept):
    return "".join(
        line[1:] + "\n" for line in diff.splitlines() if not line or line[0] in (" ", kept)
    )


# --- README.md ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "name"), [("-", "ordinary"), ("+", "FAMO")])
def test_both_sides_of_the_quick_start(kept, name):
    diff, _ = blocks("diff")
    namespace = {}
    printed = run(side(diff, kept), namespace)
    assert np.all(np.isfinite(namespace["losses"]))
    assert len(printed.splitlines()) == (2 if name == "FAMO" else 1)
    if name == "FAMO":  # and the block that goes on from it
        (block,) = blocks("python")
        before = namespace["losses"]
        run(block, namespace)
        assert np.all(np.isfinite(namespace["losses"]))
        assert not np.array_equal(namespace["losses"], before)


def test_three_lines_change():
    diff, of_features = blocks("diff")
    assert sum(line.startswith("-") for line in of_features.splitlines()) == 1
    assert sum(line.startswith("-") for line in diff.splitlines()) == 3


def test_it_is_short_and_its_commands_are_marked():
    assert len(README.splitlines()) <= 230
    for marker in ("main job", "tests"):
        assert f"<!-- {marker} -->\n```sh\n" in README


@pytest.mark.parametrize("package", [weighting, aggregation], ids=["weighting", "aggregation"])
def test_every_method_stands_in_the_tables(package):
    table = "\n".join(line for line in README.splitlines() if line.startswith("| "))
    methods = "".join(
        PAGES[f"docs/methods/{page}.md"].read_text() for page in ("losses", "gradients")
    )
    for name in package.__all__:
        method = name.removesuffix("_weights")
        if not name.endswith("State"):
            assert f"`{method}(" in table, f"{method} is not in the README's table of methods"
            assert f"\n### {method}\n" in methods, f"{method} has no section in docs/methods"


# --- All pages ------------------------------------------------------------------------------------


def test_the_site_has_its_pages():
    assert len(SITE) > 25


@pytest.mark.parametrize("page", [name for name in PAGES if name != "README.md"])
def test_a_python_block_stands_by_itself_or_goes_on_where_the_one_before_ended(page):
    text = PAGES[page].read_text(encoding="utf-8")
    namespace = None
    for block in blocks("python", text):
        for module in ("torch", "torchjd"):
            if re.search(rf"^(import|from) {module}\b", block, re.MULTILINE):
                pytest.importorskip(module)
        if block.startswith(("import", "from")) or namespace is None:
            namespace = {}
        printed = run(block, namespace, page)
        assert "nan" not in printed.split()
        _, _, behind = text.partition(f"```python\n{block}```\n\n```text\n")
        if behind:
            stored = behind.split("```", 1)[0]
            assert without_figures(printed) == without_figures(stored)


def without_figures(text):
    return re.sub(r"[ \d.]*\d", "#", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(page):
    """Text is what a command printed; a diff's both sides are run."""
    kinds = set(re.findall(r"^```(\w+)", PAGES[page].read_text(encoding="utf-8"), re.MULTILINE))
    assert kinds <= {"sh", "python", "text"} | (
        {"diff", "bibtex"} if page == "README.md" else set()
    )


@pytest.mark.parametrize("page", MARKDOWN)
def test_commands_are_those_that_there_are(page):
    text = MARKDOWN[page].read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"pip install (?:-e )?\"?\.\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for module, rest in re.findall(r"python -m (famo_jax[\w.]*)((?: +(?!`)[^\s`|]+)*)", text):
        if module.endswith("NAME"):
            continue
        assert importlib.util.find_spec(module), module
        for option in re.findall(r"--[\w-]+", rest):
            assert option in usage(module), f"{module} has no {option}"
    for script in re.findall(r"python ((?:docs|tests)/[\w/]+\.py)", text):
        assert (ROOT / script).exists() or "NAME" in script, script


def usage(module, known={}):  # noqa: B006
    if module not in known:
        command = [sys.executable, "-m", module, "--help"]
        known[module] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return known[module]


def anchors(path):
    """What may stand behind # in a link to this page, as GitHub and MyST name headings."""
    text = re.sub(
        r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        yield re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", MARKDOWN)
def test_links_and_pictures_lead_somewhere(page):
    path = MARKDOWN[page]
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\((?!https?://)([^)]+)\)", prose)
    targets += re.findall(r"^```\{(?:literal)?include\} (\S+)", text, re.MULTILINE)
    for target in targets:
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), target
        if anchor:
            assert anchor in set(anchors(other)), target


def test_notebooks_link_to_what_there_is():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        for target in re.findall(
            r"\]\((?!https?://)([\w./]+\.(?:md|ipynb|png|py))\b", notebook.read_text()
        ):
            assert (notebook.parent / target).exists(), target
