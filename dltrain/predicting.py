"""What a trained net says of something new: a function for each kind of batch, from a run folder alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain import run_dir
from dltrain.batches import START, UNKNOWN, generator
from dltrain.build import build
from dltrain.callbacks.boxes import drawn
from dltrain.callbacks.captions import captioned, looked_at
from dltrain.callbacks.masks import as_palette_png, overlaid
from dltrain.data.classification import PICTURES, read_image
from dltrain.data.segmentation import scaled_image
from dltrain.data.vocabulary import encoded, read_text
from dltrain.errors import DataError, UserError
from dltrain.tasks import decoding
from dltrain.tasks.language_modeling import continuation


def pictures(task: Any, config: DictConfig, path: Path, input: str) -> None:
    """Labels pictures: prints the top five of each and writes predictions.json into the run folder."""
    files = picture_files(input)
    data = build(config.data, "data", seed=config.seed)
    tell_labels(path, config, "file", [str(file) for file in files],
                lambda chunk: task(torch.stack([data.read_input(Path(file)) for file in chunk]).to(task.device)))


def tell_labels(path: Path, config: DictConfig, kind: str, titles: list[str],
                logits: Callable[[list[str]], Tensor]) -> None:
    """Prints the five likeliest labels of each title, a `file` or a `text`; predictions.json has the same."""
    names, predictions = list(config.class_names), []
    shown = [Path(title).name if kind == "file" else title if len(title) < 60 else title[:57] + "..."
             for title in titles]
    width = max(map(len, shown))
    for start in range(0, len(titles), 64):
        chunk = titles[start : start + 64]
        with torch.inference_mode():
            chances = logits(chunk).float().softmax(1).cpu()
        for place, (title, row) in enumerate(zip(chunk, chances, strict=True), start=start):
            top = row.topk(min(5, len(names)))
            five = [{"label": names[i], "probability": round(p, 6)}
                    for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
            predictions.append({kind: title, "top": five})
            print(f"{shown[place]:<{width}}  " + "  ".join(f"{x['label']} {x['probability']:.1%}" for x in five))
    run_dir.write(path / "predictions.json", json.dumps(predictions, indent=1) + "\n")
    print(f"{len(titles)} {'pictures' if kind == 'file' else 'texts'}; {path}/predictions.json")


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
    symbols = run_dir.read_vocabularies(path)["characters"]
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


def labelled(task: Any, config: DictConfig, path: Path, text: str | None = None, input: str | None = None) -> None:
    """Labels texts, or pictures where the data read those as sequences."""
    data = as_trained(config, path)
    if not data.reads_pictures:
        kind, titles = "text", texts_of(text, input)
    elif input is None:
        raise UserError("this run reads pictures: predict needs input=FILE or input=FOLDER")
    else:
        kind, titles = "file", [str(file) for file in picture_files(input)]
    tell_labels(path, config, kind, titles, lambda chunk: task(on(task.device, data.encode_inputs(chunk))))


def tagged(task: Any, config: DictConfig, path: Path, text: str | None = None, input: str | None = None) -> None:
    """Labels each symbol: coloured in a terminal, elsewhere a run of like symbols and its tag a line."""
    data, names, console = as_trained(config, path), list(config.class_names), Console(highlight=False, soft_wrap=True)
    styles = dict(zip(names, cycle(COLOURS), strict=False))
    texts = texts_of(text, input, whole=data.reads_whole)
    for one in texts:
        batch = data.encode_inputs([one])
        with torch.inference_mode():
            tags = task(on(task.device, batch))[0].argmax(1).tolist()
        symbols = data.split(one)
        runs = [("".join(symbol for symbol, _ in run), names[tag]) for tag, run in
                groupby(zip(symbols, tags, strict=True), key=lambda pair: pair[1])] if data.reads_whole else [
                (symbol, names[tag]) for symbol, tag in zip(symbols, tags, strict=True)]
        if console.is_terminal:
            glue = "" if data.reads_whole else " "
            console.print(Text(glue).join(Text(run, styles[name]) for run, name in runs))
        else:
            for run, name in runs:
                print(f"{json.dumps(run, ensure_ascii=False) if data.reads_whole else run}\t{name}")
    if console.is_terminal:
        console.print(Text("  ").join(Text(name, styles[name]) for name in names))


def translated(task: Any, config: DictConfig, path: Path, text: str | None = None, input: str | None = None,
               decode: str = "greedy", beam: int = 5, temperature: float = 1.0, seed: int = 0) -> None:
    """Writes the target of each source: the likeliest symbol each time, drawn ones, or the best of a beam with the log-
    probability of each."""
    data = as_trained(config, path)
    for number, one in enumerate(texts_of(text, input)):
        batch = on(task.device, data.encode_inputs([one]))
        if unknown := int((batch.source == UNKNOWN).sum()):
            print(f"dltrain: {unknown} of {batch.source.shape[1]} symbols are unknown: {one}", file=sys.stderr)
        start, limit = decoding.starts(1, task.device), task.max_length
        with torch.inference_mode():
            state = task.model.begin(batch.source, batch.source_lengths)
            if decode == "beam":
                found, scores = decoding.beam(task.model.step, state, start, limit, beam)
                print(one)
                for symbols, score in zip(decoding.until_end(found[0]), scores[0].tolist(), strict=True):
                    print(f"  {score:8.3f}  {data.join('target', symbols)}")
                continue
            draws = generator("predict", seed, number) if decode == "sampled" else None
            found, _ = decoding.written(task.model.step, state, start, limit, temperature, draws)
        print(f"{one} -> {data.join('target', decoding.until_end(found)[0])}")


COLOURS = ("white", "cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta",
           "bright_green", "bright_yellow", "bright_blue", "bright_red", "bright_black")


def as_trained(config: DictConfig, path: Path) -> Any:
    """The run's data with its vocabularies, nothing read from their files."""
    data = build(config.data, "data", seed=config.seed)
    data.vocabularies = run_dir.read_vocabularies(path)
    return data


