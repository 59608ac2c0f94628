"""How far a training is: what a resumed one must know beside its weights and its optimizer.

A module of its own, because a checkpoint of adapters (`--peft.*`) holds adapters and whole modules and nothing else:
listed among the modules to save, this one travels in it.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Progress(nn.Module):
    """State: `training_steps`, the number of steps taken; `noise_seed`, from which the noise of each step is drawn."""

    training_steps: Tensor
    noise_seed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("training_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("noise_seed", torch.randint(2**31, ()))


def accept_former_names(policy: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before loading, for checkpoints in which these buffers are the policy's own."""
    for name in ("training_steps", "noise_seed"):
        if prefix + name in state_dict:
            state_dict[f"{prefix}progress.{name}"] = state_dict.pop(prefix + name)
