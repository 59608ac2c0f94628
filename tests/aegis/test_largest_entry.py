"""The one number that a step's gradients come down to."""

import pytest
import torch

from aegis_policy.aegis.precision import all_finite, largest_entry


def test_it_is_the_largest_absolute_entry_of_all():
    tensors = [torch.tensor([[1.0, -7.0]]), torch.zeros(0), torch.tensor([3.0], dtype=torch.float16)]
    assert largest_entry(tensors) == 7
    assert largest_entry([torch.full((3,), -2.0, requires_grad=True)]) == 2
    assert largest_entry([torch.zeros(0), torch.zeros(2, 0)]) == 0
    assert largest_entry([]) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_large_entries_are_finite_in_every_precision(dtype):
    assert all_finite([torch.full((1000,), torch.finfo(dtype).max, dtype=dtype), torch.ones(3)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_entry_that_is_not_finite_is_found_wherever_it_stands(bad, place):
    gradient = torch.randn(1000)
    gradient[place] = bad
    assert not all_finite([torch.ones(5), gradient, torch.ones(5)])
    assert all_finite([torch.ones(5), torch.ones(5)])
