"""A VQA sample, and where samples come from.

A *source* is a function `source(*, count: int, seed: int, split: str) -> list[VQASample]` that somebody's package
offers under the entry-point group `aegis_policy.vqa_sources`. `split` is `"train"` or `"validation"`: the two never
share a scene. The same arguments give the same samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

from PIL.Image import Image

VQA_SOURCES = "aegis_policy.vqa_sources"
SPLITS = ("train", "validation")

VQASource = Callable[..., "list[VQASample]"]


@dataclass(frozen=True)
class VQASample:
    """One question about one or more images.

    Attributes:
        images: RGB images, in the order in which the prompt shows them.
        question: What is asked, without any model's prompt decoration.
        answers: Accepted answers, the canonical one first; compared after lower-casing and stripping.
        family: The kind of question ("colour", "count", ...): accuracies are reported per family.
    """

    images: tuple[Image, ...]
    question: str
    answers: tuple[str, ...]
    family: str

    def accepts(self, answer: str) -> bool:
        """Whether `answer` is one of the accepted ones, ignoring case, blanks and a closing full stop."""
        return _normalise(answer) in {_normalise(a) for a in self.answers}


def _normalise(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def list_vqa_sources() -> list[str]:
    """Names of the installed VQA sources."""
    return sorted(e.name for e in entry_points(group=VQA_SOURCES))


def load_vqa_source(name: str) -> VQASource:
    """The source that an installed package offers under `name`.

    Raises:
        ValueError: If nobody offers that name; the message lists the names that exist.
    """
    found = [e for e in entry_points(group=VQA_SOURCES) if e.name == name]
    if not found:
        raise ValueError(
            f"No VQA source is called {name!r}. Installed: {', '.join(list_vqa_sources()) or 'none'}. A package "
            f"offers one through the entry-point group {VQA_SOURCES!r}."
        )
    source: VQASource = found[0].load()
    return source
