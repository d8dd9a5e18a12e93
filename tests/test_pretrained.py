"""Weights that a part begins with: of a run, of a file, of torchvision; what does not fit is named."""

import shutil
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torchvision.models import get_weight, vgg16
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from dltrain import build, checkpoints, run, verbs
from dltrain.config import compose
from dltrain.errors import DataError, UserError
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.efficientnet_lite import EfficientNetLite0, SameConv2d
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.models.regions import VGG16, Pyramid, Trunk
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


def test_a_detector_begins_with_a_classifiers_net_and_weights_and_needs_it_no_more(classifier, config, run_folder,
                                                                                       monkeypatch):
    found = config(*DETECTOR, f"model.backbone.from_run={classifier}")
    assert (found.model.backbone.depth, found.model.backbone.survival) == (8, 0.8)
    task = build.build_task(found)
    saved = checkpoints.load(classifier / "checkpoints/best.ckpt")["state_dict"]
    trunk = task.model.net.backbone.classifier.state_dict()
    assert len(trunk) > 20
    for name, value in trunk.items():
        assert torch.equal(value, saved[f"model.{name}"])
    assert not torch.equal(build.build_task(found, fresh=False).model.net.backbone.classifier.stem[0].weight,
                           saved["model.stem.0.weight"])
    path = run_folder("detector")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 2)
        with pytest.raises(Crash):
            run.train(config(*DETECTOR, f"model.backbone.from_run={classifier}", "trainer.checkpoint_every_steps=1"),
                      path)
    shutil.rmtree(classifier)
    again, _ = verbs.saved_config({"run": str(path)}, ())
    result = run.train(again, path)
    assert verbs.restored(again, path).model.net.backbone.classifier.chances[-1] == pytest.approx(0.8)
    assert 0 <= result["test/map"] <= 1


