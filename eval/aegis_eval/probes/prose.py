"""How well the language model in a backbone still reads English: perplexity of passages written for this project."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from aegis_eval.probes.fixed_list import FixedList
from aegis_eval.scoring import OnProgress
from aegis_eval.surprise import Surprise

FILE = Path(__file__).parent / "data" / "prose.yaml"
BATCH = 8  # passages a forward pass at most: a passage is long, and each token has a score for each word


class Passage(NamedTuple):
    """A text, its name and its family."""

    text: str
    name: str
    family: str


@dataclass(frozen=True)
class Prose(FixedList):
    """Passages to read."""

    graded: ClassVar[bool] = False

    def families(self) -> dict[str, list[Passage]]:
        """As in `FixedList`."""
        return _read()

    def ask(
        self, vlm: Any, samples: list[Passage], *, batch_size: int = 64, on_progress: OnProgress | None = None
    ) -> Surprise:
        """What each passage costs.

        Args:
            vlm: Something with `likelihoods`, as `aegis_policy.answering.VLM`.
            samples: The passages.
            batch_size: Passages a forward pass, 8 at most.
            on_progress: Called with the number of passages read since the last call.

        Raises:
            ValueError: If the model's likelihoods mean nothing (it looks ahead).
        """
        size = min(batch_size, BATCH)
        costs = []
        for start in range(0, len(samples), size):
            chunk = samples[start : start + size]
            costs += vlm.likelihoods([("", one.text) for one in chunk], batch_size=size)
            if on_progress is not None:
                on_progress(len(chunk))
        return Surprise(
            families=tuple(one.family for one in samples),
            passages=tuple(one.name for one in samples),
            nats=tuple(cost.nats for cost in costs),
            tokens=tuple(cost.tokens for cost in costs),
        )


def _read() -> dict[str, list[Passage]]:
    content = yaml.safe_load(FILE.read_text())
    return {
        family: [Passage(text, name, family) for name, text in passages.items()] for family, passages in content.items()
    }


PROBE = Prose(
    name="prose",
    version=1,
    source=FILE.name,
    count=20,
    seed=0,
    description="perplexity of English passages that no training has seen",
)
