"""Other names of keys: short forms, which are taken for the full key, and the keys of versions before 0.2, each of
which is refused in one line with its new name."""

from __future__ import annotations

SHORT_FORMS = {"lr": "task.optimizer.lr", "epochs": "trainer.max_epochs", "steps": "trainer.max_steps",
               "batch": "data.batch_size", "device": "trainer.accelerator", "workers": "data.num_workers"}

# An old key stands for the keys below it too. A text with spaces is advice and is printed as it is.
RENAMED = {
    "data.bucketed": "data.bucket_by_length",
    "data.same_shape": "data.group_by_shape",
    "data.most": "data.max_objects",
    "data.part": "data.contents",
    "data.batch": "data.batch_type",
    "task.batch": "task.batch_type",
    "task.transfer.rest_until": "task.freezing.until",
    "task.transfer.wake_every_epochs": "task.freezing.unfreeze_every_epochs",
    "task.transfer.statistics": "task.freezing.batch_norm=frozen (it was kept) or update (it was renewed)",
    "task.transfer": "task.freezing",
    "task.frozen_epochs": "task.freezing.until=all and task.freezing.unfreeze_every_epochs",
    "encoder": "model/backbone",
    "model.encoder": "model.backbone",
    "model.backbone.from_run": "model.backbone.pretrained.from_run",
    "model.backbone.weights": "model.backbone.pretrained.weights",
    "model.backbone.trunk": "model.backbone",
    "model.backbone.frozen": "model.backbone.norm=frozen_batch and task.freezing.until=stage1",
    "model.from_run": "model.pretrained.from_run",
    "model.weights": "model.pretrained.weights",
    "given": "inputs",
    "study.shown": "study.columns",
    "study.looks": "study.evaluations",
    "part": "split",
    **dict.fromkeys(("study.classifier_epochs", "study.epochs", "study.num_train", "study.timed_images",
                     "study.fine_lr", "study.rest_until", "study.sizes", "study.source", "study.source_epochs",
                     "study.targets"),
                    "study.more, overrides of every run, as 'study.more=[\"data.num_train=500\"]'"),
}


def new_name(key: str) -> str | None:
    """What to write instead of `key` if it, or a prefix of it, was renamed; else None."""
    for old in sorted(RENAMED, key=len, reverse=True):
        if key == old or key.startswith(f"{old}."):
            new = RENAMED[old]
            if " " in new:
                return new
            new += key.removeprefix(old)
            return new_name(new) or new  # a key may have been renamed twice
    return None
