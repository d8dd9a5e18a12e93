"""The sequence to sequence net against loops, and decoding: greedy, sampled and by beam search."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import END, PAD, START, generator
from dltrain.models.seq2seq import Seq2Seq
from dltrain.tasks.decoding import beam_search, start_tokens, until_end, write_sequences

LENGTHS = (5, 2, 4)


def build_net(**keys) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(9, 8, **{"cell": "lstm", "hidden": 6, "layers": 2, "embedding": 4, **keys})
    return model.double().eval()


def random_pairs() -> tuple[Tensor, Tensor]:
    """Sources (3, 5) of LENGTHS, and targets (3, 6)."""
    source = torch.randint(4, 9, (3, 5), generator=generator("source"))
    for row, length in enumerate(LENGTHS):
        source[row, length:] = PAD
    target = torch.randint(4, 8, (3, 6), generator=generator("target"))
    target[:, 0] = START
    return source, target


@pytest.mark.parametrize("keys", [{}, {"attention": False}, {"reverse": True}, {"cell": "gru", "layers": 1},
                                  {"cell": "rnn", "embedding": None}])
def test_steps_equal_the_forward_pass_and_pairs_do_not_mix(keys):
    model, (source, target) = build_net(**keys), random_pairs()
    whole = model(source, LENGTHS, target)
    state = model.begin(source, LENGTHS)
    for t in range(target.shape[1]):
        logits, state = model.step(target[:, t], state)
        torch.testing.assert_close(logits, whole[:, t], rtol=0, atol=1e-12)
    for row, length in enumerate(LENGTHS):
        alone = model(source[[row], :length], (length,), target[[row]])
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-12)


def test_reverse_reads_the_source_backwards():
    source, target = random_pairs()
    backwards = source.clone()
    for row, length in enumerate(LENGTHS):
        backwards[row, :length] = source[row, :length].flip(0)
    reverse, forward = build_net(reverse=True, attention=False), build_net(attention=False)
    torch.testing.assert_close(reverse(source, LENGTHS, target), forward(backwards, LENGTHS, target))
    assert not torch.allclose(reverse(source, LENGTHS, target), forward(source, LENGTHS, target))


def test_attention_equals_a_loop_over_pairs_and_places():
    model, (source, _) = build_net(), random_pairs()
    assert model.score is not None
    assert model.combine is not None
    with torch.no_grad():
        memory, _ = model.encode(source, LENGTHS)
    h = torch.randn(3, 2, 6, generator=generator("h"), dtype=torch.double)
    attended, weights = model.attend(h, memory), model.attention(h, memory)
    w, w_c = model.score.weight.detach(), model.combine.weight.detach()
    for row, length in enumerate(LENGTHS):
        assert (weights[row, :, length:] == 0).all()
        for t in range(2):
            scores = [((w @ h[row, t]) @ memory.states[row, s]).item() for s in range(length)]
            total = sum(math.exp(score) for score in scores)
            terms = [math.exp(score) / total * memory.states[row, s] for s, score in enumerate(scores)]
            expected = torch.tanh(w_c @ torch.cat([torch.stack(terms).sum(0), h[row, t]]))
            torch.testing.assert_close(attended[row, t], expected)


def log_probability_of(model: Seq2Seq, source: Tensor, lengths: Sequence[int], symbols: Sequence[int]) -> float:
    """Of one target without START, summed over its symbols, all at once and not step by step."""
    target = torch.tensor([[START, *symbols]])
    log_p = F.log_softmax(model(source, lengths, target)[0, :-1], dim=1)
    return float(sum(log_p[place, symbol] for place, symbol in enumerate(symbols)))


@pytest.mark.parametrize("attention", [False, True])
def test_a_beam_that_is_wide_enough_has_the_best_of_all_sequences(attention):
    """Against every sequence of at most three symbols; the scores are those of the model."""
    model, (source, _) = build_net(attention=attention), random_pairs()
    row, lengths = source[[0]], LENGTHS[:1]
    sequences = [symbols for n in (1, 2, 3) for symbols in itertools.product(range(END, 8), repeat=n)
                 if END not in symbols[:-1] and (symbols[-1] == END or n == 3)]
    with torch.no_grad():
        expected = {symbols: log_probability_of(model, row, lengths, symbols) for symbols in sequences}
        for power in (0.0, 1.0):
            ranked = sorted(expected, key=lambda symbols: -expected[symbols] / len(symbols) ** power)
            state, start = model.begin(row, lengths), start_tokens(1, row.device)
            beam, scores = beam_search(model.step, state, start, 3, 125, power)
            assert [tuple(s for s in symbols if s != PAD) for symbols in beam[0, :5].tolist()] == ranked[:5]
            assert scores[0, :5].tolist() == pytest.approx([expected[symbols] for symbols in ranked[:5]], abs=1e-5)


def test_a_beam_of_one_is_greedy_and_rows_do_not_mix():
    model, (source, _) = build_net(), random_pairs()
    with torch.no_grad():
        model.head.weight *= 3
        model.head.bias[END] += 0.1
        start = start_tokens(3, source.device)
        greedy, scores = write_sequences(model.step, model.begin(source, LENGTHS), start, 7)
        beam, beam_scores = beam_search(model.step, model.begin(source, LENGTHS), start, 7, 1)
        assert until_end(greedy) == until_end(beam[:, 0])
        assert len({len(row) for row in until_end(greedy)}) > 1, "some must end before others"
        torch.testing.assert_close(scores, beam_scores[:, 0])
        for row, symbols in enumerate(greedy.tolist()):
            written = [symbol for symbol in symbols if symbol != PAD]
            expected = log_probability_of(model, source[[row]], LENGTHS[row : row + 1], written)
            assert float(scores[row]) == pytest.approx(expected, abs=1e-5)
        together, scores_together = beam_search(model.step, model.begin(source, LENGTHS), start, 7, 4)
        for row, length in enumerate(LENGTHS):
            state = model.begin(source[[row], :length], (length,))
            alone, scores_alone = beam_search(model.step, state, start[:1], 7, 4)
            assert until_end(alone[0]) == until_end(together[row])
            torch.testing.assert_close(scores_alone[0], scores_together[row])


def test_sampled_symbols_follow_the_probabilities_and_the_seed():
    logits = torch.tensor([9.0, 9.0, 9.0, -9.0, 0.0, 1.0, 2.0])

    def step(tokens, state):
        return logits.expand(len(tokens), -1), state

    def sample(seed: int) -> Tensor:
        start = start_tokens(4000, logits.device)
        return write_sequences(step, (), start, 1, 2.0, generator("sampling", seed))[0]

    symbols = sample(0)
    probabilities = (logits[END:] / 2).softmax(0)
    shares = symbols.flatten().bincount(minlength=7)[END:] / 4000
    assert symbols.min() >= END
    assert ((shares - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / 4000).sqrt() + 1e-9).all()
    assert torch.equal(sample(0), symbols)
    assert not torch.equal(sample(1), symbols)
