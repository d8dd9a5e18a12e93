"""Keys of a run's config that may change while it lives."""

# What dltrain writes itself.
DERIVED = {"choices", "class_names", "version"}
# Keys that may differ from the config that a run started with: they do not change the weights, as long as data.root has
# the same files; another device changes their last bits, which run_device.py says.
FREE = DERIVED | {"name", "output_dir", "data.root", "data.download", "data.num_workers", "data.timeout_seconds",
                  "trainer.accelerator", "trainer.threads",
                  "trainer.log_every_n_steps", "trainer.eval_batch_size", "trainer.checkpoint_every_minutes",
                  "trainer.checkpoint_every_steps", "trainer.dist_timeout_seconds", "trainer.requeue",
                  "trainer.keep_checkpoints.best", "trainer.keep_checkpoints.every_epochs"}
# Keys of data that are null until the data are loaded, in runs that did not note theirs.
READ_FROM_FILES = ("num_classes", "vocab_size", "target_vocab_size")
# What runs did before they had these keys.
EARLIER = {"data.box_coordinates": "upright", "data.decoding": "pillow", "model.anchors": "fixed",
           "model.skips": "last", "trainer.as_one": False, "trainer.nodes": 1, "task.label_smoothing": 0.0,
           "task.balance_classes": False, "trainer.average_from": 0.75, "trainer.stop_when.min_delta": 0.0,
           "trainer.validate_every_epochs": 1}
# What a run of one process does not depend on.
OF_SEVERAL_PROCESSES = {"trainer.as_one"}
