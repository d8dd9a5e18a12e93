"""`dltrain summary`: totals against the other count, published numbers, formulas and torch's own counter; receptive
fields against the gradient; papers against the docstrings that name them."""

import inspect
import json
import sys
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dltrain import complexity, trust
from dltrain.commands.summary import assume_sizes
from dltrain.config import groups
from dltrain.config.compose import compose
from dltrain.contracts import backbone_of
from dltrain.models.backbones import stage_maps
from dltrain.studies.receptive_field import gradient_field, measure
from dltrain.summaries.papers import papers_of, references
from dltrain.summaries.report import Summary
from dltrain.summaries.summarise import build_empty, summarise

MODELS = groups.names("model")
IMAGE_MODELS = [name for name in MODELS if groups.batch_type_of_model(name) in (
    "ClassificationBatch", "SegmentationBatch", "DetectionBatch", "CaptionBatch")]


@cache
def summary_of(*words: str, depth: int = 1) -> Summary:
    composed = compose(list(words))
    config = composed.job_config()
    return summarise(config, assume_sizes(config), groups.path_of("model", composed.chosen["model"]), depth)


def total(summary: Summary, unit: str = "image") -> tuple[int, int]:
    totals = summary.totals()
    return totals["parameters"], totals["multiply_adds"][unit]


CLASSIFIERS = [name for name in MODELS if groups.batch_type_of_model(name) == "ClassificationBatch"]
QUICK = ("airbench94", "alexnet", "googlenet", "lite0", "plain20", "resnet18", "resnet50", "resnet164", "sdresnet56",
         "timm", "vgg11", "vgg11_cifar")  # each class and kind of block


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
                                  for name in CLASSIFIERS])
def test_totals_are_those_of_ls_models(name):
    """Two counts: by the weights that each operation reads, and by torch's FlopCounterMode."""
    words = [f"model={name}", "data=image_folder", "data.image_px=64", "data.num_classes=10"]
    columns = complexity.measure_node(compose(words).config.model, 3, 64)
    assert total(summary_of(*words)) == (columns.parameters, columns.multiply_adds)


@pytest.mark.parametrize(("model", "published"), [("vgg16", "vgg16"), ("resnet50", "resnet50"), ("alexnet", "alexnet"),
                                                  ("googlenet", "googlenet")])
def test_totals_are_those_that_torchvision_publishes(model, published):
    meta = torchvision.models.get_model_weights(published).DEFAULT.meta
    parameters, multiply_adds = total(summary_of(f"model={model}", "data.image_px=224", "data.num_classes=1000"))
    assert parameters == meta["num_params"]
    assert multiply_adds / 1e9 == pytest.approx(meta["_ops"], abs=1e-3)


def test_a_detector_has_the_parameters_that_torchvision_publishes():
    meta = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta
    summary = summary_of("model=faster_rcnn_resnet50", "data=coco", "data.num_classes=90")
    assert total(summary)[0] == meta["num_params"]
    assert "1,000 regions" in summary.subject


