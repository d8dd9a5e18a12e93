"""`dltrain export run=FOLDER output=FILE`: writes the weights of a run's model as a plain file of tensors."""

from __future__ import annotations

from pathlib import Path

from dltrain.commands.stored import load_config, parse_pairs, run_dir_of
from dltrain.errors import UserError

HELP = """\
dltrain export run=FOLDER output=FILE    writes the weights of the run's model: named tensors, no optimizer, no code

  output=weights.safetensors     the format by the suffix: .safetensors, or .pth, .pt as torch.save writes them
  checkpoint=last                the weights of the best or of the last checkpoint; best if it is not given

Another run begins with them by model.pretrained.weights=FILE, other code reads them by the names of the tensors."""
SUFFIXES = (".safetensors", ".pth", ".pt")


def run(words: list[str]) -> int:
    pairs = parse_pairs("export", words)
    run_dir, checkpoint = run_dir_of(pairs), pairs.pop("checkpoint", "best")
    output = Path(pairs.pop("output", "")).expanduser()
    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={checkpoint}: must be best or last")
    if output.suffix not in SUFFIXES:
        raise UserError(f"export needs output=FILE with one of the suffixes {', '.join(SUFFIXES)}")
    if output.exists():
        raise UserError(f"output={output}: is there already; choose another file")
    config = load_config(run_dir, {key: value for key, value in pairs.items() if key != "run"}, ("trainer.",))
    from dltrain import evaluation  # torch from here on
    from dltrain.reporting import report
    from dltrain.weights import write_file

    def write() -> None:
        tensors = evaluation.restore(config, run_dir, checkpoint).model.state_dict()
        write_file(tensors, output)
        size = output.stat().st_size / 1e6
        print(f"{output}: {len(tensors)} tensors, {size:.1f} MB, the {checkpoint} weights of {run_dir}")

    return report(run_dir, write)
