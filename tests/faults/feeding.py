"""Gives one hostile or damaged input to a command of dltrain, in this process, and says what is not as it must be."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

import torch

from dltrain import cli, own_modules, trust

MOST_SECONDS = 5.0  # beyond those of the same command with what is intact
HANGS_AFTER_SECONDS = 60
CODES = (0, 2, 3, 4, 5, 6, 7)  # not 1, a bug, nor 8, an error in code of the user's own
# What a command says when it works with what is damaged.
SAYS = re.compile(r"damaged|missing|cannot be read|instead|\blost\b|differ|other samples|used as|left out|has changed|"
                  r"have changed|are taken|kept no digest|not that of|without the record")
SECONDS = re.compile(r"\d+(\.\d+)?( s\b|s\b|\s+(?=MB))|\d\d[:-]\d\d[:-]\d\d|\d{4}-\d\d-\d\d")


class Case(NamedTuple):
    """One input. `words`: of the command that gets it. `what`: in words, what is wrong with it. `result`: digests what
    the command made. `harmless`: whether another result is right, since the input is a good one of other contents."""

    what: str
    words: list[str]
    result: Callable[[str], str]
    harmless: bool = False
    fault: Callable[[], str] = lambda: ""  # what else is wrong after a success


class Outcome(NamedTuple):
    code: int
    out: str
    err: str
    cpu_seconds: float
    seconds: float
    result: str
    fault: str = ""


class Hang(BaseException):
    pass


def call(*words: str) -> tuple[int, str, str]:
    """`dltrain WORDS` in the current folder, as in a process of its own that was told trust=[tests]."""
    trust.trusted = {"tests"}
    own_modules.config_folders, own_modules.run_folders = [], set()
    path, argv, out, err = sys.path[:], sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["dltrain", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.main()
    finally:
        sys.path[:], sys.argv = path, argv
    return code, out.getvalue(), err.getvalue()


def run(case: Case) -> Outcome:
    """The code is 1 for an exception that nobody has caught, with its traceback on standard error."""

    def hang(*_: object) -> None:
        raise Hang

    before: Callable[[int, FrameType | None], object] | int | None = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANGS_AFTER_SECONDS)
    start, cpu = time.perf_counter() - waited(), time.process_time()
    try:
        code, out, err = call(*case.words)
    except (Exception, SystemExit, Hang):
        code, out, err = 1, "", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - waited() - start
    return Outcome(code, out, err, cpu, seconds, *((case.result(out), case.fault()) if code == 0 else ("", "")))


UNEXPLAINED = "differs now, nothing that the run knows of"  # verify's answer, with exit code 1


def waited() -> float:
    """The seconds in which this thread could run and another program had the core; 0 if they are not counted."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def faults_of(case: Case, outcome: Outcome, intact: Outcome, canary: Path) -> list[str]:
    """What is against the rules."""
    code, out, err, *_ = outcome
    faults = []
    errors = [line for line in err.splitlines() if line.startswith("dltrain: error: ")]
    if canary.exists():
        faults.append("the payload ran")
        canary.unlink()
    if code not in CODES and UNEXPLAINED not in out:
        faults.append(f"exit code {code}: {err.strip().splitlines()[-1][:200] if err.strip() else ''}")
    if "Traceback" in out + err:
        frames = re.findall(r'dltrain/(\S+\.py)", line (\d+)', err)
        faults.append(f"a traceback, at {':'.join(frames[-1]) if frames else 'no file of dltrain'}")
    if code != 0 and code != 7 and len(errors) != 1 and code in CODES:
        faults.append(f"{len(errors)} lines of error: {err[:300]!r}")
    others = [line for line in err.splitlines() if line not in errors and line[:2] != "  "
              and "arning" not in line and not re.match(r"\S+\.py:\d+: ", line)]
    if others and code in CODES:
        faults.append(f"standard error has more than an error and warnings: {others[0][:200]!r}")
    if code == 0 and errors:
        faults.append(f"exit code 0 with an error: {errors[0]}")
    if code == 0 and outcome.result != intact.result and not says(outcome, intact) and not case.harmless:
        faults.append("a wrong success: another result than with what is intact, and no word about it")
    if outcome.fault:
        faults.append(f"a wrong success: {outcome.fault}")
    if re.search(r"\bmemory\b", err):
        faults.append("more memory than there is")
    return faults + time_faults(outcome, intact)


