"""Scenes and questions -> sequences for a frozen language model, several questions behind one look at the picture.

A prompt's beginning, "<|im_start|>user\n" and the picture's marks and tokens, is the same for every question about
that picture, and a causal model reads it without looking ahead. So it is written once, the questions follow it as
branches that see it and themselves but not each other, and each branch counts its positions from the beginning's end:
the numbers are those of one prompt a question, for half the work.

Legend: `B` pictures, `K` branches a picture (questions and the description), `S` tokens of the beginning, `T` of a row.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SmolVLMForConditionalGeneration

from aegis_backbones.mini import IMAGE
from aegis_backbones.questions import COLUMNS, ROWS, Objects, Question

DESCRIBE = "describe"  # a family of training alone: many words about one picture, against one a question
DESCRIBE_PROMPT = "What is in the picture?"


class Branch(NamedTuple):
    """What follows the picture: the rest of the prompt, and the answer to be learned."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Rows(NamedTuple):
    """B pictures with K branches each."""

    tokens: Tensor  # (B, T)
    positions: Tensor  # (B, T), rotary positions
    mask: Tensor  # (B, 1, T, T), 0 where a token sees another and -inf where it does not
    is_answer: Tensor  # (B, T) bool
    branch: Tensor  # (B, T), 0..K-1 and -1 outside


class Answers(NamedTuple):
    """How the branches were answered."""

    loss: Tensor  # (B, K), mean cross-entropy of the answer's tokens
    correct: Tensor  # (B, K) bool, whether every token of the answer comes first


class Writer:
    """Prompts of one processor, token for token as it writes them. State: the texts it has seen."""

    def __init__(self, processor: Any) -> None:
        marker = "\x00"  # stands where the question will
        content = [{"type": "image"}, {"type": "text", "text": marker}]
        written = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        before, self._after = written.split(marker)
        before = processor.expand_text_with_image_tokens([before], image_rows=[[0]], image_cols=[[0]])[0]
        self._tokenizer = processor.tokenizer
        self._encode = lru_cache(maxsize=200_000)(self._encode_text)
        self.beginning = self._encode(before)
        self.pad: int = self._tokenizer.pad_token_id
        image = self._tokenizer.convert_tokens_to_ids(IMAGE)
        self.image_at = torch.tensor([i for i, token in enumerate(self.beginning) if token == image])

    def branch(self, question: str, answer: str) -> Branch:
        """A question and its answer, which the end of the turn closes."""
        return Branch(self._encode(f"{question}{self._after}"), self._encode(f"{answer}{self._tokenizer.eos_token}"))

    def word(self, word: str) -> list[int]:
        """The tokens of a word inside a sentence."""
        return list(self._encode(f" {word}"))

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def describe(objects: Objects) -> Question:
    """Every thing and the ninth of the picture that it is in, from left to right."""
    named = [
        f"{colour} {shape} {ROWS[min(int(3 * v), 2)]} {COLUMNS[min(int(3 * u), 2)]}"
        for colour, shape, u, v in sorted(objects, key=lambda o: o[2])
    ]
    return Question(DESCRIBE_PROMPT, (", ".join(named) or "nothing",), DESCRIBE)


def write_rows(writer: Writer, questions: Sequence[Sequence[Question]]) -> Rows:
    """K questions about each of B pictures as rows, padded on the right."""
    rows = [[writer.branch(q.question, q.answers[0]) for q in about_one] for about_one in questions]
    start = len(writer.beginning)
    length = start + max(sum(len(b.prompt) + len(b.answer) for b in row) for row in rows)
    shape = (len(rows), length)
    tokens, positions = np.full(shape, writer.pad), np.zeros(shape, np.int64)
    is_answer, branch = np.zeros(shape, bool), np.full(shape, -1)
    tokens[:, :start], positions[:, :start] = writer.beginning, np.arange(start)
    for row, branches in enumerate(rows):
        at = start
        for k, one in enumerate(branches):
            end, turn = at + len(one.prompt) + len(one.answer), at + len(one.prompt)
            tokens[row, at:end] = one.prompt + one.answer
            positions[row, at:end] = start + np.arange(end - at)
            is_answer[row, turn:end], branch[row, at:end] = True, k
            at = end
    branches_, order = torch.from_numpy(branch), torch.arange(length)
    same = branches_[:, :, None] == branches_[:, None, :]  # (B, T, T), padding sees padding
    sees = (same | (order < start)) & (order[:, None] >= order)
    mask = torch.zeros(sees.shape).masked_fill_(~sees, -torch.inf)
    return Rows(
        torch.from_numpy(tokens), torch.from_numpy(positions), mask[:, None], torch.from_numpy(is_answer), branches_
    )


def answer_loss(
    model: SmolVLMForConditionalGeneration, rows: Rows, features: Tensor, *, image_at: Tensor, branches: int
) -> Answers:
    """Cross-entropy of the answers, branch by branch.

    Args:
        model: The backbone, its attention "eager" (which takes the mask as it is).
        rows: K branches a picture.
        features: (B, S', D) image tokens of the connector.
        image_at: (S',) where in a row they go.
        branches: K.
    """
    embedded = model.get_input_embeddings()(rows.tokens)  # (B, T, D)
    embedded = embedded.index_copy(1, image_at, features.to(embedded.dtype))
    hidden = model.model.text_model(
        inputs_embeds=embedded, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
    ).last_hidden_state
    before = torch.roll(rows.is_answer, -1, dims=1)  # a token is predicted from the position before it
    logits = model.lm_head(hidden[before]).float()  # (n, V)
    target = rows.tokens[rows.is_answer]
    row, _ = rows.is_answer.nonzero(as_tuple=True)
    slot = row * branches + rows.branch[rows.is_answer]  # (n,), which of the B K branches
    count = len(rows.tokens) * branches
    nats = F.cross_entropy(logits, target, reduction="none")
    tokens = torch.zeros(count).index_add(0, slot, torch.ones(len(slot)))
    loss = torch.zeros(count).index_add(0, slot, nats) / tokens
    wrong = torch.zeros(count).index_add(0, slot, (logits.argmax(-1) != target).float())
    return Answers(loss.view(-1, branches), (wrong == 0).view(-1, branches))
