"""Experiments that measure something without training to an end: functions that write a table and a picture."""
