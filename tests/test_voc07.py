"""VOC 2007's AP against the development kit's procedure, written out with numpy: a class at a time over all images."""

import numpy as np
import pytest
import torch

from dltrain.batches import generator
from dltrain.tasks.voc07 import Voc07AveragePrecision

FROM_ONE = np.array([1.0, 1, 0, 0])  # VOC counts pixels from 1 and includes the last one


def devkit_ap(label, detections, targets):
    """VOCevaldet.m: all detections of a class by falling confidence, in VOC's coordinates, which include the last
    pixel."""
    objects, positives = [], 0
    for target in targets:
        of_class = target["labels"].numpy() == label
        boxes = target["boxes"].numpy()[of_class].astype(float) + FROM_ONE
        difficult = target["iscrowd"].numpy()[of_class].astype(bool)
        objects.append({"boxes": boxes, "difficult": difficult, "detected": np.zeros(len(boxes), bool)})
        positives += int((~difficult).sum())
    if positives == 0:
        return None
    rows = [(float(score), number, box.astype(float) + FROM_ONE) for number, one in enumerate(detections)
            for score, box, name in zip(one["scores"].numpy(), one["boxes"].numpy(), one["labels"].numpy(), strict=True)
            if name == label]
    rows.sort(key=lambda row: -row[0])
    true, false = np.zeros(len(rows)), np.zeros(len(rows))
    for place, (_, number, box) in enumerate(rows):
        truth, best, best_overlap = objects[number], -1, -np.inf
        for index, other in enumerate(truth["boxes"]):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                union = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                         + (other[2] - other[0] + 1) * (other[3] - other[1] + 1) - width * height)
                if width * height / union > best_overlap:
                    best, best_overlap = index, width * height / union
        if best_overlap >= 0.5:
            if truth["difficult"][best]:
                continue
            true[place] = not truth["detected"][best]
            false[place] = truth["detected"][best]
            truth["detected"][best] = True
        else:
            false[place] = 1
    true, false = np.cumsum(true), np.cumsum(false)
    recall, precision = true / positives, true / np.maximum(true + false, 1e-300)
    return np.mean([precision[recall >= at - 1e-9].max(initial=0) for at in np.linspace(0, 1, 11)])


def random_set(number):
    """Eight images of up to five objects of three classes, a third of them difficult, and detections around them."""
    rng = generator("voc07", number)
    detections, targets = [], []
    for _ in range(8):
        count = int(torch.randint(0, 6, (1,), generator=rng))
        corner, size = (torch.randint(low, high, (count, 2), generator=rng) for low, high in ((0, 30), (6, 30)))
        targets.append({"boxes": torch.cat([corner, corner + size], 1).float(),
                        "labels": torch.randint(3, (count,), generator=rng),
                        "iscrowd": (torch.rand(count, generator=rng) < 0.33).long()})
        near = targets[-1]["boxes"].repeat(2, 1) + torch.randint(-4, 5, (2 * count, 4), generator=rng)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        detections.append({"boxes": near, "scores": torch.rand(2 * count, generator=rng),
                           "labels": torch.where(torch.rand(2 * count, generator=rng) < 0.8,
                                                 targets[-1]["labels"].repeat(2),
                                                 torch.randint(3, (2 * count,), generator=rng))})
    return detections, targets


@pytest.mark.parametrize("number", range(200))
def test_it_is_the_ap_of_the_development_kit(number):
    detections, targets = random_set(number)
    metric = Voc07AveragePrecision(3)
    for start in (0, 3, 5):  # in batches
        stop = {0: 3, 3: 5, 5: 8}[start]
        metric.update(detections[start:stop], targets[start:stop])
    expected = [ap for label in range(3) if (ap := devkit_ap(label, detections, targets)) is not None]
    assert float(metric.compute()) == pytest.approx(float(np.mean(expected)), abs=1e-9)


def test_a_difficult_object_is_neither_missed_nor_a_reason_for_a_false_alarm():
    box = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    target = {"boxes": box, "labels": torch.tensor([0, 0]), "iscrowd": torch.tensor([0, 1])}
    metric = Voc07AveragePrecision(1)
    metric.update([{"boxes": box[[1, 1, 0]], "labels": torch.zeros(3).long(), "scores": torch.tensor([0.9, 0.8, 0.7])}],
                  [target])
    assert float(metric.compute()) == 1
    metric.reset()
    assert bool(metric.compute().isnan())


@pytest.mark.parametrize("number", [None, 0, 1])
def test_it_is_that_of_all_images_of_several_processes(number):
    """Two processes that have the same images, or none with an object."""
    detections, targets = random_set(number) if number is not None else ([], [])
    one, of_both = Voc07AveragePrecision(3), Voc07AveragePrecision(3)
    one.update(detections, targets)
    of_both.update([*detections, *detections], [*targets, *targets])
    one.dist_sync_fn = lambda tensor, group: [tensor, tensor]
    one.distributed_available_fn = lambda: True
    assert one.compute().item() == pytest.approx(of_both.compute().item(), nan_ok=True)
