"""Loss curves of every family's recipe on embedded data, at a tenth of its steps, against those stored in golden/.

A change that is meant to change numbers is accepted by the command that a failure prints."""

import csv
import json
from pathlib import Path

import pytest
import torch

from dltrain import build, run, trainer
from dltrain.config.compose import compose
from dltrain.run_dir import RunDir

FOLDER = Path(__file__).parent / "golden"
FAMILIES = ["resnet20", "vgg11_cifar", "googlenet_cifar", "seq_classifier", "tagger", "seq2seq", "char_rnn",
            "localizer", "overfeat", "faster_rcnn", "fcn8s", "hypercolumn", "dilated", "captioner"]
READINGS = 10  # points of a curve
TOLERANCE = 0.03  # relative, between machines and numbers of threads


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_curve_is_the_stored_one(family, tmp_path, request):
    file = FOLDER / f"{family}.json"
    curve = train_a_tenth(family, tmp_path)
    if request.config.getoption("--accept"):
        file.write_text(json.dumps(curve, indent=1) + "\n")
    stored = json.loads(file.read_text())
    assert curve == pytest.approx(stored, rel=TOLERANCE, abs=1e-3), (
        f"another curve of {family}; accept it with: pytest -m slow tests/test_golden.py -k {family} --accept")


def train_a_tenth(family: str, folder: Path) -> dict[str, float]:
    """The training loss by step, as "train/loss 40", and the best headline metric."""
    words = [f"model={family}", "trainer=cpu"]
    config = compose(words).job_config()
    total, _ = trainer.planned_steps(config, len(build.build_data(config).train_dataloader()))
    steps = total // 10
    config = compose([*words, f"trainer.max_steps={steps}", "trainer.max_epochs=null",
                      f"trainer.log_every_n_steps={steps // READINGS}"]).job_config()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = run.train(config, RunDir(folder))
    finally:
        torch.set_num_threads(threads)
    with open(folder / "metrics.csv", newline="") as rows:
        curve = {f"train/loss {row['step']}": float(row["train/loss"]) for row in csv.DictReader(rows)
                 if row.get("train/loss")}
    return {**curve, result["headline"]: result[result["headline"]]}
