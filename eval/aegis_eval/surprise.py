r"""How surprising texts are to a language model, passage by passage.

    perplexity = exp(sum_i nats_i / sum_i tokens_i)

over passages i. Its interval is a bootstrap over passages, which are what another sample of the language would differ
in; tokens of one passage are not independent. Passages are redrawn within their families, whose sizes are fixed. Nats
and tokens of each passage are kept, so that two checkpoints with one tokenizer can be compared passage by passage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_eval.bootstrap import draw
from aegis_eval.scoring import ALL

BOUNDS = (0.025, 0.975)


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
        nats, tokens = np.asarray(self.nats)[chosen], np.asarray(self.tokens, dtype=np.float64)[chosen]
        strata: Sequence[str] = [name for name, taken in zip(self.families, chosen, strict=True) if taken]
        times = draw(1, tuple(strata)).items  # (R, N), how often each passage is redrawn
        low, high = np.quantile(np.exp(times @ nats / (times @ tokens)), BOUNDS)
        value = float(np.exp(nats.sum() / tokens.sum()))
        return Perplexity(value, float(low), float(high), len(nats), int(tokens.sum()))
