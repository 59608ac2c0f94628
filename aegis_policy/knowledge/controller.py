"""Keeps a reference's distance below a bound by adapting the weight of its penalty, instead of fixing that weight.

    log s  <-  log s + gain * clip(distance / bound - 1, -1, 1)        at each look at the reference, s = 1 at the start

While the distance is above the bound the penalty grows, below it fades: what the bound allows is free, what exceeds it
is pushed back however strongly the task pulls. That is gradient ascent on the logarithm of the constraint's multiplier
(as in GECO, arXiv 1810.00597).
"""

import math

import torch
from torch import Tensor, nn

# A distance of twice the bound or more multiplies the penalty by e in 50 looks.
GAIN = 0.02
# The scale stays within a factor of a thousand of where it began.
LIMIT = math.log(1e3)


class PenaltyController(nn.Module):
    """The scale of a penalty, and the rule by which it changes.

    State: `log_scale`, a buffer, so that a resumed training goes on with the scale it had.

    Args:
        bound: Of the distance, in the reference's own units.
    """

    log_scale: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.register_buffer("log_scale", torch.zeros(()))

    def forward(self, distance: Tensor) -> Tensor:
        """The scale for this step's penalty, (), without gradient; adapts it first.

        Args:
            distance: (), of this step.
        """
        excess = (distance.detach().float() / self.bound - 1).clamp(-1, 1).nan_to_num(0.0)  # nan would stay for good
        self.log_scale.add_(GAIN * excess).clamp_(-LIMIT, LIMIT)
        return self.scale

    @property
    def scale(self) -> Tensor:
        """The scale as it stands, (), without gradient."""
        return self.log_scale.exp()
