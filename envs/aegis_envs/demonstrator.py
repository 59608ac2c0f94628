"""What `aegis-record` asks of an environment: somebody who plays its episodes well.

A demonstrator belongs to one recording. Episode k is a pure function of the recording's options and k, so that an
interrupted recording goes on exactly where it was.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

ATTEMPTS = 50  # episodes that an expert may fail in a row before something must be wrong


class Frame(NamedTuple):
    """What a policy sees and what the expert does about it."""

    observation: dict[str, Any]  # as the gymnasium environment gives it: `agent_pos`, `pixels`
    action: NDArray[np.float32]  # (A,)


class Demonstration(NamedTuple):
    """A successful episode."""

    instruction: str
    frames: list[Frame]
    failures: int  # episodes that the expert failed before this one
    randomization: Mapping[str, Any] = {}  # what was drawn of the world; empty where it is nominal


class Demonstrator(Protocol):
    """An environment's scripted experts.

    Attributes:
        tasks: Names of the tasks; episode k plays `tasks[k % len(tasks)]`.
        fps: Control steps a second.
        robot_type: As LeRobotDataset notes it.
        features: Of the dataset, in LeRobotDataset's form; cameras have dtype `image`.
    """

    tasks: tuple[str, ...]
    fps: int
    robot_type: str
    features: dict[str, dict[str, Any]]

    def demonstrate(self, episode: int) -> Demonstration:
        """Episode number `episode` of the recording.

        Raises:
            RuntimeError: If the expert fails `ATTEMPTS` times in a row.
        """
        ...

    def close(self) -> None:
        """Frees the simulations."""
        ...


def first_success(
    play: Callable[[int], tuple[list[Frame], bool]], *, seed: int, episode: int, task: str, noise: float
) -> tuple[list[Frame], int]:
    """Plays until the expert succeeds: the successful episode's frames, and how many failed before it.

    Args:
        play: Plays the environment's episode of a seed: its frames and whether it succeeded.
        seed: Of the recording.
        episode: Number in the recording.
        task: Its name, for the error.
        noise: With which the expert is disturbed, for the error.

    Raises:
        RuntimeError: If the expert fails `ATTEMPTS` times in a row.
    """
    for failures in range(ATTEMPTS):
        frames, success = play(int(np.random.SeedSequence([seed, episode, failures]).generate_state(1)[0]))
        if success:
            return frames, failures
    raise RuntimeError(
        f"The expert failed {ATTEMPTS} episodes of {task!r} in a row with noise {noise}; try less noise."
    )
