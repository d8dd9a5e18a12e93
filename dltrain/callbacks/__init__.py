"""Lightning callbacks of a run: checkpoints, checks of the loss, metrics, figures, progress, signals."""
