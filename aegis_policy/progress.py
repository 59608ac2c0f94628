"""How far a training is: what a resumed one must know beside its weights and its optimizer.

A module of its own, because a checkpoint of adapters (`--peft.*`) holds adapters and whole modules and nothing else:
listed among the modules to save, this one travels in it.
"""

from typing import Any

import torch
from lerobot.policies.common.flow_matching import sample_noise
from torch import Tensor, nn

from aegis_policy.aegis import rank
from aegis_policy.network.flow import sample_time


class Progress(nn.Module):
    """State: `training_steps`, the number of steps taken; `noise_seed`, from which the noise of each step is drawn;
    how many batches have been looked at since the last one that was trained on.
    """

    training_steps: Tensor
    noise_seed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("training_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("noise_seed", torch.randint(2**31, ()))
        self._held_out = 0

    def draw(self, action: Tensor, *, micro_batch: int | None) -> tuple[Tensor, Tensor]:
        """Noise and times of this training step, or of the next batch of held-out data.

        In training a function of the run's seed, the step, the micro-batch and the rank, not of how often somebody has
        drawn before: so a resumed run trains on the noise of the uninterrupted one. Held-out batches have noise of
        their own each, the n-th of one evaluation that of the n-th of any other.

        Args:
            action: (B, ...).
            micro_batch: Of the step, from 0; None for held-out data.

        Returns:
            Noise of the actions' shape and flow times (B,).
        """
        if micro_batch is None:
            place: tuple[int, ...] = (-1, rank(), self._held_out)
            self._held_out += 1
        else:
            later = (micro_batch,) if micro_batch else ()  # the first one draws as a whole batch does
            place = (int(self.training_steps), rank(), *later)
            self._held_out = 0
        devices = [] if action.device.type == "cpu" else [action.device]
        with torch.random.fork_rng(devices, device_type="cuda" if not devices else action.device.type):
            torch.manual_seed(hash((int(self.noise_seed), *place)))
            return sample_noise(action.shape, action.device), sample_time(len(action), action.device)


def accept_former_names(policy: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before loading, for checkpoints in which these buffers are the policy's own."""
    for name in ("training_steps", "noise_seed"):
        if prefix + name in state_dict:
            state_dict[f"{prefix}progress.{name}"] = state_dict.pop(prefix + name)
