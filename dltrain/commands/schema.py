"""`dltrain schema`: a JSON Schema of the yaml files that a user writes, for editors. Neither Hydra nor torch is needed.
"""

from __future__ import annotations

import json
from pathlib import Path

from dltrain.config.json_schema import KINDS, json_schema
from dltrain.config.key_index import KeyIndex
from dltrain.config.words import take_config_folders
from dltrain.disk import write_text
from dltrain.errors import UserError, suggest

HELP = f"""\
dltrain schema [KIND] [output=FILE]    a JSON Schema (draft 7) of your own yaml files, with which an editor completes
                                       keys, checks values and shows what they mean

  KIND                           {' | '.join(KINDS)};
                                 config if it is not given: files that begin with '# @package _global_', so models,
                                 data, recipes and experiments, and the whole config
  output=conf/schema.json        writes it there; without output= it is printed
  output=conf/schema/            a folder: writes that of each kind, KIND.json
  --config-dir FOLDER            with the keys and choices of your own configs too

In VS Code, with the extension YAML, put into a file as its second line, relative to the file,
  # yaml-language-server: $schema=../schema/config.json
or into settings.json
  "yaml.schemas": {{"conf/schema/config.json": ["conf/model/*.yaml", "conf/data/*.yaml", "conf/recipe/*.yaml"]}}"""


def run(words: list[str]) -> int:
    words, folders = take_config_folders(words)
    kind, output = "config", ""
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "output" and value:
            output = value
        elif not equals and key in KINDS:
            kind = key
        else:
            hint = suggest(key, ["output", *KINDS]) or f"; it takes output=FILE and a kind: {', '.join(KINDS)}"
            raise UserError(f"schema: cannot read '{word}'{hint}")
    index, place = KeyIndex(*folders), Path(output).expanduser()
    if not output:
        print(text_of(index, kind), end="")
    elif output.endswith("/") or place.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        for one in KINDS:
            write(place / f"{one}.json", text_of(index, one))
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        write(place, text_of(index, kind))
    return 0


def text_of(index: KeyIndex, kind: str) -> str:
    return json.dumps(json_schema(index, kind), indent=1, ensure_ascii=False) + "\n"


def write(file: Path, text: str) -> None:
    write_text(file, text)
    print(file)
