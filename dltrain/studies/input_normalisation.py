"""What the normalisation of the input does to the first layer of a net, and to its training.

Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998, section 4.3: inputs should be centred on zero,
have equal variances and no correlations, since the time that gradient descent takes grows with the condition number of
the Hessian. Of a linear filter with a squared error the Hessian is the second moment E[p p'] of the patches p that it
reads (section 5.1). Shakhnarovich 2016, slide 6: a mean of zero fits a border that is padded with zeros.

For each normalisation: conditioning, the largest eigenvalue of the second moment of the patches, divided by the
smallest one; border, the distance of the mean patch at the padded border from the mean patch inside, divided by the
root of the summed variances inside; and of a small net without batch normalisation the fewest steps to an accuracy at
any of the learning rates, and the test accuracy at the rate that ends best in validation. All statistics are of the
training split.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.augment.pipeline import Normalize, to_unit_range
from dltrain.batches import seed_of
from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.data.datamodule import DataModule
from dltrain.drawing.curves import draw_comparison
from dltrain.errors import UserError
from dltrain.results import print_table, write_values
from dltrain.run import StudyContext
from dltrain.studies.batchnorm_effect import endless_batches
from dltrain.studies.claims import judge, parse_claims, print_verdicts

KERNEL_PX = 3
EXACT = ("conditioning", "border")  # columns that no seed changes
AT_ONCE = 500  # images whose patches are in memory together
COLUMNS = {"conditioning": "conditioning", "border": "border", "steps_to_target": "steps to {target:g}",
           "accuracy": "test accuracy", "lr": "learning rate"}


class History(NamedTuple):
    """Of a net: accuracies on the validation split after some of its steps, and the last one on the test split."""

    accuracies: list[float]
    test_accuracy: float


def study(context: StudyContext, data: str, root: str | None, image_px: int, normalizations: list[str], steps: int,
          evaluations: int, target: float, lrs: list[float], channels: int, seeds: list[int], claims: list[str]
          ) -> dict[str, Any]:
    """`normalizations`: kinds of Normalize, or raw. Writes comparison.csv and results.png; returns the means over the
    seeds and the outcomes of the claims. A net that never reaches the target counts as one that needs all steps."""
    for key, listed in (("normalizations", normalizations), ("lrs", lrs)):
        if not listed:
            raise UserError(f"study.{key}: must not be empty")
    parsed = parse_claims(claims, normalizations, COLUMNS)
    eval_steps = sorted({round(steps * number / evaluations) for number in range(evaluations + 1)})
    values: dict[str, dict[str, list[float]]] = {key: {kind: [] for kind in normalizations} for key in COLUMNS}
    curves: dict[str, tuple[list[int], list[float]]] = {}
    normalizers: dict[str, nn.Module] = {}
    patches: dict[str, tuple[float, float]] = {}  # of the training split, which is the same for all seeds
    all_seeds = context.all_seeds(seeds)
    for seed in all_seeds:
        overrides = [f"data={data}", f"data.image_px={image_px}", f"seed={seed}", "recipe=none"]
        overrides += [f"data.root={root}"] if root else []
        module = build_data(compose(overrides, context.config_dir).job_config())  # refuses data without labels
        pixels = module.training_pixels(module.num_samples("train"))
        if not normalizers:
            normalizers |= {kind: normalizer(kind, pixels) for kind in normalizations}
            patches |= {kind: measure_patches(normalize, pixels) for kind, normalize in normalizers.items()}
        for kind, normalize in normalizers.items():
            print(f"{kind}, seed {seed}", flush=True)
            conditioning, border = patches[kind]
            histories = {lr: train(module, normalize, lr, eval_steps, channels, seed) for lr in lrs}
            best = max(lrs, key=lambda lr: histories[lr].accuracies[-1])
            numbers = {"conditioning": conditioning, "border": border, "lr": best,
                       "accuracy": histories[best].test_accuracy,
                       "steps_to_target": min(steps_to(target, history, eval_steps) for history in histories.values())}
            for key, number in numbers.items():
                values[key][kind].append(number)
            curves.setdefault(kind, (eval_steps, histories[best].accuracies))
    write_values(context.folder / "comparison.csv", all_seeds, values)
    titles = {key: title.format(target=target) for key, title in COLUMNS.items()}
    print_table("", titles, values)
    file = context.folder / "results.png"
    bars = {titles[key]: values[key] for key in ("conditioning", "border", "steps_to_target")}
    draw_comparison({"val/accuracy": curves}, bars, file)
    outcomes = print_verdicts([judge(claim, values[claim.metric], claim.metric in EXACT) for claim in parsed])
    print(f"\n{file}")
    return {**{f"{key}, {kind}": mean(repeats) for key, of_kinds in values.items()
               for kind, repeats in of_kinds.items()}, **outcomes}


def normalizer(kind: str, pixels: Tensor) -> nn.Module:
    """The normalisation, fitted to (N, C, H, W) uint8 pixels. `raw`: only to [0, 1]."""
    if kind == "raw":
        return Raw()
    try:
        normalize = Normalize(kind, pixels.shape[1], pixels.shape[-1])
    except ValueError as error:
        raise UserError(f"study.normalizations: {error}") from None
    normalize.fit(pixels)
    return normalize


class Raw(nn.Module):
    """Pixels (B, C, H, W) as they are, in [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return to_unit_range(images)


def measure_patches(normalize: nn.Module, pixels: Tensor) -> tuple[float, float]:
    """The conditioning and the border of the patches of 3 x 3 that the first layer reads, over all images."""
    num_values = pixels.shape[1] * KERNEL_PX**2
    second = torch.zeros(num_values, num_values).double()
    inside_sum, border_sum = torch.zeros(2, num_values).double()
    num_inside = num_border = 0
    side = pixels.shape[-1]
    is_inside = F.pad(torch.ones(side - 2, side - 2, dtype=torch.bool), (1, 1, 1, 1)).flatten()
    for chunk in pixels.split(AT_ONCE):
        patches = F.unfold(normalize(chunk), KERNEL_PX, padding=1).double()  # (B, C * 9, positions)
        inside, border = patches[..., is_inside], patches[..., ~is_inside]
        second += torch.einsum("bip,bjp->ij", inside, inside)
        inside_sum, border_sum = inside_sum + inside.sum((0, 2)), border_sum + border.sum((0, 2))
        num_inside += inside.shape[0] * inside.shape[2]
        num_border += border.shape[0] * border.shape[2]
    second /= num_inside
    mean_inside, mean_border = inside_sum / num_inside, border_sum / num_border
    smallest, *_, largest = torch.linalg.eigvalsh(second).tolist()
    smallest = max(smallest, torch.finfo(second.dtype).eps * largest)  # 0 but for rounding, where channels are equal
    variance = second.trace() - mean_inside.square().sum()
    return largest / smallest, float((mean_border - mean_inside).norm() / variance.sqrt())


def small_net(c_in: int, num_classes: int, channels: int) -> nn.Module:
    """Two convolutions of stride 2 without normalisation, the mean over the map, a linear layer."""
    return nn.Sequential(nn.Conv2d(c_in, channels, KERNEL_PX, stride=2, padding=1), nn.ReLU(),
                         nn.Conv2d(channels, 2 * channels, KERNEL_PX, stride=2, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, num_classes))


def train(module: DataModule, normalize: nn.Module, lr: float, eval_steps: Sequence[int], channels: int, seed: int
          ) -> History:
    """A net trained by SGD with momentum 0.9; weights and batches depend on the seed alone."""
    torch.manual_seed(seed_of("init", seed))
    net = small_net(module.training_pixels(1).shape[1], len(module.class_names), channels)
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    accuracies, done = [], 0
    batches = endless_batches(module)
    for step in eval_steps:
        for batch in islice(batches, step - done):
            sgd.zero_grad()
            F.cross_entropy(net(normalize(batch.images)), batch.labels).backward()
            sgd.step()
        done = step
        accuracies.append(accuracy_of(net, normalize, module, "val"))
    return History(accuracies, accuracy_of(net, normalize, module, "test"))


@torch.no_grad()
def accuracy_of(net: nn.Module, normalize: nn.Module, module: DataModule, split: str) -> float:
    batches = module.read(split, list(torch.arange(module.num_samples(split)).split(AT_ONCE)))
    correct = torch.cat([net(normalize(batch.images)).argmax(1) == batch.labels for batch in batches])
    return int(correct.sum()) / len(correct)


def steps_to(target: float, history: History, eval_steps: Sequence[int]) -> int:
    reached = [step for step, accuracy in zip(eval_steps, history.accuracies, strict=True) if accuracy >= target]
    return reached[0] if reached else eval_steps[-1]
