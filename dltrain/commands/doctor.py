"""`dltrain doctor`: examines the machine and the software, for a person and for a bug report. Torch is imported in
another process only."""

from __future__ import annotations

import json
from datetime import datetime

from dltrain.doctor import hardware, software, storage
from dltrain.doctor.report import Report
from dltrain.errors import MachineError, UserError, suggest

HELP = """\
dltrain doctor [key=value ...]    examines this machine and its software, and prints what a bug report needs

  output_dir=FOLDER              the folder of the runs, by default outputs
  json=true                      the same as json

It trains nothing and leaves no file. The devices, whether torch and torchvision fit, the limits of the container, free
memory and disk, whether files can be written, flushed, replaced and locked, and the environment variables that matter.
What is wrong stands at the end, each with its remedy. Exit codes: 0 no problem, 6 there are problems."""

JSON = {"true": True, "false": False}


def run(words: list[str]) -> int:
    options = {"output_dir": "outputs", "json": "false"}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            hint = suggest(key, list(options)) or "; it takes output_dir=FOLDER and json=true"
            raise UserError(f"doctor: cannot read '{word}'{hint}")
        options[key] = value
    if options["json"] not in JSON:
        raise UserError(f"json={options['json']}: must be true or false")
    report = examine(options["output_dir"])
    if JSON[options["json"]]:
        print(json.dumps(report.as_json(), indent=1, ensure_ascii=False))
    else:
        print(f"dltrain doctor, {datetime.now():%Y-%m-%d %H:%M:%S}\n{report.as_text()}")
    return MachineError.exit_code if report.problems else 0


def examine(output_dir: str) -> Report:
    report = Report()
    report.run([software.check_versions, software.check_extras, software.check_libraries, hardware.check_processor,
                hardware.check_memory, hardware.check_shared_memory, hardware.check_limits,
                *storage.checks_of(output_dir), software.check_environment, software.check_shadows])
    return report
