"""MLflow and Weights & Biases: what a run sends there is what its own files have."""

import csv
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dltrain.run_dir import RunDir
from tests.conftest import TINY
from tests.test_resume import crash_at

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")


def readings(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.csv: each metric with its steps and values."""
    values: dict[str, list[tuple[int, float]]] = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for key, text in row.items():
                if key != "step" and text:
                    values.setdefault(key, []).append((int(row["step"]), float(text)))
    return values


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_with_its_command(name, dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.trackers.tracker.find_spec", lambda _: None)
    code, _, err = dltrain("name=a", *TINY, f"trainer.loggers=[{name}]")
    assert code == 2
    assert err == f"dltrain: error: trainer.loggers: {name} is not installed: pip install 'dltrain[{name}]'\n"


def test_csv_and_tensorboard_are_always_there(dltrain, without_figures):
    assert dltrain("name=a", *TINY, "trainer.loggers=[csv,tensorboard]")[0] == 0
    assert Path("outputs/a/metrics.csv").is_file()
    assert len([*Path("outputs/a").glob("events.out.*")]) == 1


def same(sent: dict[str, list[tuple[int, float]]], own: dict[str, list[tuple[int, float]]]) -> None:
    assert sent.keys() == own.keys()
    for key, values in own.items():
        assert [step for step, _ in sent[key]] == [step for step, _ in values], key
        assert [value for _, value in sent[key]] == pytest.approx([value for _, value in values], rel=1e-5), key


@needs_mlflow
@pytest.mark.parametrize("crash_step", [None, 5])
def test_mlflow_has_what_metrics_csv_has(crash_step, dltrain, monkeypatch):
    from mlflow.tracking import MlflowClient

    words = ["name=a", *TINY, "trainer.loggers=[mlflow]", "trainer.log_every_n_steps=1"]
    if crash_step:
        with monkeypatch.context() as patch:
            crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == crash_step)
            assert dltrain(*words)[0] == 8
    assert dltrain(*words)[0] == 0
    client = MlflowClient("sqlite:///outputs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("dltrain").experiment_id])
    assert (run.info.run_name, run.info.status) == ("a", "FINISHED")
    assert run.data.params["lr" if "lr" in run.data.params else "task.optimizer.lr"] == "0.05"
    sent = {key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics}
    same({key: sorted(values) for key, values in sent.items() if not crash_step or "_per_second" not in key},
         {key: sorted(values) for key, values in readings(Path("outputs/a")).items()
          if not crash_step or "_per_second" not in key})  # the repeated steps took another time
    assert {"config.yaml", "result.json", "val"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
@needs_mlflow
def test_the_api_of_its_server_gives_back_what_metrics_csv_has(dltrain, tmp_path):
    """A server of MLflow on this machine, over its REST interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/store.db",
               "--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1"]
    with open(tmp_path / "server.txt", "w") as log, subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
            ) as server:
        try:
            wait_for(f"{uri}/health", server)
            assert dltrain("name=a", *TINY, f"trainer.loggers=[{{_target_: dltrain.trackers.mlflow_run.MLflow, "
                           f"tracking_uri: '{uri}'}}]")[0] == 0
            number = json.loads(Path("outputs/a/trackers.json").read_text())["mlflow"]["id"]
            run = fetch(f"{uri}/api/2.0/mlflow/runs/get?run_id={number}")["run"]
            own = readings(Path("outputs/a"))
            sent = {}
            for key in (metric["key"] for metric in run["data"]["metrics"]):
                query = urllib.request.quote(key, safe="")  # type: ignore[attr-defined]
                history = fetch(f"{uri}/api/2.0/mlflow/metrics/get-history?run_id={number}&metric_key={query}")
                sent[key] = [(int(metric["step"]), float(metric["value"])) for metric in history["metrics"]]
            same({key: sorted(values) for key, values in sent.items()},
                 {key: sorted(values) for key, values in own.items()})
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            assert server.poll() is None
            time.sleep(0.5)
    raise AssertionError(url)


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def records_of(log: bytes) -> Iterator[bytes]:
    place, pieces, block = 7, b"", 32768
    while place + 7 <= len(log):
        if block - place % block < 7:
            place += block - place % block
        length, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        pieces += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield pieces
            pieces = b""


@needs_wandb
def test_wandb_writes_an_offline_run(dltrain, monkeypatch):
    """Its file is a log of LevelDB: blocks of 32 KB after a header of 7 bytes, records of protobuf in pieces."""
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert dltrain("name=a", *TINY, "trainer.loggers=[wandb]", "trainer.log_every_n_steps=1")[0] == 0
    (file,) = Path("outputs/a/wandb").glob("offline-run-*/*.wandb")
    sent, own = dict[str, list[tuple[int, float]]](), readings(Path("outputs/a"))
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key, value in row.items():
                if key in own and type(value) in (int, float):
                    sent.setdefault(key, []).append((int(row["step"]), float(value)))
    same(sent, own)
    assert RunDir(Path("outputs/a")).read_result()


@needs_mlflow
@pytest.mark.parametrize("stored", [{"id": "nope"}, {"id": 3}, {"id": "a", "sent": ["a"]}])
def test_an_id_that_the_store_does_not_have_is_one_line(stored, dltrain, without_figures):
    words = ["name=a", *TINY, "trainer.loggers=[mlflow]"]
    assert dltrain(*words)[0] == 0
    Path("outputs/a/result.json").unlink()
    Path("outputs/a/trackers.json").write_text(json.dumps({"mlflow": stored}))
    code, _, err = dltrain(*words)
    assert (code, err.count("\n")) == (4, 1), err
    assert "outputs/a/trackers.json" in err
    assert "the run is tracked as a new one" in err
