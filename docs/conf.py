"""The site of docs/, by Sphinx and MyST, which reads Markdown as GitHub shows it: ``make docs``."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import sgsd

ROOT = Path(__file__).parents[1]
_log = logging.getLogger(__name__)
# Where links to files outside docs/ lead; a workflow on GitHub knows its own address.
REPOSITORY = os.environ.get("SGSD_REPOSITORY", "https://github.example/sgsd")

project = "sgsd"
author = "The sgsd authors"
version = release = sgsd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"sgsd {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "svg"

myst_heading_anchors = 4
myst_fence_as_directive = ["math"]  # as GitHub has them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

_UPWARDS = re.compile(r"(?<=\]\()\.\./[^)#\s]+")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def link_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Links to files outside docs/ lead to the repository; one to a file that is not there is an error."""

    def address(match: re.Match[str]) -> str:
        target = (ROOT / "docs" / name).parent.joinpath(match[0]).resolve()
        if target.is_relative_to(ROOT / "docs"):  # another page
            return match[0]
        if not target.exists():
            _log.warning("no such file in the repository: %s", match[0], location=name)
        path = os.path.relpath(target, ROOT)
        return f"{REPOSITORY}/{'tree' if target.is_dir() else 'blob'}/main/{path}"

    source[0] = _UPWARDS.sub(address, source[0])


def fences_to_blocks(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Code in docstrings stands between Markdown's fences; reStructuredText wants it indented."""

    def block(match: re.Match[str]) -> str:
        return f".. code-block:: {match[1]}\n\n" + re.sub("^(?=.)", "    ", match[2], flags=re.MULTILINE)

    lines[:] = _FENCE.sub(block, "\n".join(lines)).split("\n")


def draw(tex: str, *, inline: bool) -> str:
    """TeX as SVG of its outlines: no script, no fonts, no network; a screen reader hears the TeX."""
    drawn = ziamath.Latex(tex, size=18, color="currentColor", inline=inline).svg()
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{html.escape(tex)}" ', 1)


def inline_svg(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(draw(node.astext(), inline=True))
    raise nodes.SkipNode


def display_svg(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math" tabindex="0">{draw(node.astext(), inline=False)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("svg", (inline_svg, None), (display_svg, None))
    app.connect("source-read", link_repository)
    app.connect("autodoc-process-docstring", fences_to_blocks, priority=100)  # before napoleon
