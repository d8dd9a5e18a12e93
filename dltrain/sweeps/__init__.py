"""Sweeps: a set of configs, each trained once, in a folder of its own below that of the sweep, and one table."""
