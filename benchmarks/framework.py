"""What the framework costs: a step of a small MLP and of a small character model in a run, beside a bare loop without
any bookkeeping and beside a module in the manner of lightning-hydra-template."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import peers
from benchmarks.random_data import CLASSES, MLP, build_images, images_config
from benchmarks.timing import Row, build_run, cores, measure, time_loop, time_run
from dltrain import optim
from dltrain.batches import ClassificationBatch, TokenBatch
from dltrain.benchmark.loops import rate_setter
from dltrain.data.classification import InMemoryImages
from dltrain.data.language_modeling import TextStreams
from dltrain.tasks.classification import Classification
from dltrain.tasks.task import Task

STEPS, WARM_UP = 400, 20
BATCH = 128
WANTED = "<= 0.10 ms"
CHARACTERS = ["model=char_rnn", "recipe=none", "model.hidden=32", "data.window=16", "data.batch_size=8", "trainer=cpu"]


def run() -> list[Row]:
    with cores(1):
        return [mlp_row(), characters_row()]


def mlp_row() -> Row:
    config = images_config(28, 1, BATCH, model=MLP)
    data, task = build_images(config, BATCH * (STEPS + 1))
    images = data.splits["train"]
    tensors = DataLoader([(batch.images.float() / 255 - 0.5, batch.labels)  # type: ignore[var-annotated,arg-type]
                          for batch in data.train_dataloader()], batch_size=None)
    return measure("a step of an MLP 784-100-100-100-10, batch 128", "ms", {
        "dltrain": lambda: 1e3 * time_run(config, data, task, STEPS, WARM_UP),
        "bare loop": lambda: 1e3 * time_bare_images(data, task),
        "the template's manner on ready tensors": lambda: 1e3 * peers.time_template(
            task.model, tensors, CLASSES, STEPS, WARM_UP),
        "the template's manner, its loader": lambda: 1e3 * peers.time_template(
            task.model, peers.template_loader(*images), CLASSES, STEPS // 4, WARM_UP)},
        f"{WANTED} over the bare loop", "difference")


def time_bare_images(data: InMemoryImages, task: Classification) -> float:
    net, normalize = task.model.train(), task.augment.normalize
    optimizer = optim.optimizer(net, **task.optimizer_keys)
    set_rate, numbers = rate_setter(optimizer, task), itertools.count()

    def step(batch: ClassificationBatch) -> None:
        loss = F.cross_entropy(net(normalize(batch.images)), batch.labels)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        set_rate(next(numbers))
        optimizer.step()

    data.load_state_dict({"position": 0})
    return time_loop(data.train_dataloader(), step, STEPS, WARM_UP)


def characters_row() -> Row:
    config, data, task = build_run(CHARACTERS)
    assert isinstance(data, TextStreams)
    return measure("a step of a character LSTM 1 x 32, 8 windows of 16", "ms", {
        "dltrain": lambda: 1e3 * time_run(config, data, task, STEPS, WARM_UP),
        "bare loop": lambda: 1e3 * time_bare_text(data, task)}, f"{WANTED} over the bare loop", "difference")


def time_bare_text(data: TextStreams, task: Task) -> float:
    net = task.model.train()
    parameters = list(net.parameters())
    optimizer = optim.optimizer(net, **task.optimizer_keys)
    set_rate, numbers = rate_setter(optimizer, task), itertools.count()
    state: tuple[Tensor, ...] | None = None

    def step(batch: TokenBatch) -> None:
        nonlocal state
        logits, state = net(batch.tokens, state)
        state = tuple(tensor.detach() for tensor in state)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_rate(next(numbers))
        optimizer.step()

    data.load_state_dict({"position": 0})
    return time_loop(data.train_dataloader(), step, STEPS, WARM_UP)

