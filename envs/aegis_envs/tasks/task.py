"""What a task is: a scene's requirements, sentences, and a judge."""

from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

import numpy as np

from aegis_envs.instructions import Templates
from aegis_envs.scene import DISC_RADIUS, Layout
from aegis_envs.simulation import Simulation

TARGET = 0  # the slot of the object, and of the disc, that the instruction is about
ON_DISC = DISC_RADIUS - 0.01  # metres: how far from a disc's centre the centre of an object on it may be


class Verdict(Enum):
    """The state of an episode after a control step."""

    ONGOING = "ongoing"
    SUCCESS = "success"
    FAILURE = "failure"  # cannot be made good any more, such as the wrong object touched


class Task(ABC):
    """A language-conditioned task. Holds no state: what counts is in the simulation.

    Attributes:
        name: What the task is called in options.
        templates: Its sentences.
        discs: How many target discs its scenes have.
        seconds: The time limit of an episode.
    """

    name: ClassVar[str]
    templates: ClassVar[Templates]
    discs: ClassVar[int] = 0
    seconds: ClassVar[float]

    def accepts(self, layout: Layout) -> bool:
        """Whether the task can be done in this scene; scenes are drawn until one is accepted."""
        return True

    @abstractmethod
    def judge(self, simulation: Simulation) -> Verdict:
        """The verdict after a control step."""


def on_disc(simulation: Simulation, slot: int) -> bool:
    """Whether an object stands or lies on the target disc."""
    offset = simulation.object_position(slot)[:2] - simulation.disc_position(TARGET)[:2]
    return bool(np.linalg.norm(offset) <= ON_DISC) and simulation.height_gain(slot) < 0.005


def another_on_disc(simulation: Simulation) -> bool:
    """Whether an object that the instruction does not mean is on the target disc."""
    others = range(TARGET + 1, len(simulation.layout.objects))
    return any(on_disc(simulation, slot) for slot in others)
