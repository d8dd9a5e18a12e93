"""A classifier of windows that slides over a whole image in one pass: its fully connected layers are convolutions.

P. Sermanet et al., "OverFeat", 2013, arXiv 1312.6229, section 3.5 and figure 5. Neighbouring windows share almost all
of their computation; a layer that is fully connected over a window's map is a convolution over a larger map.

As a detector (section 4) it also predicts a box from each window; the windows of several scales vote, and overlapping
boxes of one class are merged into one.

Differs from the paper: two convolutions in the place of five, none of them padded, so that a window's outputs do not
depend on its position; one offset in the place of nine, so windows lie `stride` = 4 px apart. The detector has an
additional class for background, one box for all classes, smooth L1, and merges by the mean weighted by scores.

B images, C channels, K classes, N windows of an image; a map of h x w windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.ops import boxes as box_ops

from dltrain.batches import to_device
from dltrain.contracts import ClassLossOf

Target = dict[str, Tensor]


class OverFeat(nn.Module):
    """`window_px`: the side of a window, which two poolings reduce to a quarter. Raises ValueError unless it is a
    multiple of 4 and at least 16."""

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
        """(B, C, H, W) to the logits (B, K, h, w) of all windows: [..., i, j] has those of the window whose upper left
        corner is in row 4 i, column 4 j."""
        maps = F.relu(convolve(self.features(images), self.hidden, self.map_px))
        return convolve(maps, self.head, 1)


class WindowSampler:
    """Chooses at random which windows of each image are in the loss: up to a quarter of `windows` with objects, and
    background."""

    def __init__(self, windows: int):
        self.windows = windows

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """`labels` of the windows of each image: 1 with an object, 0 background, -1 not sampled. Returns for each image
        the indices of the windows with objects, and of those without."""
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for of_image in labels:
            objects, background = ((of_image == kind).nonzero()[:, 0] for kind in (1, 0))
            chosen[0].append(objects[torch.randperm(len(objects))[: self.windows // 4]])
            chosen[1].append(background[torch.randperm(len(background))[: self.windows - len(chosen[0][-1])]])
        return chosen


class OverFeatDetector(nn.Module):
    """`scales`: factors by which the image is scaled before the windows slide over it. `windows`: how many of an image
    are in the loss, at most a quarter of them with objects. A window has an object where its IoU with the object's
    square, whose side is the object's longer one, is at least 0.5, and is background below 0.3."""

    losses = ("loss_classifier", "loss_box_reg")
    matches_on_host = True  # how many windows have an object decides the shapes of the loss
    class_loss: ClassLossOf = staticmethod(F.cross_entropy)

    def __init__(self, num_classes: int, in_channels: int, width: int, hidden: int, window_px: int,
                 scales: Sequence[float], windows: int, score_threshold: float, nms: float):
        super().__init__()
        self.num_classes, self.scales = num_classes, tuple(scales)
        self.background = num_classes
        self.window_sampler = WindowSampler(windows)
        self.score_threshold, self.nms = score_threshold, nms
        self.net = OverFeat(num_classes + 1 + 4, in_channels, width, hidden, window_px)
        self.margin = window_px // 4  # px around the scaled image: windows may reach beyond its edge

    def slide(self, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Images to logits (B, N, K + 1), background last, box codes (B, N, 4) and the N windows of all scales (N, 4)
        in pixels of the images, on the host. Smaller images are padded to the size of the largest."""
        h, w = (max(image.shape[side] for image in images) for side in (1, 2))
        padded = torch.stack([F.pad(image, (0, w - image.shape[2], 0, h - image.shape[1])) for image in images])
        outputs, windows = [], []
        for scale in self.scales:
            size = (round(h * scale), round(w * scale))
            scaled = F.interpolate(padded, size=size, mode="bilinear", antialias=scale < 1)
            out = self.net.dense(F.pad(scaled, (self.margin,) * 4))
            outputs.append(out.flatten(2).transpose(1, 2))
            corners = torch.cartesian_prod(*map(torch.arange, out.shape[2:])).flip(1)
            corners = corners * self.net.stride - self.margin
            of_scale = torch.cat([corners, corners + self.net.window_px], 1)
            windows.append(of_scale * torch.tensor([w / size[1], h / size[0]] * 2))
        output = torch.cat(outputs, 1)
        return output[..., :-4], output[..., -4:], torch.cat(windows)

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        logits, codes, windows = self.slide(images)
        matched = [self.match(windows, target) for target in targets]
        samples = self.window_sampler([torch.where(labels < 0, -1, (labels < self.num_classes).long())
                                       for labels, _ in matched])
        places, expected_labels, object_places, expected_codes = [], [], [], []  # a place: (image, window)
        for index, (target, (labels, objects), *sampled_windows) in enumerate(
                zip(targets, matched, *samples, strict=True)):
            sampled = torch.cat(sampled_windows)
            places.append(torch.stack([torch.full_like(sampled, index), sampled]))
            expected_labels.append(labels[sampled])
            with_object = sampled[labels[sampled] < self.num_classes]
            object_places.append(torch.stack([torch.full_like(with_object, index), with_object]))
            expected_codes.append(encode(target["boxes"][objects[with_object]], windows[with_object]))
        image, window = to_device(torch.cat(places, 1), logits.device)
        image_with, window_with = to_device(torch.cat(object_places, 1), logits.device)
        labels = to_device(torch.cat(expected_labels), logits.device)
        of_objects = to_device(torch.cat(expected_codes), codes.device)
        return {"loss_classifier": self.class_loss(logits[image, window], labels),
                "loss_box_reg": F.smooth_l1_loss(codes[image_with, window_with], of_objects, beta=0.1,
                                                 reduction="sum") / max(1, len(image_with))}

    def match(self, windows: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Per window: the class label (num_classes = background, -1 = ignored), and the index of the object with the
        highest IoU (0 where there are no objects)."""
        labels = torch.full((len(windows),), self.num_classes)
        if not len(target["labels"]):
            return labels, labels.new_zeros(len(windows))
        overlap, objects = box_iou(windows, squares(target["boxes"])).max(1)
        labels[overlap >= 0.3] = -1
        return torch.where(overlap >= 0.5, target["labels"][objects], labels), objects

    def detect(self, images: list[Tensor]) -> list[Target]:
        """At most 100 boxes (N, 4), labels and scores of each image, best first."""
        logits, codes, windows = self.slide(images)
        windows, detections = to_device(windows, codes.device), []
        for image, probabilities, code in zip(images, logits.softmax(2)[..., :-1], codes, strict=True):
            indices, label = (probabilities > self.score_threshold).nonzero(as_tuple=True)
            score, boxes = probabilities[indices, label], decode(code[indices], windows[indices])
            h, w = image.shape[1:]
            boxes = boxes.clamp_min(0).minimum(boxes.new_tensor([w, h, w, h]))
            kept = box_ops.batched_nms(boxes, score, label, self.nms)[:100]
            detections.append({"boxes": merge(boxes, score, label, kept, self.nms), "labels": label[kept],
                               "scores": score[kept]})
        return detections


def squares(boxes: Tensor) -> Tensor:
    """(N, 4): squares with the centre and the longer side of each box."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)


def encode(boxes: Tensor, windows: Tensor) -> Tensor:
    """(N, 4): the offset of the box's centre from the window's, and the logarithms of the box's sides, both in units of
    the window's side."""
    side = windows[:, 2:] - windows[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:] - windows[:, :2] - windows[:, 2:]) / 2
    return torch.cat([centre / side, ((boxes[:, 2:] - boxes[:, :2]) / side).log()], 1)


