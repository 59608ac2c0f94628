"""The pre-trained weights themselves: L2-SP (arXiv 1802.01483), half the squared distance of what learns."""

import torch
from torch import Tensor

from aegis_policy.knowledge.reference import Seen
from aegis_policy.knowledge.teacher import Teacher
from aegis_policy.network.backbone import Backbone


class Weights:
    """Half the squared distance from the pre-trained weights, in one number."""

    def __init__(self, backbone: Backbone, teacher: Teacher) -> None:
        self._backbone = backbone
        self._teacher = teacher

    def __call__(self, seen: Seen) -> Tensor:
        """(1,); it does not depend on the batch."""
        before = self._teacher.weights(seen.mask.device)
        squares = [
            (parameter - before.get_parameter(name)).square().sum()
            for name, parameter in self._backbone.named_parameters()
            if parameter.requires_grad
        ]
        return 0.5 * torch.stack(squares).sum(0, keepdim=True)
