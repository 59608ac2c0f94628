"""What came of the episodes, for the log and as JSON.

{"episodes": [{"seed", "task", "instruction", "verdict", "seconds", "sent_at_s"}, ...],
 "judged", "successes", "success_rate"}

`verdict` is `success`, `failure`, `timeout`, or `unfinished` where the robot was disconnected before; `seconds` is
simulated time from the first action to the verdict; `sent_at_s` says when each action arrived, on the wall clock, from
the first one on: the control loop's jitter; `randomization`, where it was asked for, what was drawn of the world.
Unfinished episodes are not in the rate.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

UNFINISHED, TIMEOUT = "unfinished", "timeout"
logger = logging.getLogger(__name__)


@dataclass
class EpisodeRecord:
    """One episode; see the module's text."""

    seed: int
    task: str
    instruction: str
    verdict: str = UNFINISHED
    seconds: float = 0.0
    sent_at_s: list[float] = field(default_factory=list)
    randomization: dict[str, Any] = field(default_factory=dict)


class Report:
    """The episodes so far. Those in which no action was ever sent are left out.

    Args:
        path: Where to write; None: nowhere.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self.episodes: list[EpisodeRecord] = []

    def add(self, record: EpisodeRecord) -> None:
        """Takes an episode in and writes the file anew."""
        if not record.sent_at_s:
            return
        self.episodes.append(record)
        logger.info(
            "Episode %d (seed %d), %r: %s after %.1f s; %d of %d so far.",
            len(self.episodes) - 1, record.seed, record.instruction, record.verdict, record.seconds,
            self.successes, self.judged,
        )  # fmt: skip
        self.write()

    def write(self) -> None:
        """Writes the file anew, with no episode in it where none was yet."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @property
    def judged(self) -> int:
        """Episodes that ended."""
        return sum(episode.verdict != UNFINISHED for episode in self.episodes)

    @property
    def successes(self) -> int:
        """Episodes that succeeded."""
        return sum(episode.verdict == "success" for episode in self.episodes)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; without a judged episode the rate is null."""
        rate = self.successes / self.judged if self.judged else None
        episodes = [asdict(e) | {"sent_at_s": [round(t, 4) for t in e.sent_at_s]} for e in self.episodes]
        for episode in episodes:
            if not episode["randomization"]:
                del episode["randomization"]
        return {"episodes": episodes, "judged": self.judged, "successes": self.successes, "success_rate": rate}
