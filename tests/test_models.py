"""The CIFAR family against the papers' counts, torchvision's block and a double-precision loop; stochastic depth."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from dltrain.config.compose import compose
from dltrain.models.cifar_resnet import Block, CifarResNet, ZeroPad
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.pretrained import NODE
from tests.finished_run import count_computed_blocks


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("depth", "millions", "digits"), [
    (20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1), (1202, 19.4, 1)])
def test_the_number_of_parameters_is_the_papers(depth, millions, digits):
    """He et al. 2015, table 6."""
    with torch.device("meta"):
        assert round(num_parameters(CifarResNet(depth)) / 1e6, digits) == millions


def test_shortcuts_a_have_no_parameters():
    with torch.device("meta"):
        assert num_parameters(CifarResNet(20, shortcut="none")) == num_parameters(CifarResNet(20))


def test_bottleneck_164_has_the_papers_number_of_parameters():
    """He et al. 2016: 1.7 M, as many as ResNet-110."""
    with torch.device("meta"):
        assert round(num_parameters(CifarResNet(164, block="bottleneck", shortcut="B")) / 1e6, 1) == 1.7


def test_the_number_of_parameters_equals_a_count_by_hand():
    """3x3 convolutions and their norms, stage by stage, for depth 6n + 2."""
    n = 3
    convs = 3 * 16 * 9 + 2 * n * 16 * 16 * 9
    convs += 16 * 32 * 9 + (2 * n - 1) * 32 * 32 * 9 + 32 * 64 * 9 + (2 * n - 1) * 64 * 64 * 9
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert num_parameters(CifarResNet(20)) == convs + norms + 64 * 10 + 10


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.7), (34, 21.8), (50, 25.6), (101, 44.5), (152, 60.2)])
def test_the_imagenet_nets_have_the_papers_number_of_parameters(depth, millions):
    with torch.device("meta"):
        assert round(num_parameters(ImagenetResNet(depth)) / 1e6, 1) == millions


def test_imagenet_net_takes_grey_images():
    net = ImagenetResNet(18, num_classes=5, in_channels=1).eval()
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("model", ["resnet20", "plain20", "sdresnet56", "resnet164"])
def test_layers_with_weights_are_the_depth(model):
    """Convolutions (shortcuts not counted) and the linear layer."""
    keys = compose([f"model={model}"]).config.model
    with torch.device("meta"):
        net = CifarResNet(**{key: value for key, value in keys.items() if key not in ("_target_", NODE)})
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
              and "shortcut" not in name]
    assert len(layers) == keys.depth


@pytest.mark.parametrize(("depth", "block", "formula"), [
    (21, "basic", "6n"), (2, "basic", "6n"), (170, "bottleneck", "9n")])
def test_a_depth_that_the_family_does_not_have_is_refused(depth, block, formula):
    message = rf"^depth must be {formula} \+ 2 for {block} blocks, but is {depth}$"
    with pytest.raises(ValueError, match=message):
        CifarResNet(depth, block=block)


def copy_weights(ours: Block, theirs: BasicBlock | Bottleneck) -> None:
    """Random weights, the same in both blocks."""
    pairs = []
    for number, layers in enumerate(ours.convs, start=1):
        convolution, norm = layers.children()
        pairs += [(convolution, getattr(theirs, f"conv{number}")), (norm, getattr(theirs, f"bn{number}"))]
    if theirs.downsample is not None:
        assert ours.shortcut is not None
        pairs += list(zip(ours.shortcut.children(), theirs.downsample, strict=True))
    for ours_layer, theirs_layer in pairs:
        for value in ours_layer.parameters():
            nn.init.normal_(value, std=0.3)
        theirs_layer.load_state_dict(ours_layer.state_dict())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kind", "reference"), [("basic", BasicBlock), ("bottleneck", Bottleneck)])
def test_block_equals_torchvisions(kind, reference, stride):
    """Projection shortcut B, in training and in evaluation, outputs and input gradients."""
    torch.manual_seed(0)
    c_in, c = 16, 16 * stride
    ours = Block(kind, c_in, c, stride, "B", "batch", 1.0)
    c_out = c * (4 if kind == "bottleneck" else 1)
    down = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
    theirs = reference(c_in, c, stride, down if stride != 1 or c_in != c_out else None)
    copy_weights(ours, theirs)
    for training in (True, False):
        x = torch.randn(4, c_in, 8, 8)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out_a, out_b = ours.train(training)(a), theirs.train(training)(b)
        torch.testing.assert_close(out_a, out_b)
        (out_a.square().sum()).backward()
        (out_b.square().sum()).backward()
        torch.testing.assert_close(a.grad, b.grad)


def conv_by_loop(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """(C, H, W) and (O, C, K, K) in double precision, zero-padded by K // 2."""
    k = weight.shape[2]
    padded = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2))
    h, w = (x.shape[1] - 1) // stride + 1, (x.shape[2] - 1) // stride + 1
    out = np.zeros((weight.shape[0], h, w))
    for o in range(weight.shape[0]):
        for i in range(h):
            for j in range(w):
                out[o, i, j] = (padded[:, i * stride : i * stride + k, j * stride : j * stride + k] * weight[o]).sum()
    return out


