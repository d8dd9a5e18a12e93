"""`dltrain new model=NAME`: writes a module, its yaml and a test, to begin from."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from dltrain.errors import UserError, suggest

KINDS = ("model", "data", "task")
HELP = """\
dltrain new model=NAME | data=NAME | task=NAME    writes the files of a model, a data set or a task of your own

  NAME.py                        the class, which trains as it is
  conf/<model|data|task>/NAME.yaml
  test_NAME.py                   pytest test_NAME.py
Then: dltrain --config-dir conf model=NAME"""
TEMPLATES = Path(__file__).parents[1] / "templates"


def run(words: list[str]) -> int:
    if len(words) != 1 or "=" not in words[0]:
        raise UserError("new takes one of model=NAME, data=NAME, task=NAME")
    kind, _, name = words[0].partition("=")
    if kind not in KINDS:
        raise UserError(f"new: unknown kind '{kind}'{suggest(kind, list(KINDS)) or '; there are: ' + ', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z]\w*", name, re.ASCII):
        raise UserError(f"new {kind}={name}: must be the name of a module: letters, digits and _, in lower case")
    for file in write(kind, name):
        print(file)
    print(f"next: dltrain --config-dir conf {kind}={name}\n      pytest test_{name}.py")
    return 0


def write(kind: str, name: str) -> list[Path]:
    """Returns the files. Raises UserError for one that is there already, before any is written."""
    names = {"name": name, "kind": kind, "Class": "".join(word.capitalize() for word in name.split("_"))}
    files = {Path(f"{name}.py"): f"{kind}.py", Path(f"conf/{kind}/{name}.yaml"): f"{kind}.yaml",
             Path(f"test_{name}.py"): "test.py"}
    for file in files:
        if file.exists():
            raise UserError(f"new {kind}={name}: {file} is there already; choose another name, or delete it")
    for file, template in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        text = Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).safe_substitute(names)
        file.write_text(name_schema(text, kind) if file.suffix == ".yaml" else text, encoding="utf-8")
    return list(files)


def name_schema(text: str, kind: str) -> str:
    """With the line that names the JSON Schema to an editor, where `dltrain schema output=conf/schema/` has written it.
    """
    name = f"schema/{'task' if kind == 'task' else 'config'}.json"
    if not Path("conf", name).is_file():
        return text
    package = "# @package _global_\n" if text.startswith("# @package") else ""
    return f"{package}# yaml-language-server: $schema=../{name}\n{text.removeprefix(package)}"
