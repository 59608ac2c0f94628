"""The anchor gradient lives as the task's does: it comes, is scaled, adds up and goes with it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aegis_policy.aegis import PROJECTIONS, SUBSPACES, AegisAdamW, backward_beside

INPUTS, TARGETS, OLD = (torch.randn(12, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2, 5))
OLD = OLD[:, :4]


def model() -> Any:  # a Sequential, whose items type checkers take for tensors
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def optimizer_for(net: Any, projection: str, **options: Any) -> AegisAdamW:
    weight, bias = net[0].parameters()
    protected: list[dict[str, Any]] = [{"params": [weight, bias], "layer": "0"}]
    if projection in SUBSPACES:
        protected = [{"params": [weight], "layer": "0", "projectors": [torch.diag(torch.tensor([0.0, 1.0, 1.0]))]}]
        bias.requires_grad_(False)
    return AegisAdamW([*protected, {"params": list(net[2].parameters())}], 1e-2, projection=projection, **options)


def losses(net: Any, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Task loss and distance, each a mean over the rows."""
    hidden = net[1](net[0](INPUTS[rows]))
    return (net[2](hidden) - TARGETS[rows]).square().mean(), (hidden - OLD[rows]).square().mean()


def forward(net: Any, optimizer: AegisAdamW, rows: slice = slice(None)) -> Tensor:
    loss, distance = losses(net, rows)
    if optimizer.projection not in SUBSPACES:
        backward_beside(loss, distance, net[0].parameters())
    return loss


