"""The frozen backbone's answers to generic questions about the robot's own images: learning without forgetting
(Li & Hoiem, arXiv 1606.09282). No VQA data: what is kept is whatever it would have said.

The frozen backbone answers greedily, and each token of that answer counts, its end as well:

    distance = mean over tokens t of KL(before(. | answer up to t) || now(. | answer up to t))

The end is what is lost first. A model held to the first token alone says it, and then goes on and on.

Legend: `B` samples, `T` tokens of the longest prompt, `A` tokens of the longest answer, `V` vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aegis_policy.aegis import average_over_ranks
from aegis_policy.knowledge.answer_tokens import answer_logits, ends_of_answer, say_behind
from aegis_policy.knowledge.reference import Seen
from aegis_policy.knowledge.teacher import Teacher
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts, to_uint8

LONGEST = 8  # tokens of an answer, as when a probe asks


class Answers:
    """One question a sample, the questions in turn: which one depends on step, micro-batch and place alone.

    Args:
        backbone: The one that learns.
        teacher: The one whose answers count.
        processor: The VLM's own.
        image_keys: The policy's cameras.
        questions: At least one.
        every: Steps from one look to the next.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: Teacher,
        *,
        processor: Any,
        image_keys: Sequence[str],
        questions: Sequence[str],
        every: int = 1,
    ) -> None:
        self._backbone = backbone
        self._teacher = teacher
        self._processor = processor
        self._image_keys = tuple(image_keys)
        self._questions = tuple(questions)
        self._every = every

    def __call__(self, seen: Seen) -> Tensor:
        """(1,)."""
        images = [to_uint8(seen.batch[key]) for key in self._image_keys]
        first = seen.step // self._every + seen.micro_batch  # counted in looks, or some questions never come up
        asked = [self._questions[(first + i) % len(self._questions)] for i in range(len(seen.mask))]
        views = [list(one) for one in zip(*images, strict=True)]
        inputs = encode_prompts(self._processor, views, asked, padding_side="left")
        device = seen.mask.device
        inputs = {key: value.to(device) for key, value in inputs.items()}
        teacher = self._teacher.asked(device)
        with torch.no_grad():
            answer, counts = say(teacher, inputs, ends=ends_of_answer(self._backbone, self._processor))
            inputs = say_behind(inputs, answer, counts, token_type=self._backbone.answer_type)
            before = answer_logits(teacher, inputs, answer.shape[1]).log_softmax(-1)
        now = answer_logits(self._backbone, inputs, answer.shape[1]).log_softmax(-1)
        distances = F.kl_div(now, before, reduction="none", log_target=True).sum(-1)  # (B, A)
        tokens = average_over_ranks(counts.sum().to(distances.dtype))
        return ((distances * counts).sum() / tokens).unsqueeze(0)


def say(backbone: Backbone, inputs: Mapping[str, Tensor], *, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Greedy answers to prompts padded on the left.

    Args:
        backbone: Who answers.
        inputs: The VLM's.
        ends: Tokens of which any ends an answer.

    Returns:
        Their tokens (B, A), A <= `LONGEST`; and which of them count (B, A): all up to the first end, and that itself.
    """
    options = {"max_new_tokens": LONGEST, "do_sample": False, "eos_token_id": list(ends), "pad_token_id": ends[0]}
    answer = backbone.vlm.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    is_end = torch.isin(answer, answer.new_tensor(ends)).long()
    return answer, is_end.cumsum(1) - is_end == 0
