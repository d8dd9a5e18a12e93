"""What the gates of an LSTM do, and the gradient of an unrolled net: against other ways to compute them."""

import json

import pytest
import torch

from dltrain.models.recurrent import EQUATIONS, CharRNN, Recurrent
from dltrain.studies import gates, unrolled_gradient
from tests.command_line import run_command


@pytest.mark.parametrize("layers", [1, 2])
def test_the_gates_follow_from_torchs_own_states(layers):
    """The state before each step is that of the fused layers over all steps before it."""
    torch.manual_seed(0)
    model, tokens = CharRNN(9, "lstm", 6, layers, embedding=4).double(), torch.randint(9, (1, 7))
    read = gates.read(model, tokens)
    assert read.shape == (7, 3, 6)
    x = model.symbols(tokens)
    below = x if layers == 1 else torch.nn.LSTM(4, 6, batch_first=True).double()(x)[0]
    if layers == 2:
        first = torch.nn.LSTM(4, 6, batch_first=True).double()
        first.load_state_dict({name: value for name, value in model.recurrent.fused.state_dict().items()
                               if name.endswith("l0")})
        below = first(x)[0]
    w_x, w_h, b_x, b_h = model.recurrent.weights(layers - 1)
    for t in range(7):
        h = model.recurrent(x[:, :t])[0][0, -1] if t else torch.zeros(6, dtype=torch.float64)
        i, f, _, o = (below[0, t] @ w_x.T + b_x + h @ w_h.T + b_h).chunk(4)
        torch.testing.assert_close(read[t], torch.stack([i, f, o]).sigmoid())


def test_saturation_and_means_by_kind_are_counted_by_hand():
    gate = torch.tensor([[0.05, 0.95], [0.5, 0.95], [0.02, 0.5], [0.91, 0.9]])
    left, right = gates.saturation(gate)
    assert left.tolist() == [0.5, 0.0]
    assert right.tolist() == [0.25, 0.5]
    text = "a1 \n" * gates.RARE + "?"
    rows = torch.arange(4.0).repeat(gates.RARE)[:, None].expand(-1, 2)
    assert gates.mean_by_kind(text, torch.cat([rows, torch.zeros(1, 2)])) == {
        "a letter": 0, "a digit": 1, "a space": 2, "the end of a line": 3}  # the one "?" is rare


def test_the_experiment_draws_the_gates_of_a_trained_net(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=gates", "study.seeds=[0]", "study.characters=600"]
    code, out, err = run_command(monkeypatch, capsys, *words, "name=g", "study.units=5",
                                 'study.more=["trainer=smoke","model.hidden=12"]')
    assert (code, err) == (10, "")
    path = tmp_path / "outputs/g"
    result = json.loads((path / "result.json").read_text())
    assert 0 < result["forget gate at a letter"] < 1
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  forget ")}
    assert [float(value) for value in rows["forget"]] == pytest.approx(
        [result["saturated, forget, left"], result["saturated, forget, right"]], rel=1e-3)
    assert len((path / "gates.csv").read_text().splitlines()) == 13
    assert (path / "results.png").stat().st_size > 5000
    for more, model in (("model.cell=gru", "CharRNN with model.cell=gru"),
                        ("model=tagger", "Tagger with model.cell=lstm")):
        code, out, err = run_command(monkeypatch, capsys, *words, "name=h", f'study.more=["trainer=smoke","{more}"]')
        assert (code, "epoch" in out) == (2, False)
        assert err == ("dltrain: error: study.words: must choose a language model of LSTM layers, as model=char_rnn, "
                       f"but the model is dltrain.models.recurrent.{model}\n")


@pytest.mark.parametrize("cell", list(EQUATIONS))
def test_the_gradient_of_a_copy_is_that_by_finite_differences(cell):
    """Of the first bias in the third of four steps."""
    shared, copies = unrolled_gradient.gradients(cell, hidden=5, steps=4, seed=2)
    torch.testing.assert_close(copies.sum(0), shared)
    torch.manual_seed(unrolled_gradient.seed_of("init", 2))
    net = Recurrent(cell, unrolled_gradient.FEATURES, 5).double()
    rng = unrolled_gradient.generator("unrolled", 2)
    x = torch.randn(unrolled_gradient.BATCH, 4, unrolled_gradient.FEATURES, generator=rng, dtype=torch.float64)
    projection = torch.randn(unrolled_gradient.BATCH, 5, generator=rng, dtype=torch.float64)
    weights = [weight.detach() for weight in net.weights(0)]

    def loss(bias: torch.Tensor) -> torch.Tensor:
        state = tuple(tensor[0] for tensor in net.zeros(unrolled_gradient.BATCH))
        for t in range(4):
            state = EQUATIONS[cell](x[:, t], state, weights[0], weights[1], bias if t == 2 else weights[2],
                                    weights[3])
        return (state[0] * projection).sum()

    start = weights[0].numel() + weights[1].numel()
    steps = 1e-5 * torch.eye(len(weights[2]), dtype=torch.float64)
    expected = torch.stack([(loss(weights[2] + step) - loss(weights[2] - step)) / 2e-5 for step in steps])
    torch.testing.assert_close(copies[2, start : start + len(expected)], expected, rtol=1e-6, atol=1e-8)


def test_a_gradient_that_is_cut_off_lacks_the_earlier_copies():
    copies = torch.tensor([[0.0, 4.0], [3.0, 0.0]])
    assert unrolled_gradient.truncation_errors(copies) == pytest.approx([4 / 5, 0])


def test_the_experiment_of_the_unrolled_net_ends_supported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=unrolled_gradient", "study.hidden=6", "study.steps=8"]
    code, out, err = run_command(monkeypatch, capsys, *words, "name=u")
    assert (code, err) == (0, "")
    assert "SUPPORTED  the gradient of a shared weight is the sum of its copies'" in out
    assert len((tmp_path / "outputs/u/gradients.csv").read_text().splitlines()) == 9
    assert run_command(monkeypatch, capsys, *words, "name=v", "study.cells=[rnn,ltsm]")[::2] == (
        2, "dltrain: error: study.cells: there is no cell 'ltsm'; there are: rnn, lstm, gru\n")
