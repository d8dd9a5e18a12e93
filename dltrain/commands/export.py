"""`dltrain export run=FOLDER format=...`: writes a run's model for other programs, compared with the run, or its
weights alone."""

from __future__ import annotations

from pathlib import Path

from dltrain.commands.stored import load_config, parse_pairs, run_dir_of
from dltrain.errors import UserError
from dltrain.exporting.formats import FORMATS, require_libraries
from dltrain.run_dir import RunDir

HELP = """\
dltrain export run=FOLDER format=onnx    writes the run's model for other programs into FOLDER/export/onnx, with its
                                         preprocessing, a model card and model.json (inputs, outputs, class names)

  format=onnx                    graphs for onnxruntime; torch_export: graphs for torch.export.load; safetensors: named
                                 tensors for the model's own code. Graphs of a captioner and of sequence to sequence
                                 are two, encoder and step; of a language model one, a step
  output=PLACE                   another folder; an existing one is refused unless it holds the same export
  checkpoint=last                the weights of the best or of the last checkpoint; best if it is not given
  pixels=float32                 the type of images that a graph takes, from 0 to 255; uint8 if it is not given
  data.root=PLACE                where the data are now: 100 test inputs go through the exported file and through the
                                 run; outputs that differ by more than 0.0001 end with exit code 4 and without a file

dltrain export run=FOLDER output=FILE    writes the weights alone: named tensors, no optimizer, no code

  output=weights.safetensors     the format by the suffix: .safetensors, or .pth, .pt as torch.save writes them

Another run begins with such weights by model.pretrained.weights=FILE. dltrain predict run=FOLDER/export/onnx uses the
graphs. onnx needs pip install -e ".[export]"."""
SUFFIXES = (".safetensors", ".pth", ".pt")
DATA_KEYS = ("data.", "trainer.")  # those that may change


def run(words: list[str]) -> int:
    pairs = parse_pairs("export", words)
    run_dir, checkpoint = run_dir_of(pairs), pairs.pop("checkpoint", "best")
    name, pixels, output = pairs.pop("format", None), pairs.pop("pixels", "uint8"), pairs.pop("output", "")
    changes = {key: value for key, value in pairs.items() if key != "run"}
    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={checkpoint}: must be best or last")
    if name is None:
        return write_weights(run_dir, checkpoint, output, changes)
    if name not in FORMATS:
        raise UserError(f"format={name}: must be one of {', '.join(FORMATS)}")
    if pixels not in ("uint8", "float32"):
        raise UserError(f"pixels={pixels}: must be uint8 or float32")
    folder = Path(output).expanduser() if output else run_dir.path / "export" / name
    if folder.suffix in (*SUFFIXES, *(each.suffix for each in FORMATS.values())):
        raise UserError(f"output={output}: with format={name} it is a folder; leave the suffix out")
    require_libraries(name)
    return write_export(run_dir, checkpoint, name, folder, pixels, changes)


def write_export(run_dir: RunDir, checkpoint: str, name: str, folder: Path, pixels: str, changes: dict[str, str]
                 ) -> int:
    config = load_config(run_dir, changes, DATA_KEYS)
    from dltrain.exporting.exporter import Request, export  # torch from here on
    from dltrain.reporting import report

    def write() -> None:
        exported = export(Request(config, run_dir, name, checkpoint, folder, pixels))
        listed = ", ".join(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)" for file in exported.files)
        print(f"{folder}: {listed}, the {checkpoint} weights of {run_dir}")
        print(exported.check.describe() if exported.check else "this export was there already; nothing is written")

    return report(run_dir, write)


def write_weights(run_dir: RunDir, checkpoint: str, output: str, changes: dict[str, str]) -> int:
    file = Path(output).expanduser()
    if file.suffix not in SUFFIXES:
        raise UserError(f"export needs format={', format='.join(FORMATS)}, or output=FILE with one of the suffixes "
                        f"{', '.join(SUFFIXES)}")
    if file.exists():
        raise UserError(f"output={file}: is there already; choose another file")
    config = load_config(run_dir, changes, ("trainer.",))
    from dltrain import evaluation  # torch from here on
    from dltrain.reporting import report
    from dltrain.weights import write_file

    def write() -> None:
        tensors = evaluation.restore(config, run_dir, checkpoint).model.state_dict()
        write_file(tensors, file)
        size = file.stat().st_size / 1e6
        print(f"{file}: {len(tensors)} tensors, {size:.1f} MB, the {checkpoint} weights of {run_dir}")

    return report(run_dir, write)
