"""Captions: sentences and their truth, files, the decoder against the equations of the deck, scores against loops."""

import json
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from dltrain.callbacks.captions import captioned
from PIL import Image

from dltrain import build, cli, run
from dltrain.batches import END, PAD, START, BatchError, CaptionBatch, generator
from dltrain.data.caption_files import CaptionLines, Flickr8k
from dltrain.data.captioning import stack_captions
from dltrain.data.coco import CocoCaptions
from dltrain.data.datamodule import SPLITS
from dltrain.data.scene_captions import is_true, write_captions
from dltrain.data.scenes import SceneObject, Scenes
from dltrain.errors import DataError, UserError
from dltrain.models.captioner import Captioner
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.tasks.captioning import scores
from dltrain.tasks.decoding import beam, starts, written
from tests.test_resume import assert_a_crash_changes_nothing

WORDS = ["model=captioner", "model.backbone.depth=8", "data.num_train=24", "data.batch_size=8", "trainer=cpu",
         "trainer.max_epochs=2", "task.optimizer.lr=0.005", "recipe=none", "model.hidden=16", "model.embedding=8",
         "data._target_=tests.test_captions.FewCaptions"]


class FewCaptions:
    """24 + 8 + 8 scenes with their sentences."""

    def __new__(cls, **keys):
        from dltrain.data.scene_captions import SceneCaptions

        data = SceneCaptions(**keys)
        data.num_scenes = {"train": data.num_scenes["train"], "val": 8, "test": 8}
        return data


def captioner(**keys) -> Captioner:
    torch.manual_seed(0)
    return Captioner(CifarResNet(8), **{"vocab_size": 11, "cell": "lstm", "hidden": 6, "layers": 1, "embedding": 5,
                                        "enter": "first_state", "pool_px": 2, "attention": False, "map_px": 4,
                                        "attention_units": 3, **keys})


RED, BLUE = SceneObject(3, "red", (5, 5, 12, 20)), SceneObject(7, "blue", (30, 10, 42, 35))


def test_captions_state_digit_colour_size_and_relation():
    assert write_captions([RED, BLUE]) == write_captions([BLUE, RED])
    assert write_captions([RED, BLUE])[0] == "a small red three left of a large blue seven"
    assert write_captions([RED, BLUE])[1] == "right of a small red three is a large blue seven"
    assert write_captions([RED])[3] == "the digit three in red"
    under = SceneObject(7, "blue", (6, 30, 16, 50))
    assert write_captions([under, RED])[0] == "a small red three above a blue seven"
    assert write_captions([under, RED, BLUE])[0] == "a small red three , a blue seven and a large blue seven"


def test_every_reference_is_true_of_its_scene_and_of_few_others():
    scenes = Scenes(48, (14, 26), 3)
    objects = [scenes.draw("val", index).objects for index in range(60)]
    for index, scene in enumerate(objects):
        for sentence in write_captions(scene):
            assert is_true(sentence, scene), (sentence, scene)
            assert sum(is_true(sentence, other) for other in objects) <= 3, (index, sentence)


