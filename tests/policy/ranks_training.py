"""One training of a tiny policy, in one process or on one rank of two: the same global batches either way."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from aegis_policy.aegis import rank, world_size
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.conftest import make_batch

GLOBAL = 5  # samples a step
WITH_FEATURES = {"projection": "subspace", "reference": "features", "penalty_weight": 1.0}


def build(folder: Path, *, seed: int = 0, **options: Any) -> AegisVLAPolicy:
    """A policy whose random weights, and seed of the noise, are those of `seed`."""
    logging.disable(logging.INFO)
    torch.manual_seed(seed)
    config = AegisVLAConfig(
        input_features={
            "observation.images.camera0": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 48, 64)),
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(5,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(4,))},
        backbone=str(folder),
        device="cpu",
        **{"chunk_size": 5, "n_action_steps": 3, **options},
    )
    return AegisVLAPolicy(config)


def global_batch(policy: AegisVLAPolicy, step: int) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Batch, noise and times; the chunks reach past their episode's end by 0, 1, 2, ... actions."""
    batch = make_batch(policy, GLOBAL, seed=step)
    horizon = policy.config.chunk_size
    batch["action_is_pad"] = torch.arange(horizon) >= horizon - torch.arange(GLOBAL)[:, None]
    draw = torch.Generator().manual_seed(1000 + step)
    return batch, torch.randn(batch["action"].shape, generator=draw), torch.rand(GLOBAL, generator=draw)


def mine(policy: AegisVLAPolicy, step: int, *, first: int = 3) -> tuple[Any, ...]:
    """This rank's part of a global batch: rank 0 has the `first` samples, rank 1 the others."""
    whole = global_batch(policy, step)
    if world_size() == 1:
        return whole
    rows = (slice(0, first), slice(first, GLOBAL))[rank()]
    batch, noise, time = whole
    return {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}, noise[rows], time[rows]


def train(
    folder: Path,
    options: Mapping[str, Any],
    *,
    steps: int = 20,
    first: int = 3,
    overflow_at: int | None = None,
    micro_batches: int = 1,
    peft: bool = False,
    find_unused: bool = True,
) -> dict[str, Any]:
    """Losses, log entries and final state of a training that begins with other random weights on each rank.

    Args:
        folder: Of the backbone.
        options: Of the configuration.
        steps: Of the training.
        first: Samples of rank 0.
        overflow_at: Step at which the loss of the last rank is infinite, under loss scaling.
        micro_batches: Global batches a step; the ranks' gradients meet in the last.
        peft: Whether LeRobot's LoRA wraps the policy.
        find_unused: As for DistributedDataParallel.
    """
    policy = build(folder, seed=rank(), **options)
    learner: Any = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2}) if peft else policy
    optimizer = policy.config.get_optimizer_preset().build(learner.get_optim_params())
    wrapped = DistributedDataParallel(learner, find_unused_parameters=find_unused) if world_size() > 1 else learner
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled=overflow_at is not None)
    wrapped.train()
    losses, metrics = [], []
    for step in range(steps):
        for i in range(micro_batches):
            last = i == micro_batches - 1
            with nullcontext() if last or world_size() == 1 else wrapped.no_sync():
                loss, told = wrapped.forward(*mine(policy, micro_batches * step + i, first=first))
                overflows = step == overflow_at and rank() == world_size() - 1
                scaler.scale(loss * float("inf") if overflows else loss / micro_batches).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), policy.config.optimizer_grad_clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        learner.update()
        losses.append(loss.item())
        metrics.append(told)
    sent = list(wrapped.named_module_buffers) if world_size() > 1 else []
    return {
        "losses": losses,
        "metrics": metrics,
        "state": {n: t.clone() for n, t in learner.state_dict().items()},
        "buffers sent": sent,
        "noise": policy.progress.draw(torch.zeros(2, 5, 4), micro_batch=0)[0],
        "asked": policy._monitor is not None,
    }


def train_all(folder: Path, arms: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`train` of each arm, or the error it ended with."""
    return {name: _or_error(train, folder, **arm) for name, arm in arms.items()}


def shard_all(folder: Path) -> dict[str, Any]:
    """The policy under both of torch's ways to shard, or the error that it ended with."""
    subspace, gradient = {"projection": "subspace"}, {"projection": "gradient"}
    probed = {"knowledge": "none", "probe_freq": 1}
    return {
        "fsdp2, subspace": _or_error(_train_sharded, folder, subspace),
        "fsdp2, subspace and features": _or_error(_train_sharded, folder, WITH_FEATURES),
        "fsdp2, gradient": _or_error(_train_sharded, folder, gradient),
        "fsdp2, probed": _or_error(_train_sharded, folder, probed),
        "fsdp2, averaged": _or_error(_train_sharded, folder, subspace | {"ema_decay": 0.9}),
        "fsdp2, projected together": _or_error(_train_sharded, folder, subspace | {"projection_every": 2}),
        "fsdp2, optimizer first": _or_error(_train_sharded, folder, subspace, optimizer_first=True),
        "fsdp1, subspace": _or_error(_train_flattened, folder, subspace),
        "fsdp1, gradient": _or_error(_train_flattened, folder, gradient),
    }


def _train_sharded(folder: Path, options: dict[str, Any], *, optimizer_first: bool = False) -> dict[str, Any]:
    policy = build(folder, **options)
    make = policy.config.get_optimizer_preset().build
    optimizer = make(policy.get_optim_params()) if optimizer_first else None
    if world_size() > 1:
        # Actions read the last layer's keys and values, not its output, so nothing would gather it for the backward.
        for layer in list(policy.backbone.layers().values())[:-1]:
            fully_shard(layer)
        fully_shard(policy)
    optimizer = optimizer or make(policy.get_optim_params())
    policy.train()
    losses = []
    for step in range(4):
        loss, _ = policy(*mine(policy, step))  # the call itself, not .forward: fully_shard works in its hooks
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        losses.append(loss.item())
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in policy.named_parameters()}
    return {"losses": losses, "state": {n: p.detach() for n, p in whole.items()}}


def _train_flattened(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """As accelerate does under lerobot-train: the optimizer first, then FSDP1 with the original parameters' names."""
    policy = build(folder, **options)
    policy.config.get_optimizer_preset().build(policy.get_optim_params())
    wrapped = FullyShardedDataParallel(policy, use_orig_params=True, device_id=torch.device("cpu"))
    wrapped.train()
    loss, _ = wrapped.forward(*mine(policy, 0))
    return {"losses": [loss.item()]}


def _or_error(function: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    try:
        return function(*arguments, **options)
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)}
