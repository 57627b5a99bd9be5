"""Sphinx: ``python -m sphinx -W docs docs/_build/html``, with the extra ``docs``."""

import inspect
import pathlib
import re
import shutil
import tomllib
from typing import Any

import requests
import sphinx.application
from docutils import nodes
from latex2mathml import converter

import famo_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
copyright = author  # noqa: A001
version = release = famo_jax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
exclude_patterns = ["_build", "runs"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute the notebooks, which keep their outputs
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the text says more
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 80

html_math_renderer = "mathml"  # below: formulas need no script and no other host
html_theme = "furo"
html_title = f"famo_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": PROJECT["urls"]["Source"],
    "source_branch": "main",
    "source_directory": "docs/",
}


def reachable(url: str) -> bool:
    """Whether there is an inventory to link to: without a network the site is built without."""
    try:
        return requests.head(url + "objects.inv", timeout=5, allow_redirects=True).ok
    except requests.RequestException:
        return False


INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "jax": "https://docs.jax.dev/en/latest/",
    "optax": "https://optax.readthedocs.io/en/latest/",
    "flax": "https://flax.readthedocs.io/en/latest/",
}
intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if reachable(url)}


def copy_notebooks() -> None:
    """The notebooks, with links as they are from within ``docs``."""
    folder = ROOT / "docs" / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (folder / notebook.name).write_text(text, encoding="utf-8")


def describe_fields(
    app: sphinx.application.Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """The fields of a state, whose shapes stand in comments behind them."""
    del app, options
    if what != "class" or not hasattr(value, "_fields"):
        return
    for line in inspect.getsource(value).splitlines():
        if match := re.fullmatch(r"    (\w+): .*?  # (.*)", line):
            field, comment = match.groups()
            comment = re.sub(r"\[[^]]*\]", r"``\g<0>``", comment)
            lines += ["", f"* ``{field}``: {comment}"]


def skip_fields(
    app: sphinx.application.Sphinx, what: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves the fields of states out, which are in the list above."""
    del app, what, name, options
    return True if type(value).__name__ == "_tuplegetter" else skip


def to_mathml(latex: str, **display: str) -> str:
    """A formula as MathML, without what the converter does not know or gets wrong."""
    latex = re.sub(r"\\[lr]Vert\b", r"\\|", latex.replace(r"\arg", r"\operatorname{arg}"))
    latex = latex.replace(r"\Big\|", r"\|")
    latex = re.sub(r"\\log(?=\s*[A-Za-z\\])", r"\\log\\,", latex)
    return converter.convert(latex, **display)


def write_inline(translator: Any, node: nodes.math) -> None:
    """A formula in a line, as MathML."""
    translator.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def write_block(translator: Any, node: nodes.math_block) -> None:
    """A formula by itself, as MathML, with its number if it has one."""
    latex, _, number = node.astext().partition(r"\tag{")
    number = f'<span class="number">({number.rstrip().removesuffix("}")})</span>' if number else ""
    formula = to_mathml(latex, display="block")
    translator.body.append(f'<div class="formula">{formula}{number}</div>\n')
    raise nodes.SkipNode


def setup(app: sphinx.application.Sphinx) -> None:
    """What Sphinx calls."""
    copy_notebooks()
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    app.connect("autodoc-process-docstring", describe_fields)
    app.connect("autodoc-skip-member", skip_fields)
