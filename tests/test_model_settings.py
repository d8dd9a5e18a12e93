"""What a model's yaml states for any data: optimizer, clipping and the length as a number of steps."""

import pytest

from dltrain.config import compose, groups
from dltrain.errors import UserError
from dltrain.trainer import planned_steps

OWN_DATA = {"char_rnn": "text", "seq2seq": "pairs", "tagger": "conll", "seq_classifier": "labelled_text",
            "faster_rcnn": "voc_folder", "faster_rcnn_lite0": "voc_folder", "localizer": "voc_folder",
            "fcn8s": "mask_folder", "hypercolumn": "mask_folder", "dilated": "camvid", "captioner": "captions_file",
            "captioner_lite0": "captions_file"}


@pytest.mark.parametrize("model", OWN_DATA)
def test_no_model_starts_with_the_rate_of_another_kind(model):
    config = compose.compose([f"model={model}", f"data={OWN_DATA[model]}", "recipe=none"]).config
    assert config.task.optimizer.name == "adam"
    assert config.task.optimizer.lr <= 5e-3
    assert config.trainer.gradient_clip_norm
    assert (config.trainer.max_epochs, config.trainer.max_steps) == (None, None)
    assert config.trainer.target_steps >= 600


def test_every_recipe_states_its_length_and_its_clipping():
    """So that the settings of a model, which may change, do not change a recipe's result."""
    for name in groups.names("recipe"):
        file = groups.path_of("recipe", name)
        model, _, _ = name.partition("-on-")
        path = groups.path_of("model", model)
        if file is None or path is None or groups.stated(path, "trainer", "target_steps") is None:
            continue
        keys = groups.stated(file, "trainer", "max_epochs"), groups.stated(file, "trainer", "max_steps")
        assert any(keys), name
        text = "".join(base.read_text() for base in (file, *groups.bases(file)))
        assert "gradient_clip_norm" in text, name
        assert "optimizer" in text, name


@pytest.mark.parametrize(("words", "batches", "expected"), [
    (["trainer.target_steps=1000"], 300, (900, 3)),
    (["trainer.target_steps=1000"], 5000, (5000, 1)),
    (["trainer.target_steps=1000", "trainer.accumulate_batches=4"], 300, (975, 13)),
    (["trainer.target_steps=1000", "trainer.max_steps=70"], 300, (70, 1)),
    (["trainer.target_steps=1000", "trainer.max_epochs=2"], 300, (600, 2))])
def test_target_steps_become_whole_epochs_unless_a_limit_is_set(words, batches, expected):
    config = compose.compose(["recipe=none", "trainer.max_epochs=null", *words]).config
    assert planned_steps(config, batches) == expected


def test_some_length_is_needed():
    config = compose.compose(["recipe=none", "trainer.max_epochs=null"]).config
    with pytest.raises(UserError, match="max_epochs, max_steps and target_steps are null"):
        planned_steps(config, 10)


def test_the_source_of_the_settings_is_announced(dltrain):
    out = dltrain("model=char_rnn", "recipe=none", "trainer=smoke", "data.window=8")[1]
    assert out.startswith("char_rnn on stdlib, no recipe for this pair, settings of model=char_rnn; folder outputs/")
    out = dltrain("recipe=none", "trainer=smoke", "model.depth=8")[1]
    assert out.startswith("resnet20 on digits, no recipe for this pair, defaults; folder outputs/")
