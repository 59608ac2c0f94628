"""Scenes and questions -> tensors, without the processor in the loop but token for token and pixel for pixel as it is.

Legend: `B` pictures, `K` questions a picture, `T` text tokens (prompt and answer, padded on the right), `P` patches.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PaliGemmaForConditionalGeneration, PreTrainedTokenizerFast

from aegis_backbones.architecture import GRID, IMAGE_TOKENS
from aegis_backbones.questions import FAMILIES, Question, ask
from aegis_backbones.scene_store import Scenes


class Batch(NamedTuple):
    """K questions about each of B pictures."""

    pixel_values: Tensor  # (B, 3, 96, 96)
    tokens: Tensor  # (B K, T): <bos>question\nanswer<eos>
    mask: Tensor  # (B K, T), 1 where a token is not padding
    is_answer: Tensor  # (B K, T), 1 on answer and <eos>
    family: Tensor  # (B K,), an index into FAMILIES
    mentioned_at: Tensor  # (n, 2): row and position of each mention's last token
    mentioned: Tensor  # (n, 2): where in the picture the mentioned thing is, (u, v) in [0, 1]
    meant: Tensor  # (B K, P), 1 where the centre of a thing that the question is about lies in the patch


class Answers(NamedTuple):
    """How a batch was answered."""

    loss: Tensor  # mean cross-entropy of the answers' tokens
    correct: Tensor  # (B K,) bool, whether every token of the answer comes first
    half_way: Tensor  # (B K, P + T, D), hidden states after half of the language layers


class Tokens:
    """A tokenizer that remembers. State: the texts that it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.pad: int = tokenizer.pad_token_id
        self._tokenizer = tokenizer
        self._encode = lru_cache(maxsize=200_000)(self._encode_text)

    def prompt(self, question: str) -> tuple[int, ...]:
        """What PaliGemma's processor puts behind the image tokens."""
        return self._encode(self._prompt_text(question))[0]

    def last_of(self, words: str, question: str) -> int:
        """The position in `prompt(question)` of the token that ends `words`."""
        end = self._prompt_text(question).index(words) + len(words)
        return next(i for i, token_end in enumerate(self._encode(self._prompt_text(question))[1]) if token_end >= end)

    def answer(self, text: str) -> tuple[int, ...]:
        """What PaliGemma's processor makes of a suffix."""
        return self._encode(f"{text}{self._tokenizer.eos_token}")[0]

    def word(self, word: str) -> int:
        """The token of a word as an answer begins with it.

        Raises:
            ValueError: If the word is more than one token.
        """
        ids = self._encode(word)[0]
        if len(ids) != 1:
            raise ValueError(f"{word!r} must be a single token of the tokenizer; it is {len(ids)}.")
        return ids[0]

    def _prompt_text(self, question: str) -> str:
        return f"{self._tokenizer.bos_token}{question}\n"

    def _encode_text(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids, and where in the text each token ends."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return tuple(encoded["input_ids"]), tuple(end for _, end in encoded["offset_mapping"])


def to_pixel_values(images: np.ndarray) -> Tensor:
    """(B, 96, 96, 3) uint8 -> (B, 3, 96, 96) in [-1, 1], as SigLIP's image processor does."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1.0)


def questions_about(
    scenes: Scenes, rng: np.random.Generator, *, each: int, weights: np.ndarray
) -> list[list[Question]]:
    """`each` questions about every scene; families are drawn by `weights` (7,) among those that the scene admits."""
    cumulative = np.cumsum(weights)
    found = []
    for index in range(len(scenes.images)):
        objects = scenes.objects(index)
        questions: list[Question] = []
        while len(questions) < each:
            family = FAMILIES[min(int(np.searchsorted(cumulative, rng.random())), len(FAMILIES) - 1)]
            question = ask(objects, rng, family)
            if question is not None:
                questions.append(question)
        found.append(questions)
    return found


def collate(images: np.ndarray, questions: Sequence[Sequence[Question]], tokens: Tokens) -> Batch:
    """Pictures (B, 96, 96, 3) and K questions about each, as tensors."""
    flat = [q for about_one in questions for q in about_one]
    prompts = [tokens.prompt(q.question) for q in flat]
    answers = [tokens.answer(q.answers[0]) for q in flat]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = np.full((len(flat), length), tokens.pad)
    mask, is_answer = np.zeros_like(ids), np.zeros_like(ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = prompt + answer
        mask[row, :end] = 1
        is_answer[row, len(prompt) : end] = 1
    family = torch.tensor([FAMILIES.index(q.family) for q in flat])
    found = [(row, tokens.last_of(m.words, q.question), m.u, m.v) for row, q in enumerate(flat) for m in q.mentions]
    mentions = torch.tensor(found, dtype=torch.float64).reshape(-1, 4)
    meant = np.zeros((len(flat), GRID, GRID), np.float32)
    for row, question in enumerate(flat):
        for u, v in question.meant:
            meant[row, min(int(v * GRID), GRID - 1), min(int(u * GRID), GRID - 1)] = 1
    tokens_, mask_, is_answer_ = (torch.from_numpy(a) for a in (ids, mask, is_answer))
    return Batch(
        to_pixel_values(images),
        tokens_,
        mask_,
        is_answer_,
        family,
        mentioned_at=mentions[:, :2].long(),
        mentioned=mentions[:, 2:].float(),
        meant=torch.from_numpy(meant).flatten(1),
    )


def answer_loss(model: PaliGemmaForConditionalGeneration, batch: Batch, features: Tensor) -> Answers:
    """Cross-entropy of the answers under PaliGemma's prefix-LM mask.

    Args:
        model: The backbone.
        batch: K questions a picture.
        features: (B, P, D) projected image tokens, computed once a picture.
    """
    per_picture = len(batch.tokens) // len(features)
    images = features.repeat_interleave(per_picture, dim=0)  # (B K, P, D)
    run = model.model(
        inputs_embeds=torch.cat([images, model.get_input_embeddings()(batch.tokens)], dim=1),
        attention_mask=F.pad(batch.mask, (IMAGE_TOKENS, 0), value=1),
        token_type_ids=F.pad(batch.is_answer, (IMAGE_TOKENS, 0), value=0),
        use_cache=False,
        output_hidden_states=True,
    )
    half_way = run.hidden_states[(len(run.hidden_states) - 1) // 2]
    hidden = run.last_hidden_state[:, IMAGE_TOKENS:]
    asked = batch.is_answer.bool()
    before = torch.roll(asked, -1, dims=1)  # a token is predicted from the position before it
    logits = model.lm_head(hidden[before]).float()
    target = batch.tokens[asked]
    wrong = torch.zeros_like(batch.tokens)
    wrong[asked] = (logits.argmax(-1) != target).long()
    return Answers(F.cross_entropy(logits, target), wrong.sum(dim=1) == 0, half_way)
