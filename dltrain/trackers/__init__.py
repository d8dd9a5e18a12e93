"""Loggers that send the readings, pictures and files of a run to a tracking server or its local store."""
