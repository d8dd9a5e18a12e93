"""Experiments that measure something without training to an end: each is a function that writes a table and a picture."""
