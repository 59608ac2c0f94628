"""A gradient with nan or inf is never written, and whose it was is told."""

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from aegis_policy.aegis import PROJECTIONS, SUBSPACES, AegisAdamW, note_gradients, when_backward_ends

BAD = [float("nan"), float("inf"), -float("inf")]


def model() -> Any:  # a Sequential, whose items type checkers take for tensors
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))


def optimizer_for(net: Any, projection: str | None, **options: Any) -> AegisAdamW:
    """Layers "0" and "2" are protected and the last is not; None: nothing is."""
    groups: list[dict[str, Any]] = [{"params": list(net[3].parameters())}]
    for i in (0, 2):
        group: dict[str, Any] = {"params": list(net[i].parameters())}
        if projection is not None:
            group |= {"layer": str(i), "projectors": [torch.diag(torch.arange(net[i].in_features) > 0).float()]}
        groups.append(group)
    return AegisAdamW(groups, 1e-2, projection=projection or "gradient", **options)


def backward(net: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net(torch.randn(5, 3, generator=generator)).square().mean().backward()
    for i in (0, 2):
        net[i].weight.anchor_grad = torch.randn(net[i].weight.shape, generator=generator)


def spoil(net: Any, where: str, value: float) -> None:
    if where == "anchor gradient":
        net[2].weight.anchor_grad[1, 2] = value
    else:
        net[{"protected": 2, "plain": 3}[where]].weight.grad[1, 2] = value


def everything(net: nn.Module, optimizer: AegisAdamW) -> list[torch.Tensor]:
    state = [t.clone() for one in optimizer.state.values() for t in one.values()]
    return [p.detach().clone() for p in net.parameters()] + state


CASES = [
    (projection, where)
    for projection in (*PROJECTIONS, None)
    for where in ("protected", "plain", "anchor gradient")
    if where != "anchor gradient" or projection not in (*SUBSPACES, None)
]
TOLD = {
    "protected": "The gradient of '2' has nan or inf",
    "plain": r"The gradient of 'parameter 0 of group 0, shape \(2, 4\)'",
    "anchor gradient": "The anchor gradient of '2' has nan or inf",
}


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize(("projection", "where"), CASES)
def test_training_stops_before_anything_is_written(projection: str | None, where: str, steps_before: int) -> None:
    for bad in BAD:
        net = model()
        optimizer = optimizer_for(net, projection)
        for step in range(steps_before):
            backward(net, step)
            optimizer.step()
            optimizer.zero_grad()
        backward(net, 9)
        spoil(net, where, bad)
        before = everything(net, optimizer)
        told = TOLD[where].replace("'2'", "'parameter 0 of group 2, shape .*'") if projection is None else TOLD[where]
        with pytest.raises(FloatingPointError, match=told):
            optimizer.step()
        after = everything(net, optimizer)
        assert len(before) == len(after)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("projection", "where"), CASES)
def test_a_skipped_step_leaves_no_trace_but_a_warning(
    projection: str | None, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    clean, net = model(), model()
    a, b = optimizer_for(clean, projection), optimizer_for(net, projection, on_nonfinite="skip")
    for step in (0, None, 1):
        backward(net, step or 0)
        if step is None:
            spoil(net, where, BAD[0])
        with caplog.at_level(logging.WARNING):
            b.step()
        b.zero_grad()
        if step is not None:
            backward(clean, step)
            a.step()
            a.zero_grad()
    assert all(torch.equal(x, y) for x, y in zip(everything(clean, a), everything(net, b), strict=True))
    assert b.skipped_steps == 1
    assert "Nothing of this step was written" in caplog.text


def test_large_finite_gradients_are_no_failure() -> None:
    net = model()
    optimizer = optimizer_for(net, None)
    backward(net, 0)
    with torch.no_grad():
        for p in net.parameters():
            p.grad.mul_(1e30)  # their squares are no float32 numbers
    before = everything(net, optimizer)
    optimizer.step()
    assert not all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=False))


class Breaks(torch.autograd.Function):
    """The identity, whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * torch.nan


def test_after_clipping_the_layer_where_it_began_is_still_known() -> None:
    net = model()
    optimizer = optimizer_for(net, "subspace")
    hidden = net[1](net[0](torch.ones(5, 3)))
    loss = net[3](net[2](Breaks.apply(hidden))).square().mean()  # '0' lies behind the break, '2' before it
    when_backward_ends(loss, lambda: note_gradients({str(i): net[i].parameters() for i in (0, 2, 3)}))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    assert all(p.grad.isnan().all() for p in net.parameters())
    with pytest.raises(FloatingPointError, match="The gradient of '0' has nan or inf"):
        optimizer.step()


def test_a_gradient_that_was_spoilt_after_backward_is_told_so() -> None:
    net = model()
    optimizer = optimizer_for(net, "subspace")
    loss = net(torch.ones(5, 3)).square().mean()
    when_backward_ends(loss, lambda: note_gradients({str(i): net[i].parameters() for i in (0, 2, 3)}))
    loss.backward()
    spoil(net, "protected", BAD[0])
    with pytest.raises(FloatingPointError, match=r"gradient of '2' \(finite when this process's backward ended"):
        optimizer.step()


def test_many_layers_are_counted_and_not_all_spelled_out() -> None:
    layers = [nn.Linear(2, 2, bias=False) for _ in range(6)]
    groups = [{"params": list(layer.parameters()), "layer": f"l{i}"} for i, layer in enumerate(layers)]
    optimizer = AegisAdamW(groups)
    for layer in layers:
        layer.weight.grad, layer.weight.anchor_grad = torch.full((2, 2), torch.nan), torch.ones(2, 2)  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match=r"'l0', \.\.\., 'l5' \(6 layers\)"):
        optimizer.step()


def test_without_the_check_it_is_torchs_adamw() -> None:
    nets = [model(), model()]
    ours = AegisAdamW(nets[0].parameters(), on_nonfinite=None)
    for net, optimizer in zip(nets, (ours, torch.optim.AdamW(nets[1].parameters())), strict=True):
        backward(net, 0)
        spoil(net, "plain", BAD[0])
        optimizer.step()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p.isnan(), q.isnan())
    assert nets[0][3].weight.isnan().any()


def test_an_unknown_wish_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="stop, skip or None"):
        AegisAdamW(model().parameters(), on_nonfinite="ignore")


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, which is when a device is waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("projection", [*PROJECTIONS, None])
def test_it_costs_one_number_read_from_the_device_a_step(projection: str | None) -> None:
    counts = []
    for ours in (True, False):
        net = model()
        optimizer = optimizer_for(net, projection) if ours else torch.optim.AdamW(net.parameters())
        backward(net, 0)
        with Reads() as reads:
            optimizer.step()
        counts.append(reads.count)
    assert counts[0] == counts[1] + 1  # AdamW reads its step counters, which live on the CPU