@pytest.mark.parametrize(("sentence", "true"), [
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
def test_truth(sentence, true):
    assert is_true(sentence, [RED, BLUE]) is true


def test_a_size_in_between_is_true_on_its_side_of_the_middle():
    small, large = SceneObject(1, "red", (0, 0, 9, 18)), SceneObject(1, "red", (0, 0, 9, 21))
    assert write_captions([small])[0] == write_captions([large])[0] == "a red one"
    assert is_true("a small red one", [small])
    assert not is_true("a large red one", [small])
    assert is_true("a large red one", [large])


def test_padding_never_counts(config):
    found = config(*WORDS)
    data, task = build.build_data(found), build.build_task(found)
    task.fit_statistics(data)
    batch = next(data.read("train", [torch.arange(3)]))
    images = task.augment(batch).images
    task.eval()
    total, count = task.loss_sum(images, batch.captions)
    logits = task.model(images, batch.captions[:, :, :-1])
    alone = []
    for image in range(3):
        for row, caption in enumerate(batch.captions[image].tolist()):
            length = len([word for word in caption if word != PAD])
            for place in range(length - 1):
                alone.append(-float(logits[image, row, place].log_softmax(0)[caption[place + 1]]))
    assert int(count) == len(alone)
    assert float(total) == pytest.approx(sum(alone), rel=1e-5)
    wider = F.pad(batch.captions, (0, 3, 0, 2))
    again, words = task.loss_sum(images, wider)
    assert int(words) == int(count)
    assert float(again) == pytest.approx(float(total), rel=1e-5)


def test_batches_have_every_reference():
    rows = stack_captions([[[START, 5, END], [START, 5, 6, END]], [[START, 7, END]], []])
    assert rows.tolist() == [[[START, 5, END, PAD], [START, 5, 6, END]], [[START, 7, END, PAD], [PAD] * 4],
                             [[PAD] * 4, [PAD] * 4]]
    batch = CaptionBatch(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), rows, torch.tensor([0, 1, -1]))
    batch.check(8)
    with pytest.raises(BatchError, match="each caption must begin with START"):
        batch._replace(captions=rows.clone().fill_(5)).check(8)
    with pytest.raises(BatchError, match=r"captions must be int64 in \[0, 7\), but the first batch has 7"):
        batch.check(7)


def test_the_first_steps_are_the_decks_equations():
    """h1 = g(W_i i + W_x x(START) + b), ht = g(W_x xt + W_h ht-1 + b), o = W_o h, with W_i = W_h P."""
    model = captioner(cell="rnn").eval()
    image = torch.randn(1, 3, 64, 64, generator=generator("deck"))
    i = F.adaptive_avg_pool2d(model.backbone.features(image), 2).flatten(1)[0]
    w_x, w_h, b_x, b_h = model.recurrent.weights(0)
    p, p_bias = model.image.weight, model.image.bias
    x = model.words.table.weight
    h = torch.tanh(w_h @ (p @ i + p_bias) + w_x @ x[START] + b_x + b_h)
    expected = [model.head.weight @ h + model.head.bias]
    for word in (5, 7):
        h = torch.tanh(w_x @ x[word] + b_x + w_h @ h + b_h)
        expected.append(model.head.weight @ h + model.head.bias)
    logits = model(image, torch.tensor([[[START, 5, 7]]]))[0, 0]
    torch.testing.assert_close(logits, torch.stack(expected))
    state = model.begin(image)
    for word, expected_logits in zip((START, 5, 7), expected, strict=True):
        logits, state = model.step(torch.tensor([word]), state)
        torch.testing.assert_close(logits[0], expected_logits)


def test_show_and_tell_reads_the_image_as_the_first_word():
    model = captioner(enter="first_input", layers=2).eval()
    image = torch.randn(2, 3, 64, 64, generator=generator("tell"))
    i = model.image(F.adaptive_avg_pool2d(model.backbone.features(image), 2).flatten(1))
    words = model.words(torch.tensor([[START, 4], [START, 9]]))
    h, _ = model.recurrent(torch.cat([i[:, None], words], 1))
    expected = model.head(h[:, 1:])
    torch.testing.assert_close(model(image, torch.tensor([[[START, 4]], [[START, 9]]]))[:, 0], expected)


def test_attention_equals_the_papers_equations():
    """Section 4.2 and equation 4 to 6 with a loop over places; z beside the word and beside h."""
    model = captioner(attention=True).eval()
    torch.nn.init.normal_(model.place_embedding)
    image = torch.randn(1, 3, 64, 64, generator=generator("attend"))
    maps = F.adaptive_avg_pool2d(model.backbone.features(image), 4)[0]
    attended, state = model.begin(image)
    h, c = state[-1][0][0], state[-1][1][0]
    places = [maps[:, n // 4, n % 4] + model.place_embedding[n] for n in range(16)]
    energy = torch.stack([model.score.weight[0] @ torch.tanh(
        model.place_keys.weight @ a + model.place_keys.bias + model.state_query.weight @ h) for a in places])
    alpha = energy.exp() / energy.exp().sum()
    z = sum(w * a for w, a in zip(alpha, places, strict=True)) * torch.sigmoid(model.gate.weight[0] @ h
                                                                              + model.gate.bias)
    w_x, w_h, b_x, b_h = model.recurrent.weights(0)
    gates = w_x @ torch.cat([model.words.table.weight[START], z]) + b_x + w_h @ h + b_h
    i, f, g, o = gates.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    expected = model.head.weight @ torch.cat([h, z]) + model.head.bias
    out, _ = model.step(torch.tensor([START]), (attended, state))
    torch.testing.assert_close(out[0], expected)
    weights = model.attention_maps(image, torch.tensor([[START, 5]]))
    assert weights.shape == (1, 2, 4, 4)
    torch.testing.assert_close(weights[0, 0].flatten(), alpha)


@pytest.mark.parametrize("attention", [False, True])
def test_beam_one_is_greedy_and_scores_are_the_sums_of_log_probabilities(attention):
    model = captioner(attention=attention).eval()
    model.head.weight.data *= 6
    images = torch.randn(3, 3, 64, 64, generator=generator("beam"))
    with torch.no_grad():
        greedy, score = written(model.step, model.begin(images), starts(3, images.device), 6)
        single, single_score = beam(model.step, model.begin(images), starts(3, images.device), 6, 1)
        assert single[:, 0].tolist() == greedy.tolist()
        torch.testing.assert_close(single_score[:, 0], score)
        sentences, beam_scores = beam(model.step, model.begin(images), starts(3, images.device), 6, 4)
        read = torch.cat([torch.full((3, 4, 1), START), sentences], 2)
        logits = model(images, read[:, :, :-1])
        log_p = logits.log_softmax(3).gather(3, sentences[..., None])[..., 0].masked_fill(
            sentences == PAD, 0).sum(2)
    torch.testing.assert_close(beam_scores, log_p)
    by_length = beam_scores / (sentences != PAD).sum(2)
    assert (by_length[:, :-1] >= by_length[:, 1:] - 1e-5).all()
    assert len({tuple(row) for row in sentences[0].tolist()}) == 4


def test_sampled_words_are_read_where_the_mask_says_so():
    model = captioner().eval()
    model.head.weight.data *= 6
    images = torch.randn(1, 3, 64, 64, generator=generator("own"))
    true = torch.tensor([[[START, 5, 6, 7]]])
    none_sampled = model(images, true, torch.zeros(1, 1, 4, dtype=torch.bool))
    torch.testing.assert_close(none_sampled, model(images, true))
    all_sampled = model(images, true, torch.ones(1, 1, 4, dtype=torch.bool))
    likeliest = [START]
    for _ in range(3):
        likeliest.append(int(model(images, torch.tensor([[likeliest]]))[0, 0, -1].argmax()))
    assert likeliest != true[0, 0].tolist()
    torch.testing.assert_close(all_sampled, model(images, torch.tensor([[likeliest]])))


def test_the_fraction_of_sampled_words_grows_over_the_run(config, run_folder, monkeypatch):
    fractions, forward = [], Captioner.forward

    def recorded(self, images, captions, sampled=None):
        if self.training:
            fractions.append(float(sampled.float().mean()))
        return forward(self, images, captions, sampled)

    monkeypatch.setattr(Captioner, "forward", recorded)
    run.train(config(*WORDS, "task.sampled_share=0.9"), run_folder("sampled"))
    assert len(fractions) == 6
    assert fractions[0] == 0
    for step, fraction in enumerate(fractions):
        assert fraction == pytest.approx(0.9 * step / 6, abs=0.12)


def test_a_frozen_backbone_keeps_weights_and_statistics(config, run_folder):
    def trained_backbone(name, *words):
        path = run_folder(name)
        run.train(config(*WORDS, *words), path)
        saved = torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        return {name: value for name, value in saved.items() if name.startswith("model.backbone.")}

    initial_config = config(*WORDS)
    build.build_data(initial_config)
    initial = build.build_task(initial_config).state_dict()
    frozen, free = trained_backbone("frozen", "task.freezing.until=all"), trained_backbone("free")
    unfrozen = trained_backbone("unfrozen", "task.freezing.until=all", "task.freezing.unfreeze_every_epochs=1")
    assert all(torch.equal(value, initial[name]) for name, value in frozen.items())
    batches = "num_batches_tracked"
    counted = {name: (int(unfrozen[name]), int(free[name])) for name in initial if name.endswith(batches)}
    assert counted["model.backbone.stem.1.num_batches_tracked"] == (0, 6), "three steps an epoch"
    assert counted["model.backbone.blocks.2.convs.0.1.num_batches_tracked"] == (3, 6), "stage3 in the second epoch"
    last = "model.backbone.blocks.2.convs.0.0.weight"
    assert not torch.equal(unfrozen[last], initial[last])


@pytest.mark.parametrize("words", [[], ["task.sampled_share=0.5", "task.freezing.until=all",
                                        "task.freezing.unfreeze_every_epochs=1"]])
def test_a_resumed_run_ends_in_the_same_bits(words, config, run_folder, monkeypatch):
    assert_a_crash_changes_nothing([*WORDS, *words], 4, config, run_folder, monkeypatch)


def test_bleu_equals_a_count_by_hand():
    """Two images: clipped n-gram counts over all, the closest reference's length (Papineni et al., 2002)."""
    told = {0: "a red cat sits on the mat", 1: "the dog runs"}
    references = {0: ["a red cat sits on a mat", "there is a cat on the mat"],
                  1: ["a dog runs fast", "the dog is fast"]}
    found = scores(told, references)
    logs = []
    for n in range(1, 5):
        right = total = 0
        for number, said in told.items():
            def grams(text, n=n):
                words = text.split()
                return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

            mine, most = grams(said), Counter()
            for reference in references[number]:
                most |= grams(reference)
            right += sum((mine & most).values())
            total += sum(mine.values())
        logs.append(math.log(right / total) if right else -math.inf)
        brevity = math.exp(1 - (7 + 4) / (7 + 3))
        wanted = brevity * math.exp(sum(logs) / n)
        assert found[f"bleu_{n}"] == pytest.approx(wanted, abs=1e-6), n


def test_cider_and_rouge_equal_loops():
    """R. Vedantam et al., 2014, 1411.5726, CIDEr-D: clipped tf-idf cosines, a Gaussian on the length, times ten."""
    told = {0: "a red cat on a mat", 1: "the dog runs", 2: "a cat"}
    references = {0: ["a red cat sits on a mat", "there is a cat on the mat"],
                  1: ["a dog runs fast", "the dog is fast"],
                  2: ["a cat", "one cat"]}

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    totals = []
    for number, said in told.items():
        by_n = []
        for n in range(1, 5):
            seen = Counter(gram for every in references.values() for gram in set().union(
                *(grams(one, n) for one in every)))

            def vector(text, n=n, seen=seen):
                return {g: k * (math.log(3) - math.log(max(1, seen[g]))) for g, k in grams(text, n).items()}

            mine, similar = vector(said), []
            for reference in references[number]:
                theirs = vector(reference)
                dot = sum(min(mine[g], theirs[g]) * theirs[g] for g in mine if g in theirs)
                norms = [math.sqrt(sum(v * v for v in one.values())) for one in (mine, theirs)]
                gap = len(said.split()) - len(reference.split())
                similar.append((dot / (norms[0] * norms[1]) if all(norms) else 0.0) * math.exp(-gap**2 / 72))
            by_n.append(sum(similar) / len(similar))
        totals.append(10 * sum(by_n) / 4)
    found = scores(told, references)
    assert found["cider"] == pytest.approx(sum(totals) / 3, abs=1e-6)
    best = []
    for number, said in told.items():
        def common(a, b):
            table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
            for i, x in enumerate(a):
                for j, y in enumerate(b):
                    table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            return table[-1][-1]

        words = said.split()
        shared = [common(words, one.split()) for one in references[number]]
        precision = max(shared) / len(words)
        recall = max(k / len(one.split()) for k, one in zip(shared, references[number], strict=True))
        best.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    assert found["rouge_l"] == pytest.approx(sum(best) / 3, abs=1e-6)


@pytest.fixture
def photos(tmp_path):
    """Flickr8k's own layout: ten photos with two captions each."""
    (tmp_path / "Flicker8k_Dataset").mkdir()
    names = [f"{n}_ab.jpg" for n in range(10)]
    for name in names:
        Image.new("RGB", (40, 30), (90, 40, 20)).save(tmp_path / "Flicker8k_Dataset" / name)
    (tmp_path / "Flickr8k.token.txt").write_text("".join(
        f"{name}#{k}\tA dog number {'one' if k else 'two'} runs , and jumps {name[0]} times .\n"
        for name in names for k in range(2)))
    for split, chosen in (("train", names[:6]), ("dev", names[6:8]), ("test", names[8:])):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(chosen) + "\n")
    return tmp_path


def files_of(kind, root, **keys):
    return kind(**{"root": str(root), "channels": 3, "image_px": 32, "val_share": 0.2, "bad_captions": "refuse",
                   "vocab_size": None, "min_count": 1, "max_length": 25, "bucket_by_length": False, "batch_size": 2,
                   "num_workers": 0, **keys})


def test_the_files_of_flickr8k_are_read(photos):
    data = files_of(Flickr8k, photos)
    data.load()
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 6, "val": 2, "test": 2}
    assert data.references("val", 0)[0] == "a dog number two runs , and jumps 6 times ."
    batch = next(data.read("test", [torch.tensor([1, -1])]))
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.numbers.tolist() == [1, -1]
    assert (batch.captions[1] == PAD).all()
    assert data.join(batch.captions[0, 0, 1:-1].tolist()).startswith("a dog number two runs , and jumps <unk> times")
    (photos / "Flickr_8k.testImages.txt").unlink()
    fewer = files_of(Flickr8k, photos)
    fewer.load()
    assert {split: fewer.num_samples(split) for split in SPLITS} == {"train": 5, "val": 1, "test": 2}


def test_captions_of_similar_length_share_a_batch_only_with_the_key(photos):
    plain, bucketed = files_of(Flickr8k, photos), files_of(Flickr8k, photos, bucket_by_length=True)
    plain.load()
    bucketed.load()
    assert plain.lengths() is None
    assert bucketed.lengths().tolist() == [max(map(len, rows)) for rows in bucketed.captions["train"]]


def test_the_csv_form_and_no_lists(photos):
    (photos / "Flickr8k.token.txt").unlink()
    for file in photos.glob("Flickr_8k*"):
        file.unlink()
    (photos / "captions.txt").write_text("image,caption\n" + "".join(
        f'{n}_ab.jpg,"A dog, number {n} ."\n' for n in range(10)))
    data = files_of(Flickr8k, photos)
    data.load()
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 8, "val": 1, "test": 1}
    assert data.references("train", 0)[0].startswith("a dog , number")


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("Flickr8k.token.txt", "0_ab.jpg#0\tA dog number two runs , and jumps 0 times .", "0_ab.jpg#0\t ",
     r"token.txt:1: the caption is empty; data.bad_captions=drop"),
    ("Flickr8k.token.txt", "0_ab.jpg#1\tA dog number one", "0_ab.jpg#1\tA dog number two",
     r"token.txt:2: 0_ab.jpg has this caption already, at .*token.txt:1"),
    ("Flickr8k.token.txt", "9_ab.jpg#1\tA dog number one runs , and jumps 9 times .", "9_ab.jpg#1\tOui monsieur",
     r"token.txt:20: no word of 'Oui monsieur' is in the vocabulary"),
    ("Flickr8k.token.txt", "1_ab.jpg#0\t", "1_ab.jpg 0 ", r"token.txt:3: must be name.jpg#0<TAB>caption"),
    ("Flickr8k.token.txt", "2_ab.jpg#0", "gone.jpg#0", r"token.txt:5: no image .*gone.jpg"),
    ("Flickr8k.token.txt", "2_ab.jpg#0", "../2_ab.jpg#0", r"token.txt:5: '../2_ab.jpg' must be a name below"),
    ("Flickr_8k.testImages.txt", "9_ab.jpg", "8_ab.jpg", r"testImages.txt:2: 8_ab.jpg is listed already, at .*:1"),
    ("Flickr_8k.testImages.txt", "9_ab.jpg", "0_ab.jpg", r"testImages.txt:2: 0_ab.jpg is in .*trainImages.txt:1 too"),
    ("Flickr_8k.testImages.txt", "9_ab.jpg", "19_ab.jpg", r"testImages.txt:2: 19_ab.jpg has no caption"),
])
def test_each_bad_caption_is_named(photos, file, old, new, message):
    text = (photos / file).read_text()
    assert old in text
    (photos / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        files_of(Flickr8k, photos).load()


def test_bad_captions_are_dropped_and_counted(photos):
    file = photos / "Flickr8k.token.txt"
    file.write_text(file.read_text().replace("A dog number two runs , and jumps 0 times .", "").replace(
        "A dog number one runs , and jumps 9 times .", "Oui"))
    data = files_of(Flickr8k, photos, bad_captions="drop")
    data.load()
    assert data.describe().endswith("2 captions dropped")


def test_lines_of_path_and_caption(photos):
    (photos / "lines.tsv").write_text("".join(
        f"Flicker8k_Dataset/{n}_ab.jpg\ta dog\nFlicker8k_Dataset/{n}_ab.jpg\tone dog\n" for n in range(10)))
    data = files_of(CaptionLines, photos / "lines.tsv")
    data.load()
    assert data.num_samples("train") == 8
    assert data.references("test", 0) == ["a dog", "one dog"]
    (photos / "lines.tsv").write_text("a dog\n")
    with pytest.raises(DataError, match=r"lines.tsv:1: must be path<TAB>caption, but is 'a dog'"):
        files_of(CaptionLines, photos / "lines.tsv").load()


def test_coco_captions(photos):
    def written_to(name, numbers):
        (photos / name).write_text(json.dumps({
            "images": [{"id": n, "file_name": f"{n}_ab.jpg"} for n in numbers],
            "annotations": [{"id": 10 * n + k, "image_id": n, "caption": f"A dog {k}"} for n in numbers
                            for k in range(2)]}, indent=1))

    written_to("train.json", range(7))
    written_to("test.json", range(7, 10))
    keys = {"train_json": "train.json", "train_images": "Flicker8k_Dataset", "test_json": "test.json",
            "test_images": "Flicker8k_Dataset"}
    data = files_of(CocoCaptions, photos, **keys)
    data.load()
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 6, "val": 1, "test": 3}
    file = photos / "test.json"
    file.write_text(file.read_text().replace('"image_id": 8', '"image_id": 80', 1))
    with pytest.raises(DataError, match=r"test.json:\d+ \(annotations id 80\): no image has the id 80"):
        files_of(CocoCaptions, photos, **keys).load()


