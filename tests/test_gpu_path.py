"""What a training step does on a GPU, seen without one (fake_gpu.py): nothing in it waits for the device."""

from contextlib import contextmanager
from itertools import islice
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch

from dltrain.batches import END
from dltrain.build import build_data, build_task
from dltrain.callbacks.averaging import WeightAverage
from dltrain.callbacks.stopping import StopAtNonFinite
from dltrain.data import scenes, stdlib
from dltrain.models.recurrent import Recurrent
from dltrain.tasks import decoding
from dltrain.tasks.language_modeling import READ_EVERY, generate
from tests.fake_gpu import FakeGpu, host_copy

SCENES = ["data.num_train=4", "data.batch_size=2"]
DIGITS = ["data=scene_digits", "data.num_train=8", "data.batch_size=4"]
FAMILIES = {
    "resnet20": ["model=resnet20", "augment=cifar"],
    "sdresnet56": ["model=sdresnet56", *DIGITS, "augment=photos"],
    "googlenet": ["model=googlenet_cifar", *DIGITS, "augment=strong", "task.label_smoothing=0.1"],
    "airbench": ["model=airbench94", *DIGITS, "augment=cifar_fast", "data.image_px=32"],
    "vgg": ["model=vgg11_cifar", *DIGITS],
    "alexnet": ["model=alexnet", *DIGITS, "data.image_px=64"],
    "fcn8s": ["model=fcn8s", *SCENES, "augment=segmentation"],
    "fcn8s learned": ["model=fcn8s", "model.upsampling=learned", *SCENES],
    "hypercolumn": ["model=hypercolumn", *SCENES],
    "dilated": ["model=dilated", *SCENES],
    "faster_rcnn": ["model=faster_rcnn", *SCENES, "augment=detection"],
    "faster_rcnn pyramid": ["model=faster_rcnn", "model.pyramid=true", "model.anchor_px=[8,12,16,24,32]", *SCENES,
                            "data.image_px=32", "data.sizes_px=[8,20]"],
    "faster_rcnn pool": ["model=faster_rcnn", "model.roi_pool=pool", *SCENES],
    "fast_rcnn": ["model=fast_rcnn", *SCENES],
    "rcnn": ["model=rcnn", *SCENES],
    "overfeat": ["model=overfeat", *SCENES],
    "localizer": ["model=localizer", *SCENES],
    "char_rnn": ["model=char_rnn"],
    "tagger": ["model=tagger", "data.num_train=20", "data.window=16", "model.layers=1"],
    "seq_classifier": ["model=seq_classifier"],
    "seq2seq": ["model=seq2seq", "data.num_train=100", "data.batch_size=8"],
    "captioner": ["model=captioner", *SCENES, "task.sampled_share=0.5"],
}

# torchvision's own, by file and function. They are a few numbers that it copies to the device (sizes of images,
# weights of the box coder), a check that boxes are not empty, and what has no fixed size: boxes that are kept,
# matched or sampled.
HEADS = {("detection/transform.py", "<listcomp>"),
         ("detection/_utils.py", "__call__"), ("detection/_utils.py", "encode_single"),
         ("detection/roi_heads.py", "subsample"), ("detection/roi_heads.py", "fastrcnn_loss")}
PROPOSALS = HEADS | {("detection/generalized_rcnn.py", "forward"), ("detection/anchor_utils.py", "<listcomp>"),
                     ("detection/_utils.py", "decode_single"), ("detection/_utils.py", "set_low_quality_matches_"),
                     ("detection/rpn.py", "filter_proposals"), ("detection/rpn.py", "compute_loss"),
                     ("ops/boxes.py", "remove_small_boxes"), ("ops/boxes.py", "_batched_nms_coordinate_trick"),
                     ("ops/boxes.py", "nms")}
OF_TORCHVISION = {"faster_rcnn": PROPOSALS, "faster_rcnn pool": PROPOSALS, "fast_rcnn": HEADS, "rcnn": HEADS,
                  "faster_rcnn pyramid": PROPOSALS | {("ops/poolers.py", "_multiscale_roi_align")}}
OF_KERNELS = {("torchvision/ops/poolers.py", "_multiscale_roi_align")}  # not in a deterministic run


@pytest.fixture(autouse=True)
def without_cudnn(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: False)


@pytest.fixture
def small_data(monkeypatch):
    modules = stdlib.library_files()[:12]
    monkeypatch.setattr(stdlib, "library_files", lambda: modules)
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 2)


def build(composed):
    data = build_data(composed)
    return build_task(composed, data.vocabularies).train(), next(iter(data.train_dataloader()))


