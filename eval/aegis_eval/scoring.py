"""Answers against questions: accuracy by question family.

A probe's overall score pools all its questions, so that it is a rate with a Wilson interval like the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aegis_eval.statistics import Rate, rate
from aegis_policy.vqa import VQASample

ALL = "all"

OnProgress = Callable[[int], None]  # called with the number of questions answered since the last call


class Answerer(Protocol):
    """What can be asked: a vision-language model, whatever holds it."""

    def answer(self, samples: Sequence[VQASample], *, batch_size: int = 64, max_new_tokens: int = 8) -> list[str]:
        """One answer a sample, greedy."""
        ...


@dataclass(frozen=True)
class Score:
    """Which questions were answered rightly.

    Attributes:
        families: Each question's family.
        correct: Whether each question was answered rightly; pairs up with another checkpoint's.
    """

    families: tuple[str, ...]
    correct: tuple[bool, ...]

    def rates(self) -> dict[str, Rate]:
        """Accuracy by family, in order of first appearance, and of all questions under `"all"` at the end."""
        hits: dict[str, list[bool]] = {}
        for family, right in zip(self.families, self.correct, strict=True):
            hits.setdefault(family, []).append(right)
        by_family = {family: rate(sum(found), len(found)) for family, found in hits.items()}
        return {**by_family, ALL: rate(sum(self.correct), len(self.correct))}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: rates with intervals, and "10110...", right or wrong question by question."""
        return {
            "accuracy": {family: found.to_dict() for family, found in self.rates().items()},
            "questions": list(self.families),
            "correct": "".join("1" if right else "0" for right in self.correct),
        }


def ask_all(
    vlm: Answerer,
    samples: Sequence[VQASample],
    *,
    batch_size: int = 64,
    on_progress: OnProgress | None = None,
) -> Score:
    """Ask every question and compare the answers.

    Args:
        vlm: What answers.
        samples: The questions.
        batch_size: Questions a forward pass.
        on_progress: Called with the number of questions answered since the last call.
    """
    correct: list[bool] = []
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        answers = vlm.answer(chunk, batch_size=batch_size)
        if len(answers) != len(chunk):
            raise ValueError(f"{len(chunk)} questions were asked and {len(answers)} answers came back.")
        correct += [sample.accepts(answer) for sample, answer in zip(chunk, answers, strict=True)]
        if on_progress is not None:
            on_progress(len(chunk))
    return Score(tuple(sample.family for sample in samples), tuple(correct))
