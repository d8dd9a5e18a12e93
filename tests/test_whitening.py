"""The whitening layer against numpy, the net of the speed records against its published size, and both in a run."""

import numpy as np
import pytest
import torch

from dltrain import run
from dltrain.batches import generator
from dltrain.build import build_data
from dltrain.models.airbench import AirbenchNet
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.vgg import CifarVGG
from dltrain.models.whitening import EPSILON, PatchWhitening
from dltrain.run_dir import RunDir
from tests.conftest import TINY
from tests.test_resume import load_last


def make_images(count: int = 40, channels: int = 3, px: int = 9) -> torch.Tensor:
    """Images whose neighbouring pixels resemble each other."""
    rough = torch.randn(count, channels, px, px, generator=generator("images"))
    return rough + 2 * rough.roll(1, 3) + rough.roll(1, 2)


@pytest.mark.parametrize(("patch_px", "side"), [(2, 8), (3, 9)])
def test_patches_are_white_after_the_layer(patch_px, side):
    layer, images = PatchWhitening(3, patch_px), make_images()
    layer.fit_patches(images)
    pixels = images.double().numpy()
    inside = 9 - patch_px + 1
    patches = np.stack([pixels[:, :, i : i + patch_px, j : j + patch_px].reshape(40, -1)
                        for i in range(inside) for j in range(inside)], axis=1).reshape(-1, 3 * patch_px**2)
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    output = layer(images)
    assert output.shape == (40, 6 * patch_px**2, side, side)
    half = 3 * patch_px**2
    torch.testing.assert_close(output[:, half:], -output[:, :half])
    white = layer.weight[:half].flatten(1).double().detach().numpy() @ patches.T
    expected = np.diag((values / (values + EPSILON))[::-1])  # the largest variance first
    np.testing.assert_allclose(white @ white.T / len(patches), expected, atol=1e-4)
    projected = np.abs(vectors.T[::-1] @ patches[7]) / np.sqrt(values + EPSILON)[::-1]
    np.testing.assert_allclose(np.abs(white[:, 7]), projected, rtol=1e-4, atol=1e-4)


def test_filters_that_are_set_stay():
    layer = PatchWhitening(3, 2)
    layer.fit_patches(make_images())
    before = layer.weight.clone()
    layer.fit_patches(make_images().flip(3) * 3)
    assert torch.equal(layer.weight, before)


def test_the_net_of_the_speed_records_has_its_published_size():
    """K. Jordan, 2024: 1.97 million parameters. By hand: 3x3 convolutions 24, 64, 64, 256, 256, 256, 256, the
    biases of their norms, a linear layer of 256 x 10, and the bias of 24 fixed filters."""
    net = AirbenchNet()
    pairs = [(24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256)]
    expected = sum(9 * a * b + b for a, b in pairs) + 2560 + 24
    assert sum(parameter.numel() for parameter in net.parameters()) == expected == 1_971_352
    assert sum(p.numel() for layer in net.stages().values() for m in layer for p in m.parameters()) == expected - 2560
    with pytest.raises(ValueError, match="widths must be three numbers of channels, but are"):
        AirbenchNet(widths=[1, 2])


@pytest.mark.parametrize("px", [16, 24, 32])
def test_the_net_takes_images_of_several_sizes_and_begins_as_the_identity(px):
    net = AirbenchNet(widths=(24, 24, 24)).eval()
    images = make_images(2, px=px)
    x = torch.nn.functional.gelu(net.whitening(images))
    for _ in range(3):  # each convolution copies its 24 input channels; an untrained norm in evaluation too
        x = torch.nn.functional.gelu(torch.nn.functional.gelu(torch.nn.functional.max_pool2d(x, 2)))
    torch.testing.assert_close(net.features(images), x)
    torch.testing.assert_close(net(images), net.head(x.flatten(2).max(2).values) / 9)


def test_a_residual_net_and_a_vgg_have_the_layer_before_the_first_convolution():
    images = make_images(2, px=32)
    resnet, vgg = CifarResNet(8, whitening_px=3).eval(), CifarVGG(11, width=4, whitening_px=3).eval()
    for net, first in ((resnet, resnet.stages()["stem"]), (vgg, vgg.stages()["conv1"])):
        x = images
        for layers in net.stages().values():
            for layer in layers:
                x = layer(x)
        torch.testing.assert_close(x, net.features(images))
        modules = [module for layer in first for module in layer.modules()]
        assert any(type(module) is PatchWhitening for module in modules)
        assert next(module for module in modules if type(module) is torch.nn.Conv2d).in_channels == 54


def test_a_run_sets_the_filters_from_its_training_images_and_keeps_them(config, run_folder, without_figures):
    path = run_folder("whitened")
    run.train(config(*TINY, "model.whitening_px=2", "model.survival=1", "augment.normalize=standard"), RunDir(path))
    state = load_last(path)["state_dict"]
    layer = PatchWhitening(1, 2)
    pixels = build_data(config(*TINY)).training_pixels(1000).float() / 255
    layer.fit_patches((pixels - state["augment.normalize.mean"]) / state["augment.normalize.std"])
    torch.testing.assert_close(state["model.stem.0.weight"], layer.weight, rtol=1e-4, atol=1e-4)
    assert not torch.equal(state["model.stem.0.bias"], torch.zeros(8))  # it is trained