def test_shortcut_a_block_equals_a_loop():
    """relu(conv(relu(conv(x))) + every second pixel, zeros for the new channels), without norm, in double precision."""
    torch.manual_seed(0)
    block = Block("basic", 2, 4, 2, "A", "none", 1.0).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    first, first_bias, second, second_bias = (parameter.detach().numpy() for parameter in block.parameters())
    hidden = np.maximum(conv_by_loop(x[0].numpy(), first, 2) + first_bias[:, None, None], 0)
    out = conv_by_loop(hidden, second, 1) + second_bias[:, None, None]
    out[:2] += x[0, :, ::2, ::2].numpy()
    np.testing.assert_allclose(block(x)[0].detach().numpy(), np.maximum(out, 0), rtol=1e-10)


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    net = CifarResNet(8, num_classes=3, in_channels=1, norm="none").double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def loss() -> Tensor:
        return F.cross_entropy(net(x), torch.tensor([0, 2]))

    loss().backward()
    parameters = dict(net.named_parameters())
    for name in ("stem.0.weight", "blocks.1.convs.0.0.weight", "head.bias"):
        parameter, step = parameters[name], 1e-6
        assert parameter.grad is not None
        flat, index = parameter.data.view(-1), parameter.numel() // 2
        before = float(flat[index])
        flat[index] = before + step
        higher = loss().item()
        flat[index] = before - step
        lower = loss().item()
        flat[index] = before
        gradient = parameter.grad.view(-1)[index].item()
        assert abs(gradient) > 1e-4
        assert (higher - lower) / (2 * step) == pytest.approx(gradient, abs=1e-7, rel=1e-5)


def test_a_plain_net_has_no_shortcut_and_a_b_c_differ():
    kinds = {kind: CifarResNet(8, shortcut=kind) for kind in ("none", "A", "B", "C")}
    assert all(block.shortcut is None for block in kinds["none"].blocks)
    assert [type(block.shortcut).__name__ for block in kinds["A"].blocks] == ["Identity", "ZeroPad", "ZeroPad"]
    assert isinstance(kinds["A"].blocks[1].shortcut, ZeroPad)
    added = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert num_parameters(kinds["B"]) - num_parameters(kinds["A"]) == added
    assert num_parameters(kinds["C"]) - num_parameters(kinds["B"]) == 16 * 16 + 2 * 16


def test_the_survival_probability_decays_linearly():
    """Equation 4: p_l = 1 - l / L (1 - p_L)."""
    net = CifarResNet(20, survival=0.5)
    assert net.survival_probabilities == pytest.approx([1 - (number / 9) * 0.5 for number in range(1, 10)])


def test_dropped_blocks_are_not_computed_and_their_frequency_is_right():
    torch.manual_seed(0)
    net = CifarResNet(20, in_channels=1, survival=0.5).train()
    num_calls = count_computed_blocks(net)
    num_steps, images = 200, torch.rand(2, 1, 4, 4)
    with torch.no_grad():
        for _ in range(num_steps):
            net(images)
    for calls, p in zip(num_calls, net.survival_probabilities, strict=True):
        assert calls / num_steps == pytest.approx(p, abs=4 * (p * (1 - p) / num_steps) ** 0.5)
    num_calls[:] = [0] * 9
    with torch.no_grad():
        net.eval()(images)
    assert num_calls == [1] * 9, "all blocks are computed in evaluation"


def test_evaluation_scales_by_the_survival_probability():
    """Equation 5: out = relu(p F(x) + x)."""
    torch.manual_seed(0)
    block = Block("basic", 4, 4, 1, "A", "batch", 0.3).eval()
    x = torch.randn(2, 4, 5, 5)
    f = block.convs[1](F.relu(block.convs[0](x)))
    torch.testing.assert_close(block(x), F.relu(0.3 * f + x))


def test_stochastic_depth_without_shortcuts_is_refused():
    with pytest.raises(ValueError, match="survival must be 1 without shortcuts: a dropped block would leave nothing"):
        CifarResNet(20, shortcut="none", survival=0.5)


def test_initial_weights_have_hes_variance():
    """Section 3.4 cites He et al. 2015b: std sqrt(2 / fan)."""
    torch.manual_seed(0)
    weight = dict(CifarResNet(20).named_parameters())["blocks.8.convs.1.0.weight"]
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
