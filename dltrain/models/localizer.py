"""Localises one object in each image: a backbone with two heads, for the object's class and its box.

The oldest step from classification to localisation: keep the features, replace the head, regress four numbers
(P. Sermanet et al., 2013, arXiv 1312.6229, section 4; K. Simonyan, A. Zisserman, 2014, 1409.1556, appendix A). The box
is coded relative to the image: centre and size in units of its sides.

Differs from both: one box for all classes, no image pyramid, smooth L1 in the place of the squared error. The box is
not read from the whole map by a fully connected layer, which memorised 1,000 scenes (LOG.md), but from a few
probability maps: the mean and the spread of each (the spatial softmax of S. Levine et al., 2015, 1504.00702, section
5.1, which has the mean only).

B images, C channels, K classes, P probability maps, h and w the sides of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.batches import to_device
from dltrain.contracts import Backbone, ClassLossOf
from dltrain.models.backbones import remove_head

Target = dict[str, Tensor]


class Localizer(nn.Module):
    """`points`: number of probability maps that the box is read from; `box_weight`: factor of the box's loss, where the
    class's cross-entropy has 1."""

    losses = ("loss_classifier", "loss_box_reg")
    matches_on_host = True
    background = None  # each image has an object
    class_loss: ClassLossOf = staticmethod(F.cross_entropy)

    def __init__(self, backbone: Backbone, num_classes: int, points: int, box_weight: float):
        super().__init__()
        self.backbone, self.box_weight = remove_head(backbone), box_weight
        self.classifier = nn.Linear(backbone.out_channels, num_classes)
        self.points, self.box = nn.Conv2d(backbone.out_channels, points, 1), nn.Linear(4 * points, 4)

    def logits_and_codes(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """B images of one size (C, H, W) to logits (B, K) and (B, 4): centre x, y, width and height in [0, 1]."""
        if len({image.shape for image in images}) > 1:
            raise ValueError("the localizer needs images of one size, but they are "
                             f"{' and '.join(sorted({f'{w} x {h}' for _, h, w in (image.shape for image in images)}))}")
        maps = self.backbone.features(torch.stack(images))
        return self.classifier(maps.mean((2, 3))), self.box(moments(self.points(maps)))

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Raises ValueError for an image that does not have exactly one object."""
        counts = [len(target["labels"]) for target in targets]
        if min(counts) != 1 or max(counts) != 1:
            raise ValueError(f"the localizer needs one object an image, but they have {min(counts)} to {max(counts)}; "
                             "scenes have one with data.max_objects=1")
        logits, codes = self.logits_and_codes(images)
        labels = to_device(torch.cat([target["labels"] for target in targets]), logits.device)
        expected = to_device(encode(torch.cat([target["boxes"] for target in targets]), images[0]), codes.device)
        return {"loss_classifier": self.class_loss(logits, labels),
                "loss_box_reg": self.box_weight * F.smooth_l1_loss(codes, expected, beta=0.05)}

    def detect(self, images: list[Tensor]) -> list[Target]:
        """One box, label and score of each image."""
        logits, codes = self.logits_and_codes(images)
        scores, labels = logits.softmax(1).max(1)
        return [{"boxes": box[None], "labels": label[None], "scores": score[None]} for box, label, score in
                zip(decode(codes, images[0]), labels, scores, strict=True)]


def moments(maps: Tensor) -> Tensor:
    """(B, P, h, w) to (B, 4 P): the softmax of each map over its places is a probability map; its mean x and y, and
    their standard deviations, in units of the map's sides. Order: P mean x, P deviations of x, then the same of y."""
    probabilities = maps.flatten(2).softmax(2).view_as(maps)
    values = []
    for summed, kept in ((2, 3), (3, 2)):  # x, y
        marginal, size = probabilities.sum(summed), maps.shape[kept]
        places = (torch.arange(size, device=maps.device) + 0.5) / size
        mean = (marginal * places).sum(2, keepdim=True)
        values += [mean[..., 0], ((marginal * (places - mean) ** 2).sum(2) + 1e-6).sqrt()]
    return torch.cat(values, 1)


def sides(image: Tensor) -> Tensor:
    """(2,): width and height, on the host."""
    h, w = image.shape[1:]
    return torch.tensor([w, h], dtype=image.dtype)


def encode(boxes: Tensor, image: Tensor) -> Tensor:
    """(N, 4) x1, y1, x2, y2 in pixels, on the host, to centre and size in units of the image's sides."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / sides(image).repeat(2)


def decode(codes: Tensor, image: Tensor) -> Tensor:
    """The inverse of `encode`, clipped to the image."""
    side = to_device(sides(image), codes.device)
    centre, half = codes[:, :2] * side, codes[:, 2:].clamp_min(0) * side / 2
    return torch.cat([centre - half, centre + half], 1).clamp_min(0).minimum(side.repeat(2))
