"""Training loops in the manner of well-known repositories, written anew: per-sample transforms of PIL images, a
DataLoader with workers, and the bookkeeping that their steps have. Each trains a copy of the net."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Accuracy, MaxMetric, MeanMetric
from torchvision import transforms as T

from benchmarks.timing import time_loop
from dltrain.benchmark.timing import StepClock


class PilImages(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10 and MNIST: an array in memory, of which each sample becomes a PIL image."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]):
        self.images = images.permute(0, 2, 3, 1).squeeze(3).numpy() if images.shape[1] == 1 else (
            images.permute(0, 2, 3, 1).contiguous().numpy())
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def cifar_transform(flip_first: bool) -> Callable[[Image.Image], Tensor]:
    moves = [T.RandomHorizontalFlip(), T.RandomCrop(32, 4)]
    return T.Compose([*(moves if flip_first else moves[::-1]), T.ToTensor(),
                      T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


def time_akamaster(net: Any, images: Tensor, labels: Tensor, num_steps: int, warm_up: int) -> float:
    """akamaster/pytorch_resnet_cifar10: 4 workers; loss and precision of each step are read for running averages."""
    loader = DataLoader(PilImages(images, labels, cifar_transform(True)), batch_size=128, shuffle=True, num_workers=4,
                        pin_memory=torch.cuda.is_available())
    net = copy.deepcopy(net).train()
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    sums = {"loss": 0.0, "top1": 0.0}

    def step(batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        output = net(inputs)
        loss = F.cross_entropy(output, targets)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        _, predicted = output.float().data.topk(1, 1, True, True)
        sums["top1"] += predicted.t().eq(targets.view(1, -1)).view(-1).float().sum(0).mul_(100 / len(targets)).item()
        sums["loss"] += loss.float().item() * len(targets)

    return time_loop(loader, step, num_steps, warm_up)


def time_kuangliu(net: Any, images: Tensor, labels: Tensor, num_steps: int, warm_up: int) -> float:
    """kuangliu/pytorch-cifar: 2 workers; a progress line with loss and accuracy is written in each step."""
    loader = DataLoader(PilImages(images, labels, cifar_transform(False)), batch_size=128, shuffle=True, num_workers=2)
    net = copy.deepcopy(net).train()
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    loss_sum, correct, total = 0.0, 0, 0

    def step(batch: tuple[Tensor, Tensor]) -> None:
        nonlocal loss_sum, correct, total
        inputs, targets = batch
        sgd.zero_grad()
        outputs = net(inputs)
        loss = F.cross_entropy(outputs, targets)
        loss.backward()
        sgd.step()
        loss_sum += loss.item()
        _, predicted = outputs.max(1)
        total += targets.size(0)
        correct += int(predicted.eq(targets).sum().item())
        f"Loss: {loss_sum:.3f} | Acc: {100.0 * correct / total:.3f}% ({correct}/{total})"

    return time_loop(loader, step, num_steps, warm_up)


class TemplateModule(pl.LightningModule):
    """ashleve/lightning-hydra-template's MNIST module: metric objects for loss and accuracy, logged with
    prog_bar=True."""

    def __init__(self, net: nn.Module, num_classes: int):
        super().__init__()
        self.net, self.criterion = net, nn.CrossEntropyLoss()
        self.train_acc = Accuracy(task="multiclass", num_classes=num_classes)
        self.train_loss, self.val_acc_best = MeanMetric(), MaxMetric()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.forward(x)
        loss: Tensor = self.criterion(logits, y)
        self.train_loss(loss)
        self.train_acc(torch.argmax(logits, dim=1), y)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=10)
        return {"optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": "train/loss", "interval": "epoch"}}


class Starts(pl.Callback):
    """Calls `tick` at the start of each step."""

    def __init__(self, tick: Callable[[], None]):
        self.tick = tick

    def on_train_batch_start(self, *arguments: object) -> None:
        self.tick()


def template_loader(images: Tensor, labels: Tensor) -> DataLoader[tuple[Tensor, int]]:
    """The template's: per sample, without workers."""
    transform = T.Compose([T.ToTensor(), T.Normalize((0.1307,), (0.3081,))])
    return DataLoader(PilImages(images, labels, transform), batch_size=128, shuffle=True, num_workers=0)


def time_template(net: Any, loader: Any, num_classes: int, num_steps: int, warm_up: int) -> float:
    clock = StepClock(num_steps + 1, num_steps, warm_up, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(accelerator="cpu", max_steps=num_steps, callbacks=[Starts(clock.tick)], logger=False,
                             enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
                             default_root_dir=folder)
        trainer.fit(TemplateModule(copy.deepcopy(net), num_classes), loader)
    return clock.step_seconds()