def test_what_does_not_fit_is_named(classifier, config, tmp_path):
    with pytest.raises(UserError, match=r"model.backbone.from_run=.*none: not a run folder"):
        config(*DETECTOR, f"model.backbone.from_run={tmp_path}/none")
    with pytest.raises(UserError, match=r"trained on images of 3 channels, but data.channels=1; .* data.channels=1"):
        config(*DETECTOR, "data.channels=1", f"model.backbone.from_run={classifier}")
    (classifier / "checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match=r"no best checkpoint yet; dltrain resume run=.*digits goes on"):
        config(*DETECTOR, f"model.backbone.from_run={classifier}")


def test_weights_from_a_file(config, tmp_path):
    torch.manual_seed(1)
    net = CifarResNet(8)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    words = [*DETECTOR, "model.backbone.depth=8", f"model.backbone.weights={tmp_path}/w.pth"]
    trunk = build.build_task(config(*words)).model.net.backbone.classifier
    assert torch.equal(trunk.blocks[2].convs[1][0].weight, net.blocks[2].convs[1][0].weight)
    torch.save(CifarResNet(8, num_classes=100).state_dict(), tmp_path / "w.pth")
    assert build.build_task(config(*words)).model.net.backbone.classifier.out_channels == 64
    torch.save(dict(list(net.state_dict().items())[6:]), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: 5 of the \d+ values that CifarResNet needs are not there: stem.0"):
        build.build_task(config(*words))
    torch.save(CifarResNet(8, in_channels=1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: Error.* size mismatch for stem.0.weight"):
        build.build_task(config(*words))
    (tmp_path / "w.pth").write_text("nothing")
    with pytest.raises(UserError, match=r"w.pth: not a file of tensors"):
        build.build_task(config(*words))


def test_weights_by_name(config, monkeypatch):
    words = ["model=faster_rcnn_vgg16", "data.num_classes=3", "model.hidden=8"]
    with pytest.raises(UserError, match=r"weights=nonsense: no such file, and no name of torchvision's"):
        build.build_task(config(*words, "model.backbone.weights=nonsense"))
    published = vgg16(weights=None).state_dict()
    kind = type(get_weight("VGG16_Weights.IMAGENET1K_V1"))
    monkeypatch.setattr(kind, "get_state_dict", lambda *a, **k: published)
    task = build.build_task(config(*words, "model.backbone.weights=VGG16_Weights.IMAGENET1K_V1"))
    trunk = task.model.net.backbone.classifier
    assert torch.equal(trunk.features[28].weight, published["features.28.weight"])
    assert [layer.weight.requires_grad for layer in trunk.features if hasattr(layer, "weight")][:5] == [False] * 4 + [
        True]

    def offline(*given, **keys):
        raise URLError("no network")

    monkeypatch.setattr(kind, "get_state_dict", offline)
    with pytest.raises(DataError, match=r"cannot download https://.*vgg16.*; fetch it elsewhere and give the file"):
        build.build_task(config(*words, "model.backbone.weights=VGG16_Weights.IMAGENET1K_V1"))


def test_without_sources_leaves_the_config_as_it_is(config):
    found = config(*DETECTOR)
    found.model.backbone.weights = "some.pth"
    from dltrain.pretrained import without_sources

    assert without_sources(found.model).backbone.weights is None
    assert found.model.backbone.weights == "some.pth"


def test_vgg16s_map_has_a_sixteenth_of_the_sides():
    net = VGG16()
    assert net.features(torch.randn(1, 3, 64, 96)).shape == (1, 512, 4, 6)
    assert sum(p.numel() for p in net.parameters()) == 14_714_688  # configuration D without its three linear layers


def test_the_pyramids_detector_is_torchvisions():
    """As many parameters of each kind as torchvision's Faster R-CNN with ResNet-50 and FPN, at 91 classes with the
    background, but for FPN's own: 41.8 M in all (its documentation)."""
    model = FasterRCNN(Pyramid(ImagenetResNet(50), frozen=True), 90, anchor_px=[32, 64, 128, 256, 512],
                       ratios=[0.5, 1.0, 2.0], short_px=800, long_px=1333, hidden=1024)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)

    def sizes(net):
        return sorted(tuple(p.shape) for name, p in net.named_parameters()
                      if p.dim() > 1 and not name.endswith("fc.weight"))

    assert sizes(model.net) == sizes(theirs)
    fixed = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(fixed) == 53
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    with pytest.raises(ValueError, match="anchor_px must have 5 sides, one for each map of the pyramid, but is"):
        FasterRCNN(Pyramid(ImagenetResNet(18), frozen=False), 3, anchor_px=[32], ratios=[1.0], short_px=64, long_px=99,
                   hidden=8)


def test_a_pyramid_of_resnet18_trains_and_its_boxes_lie_in_the_image():
    torch.manual_seed(0)
    model = FasterRCNN(Pyramid(ImagenetResNet(18), frozen=False), 3, anchor_px=[16, 32, 64, 128, 256], ratios=[1.0],
                       short_px=64, long_px=99, hidden=8)
    images = [torch.randn(3, 64, 80), torch.randn(3, 96, 64)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([2])}] * 2
    sum(model(images, targets).values()).backward()
    boxes, anchors = model.eval().proposals(images)
    assert (boxes[0] <= torch.tensor([80.1, 64.1, 80.1, 64.1])).all()
    assert len(anchors[0]) > len(boxes[0]) > 0
    with pytest.raises(ValueError, match="roi_pool=pool reads one map, but the backbone is a pyramid"):
        FasterRCNN(Pyramid(ImagenetResNet(18), frozen=False), 3, anchor_px=[16, 32, 64, 128, 256], ratios=[1.0],
                   short_px=64, long_px=99, hidden=8, roi_pool="pool")


def test_a_classifier_without_features_is_refused():
    with pytest.raises(ValueError, match="Linear must have features and out_channels to serve as a trunk"):
        Trunk(torch.nn.Linear(3, 3))


def test_efficientnet_lite0_has_the_published_size_and_pads_as_tensorflow_does():
    net = EfficientNetLite0()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert net.eval()(torch.randn(1, 3, 65, 64)).shape == (1, 1000)
    assert net.features(torch.randn(1, 3, 65, 64)).shape == (1, 320, 3, 2)
    trunk = EfficientNetLite0(until=5)
    assert trunk.features(torch.randn(1, 3, 64, 64)).shape == (1, trunk.out_channels, 4, 4) == (1, 112, 4, 4)
    for size, kernel in ((8, 3), (9, 3), (8, 5), (9, 5)):
        conv, x = SameConv2d(2, 2, kernel, 2), torch.randn(1, 2, size, size)
        missing = (-(-size // 2) - 1) * 2 + kernel - size
        before = missing // 2
        framed = torch.zeros(1, 2, size + missing, size + missing)
        framed[:, :, before : before + size, before : before + size] = x
        torch.testing.assert_close(conv(x), F.conv2d(framed, conv.weight, stride=2))


def test_imagenet_normalisation_is_torchvisions():
    expected = get_weight("ResNet50_Weights.IMAGENET1K_V2").transforms()
    from dltrain.augment.pipeline import Normalize

    stage = Normalize("imagenet", 3, 224)
    stage.fit(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    assert stage.mean.flatten().tolist() == pytest.approx(expected.mean)
    assert stage.std.flatten().tolist() == pytest.approx(expected.std)
    with pytest.raises(ValueError, match="normalize=imagenet needs images with 3 channels, but they have 1"):
        Normalize("imagenet", 1, 224)


def test_only_the_runs_own_config_decides_what_is_adopted(classifier):
    composed = compose.compose([*DETECTOR, f"model.backbone.from_run={classifier}"])
    assert "head" not in composed.config.model.backbone
    assert composed.config.model.backbone._target_ == "dltrain.models.cifar_resnet.CifarResNet"
    assert composed.config.model.num_classes == 10


def test_a_classifier_goes_on_from_a_run_with_a_head_for_its_own_classes(classifier, config, run_folder):
    """The run's net and weights; the head is new where the number of classes or their names are others."""
    saved = checkpoints.load(classifier / "checkpoints/best.ckpt")["state_dict"]
    words = ["model=resnet20", f"model.from_run={classifier}", "data=scene_digits", "data.image_px=32",
             "data.num_classes=10", "recipe=none"]

    def begun(*more, class_names):
        found = config(*words, *more)
        found.class_names = class_names
        return build.build_task(found).model

    digits = [str(digit) for digit in range(10)]
    same, renamed = begun(class_names=digits), begun(class_names=[f"no {digit}" for digit in digits])
    fewer = begun("data.num_classes=3", class_names=digits[:3])
    for net, kept in ((same, True), (renamed, False), (fewer, False)):
        assert net.chances[-1] == pytest.approx(0.8)
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
    assert verbs.restored(again, path).model.chances[-1] == pytest.approx(0.8)


def test_the_number_of_classes_may_be_known_by_the_data_alone(classifier, config):
    """As a folder of images does: it stays open in the config until they are read."""
    found = config("model=resnet20", "data=image_folder", f"model.from_run={classifier}")
    assert (found.model.depth, found.model.num_classes) == (8, None)
    found.data.num_classes = 7
    assert build.build_task(found).model.head.weight.shape == (7, 64)


def test_hidden_layers_of_a_head_stay_when_its_classes_change(config, tmp_path, monkeypatch):
    """GoogLeNet's auxiliary classifiers: their last layers are new, the ones before are the run's."""
    words = ["model=googlenet_cifar", "model.width=8", "data.num_classes=10"]
    torch.manual_seed(1)
    run_of = build.build_task(config(*words)).model
    (tmp_path / "checkpoints").mkdir(parents=True)
    (tmp_path / "checkpoints/best.ckpt").touch()
    found = config(*words)
    found.class_names = [*"abcdefghij"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(found, resolve=True))
    monkeypatch.setattr(checkpoints, "load", lambda path: {
        "state_dict": {f"model.{name}": value for name, value in run_of.state_dict().items()}})
    asked = config("model=resnet20", "data=scene_digits", "data.num_classes=10", f"model.from_run={tmp_path}")
    for names, same in ((found.class_names, True), ([*"klmnopqrst"], False)):
        asked.class_names, asked.seed = names, 5
        net = build.build_task(asked).model
        assert torch.equal(net.aux1.fc1.weight, run_of.aux1.fc1.weight)
        for layer in ("fc", "aux1.fc2", "aux2.fc2"):
            assert torch.equal(net.get_submodule(layer).weight, run_of.get_submodule(layer).weight) is same


def test_a_net_of_timm_is_not_fetched_again_when_its_run_goes_on(config):
    from dltrain.pretrained import without_sources

    found = config("model=timm", "model.pretrained=true")
    assert not without_sources(found.model).pretrained
    assert found.model.pretrained
