"""Pretrained weights of a run, of a file, of torchvision and of timm; what does not fit is named by key."""

import shutil
from urllib.error import URLError

import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import get_weight, vgg16
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from dltrain import build, checkpoints, run, verbs
from dltrain.config import compose
from dltrain.contracts import backbone_of
from dltrain.errors import DataError, UserError
from dltrain.models.backbones import VGG16, stage_strides
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.efficientnet_lite import EfficientNetLite0, SameConv2d
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.models.localizer import Localizer
from dltrain.models.overfeat import OverFeat
from dltrain.models.recurrent import CharRNN
from dltrain.models.timm_model import TimmModel
from dltrain.models.vgg import CifarVGG
from dltrain.pretrained import without_pretrained
from dltrain.tasks.classification import Classification
from tests.conftest import TINY
from tests.test_resume import Crash, crash_at

DETECTOR = ["model=faster_rcnn", "data.num_train=8", "data.batch_size=4", "trainer=cpu", "trainer.max_epochs=2",
            "recipe=none", "model.hidden=16", "data._target_=tests.test_detection.FewScenes"]


@pytest.fixture
def classifier(config, run_folder):
    """The folder of a finished run of a small stochastic-depth classifier of digits in three channels."""
    path = run_folder("digits")
    run.train(config(*TINY, "data.channels=3", "model.depth=8", "model.survival=0.8", "trainer.max_epochs=1"), path)
    return path


def test_a_detector_takes_architecture_and_weights_of_a_classifier_and_needs_its_run_only_once(
        classifier, config, run_folder, monkeypatch):
    words = [*DETECTOR, f"model.backbone.pretrained.from_run={classifier}"]
    composed = config(*words)
    assert (composed.model.backbone.depth, composed.model.backbone.survival) == (8, 0.8)
    backbone = build.build_task(composed).model.backbone
    saved = checkpoints.load(classifier / "checkpoints/best.ckpt")["state_dict"]
    assert len(backbone.state_dict()) > 20
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    assert not torch.equal(build.build_task(composed, fresh=False).model.backbone.stem[0].weight,
                           saved["model.stem.0.weight"])
    path = run_folder("detector")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 2)
        with pytest.raises(Crash):
            run.train(config(*words, "trainer.checkpoint_every_steps=1"), path)
    shutil.rmtree(classifier)
    again, _ = verbs.saved_config({"run": str(path)}, ())
    result = run.train(again, path)
    assert verbs.restored(again, path).model.backbone.survival_probabilities[-1] == pytest.approx(0.8)
    assert 0 <= result["test/map"] <= 1