@pytest.mark.parametrize(("model", "millions"), [  # K. He et al., 2015, 1512.03385, table 6
    ("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7),
    pytest.param("resnet1202", 19.4, marks=pytest.mark.slow), ("airbench94", 1.97)])  # K. Jordan, 2024, 2404.00498
def test_parameters_are_the_papers(model, millions):
    parameters = total(summary_of(f"model={model}", "data=cifar10"))[0] / 1e6
    assert parameters == pytest.approx(millions, abs=0.06 if millions > 1 else 0.006)


@pytest.mark.parametrize(("model", "px"), [("vgg16", 212), ("alexnet", 195)])
def test_receptive_fields_are_the_published_ones(model, px):
    """Of the last map: A. Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks", 2019."""
    assert [row for row in summary_of(f"model={model}").rows if row.stride][-1].field_px == px


class StageMap(nn.Module):
    """The middle of a stage's map as a map of the image's size, which gradient_field reads."""

    def __init__(self, net: Any, stage: int):
        super().__init__()
        self.net, self.stage = net, stage

    def forward(self, images: Tensor) -> Tensor:
        map_ = stage_maps(self.net, images)[self.stage]
        middle = map_[:, :, map_.shape[2] // 2, map_.shape[3] // 2]
        return middle[:, :, None, None].expand(-1, -1, *images.shape[2:])


def let_all_gradients_through(net: nn.Module) -> None:
    """Every weight is positive, so that no unit is off and nothing cancels; a window's mean in the place of its
    maximum, of which one pixel alone has a gradient."""
    for tensor in net.parameters():
        tensor.data = torch.full_like(tensor, 1 / max(1, tensor[0].numel() if tensor.dim() > 1 else 1))
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, nn.Identity())


@pytest.mark.parametrize(("model", "words", "px"), [
    ("resnet20", ["data=cifar10", "data.image_px=128"], 128), ("sdresnet56", ["data=cifar10", "model.depth=20"], 128),
    ("resnet164", ["data=cifar10", "model.depth=20", "model.shortcut=B"], 64), ("vgg11_cifar", [], 192),
    ("googlenet_cifar", [], 96), ("alexnet", [], 256),
    *(pytest.param(name, [], px, marks=pytest.mark.slow) for name, px in (("resnet18", 512), ("lite0", 960),
                                                                          ("googlenet", 512)))])
def test_receptive_fields_are_those_of_the_gradient(model, words, px, monkeypatch):
    config = compose([f"model={model}", *words, f"data.image_px={px}"]).job_config()
    expected = [(row.stride, row.field_px) for row in summarise(config, assume_sizes(config)).rows if row.stride]
    monkeypatch.setattr("torch.nn.functional.relu", lambda x, inplace=False: x)
    monkeypatch.setattr("torch.nn.functional.relu6", lambda x, inplace=False: x)
    torch.set_default_dtype(torch.float64)
    try:
        net = build_empty(resolved(config), "model").eval()
        let_all_gradients_through(net)
        fields = [measure(gradient_field(StageMap(net, stage), px, 1, config.data.channels, 0))["reach_px"]
                  for stage in range(len(net.stages()))]
    finally:
        torch.set_default_dtype(torch.float32)
    assert fields == [field for _, field in expected[: len(fields)]]
    assert max(fields) < px, "the image must be larger than the field"


def resolved(config: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config.model, resolve=True)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet1202"))
                                  for name in MODELS])
def test_every_model_has_a_summary(name):
    summary = summary_of(f"model={name}")
    config = compose([f"model={name}"]).job_config()
    assume_sizes(config)
    with torch.device("meta"):
        net = build_empty(resolved(config), "model")
    totals = summary.totals()
    assert totals["parameters"] + totals["unread"] == sum(tensor.numel() for tensor in net.parameters())
    assert all(count > 0 for count in totals["multiply_adds"].values())
    assert totals["unread"] == (6_379_984 if name == "googlenet" else totals["unread"])
    assert bool(totals["unread"]) == name.startswith("googlenet")
    for columns in (80, 60):
        assert max(map(len, summary.as_text(columns).splitlines())) <= columns
    backbone = backbone_of(net)
    if backbone is not None and name != "timm":
        assert [row.name for row in summary.rows][: len(backbone.stages())] == list(backbone.stages())
    if name in IMAGE_MODELS:
        assert "field" in summary.as_text(100)


