"""Push an object along the table onto a coloured disc."""

import numpy as np

from aegis_envs.instructions import Templates
from aegis_envs.layout import PAN_AXIS_X
from aegis_envs.scene import Layout
from aegis_envs.simulation import Simulation
from aegis_envs.tasks.task import TARGET, Task, Verdict, another_on_disc, on_disc

STAND_OFF = 0.045  # metres behind the object where pushing starts
_CORRIDOR = 0.05  # metres that must be free on both sides of the way
_REACH = (0.12, 0.255)  # metres from the pan axis: where the gripper can stand upright on the table
_LIFTED = 0.015  # metres: more than a cube's centre rises when it tips over an edge
_AT_REST = 0.10  # m/s


class PushTo(Task):
    """Success when the named object is on the named disc and nearly at rest without ever having left the table.

    Lifting it, or another object on that disc, is a failure.
    """

    name = "push_to"
    templates = Templates(
        shown=("push {object} onto {disc}", "push {object} to {disc}", "slide {object} onto {disc}"),
        never_shown=("shove {object} onto {disc}", "nudge {object} over to {disc}", "move {object} onto {disc}"),
    )
    discs = 2
    seconds = 8.0

    def accepts(self, layout: Layout) -> bool:
        """Room behind the object, and nothing else on the way from there to the disc."""
        place = np.array([layout.objects[TARGET].x, layout.objects[TARGET].y])
        goal = np.array([layout.discs[TARGET].x, layout.discs[TARGET].y])
        direction = (goal - place) / np.linalg.norm(goal - place)
        start = place - STAND_OFF * direction
        from_axis = np.hypot(start[0] - PAN_AXIS_X, start[1])
        others = [np.array([p.x, p.y]) for p in layout.objects[TARGET + 1 :]]
        in_the_way = any(_distance_to_segment(other, start, goal) < _CORRIDOR for other in others)
        return bool(_REACH[0] <= from_axis <= _REACH[1]) and not in_the_way

    def judge(self, simulation: Simulation) -> Verdict:
        """Success on the disc, failure once lifted or with another object on the disc."""
        if simulation.height_gain(TARGET) > _LIFTED or another_on_disc(simulation):
            return Verdict.FAILURE
        arrived = on_disc(simulation, TARGET) and simulation.object_speed(TARGET) < _AT_REST
        return Verdict.SUCCESS if arrived else Verdict.ONGOING


def _distance_to_segment(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    along = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0.0, 1.0)
    return float(np.linalg.norm(point - start - along * (end - start)))