def test_runs_that_do_not_fit_are_refused(classifier, config, tmp_path):
    with pytest.raises(UserError, match=r"model.backbone.pretrained.from_run=.*none: not a run folder"):
        config(*DETECTOR, f"model.backbone.pretrained.from_run={tmp_path}/none")
    words = [*DETECTOR, f"model.backbone.pretrained.from_run={classifier}"]
    with pytest.raises(UserError, match=r"trained on images of 3 channels, but data.channels=1; .* data.channels=1"):
        config(*words, "data.channels=1")
    with pytest.raises(UserError, match=r"pretrained.weights=w.pth: must be null where from_run is not"):
        config(*words, "model.backbone.pretrained.weights=w.pth")
    (classifier / "checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match=r"from_run=.*digits: it has no best checkpoint yet; dltrain resume run="):
        config(*words)


def test_weights_from_a_file(config, tmp_path):
    torch.manual_seed(1)
    net = CifarResNet(8)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    words = [*DETECTOR, "model.backbone.depth=8", f"model.backbone.pretrained.weights={tmp_path}/w.pth"]
    backbone = build.build_task(config(*words)).model.backbone
    assert torch.equal(backbone.blocks[2].convs[1][0].weight, net.blocks[2].convs[1][0].weight)
    torch.save(CifarResNet(8, num_classes=100).state_dict(), tmp_path / "w.pth")
    assert build.build_task(config(*words)).model.backbone.out_channels == 64
    torch.save(dict(list(net.state_dict().items())[6:]), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model.backbone.pretrained.weights=.*w.pth: it lacks 5 of the \d+ tensors of "
                                        r"CifarResNet: stem.0"):
        build.build_task(config(*words))
    torch.save(CifarResNet(8, in_channels=1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: Error.* size mismatch for stem.0.weight"):
        build.build_task(config(*words))
    (tmp_path / "w.pth").write_text("nothing")
    with pytest.raises(UserError, match=r"w.pth: not a file of tensors"):
        build.build_task(config(*words))


def test_tensors_of_a_foreign_file_are_renamed(config, tmp_path):
    """Patterns are applied in order; the file of a wrapped net with another name for its stem."""
    torch.manual_seed(1)
    net = CifarResNet(8)
    foreign = {f"module.{name.replace('stem.0', 'conv1')}": value for name, value in net.state_dict().items()}
    torch.save(foreign, tmp_path / "w.pth")
    words = [*DETECTOR, "model.backbone.depth=8", f"model.backbone.pretrained.weights={tmp_path}/w.pth"]
    with pytest.raises(UserError, match=r"lacks 35 of the .*; model.backbone.pretrained.rename can map other names"):
        build.build_task(config(*words))
    renames = r"model.backbone.pretrained.rename=['^module\.:','^(?:conv1)\.(\w+):stem.0.\1']"
    backbone = build.build_task(config(*words, renames)).model.backbone
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in backbone.state_dict().items())
    with pytest.raises(UserError, match=r"pretrained.rename: two tensors of .*w.pth would be called 'x'"):
        build.build_task(config(*words, "model.backbone.pretrained.rename=['^.*$:x']"))


@pytest.mark.parametrize(("rename", "message"), [
    (r"(module\.:", r"model.pretrained.rename: '\(module\\.:' must be PATTERN:REPLACEMENT with a regular expression: "),
    (r"^a:\2", r"rename: '\^a:\\2' must be PATTERN:REPLACEMENT with a regular expression: invalid group reference 2"),
    (r"module", r"rename: 'module' must be PATTERN:REPLACEMENT, as \^module"),
])
def test_a_bad_pattern_is_refused_by_key(rename, message, config):
    with pytest.raises(UserError, match=message):
        config("model=resnet20", f"model.pretrained.rename=['{rename}']", "model.pretrained.weights=w.pth")
    with pytest.raises(UserError, match=r"model.pretrained.rename: must be \[\] without a file or a name"):
        config("model=resnet20", "model.pretrained.rename=['a:b']")


def test_weights_by_name(config, monkeypatch):
    words = ["model=faster_rcnn_vgg16", "data.num_classes=3", "model.hidden=8"]
    with pytest.raises(UserError, match=r"weights=nonsense: no such file, and no name of torchvision's"):
        build.build_task(config(*words, "model.backbone.pretrained.weights=nonsense"))
    published = vgg16(weights=None).state_dict()
    kind = type(get_weight("VGG16_Weights.IMAGENET1K_V1"))
    monkeypatch.setattr(kind, "get_state_dict", lambda *a, **k: published)
    words.append("model.backbone.pretrained.weights=VGG16_Weights.IMAGENET1K_V1")
    model = build.build_task(config(*words)).model
    assert torch.equal(model.backbone.features[28].weight, published["features.28.weight"])
    trained = [layer.weight.requires_grad for layer in model.backbone.features if hasattr(layer, "weight")]
    assert trained == [False] * 4 + [True] * 9, "conv1 and conv2 are frozen"

    def offline(*args, **keys):
        raise URLError("no network")

    monkeypatch.setattr(kind, "get_state_dict", offline)
    with pytest.raises(DataError, match=r"cannot download https://.*vgg16.*; download it elsewhere and name the file"):
        build.build_task(config(*words))


@pytest.mark.parametrize(("num_classes", "kept"), [(1000, False), (5, True)])
def test_weights_that_timm_publishes(num_classes, kept, config, monkeypatch):
    """The net is the published one but for a classifier of another number of classes, which is that of the seed; what
    is drawn later does not depend on it."""
    words = ["model=timm", "model.name=test_resnet", f"data.num_classes={num_classes}"]
    initial = build.build_task(config(*words)).model.state_dict()
    state = torch.get_rng_state()
    create, pretrained = timm.create_model, []

    def create_model(*args, **keys):
        pretrained.append(keys.pop("pretrained"))
        net = create(*args, **keys)
        for parameter in net.parameters() if pretrained[-1] else ():
            nn.init.constant_(parameter, 0.25)
        return net

    monkeypatch.setattr(timm, "create_model", create_model)
    model = build.build_task(config(*words, "model.pretrained.weights=timm")).model
    assert torch.equal(torch.get_rng_state(), state)
    assert pretrained == [False, True]
    for name, parameter in model.named_parameters():
        if name.startswith("net.fc."):
            assert torch.equal(parameter, initial[name]) is kept
        else:
            assert (parameter == 0.25).all(), name


def test_weights_of_timm_that_cannot_be_had(config, monkeypatch):
    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(TimmModel, "published_weights", offline)
    words = ["data.num_classes=5", "model.pretrained.weights=timm"]
    with pytest.raises(DataError, match=r"model.pretrained.weights=timm: cannot download weights of 'test_resnet' "):
        build.build_task(config("model=timm", "model.name=test_resnet", *words))
    with pytest.raises(UserError, match=r"weights=timm: only model=timm can have the weights of timm, but this is C"):
        build.build_task(config("model=resnet20", *words))


@pytest.mark.parametrize("words", [["model=timm", "model.pretrained.weights=timm"],
                                   [*DETECTOR, "model.backbone.pretrained.weights=some.pth"]])
def test_weights_are_not_read_again_when_a_run_is_resumed(words, config):
    model = config(*words).model
    node = model if "backbone" not in model else model.backbone
    copy = without_pretrained(model)
    assert node.pretrained.weights is not None
    assert (copy if "backbone" not in copy else copy.backbone).pretrained == {"from_run": None, "weights": None,
                                                                            "rename": []}


class Weighted(Classification):
    """A user's task with an argument `weights`, and one for each class that is named as dltrain's own keys are."""

    def __init__(self, model, augment, num_classes, weights, batch, from_run, **keys):
        super().__init__(model, augment, num_classes, **keys)
        self.arguments = weights, batch, from_run


class Branching(nn.Module):
    """A user's model with arguments named as dltrain's keys are, `pretrained` among them."""

    def __init__(self, num_classes, from_run, weights, batch, pretrained):
        super().__init__()
        self.arguments = from_run, weights, batch, pretrained
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))


