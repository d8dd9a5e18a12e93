"""Timings as ratios against a reference in the same process: `python -m benchmarks [NAME ...]`."""
