"""Scripted experts: they see the simulator's state and solve each task, closed loop.

An expert is a generator of actions (6,) in LeRobot's units: before each control step the next one is asked for, and it
looks at where things are *now*. So it goes on from wherever it finds itself, also after its last action was disturbed,
and what it does is nearly a function of what can be seen: the better to be imitated.
"""

from collections.abc import Callable, Iterator

import numpy as np

from aegis_envs.kinematics import ArmKinematics
from aegis_envs.layout import PAN_AXIS_X
from aegis_envs.scene import HALF_HEIGHT, RADIUS
from aegis_envs.simulation import Simulation
from aegis_envs.tasks.lift import HEIGHT as LIFT_HEIGHT
from aegis_envs.tasks.task import TARGET
from aegis_envs.units import GRIPPER, Array, to_units

Expert = Iterator[Array]

CLOSED, FORK, OPEN = 5.0, 9.0, 32.0  # gripper, 0-100
_STEP = 0.018  # metres that the gripper is sent ahead of where it is: under 0.2 m/s at 10 Hz
_HOVER = 0.058  # metres of the gripper above the table: clears the tallest object
_GRASP_HEIGHT = 0.010  # metres, lowest of the grasp site, so that the fingertips clear the table
_CARRY = 0.045  # metres above its rest at which an object is carried
_FORK_HEIGHT = 0.008  # metres of the fork above the table
_FORK_ROOM = 0.022  # metres between the target's edge and the fork when it comes down
_FORK_WIDTH = 0.009  # metres that the fork may be beside the line to the disc
_PUSH_STEP = 0.014  # metres a step
_CLOSE_STEPS, _RELEASE_STEPS, _RETREAT_STEPS = 3, 2, 6


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


def lift(arm: Arm) -> Expert:
    """Grasp, then straight up."""
    while True:
        yield from _grasp(arm)
        while _holds(arm):
            place = arm.simulation.object_position(TARGET)
            yield _carry(arm, np.array([*place[:2], _HOVER + LIFT_HEIGHT / 2]))


def place(arm: Arm) -> Expert:
    """Grasp, carry over the disc at a height, lower, let go, move away upwards."""
    simulation = arm.simulation
    while True:
        yield from _grasp(arm)
        while _holds(arm):
            goal = simulation.disc_position(TARGET)
            thing = simulation.object_position(TARGET)
            aside = float(np.linalg.norm((goal - thing)[:2]))
            if aside < 0.008 and simulation.height_gain(TARGET) < 0.004:
                break
            height = 3.0 * max(aside - 0.01, 0.0)
            site, _ = simulation.site("grasp")
            lowest = site[2] - simulation.height_gain(TARGET)
            height = min(height, _CARRY)
            is_up = simulation.height_gain(TARGET) > height - 0.015
            over = site + (goal - thing) if is_up else site
            yield _carry(arm, np.array([*over[:2], lowest + height + 0.001]))
        for _ in range(_RELEASE_STEPS):
            site, _ = simulation.site("grasp")
            yield arm.towards(site, site="grasp", gripper=OPEN)
        for _ in range(_RETREAT_STEPS):
            site, _ = simulation.site("grasp")
            yield arm.towards(np.array([*site[:2], _HOVER]), site="grasp", gripper=OPEN)


def push_to(arm: Arm) -> Expert:
    """Fingertips a little apart, a fork: behind the target as seen from the disc, then towards the disc.

    Two points of contact keep even a ball from slipping off sideways. Where it does slip, or the fork is elsewhere, the
    gripper rises and comes down behind the target again.
    """
    simulation = arm.simulation
    radius = RADIUS[_shape(simulation)]
    while True:
        thing = simulation.object_position(TARGET)[:2]
        way = simulation.disc_position(TARGET)[:2] - thing
        remaining = float(np.linalg.norm(way))
        ahead = way / max(remaining, 1e-9)
        left = np.array([-ahead[1], ahead[0]])
        fork, _ = simulation.site("fork")
        behind, beside = float((thing - fork[:2]) @ ahead), float((fork[:2] - thing) @ left)
        yaw = _fork_yaw(simulation, ahead)
        start = thing - (radius + _FORK_ROOM) * ahead
        is_low = fork[2] < _FORK_HEIGHT + 0.008
        if is_low and behind > 0.6 * radius and abs(beside) < _FORK_WIDTH:
            step = min(_PUSH_STEP, 0.004 + 0.5 * remaining)
            to_contact = max(behind - radius - 0.006, 0.0)
            target = fork[:2] + (step + min(to_contact, 0.01)) * ahead - beside * left
            height = _FORK_HEIGHT
        else:
            away = float(np.linalg.norm(start - fork[:2]))
            height = min(_FORK_HEIGHT + 4.0 * max(away - 0.006, 0.0), _HOVER)
            target = start if fork[2] > height - 0.02 or away < 0.02 else fork[:2]
        yield arm.towards(np.array([*target, height]), site="fork", gripper=FORK, yaw=yaw)


def _fork_yaw(simulation: Simulation, ahead: Array) -> float:
    """A closing axis across the way, the one of the two that turns the wrist less."""
    x, y, _ = simulation.object_position(TARGET)
    natural = float(np.arctan2(y, x - PAN_AXIS_X))
    across = float(np.arctan2(ahead[0], -ahead[1]))
    turn = across - natural
    return natural + (turn + np.pi / 2) % np.pi - np.pi / 2


def _grasp(arm: Arm) -> Expert:
    """Opened gripper down around the target like into a funnel, then closed; again until it holds."""
    simulation = arm.simulation
    while not _holds(arm):
        while True:
            thing = simulation.object_position(TARGET)
            site, _ = simulation.site("grasp")
            low = max(_GRASP_HEIGHT, thing[2] - 0.004)
            aside = float(np.linalg.norm((thing - site)[:2]))
            if aside < 0.007 and site[2] - low < 0.005:
                break
            height = min(low + 4.0 * max(aside - 0.005, 0.0), _HOVER)
            yield arm.towards(np.array([*thing[:2], height]), site="grasp", gripper=OPEN, yaw=_grasp_yaw(simulation))
        for _ in range(_CLOSE_STEPS):
            yield arm.towards(np.array([*site[:2], low]), site="grasp", gripper=CLOSED)


def _carry(arm: Arm, position: Array) -> Array:
    return arm.towards(position, site="grasp", gripper=CLOSED)


def _holds(arm: Arm) -> bool:
    """Whether the target is between the jaws and they press on it."""
    simulation = arm.simulation
    near = arm.distance("grasp", simulation.object_position(TARGET)) < 0.025
    opening = to_units(simulation.joints)[GRIPPER]
    return near and TARGET in simulation.touched and CLOSED + 2 < opening < OPEN - 5


def _grasp_yaw(simulation: Simulation) -> float:
    """A closing axis across a cube's faces, as near as there is to the one of an unturned wrist."""
    x, y, _ = simulation.object_position(TARGET)
    natural = float(np.arctan2(y, x - PAN_AXIS_X))
    if _shape(simulation) != "cube":
        return natural
    turn = simulation.object_yaw(TARGET) - natural
    return natural + (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4


EXPERTS: dict[str, Callable[[Arm], Expert]] = {"touch": touch, "push_to": push_to, "lift": lift, "place": place}


def _shape(simulation: Simulation) -> str:
    return simulation.layout.objects[TARGET].kind.shape
