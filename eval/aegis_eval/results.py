"""What a comparison of arms found, as plain data: tables, plots and pages are made from it and from nothing else."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aegis_eval.scoring import ALL
from aegis_eval.statistics import PairedComparison, Rate, compare_paired, rate


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

    def family(self, name: str = ALL) -> Rate:
        """Accuracy in one family, or over all questions."""
        marks = [right for asked, right in zip(self.families, self.outcomes(), strict=True) if name in (ALL, asked)]
        return rate(sum(marks), len(marks))

    def names(self) -> list[str]:
        """The families, in order of first appearance."""
        return list(dict.fromkeys(self.families))


@dataclass(frozen=True)
class Curve:
    """A quantity over training steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Arm:
    """One way of treating the backbone, or the untouched backbone itself.

    Attributes:
        name: Short, as in folders and options.
        label: For readers.
        note: One sentence on what it does.
        probes: Probe name -> answers.
        successes: Whether each episode succeeded, in order of the start seed; None if it was not rolled out.
        action_loss: Flow-matching loss at the end of the training, mean of the last windows.
        step_s: Seconds a training step, data loading included.
        loss: Action loss over steps.
        vqa: Accuracy of the monitor's questions over steps.
        layers: Layer -> squared Wasserstein-2 distance from the anchor at the end.
        videos: Rollouts, in order of the episodes.
    """

    name: str
    label: str
    note: str = ""
    probes: dict[str, ProbeResult] = field(default_factory=dict)
    successes: list[bool] | None = None
    action_loss: float | None = None
    step_s: float | None = None
    loss: Curve = Curve()
    vqa: Curve = Curve()
    layers: dict[str, float] = field(default_factory=dict)
    videos: list[str] = field(default_factory=list)

    @property
    def success(self) -> Rate | None:
        """Success rate; None if it was not rolled out."""
        return None if self.successes is None else rate(sum(self.successes), len(self.successes))


@dataclass(frozen=True)
class Study:
    """Arms side by side.

    Attributes:
        title: Heading.
        summary: What was done, in two or three sentences.
        reference: The untouched backbone.
        arms: The trained arms; the first is what the others are compared with.
        probes: Probe name -> what it asks.
        chance: Success rate of acting without reading the instruction; None if unknown.
        chance_note: Where that number comes from, in a sentence.
        instructions: What the robot was told in the first episodes.
        facts: What is needed to judge or repeat it: seeds, counts, versions, machine, commit.
        commands: (name, command, seconds) of everything that ran.
    """

    title: str
    summary: str
    reference: Arm
    arms: list[Arm]
    probes: dict[str, str]
    chance: float | None = None
    chance_note: str = ""
    instructions: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    commands: list[tuple[str, str, float]] = field(default_factory=list)

    def success_difference(self, arm: Arm) -> PairedComparison | None:
        """Success of `arm` minus that of the first arm, over the same initial states."""
        first = self.arms[0]
        if arm.successes is None or first.successes is None or arm.name == first.name:
            return None
        return compare_paired(arm.successes, first.successes)

    def probe_difference(self, arm: Arm, probe: str, *, other: Arm | None = None) -> PairedComparison | None:
        """Accuracy of `arm` minus that of `other` (default: the untouched backbone), over the same questions."""
        other = other or self.reference
        if probe not in arm.probes or probe not in other.probes or arm.name == other.name:
            return None
        return compare_paired(arm.probes[probe].outcomes(), other.probes[probe].outcomes())

    def write(self, path: Path) -> None:
        """Write it as JSON, rates and intervals beside the raw outcomes."""
        content = asdict(self) | {"rates": self._rates()}
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _rates(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for arm in (self.reference, *self.arms):
            found[arm.name] = {
                "success": arm.success.to_dict() if arm.success else None,
                "vqa": {
                    name: {f: probe.family(f).to_dict() for f in (ALL, *probe.names())}
                    for name, probe in arm.probes.items()
                },
            }
        return found


def read_study(path: Path) -> Study:
    """Read back what `Study.write` wrote."""
    content = json.loads(path.read_text())
    content.pop("rates")
    content["reference"] = _arm(content["reference"])
    content["arms"] = [_arm(arm) for arm in content["arms"]]
    content["commands"] = [(name, command, seconds) for name, command, seconds in content["commands"]]
    return Study(**content)


def _arm(content: dict[str, Any]) -> Arm:
    content["probes"] = {name: ProbeResult(**probe) for name, probe in content["probes"].items()}
    content["loss"], content["vqa"] = Curve(**content["loss"]), Curve(**content["vqa"])
    return Arm(**content)
