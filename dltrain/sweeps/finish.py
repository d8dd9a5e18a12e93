"""The end of a sweep: its tables, printed and as CSV files, its picture and its page."""

from __future__ import annotations

from pathlib import Path

from dltrain.errors import JOBS_FAILED, UserError
from dltrain.sweeps.picture import draw
from dltrain.sweeps.report import Results, write_report
from dltrain.sweeps.table import Table, print_rows, read_table, write_rows

Rows = list[dict[str, str]]


def finish(folder: Path, title: str, may_be_cut: bool = False) -> int:
    """Prints and writes the table of all jobs, best in validation first, failed ones last, and that of the settings
    where some have several seeds, draws them and writes report.html. Returns 7 if a job failed or, unless the sweep
    `may_be_cut`, has not ended, else 0."""
    table = read_table(folder)
    if not table.jobs:
        print(f"no job has started in {folder}")
        return JOBS_FAILED
    rows = table.rows()
    write_rows(folder / "results.csv", rows)
    print_rows(rows)
    print(f"\n{len(table.done)} of {len(table.jobs)} jobs done; {folder}/results.csv")
    picture = folder / "results.png" if table.headline and len(table.done) > 1 else None
    settings: Rows = []
    if picture:
        if len(table.groups()) < len(table.done):
            settings = table.setting_rows()
            write_rows(folder / "settings.csv", settings)
            print_rows(settings)
            print("\n".join(filter(None, ["", table.describe_best(), f"{folder}/settings.csv"])))
        draw(table.groups(), table.headline, table.mode, table.settings, title, picture)
        print(picture)
    print(write_report(folder, title, results_of(table, folder, rows, settings), picture))
    failed = [job for job in table.jobs if not job.result and (job.error or not may_be_cut)]
    return JOBS_FAILED if failed else 0


def rewrite_page(folder: Path) -> Path:
    """Writes report.html anew, without the tables and the picture. Raises UserError if no job has started."""
    table = read_table(folder)
    if not table.jobs:
        raise UserError(f"run={folder}: no job of this sweep has started")
    has_repeats = bool(table.headline) and len(table.groups()) < len(table.done)
    results = results_of(table, folder, table.rows(), table.setting_rows() if has_repeats else [])
    return write_report(folder, folder.absolute().name, results, folder / "results.png")


def results_of(table: Table, folder: Path, rows: Rows, settings: Rows) -> Results:
    """What the page of a sweep shows."""
    commands = [("do what is missing", ["dltrain", "resume", f"run={folder}"])]
    summary = [f"{len(table.done)} of {len(table.jobs)} jobs done"]
    if table.headline and table.done:
        best = table.done[0]
        summary += [f"best in validation: {best.run_dir.path.name}, {table.headline} "
                    f"{float(best.result[table.headline]):.4f}", table.describe_best()]
        samples = best.run_dir.path / "samples"
        commands += [("measure each job", ["dltrain", "eval", f"run={folder}"]), ("predict by the best job", [
            "dltrain", "predict", f"run={folder}", f"input={samples if samples.is_dir() else 'FILE'}"])]
    commands.append(("curves of all jobs", ["tensorboard", "--logdir", str(folder)]))
    shared = next((job.overrides for job in table.jobs), {})
    return Results(summary, table.headline, table.mode, [*dict.fromkeys([table.headline.partition("/")[2] or "loss",
                   "loss"])], [job.run_dir for job in table.ranked_jobs], rows, table.varied,
                   [f"{key}={value}" for key, value in shared.items() if key not in table.varied], settings, commands)