OWN_MODEL = """# @package _global_
# A model of a user
defaults:
  - /task: weighted
  - override /data: digits
model:
  _target_: tests.test_pretrained.Branching
  num_classes: ${data.num_classes}
  from_run: a
  weights: [1, 2]
  batch: 3
  pretrained: true
"""
OWN_TASK = """# A task of a user
defaults:
  - classification
  - _self_
_target_: tests.test_pretrained.Weighted
weights: [0.5, 2.0]
batch: 7
from_run: b
"""


def test_classes_of_a_user_may_take_arguments_of_any_name(config, run_folder, tmp_path):
    for name, text in (("model/branching", OWN_MODEL), ("task/weighted", OWN_TASK)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    composed = config("model=branching", *TINY[2:], "trainer.max_epochs=1", config_dir=str(tmp_path))
    task = build.build_task(composed)
    assert task.model.arguments == ("a", [1, 2], 3, True)
    assert task.arguments == ([0.5, 2.0], 7, "b")
    assert 0 <= run.train(composed, run_folder("a"))["test/accuracy"] <= 1


def test_vgg16s_map_has_stride_16():
    net = VGG16()
    assert net.features(torch.randn(1, 3, 64, 96)).shape == (1, 512, 4, 6)
    assert stage_strides(net) == {"conv1": 1, "conv2": 2, "conv3": 4, "conv4": 8, "conv5": 16}
    assert [layer for layers in net.stages().values() for layer in layers] == [*net.features]
    assert sum(p.numel() for p in net.parameters()) == 14_714_688  # configuration D without its three linear layers


def pyramid(backbone: nn.Module, **keys) -> FasterRCNN:
    return FasterRCNN(backbone, 3, **{"anchor_px": [16, 32, 64, 128, 256], "ratios": [1.0], "short_px": 64,
                                      "long_px": 99, "hidden": 8, "pyramid": True, **keys})


def test_the_pyramids_detector_is_torchvisions(config):
    """As many parameters of each shape as torchvision's Faster R-CNN with ResNet-50 and FPN, at 91 classes with
    background; the same of them are trained."""
    task = build.build_task(config("model=faster_rcnn_resnet50", "data.num_classes=90"))
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)

    def sizes(net):
        return sorted(tuple(p.shape) for p in net.parameters() if p.dim() > 1)

    assert sizes(task.model.net) == sizes(theirs)
    frozen = [m for m in task.model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(frozen) == 53
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in task.model.modules())
    reference = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    assert ([p.requires_grad for p in task.model.net.backbone.parameters()]
            == [p.requires_grad for p in reference.parameters()])