def decode(codes: Tensor, windows: Tensor) -> Tensor:
    """The inverse of `encode`."""
    side = windows[:, 2:] - windows[:, :2]
    centre, half = (windows[:, :2] + windows[:, 2:]) / 2 + codes[:, :2] * side, codes[:, 2:].exp() * side / 2
    return torch.cat([centre - half, centre + half], 1)


def merge(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, min_iou: float) -> Tensor:
    """Each box of the indices `kept` becomes the mean, weighted by scores, of the boxes of its class whose IoU with it
    is at least `min_iou`."""
    weight = scores * (box_iou(boxes[kept], boxes) >= min_iou) * (labels[kept, None] == labels)
    return weight @ boxes / weight.sum(1, keepdim=True)


def convolve(maps: Tensor, layer: nn.Linear, px: int) -> Tensor:
    """The fully connected layer on each px x px window of the maps (B, C, h, w), its weights as a kernel."""
    return F.conv2d(maps, layer.weight.view(layer.out_features, -1, px, px), layer.bias)


def windows_of(images: Tensor, px: int, stride: int) -> Tensor:
    """(B, C, H, W) to all windows (B * h * w, C, px, px), in the order of `dense`."""
    windows = images.unfold(2, px, stride).unfold(3, px, stride)  # (B, C, h, w, px, px)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
