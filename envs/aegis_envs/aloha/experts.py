"""Scripted experts for gym-aloha's tasks: way-points of both hands, as in ACT's scripted policies (arXiv 2304.13705).

ACT follows its way-points in a second environment whose hands are dragged along by mocap bodies, and plays the joints
that this gives again in the first one. Here inverse kinematics gives the joint targets at once, so that the actions
recorded are those that led to the pictures beside them.

An expert is told where the objects are, which a policy has to see. Its targets depend on that and on the step alone.
After a success it goes on to the end: LeRobot's episodes end as soon as the left finger touches the lifted cube, or the
peg the pin, but what is learnt from is the whole hand-over.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis_envs.aloha.kinematics import TwoArms
from aegis_envs.aloha.options import SIDES

Array = NDArray[np.float64]

_RESTING_GRIPPER = 0.1  # of its way; how an episode begins
_OPEN, _CLOSED = 1.0, 0.0
_ABOVE = np.array([0.0, 0.0, 0.08])  # metres over an object before it is taken
_DOWNWARD = np.radians(60)  # how far hands that take an object from the table point down
_SIDEWAYS = np.radians(90)  # roll of a hand whose fingers close one above the other
_CUBE_GRIP = 0.015  # metres of the fingertips above the table, by object: in its middle ...
_SOCKET_GRIP = 0.02
_PEG_GRIP = 0.017  # ... or as low as the fingers do not touch the table, where friction would keep them from closing
_MEETING = {"transfer_cube": np.array([0.0, 0.5, 0.25]), "insertion": np.array([0.0, 0.5, 0.2])}
_ALONG = np.array([1.0, 0.0, 0.0])
_REACH = 0.06  # metres from the middle of peg or socket to its end
_PEG_HANGS = 0.009  # metres by which a held peg's middle is below the socket's when the fingertips are level


class WayPoint(NamedTuple):
    """Where a hand is to be at a control step; in between, everything changes evenly."""

    step: int
    tips: Array  # (3,) metres
    pitch: float  # radians
    roll: float  # radians
    opening: float  # of the gripper, 0 to 1


Plan = dict[str, list[WayPoint]]


class Expert:
    """Plays one episode.

    Args:
        task: gym-aloha's name of it.
        objects: Poses of its objects, (7,) or (14,).
        arms: Overwritten.
    """

    def __init__(self, task: str, objects: Array, arms: TwoArms):
        rest = arms.rest()
        plan = plan_transfer(objects[:3]) if task == "transfer_cube" else plan_insertion(objects[:3], objects[7:10])
        self._plan = {side: [WayPoint(0, rest[side], 0.0, 0.0, _RESTING_GRIPPER), *plan[side]] for side in SIDES}
        self._arms = arms
        self.steps = max(points[-1].step for points in self._plan.values())

    def action(self, step: int) -> NDArray[np.float32]:
        """The targets (14,) of control step `step`, counted from 0; asked for in turn."""
        now = {side: _between(points, step + 1) for side, points in self._plan.items()}
        joints = self._arms.solve({side: (at.tips, at.pitch, at.roll) for side, at in now.items()})
        return np.concatenate([[*joints[side], now[side].opening] for side in SIDES]).astype(np.float32)


def plan_transfer(cube: Array) -> Plan:
    """The right hand lifts the cube (3,) and holds it out, the left one takes it from the side and draws back."""
    grip = np.array([cube[0], cube[1], _CUBE_GRIP])
    meeting = _MEETING["transfer_cube"]
    beside = meeting - 0.1 * _ALONG
    aside = meeting + np.array([0.1, 0.0, 0.05])
    right = [
        WayPoint(60, grip + _ABOVE, _DOWNWARD, 0.0, _OPEN),
        WayPoint(90, grip, _DOWNWARD, 0.0, _OPEN),
        WayPoint(110, grip, _DOWNWARD, 0.0, _CLOSED),
        WayPoint(150, meeting, _DOWNWARD, 0.0, _CLOSED),
        WayPoint(215, meeting, _DOWNWARD, 0.0, _CLOSED),
        WayPoint(230, meeting, _DOWNWARD, 0.0, _OPEN),
        WayPoint(260, aside, _DOWNWARD, 0.0, _OPEN),
    ]
    left = [
        WayPoint(90, beside, 0.0, _SIDEWAYS, _OPEN),
        WayPoint(150, beside, 0.0, _SIDEWAYS, _OPEN),
        WayPoint(190, meeting, 0.0, _SIDEWAYS, _OPEN),
        WayPoint(215, meeting, 0.0, _SIDEWAYS, _CLOSED),
        WayPoint(230, meeting, 0.0, _SIDEWAYS, _CLOSED),
        WayPoint(270, beside, 0.0, _SIDEWAYS, _CLOSED),
    ]
    return {"left": left, "right": right}


def plan_insertion(peg: Array, socket: Array) -> Plan:
    """The right hand lifts the peg (3,), the left one the socket (3,), and both bring them together in the air."""
    meeting = _MEETING["insertion"]
    apart, joined = _REACH + 0.01, 0.02  # metres of each hand from the middle; the pin stops them well before
    lift = np.array([0.0, 0.0, _PEG_HANGS])
    return {
        "left": _bring(
            np.array([socket[0], socket[1], _SOCKET_GRIP]), meeting - apart * _ALONG, meeting - joined * _ALONG
        ),
        "right": _bring(
            np.array([peg[0], peg[1], _PEG_GRIP]), meeting + apart * _ALONG + lift, meeting + joined * _ALONG + lift
        ),
    }


def _bring(grip: Array, ready: Array, joined: Array) -> list[WayPoint]:
    """Takes what is at `grip`, holds it at `ready` and moves it slowly to `joined`; all (3,) in metres."""
    course = [
        (60, grip + _ABOVE, _OPEN),
        (90, grip, _OPEN),
        (100, grip, _CLOSED),
        (140, grip, _CLOSED),  # fingers close slowly on so thin a thing
        (200, ready, _CLOSED),
        (215, ready, _CLOSED),
        (275, joined, _CLOSED),
        (295, joined, _CLOSED),
    ]
    return [WayPoint(step, tips, _DOWNWARD, 0.0, opening) for step, tips, opening in course]


def _between(points: list[WayPoint], step: int) -> WayPoint:
    steps = [point.step for point in points]
    after = min(int(np.searchsorted(steps, step)), len(points) - 1)
    if after == 0 or step >= steps[after]:
        return points[after]
    a, b = points[after - 1], points[after]
    share = (step - a.step) / (b.step - a.step)
    return WayPoint(
        step,
        a.tips + share * (b.tips - a.tips),
        a.pitch + share * (b.pitch - a.pitch),
        a.roll + share * (b.roll - a.roll),
        a.opening + share * (b.opening - a.opening),
    )
