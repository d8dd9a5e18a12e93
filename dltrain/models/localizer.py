"""One object an image: a classifier's trunk with two heads, its class and its box.

The oldest way from classification to localisation: keep the features, replace the top, regress four numbers
(P. Sermanet et al., 2013, arXiv 1312.6229, section 4; K. Simonyan, A. Zisserman, 2014, 1409.1556, appendix A). The box
is coded relative to the image: centre and size in units of its sides.

Differs from both: one box whatever the class, no pyramid, smooth L1 in the place of the square; the box is not read
from the whole map by a fully connected layer, which learned 1,000 scenes by heart (LOG.md), but from where a few maps
of chances lie: the mean and the spread of each (the spatial softmax of S. Levine et al., 2015, 1504.00702, section 5.1,
which has the mean only).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Target = dict[str, Tensor]


class Localizer(nn.Module):
    """`backbone`: anything with `features` and `out_channels`; `points`: maps of chances that the box is read from;
    `box_weight`: of the box's loss beside the class's cross-entropy."""

    losses = ("loss_classifier", "loss_box_reg")

    def __init__(self, backbone: Any, num_classes: int, points: int, box_weight: float):
        super().__init__()
        self.backbone, self.box_weight = backbone, box_weight
        backbone.head = nn.Identity()
        self.classifier = nn.Linear(backbone.out_channels, num_classes)
        self.points, self.box = nn.Conv2d(backbone.out_channels, points, 1), nn.Linear(4 * points, 4)

    def both(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """B images of one size (C, H, W) to logits (B, K) and (B, 4): centre x, y, width and height in [0, 1]."""
        maps = self.backbone.features(torch.stack(images))
        return self.classifier(maps.mean((2, 3))), self.box(moments(self.points(maps)))

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Raises ValueError for an image that has not exactly one object."""
        counts = [len(target["labels"]) for target in targets]
        if min(counts) != 1 or max(counts) != 1:
            raise ValueError(f"the localizer needs one object an image, but they have {min(counts)} to {max(counts)}; "
                             "scenes have one with data.max_objects=1")
        logits, boxes = self.both(images)
        labels = torch.cat([target["labels"] for target in targets])
        wanted = coded(torch.cat([target["boxes"] for target in targets]), images[0])
        return {"loss_classifier": F.cross_entropy(logits, labels),
                "loss_box_reg": self.box_weight * F.smooth_l1_loss(boxes, wanted, beta=0.05)}

    def detect(self, images: list[Tensor]) -> list[Target]:
        """One box, label and score of each image."""
        logits, boxes = self.both(images)
        scores, labels = logits.softmax(1).max(1)
        return [{"boxes": box[None], "labels": label[None], "scores": score[None]} for box, label, score in
                zip(decoded(boxes, images[0]), labels, scores, strict=True)]


def moments(maps: Tensor) -> Tensor:
    """(B, P, h, w) to (B, 4 P): of each map's softmax over its places the mean x and y and their standard deviations,
    in units of the map's sides."""
    chances = maps.flatten(2).softmax(2).view_as(maps)
    found = []
    for along, across in ((2, 3), (3, 2)):  # x, y
        row, size = chances.sum(along), maps.shape[across]
        places = (torch.arange(size, device=maps.device) + 0.5) / size
        mean = (row * places).sum(2, keepdim=True)
        found += [mean[..., 0], ((row * (places - mean) ** 2).sum(2) + 1e-6).sqrt()]
    return torch.cat(found, 1)


def sides(image: Tensor) -> Tensor:
    h, w = image.shape[1:]
    return image.new_tensor([w, h])


def coded(boxes: Tensor, image: Tensor) -> Tensor:
    """(N, 4) x1, y1, x2, y2 in pixels to centre and size in units of the image's sides."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / sides(image).repeat(2)


def decoded(codes: Tensor, image: Tensor) -> Tensor:
    """The inverse of `coded`, cut to the image."""
    centre, half = codes[:, :2] * sides(image), codes[:, 2:] * sides(image) / 2
    return torch.cat([centre - half, centre + half], 1).clamp_min(0).minimum(sides(image).repeat(2))
