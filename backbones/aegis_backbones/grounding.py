"""What the words of a question should know half way through the language layers: where the thing is that they name.

Comparing two things takes finding both, and the answer alone (one bit) teaches the finding hardly at all: "left" or
"right" stays a guess for thousands of steps. So while pre-training, the hidden state of a mention's last token ("the
red [cube]") is also asked for the thing's place by a linear head, which is thrown away afterwards.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aegis_backbones.batches import Answers, Batch
from aegis_backbones.patch_targets import WEIGHT_OF_PLACE


class GroundingHead(nn.Module):
    """The linear reader of places. State: its weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Linear(width, 2)

    def loss(self, answers: Answers, batch: Batch) -> tuple[Tensor, float]:
        """The weighted squared error of places, and the mean absolute error as a reading (picture sides)."""
        if not len(batch.mentioned):
            return answers.half_way.new_zeros(()), 0.0
        row, position = batch.mentioned_at.unbind(1)
        hidden = answers.half_way[row, position]  # (n, D)
        error = self.place(F.rms_norm(hidden, hidden.shape[-1:])) - batch.mentioned
        with torch.no_grad():
            reading = error.abs().mean().item()
        return WEIGHT_OF_PLACE * error.square().sum(-1).mean(), reading
