"""The verbs, in the order in which the overview lists them. A new verb is one line here and one file in commands/."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """`file`: the module below commands/; `group`: under which heading `dltrain --help` lists it; `purpose`: one line
    of at most 60 columns."""

    file: str
    group: str
    purpose: str


VERBS = {
    "train": Verb("train", "train", "train, then test; the verb may be left out"),
    "resume": Verb("resume", "train", "continue a stopped run, bit for bit as if it had not stopped"),
    "extend": Verb("extend", "train", "a longer run that continues where another one has ended"),
    "fork": Verb("fork", "train", "a new run from a checkpoint of another, with other values"),
    "prove": Verb("prove", "train", "kill a training at random, resume it, compare the bits"),
    "tune": Verb("tune", "train", "find a batch size and a range of learning rates, to copy"),
    "check": Verb("check", "train", "examine a model and data before hours of training"),
    "show": Verb("show", "look", "draw the first batch, and what the augmentation does"),
    "eval": Verb("evaluate", "look", "measure the best weights of a run again"),
    "predict": Verb("predict", "look", "use the best weights on your own images or texts"),
    "report": Verb("report", "look", "write report.html of a run or of a sweep: all on one page"),
    "summary": Verb("summary", "look", "the stages of a model: shapes, parameters, multiply-adds"),
    "ls": Verb("ls", "look", "list what can be chosen, or the runs"),
    "why": Verb("why", "look", "show where a config value was set, and what it replaced"),
    "bench": Verb("bench", "look", "measure how fast a model trains here"),
    "doctor": Verb("doctor", "look", "examine this machine and its software"),
    "tutorial": Verb("tutorial", "look", "the slides of a tutorial, each with a command that shows it"),
    "help": Verb("help", "look", "explain a verb, a key, a choice or the exit codes"),
    "diff": Verb("diff", "compare", "in what two runs differ, and at which step they part"),
    "verify": Verb("verify", "compare", "give the first steps of a run again; say where they differ"),
    "replay": Verb("replay", "compare", "give one past step again: its loss, its batch, each layer"),
    "export": Verb("export", "take away", "write the model for other programs (ONNX), or its weights"),
    "schema": Verb("schema", "take away", "write a JSON Schema with which editors check your yaml files"),
    "new": Verb("new", "take away", "write the files of a model, a data set or a task of your own"),
    "clean": Verb("clean", "take away", "list, and delete, what the runs no longer need"),
}
