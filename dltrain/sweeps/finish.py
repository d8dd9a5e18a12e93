"""The end of a sweep: its tables, printed and as CSV files, and its picture."""

from __future__ import annotations

from pathlib import Path

from dltrain.sweeps.picture import draw
from dltrain.sweeps.table import JOB_FAILED, print_rows, read_table, write_rows


def finish(folder: Path, title: str, may_be_cut: bool = False) -> int:
    """Prints and writes the table of all jobs, best in validation first, failed ones last, and that of the settings
    where some have several seeds, and draws them. Returns 7 if a job failed or, unless the sweep `may_be_cut`, has not
    ended, else 0."""
    table = read_table(folder)
    rows = table.rows()
    write_rows(folder / "results.csv", rows)
    print_rows(rows)
    print(f"\n{len(table.done)} of {len(table.jobs)} jobs done; {folder}/results.csv")
    if table.headline and len(table.done) > 1:
        if len(table.groups()) < len(table.done):
            settings = table.setting_rows()
            write_rows(folder / "settings.csv", settings)
            print_rows(settings)
            print("\n".join(filter(None, ["", table.describe_best(), f"{folder}/settings.csv"])))
        draw(table.groups(), table.headline, table.settings, title, folder / "results.png")
        print(folder / "results.png")
    failed = [job for job in table.jobs if not job.result and (job.error or not may_be_cut)]
    return JOB_FAILED if failed else 0
