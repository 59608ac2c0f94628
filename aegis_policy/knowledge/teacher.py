"""The backbone as it was pre-trained, kept beside the one that learns.

It is no part of the policy: nothing of it is trained or saved, a resumed run loads it again from where the backbone
came. References that compare with "what the model would have said before" share it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.network.backbone import Backbone


class Teacher:
    """A frozen backbone. State: the model, loaded when it is first asked and then kept on the inputs' device.

    Args:
        load: Builds it with the weights that it had before training.
    """

    def __init__(self, load: Callable[[], Backbone]) -> None:
        self._load = load
        self._backbone: Backbone | None = None

    def backbone(self, device: torch.device) -> Backbone:
        """The model itself, in evaluation mode."""
        if self._backbone is None:
            self._backbone = self._load().requires_grad_(False).eval()
        return self._backbone.to(device)

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each language layer puts out on the VLM's inputs: layer name -> (B, T, D)."""
        model = self.backbone(inputs["input_ids"].device)
        with watch_outputs(model.layers()) as outputs:
            model.encode(dict(inputs))
        return outputs
