"""One file per verb, and what they share (stored, help, completion): its help, and `run`, which takes the words after
the verb and returns the exit code."""
