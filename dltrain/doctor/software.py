"""Versions, extras, the environment, and whether the libraries work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import site
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

from packaging.requirements import Requirement

from dltrain import __version__
from dltrain.doctor.report import Report, without_home
from dltrain.source import git_commit

VARIABLES = re.compile(r"(OMP|MKL|KMP|CUDA|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|DLTRAIN|HYDRA|MALLOC|SLURM)_.*|PYTHON.*|"
                       r"LD_PRELOAD|LD_LIBRARY_PATH|TMPDIR|XDG_CACHE_HOME|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_(ADDR|PORT)")
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API|KEY|AUTH|JWT", re.IGNORECASE)
EXTRAS = ("timm", "safetensors", "onnx", "onnxruntime", "optuna", "wandb", "mlflow")
LIBRARIES_SECONDS, TENSORBOARD_SECONDS = 60, 30  # that an answer may take
# Modules that torch, torchvision, Lightning and TensorBoard import where they are there.
TRIED = {"accimage", "amdsmi", "apex", "av", "cupy", "deepspeed", "horovod", "litlogger", "mlflow", "pynvml",
         "sitecustomize", "tensorboardX", "tensorflow", "transformer_engine", "triton", "usercustomize", "wandb"}
ANOTHER_NAME = "give it another name, or start dltrain in another folder"
SAME_SOURCE = ("install torch and torchvision anew, both from one source: pip install --force-reinstall torch "
               "torchvision")


def check_versions(report: Report) -> None:
    """Of what dltrain needs."""
    commit = git_commit()
    report.state("software", {"dltrain": f"{__version__}{f', commit {commit}' if commit else ''}",
                              "python": f"{platform.python_version()}, {without_home(sys.executable)}",
                              "system": f"{platform.platform()}, {' '.join(platform.libc_ver())}"})
    for requirement in requirements():
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        report.state("software", {requirement.name: version})
        if version == "missing":
            report.problem(f"{requirement.name} is not installed", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            report.problem(f"{requirement.name} is {version}, but must be {requirement.specifier}",
                           f"pip install '{requirement}'")


def requirements() -> list[Requirement]:
    """What dltrain needs, as its repository states it, or its package where it is installed without that."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text())["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("dltrain") or [] if "extra ==" not in line]
    needed = map(Requirement, lines)
    return [requirement for requirement in needed if requirement.marker is None or requirement.marker.evaluate()]


def check_extras(report: Report) -> None:
    """Packages that dltrain, or its sweeps, use where they are installed."""
    versions = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()
                if distribution.name in EXTRAS or distribution.name.startswith("hydra-")}
    versions.pop("hydra-core", None)
    report.state("software", {"extras": ", ".join(f"{name} {versions[name]}" for name in sorted(versions)) or "none"})


def check_environment(report: Report) -> None:
    """Environment variables that change what a run does, without what may be a secret."""
    for name in sorted(os.environ):
        if VARIABLES.fullmatch(name):
            value = without_home(os.environ[name])
            is_secret = SECRET.search(name) or re.search(r"://[^/]*@", value)
            report.state("environment", {name: "(set, kept secret)" if is_secret else value or '""'})
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if (threads := os.environ.get(name)) and not threads.isdigit():
            report.note(f"{name}={threads} is no number of threads", f"export {name}=4, or unset {name}")


def check_shadows(report: Report) -> None:
    """Files of the current folder that have the name of a module of Python or of a library."""
    own = Path(__file__).parents[1]
    installed = [Path(folder) for folder in site.getsitepackages()]
    for path in sorted(Path.cwd().iterdir()):
        if path.suffix != ".py" and not (path / "__init__.py").is_file():
            continue
        name = path.stem if path.suffix == ".py" else path.name
        is_library = any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for folder in installed)
        if (name in TRIED | sys.stdlib_module_names or is_library) and path.resolve() != own:
            report.note(f"{path.name} in this folder has the name of a module of Python or of a library, and may be "
                        "imported in its place", ANOTHER_NAME)


def check_libraries(report: Report) -> None:
    """Runs libraries.py, and TensorBoard beside it, and says what their answers mean."""
    with ThreadPoolExecutor() as pool:
        board = pool.submit(start_tensorboard)
        code, lines, stderr = ask([sys.executable, "-m", "dltrain.doctor.libraries"], LIBRARIES_SECONDS)
    interpret(report, code, lines, stderr)
    fault = board.result()
    report.state("libraries", {"tensorboard": fault or "starts"})
    if fault:
        report.note(f"TensorBoard {fault}", "pip install --upgrade tensorboard; runs train and write metrics.csv "
                    "without it")


def interpret(report: Report, code: int | None, lines: str, stderr: str) -> None:
    """What the answers of libraries.py mean, its exit code, None for none in time, and its standard error."""
    answers = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    facts = {name: value for answer in answers if "failed" not in answer for name, value in answer.items()}
    for name in facts.pop("from here", []):
        report.problem(f"{name} in this folder was imported by a library in the place of its own", ANOTHER_NAME)
    report.state("libraries", facts)
    for answer in answers:
        if answer.get("failed") == "torchvision" and "nms" in answer["message"]:
            report.problem(f"torch and torchvision do not fit: {answer['message']}", SAME_SOURCE)
        elif "failed" in answer:
            report.problem(f"{answer['failed']} does not work: {answer['message']}",
                           "a driver that fits this torch is needed" if answer["failed"] == "the GPU" else SAME_SOURCE)
    if code is None:
        report.problem(f"torch, torchvision or the GPU did not answer in {LIBRARIES_SECONDS} s",
                       "CUDA_VISIBLE_DEVICES= dltrain doctor tells whether it is the GPU")
    elif code:
        last = (stderr.strip().splitlines() or [""])[-1]
        report.problem(f"importing torch and torchvision ended with {describe_exit(code)}: {last[:200]}", SAME_SOURCE)
    has_device = any(Path("/dev").glob("nvidia[0-9]*"))
    if has_device and not facts.get("gpus"):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") is not None
        report.note(f"there is a GPU, but torch, built for {facts.get('built for', '?')}, does not see it", (
            "unset CUDA_VISIBLE_DEVICES" if hidden else "install a torch for CUDA, and a driver that fits"))


def start_tensorboard() -> str:
    """Starts TensorBoard's server on any free port and stops it. Returns "" or what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", "0",
                                   "--load_fast=false"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                  cwd=folder)  # where no file has the name of a library
        timer = Timer(TENSORBOARD_SECONDS, server.kill)
        timer.start()
        last = ""
        try:
            for line in server.stderr or ():
                if re.search(r"TensorBoard \S+ at http", line):
                    return ""
                last = line.strip() or last
            return f"does not start: {last[:200]}"
        finally:
            timer.cancel()
            server.kill()
            server.communicate()


def ask(command: list[str], seconds: float) -> tuple[int | None, str, str]:
    """The exit code of a command, None if it does not end in time, and what it writes."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace"), ""
    return result.returncode, result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")


def describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

