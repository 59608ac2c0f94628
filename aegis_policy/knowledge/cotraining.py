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
        end = end_of_answer(backbone, self._processor)
        inputs, labels = with_answers(self._processor, samples, end=end, token_type=backbone.answer_type)
        inputs = {key: value.to(device) for key, value in inputs.items()}
        logits = backbone.vlm(**inputs, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:].flatten().to(device)
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")
        return over * (total / average_over_ranks((targets != IGNORED).sum().to(total.dtype)))

    def _draw(self, count: int, step: int, micro_batch: int) -> np.ndarray:
        """This rank's part of what one process would draw for all of them; ranks share where samples are too few."""
        parts = min(world_size(), len(self._samples) // count)
        generator = np.random.default_rng([self._seed, step, micro_batch])
        drawn = generator.choice(len(self._samples), parts * count, replace=False)
        return drawn.reshape(parts, count)[rank() % parts]


def ends_of_answer(backbone: Backbone, processor: Any) -> list[int]:
    """The tokens at which `generate` stops: the tokenizer's if none is set."""
    ends = backbone.vlm.generation_config.eos_token_id
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def end_of_answer(backbone: Backbone, processor: Any) -> int:
    """The token that ends an answer: the first one if there are several."""
    return ends_of_answer(backbone, processor)[0]


def with_answers(
    processor: Any, samples: Sequence[VQASample], *, end: int, token_type: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Prompts with their answers behind them, padded on the right.

    Args:
        processor: The VLM's own.
        samples: Questions; the first accepted answer counts.
        end: Token behind an answer, from `end_of_answer`.
        token_type: Of an answer's tokens, for a model that is given types: `Backbone.answer_type`.

    Returns:
        The VLM's inputs, and labels (B, T): the tokens of the answers and of the end, `IGNORED` elsewhere.
    """
    inputs = encode_prompts(processor, [s.images for s in samples], [s.question for s in samples])
    tokenizer = processor.tokenizer
    answers = [[*tokenizer(s.answers[0], add_special_tokens=False)["input_ids"], end] for s in samples]
    lengths = inputs["attention_mask"].sum(1).tolist()
    total = max(length + len(answer) for length, answer in zip(lengths, answers, strict=True))
    width = inputs["input_ids"].shape[1]
    longer = {key: _widen(value, width, total) for key, value in inputs.items()}
    labels = torch.full((len(samples), total), IGNORED)
    for row, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        here = slice(length, length + len(answer))
        longer["input_ids"][row, here] = labels[row, here] = torch.tensor(answer)
        longer["attention_mask"][row, here] = 1
        if "token_type_ids" in longer:  # what may not be looked at from before
            longer["token_type_ids"][row, here] = token_type
    return longer, labels


def _widen(value: Tensor, width: int, total: int) -> Tensor:
    """(B, width) -> (B, total), zeros behind; other shapes as they are."""
    return F.pad(value, (0, total - width)) if value.ndim == 2 and value.shape[1] == width else value.clone()
