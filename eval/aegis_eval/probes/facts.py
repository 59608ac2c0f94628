"""What the language model inside a backbone knows of the world: sentences to finish, without a picture.

Of four endings the most likely one is the answer. Likelihoods are those of the whole ending and not divided by its
length: the four are words of one kind, so that only their probability tells them apart, while a mean over tokens would
favour whichever word the tokenizer cuts into pieces that follow from each other. A model that knows nothing is right
one time in four.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from aegis_eval.probes.fixed_list import FixedList
from aegis_eval.scoring import OnProgress, Score

FILE = Path(__file__).parent / "data" / "facts.yaml"
CHANCE = 0.25


@dataclass(frozen=True)
class Sentence:
    """A sentence to finish.

    Attributes:
        beginning: Its words so far.
        endings: Four endings, the right one first; the order is never shown to a model.
        family: What it is about.
    """

    beginning: str
    endings: tuple[str, ...]
    family: str


@dataclass(frozen=True)
class Facts(FixedList):
    """Sentences to finish."""

    def families(self) -> dict[str, list[Sentence]]:
        """As in `FixedList`."""
        return read_sentences()

    def ask(
        self, vlm: Any, samples: list[Sentence], *, batch_size: int = 64, on_progress: OnProgress | None = None
    ) -> Score:
        """Which sentences the model finishes rightly.

        Args:
            vlm: Something with `likelihoods`, as `aegis_policy.answering.VLM`.
            samples: The sentences.
            batch_size: Sentences with an ending each a forward pass.
            on_progress: Called with the number of sentences finished since the last call.

        Raises:
            ValueError: If the model's likelihoods mean nothing (it looks ahead).
        """
        correct: list[bool] = []
        for start in range(0, len(samples), batch_size):
            chunk = samples[start : start + batch_size]
            texts = [(one.beginning, f" {ending}") for one in chunk for ending in one.endings]
            costs = iter(vlm.likelihoods(texts, batch_size=batch_size))
            for one in chunk:
                right, *others = (next(costs).nats for _ in one.endings)
                correct.append(right < min(others))
            if on_progress is not None:
                on_progress(len(chunk))
        return Score(tuple(one.family for one in samples), tuple(correct))


@lru_cache(maxsize=1)
def read_sentences() -> dict[str, list[Sentence]]:
    """Family -> its sentences, in the order of the file."""
    content = yaml.safe_load(FILE.read_text())
    return {
        family: [Sentence(beginning, tuple(endings), family) for beginning, *endings in sentences]
        for family, sentences in content.items()
    }


PROBE = Facts(
    name="facts",
    version=1,
    source=FILE.name,
    count=240,
    seed=0,
    description="sentences about the world to finish, without a picture; chance is 25 %",
)