def time_faults(outcome: Outcome, intact: Outcome) -> list[str]:
    over = max(outcome.cpu_seconds - intact.cpu_seconds, outcome.seconds - intact.seconds)
    return [f"{over:.1f} s longer than with what is intact"] * (over > MOST_SECONDS)


def says(outcome: Outcome, intact: Outcome) -> bool:
    """Whether a line that the command does not print with what is intact says what is wrong."""
    before = {SECONDS.sub("", line) for line in (intact.out + intact.err).splitlines()}
    return any(SAYS.search(line) for line in (outcome.out + outcome.err).splitlines()
               if SECONDS.sub("", line) not in before)


# what a command made


def digest(*texts: object) -> str:
    return hashlib.sha256("\0".join(map(str, texts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def nothing(_: str) -> str:
    """Of a command whose output is about the input itself, such as a list of runs."""
    return ""


def printed(out: str) -> str:
    return digest(*(SECONDS.sub("", line) for line in out.splitlines()))


def weights_of(folder: Path) -> Callable[[str], str]:
    """The bits of the weights that a run ended with."""

    def result(_: str) -> str:
        saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        return digest(*((name, hashlib.sha256(value.numpy().tobytes()).hexdigest()) for name, value in saved.items()))

    return result


def file_of(path: Path, columns: Sequence[str] = ()) -> Callable[[str], str]:
    """A file that the command writes; of a table, these columns alone."""

    def result(_: str) -> str:
        if not columns:
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        header, *rows = [line.split(",") for line in path.read_text().splitlines()]
        places = [header.index(name) for name in columns if name in header]
        return digest(*([row[place] for place in places] for row in rows))

    return result


Kind = Callable[[Path, Random, bool], Case]  # base folder, where the choices come from, whether to damage


class Feeder:
    """Gives inputs of each kind to dltrain. `base`: a folder with what is intact, made by inputs.make_base; `canary`:
    the file that a payload writes."""

    def __init__(self, base: Path, canary: Path, kinds: dict[str, Kind]):
        self.base, self.canary, self.kinds = base.resolve(), canary.resolve(), kinds
        self.intact: dict[tuple[str, ...], Outcome] = {}

    def feed(self, kind: str, seed: str, work: Path) -> tuple[Case, Outcome, list[str], float]:
        """Makes the input in the folder `work`, which is the current folder meanwhile. Returns it, what came of it, the
        faults, and the seconds that it took longer than what is intact."""
        key = (kind, *self.attempt(kind, seed, work, True, runs=False)[0].words)
        if key not in self.intact:
            _, self.intact[key] = self.attempt(kind, seed, work, False)
            if self.intact[key].code != 0:
                raise AssertionError(f"what is intact is refused: {' '.join(key)}: {self.intact[key].err}")
        intact = self.intact[key]
        case, outcome = self.attempt(kind, seed, work, True)
        if time_faults(outcome, intact):  # the machine may have been busy
            case, outcome = self.attempt(kind, seed, work, True)
        faults = faults_of(case, outcome, intact, self.canary)
        return case, outcome, faults, max(outcome.cpu_seconds - intact.cpu_seconds, outcome.seconds - intact.seconds)

    def attempt(self, kind: str, seed: str, work: Path, damages: bool, runs: bool = True) -> tuple[Case, Outcome]:
        before = os.getcwd()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        os.chdir(work)
        os.environ["DLTRAIN_CACHE"] = str(work.resolve() / "cache")
        try:
            case = self.kinds[kind](self.base, Random(seed), damages)
            return case, run(case) if runs else Outcome(0, "", "", 0, 0, "")
        finally:
            os.chdir(before)
