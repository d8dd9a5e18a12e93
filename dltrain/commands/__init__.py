"""One file per verb: its help, and `run`, which takes the words after the verb and returns the exit code. The verbs
share stored.py, help.py and completion.py."""