def test_a_pyramid_needs_its_anchors_its_stages_and_align():
    with pytest.raises(ValueError, match="anchor_px must have 5 sides, one for each map of the pyramid, but is"):
        pyramid(ImagenetResNet(18), anchor_px=[32])
    with pytest.raises(ValueError, match="roi_pool must be align where pyramid=true"):
        pyramid(ImagenetResNet(18), roi_pool="pool")
    with pytest.raises(ValueError, match="pyramid must be false: EfficientNetLite0 has fewer than 4 stages"):
        pyramid(EfficientNetLite0(until=2))


def test_a_pyramid_of_resnet18_trains_and_its_boxes_lie_in_the_image():
    torch.manual_seed(0)
    model = pyramid(ImagenetResNet(18))
    images = [torch.randn(3, 64, 80), torch.randn(3, 96, 64)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([2])}] * 2
    sum(model(images, targets).values()).backward()
    boxes, anchors = model.eval().proposals(images)
    assert (boxes[0] <= torch.tensor([80.1, 64.1, 80.1, 64.1])).all()
    assert len(anchors[0]) > len(boxes[0]) > 0


def test_frozen_batch_norm_of_a_resnet_has_the_published_statistics():
    torch.manual_seed(0)
    net, frozen = ImagenetResNet(18), ImagenetResNet(18, norm="frozen_batch")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    frozen.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(frozen.train().features(images), net.eval().features(images))


def test_the_backbone_of_a_model():
    classifier, vgg = CifarResNet(8), CifarVGG(11, width=4)
    assert backbone_of(classifier) is classifier
    assert backbone_of(vgg) is vgg, "its features are a submodule and no method"
    detector = FasterRCNN(classifier, 3, anchor_px=[16], ratios=[1.0], short_px=64, long_px=99, hidden=8)
    assert backbone_of(detector) is classifier
    assert backbone_of(Localizer(vgg, 3, points=2, box_weight=1.0)) is vgg
    for model in (nn.Linear(3, 3), CharRNN(9, "gru", 4, 1), OverFeat(3)):
        assert backbone_of(model) is None


def test_a_module_that_is_no_backbone_is_refused(config):
    with pytest.raises(ValueError, match=r"Linear must have features, out_channels and stages\(\) to be a backbone"):
        FasterRCNN(nn.Linear(3, 3), 3, anchor_px=[16], ratios=[1.0], short_px=64, long_px=99, hidden=8)
    with pytest.raises(UserError, match=r"model \(FasterRCNN\): Identity must have features"):
        build.build_task(config("model=faster_rcnn", "model.backbone={_target_:torch.nn.Identity}"))


def test_efficientnet_lite0_has_the_published_size_and_pads_as_tensorflow_does():
    net = EfficientNetLite0()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert net.eval()(torch.randn(1, 3, 65, 64)).shape == (1, 1000)
    assert net.features(torch.randn(1, 3, 65, 64)).shape == (1, 320, 3, 2)
    backbone = EfficientNetLite0(until=5)
    assert backbone.features(torch.randn(1, 3, 64, 64)).shape == (1, backbone.out_channels, 4, 4) == (1, 112, 4, 4)
    for size, kernel in ((8, 3), (9, 3), (8, 5), (9, 5)):
        conv, x = SameConv2d(2, 2, kernel, 2), torch.randn(1, 2, size, size)
        missing = (-(-size // 2) - 1) * 2 + kernel - size
        before = missing // 2
        padded = torch.zeros(1, 2, size + missing, size + missing)
        padded[:, :, before : before + size, before : before + size] = x
        torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=2))


