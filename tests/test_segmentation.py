"""The class of every pixel: dilated backbones, hypercolumns, skips, masks from files, the metrics."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dltrain.callbacks.masks import as_palette_png, compared, overlaid, voc_palette
from PIL import Image
from torch import nn
from torchvision.datasets import VOCSegmentation

from dltrain import build, cli, run
from dltrain.batches import IGNORED_PIXEL, SegmentationBatch
from dltrain.data import scenes, voc
from dltrain.data.datamodule import SPLITS
from dltrain.data.images import read_image
from dltrain.data.mask_folders import CamVid, MaskFolder
from dltrain.data.segmentation import read_mask
from dltrain.data.voc import VocMasks
from dltrain.errors import DataError, UserError
from dltrain.models.alexnet import AlexNet
from dltrain.models.backbones import stage_maps, stage_shapes
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.dilated import Dilated
from dltrain.models.dilation import dilate
from dltrain.models.efficientnet_lite import EfficientNetLite0
from dltrain.models.fcn import FCN, Upsampling
from dltrain.models.googlenet import GoogLeNet
from dltrain.models.hypercolumn import Hypercolumn
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.models.vgg import CifarVGG
from dltrain.tasks.segmentation import drawn_places, iou
from tests.test_resume import assert_a_crash_changes_nothing

WORDS = ["data.num_train=12", "data.batch_size=4", "data.image_px=64", "data.sizes_px=[20,40]", "trainer=cpu",
         "trainer.max_epochs=2", "recipe=none", "model.backbone.width=4", "model.hidden=8", "task.optimizer.lr=0.01"]


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_EVALUATION", 4)


def with_statistics(net: nn.Module) -> nn.Module:
    """The net in evaluation mode and double precision, with random statistics of batch normalisation."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.double().eval()


BACKBONES = [(lambda: CifarResNet(8), 1), (lambda: CifarResNet(11, block="bottleneck", shortcut="B"), 2),
            (lambda: CifarVGG(11, width=4), 4), (lambda: CifarVGG(11, width=4), 1), (lambda: ImagenetResNet(18), 8),
            (lambda: EfficientNetLite0(), 8), (lambda: GoogLeNet(10, size="cifar"), 2),
            (lambda: ImagenetResNet(50), 16)]


@pytest.mark.parametrize(("make", "stride"), BACKBONES)
def test_dilated_and_strided_maps_coincide_at_the_offset(make, stride):
    torch.manual_seed(0)
    strided = make()
    dense = copy.deepcopy(strided)
    offset = dilate(dense, stride)
    torch.manual_seed(1)
    with_statistics(strided)
    dense.load_state_dict(strided.state_dict())
    dense.double().eval()
    assert dict(dense.named_parameters()).keys() == dict(strided.named_parameters()).keys()
    image = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    coarse, fine = strided.features(image), dense.features(image)
    factor = fine.shape[2] // coarse.shape[2]
    assert fine.shape[2] == 96 // stride
    assert factor > 1
    torch.testing.assert_close(fine[:, :, offset::factor, offset::factor], coarse, rtol=1e-5, atol=1e-5)
    assert stage_shapes(dense.float(), 3)[-1].stride == stride


def test_strides_and_stages_that_a_backbone_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"stride must be one of 1, 2, 4, the strides of CifarResNet, but is 8"):
        Dilated(CifarResNet(8), 3, stride=8, rates=[1], hidden=4, dropout=0.0)
    with pytest.raises(ValueError, match=r"stride must be one of 1, 2, 4, the strides of CifarResNet, but is 16"):
        FCN(CifarResNet(8), 3, 3, stride=16, hidden=4, kernel=3, dropout=0.0, upsampling="bilinear")
    with pytest.raises(ValueError, match=r"taps must be among stem, stage1, stage2, stage3, .* but has conv1"):
        Hypercolumn(CifarResNet(8), 3, 3, taps=["conv1", "stem"], hidden=4, dropout=0.0)
    with pytest.raises(ValueError, match=r"Linear must have features, out_channels and stages\(\) to be a backbone"):
        stage_shapes(nn.Linear(3, 3), 3)


