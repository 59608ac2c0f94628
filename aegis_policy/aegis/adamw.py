"""torch's own AdamW, on one parameter group."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam


def adamw_step(optimizer: torch.optim.AdamW, group: dict[str, Any]) -> None:
    """The step of one group; `AdamW.step` would run all of them, and the user's step hooks each time.

    Args:
        optimizer: Whose state it is. With `fused_on_cpu` torch's fused kernel takes the step on a CPU where the group
            leaves the choice.
        group: One of its parameter groups.
    """
    lists: list[list[Tensor]] = [[] for _ in range(6)]
    has_complex = optimizer._init_group(group, *lists)
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps = lists
    beta1, beta2 = group["betas"]
    fused = group["fused"]
    free = fused is None and not (group["foreach"] or group["differentiable"] or has_complex)
    if free and getattr(optimizer, "fused_on_cpu", False):
        fused = all(p.device.type == "cpu" for p in params) or None
    adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        state_steps,
        foreach=group["foreach"],
        capturable=group["capturable"],
        differentiable=group["differentiable"],
        fused=fused,
        has_complex=has_complex,
        decoupled_weight_decay=True,
        amsgrad=group["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
