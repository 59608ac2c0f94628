"""Mixed precision: what runs in half, what must not, and what the step that is really taken keeps."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from tests.policy.conftest import make_batch
from tests.policy.tiny_backbones import FAMILIES


@pytest.fixture
def accelerate_alone():
    """accelerate keeps one state a process: nobody's before this test, nobody's after it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def start(make_policy, family: str = "paligemma2", **options):
    torch.manual_seed(0)
    policy = make_policy(family, **options).train()
    return policy, policy.config.get_optimizer_preset().build(policy.get_optim_params())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_in_half_around_float32_weights(make_policy, family):
    policy, optimizer = start(make_policy, family, projection="update", optimizer_lr=1e-3)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = policy.forward(make_batch(policy, seed=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in policy.parameters())
    assert all(t.dtype is torch.float32 for state in optimizer.state.values() for t in state.values())
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    first = next(iter(policy.backbone.layers()))
    assert {name for name in before if first in name or "expert.action" in name} <= moved


@pytest.mark.parametrize("projection", ["subspace", "update"])
def test_lerobots_step_in_bfloat16_is_autocast_around_float32_weights(make_policy, accelerate_alone, projection):
    """`--policy.dtype=bfloat16` is accelerate's mixed precision in lerobot-train; its step is run here."""
    policy, optimizer = start(make_policy, projection=projection, dtype="bfloat16")
    accelerator = Accelerator(mixed_precision="bf16", cpu=True, step_scheduler_with_optimizer=False)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    seen = []
    down = policy.backbone.decoder.layers[1].mlp.down_proj
    down.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")}
    tracker = MetricsTracker(3, 3, 1, meters, accelerator=accelerator)
    before = down.weight.detach().clone()
    for step in range(2):
        update_policy(tracker, policy, make_batch(policy, seed=step), optimizer, 1.0, accelerator)
    assert set(seen) == {torch.bfloat16}
    assert down.weight.dtype is torch.float32 and not torch.equal(down.weight, before)
    assert int(policy.training_steps) == 2
    assert optimizer.optimizer.last_report["energy_shed"] > 0
