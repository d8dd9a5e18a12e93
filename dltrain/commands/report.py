"""`dltrain report run=FOLDER`: writes report.html of a run or of a sweep anew."""

from __future__ import annotations

from pathlib import Path

from dltrain.commands.stored import parse_pairs, run_dir_of
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.sweeps.jobs import is_sweep

HELP = """\
dltrain report run=FOLDER    writes report.html of a run: its result, curves, pictures, config and machine on one page,
                             which is one file, asks for no other and can be sent to someone

A run writes it when it ends. This writes it for a run that was stopped, that is under way, or that an earlier version
made; of the folder of a sweep, the page of the sweep and those of its jobs that have none.
Where the folder is read-only, the page is beside it."""


def run(words: list[str]) -> int:
    pairs = parse_pairs("report", words)
    if stray := [key for key in pairs if key != "run"]:
        raise UserError(f"unknown key '{stray[0]}'; report takes run=FOLDER alone")
    run_dir = run_dir_of(pairs)
    print(report_sweep(run_dir.path) if is_sweep(run_dir.path) else report_run(run_dir))
    return 0


def report_run(run_dir: RunDir) -> Path:
    from dltrain.reports.run_page import FILE, write_run_page

    run_dir.read_config()  # a folder that is no run is named as such
    file = run_dir.writable_place(FILE)
    write_run_page(run_dir, file)
    return file


def report_sweep(folder: Path) -> Path:
    """Those of the jobs first, since the page of the sweep leads to them."""
    from dltrain.reports.run_page import FILE
    from dltrain.sweeps.finish import rewrite_page
    from dltrain.sweeps.table import stored_jobs

    for job in stored_jobs(folder):
        run_dir = RunDir(folder / job.name)
        if run_dir.has_config and run_dir.is_writable and not (run_dir.path / FILE).is_file():
            try:
                report_run(run_dir)
            except UserError as error:
                print(f"dltrain: warning: {error}")
    return rewrite_page(folder)
