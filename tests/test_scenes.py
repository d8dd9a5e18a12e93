"""Scenes of coloured digits: a pure function of split and index, boxes and masks that agree with the pixels."""

import torch
from torchvision.ops import box_iou

from dltrain.data.scenes import COLOURS, Scenes, tight_box


def test_a_scene_is_a_function_of_split_and_index():
    scenes, again = Scenes(64, (14, 32)), Scenes(64, (14, 32))
    expected, scene = scenes.draw("train", 7), again.draw("train", 7)
    assert torch.equal(scene.image, expected.image)
    assert torch.equal(scene.mask, expected.mask)
    assert scene.objects == expected.objects
    assert not torch.equal(scenes.draw("train", 8).image, expected.image)
    assert not torch.equal(scenes.draw("val", 7).image, expected.image)


def test_boxes_are_tight_around_strokes_of_the_right_colour():
    scenes, counts, num_alone, darkest = Scenes(64, (14, 32)), [], 0, 255
    for index in range(40):
        image, objects, mask = scenes.draw("val", index)
        assert image.shape == (3, 64, 64)
        assert {int(value) for value in mask.unique()} == {0} | {obj.digit + 1 for obj in objects}
        counts.append(len(objects))
        darkest = min(darkest, int(image.min()))
        boxes = torch.tensor([obj.box for obj in objects])
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for obj, overlap in zip(objects, box_iou(boxes, boxes), strict=True):
            x1, y1, x2, y2 = obj.box
            inside[y1:y2, x1:x2] = True
            stroke = mask[y1:y2, x1:x2] == obj.digit + 1
            paint = torch.tensor(COLOURS[obj.colour])[:, None, None]
            opaque = (image[:, y1:y2, x1:x2] == paint).all(0)
            assert (opaque & stroke).any(), "the middle of a stroke has its colour"
            if overlap.gt(0).sum() == 1:  # no other box covers a corner of this one
                assert tight_box(stroke) == (0, 0, x2 - x1, y2 - y1)
                num_alone += 1
        assert not mask[~inside].any(), "all strokes lie in boxes"
    assert set(counts) == {1, 2, 3, 4}
    assert num_alone > 60
    assert darkest == 0