@pytest.mark.parametrize("make", [make for make, _ in BACKBONES] + [lambda: AlexNet(10)])
def test_the_stages_in_order_are_the_features(make):
    net = with_statistics(make())
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    torch.testing.assert_close(stage_maps(net, image)[-1], net.features(image))
    shapes = stage_shapes(net.float(), 3)
    assert shapes[-1].channels == net.out_channels
    assert [stage.stride for stage in shapes] == sorted(stage.stride for stage in shapes)


@pytest.mark.parametrize(("make", "strides"), [
    (lambda: AlexNet(10), [4, 8, 16, 32]), (lambda: CifarVGG(11, width=4), [1, 2, 4, 8, 16, 32]),
    (lambda: EfficientNetLite0(), [2, 2, 4, 8, 16, 16, 32, 32]), (lambda: ImagenetResNet(50), [2, 4, 8, 16, 32]),
    (lambda: GoogLeNet(10), [2, 4, 8, 16, 32]), (lambda: CifarResNet(11, block="bottleneck"), [1, 1, 2, 4])])
def test_the_stride_of_a_stage_is_the_product_of_those_of_its_layers(make, strides):
    assert [stage.stride for stage in stage_shapes(make(), 3)] == strides


def test_a_stochastic_depth_backbone_is_random_stage_by_stage_too():
    """In training; in evaluation it is the expected net."""
    torch.manual_seed(0)
    net = CifarResNet(14, survival=0.5)
    image = torch.randn(1, 3, 16, 16)
    sums = {round(float(stage_maps(net, image)[-1].detach().sum()), 3) for _ in range(12)}
    assert len(sums) > 1
    net.eval()
    assert torch.equal(stage_maps(net, image)[-1], net.features(image))


