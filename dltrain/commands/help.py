"""The text of `dltrain --help`."""

from __future__ import annotations

import textwrap

from dltrain.config import groups
from dltrain.config.renamed import SHORT_FORMS

OVERVIEW = """\
dltrain: train deep learning's classic systems from one command.

  dltrain [train] [choices] [key=value ...]    train, then test; every choice has a default
  dltrain resume  run=FOLDER                   continue an interrupted run; its weights end bit-identical to those
                                               of a run that was not interrupted
  dltrain eval    run=FOLDER [key=value ...]   evaluate the best checkpoint of a run again, on the test split
  dltrain predict run=FOLDER input=FILE        use the best checkpoint of a run on your own images or texts
  dltrain show    [choices]                    draw what an augmentation pipeline does to images
  dltrain check   [choices]                    examine a model and data in seconds: loss, gradients, labels, leaks, cost
  dltrain bench   [choices]                    measure how fast a model trains here, beside a bare loop, and which
                                               settings are faster
  dltrain prove   resume [choices]             kill a training at random here, resume it, and compare the bits
  dltrain verify  run=FOLDER                   give the first steps of a run again here; say where they part, and why
  dltrain replay  run=FOLDER step=N            give one past step again: its loss, its batch, what each layer does
  dltrain ls      [LIST]                       list what can be chosen, or compare the runs: models, backbones, data,
                                               recipes, augment, trainers, experiments, runs
  dltrain why     KEY [choices]                show where a config value was set, and the values it replaced
  dltrain new     model=NAME                   write the files of a model, a data set or a task of your own
  dltrain export  run=FOLDER output=FILE       write a run's weights as a plain file: .safetensors or .pth
  dltrain doctor                               examine this machine and its software; the text of a bug report
  dltrain clean   [FOLDER]                     list, and with apply=true delete, what the runs no longer need
  dltrain VERB --help, dltrain help VERB       the arguments of a verb

Examples
  dltrain                                      resnet20 on real handwritten digits: no download, about a minute
  dltrain model=resnet56 data=cifar10          the paper's recipe for this pair is chosen by name
  dltrain model=plain20 task.optimizer.lr=0.05 trainer=cpu
  dltrain name=first seed=3                    the folder outputs/first; the same command again continues it
  dltrain -m model=plain20,resnet20 seed=0,1   a sweep: four runs, one table
  dltrain why task.optimizer.lr model=resnet56 data=cifar10

Choices, described by dltrain ls
{groups}

Short forms of keys
{short_forms}

Every key and its value:            dltrain --cfg job
Your own models, data and recipes:  dltrain --config-dir FOLDER ...   (FOLDER/model/mine.yaml is model=mine)
Tab completion:                     eval "$(dltrain -sc install=bash)"
Hydra's other flags:                dltrain --hydra-help
Look at the runs:                   tensorboard --logdir outputs"""


def overview() -> str:
    lines = []
    for group in groups.GROUPS:
        names = ", ".join(groups.names(group)) or "none yet"
        if group == "recipe":  # too many to list
            names = "<model>-on-<data>, chosen by the two names; dltrain ls recipes lists them; recipe=none for none"
        lines += textwrap.wrap(names, 116, initial_indent=f"  {group + '=':<16}", subsequent_indent=" " * 18)
    short = ", ".join(f"{short}= is {key}=" for short, key in SHORT_FORMS.items())
    return OVERVIEW.format(groups="\n".join(lines), short_forms=textwrap.fill(
        f"{short}, resume=FOLDER is resume run=FOLDER", 116, initial_indent="  ", subsequent_indent="  "))
