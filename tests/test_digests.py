"""Digests of tensors: of their values, however they lie in memory."""

import pytest
import torch

from dltrain.digests import digest, sums_of_bits

LONE = torch.arange(5, 1, -1).reshape(2, 2)[:1, :1].T  # one value, with a stride of two


@pytest.mark.parametrize("tensor", [LONE, torch.arange(6).reshape(1, 6)[:, ::2], torch.arange(6.0).reshape(2, 3).T,
                                    torch.tensor([1 + 2j, 3 + 4j]), torch.ones(()), torch.ones(0),
                                    torch.ones(3, dtype=torch.bool)])
def test_values_count_and_not_their_places_in_memory(tensor):
    copy = tensor.contiguous()
    assert digest({"a": tensor}) == digest({"a": copy})
    if not tensor.is_complex():
        assert torch.equal(sums_of_bits([tensor]), sums_of_bits([copy]))
    if tensor.numel():
        other = copy.clone()
        other.flatten()[-1] = 0
        assert digest({"a": other}) != digest({"a": copy})
        assert digest({"a": copy.reshape(-1)}) != digest({"a": copy}) or copy.ndim == 1
