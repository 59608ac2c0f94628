r"""How likely a text is to the language model inside a VLM: what it knows without a picture.

    nats(continuation | context) = - sum_t log p(token_t | context, earlier tokens)

in natural units, from float32 logits. Context and continuation are tokenized as one text, as they would be read, and
the tokens that reach beyond the context's last character are the continuation's.

Legend: `B` texts, `T` tokens of the longest, `D` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Likelihood:
    """What a continuation costs.

    Attributes:
        nats: Negative log likelihood, natural logarithm.
        tokens: How many tokens that is.
    """

    nats: float
    tokens: int


@torch.no_grad()
def continuation_likelihoods(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], *, batch_size: int = 32
) -> list[Likelihood]:
    """The likelihood of each continuation after its context; the model is left in the mode in which it came.

    Args:
        model: A VLM of transformers; its vision tower is not used.
        tokenizer: A fast tokenizer (one that tells where in the text a token is). What it puts before a text, it puts
            here.
        texts: (context, continuation) pairs. The first token of all is not counted: nothing lets one expect it.
        batch_size: Texts a forward pass.

    Raises:
        ValueError: If the model looks ahead (a prefix language model such as PaliGemma's: what it has read already
            tells it what comes), or a continuation has no token that can be expected.
    """
    was_training = model.training
    model.eval()
    try:
        encoded = [_encode(tokenizer, context, continuation) for context, continuation in texts]
        _refuse_looking_ahead(model, encoded[0][0])
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))  # little padding
        found: dict[int, Likelihood] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found |= zip(chosen, _batch(model, [encoded[i] for i in chosen]), strict=True)
        return [found[i] for i in range(len(encoded))]
    finally:
        model.train(was_training)


def _encode(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], int]:
    """Tokens of the whole text, and how many of the last belong to the continuation."""
    given = tokenizer(context + continuation, return_offsets_mapping=True)
    ids, ends = list(given["input_ids"]), [end for _, end in given["offset_mapping"]]
    while ends and ends[-1] == 0:  # what the tokenizer puts behind a text
        ids, ends = ids[:-1], ends[:-1]
    count = min(sum(end > len(context) for end in ends), len(ids) - 1)
    if count < 1:
        raise ValueError(
            f"A continuation needs a token with something before it; {continuation!r} after {context!r} has none."
        )
    return ids, count


def _batch(model: Any, encoded: Sequence[tuple[list[int], int]]) -> list[Likelihood]:
    hidden = _hidden(model, [ids for ids, _ in encoded])  # (B, T, D)
    # A token is expected from the position before it; the head, the dearest part, sees no others.
    before = torch.cat([row[len(ids) - n - 1 : len(ids) - 1] for row, (ids, n) in zip(hidden, encoded, strict=True)])
    target = torch.tensor([token for ids, n in encoded for token in ids[-n:]], device=hidden.device)
    nats = F.cross_entropy(model.get_output_embeddings()(before).float(), target, reduction="none")
    counts = [n for _, n in encoded]
    return [Likelihood(part.sum().item(), n) for part, n in zip(nats.split(counts), counts, strict=True)]


def _hidden(model: Any, rows: Sequence[list[int]]) -> Tensor:
    """(B, T, D), rows padded on the right by their own last token, which nobody looks at."""
    longest, device = max(map(len, rows)), model.get_input_embeddings().weight.device
    ids = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _refuse_looking_ahead(model: Any, ids: list[int]) -> None:
    """Two texts that differ in the last token alone must look alike before it."""
    other = (ids[-1] + 1) % model.get_input_embeddings().weight.shape[0]
    first, second = _hidden(model, [ids, [*ids[:-1], other]])[:, :-1].float()
    difference = (first - second).abs().max().item() / max(1.0, first.abs().max().item())
    # Equal up to rounding: the same numbers may be summed in another order, and in bfloat16.
    if difference > 0.02:
        raise ValueError(
            f"Likelihoods need a language model that reads from left to right; that of {type(model).__name__} sees "
            f"what comes: another last token changes earlier states by {100 * difference:.0f} %. Prefix language "
            "models, PaliGemma's and the embedded backbone's, are of this kind. Ask them about images instead."
        )
