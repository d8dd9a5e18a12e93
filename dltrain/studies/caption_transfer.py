"""Whether a trained backbone helps a captioner, and whether it helps to train it further, at equal steps.

The deck, after O. Vinyals et al., 2014, arXiv 1411.4555, section 4.1: the CNN is initialised from a classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dltrain.studies.comparison import draw, place, table, trained, write_csv

WAYS = {"from scratch": [], "from a classifier, fine-tuned": ["model.backbone.pretrained.from_run={classifier}"],
        "from a classifier, frozen": ["model.backbone.pretrained.from_run={classifier}", "task.freezing.until=all"],
        "random, frozen": ["task.freezing.until=all"]}
SHOWN = {"test/bleu_4": "BLEU-4", "test/cider": "CIDEr-D", "test/caption_accuracy": "true", "seconds": "seconds"}


def study(folder: Path, seed: int, classifier_epochs: int, epochs: int, num_train: int) -> dict[str, Any]:
    """Trains the classifier of one-digit scenes and four captioners in folders of their own; writes transfer.csv and
    results.png."""
    common = [f"seed={seed}", f"data.num_train={num_train}", "trainer.gradient_clip_norm=5.0",
              "task.optimizer={name:adam,lr:2.0e-3,beta2:0.98,weight_decay:0.0}", "task.schedule.name=cosine"]
    print("\na classifier of scenes with one digit", flush=True)
    classified = trained(folder / "classifier", ["model=resnet20", "model.depth=14", "data=scene_digits",
                                                 f"trainer.max_epochs={classifier_epochs}", "recipe=none", *common])
    found = {}
    for name, words in WAYS.items():
        print(f"\na captioner, {name}", flush=True)
        found[name] = trained(place(folder, name), [
            "model=captioner", "recipe=none", f"trainer.max_epochs={epochs}", *common,
            *(word.format(classifier=folder / "classifier") for word in words)])
    write_csv(folder / "transfer.csv", ["backbone", *SHOWN],
              [[name, *(result[key] for key in SHOWN)] for name, result in found.items()])
    print("\n" + table("backbone", SHOWN.values(), [[name, *([result[key]] for key in SHOWN)]
                                                   for name, result in found.items()]))
    draw({name: [place(folder, name)] for name in WAYS},
         {"val/caption_accuracy": "sentences that are true of their scene, validation"},
         {name: [result["test/caption_accuracy"]] for name, result in found.items()}, "the same, test split",
         folder / "results.png")
    print(f"\n{folder}/results.png")
    return {"classifier's test/accuracy": classified["test/accuracy"],
            **{f"{key}, {name}": result[key] for name, result in found.items() for key in SHOWN if key != "seconds"}}