def on(device: torch.device, batch: Any) -> Any:
    return type(batch)(*(part.to(device) if isinstance(part, Tensor) else part for part in batch))


def texts_of(text: str | None, input: str | None, whole: bool = False) -> list[str]:
    """`text`, or a file's lines that are not empty, or the `whole` file. Raises DataError, UserError."""
    if input is not None:
        read = read_text(Path(input))
        return [read] if whole else [line.strip() for line in read.split("\n") if line.strip()]
    if text is None or not text.strip():
        raise UserError("text must have at least one symbol")
    return [text]


def detected(task: Any, config: DictConfig, path: Path, input: str, score: float = 0.5) -> None:
    """Draws the boxes of at least `score` on each picture, into the run's folder predictions/, and writes
    predictions.json in COCO's form of results."""
    names, files = list(config.class_names), picture_files(input)
    (path / "predictions").mkdir(exist_ok=True)
    found = []
    for number, file in enumerate(files):
        image = read_image(file, config.data.channels)
        with torch.inference_mode():
            (one,) = task([image.to(task.device)])
        sure = one["scores"] >= score
        boxes, labels, scores = (one[key][sure].cpu() for key in ("boxes", "labels", "scores"))
        words = [f"{names[i]} {s:.2f}" for i, s in zip(labels.tolist(), scores.tolist(), strict=True)]
        to_pil_image(drawn(image, boxes, labels, words)).save(path / "predictions" / f"{file.stem}.png")
        for (x1, y1, x2, y2), label, s in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True):
            found.append({"image_id": number, "file_name": str(file), "category_id": label, "category": names[label],
                          "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)], "score": round(s, 4)})
        print(f"{file.name}  {'  '.join(words) or 'nothing found'}")
    run_dir.write(path / "predictions.json", json.dumps(found, indent=1) + "\n")
    print(f"{len(files)} pictures; {path}/predictions and {path}/predictions.json")


def segmented(task: Any, config: DictConfig, path: Path, input: str) -> None:
    """The class of every pixel of each picture: in the run's folder predictions/ the picture with the classes' colours
    on it, and NAME_mask.png with their numbers. predictions.json has the share of each class."""
    names, files, found = list(config.class_names), picture_files(input), []
    (path / "predictions").mkdir(exist_ok=True)
    for file in files:
        image = read_image(file, config.data.channels)
        with torch.inference_mode():
            logits = task(scaled_image(image, config.data.image_px)[None].to(task.device))
            full = F.interpolate(logits, size=image.shape[1:], mode="bilinear", align_corners=False)
            mask = full[0].argmax(0).cpu()
        to_pil_image(overlaid(image, mask, names)).save(path / "predictions" / f"{file.stem}.png")
        as_palette_png(mask).save(path / "predictions" / f"{file.stem}_mask.png")
        counts = torch.bincount(mask.flatten(), minlength=len(names)) / mask.numel()
        shares = {names[i]: round(float(counts[i]), 4) for i in counts.argsort(descending=True).tolist() if counts[i]}
        found.append({"file": str(file), "mask": f"{file.stem}_mask.png", "shares": shares})
        print(f"{file.name}  {'  '.join(f'{name} {share:.1%}' for name, share in list(shares.items())[:6])}")
    run_dir.write(path / "predictions.json", json.dumps(found, indent=1) + "\n")
    print(f"{len(files)} pictures; {path}/predictions and {path}/predictions.json")


def told(task: Any, config: DictConfig, path: Path, input: str, beam: int = 5) -> None:
    """Prints the best sentences of a beam with their log-probabilities, draws the picture with them below, and where
    the model attends what it looked at, into the run's folder predictions/; predictions.json has the sentences."""
    data, files, found = as_trained(config, path), picture_files(input), []
    (path / "predictions").mkdir(exist_ok=True)
    for file in files:
        image = data.read_input(file)
        with torch.inference_mode():
            seen = task.augment.normalize(image[None].to(task.device))
            rows, scores = decoding.beam(task.model.step, task.model.begin(seen), decoding.starts(1, task.device),
                                         task.max_length, beam)
        words = decoding.until_end(rows[0])
        sentences = [data.join(one) for one in words]
        print(file.name)
        for sentence, score in zip(sentences, scores[0].tolist(), strict=True):
            print(f"  {score:8.3f}  {sentence}")
        found.append({"file": str(file), "captions": [
            {"caption": sentence, "log_probability": round(score, 4)} for sentence, score in
            zip(sentences, scores[0].tolist(), strict=True)]})
        to_pil_image(captioned(image, sentences[:1], [])).save(path / "predictions" / f"{file.stem}.png")
        if task.model.attends and words[0]:
            with torch.inference_mode():
                tokens = torch.tensor([[START, *words[0][:-1]]], device=task.device)
                weights = task.model.attention_maps(seen, tokens)[0]
            lit = looked_at(image, [data.join([word]) for word in words[0]], weights.cpu())
            to_pil_image(lit).save(path / "predictions" / f"{file.stem}_attention.png")
    run_dir.write(path / "predictions.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(files)} pictures; {path}/predictions and {path}/predictions.json")


KINDS: dict[str, Callable[..., None]] = {
    "ClassificationBatch": pictures, "TokenBatch": continued, "LabelledBatch": labelled, "TaggedBatch": tagged,
    "PairBatch": translated, "DetectionBatch": detected, "CaptionBatch": told, "SegmentationBatch": segmented,
}
