"""What an episode starts from: a task, an instruction, a scene and where the arm stands. A function of its seed."""

from dataclasses import dataclass

import numpy as np

from aegis_envs.instructions import draw_phrasing
from aegis_envs.layout import draw_layout
from aegis_envs.robot import HOME_DEGREES
from aegis_envs.scene import Layout
from aegis_envs.tasks import Task
from aegis_envs.units import JOINTS, Array

_HOME_JITTER = 4.0  # degrees, and gripper percent, by which the arm's start varies
_SEARCHED = 5_000  # seeds; the rarest shown instruction, with a disc in one task of four, is one in about 900


@dataclass(frozen=True)
class Episode:
    """The start of an episode.

    Attributes:
        task: What judges it.
        instruction: What the policy is told.
        layout: What stands where; the instruction is about object 0 and disc 0.
        home: Where the arm stands, (6,) in degrees, gripper 0-100.
    """

    task: Task
    instruction: str
    layout: Layout
    home: Array


def draw_episode(
    rng: np.random.Generator, tasks: tuple[Task, ...], *, objects: int, kinds: str, phrasings: str
) -> Episode:
    """Draws an episode; the options are those of `aegis_envs.base.TabletopEnv`."""
    task = tasks[rng.integers(len(tasks))]
    phrasing = draw_phrasing(task.templates, phrasings, rng)
    layout: Layout | None = None
    while layout is None or not task.accepts(layout):
        layout = draw_layout(rng, objects=objects, discs=task.discs, kinds=kinds, reference=phrasing.reference)
    target, *others = (p.kind for p in layout.objects)
    instruction = phrasing.instruction(target, tuple(others), layout.discs[0].kind if layout.discs else None)
    home = np.array(HOME_DEGREES) + rng.uniform(-_HOME_JITTER, _HOME_JITTER, len(JOINTS))
    return Episode(task, instruction, layout, home)


def find_seed(
    instruction: str, tasks: tuple[Task, ...], *, start: int, objects: int, kinds: str, phrasings: str
) -> int:
    """The first seed from `start` on whose episode has that instruction.

    Raises:
        ValueError: If none of the next 5,000 has, with a few instructions that there are.
    """
    seen: dict[str, None] = {}
    for seed in range(start, start + _SEARCHED):
        drawn = draw_episode(
            np.random.default_rng(seed), tasks, objects=objects, kinds=kinds, phrasings=phrasings
        ).instruction
        if drawn == instruction:
            return seed
        seen[drawn] = None
    raise ValueError(
        f"No scene of the seeds {start} to {start + _SEARCHED - 1} asks {instruction!r} under kinds={kinds}, "
        f"phrasings={phrasings}. What is asked there: {'; '.join(list(seen)[:6])}; ... Combinations "
        "that no demonstration shows are under kinds=never_shown."
    )
