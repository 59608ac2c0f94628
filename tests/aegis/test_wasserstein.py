import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_policy.aegis import ActivationStatistics, masked_moments, wasserstein2


def test_a_distance_by_hand() -> None:
    mean, std = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    anchor_mean, anchor_std = torch.tensor([4.0, 0.0]), torch.tensor([2.0, 3.0])
    assert wasserstein2(mean, std, anchor_mean, anchor_std).item() == 3.0**2 + 2.0**2


def test_it_is_zero_at_the_anchor_and_so_is_its_gradient() -> None:
    mean, std = torch.randn(5, requires_grad=True), torch.rand(5, requires_grad=True)
    distance = wasserstein2(mean, std, mean.detach(), std.detach())
    gradients = torch.autograd.grad(distance, [mean, std])
    assert distance.item() == 0
    assert all(torch.equal(g, torch.zeros(5)) for g in gradients)


@settings(max_examples=20, deadline=None)
@given(mean=st.floats(-3, 3), std=st.floats(0.1, 3), anchor_mean=st.floats(-3, 3), anchor_std=st.floats(0.1, 3))
def test_it_is_the_cost_of_optimal_transport(mean: float, std: float, anchor_mean: float, anchor_std: float) -> None:
    # In one dimension W2^2 is the mean squared difference of the quantile functions.
    n = 20_001
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z = torch.special.ndtri(quantiles)
    transport = ((mean + std * z) - (anchor_mean + anchor_std * z)).square().mean()
    moments = [torch.tensor([v], dtype=torch.float64) for v in (mean, std, anchor_mean, anchor_std)]
    # Cutting the tails at 1 / 40,000 loses about 2e-4 of a Gaussian's variance.
    torch.testing.assert_close(wasserstein2(*moments), transport, rtol=5e-4, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_penalty_agrees_with_finite_differences(masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]) if masked else None
    anchor_mean = torch.randn(3, generator=generator, dtype=torch.float64)
    anchor_std = torch.rand(3, generator=generator, dtype=torch.float64)

    def penalty(x: torch.Tensor) -> torch.Tensor:
        return wasserstein2(*masked_moments(x, mask), anchor_mean, anchor_std)

    assert torch.autograd.gradcheck(penalty, (x,))


def test_a_batch_has_the_moments_that_streaming_finds() -> None:
    x, mask = torch.randn(3, 6, 5) + 2, torch.rand(3, 6) > 0.4
    statistics = ActivationStatistics(5)
    statistics.update(x, mask)
    mean, std = masked_moments(x, mask)
    # One is summed in float32 over at most 18 tokens.
    torch.testing.assert_close(mean, statistics.mean.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(std, statistics.std.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [7.0, float("nan"), float("inf")])
def test_padding_has_no_influence_on_moments_and_gradients(padding: float) -> None:
    x = torch.randn(2, 3, 4)
    padded = torch.cat([x, torch.full((2, 2, 4), padding)], dim=1).requires_grad_()
    mask = torch.tensor([1, 1, 1, 0, 0]).expand(2, 5)
    mean, std = masked_moments(padded, mask)
    expected_mean, expected_std = masked_moments(x, None)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(std, expected_std)
    (gradient,) = torch.autograd.grad(mean.sum() + std.sum(), padded)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[:, 3:], torch.zeros(2, 2, 4))


def test_a_channel_that_does_not_vary_has_zero_deviation_and_zero_gradient() -> None:
    x = torch.stack([torch.full((4,), 0.5), torch.arange(4.0)], dim=-1).requires_grad_()
    _, std = masked_moments(x, None)
    (gradient,) = torch.autograd.grad(std.sum(), x)
    assert std[0].item() == 0
    assert torch.equal(gradient[:, 0], torch.zeros(4))
    assert torch.isfinite(gradient).all()


def test_half_precision_activations_give_float32_moments() -> None:
    # bfloat16 sums of 3000 tokens around 100 would be off by whole units.
    x = (100 + torch.randn(3000, 2)).to(torch.bfloat16)
    mean, std = masked_moments(x, None)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean(0).float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(std, x.double().std(0, correction=0).float(), rtol=1e-4, atol=0)


def test_nothing_unmasked_is_loud() -> None:
    mean, std = masked_moments(torch.randn(2, 3), torch.zeros(2))
    assert mean.isnan().all()
    assert std.isnan().all()


def test_moments_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        wasserstein2(torch.zeros(4), torch.zeros(4), torch.zeros(1), torch.zeros(4))
    with pytest.raises(ValueError, match="one entry a token"):
        masked_moments(torch.zeros(2, 3, 4), torch.ones(3))
