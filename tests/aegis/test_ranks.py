"""What several processes agree on: averages and moments of the global batch, anchor gradients, projectors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aegis_policy.aegis import (
    AegisAdamW,
    Projector,
    average_over_ranks,
    masked_moments,
    pooled_moments,
    rank,
    world_size,
)
from tests.ranks import on_ranks, told

pytestmark = pytest.mark.slow  # two processes, which import torch

CASES = ("both", "one", "neither", "disagree")


def tokens() -> tuple[list[Tensor], Tensor]:
    """Two layers' activations (N, D) of the global batch, and which tokens count; the last four are all masked."""
    draw = torch.Generator().manual_seed(0)
    layers = [torch.randn(12, width, generator=draw, requires_grad=True) for width in (3, 5)]
    return layers, torch.arange(12) % 3 < torch.tensor([2] * 8 + [0] * 4)


def rows(parts: tuple[int, ...]) -> slice:
    start = sum(parts[: rank()])
    return slice(start, start + parts[rank()])


def ratio() -> tuple[Tensor, Tensor]:
    """A loss that is a ratio of two sums over the global batch, and its gradient."""
    x = torch.arange(1.0, 7.0, requires_grad=True)
    own = x if world_size() == 1 else x[rows((4, 2))]
    top, bottom = average_over_ranks(own.square().sum()), average_over_ranks(own.sum())
    (gradient,) = torch.autograd.grad(top / bottom, x)
    return (top / bottom).detach(), gradient


def moments() -> tuple[list[Tensor], list[Tensor]]:
    """Of the global batch, of which rank 1 has no token that counts; and the gradients of a function of them."""
    layers, mask = tokens()
    part = slice(None) if world_size() == 1 else rows((8, 4))
    found = pooled_moments([x[part] for x in layers], mask[part])
    distance = sum((m - 0.1).square().sum() + (s - 0.7).square().sum() for m, s in found)
    gradients = torch.autograd.grad(distance, layers)
    return [t.detach() for pair in found for t in pair], list(gradients)


def spread_moments() -> tuple[list[Tensor], list[Tensor]]:
    """The same where both ranks have tokens that count."""
    layers, mask = tokens()
    part = slice(None) if world_size() == 1 else rows((3, 9))
    found = pooled_moments([x[part] for x in layers], mask[part])
    distance = sum((m - 0.1).square().sum() + (s - 0.7).square().sum() for m, s in found)
    gradients = torch.autograd.grad(distance, layers)
    return [t.detach() for pair in found for t in pair], list(gradients)


def step(case: str) -> tuple[Tensor, str]:
    """A weight after a step, and the error if it was none; the ranks differ as `case` says."""
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = AegisAdamW([{"params": [weight], "layer": "l"}], 0.1, projection="update")
    if case != "disagree" or rank() == 0:
        weight.grad = torch.arange(6.0).view(2, 3) - 2
    anchors = [-torch.ones(2, 3), torch.eye(2, 3)]
    if case == "both" or (case in ("one", "disagree") and rank() == 0):
        weight.anchor_grad = sum(anchors) / 2 if world_size() == 1 and case == "both" else anchors[rank()]  # type: ignore[attr-defined]
    error = told(optimizer.step)
    return weight.detach(), error


def step_with_other_projectors(projector: Projector | Tensor) -> Tensor:
    weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    group = {"params": [weight], "layer": "l", "projectors": [projector]}
    optimizer = AegisAdamW([group], 0.1, projection="subspace")
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return weight.detach()


def everything() -> dict[str, Any]:
    almost = torch.diag(torch.tensor([0.0, 1.0, 1.0 + 1e-6 * rank()], dtype=torch.float64))
    # Rank 0 closes one direction of three and keeps that one, rank 1 closes two and keeps the other.
    one_or_two = Projector.of_directions(torch.eye(3, dtype=torch.float64), torch.arange(3) <= rank())
    return {
        "ratio": ratio(),
        "moments": moments(),
        "spread moments": spread_moments(),
        "projectors that differ by rounding": step_with_other_projectors(almost),
        "projectors of another rank": step_with_other_projectors(one_or_two),
        **{case: step(case) for case in CASES},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return everything(), on_ranks(everything, folder=tmp_path_factory.mktemp("ranks"))


def test_gradients_of_a_ratio_of_sums_average_to_that_of_the_global_batch(runs: Any) -> None:
    one, ranks = runs
    for value, _ in (found["ratio"] for found in ranks):
        assert torch.equal(value, one["ratio"][0])  # sums of small integers are exact
    torch.testing.assert_close(sum(found["ratio"][1] for found in ranks) / 2, one["ratio"][1])


@pytest.mark.parametrize("case", ["moments", "spread moments"])
def test_pooled_moments_are_those_of_the_global_batch_and_so_are_their_gradients(runs: Any, case: str) -> None:
    one, ranks = runs
    for found in ranks:
        torch.testing.assert_close(found[case][0], one[case][0])
        assert all(torch.equal(a, b) for a, b in zip(found[case][0], ranks[0][case][0], strict=True))
    for layer, gradient in enumerate(one[case][1]):
        average = sum(found[case][1][layer] for found in ranks) / 2
        torch.testing.assert_close(average, gradient, rtol=1e-4, atol=1e-6)  # float32, summed in another order


def test_in_one_process_pooled_moments_are_masked_moments(runs: Any) -> None:
    layers, mask = tokens()
    separate = [t.detach() for x in layers for t in masked_moments(x, mask)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0]["moments"][0], separate, strict=True))


@pytest.mark.parametrize("case", ["both", "one"])
def test_a_rank_without_an_anchor_gradient_adds_nothing_to_it(runs: Any, case: str) -> None:
    one, ranks = runs
    for weight, error in (found[case] for found in ranks):
        assert error == ""
        torch.testing.assert_close(weight, one[case][0])  # the length of the anchor gradient does not matter
    assert torch.equal(ranks[0][case][0], ranks[1][case][0])


def test_where_no_rank_has_an_anchor_gradient_every_rank_stops(runs: Any) -> None:
    for found in runs[1]:
        assert "has task gradients and no anchor gradient" in found["neither"][1]


def test_a_gradient_on_one_rank_alone_stops_every_rank(runs: Any) -> None:
    for weight, error in (found["disagree"] for found in runs[1]):
        assert "one of shape (2, 3) has one on 1 of 2 ranks" in error
        assert torch.equal(weight, torch.ones(2, 3))


@pytest.mark.parametrize("case", ["projectors that differ by rounding", "projectors of another rank"])
def test_all_ranks_take_the_projectors_of_the_first(runs: Any, case: str) -> None:
    one, ranks = runs
    assert all(torch.equal(found[case], one[case]) for found in ranks)
