"""Scripted experts: they see the simulator's state and solve each task, closed loop.

An expert is a generator of actions (6,) in LeRobot's units: before each control step the next one is asked for, and it
looks at where things are *now*. So it goes on from wherever it finds itself, also after its last action was disturbed,
and what it does is nearly a function of what can be seen: the better to be imitated.
"""

from collections.abc import Callable, Iterator

import numpy as np

from aegis_envs.kinematics import ArmKinematics
from aegis_envs.scene import HALF_HEIGHT
from aegis_envs.simulation import Simulation
from aegis_envs.tasks.task import TARGET
from aegis_envs.units import GRIPPER, Array, to_units

Expert = Iterator[Array]

CLOSED, OPEN = 5.0, 32.0  # gripper, 0-100
_STEP = 0.018  # metres that the gripper is sent ahead of where it is: under 0.2 m/s at 10 Hz
_HOVER = 0.058  # metres of the gripper above the table: clears the tallest object


class Arm:
    """What experts say "go there" to: turns a place for the gripper into an action."""

    def __init__(self, simulation: Simulation, kinematics: ArmKinematics):
        self.simulation = simulation
        self._kinematics = kinematics

    def towards(
        self,
        position: Array,
        *,
        site: str,
        gripper: float,
        yaw: float | None = None,
        step: float = _STEP,
    ) -> Array:
        """The action that brings a site of the gripper at most `step` metres nearer to `position`."""
        here, _ = self.simulation.site(site)
        way = position - here
        distance = float(np.linalg.norm(way))
        target = here + way * min(1.0, step / max(distance, 1e-9))
        action = to_units(self._kinematics.solve(self.simulation.joints, site, target, yaw=yaw))
        action[GRIPPER] = gripper
        return action

    def distance(self, site: str, position: Array) -> float:
        """Metres from a site of the gripper to a position."""
        return float(np.linalg.norm(self.simulation.site(site)[0] - position))


def touch(arm: Arm) -> Expert:
    """Closed gripper, high over the others, down onto the target like into a funnel."""
    simulation = arm.simulation
    while True:
        target = simulation.object_position(TARGET)
        tip, _ = simulation.site("tip")
        aside = np.linalg.norm((target - tip)[:2])
        top = target[2] + HALF_HEIGHT[_shape(simulation)]
        height = np.clip(top - 0.006 + 2.0 * max(aside - 0.012, 0.0), 0.0, _HOVER)
        yield arm.towards(np.array([*target[:2], height]), site="tip", gripper=CLOSED)


EXPERTS: dict[str, Callable[[Arm], Expert]] = {"touch": touch}


def _shape(simulation: Simulation) -> str:
    return simulation.layout.objects[TARGET].kind.shape
