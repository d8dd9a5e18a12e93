"""`dltrain VERB words`: finds the verb, turns a user's mistake into one line and an exit code.

Helping, listing, explaining, completing and refusing end here without torch; what trains is imported only when it is
about to. Everything after the verb is Hydra's own syntax.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dltrain.errors import InterruptedRun, UserError, nearest

SWEEP_JOB = "${hydra:job.num}-${hydra:runtime.choices.model}-on-${hydra:runtime.choices.data}"
HYDRA_STAYS_QUIET = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
VERBS = ("train", "resume", "eval", "predict", "show", "ls", "why")


def main() -> int:
    """The console script. Returns the exit code."""
    sys.path.append(os.getcwd())  # a person's own models and data are modules in the folder at hand
    try:
        return command(sys.argv[1:])
    except UserError as error:
        print(f"dltrain: error: {error}", file=sys.stderr)
        return error.exit_code
    except InterruptedRun as stop:
        print(f"dltrain: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("dltrain: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dltrain ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def command(argv: list[str]) -> int:
    if "COMP_LINE" in os.environ:
        return complete()
    verb, words = split_verb(argv)
    if verb == "ls" or any(word in ("--help", "-h") for word in words):
        from dltrain import listing

        print(listing.help_text() if verb != "ls" or {"--help", "-h"} & {*words} else listing.ls(words))
        return 0
    if verb == "why":
        return explain(words)
    if verb == "train":
        return train(words)
    if verb == "show":
        return show(words)
    pairs = key_values(verb, words)
    asked = take_asked(pairs) if verb == "predict" else {}
    from dltrain import verbs  # torch from here on

    if verb == "predict":
        return verbs.predict(pairs, asked)
    return {"resume": verbs.resume, "eval": verbs.evaluate}[verb](pairs)


def split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """`train` is the verb when none is given. A bare first word that is no verb is refused."""
    if not argv or argv[0][:1] in ("-", "+", "~") or "=" in argv[0]:
        return "train", argv
    if argv[0] in VERBS:
        return argv[0], argv[1:]
    raise UserError(f"unknown command '{argv[0]}'{nearest(argv[0], list(VERBS)) or '; there are: ' + ', '.join(VERBS)}")


def key_values(verb: str, words: list[str]) -> dict[str, str]:
    """The key=value words of resume, eval and predict, checked against the run's own config. Raises UserError."""
    from dltrain import run_dir

    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"cannot read '{word}': {verb} takes key=value, as in run=outputs/first")
        pairs[key] = value
    if "run" not in pairs:
        raise UserError(f"{verb} needs run=FOLDER; dltrain ls runs lists the runs")
    run_dir.read_config(Path(pairs["run"]))
    return pairs


# what `predict` takes for each kind of batch, with its rule (schema.py); without one it is text, as typed
PREDICT: dict[str, dict[str, str]] = {
    "ClassificationBatch": {"input": ""},
    "TokenBatch": {"prompt": "", "length": "int >= 1", "temperature": "float >= 0", "top_k": "int >= 1 or null",
                   "seed": "int >= 0"},
    "LabelledBatch": {"text": "", "input": ""},
    "TaggedBatch": {"text": "", "input": ""},
    "DetectionBatch": {"input": "", "score": "float in [0, 1)"},
    "CaptionBatch": {"input": "", "beam": "int >= 1"},
    "SegmentationBatch": {"input": ""},
    "PairBatch": {"text": "", "input": "", "decode": "one of greedy | sampled | beam", "beam": "int >= 1",
                  "temperature": "float > 0", "seed": "int >= 0"},
}


def take_asked(pairs: dict[str, str]) -> dict[str, Any]:
    """Takes out of `pairs` what is asked of `predict`, as values. Raises UserError for what this run does not take."""
    import yaml

    from dltrain import run_dir
    from dltrain.config import schema

    kind = run_dir.read_config(Path(pairs["run"]))["task"]["batch_type"]
    keys = PREDICT[kind]
    if "input" in keys and not {"input", "text"} & {*pairs} & {*keys}:
        raise UserError("predict needs " + ('text="..." or input=FILE' if "text" in keys else
                                            "input=FILE, input=A.png,B.png or input=FOLDER"))
    for key, value in pairs.items():
        if key not in ("run", *keys) and not key.startswith("trainer."):
            hint = nearest(key, list(keys)) or f"; this run's predict takes {', '.join(keys)}"
            raise UserError(f"unknown key '{key}'{hint}")
        if keys.get(key) and (fault := schema.broken(keys[key], yaml.safe_load(value))):
            raise UserError(f"{key}={value}: {fault}")
    given = {key: pairs.pop(key) for key in keys if key in pairs}
    return {key: yaml.safe_load(value) if keys[key] else value for key, value in given.items()}


def explain(words: list[str]) -> int:
    from dltrain import why

    flags = hydra_flags(words)
    if not flags.overrides:
        raise UserError("why needs a key: dltrain why task.optimizer.lr model=resnet56 data=cifar10")
    print(why.why(flags.overrides[0], flags.overrides[1:], flags.config_dir))
    return 0


