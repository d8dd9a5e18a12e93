"""The captioner against the equations of its papers, with loops; its decoding."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dltrain.batches import PAD, START, generator
from dltrain.models.captioner import Captioner
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.tasks.decoding import beam_search, start_tokens, write_sequences


def build_captioner(**changes: Any) -> Captioner:
    torch.manual_seed(0)
    keys: dict[str, Any] = {"vocab_size": 11, "cell": "lstm", "hidden": 6, "layers": 1, "embedding": 5,
                            "enter": "first_state", "pool_px": 2, "attention": False, "map_px": 4, "attention_units": 3}
    return Captioner(CifarResNet(8), **{**keys, **changes})


def make_images(count: int, name: str) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=generator(name))


def test_the_first_steps_are_the_decks_equations():
    """h1 = g(W_i i + W_x x(START) + b), ht = g(W_x xt + W_h ht-1 + b), o = W_o h, with W_i = W_h P."""
    model = build_captioner(cell="rnn").eval()
    image = make_images(1, "deck")
    i = F.adaptive_avg_pool2d(model.backbone.features(image), 2).flatten(1)[0]
    w_x, w_h, b_x, b_h = model.recurrent.weights(0)
    x = model.word_embedding
    h = torch.tanh(w_h @ (model.image.weight @ i + model.image.bias) + w_x @ x[START] + b_x + b_h)
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
    model = build_captioner(enter="first_input", layers=2).eval()
    images = make_images(2, "tell")
    vectors = model.image(F.adaptive_avg_pool2d(model.backbone.features(images), 2).flatten(1))
    words = model.words(torch.tensor([[START, 4], [START, 9]]))
    h, _ = model.recurrent(torch.cat([vectors[:, None], words], 1))
    expected = model.head(h[:, 1:])
    torch.testing.assert_close(model(images, torch.tensor([[[START, 4]], [[START, 9]]]))[:, 0], expected)


def test_attention_equals_the_papers_equations():
    """Section 4.2 and equation 4 to 6 with a loop over places; z beside the word and beside h."""
    model = build_captioner(attention=True).eval()
    nn.init.normal_(model.place_embedding)
    image = make_images(1, "attend")
    maps = F.adaptive_avg_pool2d(model.backbone.features(image), 4)[0]
    attended, state = model.begin(image)
    h, c = state[-1][0][0], state[-1][1][0]
    places = [maps[:, n // 4, n % 4] + model.place_embedding[n] for n in range(16)]
    energy = torch.stack([model.score.weight[0] @ torch.tanh(
        model.place_keys.weight @ a + model.place_keys.bias + model.state_query.weight @ h) for a in places])
    alpha = energy.exp() / energy.exp().sum()
    z = torch.stack([weight * a for weight, a in zip(alpha, places, strict=True)]).sum(0)
    z = z * torch.sigmoid(model.gate.weight[0] @ h + model.gate.bias)
    w_x, w_h, b_x, b_h = model.recurrent.weights(0)
    i, f, g, o = (w_x @ torch.cat([model.word_embedding[START], z]) + b_x + w_h @ h + b_h).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    expected = model.head.weight @ torch.cat([h, z]) + model.head.bias
    logits, _ = model.step(torch.tensor([START]), (attended, state))
    torch.testing.assert_close(logits[0], expected)
    weights = model.attention_maps(image, torch.tensor([[START, 5]]))
    assert weights.shape == (1, 2, 4, 4)
    torch.testing.assert_close(weights[0, 0].flatten(), alpha)
    assert not torch.allclose(weights[0, 1], weights[0, 0])


@pytest.mark.parametrize("attention", [False, True])
def test_beam_one_is_greedy_and_scores_are_the_sums_of_log_probabilities(attention):
    model = build_captioner(attention=attention).eval()
    model.head.weight.data *= 6
    images = make_images(3, "beam")
    start = start_tokens(3, images.device)
    with torch.no_grad():
        greedy, score = write_sequences(model.step, model.begin(images), start, 6)
        single, single_score = beam_search(model.step, model.begin(images), start, 6, 1)
        assert single[:, 0].tolist() == greedy.tolist()
        torch.testing.assert_close(single_score[:, 0], score)
        sentences, scores = beam_search(model.step, model.begin(images), start, 6, 4)
        inputs = torch.cat([torch.full((3, 4, 1), START), sentences[:, :, :-1]], 2)
        log_p = model(images, inputs).log_softmax(3).gather(3, sentences[..., None])[..., 0]
    torch.testing.assert_close(scores, log_p.masked_fill(sentences == PAD, 0).sum(2))
    by_length = scores / (sentences != PAD).sum(2)
    assert (by_length[:, :-1] >= by_length[:, 1:] - 1e-5).all()
    assert [len({tuple(row) for row in of_image}) for of_image in sentences.tolist()] == [4, 4, 4]


def test_sampled_words_are_read_where_the_mask_says_so():
    model = build_captioner().eval()
    model.head.weight.data *= 6
    image = make_images(1, "sampled")
    true_words = torch.tensor([[[START, 5, 6, 7]]])
    expected = model(image, true_words)
    torch.testing.assert_close(model(image, true_words, torch.zeros(1, 1, 4, dtype=torch.bool)), expected)
    all_sampled = model(image, true_words, torch.ones(1, 1, 4, dtype=torch.bool))
    words = [START]
    for _ in range(3):
        words.append(int(model(image, torch.tensor([[words]]))[0, 0, -1].argmax()))
    assert words != true_words[0, 0].tolist()
    torch.testing.assert_close(all_sampled, model(image, torch.tensor([[words]])))
    last_sampled = model(image, true_words, torch.tensor([[[False, False, False, True]]]))
    words = [START, 5, 6, int(expected[0, 0, 2].argmax())]
    torch.testing.assert_close(last_sampled, model(image, torch.tensor([[words]])))
