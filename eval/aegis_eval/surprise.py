r"""How surprising texts are to a language model, passage by passage.

    perplexity = exp(sum_i nats_i / sum_i tokens_i)

over passages i. Its interval is a bootstrap over passages, which are what another sample of the language would differ
in; tokens of one passage are not independent. Passages are redrawn within their families, whose sizes are fixed. Nats
and tokens of each passage are kept, so that two checkpoints with one tokenizer can be compared passage by passage.

Over training seeds the mean is taken of nats, so that the value is a geometric mean of the seeds' perplexities; what is
resampled are seeds and, once for all of them, passages (bootstrap.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_eval.bootstrap import CONFIDENCE, Design, Estimate, draw
from aegis_eval.scoring import ALL

BOUNDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Perplexity:
    """A perplexity (per token) with its 95 % interval, and how many passages and tokens it is of."""

    value: float
    low: float
    high: float
    passages: int
    tokens: int


@dataclass(frozen=True)
class Surprise:
    """What passages cost.

    Attributes:
        families: Each passage's family.
        passages: Each passage's name.
        nats: Negative log likelihood of each passage, natural logarithm.
        tokens: How many tokens of each passage that is.
    """

    families: tuple[str, ...]
    passages: tuple[str, ...]
    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    def perplexities(self) -> dict[str, Perplexity]:
        """By family, in order of first appearance, and of all passages under `"all"` at the end."""
        names = np.asarray(self.families)
        by_family = {name: self._perplexity(names == name) for name in dict.fromkeys(self.families)}
        return {**by_family, ALL: self._perplexity(np.full(len(names), True))}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: perplexities with intervals, and nats and tokens passage by passage."""
        return {
            "perplexity": {
                family: {
                    "value": found.value,
                    "low": found.low,
                    "high": found.high,
                    "passages": found.passages,
                    "tokens": found.tokens,
                }
                for family, found in self.perplexities().items()
            },
            "questions": list(self.families),
            "passages": list(self.passages),
            "nats": [round(one, 4) for one in self.nats],
            "tokens": list(self.tokens),
        }

    def _perplexity(self, chosen: NDArray[np.bool_]) -> Perplexity:
        nats, tokens, families = (np.asarray(all_)[chosen].tolist() for all_ in (self.nats, self.tokens, self.families))
        found = perplexity_estimate({0: nats}, tokens, families)
        return Perplexity(found.value, found.low, found.high, len(nats), sum(tokens))


def perplexity_estimate(
    nats: Mapping[int, Sequence[float]],
    tokens: Sequence[int],
    families: Sequence[str],
    *,
    before: Sequence[float] | None = None,
) -> Estimate:
    """Perplexity over training seeds and passages, or how many times that of `before` it is, on the same passages.

    Args:
        nats: Training seed -> negative log likelihood of each passage (N,).
        tokens: (N,) how many tokens each passage is.
        families: (N,) each passage's.
        before: (N,) the passages' nats before training, for the ratio.
    """
    start = np.zeros(len(tokens)) if before is None else np.asarray(before, dtype=np.float64)
    table = np.asarray([list(one) for one in nats.values()], dtype=np.float64) - start  # (S, N)
    lengths = np.asarray(tokens, dtype=np.float64)
    draws = draw(len(table), Design.of_questions(families))
    redrawn = (draws.seeds @ table / len(table) * draws.items).sum(axis=1) / (draws.items @ lengths)
    low, high = np.exp(np.quantile(redrawn, BOUNDS))
    by_seed = np.exp(table.sum(axis=1) / lengths.sum())
    value = float(np.exp(table.mean(axis=0).sum() / lengths.sum()))
    return Estimate(value, float(low), float(high), dict(zip(nats, by_seed.tolist(), strict=True)))
