"""The frozen backbone's answers to generic questions about the robot's own images: learning without forgetting
(Li & Hoiem, arXiv 1606.09282). No VQA data: what is kept is whatever it would have said.

The distance is KL(before || now) of the distribution over the answer's first token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aegis_policy.aegis import average_over_ranks
from aegis_policy.knowledge.reference import Seen
from aegis_policy.knowledge.teacher import Teacher
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts, to_uint8


class Answers:
    """One question a sample, the questions in turn: which one depends on step, micro-batch and place alone.

    Args:
        backbone: The one that learns.
        teacher: The one whose answers count.
        processor: The VLM's own.
        image_keys: The policy's cameras.
        questions: At least one.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: Teacher,
        *,
        processor: Any,
        image_keys: Sequence[str],
        questions: Sequence[str],
    ) -> None:
        self._backbone = backbone
        self._teacher = teacher
        self._processor = processor
        self._image_keys = tuple(image_keys)
        self._questions = tuple(questions)

    def __call__(self, seen: Seen) -> Tensor:
        """(1,)."""
        images = [to_uint8(seen.batch[key]) for key in self._image_keys]
        first = seen.step + seen.micro_batch
        asked = [self._questions[(first + i) % len(self._questions)] for i in range(len(seen.mask))]
        views = [list(one) for one in zip(*images, strict=True)]
        inputs = encode_prompts(self._processor, views, asked, padding_side="left")
        device = seen.mask.device
        inputs = {key: value.to(device) for key, value in inputs.items()}
        with torch.no_grad():
            before = first_token_log_probabilities(self._teacher.asked(device), inputs)
        now = first_token_log_probabilities(self._backbone, inputs)
        samples = average_over_ranks(now.new_tensor(float(len(now))))
        return (F.kl_div(now, before, reduction="sum", log_target=True) / samples).unsqueeze(0)


def first_token_log_probabilities(backbone: Backbone, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, vocabulary) of the token that follows prompts padded on the left."""
    logits = backbone.vlm(**inputs, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1].float().log_softmax(-1)