@contextmanager
def deterministic(mode: bool):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def train_one_step(composed, repeatable: bool = True) -> FakeGpu:
    """The second step of an epoch on a device that is not there; `repeatable`: in a deterministic run."""
    task, batch = build(composed)
    with FakeGpu() as gpu, deterministic(repeatable):
        task.to("cuda")
        optimizer = task.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            group["fused"] = None  # the stand-in has no kernels of a GPU
        gpu.waits.clear()
        gpu.operations.clear()
        batch = task.copy_to(torch.device("cuda"), batch)
        task.position = (0, 0, 1, 0)
        loss = task.training_step(batch, 1)
        loss.backward()
        task.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
    return gpu


def listed(family: str) -> set[tuple[str, str]]:
    return {(f"torchvision/{'models/' if file.startswith('detection') else ''}{file}", function)
            for file, function in OF_TORCHVISION.get(family, ())}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_step_waits_for_nothing_but_torchvision_and_can_be_deterministic(family, config, small_data):
    gpu = train_one_step(config(*FAMILIES[family], "trainer=cpu"))
    assert len(gpu.operations) > 20  # the step did run on the device
    assert {(file, function) for _, file, function in gpu.waits} == listed(family) - OF_KERNELS, gpu.waits
    assert not gpu.refused


@pytest.mark.parametrize("family", ["dilated", "hypercolumn", "captioner", "faster_rcnn", "faster_rcnn pool",
                                    "faster_rcnn pyramid"])
def test_the_faster_kernels_of_other_runs_wait_for_nothing_either(family, config, small_data):
    gpu = train_one_step(config(*FAMILIES[family], "trainer=cpu"), repeatable=False)
    assert {(file, function) for _, file, function in gpu.waits} == listed(family), gpu.waits
    assert bool(gpu.refused) == (family != "captioner")


@pytest.mark.parametrize("family", ["resnet20", "googlenet", "fcn8s", "dilated", "hypercolumn", "faster_rcnn",
                                    "overfeat", "localizer", "char_rnn", "tagger", "seq2seq", "captioner"])
def test_evaluation_can_be_deterministic(family, config, small_data, monkeypatch):
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    composed = config(*FAMILIES[family], "trainer=cpu")
    data = build_data(composed)
    task = build_task(composed, data.vocabularies).eval()
    task.trainer = Mock(spec=pl.Trainer, testing=False)
    with FakeGpu() as gpu, deterministic(True), torch.no_grad():
        task.to("cuda")
        batch = task.copy_to(torch.device("cuda"), next(iter(data.val_dataloader())))
        task.evaluation_step(batch, 0)
    assert not gpu.refused


def test_stated_readings_of_a_run_wait(config):
    """The loss is checked, and the metrics are read, once every n steps."""
    task, _ = build(config("model=resnet20"))

    check, average, trainer = StopAtNonFinite(50), WeightAverage(0.9, 1), Mock(spec=pl.Trainer)
    with FakeGpu() as gpu:
        task.to("cuda")
        loss = torch.zeros((), device="cuda")
        trainer.global_step = 0
        average.on_train_start(trainer, task)
        gpu.waits.clear()
        for trainer.global_step in range(1, 50):
            check.on_before_backward(trainer, task, loss)
            average.on_train_batch_end(trainer, task)
        assert not gpu.waits
        trainer.global_step = 50
        check.on_before_backward(trainer, task, loss)
        task.read_training_metrics()
    assert [(file, function) for _, file, function in gpu.waits] == [
        ("dltrain/callbacks/stopping.py", "on_before_backward"), ("dltrain/tasks/task.py", "read_training_metrics")]


def random_step(tokens, state):
    """Logits (N, 11) of a model that ends late: END is likely from the twelfth symbol on."""
    (count,) = state
    logits = torch.sin(tokens[:, None] * 3.0 + torch.arange(11, device=tokens.device) * count[:, None])
    logits = logits + 5.0 * (torch.arange(11, device=tokens.device) == END) * (count[:, None] - 12)
    return logits, (count + 1,)


@pytest.mark.parametrize("write", [
    lambda state, start: decoding.write_sequences(random_step, state, start, 40),
    lambda state, start: decoding.write_sequences(random_step, state, start, 40, 1.0, torch.Generator().manual_seed(0)),
    lambda state, start: tuple(values.flatten(0, 1) for values in
                               decoding.beam_search(random_step, state, start, 40, 3))],
    ids=["greedy", "sampled", "beam"])
