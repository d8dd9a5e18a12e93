"""Recurrent layers: the equations against torch's fused layers and finite differences; lengths; single steps."""

import pytest
import torch
import torch.nn.functional as F

from dltrain.batches import generator
from dltrain.models.recurrent import CharRNN, Recurrent, Symbols

CELLS = ("rnn", "lstm", "gru")


def recurrent(cell: str, dtype=torch.float32, layers: int = 2, **keys) -> Recurrent:
    torch.manual_seed(3)
    return Recurrent(cell, 5, 7, layers, **keys).to(dtype)


def random_values(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("values", *shape), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("cell", CELLS)
def test_unrolled_and_fused_agree_in_outputs_states_and_gradients(cell, dtype, tolerance):
    net = recurrent(cell, dtype)
    x, state = random_values(3, 11, 5, dtype=dtype), tuple(random_values(2, 3, 7, dtype=dtype) for _ in net.zeros(3))
    results = []
    for compute in (net.forward, net.unrolled):
        inputs = x.clone().requires_grad_()
        out, last = compute(inputs, state)
        total = out.square().sum() + sum(s.sin().sum() for s in last)
        results.append([out, *last, *torch.autograd.grad(total, [inputs, *net.parameters()])])
    for fused, unrolled in zip(*results, strict=True):
        torch.testing.assert_close(fused, unrolled, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_backpropagation_through_time_equals_finite_differences(cell):
    net = recurrent(cell, torch.float64, layers=1)
    x = random_values(2, 6, 5, dtype=torch.float64)
    weights = list(net.parameters())

    def last_state(*changed: torch.Tensor) -> torch.Tensor:
        out, _ = torch.func.functional_call(net, dict(zip(dict(net.named_parameters()), changed, strict=True)), (x,))
        return out[:, -1].square().sum()

    gradients = torch.autograd.grad(last_state(*weights), weights)
    for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        for index in range(0, weight.numel(), 9):
            values = []
            for sign in (1, -1):
                changed = [w.detach().clone() for w in weights]
                changed[number].view(-1)[index] += sign * 1e-6
                values.append(float(last_state(*changed).detach()))
            expected = (values[0] - values[1]) / 2e-6
            assert float(gradient.reshape(-1)[index]) == pytest.approx(expected, abs=1e-7, rel=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_single_steps_equal_the_fused_layer(cell):
    net = recurrent(cell)
    x = random_values(3, 6, 5)
    out, last = net(x)
    state = net.zeros(3)
    for t in range(6):
        step, state = net.step(x[:, t], state)
        torch.testing.assert_close(step, out[:, t], atol=1e-6, rtol=1e-5)
    for a, b in zip(state, last, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_ends_at_its_length_whatever_the_other_rows_are(cell):
    net = recurrent(cell, bidirectional=True)
    x, lengths = random_values(3, 8, 5), (8, 3, 5)
    out, last = net(x, None, lengths)
    for row, length in enumerate(lengths):
        alone, end = net(x[row : row + 1, :length])
        torch.testing.assert_close(out[row, :length], alone[0], atol=1e-6, rtol=1e-5)
        assert not out[row, length:].any()
        for a, b in zip(last, end, strict=True):
            torch.testing.assert_close(a[:, row], b[:, 0], atol=1e-6, rtol=1e-5)


def test_the_forget_gate_starts_open():
    net = recurrent("lstm")
    for layer in range(2):
        _, _, b_x, b_h = net.weights(layer)
        bias = b_x + b_h
        assert bias[7:14].tolist() == [1.0] * 7
        assert torch.cat([bias[:7], bias[14:]]).abs().max() < 1, "the other gates keep torch's initial values"


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_the_number_of_parameters(cell, gates):
    """gates * (F H + H^2 + 2 H) a layer (two bias vectors), and the head's H V + V."""
    net = CharRNN(vocab_size=20, cell=cell, hidden=16, layers=2)
    layers = gates * (20 * 16 + 16 * 16 + 32) + gates * (16 * 16 + 16 * 16 + 32)
    assert sum(p.numel() for p in net.parameters()) == layers + 16 * 20 + 20


def test_tied_weights_are_one_tensor_and_need_equal_widths():
    net = CharRNN(20, "gru", 16, 1, embedding=16, tied=True)
    assert net.head.weight is net.symbols.vectors
    with pytest.raises(ValueError, match="tied=true needs embedding = hidden, but they are 8 and 16"):
        CharRNN(20, "gru", 16, 1, embedding=8, tied=True)


def test_an_embedding_is_one_hot_vectors_times_its_weights():
    tokens = torch.tensor([[1, 4], [0, 2]])
    assert torch.equal(Symbols(5, None)(tokens), F.one_hot(tokens, 5).float())
    embedding = Symbols(5, 3)
    assert torch.equal(embedding(tokens), Symbols(5, None)(tokens) @ embedding.vectors)


def test_dropout_acts_in_training_only():
    net = CharRNN(20, "lstm", 16, 2, dropout=0.5)
    tokens = torch.arange(12).reshape(2, 6)
    torch.manual_seed(0)
    assert not torch.equal(net(tokens)[0], net(tokens)[0])
    net.eval()
    assert torch.equal(net(tokens)[0], net(tokens)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_different_lengths_equal_torchs_packed_sequences(cell, bidirectional):
    """Outputs, last states and gradients, in double precision; rows of one length beside each other and alone."""
    torch.manual_seed(0)
    net = Recurrent(cell, 5, 7, 3, bidirectional=bidirectional).double()
    x = torch.randn(9, 11, 5, dtype=torch.double, requires_grad=True)
    lengths = [3, 11, 10, 1, 1, 7, 11, 4, 7]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False)
    expected, last = net.fused(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(expected, batch_first=True, total_length=11)
    out, state = net(x, None, lengths)
    last = last if cell == "lstm" else (last,)
    factors = torch.randn_like(out)
    gradients = []
    for outputs, states in ((out, state), (expected, last)):
        total = (outputs * factors).sum() + sum(tensor.pow(2).sum() for tensor in states)
        gradients.append(torch.autograd.grad(total, [x, *net.parameters()]))
    for a, b in zip([out, *state, *gradients[0]], [expected, *last, *gradients[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_char_rnns_start_is_uniform_with_a_forget_bias_of_its_own_only_if_asked(cell):
    torch.manual_seed(0)
    net = CharRNN(20, cell, 30, 2, initial_range=0.08)
    values = torch.cat([parameter.flatten() for parameter in net.parameters()])
    assert values.abs().max() <= 0.08
    assert float(values.std()) == pytest.approx(0.08 / 3**0.5, rel=0.03)
    biases = dict(CharRNN(20, cell, 30, 2, keep_bias=2.0, initial_range=0.08).recurrent.fused.named_parameters())
    for layer in (0, 1):
        gate = biases[f"bias_ih_l{layer}"][30:60] + biases[f"bias_hh_l{layer}"][30:60]
        assert cell == "rnn" or torch.equal(gate, torch.full((30,), 2.0))
        assert biases[f"bias_ih_l{layer}"][:30].abs().max() <= 0.08


def test_an_lstm_starts_with_a_forget_bias_of_one_and_another_one_by_its_key():
    for keep_bias, expected in ((None, 1.0), (0.0, 0.0), (3.0, 3.0)):
        fused = CharRNN(9, "lstm", 5, 1, keep_bias=keep_bias).recurrent.fused
        torch.testing.assert_close((fused.bias_ih_l0 + fused.bias_hh_l0)[5:10], torch.full((5,), expected))
