"""Speed and memory of training: a run's trainer beside a bare loop, in turn; the split of a step; faster settings."""
