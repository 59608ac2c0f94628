"""LeRobot's configuration of `AegisAdamW`, the optimizer that keeps the anchor in `step()`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.optim import OptimizerConfig

from aegis_policy.aegis import AegisAdamW


@OptimizerConfig.register_subclass("aegis_adamw")
@dataclass
class AegisAdamWConfig(OptimizerConfig):
    """AdamW whose steps respect the anchor; a plain AdamW for parameters that no group protects.

    On a CPU torch's fused kernel takes the step: one pass over each tensor instead of a dozen, in a third to
    half of the time (docs/performance.md, Forms of a projector). Elsewhere torch chooses.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-10
    grad_clip_norm: float = 1.0
    projection: str = "subspace"
    projection_every: int = 1
    on_nonfinite: str = "stop"

    def build(self, params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over the groups of `AegisVLAPolicy.get_optim_params`, or over bare parameters."""
        return AegisAdamW(
            params,
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            weight_decay=self.weight_decay,
            projection=self.projection,
            projection_every=self.projection_every,
            on_nonfinite=self.on_nonfinite,
            fused_on_cpu=True,
        )
