"""What a trained net says of something new: a function for each kind of batch, from a run folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from dltrain import folder
from dltrain.batches import UNKNOWN, generator
from dltrain.build import build
from dltrain.data.classification import PICTURES
from dltrain.data.vocabulary import encoded
from dltrain.errors import DataError, UserError
from dltrain.tasks.language_model import continuation


def pictures(task: Any, config: DictConfig, path: Path, input: str) -> None:
    """Labels pictures: prints the top five of each and writes predictions.json into the run folder."""
    files = picture_files(input)
    data = build(config.data, "data", seed=config.seed)
    names, width = list(config.class_names), max(len(file.name) for file in files)
    predictions = []
    for start in range(0, len(files), 64):
        chunk = files[start : start + 64]
        images = torch.stack([data.read_file(file) for file in chunk]).to(task.device)
        with torch.inference_mode():
            chances = task(images).float().softmax(1).cpu()
        for file, row in zip(chunk, chances, strict=True):
            top = row.topk(min(5, len(names)))
            five = [{"label": names[i], "probability": round(p, 6)}
                    for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
            predictions.append({"file": str(file), "top": five})
            print(f"{file.name:<{width}}  " + "  ".join(f"{one['label']} {one['probability']:.1%}" for one in five))
    folder.write(path / "predictions.json", json.dumps(predictions, indent=1) + "\n")
    print(f"{len(files)} pictures; {path}/predictions.json")


def picture_files(words: str) -> list[Path]:
    """`a.png`, `a.png,b.png` or a folder (its pictures, those below it too, by name). Raises DataError."""
    files: list[Path] = []
    for word in [words] if Path(words).exists() else words.split(","):
        place = Path(word)
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))
            if not inside:
                raise DataError(f"input={place}: no pictures in this folder ({', '.join(sorted(PICTURES))})")
            files += inside
        elif place.is_file():
            files.append(place)
        else:
            raise DataError(f"input={place}: no such file or folder")
    return files


def continued(task: Any, config: DictConfig, path: Path, prompt: str = "\n", length: int = 400,
              temperature: float = 0.8, top_k: int | None = None, seed: int = 0) -> None:
    """Writes on from `prompt`, to the terminal as it comes. The same words give the same text."""
    symbols = folder.read_vocabularies(path)["characters"]
    tokens = encoded(prompt, symbols)
    if not len(tokens):
        raise UserError("prompt must have at least one character")
    if unknown := sorted({c for c, token in zip(prompt, tokens.tolist(), strict=True) if token == UNKNOWN}):
        raise UserError(f"prompt has symbols that the training text has not: {', '.join(map(repr, unknown[:5]))}")
    print(prompt.lstrip("\n"), end="", flush=True)
    drawn = continuation(task.model, tokens.to(task.device), generator("predict", seed), temperature, top_k)
    for token in islice(drawn, length):
        print(symbols[token], end="", flush=True)
    print()


KINDS: dict[str, Callable[..., None]] = {"ClassificationBatch": pictures, "TokenBatch": continued}
