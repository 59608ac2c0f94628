"""Reads back what `lerobot-train` wrote to its log.

Two kinds of lines count:

    INFO 2026-01-01 10:00:00 ot_train.py:531 step:1K smpl:32K ep:900 epch:7.03 loss:0.214 ... vqa:0.893
    INFO 2026-01-01 10:00:00 _aegis_vla.py:99 aegis {"step": 1040, "scores": {"vqa": 0.9}, "layers": {...}}

LeRobot shortens the step of its own lines ("1K" from 1,000 to 1,499). They come every `log_freq` steps, so
the exact step is the next multiple after the line before. A run that was killed and resumed repeats steps;
the later line counts. Each attempt writes `FROM_STEP` and where it begins to the log first.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FROM_STEP = "# from step"

_TRACKER = re.compile(r"\bstep:(\S+) smpl:\S+ ep:\S+ epch:\S+ (.*)$")
_METRIC = re.compile(r"([A-Za-z_][\w./]*):(-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf|nan))(?=\s|$)", re.IGNORECASE)
_AEGIS = re.compile(r"\baegis (\{.*\})\s*$")
_SUFFIXES = ("", "K", "M", "B", "T", "Q")


@dataclass
class TrainingLog:
    """What a training reported.

    Attributes:
        metrics: Step -> the averages of the window that ends there (`loss`, `flow_loss`, `updt_s`, ...).
        probes: Step -> what the policy reported there: the monitor's `scores`, the projection's `layers`.
    """

    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    probes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric of the log lines, for a plot."""
        steps = [step for step, found in sorted(self.metrics.items()) if name in found]
        return steps, [self.metrics[step][name] for step in steps]

    def score_curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one of the monitor's scores, such as `vqa`."""
        steps = [step for step, found in sorted(self.probes.items()) if name in found["scores"]]
        return steps, [float(self.probes[step]["scores"][name]) for step in steps]

    def mean(self, name: str, *, last: int | None = None) -> float | None:
        """Mean of a metric over all windows, or the `last` ones, of those that are finite; None if there are none."""
        _, values = self.curve(name)
        chosen = [value for value in (values if last is None else values[-last:]) if math.isfinite(value)]
        return sum(chosen) / len(chosen) if chosen else None


def read_training_log(lines: Iterable[str], *, log_freq: int) -> TrainingLog:
    """Parse a log.

    Args:
        lines: The log's lines.
        log_freq: The training's `--log_freq`, in steps.

    Raises:
        ValueError: If a line's step fits no multiple of `log_freq`, as with a wrong `log_freq`.
    """
    log = TrainingLog()
    step = 0
    for line in _split_at_carriage_returns(lines):
        if line.startswith(FROM_STEP):
            step = int(line.removeprefix(FROM_STEP).split()[0]) // log_freq * log_freq
        elif found := _AEGIS.search(line):
            report = json.loads(found[1])
            log.probes[int(report["step"])] = report
        elif found := _TRACKER.search(line):
            step = _next_step(step, found[1], log_freq)
            log.metrics[step] = {name: float(value) for name, value in _METRIC.findall(found[2])}
    return log


def read_progress(tail: str, *, bar: str = "Training") -> float | None:
    """Share that is done, from the last progress bar in the log tail; None without one.

    The bar of a resumed training counts what is left to do only; so does this share.

    Args:
        tail: The end of a log.
        bar: What tqdm's bar begins with.
    """
    found = re.findall(bar + r":\s+\d+%[^\r\n]*?(\d+)/(\d+) \[", tail)
    return int(found[-1][0]) / int(found[-1][1]) if found and int(found[-1][1]) else None


def _next_step(step: int, shown: str, log_freq: int) -> int:
    """The first multiple of `log_freq` after `step` that LeRobot would have shown as `shown`."""
    candidate = step + log_freq
    # "999K" spans at most a thousand values of the next unit; far enough for any log without a gap.
    for _ in range(1001):
        if _shorten(candidate) == shown:
            return candidate
        candidate += log_freq
    raise ValueError(
        f"The log shows step:{shown}, which is no multiple of log_freq={log_freq} soon after step {step}. "
        "Give the --log_freq that the training ran with."
    )


def _shorten(number: float) -> str:
    """LeRobot's `format_big_number` with no decimals."""
    for suffix in _SUFFIXES:
        if abs(number) < 1000:
            return f"{number:.0f}{suffix}"
        number /= 1000
    return str(number)


def _split_at_carriage_returns(lines: Iterable[str]) -> Iterable[str]:
    """A progress bar shares its line with log lines: tqdm separates by carriage returns, or not at all."""
    for line in lines:
        yield from line.rstrip("\n").split("\r")