def test_decoding_waits_once_in_eight_symbols_and_writes_the_same(write):
    start = torch.full((5,), 2)
    expected, scores = write((torch.arange(5) * 0.5,), start)
    assert 8 < expected.shape[1] < 32
    with FakeGpu() as gpu:
        state = (torch.arange(5, device="cuda") * 0.5,)
        on_device = torch.full((5,), 2, device="cuda")
        symbols, device_scores = write(state, on_device)
        assert sum(gpu.waits.values()) == -(-symbols.shape[1] // decoding.ENDS_READ_EVERY) <= 3, gpu.waits
        written, scored = symbols.tolist(), device_scores.tolist()
    assert [row[: row.index(END) + 1] for row in written] == [row[: row.index(END) + 1] for row in expected.tolist()]
    assert all(symbol == 0 for row in written for symbol in row[row.index(END) + 1 :])
    assert scored == pytest.approx(scores.tolist())


def test_generated_text_is_read_in_groups(config, small_data, monkeypatch):
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which the stand-in's tensors do not know
    task, _ = build(config("model=char_rnn"))
    task.eval()
    prompt = torch.tensor([5, 6, 7])
    expected = [*islice(generate(task.model, prompt, torch.Generator().manual_seed(1)), 40)]
    with FakeGpu() as gpu:
        task.to("cuda")
        prompt = prompt.to("cuda")
        gpu.waits.clear()
        written = generate(task.model, prompt, torch.Generator().manual_seed(1))
        assert [next(written) for _ in range(40)] == expected
    assert gpu.waits["tolist", "dltrain/tasks/language_modeling.py", "generate"] == -(-40 // READ_EVERY)


@pytest.mark.parametrize("wait", [
    lambda t: t.sum().item(), lambda t: t.tolist(), lambda t: t.nonzero(), lambda t: bool(t.sum() > 0),
    lambda t: int(t.sum()), lambda t: float(t.sum()), lambda t: [1, 2, 3][(t > 9).sum()], lambda t: t.cpu(),
    lambda t: t.numpy(), lambda t: t.to("cpu"), lambda t: t[t > 0], lambda t: t.masked_select(t > 0),
    lambda t: t.__setitem__(t > 0, t[:1]), lambda t: torch.where(t > 0), lambda t: torch.unique(t),
    lambda t: torch.bincount(t), lambda t: t.repeat_interleave(t), lambda t: t[[0, 1]], lambda t: t[torch.tensor([0])],
    lambda t: t.new_tensor([1]), lambda t: torch.tensor([1], device=t.device), lambda t: torch.ones(2).to(t.device),
    lambda t: torch.ones(2).pin_memory().to(t.device), lambda t: torch.equal(t, t),
    lambda t: t.copy_(torch.zeros(3)), lambda t: torch.ones(2).to(t.device, non_blocking=True)])
def test_fake_gpu_sees_what_waits(wait):
    with FakeGpu() as gpu:
        tensor = torch.arange(3, device="cuda")
        assert not gpu.waits
        wait(tensor)
    assert gpu.waits


def test_fake_gpu_lets_pass_what_does_not_wait():
    with FakeGpu() as gpu:
        tensor = torch.arange(3, device="cuda") * 2 + torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        tensor = torch.where(tensor > 1, tensor, 0.0)[torch.arange(2, device=tensor.device)].repeat_interleave(2)
        assert tensor.is_cuda
        assert not gpu.waits
        with pytest.raises(RuntimeError, match="same device"):
            tensor + torch.ones(4)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_packed_sequences_of_a_gpu_are_those_of_the_cpu(cell, bidirectional):
    """Rows of any order of lengths: outputs, last states and gradients."""
    torch.manual_seed(0)
    layer, lengths = Recurrent(cell, 3, 4, 2, bidirectional=bidirectional), (2, 5, 1, 5, 3)
    x, first = torch.randn(5, 6, 3), tuple(torch.randn_like(state) for state in layer.zeros(5))
    expected, expected_last = layer(x, first, lengths)
    expected.square().sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    with FakeGpu() as gpu:
        layer.to("cuda")
        x, first = x.to("cuda"), tuple(state.to("cuda") for state in first)
        gpu.waits.clear()
        out, last = layer(x, first, lengths)
        out.square().sum().backward()
        assert not gpu.waits
        assert gpu.operations["_pack_padded_sequence"] == 1
    torch.testing.assert_close(host_copy(out), expected)
    for ours, theirs in zip(last, expected_last, strict=True):
        torch.testing.assert_close(host_copy(ours), theirs)
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        torch.testing.assert_close(host_copy(parameter.grad), gradient)