def test_predict_writes_the_beam_and_the_picture(config, run_folder, monkeypatch, capsys):
    path = run_folder("run")
    result = run.train(config(*WORDS), path)
    assert {"test/bleu_4", "test/cider", "test/rouge_l", "test/caption_accuracy", "val/perplexity"} - result.keys() == {
        "val/perplexity"}
    monkeypatch.setattr("sys.argv", ["dltrain", "predict", f"run={path}", f"input={path}/samples/00.png", "beam=2"])
    assert cli.main() == 0
    (one,) = json.loads((path / "predictions.json").read_text())
    assert len(one["captions"]) == 2
    assert one["captions"][0]["log_probability"] < 0
    with Image.open(path / "predictions/00.png") as picture:
        assert picture.width >= 256
    assert (path / "predictions/00_attention.png").is_file()
    assert "00.png" in capsys.readouterr().out


def test_a_picture_with_its_sentence():
    image = torch.full((3, 32, 64), 200, dtype=torch.uint8)
    picture = captioned(image, ["a red three"], ["another"])
    assert picture.shape[2] == 256
    assert (picture[:, :128] == 200).all()
    assert (picture[:, 128:] < 100).any(), "words in black below"


def test_word_vectors_from_a_file(config, tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("2 8\nred " + " ".join(["0.5"] * 8) + "\nunheard 1 2 3 4 5 6 7 8\nthree 1 2 3 4 5 6 7 8\n")
    found = config(*WORDS, f"task.vectors={file}")
    data = build.build_data(found)
    task = build.build_task(found)
    before = task.model.words.table.weight.detach().clone()
    task.fit_statistics(data)
    places = {word: number for number, word in enumerate(data.vocabularies["words"])}
    table = task.model.words.table.weight
    assert table[places["red"]].tolist() == [0.5] * 8
    assert table[places["three"]].tolist() == list(range(1, 9))
    assert torch.equal(table[places["blue"]], before[places["blue"]])
    for text, message in (("red 1 2\n", r"glove.txt:1: 2 values, but model.embedding=8"),
                          ("red 1 2 3 4 5 6 7 x\n", r"glove.txt: not a file of word vectors"),
                          ("oui 1 2 3 4 5 6 7 8\n", r"glove.txt: has none of the \d+ words of the vocabulary")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            task.fit_statistics(data)
    with pytest.raises(DataError, match=r"none.txt: No such file"):
        data.word_vectors(str(tmp_path / "none.txt"), 8)


def test_the_backbone_has_a_learning_rate_of_its_own(config):
    composed = config(*WORDS, "task.optimizer.lr_factors=[backbone:0.1]")
    build.build_data(composed)
    task = build.build_task(composed)
    groups = task.configure_optimizers()["optimizer"].param_groups
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.005, 0.0005])
    slow = {id(p) for p in groups[1]["params"]}
    assert slow == {id(p) for p in task.model.backbone.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(task.model.parameters()))
    composed.task.optimizer.lr_factors = ["backbone:0.1", "backbone.stem:0.01"]
    groups = build.build_task(composed).configure_optimizers()["optimizer"].param_groups
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.005, 0.0005, 0.00005])
    assert len(groups[2]["params"]) == 3, "the stem: a kernel, a scale and a shift"
    composed.task.optimizer.lr_factors = ["backbne:0.1"]
    with pytest.raises(UserError, match=r"lr_factors: 'backbne' is neither a stage of .*; did you mean 'backbone'"):
        build.build_task(composed).configure_optimizers()
    composed.task.optimizer.lr_factors = ["backbone"]
    with pytest.raises(UserError, match=r"lr_factors: 'backbone' must be NAME:FACTOR, as backbone:0.1"):
        build.build_task(composed).configure_optimizers()
