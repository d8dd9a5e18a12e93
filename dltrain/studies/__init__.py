"""Experiments that are not a single run: comparisons of runs, and measurements. Each is a function that a yaml in
configs/experiment names; it writes tables and pictures into its folder and returns numbers."""
