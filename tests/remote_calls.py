"""What the tests call in processes of a launcher. It imports no torch: a process is then there at once."""

import os
import signal


def end_or_answer(words: list[str], name: str) -> str:
    """`words`: a file, which the first process that is called with it makes before it is killed, or "always", or none.
    """
    if words == ["always"] or (words and not os.path.exists(words[0])):
        if words != ["always"]:
            open(words[0], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return name
