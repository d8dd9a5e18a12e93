"""`dltrain tune [choices]`: the largest batch that fits, and the range of learning rates that train, as overrides."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from dltrain.commands.bench import StatusLine, compose_one, prepare
from dltrain.commands.stored import parse_value, take_own
from dltrain.disk import write_text
from dltrain.drawing.tables import format_count, format_table
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.run_log import logging_to

HELP = """\
dltrain tune [choices] [key=value ...]    measures which batch sizes fit into the memory here and how fast they train,
                                          and in which range of learning rates the loss falls; prints both as overrides
                                          to copy, and changes nothing by itself

  dltrain tune model=resnet20 data=digits
  find=lr                        lr or batch; both if it is not given
  steps=100                      of the range test of the learning rate (L. Smith, 2015), in which it rises from
  low=1e-6 high=10               low to high; the larger an epoch, the better is a larger number of steps
  most=4096                      the largest batch that is tried, at most the training split

The test trains with the optimizer and the augmentation of the config, and with its batch size or, where that is looked
for too, with the one that is suggested. Its curve is drawn into
outputs/tune/<model>-on-<data>.png, all figures stand beside it as JSON. A rate that is good for a batch size is not so
for another one: find=lr data.batch_size=... measures it anew."""

KEYS = {"find": "one of lr | batch | both", "steps": "int >= 20", "low": "float > 0", "high": "float > 0",
        "most": "int >= 1"}  # key -> its rule


class Options(NamedTuple):
    find: str = "both"
    steps: int = 100
    low: float = 1e-6
    high: float = 10.0
    most: int = 4096


def run(words: list[str]) -> int:
    given, others = take_own(words, KEYS)
    options = Options(**{key: parse_value(key, text, KEYS[key]) for key, text in given.items()})
    if options.low >= options.high:
        raise UserError(f"low={options.low:g}: must be below high={options.high:g}")
    config, overrides = compose_one("tune", others)
    folder = Path(config.output_dir) / "tune"
    print(f"{config.choices.model} on {config.choices.data}, batches of {config.data.batch_size}, "
          f"{config.task.optimizer.name}", flush=True)
    from dltrain.reporting import report  # torch from here on

    return report(RunDir(folder), lambda: tune(config, options, overrides, folder))


def tune(config: DictConfig, options: Options, words: list[str], folder: Path) -> None:
    import tempfile

    line, figures, overrides = StatusLine(), dict[str, Any](), list[str]()
    with tempfile.TemporaryDirectory(prefix="dltrain-tune-") as logs, logging_to(Path(logs, "log"), False):
        if options.find != "lr":
            figures["batches"] = tune_batch(config, options.most, line, overrides)
        if options.find != "batch":
            figures["rates"] = tune_rate(config, options, line, folder, overrides)
    file = folder / f"{config.choices.model}-on-{config.choices.data}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(figures, indent=1) + "\n")
    print(file)
    if overrides:
        kept = [word for word in words if word.partition("=")[0] not in {item.partition("=")[0] for item in overrides}]
        print(f"to take it over: dltrain {shlex.join([*kept, *overrides])}")


def tune_batch(config: DictConfig, most: int, line: StatusLine, overrides: list[str]) -> list[dict[str, Any]]:
    from dltrain.benchmark.measure import Bench
    from dltrain.tuning import batches

    def prepare_size(batch: int) -> Bench:
        sized = config.copy()
        sized.data.batch_size = batch
        return prepare(sized, lambda _: None)

    line("data and model")
    bench = prepare(config, lambda _: None)
    unit, samples = bench.task.unit, bench.data.num_samples("train")
    first = min(8, samples, most)
    tried = list(batches.measure_sizes(first, min(most, samples), prepare_size, line))
    line("")
    fits = [size for size in tried if size.seconds is not None]
    rows = [[str(size.batch), f"{size.rate:,.0f}", f"{1000 * size.seconds:.1f}", f"{size.memory_mb:,.0f} MB"]
            if size.seconds is not None else [str(size.batch), "-", "-", "does not fit"] for size in tried]
    print(format_table(["batch", f"{unit}/s", "ms a step", "memory"], rows, right=(0, 1, 2, 3)))
    if fits:
        best, largest = batches.fastest(fits), fits[-1]
        limit = "does not fit" if tried[-1].seconds is None else "is more than the training split or most= has"
        print(f"batches of {largest.batch} fit, {2 * largest.batch} {limit}; above {best.batch} none is clearly faster")
        if "batch_size" in config.data and best.batch != config.data.batch_size:
            overrides.append(f"data.batch_size={best.batch}")
            print(f"data.batch_size={best.batch}")
            config.data.batch_size = best.batch
    return [size._asdict() for size in tried]


def tune_rate(config: DictConfig, options: Options, line: StatusLine, folder: Path, overrides: list[str]
              ) -> dict[str, Any]:
    from dltrain.drawing.curves import draw_rates
    from dltrain.tuning import rates

    line("data and model")
    bench = prepare(config, lambda _: None)
    test = rates.run_test(config, bench.data, bench.task, bench.device, options.steps, options.low, options.high, line)
    line("")
    span = rates.range_of(test)
    file = folder / f"{config.choices.model}-on-{config.choices.data}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    marks = {"falls": span.falls, "falls fastest": span.steepest, "least": span.least} if span else {}
    draw_rates(test.rates, test.losses, test.smoothed(), marks, file)
    if span is None:
        print(f"the loss does not fall at any rate from {options.low:g} to {options.high:g} in "
              f"{format_count(options.steps, 'step')}: look at the data (dltrain show) or take more steps=")
    else:
        chosen = rates.rounded(span.steepest)
        print(f"with batches of {config.data.get('batch_size')} the loss falls "
              f"from a rate of {span.falls:.2g} on, fastest at {span.steepest:.2g}, and is least at "
              f"{span.least:.2g}, above which it rises")
        print(f"task.optimizer.lr={chosen:g}; a sweep around it: "
              f"task.optimizer.lr={rates.rounded(chosen / 3):g},{chosen:g},{rates.rounded(chosen * 3):g}")
        overrides.append(f"task.optimizer.lr={chosen:g}")
    print(file)
    return {"batch": int(config.data.get("batch_size") or 0), "rates": test.rates, "losses": test.losses,
            "range": span._asdict() if span else None}
