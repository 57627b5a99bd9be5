"""Every code block of README.md runs."""

import contextlib
import io
import pathlib
import re

import numpy as np
import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language, document=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)


def run(source, namespace):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "README.md", "exec"), namespace)
    return printed.getvalue()


def side(diff, kept):
    return "".join(
        line[1:] + "\n" for line in diff.splitlines() if not line or line[0] in (" ", kept)
    )


@pytest.mark.parametrize(("kept", "name"), [("-", "ordinary"), ("+", "FAMO")])
def test_both_sides_of_the_quick_start(kept, name):
    diff, _ = blocks("diff")
    namespace = {}
    printed = run(side(diff, kept), namespace)
    assert np.all(np.isfinite(namespace["losses"]))
    assert len(printed.splitlines()) == (2 if name == "FAMO" else 1)


def test_three_lines_change():
    diff, of_features = blocks("diff")
    assert sum(line.startswith("-") for line in of_features.splitlines()) == 1
    assert sum(line.startswith("-") for line in diff.splitlines()) == 3


def test_a_python_block_stands_by_itself_or_goes_on_where_the_one_before_ended():
    namespaces = []
    for block in blocks("python"):
        if block.startswith(("import", "from")):
            namespaces.append({})
        run(block, namespaces[-1])
    assert len(namespaces) == 7
    weights, grads = (
        namespace[name]
        for namespace, name in zip(namespaces[-2:], ("weights", "grads"), strict=True)
    )
    assert weights.shape == (32, 8, 2)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert np.all(np.isfinite(grads))
    assert grads[0] != 0


def test_every_block_is_of_a_kind_that_is_tested():
    """Shell blocks are the two commands, which .ci/run runs; text is what a command printed."""
    kinds = re.findall(r"^```(\w+)$", README, re.MULTILINE)
    assert set(kinds) == {"sh", "diff", "python", "bibtex", "text"}
    assert len(blocks("sh")) == 2


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README):
        assert (pathlib.Path(__file__).parents[1] / target).exists(), target
