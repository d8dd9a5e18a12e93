"""Train deep learning's classic systems from one command."""

__version__ = "0.2.0"
