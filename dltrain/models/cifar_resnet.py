"""Maps images (B, C, H, W) to class logits (B, num_classes): the plain and residual nets for 32x32 images.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv 1512.03385, section 4.2.
G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger, "Deep Networks with Stochastic Depth", 2016, arXiv 1603.09382.

A 3x3 convolution of 16 channels; three stages of n blocks with 16, 32, 64 channels, the second and third of which start
with stride 2; global average pooling; one linear layer. `basic`: two 3x3 convolutions in a block, depth 6n + 2.
`bottleneck`: 1x1, 3x3, 1x1 with four times the channels at the ends of the block, depth 9n + 2 (K. He et al., "Identity
Mappings in Deep Residual Networks", 2016, arXiv 1603.05027, compares this net at depth 164).

Differs from the papers: the bottleneck net is the original, post-activation one. `norm="none"` has convolution biases
in the place of batch normalisation. A block that stochastic depth drops gets no gradient at all in that step, so SGD
applies neither weight decay nor momentum to it.

B batch, C channels, H and W height and width, L residual blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.models.initialisation import initialise_convolutions
from dltrain.models.whitening import whitening_layers

EXPANSION = {"basic": 1, "bottleneck": 4}
CONVOLUTIONS = {"basic": 2, "bottleneck": 3}


def conv(c_in: int, c_out: int, kernel: int, stride: int, norm: str) -> nn.Sequential:
    """A convolution that keeps H and W at stride 1, followed by batch normalisation, or with a bias in its place."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=norm == "none")]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(c_out))
    return nn.Sequential(*layers)


class ZeroPad(nn.Module):
    """Shortcut A: every stride-th pixel, zeros for the channels that the block adds, behind the others or, `centred`,
    half of them before. It has no parameters."""

    def __init__(self, c_in: int, c_out: int, stride: int, centred: bool):
        super().__init__()
        self.stride, self.before = stride, (c_out - c_in) // 2 if centred else 0
        self.behind = c_out - c_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


def shortcut(kind: str, c_in: int, c_out: int, stride: int, norm: str) -> nn.Module | None:
    """Section 4.1: A zero-padded identity, B projection where the shape changes, C projection always. The paper does
    not say on which side A is padded: A_centred is what much published code does. `none`, for plain nets, gives
    None."""
    changes = stride != 1 or c_in != c_out
    if kind == "none":
        return None
    if kind == "C" or (kind == "B" and changes):
        return conv(c_in, c_out, 1, stride, norm)
    return ZeroPad(c_in, c_out, stride, kind == "A_centred") if changes else nn.Identity()


class Block(nn.Module):
    """relu(F(x) + shortcut(x)), equation 1. With survival p < 1 (Huang et al., section 3): in training F is computed
    with probability p, in evaluation its output is multiplied by p (equation 5)."""

    def __init__(self, kind: str, c_in: int, c: int, stride: int, shortcut_kind: str, norm: str, survival: float):
        super().__init__()
        c_out = c * EXPANSION[kind]
        if kind == "basic":
            shapes = [(c_in, c, 3, stride), (c, c, 3, 1)]
        else:
            shapes = [(c_in, c, 1, 1), (c, c, 3, stride), (c, c_out, 1, 1)]
        self.convs = nn.ModuleList(conv(*shape, norm) for shape in shapes)
        self.shortcut = shortcut(shortcut_kind, c_in, c_out, stride, norm)
        self.survival = survival

    def forward(self, x: Tensor, computed: bool | None = None) -> Tensor:
        """`computed`: whether F, the branch of convolutions, is computed or dropped; None: sampled by `survival`."""
        if computed is None:
            computed = not (self.training and self.survival < 1) or bool(torch.rand(()) < self.survival)
        if not computed:
            assert self.shortcut is not None
            return F.relu(self.shortcut(x))
        out = x
        for layer in self.convs[:-1]:
            out = F.relu(layer(out))
        out = self.convs[-1](out)
        if not self.training and self.survival < 1:
            out = out * self.survival
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """`survival` is p_L: block l of L survives with p_l = 1 - l / L * (1 - p_L) (equation 4). `whitening_px`: side of
    the patches of a whitening layer before the first convolution (whitening.py), None for no such layer.

    Raises ValueError for a depth that is not 6n + 2 (basic) or 9n + 2 (bottleneck), n >= 1, and for stochastic depth
    without shortcuts.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, block: str = "basic",
                 shortcut: str = "A", norm: str = "batch", survival: float = 1.0, whitening_px: int | None = None):
        super().__init__()
        per_block = 3 * CONVOLUTIONS[block]
        blocks_per_stage, remainder = divmod(depth - 2, per_block)
        if remainder or blocks_per_stage < 1:
            raise ValueError(f"depth must be {per_block}n + 2 for {block} blocks, but is {depth}")
        if survival < 1 and shortcut == "none":
            raise ValueError("survival must be 1 without shortcuts: a dropped block would leave nothing")
        self.drops_blocks = survival < 1
        whitening, channels = whitening_layers(in_channels, whitening_px)
        self.stem = nn.Sequential(*whitening, *conv(channels, 16, 3, 1, norm))
        num_blocks = 3 * blocks_per_stage
        blocks: list[Block] = []
        c_in = 16
        for number in range(1, num_blocks + 1):
            stage, index = divmod(number - 1, blocks_per_stage)
            stride = 2 if stage > 0 and index == 0 else 1
            p = 1 - number / num_blocks * (1 - survival)
            blocks.append(Block(block, c_in, 16 << stage, stride, shortcut, norm, p))
            c_in = (16 << stage) * EXPANSION[block]
        self.blocks, self.blocks_per_stage = nn.ModuleList(blocks), blocks_per_stage
        self.survival_probabilities = [block.survival for block in blocks]
        self.out_channels = c_in
        self.head = nn.Linear(c_in, num_classes)
        initialise_convolutions(self)

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 1, 1, 2, 4."""
        n, blocks = self.blocks_per_stage, list(self.blocks)
        return {"stem": [self.stem, nn.ReLU()],
                **{f"stage{index + 1}": blocks[index * n : (index + 1) * n] for index in range(3)}}

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, H / 4, W / 4)."""
        x = F.relu(self.stem(images))
        survives = [True] * len(self.blocks)
        if self.training and self.drops_blocks:  # decided once a batch, for all blocks by one call on the CPU
            uniform = torch.empty(len(self.blocks)).uniform_().tolist()  # not torch.rand: for no sample
            survives = [u < p for u, p in zip(uniform, self.survival_probabilities, strict=True)]
        for block, computed in zip(self.blocks, survives, strict=True):
            x = block(x, computed)
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))
