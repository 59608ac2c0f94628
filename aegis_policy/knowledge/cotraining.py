"""Co-training: VQA samples beside the robot's in every batch, the upper bound of what data can keep.

The only way of keeping knowledge here that needs VQA data while training. Loss: cross-entropy of the answer's tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aegis_policy.aegis import average_over_ranks, rank, world_size
from aegis_policy.knowledge.answer_tokens import answer_logits, answer_tokens, ends_of_answer, say_behind
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts
from aegis_policy.vqa import VQASample

IGNORED = -100  # torch's label for "no loss here"


class CoTraining:
    """VQA samples for every step.

    Args:
        samples: What is drawn from; the first accepted answer counts.
        processor: The VLM's own.
        share: Of VQA samples in robot and VQA samples together, in (0, 1).
        seed: Of the draws, which depend on it and on step, micro-batch and rank alone.
    """

    def __init__(self, samples: Sequence[VQASample], processor: Any, *, share: float, seed: int) -> None:
        if not samples:
            raise ValueError("Co-training draws from VQA samples: got none.")
        self._samples = samples
        self._processor = processor
        self._share = share
        self._seed = seed

    def loss(self, backbone: Backbone, *, step: int, beside: int, device: torch.device, micro_batch: int = 0) -> Tensor:
        """Mean cross-entropy of this step's answers, weighted as their share of all samples asks.

        Args:
            backbone: The one that learns.
            step: Of the training.
            beside: Number of robot samples in the batch.
            device: Of the backbone.
            micro_batch: Of the step; each draws samples of its own.
        """
        over = self._share / (1 - self._share)  # VQA samples a robot sample
        count = min(max(1, round(over * beside)), len(self._samples))
        samples = [self._samples[i] for i in self._draw(count, step, micro_batch)]
        inputs = encode_prompts(
            self._processor, [s.images for s in samples], [s.question for s in samples], padding_side="left"
        )
        end = ends_of_answer(backbone, self._processor)[0]
        answer, counts = answer_tokens(self._processor, [s.answers[0] for s in samples], end=end)
        inputs = say_behind(inputs, answer, counts, token_type=backbone.answer_type)
        inputs = {key: value.to(device) for key, value in inputs.items()}
        logits = answer_logits(backbone, inputs, answer.shape[1])
        targets = answer.masked_fill(~counts, IGNORED).to(device)  # to index by a mask would wait for the device
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return over * (total / average_over_ranks(counts.sum().to(device=device, dtype=total.dtype)))

    def _draw(self, count: int, step: int, micro_batch: int) -> np.ndarray:
        """This rank's part of what one process would draw for all of them; ranks share where samples are too few."""
        parts = min(world_size(), len(self._samples) // count)
        generator = np.random.default_rng([self._seed, step, micro_batch])
        drawn = generator.choice(len(self._samples), parts * count, replace=False)
        return drawn.reshape(parts, count)[rank() % parts]
