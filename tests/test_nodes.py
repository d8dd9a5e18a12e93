"""A run on several nodes: which one a command is on, and two commands that train one run."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from dltrain import ranks, slurm
from dltrain.commands import train
from dltrain.config.compose import compose
from dltrain.errors import UserError
from dltrain.ranks import Node, first_host, this_node, world_size
from dltrain.strategy import fingerprint
from tests.test_as_one import losses

SLURM = {"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu[07-09,12],login1",
         "SLURM_JOB_ID": "123456", "SLURM_NNODES": "4"}
TORCHRUN = {"GROUP_RANK": "1", "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "host",
            "MASTER_PORT": "29"}


@pytest.fixture
def starters(monkeypatch):
    """Sets variables as those who start a command do."""
    before = dict(ranks.started_with)
    ranks.started_with.clear()
    for name in (*SLURM, *TORCHRUN, "NODE_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)

    def start(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        ranks.forget_other_starters()

    yield start
    ranks.started_with.clear()
    ranks.started_with.update(before)


@pytest.mark.parametrize(("variables", "nodes", "node"), [
    ({}, 1, Node(0, "127.0.0.1", 0)),
    (TORCHRUN, 2, Node(1, "host", 29)),
    (SLURM, 4, Node(1, "gpu07", 20_000 + 3456)),
    ({"NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}, 3, Node(2, "10.0.0.1", 29500)),
    ({**SLURM, "MASTER_PORT": "77"}, 4, Node(1, "gpu07", 77))])
def test_a_command_knows_its_node_and_the_first_one(variables, nodes, node, starters):
    starters(variables)
    assert "RANK" not in os.environ  # libraries do not take the command for one of several processes
    assert this_node(nodes) == node


@pytest.mark.parametrize(("variables", "nodes", "message"), [
    ({}, 2, r"trainer.nodes=2: the command must run on each node, started by torchrun or srun"),
    ({"NODE_RANK": "0", "MASTER_ADDR": "host"}, 2, r"MASTER_PORT set"),
    ({**TORCHRUN, "GROUP_RANK": "2"}, 2, r"must be in \[0, 2\) and its port in \[1, 65535\], but they are 2 and 29"),
    ({**TORCHRUN, "MASTER_PORT": "99999"}, 2, r"are 1 and 99999"),
    ({**TORCHRUN, "LOCAL_RANK": "1"}, 2, r"the second command on its node; .*--nproc-per-node=1"),
    ({**SLURM, "SLURM_LOCALID": "1"}, 4, r"the second command on its node; .*--ntasks-per-node=1"),
    ({"NODE_RANK": "x", "MASTER_ADDR": "host", "MASTER_PORT": "1"}, 2, r"must be in \[0, 2\).* are x and 1"),
    (SLURM, 2, r"trainer.nodes=2: but the Slurm job has 4")])
def test_a_node_that_nobody_names_is_refused(variables, nodes, message, starters):
    starters(variables)
    with pytest.raises(UserError, match=message):
        this_node(nodes)


def test_the_first_node_alone_asks_slurm_for_a_new_start(starters, monkeypatch):
    requests: list[list[str]] = []

    def run(words, **keys):
        requests.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(slurm.subprocess, "run", run)
    for number in ("1", "0"):
        starters({**SLURM, "SLURM_NODEID": number})
        note = slurm.requeue_after(signal.SIGUSR1, False)
        assert (note, requests) == (("", []) if number == "1" else (
            "; Slurm starts job 123456 again", [["scontrol", "requeue", "123456"]]))


def test_names_of_nodes_as_slurm_writes_them():
    assert [first_host(text) for text in ("a1", "a1,b2", "gpu[3-5]", "gpu[03,07]-ib", "", "x[1]y,z")] == [
        "a1", "a1", "gpu3", "gpu03-ib", "", "x1y"]


def test_processes_of_all_nodes():
    assert world_size({"devices": 4, "nodes": 3}) == 12
    assert world_size({"devices": 4}) == 4


def test_several_nodes_need_a_name_and_no_sweep():
    words = ["model=resnet20", "data=digits", "trainer.nodes=2"]
    with pytest.raises(UserError, match=r"trainer.nodes=2: needs name=NAME"):
        train.open_run_dir(compose(words))
    with pytest.raises(UserError, match=r"trainer.nodes: a sweep runs on one node"):
        train.sweep(compose([*words, "seed=1,2"], None, True), None, False, [])


WORDS = ["model=seq_classifier", "data=digits_rows", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1",
         "trainer.nodes=2", "data.batch_size=8", "trainer.max_epochs=null", "trainer.log_every_n_steps=1", "name=nodes"]


def start_nodes(folder, *words, more=()):
    """A command for each of two nodes, which are this machine. `more`: words of the second one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [subprocess.Popen([sys.executable, "-m", "dltrain", *WORDS, *words, *(more if number else ())],
                             cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1",
                                  "CUDA_VISIBLE_DEVICES": "", "NODE_RANK": str(number), "MASTER_ADDR": "127.0.0.1",
                                  "MASTER_PORT": str(port)}) for number in (0, 1)]


def test_a_fingerprint_has_what_a_run_keeps_to_its_end():
    words = ["model=resnet20", "data=digits", "trainer.nodes=2"]
    one, free, other = (fingerprint(compose([*words, *more]).job_config()) for more in (
        [], ["name=a", "trainer.threads=3", "trainer.log_every_n_steps=1"], ["task.optimizer.lr=0.5"]))
    assert one == free != other


@pytest.mark.slow
def test_nodes_with_other_words_and_a_node_alone_end_in_one_line(tmp_path):
    nodes = start_nodes(tmp_path, "trainer.max_steps=30", more=["task.optimizer.lr=0.5"])
    codes, outputs = end(nodes)
    assert codes == [2, 2], outputs
    assert "the commands of the nodes have different configs: type the same words on each node" in outputs[1][1]
    first, second = start_nodes(tmp_path, "trainer.max_steps=30", "trainer.dist_timeout_seconds=4")
    second.kill()
    codes, outputs = end([first, second])
    assert codes[0] == 6
    assert len(outputs[0][1].splitlines()) == 1
    assert "node 0 lost the others (the first one is 127.0.0.1:" in outputs[0][1]


def end(nodes):
    outputs = [node.communicate(timeout=200) for node in nodes]
    return [node.returncode for node in nodes], outputs


@pytest.mark.slow
def test_two_nodes_train_one_run_and_continue_it_after_a_signal(tmp_path):
    codes, outputs = end(start_nodes(tmp_path, "trainer.max_steps=30", "trainer.nodes=2"))
    assert codes == [0, 0], outputs
    whole = losses(tmp_path / "outputs/nodes")
    assert len(whole) == 30
    assert "2 processes, together batches of 16" in outputs[0][0]
    (tmp_path / "outputs/nodes").rename(tmp_path / "outputs/whole")

    nodes = start_nodes(tmp_path, "trainer.max_steps=30", "trainer.checkpoint_every_steps=1")
    metrics = tmp_path / "outputs/nodes/metrics.csv"
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 5:
        assert nodes[0].poll() is None
        time.sleep(0.01)
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    codes, outputs = end(nodes)
    assert codes == [143, 143], outputs
    codes, outputs = end(start_nodes(tmp_path, "trainer.max_steps=30", "trainer.checkpoint_every_steps=1"))
    assert codes == [0, 0], outputs
    assert losses(tmp_path / "outputs/nodes") == whole