@pytest.mark.parametrize("name", ["resnet20", "googlenet", "fcn8s", "captioner", "char_rnn", "faster_rcnn", "timm"])
def test_layers_add_up_to_their_stages(name):
    stages, layers = summary_of(f"model={name}"), summary_of(f"model={name}", depth=3)
    assert layers.totals() == stages.totals()
    assert len(layers.rows) > len(stages.rows) or name == "char_rnn"


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_recurrent_layers_are_counted_by_the_formula(cell, gates):
    """A gate has W_x (H, F), W_h (H, H) and two biases (H); a step multiplies each weight once."""
    summary = summary_of("model=tagger", f"model.cell={cell}", "model.layers=2", "model.hidden=7", "model.embedding=5",
                         "data.num_classes=3", "data.vocab_size=11")
    rows = {row.name: row for row in summary.rows}
    for name, inputs in (("recurrent 1", 5), ("recurrent 1 backward", 5), ("recurrent 2", 14),
                         ("recurrent 2 backward", 14)):
        assert rows[name].per_gate == (7 * (inputs + 7 + 2) if gates > 1 else None)
        assert rows[name].parameters == gates * 7 * (inputs + 7 + 2)
        assert rows[name].multiply_adds == {"symbol": gates * 7 * (inputs + 7)}
        assert rows[name].output == (7,)
    assert rows["head"].multiply_adds == {"symbol": 14 * 3}
    assert total(summary, "symbol")[0] == sum(row.parameters for row in summary.rows)


def test_what_is_computed_once_for_a_sequence_is_kept_apart():
    rows = {row.name: row for row in summary_of("model=seq_classifier", "model.hidden=7", "model.layers=1").rows}
    assert rows["head"].multiply_adds == {"sequence": 7 * 10}
    assert rows["recurrent 1"].multiply_adds == {"step": 4 * 7 * (8 + 7)}


def test_a_word_of_a_caption_costs_what_torch_counts():
    config = compose(["model=captioner", "data.vocab_size=50"]).job_config()
    net = build_empty(resolved(config), "model").eval()
    images = torch.zeros(1, 3, 48, 48)
    with torch.no_grad():
        state = net.begin(images)
        with FlopCounterMode(display=False) as of_image:
            net.backbone.features(images)
    assert summarise(config, {}).totals()["multiply_adds"]["image"] > of_image.get_total_flops() // 2
    hidden, embedding, channels, units, places, words = 128, 64, 64, 32, 144, 50
    by_hand = (hidden * units + places * units + places * channels + hidden  # query, scores, weighted sum, gate
               + 4 * hidden * (embedding + channels + hidden) + (hidden + channels) * words)
    assert total(summarise(config, {}), "word")[1] == by_hand
    assert len(state) == 2


def test_what_reads_a_state_of_zeros_is_counted():
    """The image is the first input: attention reads the state before it, which is zeros."""
    rows = {row.name: row for row in summary_of("model=captioner_lite0").rows}
    assert rows["state_query"].multiply_adds == {"image": 256 * 128, "word": 256 * 128}
    assert rows["recurrent 1"].multiply_adds == dict.fromkeys(("image", "word"), 4 * 256 * (128 + 320 + 256))


def test_shared_weights_are_counted_once_and_computed_as_often_as_they_are_read():
    summary = summary_of("model=char_rnn", "model.tied=true", "model.embedding=8", "model.hidden=8", "model.layers=1",
                         "data.vocab_size=11")
    layer = 4 * 8 * (8 + 8 + 2)
    assert total(summary, "symbol") == (11 * 8 + layer + 11, 4 * 8 * (8 + 8) + 8 * 11)


def test_frozen_parameters_are_counted(dltrain):
    rows = {row.name: row for row in summary_of("model=resnet20", "task.freezing.until=stage1").rows}
    assert {name for name, row in rows.items() if row.frozen} == {"stem", "stage1"}
    assert all(row.frozen == row.parameters for row in rows.values() if row.frozen)
    code, out, _ = dltrain("summary", "model=resnet20", "task.freezing.until=stage1")
    assert code == 0
    assert "frozen at first" in out


def papers(name: str) -> list[str]:
    """Without computing anything."""
    node = resolved(compose([f"model={name}"]).config)
    backbone = trust.locate("_target_", node["backbone"]["_target_"]) if "backbone" in node else None
    return papers_of(trust.locate("_target_", node["_target_"]), backbone, groups.path_of("model", name))


