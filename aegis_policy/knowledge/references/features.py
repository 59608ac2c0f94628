"""The frozen backbone's hidden states on the robot's own samples, token by token: feature distillation.

d_l = 1/L  sum_t ||h_lt - h*_lt||^2 / sum_t ||h*_lt||^2      over the unmasked tokens t, for each of L layers
"""

import torch
from torch import Tensor

from aegis_policy.aegis import average_over_ranks
from aegis_policy.knowledge.reference import Seen
from aegis_policy.knowledge.teacher import Teacher


class Features:
    """Relative squared error of each language layer's output; their sum is the mean over the layers."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def __call__(self, seen: Seen) -> Tensor:
        """(L,)."""
        before = self._teacher.outputs(seen.inputs)
        kept = seen.mask.unsqueeze(-1)
        errors, sizes = [], []
        for name, output in seen.outputs.items():
            target = before[name].float() * kept
            errors.append((output.float() * kept - target).square().sum())
            sizes.append(target.square().sum())
        # Of all ranks' tokens, so that each token counts the same wherever it is.
        return torch.stack(errors) / average_over_ranks(torch.stack(sizes)) / len(errors)
