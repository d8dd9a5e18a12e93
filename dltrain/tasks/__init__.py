"""LightningModules, one per kind of problem, never one per data set."""