def test_a_pixels_hypercolumn_is_the_stack_of_enlarged_maps():
    torch.manual_seed(0)
    net = Hypercolumn(CifarVGG(11, width=4), 3, 3, taps=[], hidden=8, dropout=0.0)
    with_statistics(net)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    stack = torch.cat([F.interpolate(map_, size=(64, 96), mode="bilinear", align_corners=False)
                       for map_ in stage_maps(net.backbone, images)], 1)
    assert stack.shape[1] == 4 + 8 + 16 + 32 + 32 + 32
    by_hand = net.fc2_and_classes(net.fc1(stack.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    torch.testing.assert_close(net(images), by_hand)
    places = torch.tensor([[[0, 0], [63, 95], [10, 77]], [[31, 2], [5, 5], [63, 0]]])
    logits = net.at(images, places)
    for image in range(2):
        for number, (row, column) in enumerate(places[image].tolist()):
            torch.testing.assert_close(logits[image, number], by_hand[image, :, row, column])
    two_taps = Hypercolumn(CifarVGG(11, width=4), 3, 3, taps=["conv1", "conv3"], hidden=8, dropout=0.0)
    assert two_taps.fc1.in_features == 4 + 16


@pytest.mark.parametrize("factor", [2, 3, 8, 32])
def test_learned_upsampling_starts_as_bilinear(factor):
    x = torch.randn(2, 3, 4, 5)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    learned = Upsampling(3, factor, learned=True)
    torch.testing.assert_close(learned(x, expected.shape[2:]), expected)
    assert [p.shape for p in learned.parameters()] == [(3, 3, 2 * factor - factor % 2, 2 * factor - factor % 2)]
    assert learned(x, torch.Size((4 * factor - 1, 5 * factor + 1))).shape == (2, 3, 4 * factor - 1, 5 * factor + 1)


def test_fcn_adds_the_logits_of_finer_maps():
    torch.manual_seed(0)
    net = FCN(CifarVGG(11, width=4), 3, 3, stride=8, hidden=8, kernel=3, dropout=0.0, upsampling="bilinear")
    images = torch.randn(1, 3, 64, 96)

    def up(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    net.eval()
    maps = stage_maps(net.backbone, images)
    assert torch.equal(net.skips[0](maps[4]), torch.zeros(1, 3, 4, 6))
    torch.testing.assert_close(net(images), up(up(up(net.head(maps[5]), 2), 2), 8))
    for parameter in net.skips.parameters():
        nn.init.normal_(parameter)
    by_hand = up(net.skips[1](maps[3]) + up(net.skips[0](maps[4]) + up(net.head(maps[5]), 2), 2), 8)
    torch.testing.assert_close(net(images), by_hand)
    assert net(torch.randn(1, 3, 70, 51)).shape == (1, 3, 70, 51)
    coarse = FCN(CifarVGG(11, width=4), 3, 3, stride=32, hidden=8, kernel=3, dropout=0.0, upsampling="learned")
    assert len(coarse.skips) == 0
    assert not any("head" in name for name, _ in coarse.backbone.named_parameters())
    assert coarse(torch.randn(1, 3, 70, 51)).shape == (1, 3, 70, 51)


def test_aspp_adds_the_logits_of_its_branches():
    torch.manual_seed(0)
    net = Dilated(CifarVGG(11, width=4), 3, stride=8, rates=[1, 2, 3], hidden=8, dropout=0.0).eval()
    assert [branch[0].dilation for branch in net.branches] == [(1, 1), (2, 2), (3, 3)]
    images = torch.randn(1, 3, 64, 64)
    map_ = net.backbone.features(images)
    assert map_.shape == (1, 32, 8, 8)
    by_hand = F.interpolate(sum(branch(map_) for branch in net.branches), scale_factor=8, mode="bilinear")
    torch.testing.assert_close(net(images), by_hand)


def test_intersection_over_union_by_sets_of_pixels():
    torch.manual_seed(0)
    truth, predicted = torch.randint(0, 4, (500,)), torch.randint(0, 4, (500,))
    matrix = torch.zeros(5, 5)
    for t, p in zip(truth, predicted, strict=True):
        matrix[t, p] += 1
    found = iou(matrix)
    for number in range(4):
        left, right = ({*(one == number).nonzero()[:, 0].tolist()} for one in (truth, predicted))
        assert float(found[number]) == pytest.approx(len(left & right) / len(left | right))
    assert found[4].isnan()


@pytest.mark.parametrize("model", ["fcn8s", "hypercolumn", "dilated"])
def test_a_run_ends_with_its_metrics_and_predicts(model, config, run_folder, capsys):
    path = run_folder(model)
    result = run.train(config(f"model={model}", *WORDS, "trainer.max_epochs=1"), path)
    assert 0 <= result["test/mean_iou"] <= 1
    assert 0 <= result["test/pixel_accuracy"] <= 1
    assert "test/iou/background" in result
    capsys.readouterr()
    sys_argv = ["dltrain", "predict", f"run={path}", f"input={path}/samples/00.png"]
    import sys

    before, sys.argv = sys.argv, sys_argv
    try:
        assert cli.main() == 0
    finally:
        sys.argv = before
    said = capsys.readouterr().out
    assert "00.png  " in said
    mask = Image.open(path / "predictions/00_mask.png")
    assert mask.size == (64, 64)
    assert mask.mode == "P"
    told = json.loads((path / "predictions.json").read_text())[0]
    counts = np.bincount(np.asarray(mask).ravel(), minlength=11) / 64**2
    names = ["background", *map(str, range(10))]
    assert told["shares"] == {names[i]: round(float(c), 4) for i, c in sorted(enumerate(counts), key=lambda x: -x[1])
                              if c}


def test_the_test_part_is_scored_as_by_hand(config, run_folder):
    from dltrain import verbs

    path = run_folder("fcn")
    words = ["model=fcn8s", *WORDS]
    result = run.train(config(*words), path)
    task, data = verbs.restored(config(*words), path), build.build_data(config(*words))
    with torch.no_grad():
        predicted = task(data.images["test"]).argmax(1)
    truth = data.masks["test"]
    assert result["test/pixel_accuracy"] == pytest.approx(float((predicted == truth).float().mean()), abs=1e-6)
    each = [float(((predicted == k) & (truth == k)).sum() / ((predicted == k) | (truth == k)).sum())
            for k in range(11) if ((predicted == k) | (truth == k)).any()]
    assert result["test/mean_iou"] == pytest.approx(sum(each) / len(each), abs=1e-6)


def test_pixels_that_are_not_scored_count_nowhere(config):
    cfg = config("model=fcn8s", *WORDS)
    task = build.build_task(cfg)
    task.__dict__["_trainer"] = None
    type(task).current_epoch, type(task).global_rank = 0, 0
    try:
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        masks = torch.randint(0, 11, (2, 64, 64))
        masks[:, :40] = IGNORED_PIXEL
        loss = task.training_step(SegmentationBatch(images, masks), 0)
        assert task.sums[2] == 2 * 24 * 64
        logits = task.model(task.augment.normalize(images))[:, :, 40:]
        torch.testing.assert_close(loss, F.cross_entropy(logits, masks[:, 40:]))
        nothing = task.training_step(SegmentationBatch(images, torch.full_like(masks, IGNORED_PIXEL)), 0)
        assert nothing == 0
    finally:
        del type(task).current_epoch, type(task).global_rank


def test_drawn_pixels_are_of_the_whole_mask_and_differ_by_image():
    places = drawn_places(torch.zeros(2, 5, 7, dtype=torch.long), 4000, torch.Generator().manual_seed(0))
    assert places.shape == (2, 4000, 2)
    assert not torch.equal(places[0], places[1])
    counts = torch.bincount(places[0, :, 0] * 7 + places[0, :, 1], minlength=35)
    assert counts.min() > 70
    assert counts.max() < 165
    assert places[..., 0].max() == 4
    assert places[..., 1].max() == 6


def test_what_does_not_fit_masks_is_refused(config):
    with pytest.raises(UserError, match=r"task \(Segmentation\): pixels must be null: FCN classifies all pixels"):
        build.build_task(config("model=fcn8s", *WORDS, "task.pixels=5"))
    with pytest.raises(UserError, match=r"task \(Segmentation\): augment.test must be single"):
        build.build_task(config("model=fcn8s", *WORDS, "augment.test=flip"))
    with pytest.raises(UserError, match="model=fcn8s trains on SegmentationBatch, but data=digits yields"):
        config("model=fcn8s", "data=digits")


@pytest.mark.parametrize("words", [["model=hypercolumn", "task.pixels=32"],
                                   ["model=dilated", "task.freezing.until=conv4",
                                    "task.freezing.unfreeze_every_epochs=1"]])
def test_a_crash_changes_nothing(words, config, run_folder, monkeypatch):
    assert_a_crash_changes_nothing([*words, *WORDS, "augment=segmentation"], 4, config, run_folder, monkeypatch)


# masks from files

@pytest.fixture
def folder(tmp_path):
    """Six photos of two sizes with masks of three classes, grey and by palette, with pixels that are not scored."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate("abcdef"):
        size = (40, 32) if number % 2 else (32, 40)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(root / f"images/{name}.jpg")
        mask = rng.integers(0, 3, (size[1], size[0]), dtype=np.uint8)
        mask[:3] = IGNORED_PIXEL
        png = as_palette_png(torch.from_numpy(mask)) if number % 3 else Image.fromarray(mask)
        png.save(root / f"masks/{name}.png")
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    return root


def load_masks(root, kind=MaskFolder, **keys):
    data = kind(**{"root": str(root), "channels": 3, "image_px": 40, "num_classes": None, "val_share": 0.25,
                   "num_workers": 0, "batch_size": 2, **({"test_share": 0.3} if kind is MaskFolder else {}), **keys})
    data.load()
    return data


def test_mask_values_are_classes_and_padding_is_not_scored(folder):
    data = load_masks(folder)
    assert data.class_names == ["background", "cat", "dog"]
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 3, "val": 1, "test": 2}
    assert data.padded_size == (40, 40)
    pair = data.pairs["train"][0]
    batch = next(iter(data.read("train", [torch.tensor([0])])))
    batch.check(3)
    truth = np.asarray(Image.open(pair.mask))
    h, w = truth.shape
    assert batch.masks[0, :h, :w].numpy().tolist() == truth.tolist()
    assert (batch.masks[0, h:] == IGNORED_PIXEL).all()
    assert (batch.masks[0, :, w:] == IGNORED_PIXEL).all()
    assert (batch.images[0, :, h:] == 0).all()
    assert torch.equal(batch.images[0, :, :h, :w], read_image(pair.image, 3))
    half = load_masks(folder, image_px=20)
    assert half.padded_size == (20, 20)
    small = next(iter(half.read("train", [torch.tensor([0])]))).masks[0]
    assert set(small.unique().tolist()) <= {0, 1, 2, IGNORED_PIXEL}


def test_images_of_two_sizes_become_one_batch_as_in_training(folder):
    data = load_masks(folder, image_px=20)
    batch = data.encode_inputs([data.read_input(folder / f"images/{name}.jpg") for name in "ab"])
    batch.check(3)
    assert batch.images.shape == (2, 3, 20, 20)
    assert (batch.masks == IGNORED_PIXEL).all()
    (split, index), = [(split, index) for split in SPLITS for index, pair in enumerate(data.pairs[split])
                       if pair.image.stem == "a"]
    assert torch.equal(batch.images[0], next(data.read(split, [torch.tensor([index])])).images[0])


def test_lists_give_the_splits(folder):
    (folder / "train.txt").write_text("a\nb.jpg\n\nc\n")
    (folder / "val.txt").write_text("d\n")
    (folder / "test.txt").write_text("e\nf\n")
    data = load_masks(folder)
    assert [pair.image.stem for pair in data.pairs["train"]] == ["a", "b", "c"]
    (folder / "test.txt").write_text("e\n../f\n")
    with pytest.raises(DataError, match=r"test.txt:2: '../f' must be a name, not a path"):
        load_masks(folder)
    (folder / "test.txt").write_text("nobody\n")
    with pytest.raises(DataError, match=r"test.txt: no image .*images/nobody"):
        load_masks(folder)
    (folder / "test.txt").unlink()
    with pytest.raises(DataError, match=r"has train.txt, val.txt, but needs both train.txt and test.txt"):
        load_masks(folder)


def test_what_is_wrong_with_a_mask_is_named_by_its_file(folder):
    def message_for(name, image):
        image.save(folder / f"masks/{name}.png")
        with pytest.raises(DataError) as raised:
            load_masks(folder)
        return str(raised.value)

    good = Image.open(folder / "masks/a.png")
    good.load()
    assert "a.png: must be 32 x 40 px as a.jpg, but is 40 x 32" in message_for("a", Image.new("L", (40, 32)))
    assert "1 of 6 masks do not fit: " in message_for("a", Image.new("L", (40, 32)))
    assert "a.png: has 7, but there are 3 classes, from 0 on; 255 is not scored" in message_for("a", Image.new(
        "L", (32, 40), 7))
    assert "a.png: a mask must have one value of 8 bits per pixel (grey or palette), but is RGB" in message_for(
        "a", Image.new("RGB", (32, 40)))
    (folder / "masks/a.png").unlink()
    with pytest.raises(DataError, match=r"no mask .*a.png"):
        load_masks(folder)
    good.save(folder / "masks/a.png")
    (folder / "masks/b.png").write_text("no picture")
    with pytest.raises(DataError, match=r"b.png: cannot identify"):
        load_masks(folder)
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"no classes.txt; it must name each mask value"):
        load_masks(folder)
    (folder / "classes.txt").write_text("a\n")
    for file in (folder / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"images: no images"):
        load_masks(folder)


def test_camvid_has_a_value_of_its_own_for_pixels_that_are_not_scored(tmp_path):
    for split in SPLITS:
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        Image.new("RGB", (32, 24)).save(tmp_path / split / "f1.jpg")
        Image.fromarray(np.arange(32 * 24, dtype=np.uint8).reshape(24, 32) % 12).save(tmp_path / f"{split}annot/f1.png")
    data = load_masks(tmp_path, CamVid, num_classes=11)
    mask = next(iter(data.read("test", [torch.tensor([0])]))).masks[0]
    assert mask[0, 10:13].tolist() == [10, IGNORED_PIXEL, 0]
    assert len(data.class_names) == 11


def test_voc_lists_and_palettes_are_read_and_missing_ones_named(tmp_path, monkeypatch):
    place = tmp_path / "VOCdevkit/VOC2012"
    with pytest.raises(DataError, match=r"VOC2012 is not in .*: put VOCdevkit/VOC2012 of"):
        load_masks(tmp_path, VocMasks, num_classes=21, download=False)

    def offline(*args, **keys):
        raise OSError("no network")

    monkeypatch.setattr(voc.torchvision.datasets, "VOCSegmentation", offline)
    with pytest.raises(DataError, match=r"and cannot be downloaded \(no network\): put VOC"):
        load_masks(tmp_path, VocMasks, num_classes=21, download=True)
    for inner in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (place / inner).mkdir(parents=True)
    for name in ("x1", "x2", "x3"):
        Image.new("RGB", (30, 20)).save(place / f"JPEGImages/{name}.jpg")
        as_palette_png(torch.tensor([[15] * 29 + [IGNORED_PIXEL]] * 20)).save(place / f"SegmentationClass/{name}.png")
    (place / "ImageSets/Segmentation/train.txt").write_text("x1\nx2\n")
    (place / "ImageSets/Segmentation/val.txt").write_text("x3\n")
    data = load_masks(tmp_path, VocMasks, num_classes=21, download=False)
    assert data.class_names[15] == "person"
    assert next(iter(data.read("test", [torch.tensor([0])]))).masks[0, 0].tolist() == [15] * 29 + [IGNORED_PIXEL]
    monkeypatch.undo()
    reference = VOCSegmentation(str(tmp_path), "2012", "val")[0][1]
    assert np.asarray(reference).tolist() == read_mask(place / "SegmentationClass/x3.png").tolist()


def test_vocs_colours_are_the_published_ones():
    """The first of the development kit's colour map: background, aeroplane, bicycle, bird, boat, ..., tvmonitor."""
    palette = voc_palette().tolist()
    assert palette[:6] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert palette[20] == [0, 64, 128]
    assert palette[255] == [224, 224, 192]


def test_pictures_show_each_class_in_its_colour():
    image = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[:32] = 2
    lit = overlaid(image, mask, ["ground", "cat", "dog"])
    assert lit[:, 200, 5].tolist() == [100, 100, 100]
    assert lit[:, 5, 5].tolist() == [45, 115, 45]
    truth = mask.clone()
    truth[:, 32:] = IGNORED_PIXEL
    sheet = compared([(image, truth, mask)], ["ground", "cat", "dog"])
    assert sheet[:, 10, 6 + 198 + 10].tolist() == [0, 128, 0]
    white = voc_palette()[IGNORED_PIXEL].tolist()
    assert sheet[:, 10, 6 + 198 + 180].tolist() == white
    assert sheet[:, 10, 6 + 2 * 198 + 180].tolist() == white
