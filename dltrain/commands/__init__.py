"""One file per verb: its help, and `run`, which takes the words after the verb and returns the exit code. resume,
eval and predict share stored.py; help.py and completion.py are the program's own."""
