"""`dltrain doctor`: what it states, what it takes for a problem, and that nothing makes it fail."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from dltrain import machine
from dltrain.doctor import hardware, libraries, software, storage
from dltrain.doctor.report import Report


def fake_status(free: int, files: int = 10):
    """What os.statvfs says of a file system with so many bytes free."""
    return lambda path: os.statvfs_result((1024, 1024, 10**9, free // 1024, free // 1024, 100, files, files, 0, 255))


@pytest.fixture
def report():
    return Report()


@pytest.fixture
def without_programs(monkeypatch):
    """Torch and TensorBoard are not started."""
    monkeypatch.setattr(software, "start_tensorboard", lambda: "")
    monkeypatch.setattr(software, "ask", lambda *_: (0, '{"torch": "2.15.0"}\n{"torchvision.ops.nms": "works"}\n', ""))


def texts(report: Report, *, problems: bool = True) -> list[str]:
    return [finding.text for finding in report.findings if finding.is_problem == problems]


def test_a_sound_machine_has_no_problem_and_no_file_is_left(dltrain, tmp_path, without_programs):
    code, out, err = dltrain("doctor")
    assert (code, err) == (0, "")
    assert "\nproblems\n  none" in out
    assert "torchvision.ops.nms  works" in out
    assert "runs, tried             write and fsync in" in out
    assert not list(tmp_path.iterdir())
    code, out, _ = dltrain("doctor", "json=true", "output_dir=here")
    content = json.loads(out)
    assert (code, content["problems"]) == (0, [])
    assert content["software"]["python"].startswith(sys.version.split()[0])
    assert content["storage"]["runs"].endswith(f"here (not there yet; tried {tmp_path})")


def test_a_wrong_word_is_refused(dltrain):
    assert dltrain("doctor", "jsn=true")[::2] == (2, "dltrain: error: doctor: cannot read 'jsn=true'; did you mean "
                                                     "'json'?\n")
    assert dltrain("doctor", "json=3")[::2] == (2, "dltrain: error: json=3: must be true or false\n")


def test_a_check_that_raises_is_a_problem_and_the_others_run(dltrain, without_programs, monkeypatch):
    monkeypatch.setattr(hardware, "processor", lambda: 1 / 0)
    code, out, err = dltrain("doctor")
    assert (code, err) == (6, "")
    assert "check processor: ZeroDivisionError: division by zero\n    -> a bug in dltrain doctor" in out
    assert "free memory" in out


def test_libraries_answer_and_a_torchvision_that_does_not_fit_is_named(tmp_path, monkeypatch, report):
    monkeypatch.chdir(tmp_path)
    answers = list(libraries.answers())
    assert {"torchvision.ops.nms": "works"} in answers

    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    broken = "".join(json.dumps(answer) + "\n" for answer in libraries.answers())
    software.interpret(report, 0, broken, "")
    assert texts(report) == ["torch and torchvision do not fit: RuntimeError: operator torchvision::nms does not exist"]
    assert "pip install --force-reinstall torch torchvision" in report.problems[0].remedy


@pytest.mark.parametrize("place", ["dltrain.run.build_data", "dltrain.commands.show.run"])
def test_a_torchvision_that_does_not_fit_is_one_line_in_every_command(place, dltrain, monkeypatch):
    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(place, missing)
    code, _, err = dltrain(*([] if "build_data" in place else ["show"]))
    assert code == 6
    assert err.startswith("dltrain: error: torch ")
    assert "do not fit (operator torchvision::nms does not exist); install both from one source" in err
    assert err.count("\n") == 1


def test_libraries_that_crash_or_hang_are_named(report):
    software.interpret(report, -11, "", "")
    software.interpret(report, 1, "", "Traceback\nImportError: libc10.so: cannot open\n")
    software.interpret(report, None, '{"torch": "2.15.0"}\n', "")
    crashed, failed, silent = texts(report)
    assert crashed.startswith("importing torch and torchvision ended with signal 11")
    assert failed.endswith("exit code 1: ImportError: libc10.so: cannot open")
    assert silent == "torch, torchvision or the GPU did not answer in 60 s"
    assert report.sections["libraries"] == {"torch": "2.15.0"}


def test_a_program_that_does_not_end_in_time_has_no_code():
    code, out, _ = software.ask([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], 0.5)
    assert (code, out.strip() in ("1", "")) == (None, True)


def test_modules_of_the_folder_are_named(tmp_path, monkeypatch, report):
    (tmp_path / "pynvml.py").write_text("")
    (tmp_path / "random").mkdir()
    (tmp_path / "random/__init__.py").write_text("")
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "doctor_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    software.check_shadows(report)
    names = [text.split()[0] for text in texts(report, problems=False)]
    assert names == ["pynvml.py", "random"]
    monkeypatch.syspath_prepend(tmp_path)
    __import__("doctor_mine")
    assert libraries.modules_below(tmp_path) == ["doctor_mine.py"]
    software.interpret(report, 0, json.dumps({"from here": ["pynvml.py"]}), "")
    assert texts(report) == ["pynvml.py in this folder was imported by a library in the place of its own"]


def test_secrets_are_left_out(monkeypatch, report):
    for name in list(os.environ):
        if software.VARIABLES.fullmatch(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DLTRAIN_API_KEY", "abc")
    monkeypatch.setenv("TORCH_HOME", "https://me:abc@example.org")
    monkeypatch.setenv("HF_TOKEN", "abc")
    monkeypatch.setenv("OMP_NUM_THREADS", "four")
    software.check_environment(report)
    assert report.sections["environment"] == {
        "DLTRAIN_API_KEY": "(set, kept secret)", "TORCH_HOME": "(set, kept secret)", "OMP_NUM_THREADS": "four"}
    assert texts(report, problems=False) == ["OMP_NUM_THREADS=four is no number of threads"]


def test_versions_that_do_not_fit_are_problems(monkeypatch, report):
    versions = {requirement.name: "999" for requirement in software.requirements()}
    assert {"torch", "pytorch-lightning", "hydra-core"} <= {*versions}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    software.check_versions(report)
    assert sorted(text.split()[0] for text in texts(report)) == ["hydra-core", "omegaconf", "pytorch-lightning"]
    assert "hydra-core is 999, but must be <1.4,>=1.3.8" in texts(report)


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_limits_of_control_groups_of_both_versions(tmp_path):
    assert machine.group_limits(tmp_path) == (None, None, None)
    second = tmp_path / "v2"
    write_files(second, {"proc/self/cgroup": "0::/pod/box\n", "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
                         "sys/fs/cgroup/pod/cpu.max": "max 100000\n", "sys/fs/cgroup/pod/memory.max": "2000000\n",
                         "sys/fs/cgroup/pod/memory.current": "500000\n", "sys/fs/cgroup/pod/box/memory.max": "max\n"})
    assert machine.group_limits(second) == (1.5, 2_000_000, 500_000)
    first = tmp_path / "v1"
    write_files(first, {"proc/self/cgroup": "4:cpu,cpuacct:/outside\n3:memory:/outside\n",
                        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                        "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
                        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n"})
    assert machine.group_limits(first) == (0.5, 3_000_000, 1_000_000)
    write_files(first, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert machine.group_limits(first).memory is None


def test_threads_beyond_the_limit_and_little_memory_are_named(monkeypatch, report):
    monkeypatch.setattr(hardware, "group_limits", lambda: machine.Limits(2.0, 500_000_000, 100_000_000))
    monkeypatch.setattr(hardware, "available_cores", lambda: 64)
    monkeypatch.setattr(hardware, "free_memory", lambda: 400_000_000)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    report.run([hardware.check_processor, hardware.check_memory])
    assert report.findings[0].remedy == "export OMP_NUM_THREADS=2"
    assert texts(report) == ["0.4 GB of memory are free, a run needs 1 GB and more"]


def test_small_shared_memory_is_noted(monkeypatch, report):
    monkeypatch.setattr("os.statvfs", fake_status(free=64 * 2**20))
    hardware.check_shared_memory(report)
    if hardware.SHARED.is_dir():
        assert "--shm-size" in report.findings[0].remedy
        assert texts(report, problems=False)[0].startswith("/dev/shm has 67.1 MB free")


@pytest.mark.parametrize(("function", "fault"), [
    ("os.fsync", "cannot fsync a file in"), ("os.replace", "cannot replace a file in"),
    ("fcntl.lockf", "cannot lock a file in")])
def test_what_a_folder_refuses_is_named_and_nothing_is_left(function, fault, tmp_path, monkeypatch, report):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(function, refuse)
    storage.check_place(report, "runs", tmp_path / "outputs", "choose another output_dir=", is_needed=True)
    assert f"runs: {fault} {tmp_path}: Input/output error" in texts(report)
    assert not list(tmp_path.iterdir())


def test_a_lock_that_keeps_nobody_out_and_a_full_disk_are_named(tmp_path, monkeypatch, report):
    monkeypatch.setattr("fcntl.lockf", lambda *_: None)
    monkeypatch.setattr("os.statvfs", fake_status(free=5_000_000))
    storage.check_place(report, "cache", tmp_path, "set DLTRAIN_CACHE", is_needed=False)
    lock, full = texts(report, problems=False)
    assert lock.startswith(f"cache: a lock in {tmp_path} keeps nobody out")
    assert full == f"cache: 5.0 MB free in {tmp_path}"
    assert not texts(report)


@pytest.mark.slow
def test_the_whole_command(dltrain):
    code, out, err = dltrain("doctor", "json=true")
    assert (code, err) == (0, "")
    assert json.loads(out)["libraries"]["torchvision.ops.nms"] == "works"
    assert json.loads(out)["libraries"]["tensorboard"] == "starts"
