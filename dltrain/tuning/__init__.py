"""Measures which batch size fits, and which learning rates train."""
