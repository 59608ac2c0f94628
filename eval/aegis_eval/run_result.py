"""What one run found, as one JSON file: enough to draw every table and figure without the run's folder."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aegis_eval.runs import differences, digest

SCHEMA = 1  # goes up when a reader of an older file would misread it


@dataclass(frozen=True)
class ProbeResult:
    """A probe's answers, right or wrong.

    Attributes:
        families: Each question's family.
        correct: One character a question, `"1"` where the answer was right.
    """

    families: list[str]
    correct: str

    def outcomes(self) -> list[bool]:
        """Right or wrong, question by question."""
        return [mark == "1" for mark in self.correct]

    def names(self) -> list[str]:
        """The families, in order of first appearance."""
        return list(dict.fromkeys(self.families))


@dataclass(frozen=True)
class PassageResult:
    """What passages of text cost a language model.

    Attributes:
        families: Each passage's family.
        nats: Negative log likelihood of each passage, natural logarithm.
        tokens: How many tokens each passage is.
    """

    families: list[str]
    nats: list[float]
    tokens: list[int]


@dataclass(frozen=True)
class Curve:
    """A quantity over training steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class LayerCurve:
    """A quantity of each layer over training steps: `values[k][l]` at `steps[k]` for `layers[l]`."""

    steps: list[int] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Curves:
    """What changed while the run trained.

    Attributes:
        flow_loss: Mean of each logging window.
        vqa: Accuracy on the monitor's questions.
        families: Family -> the same.
        anchor_distance: Squared Wasserstein-2 distance from the anchor.
        energy_shed: Share of the step's (or gradient's) squared norm that the projection removed.
        conflict: Whether the projection removed anything, 0 or 1.
    """

    flow_loss: Curve = Curve()
    vqa: Curve = Curve()
    families: dict[str, Curve] = field(default_factory=dict)
    anchor_distance: LayerCurve = LayerCurve()
    energy_shed: LayerCurve = LayerCurve()
    conflict: LayerCurve = LayerCurve()


@dataclass(frozen=True)
class Command:
    """A command that ran, as one types it.

    Attributes:
        name: Of the stage.
        command: Of its first attempt.
        seconds: Of its last attempt.
        attempts: How many it took; the first ones were interrupted.
    """

    name: str
    command: str
    seconds: float
    attempts: int = 1


@dataclass(frozen=True)
class RunResult:
    """What one run found.

    Attributes:
        arm: Name.
        lr: Peak learning rate.
        seed: Training seed.
        settings: What shaped the numbers; see `runs.run_settings`.
        commit: Of this repository when each stage began, the distinct ones separated by commas.
        dirty: Whether files differed from one of them.
        versions: Package -> version.
        machine: Where it ran.
        date: UTC, ISO 8601.
        probes: Probe name -> answers.
        passages: Probe name -> what its passages cost.
        successes: Set -> task -> `"1011..."`, one character an episode in order of the start seed.
        action_loss: Flow-matching loss at the end, mean of the last windows.
        step_s: Seconds a training step, median over the log's windows, data loading included.
        memory_mib: Peak resident memory of the training process, of its last attempt.
        curves: What changed while it trained.
        videos: Set -> task -> films of the first episodes, relative to the output folder.
        instructions: Set -> task -> what the robot was told in those.
        initial_states: Set -> task -> what each episode began with, where the environment says: see `beginnings`.
        facts: Counts for the reader, such as frames of the demonstrations.
        commands: Everything that ran for it.
    """

    arm: str
    lr: float
    seed: int
    settings: dict[str, Any]
    commit: str = ""
    dirty: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    date: str = ""
    probes: dict[str, ProbeResult] = field(default_factory=dict)
    passages: dict[str, PassageResult] = field(default_factory=dict)
    successes: dict[str, dict[str, str]] = field(default_factory=dict)
    action_loss: float | None = None
    step_s: float | None = None
    memory_mib: float | None = None
    curves: Curves = Curves()
    videos: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    instructions: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    initial_states: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write it whole or not at all: beside its place, then moved there."""
        content = {"schema": SCHEMA, "digest": digest(self.settings), **asdict(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")
        part.write_text(json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n")
        part.replace(path)


def read_result(path: Path) -> RunResult:
    """Read what `RunResult.write` wrote.

    Raises:
        ValueError: If it was written by another version of this format.
    """
    content = json.loads(path.read_text())
    if content.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} is not of schema {SCHEMA}: run it again, or read it with the version that wrote it.")
    del content["digest"]
    content["probes"] = {name: ProbeResult(**probe) for name, probe in content["probes"].items()}
    content["passages"] = {name: PassageResult(**probe) for name, probe in content.get("passages", {}).items()}
    content["curves"] = _curves(content["curves"])
    content["commands"] = [Command(**command) for command in content["commands"]]
    return RunResult(**content)


def find_result(path: Path, settings: Mapping[str, Any]) -> RunResult | None:
    """The result at `path` if there is one.

    Results can be read where their backbone or data is not: settings whose `weights` or `data` is empty have none to
    compare with.

    Raises:
        ValueError: If it was made with other settings.
    """
    if not path.is_file():
        return None
    found = read_result(path)
    absent = {name for name in ("weights", "data") if not settings.get(name)}
    known = [{k: v for k, v in one.items() if k not in absent} for one in (found.settings, settings)]
    changed = differences(*known)
    if changed:
        raise ValueError(
            f"{path} was made with other settings ({changed}). Give the study those, choose another --results (or "
            "--out), or delete the file."
        )
    return found


def rounded(values: Sequence[float], digits: int = 5) -> list[float]:
    """Values to a few significant digits: curves are drawn, not computed with."""
    return [float(f"{value:.{digits}g}") for value in values]


def _curves(content: dict[str, Any]) -> Curves:
    return Curves(
        flow_loss=Curve(**content["flow_loss"]),
        vqa=Curve(**content["vqa"]),
        families={name: Curve(**curve) for name, curve in content["families"].items()},
        anchor_distance=LayerCurve(**content["anchor_distance"]),
        energy_shed=LayerCurve(**content["energy_shed"]),
        conflict=LayerCurve(**content["conflict"]),
    )