def same(a: nn.Module, b: nn.Module, *, atol: float = 0.0) -> bool:
    return all(torch.allclose(p, q, rtol=0, atol=atol) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_it_comes_with_the_losss_backward_and_is_weighted_as_the_loss_is() -> None:
    net = model()
    parameters = list(net[0].parameters())
    expected = torch.autograd.grad(losses(net)[1], parameters)
    loss = forward(net, optimizer_for(net, "update"))
    assert not any(hasattr(p, "anchor_grad") for p in parameters)
    (0.25 * loss).backward()
    assert all(torch.equal(p.anchor_grad, 0.25 * g) for p, g in zip(parameters, expected, strict=True))


def test_a_loss_that_is_to_be_raised_does_not_turn_the_half_space_over() -> None:
    net = model()
    (expected, _) = torch.autograd.grad(losses(net)[1], list(net[0].parameters()))
    (-forward(net, optimizer_for(net, "update"))).backward()
    assert torch.equal(net[0].weight.anchor_grad, expected)


def test_a_loss_that_is_thrown_away_leaves_nothing() -> None:
    net = model()
    optimizer = optimizer_for(net, "update")
    forward(net, optimizer)
    forward(net, optimizer, slice(0, 6)).backward()
    (expected, _) = torch.autograd.grad(losses(net, slice(0, 6))[1], list(net[0].parameters()))
    assert torch.equal(net[0].weight.anchor_grad, expected)


@pytest.mark.parametrize("parts", [[slice(0, 4), slice(4, 8), slice(8, 12)], [slice(0, 10), slice(10, 12)]])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_micro_batches_take_the_step_of_the_batch(projection: str, parts: list[slice]) -> None:
    whole, split = model(), model()
    a, b = optimizer_for(whole, projection), optimizer_for(split, projection)
    shed = []
    for _ in range(3):
        forward(whole, a).backward()
        a.step()
        a.zero_grad()
        for rows in parts:
            (forward(split, b, rows) * len(INPUTS[rows]) / len(INPUTS)).backward()
        b.step()
        b.zero_grad()
        shed.append(a.last_report["energy_shed"])
        # Adam divides by the root of v: what rounding leaves of a gradient is a share of it, and so of a step of 1e-2.
        assert same(whole, split, atol=1e-6)
    assert max(shed) > 1e-3  # there was something to project


@pytest.mark.parametrize("projection", ["gradient", "first_moment", "update"])
def test_the_last_micro_batch_alone_would_have_taken_other_steps(projection: str) -> None:
    nets = [model(), model()]
    for net, overwrite in zip(nets, (False, True), strict=True):
        optimizer = optimizer_for(net, projection)
        for _ in range(3):  # Adam's first step is a sign
            for rows in (slice(0, 6), slice(6, 12)):
                (forward(net, optimizer, rows) / 2).backward()
                if overwrite:
                    parameters = list(net[0].parameters())
                    for p, g in zip(parameters, torch.autograd.grad(losses(net, rows)[1], parameters), strict=True):
                        p.anchor_grad = g
            optimizer.step()
            optimizer.zero_grad()
    assert not same(*nets, atol=1e-5)


@pytest.mark.parametrize("projection", ["gradient", "update", "subspace"])
def test_accelerates_accumulation_takes_the_step_of_the_batch(projection: str) -> None:
    from accelerate import Accelerator

    whole, split = model(), model()
    a = optimizer_for(whole, projection)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, b = accelerator.prepare(split, optimizer_for(split, projection))
    for _ in range(2):
        forward(whole, a).backward()
        a.step()
        a.zero_grad()
        for rows in (slice(0, 6), slice(6, 12)):
            with accelerator.accumulate(net):
                accelerator.backward(forward(net, b.optimizer, rows))
                b.step()
                b.zero_grad()
    assert same(whole, split, atol=1e-6)


ZEROS: list[Callable[[Any, AegisAdamW], None]] = [
    lambda net, optimizer: optimizer.zero_grad(),
    lambda net, optimizer: optimizer.zero_grad(set_to_none=False),
    lambda net, optimizer: net.zero_grad(),
]


@pytest.mark.parametrize("options", [{}, {"fused": True}])
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_after_a_step_that_the_scaler_skips_training_goes_on_as_if_it_had_not_been(
    projection: str, zero: Callable[[Any, AegisAdamW], None], options: dict[str, Any]
) -> None:
    direct, scaled = model(), model()
    a, b = optimizer_for(direct, projection, **options), optimizer_for(scaled, projection, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for rows in (slice(0, 6), None, slice(6, 12)):
        before = [p.detach().clone() for p in scaled.parameters()]
        loss = forward(scaled, b, rows or slice(3, 9)) * (float("inf") if rows is None else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(b)
        torch.nn.utils.clip_grad_norm_(scaled.parameters(), 0.1)
        scaler.step(b)
        scaler.update()
        zero(scaled, b)
        if rows is None:
            assert all(torch.equal(p, q) for p, q in zip(scaled.parameters(), before, strict=True))
            continue
        forward(direct, a, rows).backward()
        torch.nn.utils.clip_grad_norm_(direct.parameters(), 0.1)
        a.step()
        zero(direct, a)
    assert same(direct, scaled)  # scaling by a power of two and back is exact
    assert b.skipped_steps == 0  # the scaler's affair, not an error


@pytest.mark.parametrize("projection", ["gradient", "first_moment", "update"])
def test_an_anchor_gradient_that_overflows_is_the_scalers_overflow(projection: str) -> None:
    net = model()
    optimizer = optimizer_for(net, projection)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [p.detach().clone() for p in net.parameters()]
    loss, distance = losses(net)
    backward_beside(loss, distance * torch.inf, net[0].parameters())
    scaler.scale(loss).backward()
    scaler.step(optimizer)  # and no FloatingPointError
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert not optimizer.state
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_the_loss_scale_keeps_the_anchor_gradient_out_of_float16s_underflow() -> None:
    """Backward through a float16 map loses what is below 6e-8; a loss scale of 2^16 brings 1e-10 above that."""
    found = {}
    for scale in (1.0, 2.0**16):
        net = nn.Linear(4, 4, bias=False)
        with torch.autocast("cpu", dtype=torch.float16):
            hidden = net(torch.ones(2, 4))
            loss, distance = hidden.float().square().sum(), 1e-10 * hidden.float().sum()
        backward_beside(loss, distance, net.parameters())
        (loss * scale).backward()
        found[scale] = net.weight.anchor_grad / scale  # type: ignore[attr-defined]
    assert torch.equal(found[1.0], torch.zeros(4, 4))
    # 2e-10 an entry: the two rows of ones. float16 keeps three digits.
    torch.testing.assert_close(found[2.0**16], torch.full((4, 4), 2e-10), rtol=2e-3, atol=0)


def test_a_distance_a_thousand_times_the_loss_fits_the_losss_scale_in_float16() -> None:
    """float16 ends at 65504: at a scale of 2^14 a loss of 1 fits, and what is 3000 times as large does not."""
    net = nn.Linear(4, 4, bias=False)
    with torch.autocast("cpu", dtype=torch.float16):
        hidden = net(torch.eye(4))
        loss, distance = hidden.float().square().mean(), 3000 * (hidden.float() - 1).square().mean()
        backward_beside(loss, distance, net.parameters())
    (expected,) = torch.autograd.grad(distance, list(net.parameters()), retain_graph=True)
    assert not torch.autograd.grad(2.0**14 * distance, list(net.parameters()), retain_graph=True)[0].isfinite().all()
    (loss * 2.0**14).backward()
    assert net.weight.grad is not None and net.weight.grad.isfinite().all()
    # float16 keeps three digits.
    torch.testing.assert_close(net.weight.anchor_grad / 2.0**14, expected, rtol=2e-3, atol=0)  # type: ignore[attr-defined]


def test_beside_a_loss_of_zero_the_distances_gradient_is_what_it_is() -> None:
    net = nn.Linear(4, 4, bias=False)
    with torch.autocast("cpu", dtype=torch.float16):
        hidden = net(torch.eye(4))
        loss, distance = 0.0 * hidden.float().sum(), (hidden.float() - 1).square().mean()
        backward_beside(loss, distance, net.parameters())
    (expected,) = torch.autograd.grad(distance, list(net.parameters()), retain_graph=True)
    loss.backward()
    assert torch.equal(net.weight.anchor_grad, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_autocast_around_the_step_does_not_reach_the_projection(projection: str) -> None:
    plain, cast = model(), model()
    for net, dtype in ((plain, None), (cast, torch.bfloat16)):
        optimizer = optimizer_for(net, projection)
        for _ in range(2):
            forward(net, optimizer).backward()
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                optimizer.step()
            optimizer.zero_grad()
    assert same(plain, cast)
