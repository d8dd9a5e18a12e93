"""200 MB of text as characters, at the first start and at the second: seconds without the imports, and the memory of
the process beside them; a process of its own for each. Beside it, what any reader does: read, decode, look at each
character once."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.timing import Row, alone, probe

MEGABYTES = 200


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        write_text(file)
        numbers = iter(range(1000))

        def first() -> dict[str, float]:
            return alone("benchmarks.long_text:load", str(file), cache=Path(folder, f"cache{next(numbers)}"))

        def second() -> dict[str, float]:
            return alone("benchmarks.long_text:load", str(file), cache=Path(folder, "kept"))

        second()
        read = {"read and decode": lambda: alone("benchmarks.long_text:decode", str(file))}
        return [*probe(f"{MEGABYTES} MB of text, first start", {"s": "<= 3 s", "MB": "<= 500 MB"},
                       {"dltrain": first, **read}),
                *probe("the same, second start", {"s": "", "MB": ""}, {"dltrain": second, **read})]


def write_text(file: Path) -> None:
    """The sources of Python's library, again and again in another order."""
    import random
    import sysconfig

    sources = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    sources = [source for source in sources if source.isascii()]
    order, size = random.Random(0), 0
    with open(file, "wb") as out:
        while size < MEGABYTES * 1e6:
            size += out.write(order.choice(sources))


def load(file: str) -> dict[str, float]:
    import torch

    from dltrain import build
    from dltrain.benchmark.peaks import peak_mb, status_mb
    from dltrain.benchmark.timing import seconds
    from dltrain.config.compose import compose

    torch.set_num_threads(1)
    config = compose(["model=char_rnn", "data=text", f"data.root={file}"]).job_config()
    times: list[float] = []
    before = status_mb("VmRSS")
    peak = peak_mb(torch.device("cpu"), lambda: times.append(seconds(lambda: build.build_data(config))))
    return {"s": times[0], "MB": peak - before}


def decode(file: str) -> dict[str, float]:
    import torch

    from dltrain.benchmark.peaks import peak_mb, status_mb
    from dltrain.benchmark.timing import seconds

    times: list[float] = []
    before = status_mb("VmRSS")
    peak = peak_mb(torch.device("cpu"), lambda: times.append(seconds(lambda: {*Path(file).read_text("utf-8")})))
    return {"s": times[0], "MB": peak - before}
