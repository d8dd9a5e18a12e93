"""Captions of scenes: what they state, and whether a sentence is true of a scene."""

import pytest

from dltrain.data.scene_captions import is_true, write_captions
from dltrain.data.scenes import SceneObject, Scenes

RED, BLUE = SceneObject(3, "red", (5, 5, 12, 20)), SceneObject(7, "blue", (30, 10, 42, 35))


def test_captions_state_digit_colour_size_and_relation():
    assert write_captions([RED, BLUE]) == write_captions([BLUE, RED]) == [
        "a small red three left of a large blue seven",
        "right of a small red three is a large blue seven",
        "a red three and a blue seven",
        "there is a red three left of a blue seven",
        "the red three is left of the blue seven"]
    assert write_captions([RED]) == ["a small red three", "there is a small red three", "a red three on dark ground",
                                     "the digit three in red", "a small red three alone"]
    under = SceneObject(7, "blue", (6, 30, 16, 50))
    assert write_captions([under, RED])[0] == "a small red three above a blue seven"
    assert write_captions([under, RED, BLUE]) == [
        "a small red three , a blue seven and a large blue seven",
        "a red three , a blue seven and a blue seven",
        "there are a small red three , a blue seven and a large blue seven",
        "there are a red three , a blue seven and a blue seven",
        "from left to right a red three , a blue seven and a blue seven"]


def test_every_caption_is_true_of_its_scene_and_of_few_others():
    scenes = Scenes(48, (14, 26), 3)
    objects = [scenes.draw("val", index).objects for index in range(60)]
    for index, scene in enumerate(objects):
        for sentence in write_captions(scene):
            assert is_true(sentence, scene), (sentence, scene)
            assert sum(is_true(sentence, other) for other in objects) <= 3, (index, sentence)


@pytest.mark.parametrize(("sentence", "expected"), [
    ("a red three and a blue seven", True), ("a blue seven and a red three", True),
    ("a small red three left of a blue seven", True), ("a red three right of a blue seven", False),
    ("a red three above a blue seven", True), ("the red three is below the blue seven", False),
    ("a large red three and a blue seven", False), ("a red three", False),
    ("a red three and a red three", False), ("a red three and a blue six", False),
    ("a green three and a blue seven", False), ("a red three and a blue seven and a blue seven", False),
    ("a red three and", False), ("", False), ("red three left", False), ("a a red three", False),
    ("right of a red three is a blue seven", True), ("left of a red three is a blue seven", False),
    ("right of a red three", False), ("from left to right a red three and a blue seven", True),
    ("from left to right a blue seven and a red three", False),
])
def test_a_sentence_is_true_where_it_names_each_object_and_its_relations_hold(sentence, expected):
    assert is_true(sentence, [RED, BLUE]) is expected


def test_a_size_in_between_is_true_on_its_side_of_the_middle():
    small, large = SceneObject(1, "red", (0, 0, 9, 18)), SceneObject(1, "red", (0, 0, 9, 21))
    assert write_captions([small])[0] == write_captions([large])[0] == "a red one"
    assert is_true("a small red one", [small])
    assert not is_true("a large red one", [small])
    assert is_true("a large red one", [large])
    assert not is_true("a small red one", [large])
