"""What a probe is, and where probes are looked up.

A score is comparable only with a score of the same questions. So a probe names its source, split, seed and
count, and carries a version that goes up whenever the same name would ask something else.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import yaml

from aegis_eval.scoring import OnProgress, Score, ask_all
from aegis_eval.surprise import Surprise
from aegis_policy.vqa import SPLITS, load_vqa_source


@dataclass(frozen=True)
class Probe:
    """A fixed set of questions; this kind is about images, subclasses ask otherwise.

    Attributes:
        name: What users call it.
        version: Goes up when the same name, count and seed would ask something else.
        source: Name of the VQA source (entry-point group `aegis_policy.vqa_sources`).
        count: How many questions.
        seed: Seed of the source.
        split: `"train"` or `"validation"`.
        description: One line for tables and pages.
        graded: Whether its answers are right or wrong, so that they can be counted and compared pair by pair.
        standard: Whether it suits every backbone, and is asked when none is named.
    """

    graded: ClassVar[bool] = True
    standard: ClassVar[bool] = True

    name: str
    version: int
    source: str
    count: int
    seed: int
    split: str = "validation"
    description: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Probe {self.name!r} needs at least one question; received count={self.count}.")
        if self.split not in SPLITS:
            raise ValueError(f"Probe {self.name!r}: split is one of {SPLITS}; received {self.split!r}.")

    def samples(self) -> list[Any]:
        """Its questions, the same ones every time."""
        return load_vqa_source(self.source)(count=self.count, seed=self.seed, split=self.split)

    def ask(
        self, vlm: Any, samples: list[Any], *, batch_size: int = 64, on_progress: OnProgress | None = None
    ) -> Score | Surprise:
        """Put its questions to a model; see `aegis_eval.scoring.ask_all`."""
        return ask_all(vlm, samples, batch_size=batch_size, on_progress=on_progress)


_PROBES: dict[str, Probe] = {}


def register(probe: Probe) -> None:
    """Make a probe available by its name.

    Raises:
        ValueError: If another probe has that name.
    """
    known = _PROBES.get(probe.name)
    if known is not None and known != probe:
        raise ValueError(
            f"A probe called {probe.name!r} (version {known.version}) is already registered. Choose another "
            "name: scores under one name must answer the same questions."
        )
    _PROBES[probe.name] = probe


def list_probes() -> list[str]:
    """Names of the registered probes, in the order of their registration."""
    return list(_PROBES)


def standard_probes() -> list[str]:
    """Names of the probes that suit every backbone."""
    return [name for name, probe in _PROBES.items() if probe.standard]


def require_graded(probe: Probe, what: str) -> None:
    """Refuse a probe whose answers are not right or wrong for something that counts right answers.

    Raises:
        ValueError: If it is such a probe.
    """
    if not probe.graded:
        counted = ", ".join(name for name, known in _PROBES.items() if known.graded)
        raise ValueError(
            f"{what} counts right answers, and probe {probe.name!r} has none: run `aegis-probe CHECKPOINT --probe "
            f"{probe.name}` beside it. Probes with right answers: {counted}."
        )


def find_probe(name: str, *, count: int | None = None, seed: int | None = None) -> Probe:
    """The probe of that name, with another number of questions or seed if given.

    Raises:
        ValueError: If there is none; the message suggests names.
    """
    if name not in _PROBES:
        close = get_close_matches(name, _PROBES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"No probe is called {name!r}.{hint} Probes: {', '.join(_PROBES)}.")
    probe = _PROBES[name]
    return replace(
        probe,
        count=probe.count if count is None else count,
        seed=probe.seed if seed is None else seed,
    )


def read_probe_file(path: str | Path) -> list[Probe]:
    """Probes that a YAML file selects: a mapping from a probe's name to `count` and `seed`, both optional.

    Raises:
        ValueError: If the file is no such mapping, or names an unknown probe or setting.
    """
    content = yaml.safe_load(Path(path).read_text())
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path} must map names of probes to their settings, for example 'nano_scenes: {{count: 700}}'; "
            f"it holds {content!r}. Probes: {', '.join(_PROBES)}."
        )
    probes = []
    for name, settings in content.items():
        settings = settings or {}
        if not isinstance(settings, dict) or not settings.keys() <= {"count", "seed"}:
            raise ValueError(f"{path}: a probe's settings are 'count' and 'seed'; {name!r} has {settings!r}.")
        probes.append(find_probe(name, **settings))
    return probes
