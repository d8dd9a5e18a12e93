"""The site of docs/ and of the tutorial's chapters: sphinx-build -W -b html docs build/site

Formulas are MathML, which browsers draw themselves, so that no page asks another host for anything. The chapters are
written anew, with the results that are known, into docs/tutorial.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from dltrain import __version__  # noqa: E402
from dltrain.tutorial.pages import CHAPTERS  # noqa: E402
from dltrain.tutorial.results import index_page, read_outcomes, with_results  # noqa: E402

project, version, release = "dltrain", __version__, __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "text"
templates_path, html_static_path, html_css_files = ["_templates"], ["_static"], ["site.css"]
html_theme = "pydata_sphinx_theme"
html_title = f"dltrain {__version__}"
html_math_renderer = "mathml"
html_sidebars = {"**": ["all-pages.html"]}
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "dltrain"},
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "show_toc_level": 1,
    "collapse_navigation": True,
}

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+\.md)\)")  # of a page in docs: a Markdown file of the repository
GROUP = re.compile(r"^## (.+)\n\n((?:- .+\n?)+)", re.MULTILINE)  # of docs/index.md: a caption, a list of links


def write_chapters() -> None:
    """A file is left alone where it would not change, so that it is not built again."""
    outcomes = read_outcomes()
    pages = {f"{chapter}.md": with_results(chapter, outcomes) for chapter in CHAPTERS}
    pages["index.md"] = index_page(outcomes)
    for name, text in pages.items():
        file = DOCS / "tutorial" / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def toctree(pages: list[str], caption: str = "") -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def complete_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Adds to the pages that list others what makes a menu of them, and leads links to chapters to their pages here.
    Files outside docs are copied into the site, to be downloaded."""
    if docname == "index":
        for caption, links in GROUP.findall(content[0]):
            content[0] += toctree(re.findall(r"\]\(([^)]+)\.md\)", links), caption)
    if docname == "tutorial/index":
        content[0] = content[0].replace("](../../dltrain/tutorial/", "](") + toctree(list(CHAPTERS))
    if "/" not in docname:
        content[0] = OUTSIDE.sub(r"{download}`\1 <\2>`", content[0])


def to_mathml(tex: str, display: str) -> str:
    return convert(tex, display=display)


def visit_inline(writer: object, node: nodes.math) -> None:
    writer.body.append(to_mathml(node.astext(), "inline"))  # type: ignore[attr-defined]
    raise nodes.SkipNode


def visit_block(writer: object, node: nodes.math_block) -> None:
    r"""Formulas with a line of \qquad between them stand side by side if there is room, else one below the other."""
    formulas = re.split(r"^\\qquad$", node.astext(), flags=re.MULTILINE)
    drawn = "".join(f"<div>{to_mathml(tex.strip(), 'block')}</div>" for tex in formulas)
    writer.body.append(f'<div class="formulas">{drawn}</div>')  # type: ignore[attr-defined]
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("source-read", complete_page)


write_chapters()
