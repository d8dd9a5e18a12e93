"""Rates and seconds, each beside a reference in the same process: `python -m benchmarks [NAME ...]`."""
