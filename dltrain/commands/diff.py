"""`dltrain diff A B`: in what two runs differ, and at which step they part. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from dltrain.drawing.tables import format_table
from dltrain.errors import UserError
from dltrain.runs import parting, sections
from dltrain.runs.sections import Pair, Section
from dltrain.stored_files import name_others, read_config
from dltrain.sweeps.jobs import is_sweep

HELP = """\
dltrain diff A B    in what two runs differ, by their folders: kind by kind, each "none" or what differs

  dltrain diff outputs/a outputs/b
  parent                         where they part, if one is a fork or an extension of the other, or both of the same run
  config, choices                keys with the values of both; keys that change no weights are marked and come last
  code                           git commit, files of dltrain and of your own
  versions                       libraries, device, threads, machine
  data                           the samples of each split
  metrics                        the results, and B - A
  steps                          the first step, or reading of metrics.csv, in which they differ

What a run of an earlier version did not keep is "not recorded". Nothing is written. The exit code is 0 whether or not
something differs."""

KINDS = {"parent": sections.parent_section, "config": sections.config_section, "choices": sections.choices_section,
         "code": sections.code_section, "versions": sections.versions_section, "data": sections.data_section,
         "metrics": sections.metrics_section, "steps": parting.steps_section}


def run(words: list[str]) -> int:
    if len(words) != 2:
        raise UserError("diff takes the folders of two runs, as in dltrain diff outputs/a outputs/b; dltrain ls runs "
                        "lists the runs")
    a, b = (Path(word.removeprefix("run=")).expanduser() for word in words)
    pair = Pair(a, b, *map(config_of, (a, b)))
    print(format_table([], [("A", str(a)), ("B", str(b))]))
    for title, make in KINDS.items():
        print(text_of(sections.guarded(title, make, pair)))
    return 0


def config_of(folder: Path) -> dict[str, object]:
    """Raises UserError for a folder that is not of a run, with the names of some that are."""
    if (folder / "config.yaml").is_file():
        return read_config(folder)
    if folder.is_dir() and is_sweep(folder):
        jobs = sorted(file.parent for file in folder.glob("*/config.yaml"))
        raise UserError(f"{folder} is a sweep; name one of its jobs{f', as {jobs[0]}' if jobs else ''}")
    reason = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
    raise UserError(f"{folder}: not a run folder ({reason}){name_others(folder)}")


def text_of(section: Section) -> str:
    if not section.rows and not section.lines:
        return f"{section.title}\n  none"
    columns = 4 if any(row[3] for row in section.rows) else 3
    header = ["", "A", "B", section.note_title][:columns]
    table = [format_table(header, [row[:columns] for row in section.rows])] if section.rows else []
    return "\n".join([section.title, *table, *(f"  {line}" for line in section.lines)])
