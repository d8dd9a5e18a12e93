"""20,000 photos before the first step: processor seconds to find, check and compare them, at the first start and at the
second, each in a process of its own, without the imports."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.random_data import write_photos
from benchmarks.timing import Row, alone, probe

COUNT = 20_000


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root, numbers = Path(folder, "photos"), iter(range(1000))
        write_photos(root, COUNT, 10)

        def scan_anew() -> dict[str, float]:
            return alone("benchmarks.scanning:scan", str(root), cache=Path(folder, f"cache{next(numbers)}"))

        def scan_again() -> dict[str, float]:
            return alone("benchmarks.scanning:scan", str(root), cache=Path(folder, "kept"))

        scan_again()
        listing = {"only listing the files": lambda: alone("benchmarks.scanning:list_files", str(root))}
        return [*probe(f"{COUNT:,} photos, first start", {"s": ""}, {"dltrain": scan_anew, **listing}),
                *probe("the same, second start", {"s": "<= 0.3 s"}, {"dltrain": scan_again, **listing})]


def scan(root: str) -> dict[str, float]:
    import gc
    import time

    from dltrain import build
    from dltrain.config.compose import compose

    config = compose(["model=resnet18", "data=image_folder", f"data.root={root}", "recipe=none"]).job_config()
    gc.freeze()  # as a command does after its imports (late_imports.py)
    before = time.process_time()
    build.build_data(config)
    return {"s": time.process_time() - before}


def list_files(root: str) -> dict[str, float]:
    import os
    import time

    before = time.process_time()
    for folder, _, names in os.walk(root):
        for name in names:
            os.stat(os.path.join(folder, name))
    return {"s": time.process_time() - before}
