from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from aegis_policy.aegis import AegisAdamW

PROJECTIONS = ["gradient", "update", "subspace"]


def model() -> Any:  # a Sequential, whose items type checkers take for tensors
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))


def optimizer_for(net: Any, projection: str) -> AegisAdamW:
    protected: dict[str, Any] = {"params": list(net[0].parameters()), "layer": "0"}
    if projection == "subspace":
        protected["projectors"] = [torch.diag(torch.tensor([0.0, 1.0, 1.0]))]
    return AegisAdamW([protected, {"params": list(net[2].parameters())}], 1e-2, projection=projection)


def backward(net: Any, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    loss = net(torch.randn(5, 3, generator=generator)).square().mean()
    loss.backward()
    net[0].weight.anchor_grad = torch.randn(4, 3, generator=generator)
    return loss


def train(net: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_through_lerobots_checkpoint_training_resumes_to_identical_weights(projection: str, tmp_path: Path) -> None:
    from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state

    whole, first, second = model(), model(), model()
    train(whole, optimizer_for(whole, projection), range(8))

    interrupted = optimizer_for(first, projection)
    train(first, interrupted, range(5))
    save_optimizer_state(interrupted, tmp_path)

    second.load_state_dict(first.state_dict())
    resumed = optimizer_for(second, projection)
    load_optimizer_state(resumed, tmp_path)
    assert [g.get("layer") for g in resumed.param_groups] == ["0", None]
    train(second, resumed, range(5, 8))
    assert same_weights(second, whole)


def test_a_checkpoint_with_other_protected_layers_is_refused() -> None:
    net = model()
    plain = torch.optim.AdamW([{"params": list(net[0].parameters())}, {"params": list(net[2].parameters())}])
    with pytest.raises(ValueError, match=r"it has \[None, None\] and this one \['0', None\]"):
        optimizer_for(net, "update").load_state_dict(plain.state_dict())


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_learning_rate_schedulers_scale_the_protected_step(projection: str) -> None:
    scheduled, manual = model(), model()
    a, b = optimizer_for(scheduled, projection), optimizer_for(manual, projection)
    scheduler = torch.optim.lr_scheduler.LambdaLR(a, lambda step: 0.5**step)
    for step in range(4):
        train(scheduled, a, range(step, step + 1))
        scheduler.step()
        for group in b.param_groups:
            group["lr"] = 1e-2 * 0.5**step
        train(manual, b, range(step, step + 1))
    assert same_weights(scheduled, manual)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_closure_gives_the_same_step(projection: str) -> None:
    direct, closed = model(), model()
    a, b = optimizer_for(direct, projection), optimizer_for(closed, projection)
    train(direct, a, range(3))
    for step in range(3):
        b.zero_grad()
        loss = b.step(partial(backward, closed, step))
        assert loss.requires_grad
    assert same_weights(direct, closed)


def test_step_hooks_run_once() -> None:
    torch.optim.AdamW(model().parameters())  # patches AdamW.step, as any other AdamW in the process does
    net, calls = model(), []
    optimizer = optimizer_for(net, "update")
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(net, optimizer, range(1))
    assert calls == ["before", "after"]


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_accelerates_wrapper_takes_the_same_steps(projection: str) -> None:
    from accelerate import Accelerator

    direct, wrapped = model(), model()
    train(direct, optimizer_for(direct, projection), range(3))
    accelerator = Accelerator(cpu=True)
    net, optimizer = accelerator.prepare(wrapped, optimizer_for(wrapped, projection))
    train(net, optimizer, range(3))
    assert same_weights(direct, wrapped)
    assert optimizer.optimizer.last_report.keys() >= {"energy_shed", "projected_share", "closed_share"}


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_loss_scaling_changes_nothing_and_an_overflow_skips_the_step(projection: str) -> None:
    direct, scaled = model(), model()
    train(direct, optimizer_for(direct, projection), range(2))
    optimizer = optimizer_for(scaled, projection)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in (0, None, 1):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step or 0)
        loss = scaled(torch.randn(5, 3, generator=generator)).square().mean()
        scaler.scale(loss * (float("inf") if step is None else 1.0)).backward()
        scaled[0].weight.anchor_grad = torch.randn(4, 3, generator=generator)
        scaler.step(optimizer)
        scaler.update()
    # Scaling by a power of two and back is exact.
    assert same_weights(direct, scaled)


def test_low_precision_matrix_products_are_suspended_for_the_projection_and_restored() -> None:
    torch.manual_seed(0)
    # Even where this CPU has no bfloat16 product the flags must be right inside and as they were outside.
    weight, projector = nn.Parameter(torch.randn(64, 64)), torch.diag((torch.arange(64) >= 32).float())
    rotation = torch.linalg.qr(torch.randn(64, 64))[0]
    projector = rotation @ projector @ rotation.T
    closed, before = rotation[:, :32], weight.detach().clone()
    optimizer = AegisAdamW(
        [{"params": [weight], "layer": "l", "projectors": [projector]}], lr=1.0, projection="subspace"
    )
    weight.grad = torch.randn(64, 64)
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    previous = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        flags = [b.matmul.fp32_precision for b in backends]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step()
        assert [b.matmul.fp32_precision for b in backends] == flags
    finally:
        torch.set_float32_matmul_precision(previous)
    # A step of size 1 an entry; bfloat16 would leave about 1e-2 of it in the closed directions, float32 1e-6.
    assert ((weight.detach() - before) @ closed).abs().max() < 1e-4


def _rank(rank: int, world: int, folder: str, projection: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{projection}", rank=rank, world_size=world)
    net = model()
    optimizer = optimizer_for(net, projection)
    for step in range(3):
        optimizer.zero_grad()
        loss = net(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).square().mean()
        loss.backward()  # the task gradient is the same everywhere, as after data-parallel reduction
        anchors = [torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + r)) for r in range(world)]
        net[0].weight.anchor_grad = anchors[rank]
        optimizer.step()
    torch.save(net.state_dict(), f"{folder}/{projection}.{rank}.pt")
    dist.barrier()  # a rank that leaves early makes gloo's threads in the other abort
    dist.destroy_process_group()


@pytest.mark.slow  # two processes import torch
def test_replicas_that_see_other_batches_stay_together(tmp_path: Path) -> None:
    projection, world = "update", 2
    mp.spawn(_rank, args=(world, str(tmp_path), projection), nprocs=world)
    a, b = (torch.load(tmp_path / f"{projection}.{rank}.pt") for rank in range(world))
    assert all(torch.equal(a[k], b[k]) for k in a)

    # And they take the step of the averaged anchor gradient.
    net = model()
    optimizer = optimizer_for(net, projection)
    for step in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        anchors = [torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + r)) for r in range(world)]
        net[0].weight.anchor_grad = sum(anchors) / world
        optimizer.step()
    assert all(torch.allclose(a[k], v, rtol=0, atol=1e-7) for k, v in net.state_dict().items())
