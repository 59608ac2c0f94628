"""Answers as tokens behind their prompts: how a model is taught an answer, or held to one.

Prompts are padded on the left, so answers begin at one place for all samples, and the head, the dearest part of a model
with many words, is asked there alone. Types and masks are those with which the VLM would have generated them.

Legend: `B` samples, `T` tokens of the longest prompt, `A` tokens of the longest answer, `V` vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aegis_policy.network.backbone import Backbone


def ends_of_answer(backbone: Backbone, processor: Any) -> list[int]:
    """The tokens at which `generate` stops: the tokenizer's if none is set. A taught answer ends in the first."""
    ends = backbone.vlm.generation_config.eos_token_id
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def answer_tokens(processor: Any, answers: Sequence[str], *, end: int) -> tuple[Tensor, Tensor]:
    """Answers as a model would say them.

    Args:
        processor: The VLM's own.
        answers: B of them.
        end: Token behind an answer, from `ends_of_answer`.

    Returns:
        Tokens (B, A), and which of them count (B, A): those of the answer and its end, not what pads it on the right.
    """
    rows = [[*processor.tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in answers]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
    return tokens, torch.arange(longest) < torch.tensor([[len(row)] for row in rows])


def say_behind(inputs: Mapping[str, Tensor], answer: Tensor, counts: Tensor, *, token_type: int) -> dict[str, Tensor]:
    """Prompts padded on the left with answers behind them.

    Args:
        inputs: The VLM's, of the prompts.
        answer: (B, A).
        counts: (B, A), false where a token is padding.
        token_type: Of an answer's tokens, for a model that is given types: `Backbone.answer_type`.

    Returns:
        The VLM's inputs, (B, T + A).
    """
    behind = {"input_ids": answer, "token_type_ids": torch.full_like(answer, token_type), "attention_mask": counts}
    shape = inputs["input_ids"].shape
    return {
        key: torch.cat([value, behind.get(key, torch.zeros_like(answer)).to(value.dtype)], dim=1)
        if value.shape == shape
        else value
        for key, value in inputs.items()
    }


def answer_logits(backbone: Backbone, inputs: Mapping[str, Tensor], count: int) -> Tensor:
    """(B, A, V), float32: of each of the last `count` tokens, given what is before it.

    Args:
        backbone: Who says them.
        inputs: From `say_behind`.
        count: A.
    """
    logits = backbone.vlm(**inputs, use_cache=False, logits_to_keep=count + 1).logits
    return logits[:, -count - 1 : -1].float()