def test_imagenet_normalisation_is_torchvisions():
    expected = get_weight("ResNet50_Weights.IMAGENET1K_V2").transforms()
    from dltrain.augment.pipeline import Normalize

    stage = Normalize("imagenet", 3, 224)
    stage.fit(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    assert stage.mean.flatten().tolist() == pytest.approx(expected.mean)
    assert stage.std.flatten().tolist() == pytest.approx(expected.std)
    with pytest.raises(ValueError, match="normalize=imagenet needs images with 3 channels, but they have 1"):
        Normalize("imagenet", 1, 224)


def test_the_architecture_is_that_of_the_runs_config(classifier):
    composed = compose.compose([*DETECTOR, f"model.backbone.pretrained.from_run={classifier}"])
    assert "head" not in composed.config.model.backbone
    assert composed.config.model.backbone._target_ == "dltrain.models.cifar_resnet.CifarResNet"
    assert composed.config.model.num_classes == 10


def saved_run(composed, path, class_names=None):
    """The folder of a run of this config that has a best checkpoint, without its tensors."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints/best.ckpt").touch()
    if class_names is not None:
        composed.class_names = class_names
    (path / "config.yaml").write_text(OmegaConf.to_yaml(composed, resolve=True))
    return path


def test_keys_that_only_a_backbone_has_stay_where_its_class_is_that_of_the_run(config, tmp_path):
    path = saved_run(config("model=resnet18", "data.num_classes=3", "data.image_px=64"), tmp_path / "a")
    backbone = config("model=faster_rcnn_resnet50", f"model.backbone.pretrained.from_run={path}").model.backbone
    assert (backbone.depth, backbone.norm) == (18, "frozen_batch")
    backbone = config("model=faster_rcnn_lite0", f"model.backbone.pretrained.from_run={path}").model.backbone
    assert "until" not in backbone


def test_a_classifier_starts_from_a_run_with_a_new_head_for_other_classes(classifier, config, run_folder):
    """The head is new where the number of classes or their names are others."""
    saved = checkpoints.load(classifier / "checkpoints/best.ckpt")["state_dict"]
    words = ["model=resnet20", f"model.pretrained.from_run={classifier}", "data=scene_digits", "data.image_px=32",
             "data.num_classes=10", "recipe=none"]

    def initial(*more, class_names):
        composed = config(*words, *more)
        composed.class_names = class_names
        return build.build_task(composed).model

    digits = [str(digit) for digit in range(10)]
    same, renamed = initial(class_names=digits), initial(class_names=[f"no {digit}" for digit in digits])
    fewer = initial("data.num_classes=3", class_names=digits[:3])
    for net, kept in ((same, True), (renamed, False), (fewer, False)):
        assert net.survival_probabilities[-1] == pytest.approx(0.8)
        for name, value in net.state_dict().items():
            if not name.startswith("head."):
                assert torch.equal(value, saved[f"model.{name}"]), name
        assert (net.head.weight.shape == (10, 64) and torch.equal(net.head.weight, saved["model.head.weight"])) is kept
    assert fewer.head.weight.shape == (3, 64)
    path = run_folder("tuned")
    result = run.train(config(*words, "data.num_train=32", "trainer.max_epochs=1", "trainer=cpu", "data.batch_size=16",
                              "task.optimizer.lr=0.001"), path)
    assert 0 <= result["test/accuracy"] <= 1
    shutil.rmtree(classifier)
    again, _ = verbs.saved_config({"run": str(path)}, ())
    assert verbs.restored(again, path).model.survival_probabilities[-1] == pytest.approx(0.8)


def test_the_number_of_classes_may_be_known_by_the_data_alone(classifier, config):
    """As for a folder of images: the config has no number until they are read."""
    composed = config("model=resnet20", "data=image_folder", f"model.pretrained.from_run={classifier}")
    assert (composed.model.depth, composed.model.num_classes) == (8, None)
    composed.data.num_classes = 7
    assert build.build_task(composed).model.head.weight.shape == (7, 64)


def test_hidden_layers_of_a_head_stay_when_its_classes_change(config, tmp_path, monkeypatch):
    """GoogLeNet's auxiliary classifiers: their last layers are new, the ones before are those of the run."""
    words = ["model=googlenet_cifar", "model.width=8", "data.num_classes=10"]
    torch.manual_seed(1)
    source = build.build_task(config(*words)).model
    path, names = saved_run(config(*words), tmp_path / "a", [*"abcdefghij"]), [*"abcdefghij"]
    monkeypatch.setattr(checkpoints, "load", lambda path: {
        "state_dict": {f"model.{name}": value for name, value in source.state_dict().items()}})
    composed = config("model=resnet20", "data=scene_digits", "data.num_classes=10", f"model.pretrained.from_run={path}")
    for class_names, same in ((names, True), ([*"klmnopqrst"], False)):
        composed.class_names, composed.seed = class_names, 5
        net = build.build_task(composed).model
        assert torch.equal(net.aux1.fc1.weight, source.aux1.fc1.weight)
        for layer in ("fc", "aux1.fc2", "aux2.fc2"):
            assert torch.equal(net.get_submodule(layer).weight, source.get_submodule(layer).weight) is same