def test_papers_are_those_of_the_docstrings():
    """Each is in a docstring below dltrain.models, and every model has one but timm's."""
    named = {name: papers(name) for name in MODELS}
    assert [name for name in MODELS if not named[name]] == ["timm"]
    modules = [module for key, module in list(sys.modules.items()) if key.startswith("dltrain.models.")]
    documented = [*modules, *(value for module in modules for value in vars(module).values() if inspect.isclass(value))]
    docs = [" ".join((one.__doc__ or "").split()) for one in documented]
    for name, sentences in named.items():
        for sentence in sentences:
            assert any(sentence in text for text in docs), (name, sentence)


@pytest.mark.parametrize(("model", "expected"), [
    ("resnet56", ["1512.03385, section 4.2"]), ("plain20", ["1512.03385, section 4.2"]),
    ("sdresnet110", ["1512.03385", "1603.09382"]), ("fcn8s", ["sections 3.1 to 3.3, 4.2 and figure 3", "1409.1556"]),
    ("vgg16", ["1409.1556, table 1"]),
    ("faster_rcnn_vgg16", ["1506.01497", "1504.08083, section 2.2", "configuration D"]),
    ("faster_rcnn_resnet50", ["1506.01497", "1612.03144", "1512.03385, table 1"]), ("seq2seq", ["1409.3215"]),
    ("tagger", ["1406.1078"]),
    ("overfeat", ["section 3.5 and figure 5"])])
def test_the_paper_of_a_model_is_the_one_its_yaml_names(model, expected):
    assert len(papers(model)) == len(expected)
    for paper, words in zip(papers(model), expected, strict=True):
        assert words in paper


def test_sentences_of_a_docstring_are_cut_where_papers_end():
    text = """A net.

    K. He, X. Zhang, "Nets: Deep Ones", 2015, arXiv 1512.03385, section 4.2. M. Tan et al., 2019, fig. 3: it is small.

    Differs from the paper: as in L. Other, 2001, arXiv 0101.00001.

    A sentence about 2015 things."""
    assert list(references(text)) == ['K. He, X. Zhang, "Nets: Deep Ones", 2015, arXiv 1512.03385, section 4.2',
                                      "M. Tan et al., 2019, fig. 3"]


def test_own_models_are_summarised_by_their_modules(dltrain, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert dltrain("new", "model=mine_too")[0] == 0
    code, out, err = dltrain("summary", "--config-dir", "conf", "model=mine_too")
    assert (code, err) == (0, "")
    assert "its docstring names no paper" in out


def test_the_command_prints_and_leaves_nothing(dltrain, tmp_path):
    code, out, err = dltrain("summary", "model=resnet56", "data=cifar10")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "model=resnet56 data=cifar10"
    assert "853,018 parameters; multiply-adds of one image of 3 x 32 x 32: 125.5 M" in out
    printed = json.loads(dltrain("summary", "model=resnet56", "data=cifar10", "json=true")[1])
    assert printed["total"]["parameters"] == 853018
    assert printed["rows"][1] == {"name": "stage1", "output": [16, 32, 32], "parameters": 42048, "frozen": 0,
                                  "unread": 0, "multiply_adds": {"image": 42467328}, "stride": 1, "field_px": 39,
                                  "per_gate": None}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "message"), [
    (["depth=0"], "depth=0: must be an integer >= 1"), (["json=maybe"], "json=maybe: must be true or false"),
    (["modle=resnet20"], "unknown key 'modle'; did you mean 'model'?"),
    (["model=rsnet20"], "did you mean 'resnet20'?"),
    (["model.depth=21"], "model (CifarResNet): depth must be 6n + 2"),
    (["model=vgg11_cifar", "data.image_px=16"], "VGG cannot compute with data.image_px=16"),
    (["model=alexnet", "task.freezing.until=stage9"], "has no such stage"),
    (["experiment=plain_vs_residual"], "this experiment trains several")])
def test_what_it_cannot_summarise_is_refused_in_a_line(words, message, dltrain):
    code, out, err = dltrain("summary", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
