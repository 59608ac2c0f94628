"""What should be known half way through the language layers: which things a question is about, and where they are.

Comparing two things takes finding both, counting takes telling those that count from the others, and the answer alone
(one bit, one digit) teaches the finding hardly at all: "left" or "right" stays a guess for thousands of steps. So while
pre-training, linear heads read hidden states: the last token of a mention ("the red [cube]") is asked for the thing's
place, and every image token, which has seen the question, whether its patch holds a thing that the question is about.
The heads are thrown away afterwards.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from aegis_backbones.architecture import IMAGE_TOKENS
from aegis_backbones.batches import Answers, Batch
from aegis_backbones.patch_targets import WEIGHT_OF_PLACE, WEIGHT_OF_PRESENCE


class GroundingHead(nn.Module):
    """The linear readers of places and of what is meant. State: their weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Linear(width, 2)
        self.meant = nn.Linear(width, 1)

    def loss(self, answers: Answers, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of both heads, and readings.

        "mention place" is the mean absolute error of places in picture sides, "meant" the share of questions of
        which every patch is told right.
        """
        hidden = F.rms_norm(answers.half_way, answers.half_way.shape[-1:])
        meant = self.meant(hidden[:, :IMAGE_TOKENS]).squeeze(-1)  # (B K, P)
        loss = WEIGHT_OF_PRESENCE * F.binary_cross_entropy_with_logits(meant, batch.meant)
        readings = {"meant": ((meant > 0) == batch.meant.bool()).all(1).float().mean().item()}
        if len(batch.mentioned):
            row, position = batch.mentioned_at.unbind(1)
            error = self.place(hidden[row, IMAGE_TOKENS + position]) - batch.mentioned
            loss = loss + WEIGHT_OF_PLACE * error.square().sum(-1).mean()
            readings["mention place"] = error.abs().mean().item()
        return loss, readings
