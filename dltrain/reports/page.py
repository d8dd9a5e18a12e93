"""A page that is one file and asks for no other: page.html with the style and the script that all pages share, and the
body and the script of one kind. Its content is JSON, which the script draws: what came from a run is never markup."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dltrain import __version__
from dltrain.disk import write_text

FOLDER = Path(__file__).parent
LONGEST_TEXT = 300  # of a cell

Content = dict[str, Any]  # what the script of a page reads


def write_page(file: Path, kind: str, title: str, content: Content) -> None:
    """`kind`: "run" or "sweep", the name of the body and of the script. A `<` in the content would end the script that
    it stands in. Raises MachineError if the disk refuses the file."""
    values = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    texts = {"TITLE": html.escape(title), "VERSION": html.escape(__version__), "CONTENT": values,
             "STYLE": read("page.css"), "BODY": read(f"{kind}.html"), "SCRIPT": read("page.js") + read(f"{kind}.js")}
    write_text(file, re.sub(f"@({'|'.join(texts)})@", lambda mark: texts[mark[1]], read("page.html")))


@cache
def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def cells(rows: Sequence[Mapping[str, str]]) -> Content:
    """A table."""
    columns = [*dict.fromkeys(key for row in rows for key in row)]
    return {"columns": columns, "rows": [[row.get(key, "")[:LONGEST_TEXT] for key in columns] for row in rows]}