def show(words: list[str]) -> int:
    """Draws what a pipeline does; checked like a training command."""
    flags = hydra_flags(words)
    from dltrain.config import compose

    config = compose.compose(flags.overrides, flags.config_dir).job_config()
    from dltrain import show as drawing  # torch from here on

    print(drawing.show(config))
    return 0


def hydra_flags(words: list[str]) -> argparse.Namespace:
    """Hydra's own flags, wherever they stand among the overrides."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; dltrain --help and dltrain --hydra-help show the flags")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(words)


def train(words: list[str]) -> int:
    """Composes and checks without torch, then hands over to Hydra, which calls the job once or, in a sweep, often."""
    flags = hydra_flags(words)
    if flags.shell_completion or flags.hydra_help or flags.info:
        return hand_to_hydra(flags)
    from dltrain import run_dir
    from dltrain.config import compose, groups

    composed = compose.compose(flags.overrides, flags.config_dir, flags.multirun)
    for own in composed.folders:
        for name in groups.shadowed(own):
            print(f"dltrain: warning: {own}/{name}.yaml is not used: dltrain has its own {name}; rename yours",
                  file=sys.stderr)
    if flags.cfg:
        return hand_to_hydra(flags)
    config, root = composed.config, Path(composed.config.output_dir)
    sweep = flags.multirun = composed.sweep
    flags.overrides = composed.words + HYDRA_STAYS_QUIET
    if sweep:
        path = run_dir.named(root, config.name) if config.name else run_dir.timed(root / "sweeps")
        flags.overrides += [f"hydra.sweep.dir={quoted(path)}", f"hydra.sweep.subdir={SWEEP_JOB}",
                            "hydra.sweeper.params=null"]  # an experiment's own stand among the words
    else:
        pair = f"{composed.chosen['model']}-on-{composed.chosen['data']}"
        kind = composed.chosen["experiment"] if "study" in config else pair
        path = run_dir.named(root, config.name) if config.name else run_dir.timed(root / kind)
        run_dir.refuse_other_config(path, compose.to_plain(config))
        if run_dir.finished(path):
            print(f"{path} is finished, nothing to do; another name= makes another run")
            return 0
        flags.overrides += [f"hydra.run.dir={quoted(path)}"]
        print(f"{kind}; folder {path}" if "study" in config else announcement(composed.chosen, path), flush=True)
    from dltrain.jobs import Jobs  # torch from here on

    experiment = composed.chosen.get("experiment")
    file = groups.path_of("experiment", experiment, *composed.folders) if experiment else None
    jobs = Jobs(path, sweep, flags.config_dir, groups.describe(file) if file else "")
    try:
        hand_to_hydra(flags, jobs)
    except InterruptedRun:
        jobs.interrupted()
        raise
    return jobs.finish()


def announcement(chosen: dict[str, str], path: Path) -> str:
    recipe = chosen.get("recipe")
    tail = f"recipe {recipe}" if recipe not in (None, "none") else "no recipe for this pair, defaults"
    return f"{chosen['model']} on {chosen['data']}, {tail}; folder {path}"


def quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar, whatever is in it."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def hand_to_hydra(flags: argparse.Namespace, job: Callable[[Any], Any] = print) -> int:
    """What `hydra.main` does with the command line, once it is parsed."""
    from hydra import version
    from hydra._internal.utils import _run_hydra, get_args_parser

    from dltrain.config.groups import CONFIGS

    version.setbase("1.3")
    _run_hydra(args=flags, args_parser=get_args_parser(), task_function=job, config_path=str(CONFIGS),
               config_name="train")
    return 0


def complete() -> int:
    """Tab completion: Hydra reads the typed line from COMP_LINE, where the verb must not stand. The first word may be
    a verb; run= completes to run folders."""
    line = os.environ["COMP_LINE"]
    words = line.split()
    typing = "" if line.endswith(" ") else words[-1]
    done = words[1:] if line.endswith(" ") else words[1:-1]
    if not done and "=" not in typing:
        print(" ".join(verb for verb in VERBS if verb.startswith(typing)), end=" ")
    verb = done[0] if done and done[0] in VERBS else "train"
    if verb in ("resume", "eval", "predict"):
        found = sorted(str(path.parent) for path in Path("outputs").glob("**/config.yaml"))
        print(" ".join(f"run={path}" for path in found if f"run={path}".startswith(typing)))
        return 0
    if verb == "ls":
        from dltrain.listing import SIZES, TOPICS

        offered = [f"{key}=" for key in SIZES] if done[1:2] == ["models"] else TOPICS
        print(" ".join(word for word in offered if word.startswith(typing)))
        return 0
    if done and done[0] in VERBS:
        line = line.replace(f"{done[0]} ", "", 1)
        os.environ["COMP_LINE"], os.environ["COMP_POINT"] = line, str(len(line))
    return hand_to_hydra(hydra_flags(["-sc", "query=bash"]))


if __name__ == "__main__":
    sys.exit(main())
