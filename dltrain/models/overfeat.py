"""A classifier of windows that sees a whole image at once: its fully connected layers are convolutions.

P. Sermanet et al., "OverFeat", 2013, arXiv 1312.6229, section 3.5 and figure 5. Neighbouring windows share almost all
of their computation; a layer that is fully connected over a window's map is a convolution over a larger one.

As a detector (section 4) each window also gives the box of its object; windows of several scales vote, and boxes of one
class that overlap are merged into one.

Differs from the paper: two convolutions in the place of five, none of them padded, so that a window's outputs do not
depend on where it stands; one offset in the place of nine, so windows lie `stride` = 4 px apart. The detector has the
background as a class of its own, one box whatever the class, smooth L1, and merges by the mean weighted by scores.

B images, C channels, K classes; a map of h x w windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

Target = dict[str, Tensor]


class OverFeat(nn.Module):
    """Raises ValueError for a window whose maps do not divide evenly: window_px must be 4n, at least 16."""

    stride = 4

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16, hidden: int = 128, window_px: int = 32):
        super().__init__()
        if window_px % 4 or window_px < 16:
            raise ValueError(f"window_px must be a multiple of 4, at least 16, but is {window_px}")
        self.window_px, self.map_px = window_px, window_px // 4 - 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Linear(2 * width * self.map_px**2, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, C, window_px, window_px) to logits (B, K)."""
        return self.head(F.relu(self.hidden(self.features(windows).flatten(1))))

    def dense(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to the logits (B, K, h, w) of every window, 4 px apart: [.., i, j] is that of the window whose
        upper left corner is at (4 i, 4 j)."""
        maps = F.relu(convolved(self.features(images), self.hidden, self.map_px))
        return convolved(maps, self.head, 1)


class OverFeatDetector(nn.Module):
    """`scales`: of the images that the windows slide over; an object is for the windows that its square, of its longer
    side, overlaps by half. `windows`: of an image in the loss, a quarter of them with objects."""

    losses = ("loss_classifier", "loss_box_reg")

    def __init__(self, num_classes: int, in_channels: int, width: int, hidden: int, window_px: int,
                 scales: Sequence[float], windows: int, score_threshold: float, nms: float):
        super().__init__()
        self.num_classes, self.scales, self.windows = num_classes, tuple(scales), windows
        self.score_threshold, self.nms = score_threshold, nms
        self.net = OverFeat(num_classes + 1 + 4, in_channels, width, hidden, window_px)
        self.margin = window_px // 4  # px around the scaled image: windows may stand over its edge

    def look(self, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """To logits (B, N, K + 1), the background the last, box codes (B, N, 4) and the N windows (N, 4) in pixels of
        the images, those of all scales. Smaller images are filled up to the largest."""
        h, w = (max(image.shape[side] for image in images) for side in (1, 2))
        filled = torch.stack([F.pad(image, (0, w - image.shape[2], 0, h - image.shape[1])) for image in images])
        outputs, places = [], []
        for scale in self.scales:
            size = (round(h * scale), round(w * scale))
            scaled = F.interpolate(filled, size=size, mode="bilinear", antialias=scale < 1)
            out = self.net.dense(F.pad(scaled, (self.margin,) * 4))
            outputs.append(out.flatten(2).transpose(1, 2))
            corners = torch.cartesian_prod(*(torch.arange(n, device=out.device) for n in out.shape[2:])).flip(1)
            corners = corners * self.net.stride - self.margin
            windows = torch.cat([corners, corners + self.net.window_px], 1)
            places.append(windows * windows.new_tensor([w / size[1], h / size[0]] * 2, dtype=torch.float))
        found = torch.cat(outputs, 1)
        return found[..., :-4], found[..., -4:], torch.cat(places)

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        logits, codes, windows = self.look(images)
        scores, wanted_labels, boxes, wanted_boxes = [], [], [], []
        for place, target in enumerate(targets):
            labels, owner = self.owners(windows, target)
            chosen = self.drawn(labels)
            scores.append(logits[place, chosen])
            wanted_labels.append(labels[chosen])
            with_object = chosen[labels[chosen] < self.num_classes]
            boxes.append(codes[place, with_object])
            wanted_boxes.append(coded(target["boxes"][owner[with_object]], windows[with_object]))
        count = max(1, sum(map(len, boxes)))
        return {"loss_classifier": F.cross_entropy(torch.cat(scores), torch.cat(wanted_labels)),
                "loss_box_reg": F.smooth_l1_loss(torch.cat(boxes), torch.cat(wanted_boxes), beta=0.1,
                                                 reduction="sum") / count}

    def owners(self, windows: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Of each window the label, num_classes for the ground and -1 where it is neither; and the number of the
        object that it overlaps most, 0 where there is none."""
        labels = torch.full((len(windows),), self.num_classes, device=windows.device)
        if not len(target["labels"]):
            return labels, labels.new_zeros(len(windows))
        overlap, owner = box_iou(windows, squares(target["boxes"])).max(1)
        labels[overlap >= 0.3] = -1
        return torch.where(overlap >= 0.5, target["labels"][owner], labels), owner

    def drawn(self, labels: Tensor) -> Tensor:
        """The windows of the loss: up to a quarter with objects, the rest of the ground."""
        objects = ((labels >= 0) & (labels < self.num_classes)).nonzero()[:, 0]
        ground = (labels == self.num_classes).nonzero()[:, 0]
        objects = objects[torch.randperm(len(objects), device=labels.device)[: self.windows // 4]]
        ground = ground[torch.randperm(len(ground), device=labels.device)[: self.windows - len(objects)]]
        return torch.cat([objects, ground])

    def detect(self, images: list[Tensor]) -> list[Target]:
        """At most 100 boxes (N, 4), labels and scores of each image, best first."""
        logits, codes, windows = self.look(images)
        found = []
        for image, chances, code in zip(images, logits.softmax(2)[..., :-1], codes, strict=True):
            place, label = (chances > self.score_threshold).nonzero(as_tuple=True)
            score, boxes = chances[place, label], decoded(code[place], windows[place])
            h, w = image.shape[1:]
            boxes = boxes.clamp_min(0).minimum(boxes.new_tensor([w, h, w, h]))
            kept = batched_nms(boxes, score, label, self.nms)[:100]
            found.append({"boxes": merged(boxes, score, label, kept, self.nms), "labels": label[kept],
                          "scores": score[kept]})
        return found


def squares(boxes: Tensor) -> Tensor:
    """(N, 4): the square around each box's centre with its longer side."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)


def coded(boxes: Tensor, windows: Tensor) -> Tensor:
    """(N, 4): the box's centre from the window's in units of its side, and the logarithms of its sides in them."""
    side = windows[:, 2:] - windows[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:] - windows[:, :2] - windows[:, 2:]) / 2
    return torch.cat([centre / side, ((boxes[:, 2:] - boxes[:, :2]) / side).log()], 1)


def decoded(codes: Tensor, windows: Tensor) -> Tensor:
    """The inverse of `coded`."""
    side = windows[:, 2:] - windows[:, :2]
    centre, half = (windows[:, :2] + windows[:, 2:]) / 2 + codes[:, :2] * side, codes[:, 2:].exp() * side / 2
    return torch.cat([centre - half, centre + half], 1)


def merged(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, least: float) -> Tensor:
    """The boxes that were kept, each the mean of those of its class that overlap it by `least`, weighted by scores."""
    weight = scores * (box_iou(boxes[kept], boxes) >= least) * (labels[kept, None] == labels)
    return weight @ boxes / weight.sum(1, keepdim=True)


def convolved(maps: Tensor, layer: nn.Linear, px: int) -> Tensor:
    """The fully connected layer on each px x px piece of (B, C, h, w): its weights as a kernel."""
    return F.conv2d(maps, layer.weight.view(layer.out_features, -1, px, px), layer.bias)


def windows_of(images: Tensor, px: int, stride: int) -> Tensor:
    """(B, C, H, W) to every window, (B * h * w, C, px, px), in the order of `dense`."""
    cut = images.unfold(2, px, stride).unfold(3, px, stride)  # (B, C, h, w, px, px)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
