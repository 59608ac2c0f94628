"""Keeps the SO-101's gripper in a box, by the forward kinematics of the robot model.

Held in the box are points, not volumes: the point between the closed fingertips (site `tip`), that in the middle of
the opening (site `grasp`) and the origin of the gripper's body. An opening jaw swings up to 5 cm beyond them, and the
elbow is not looked at: leave room.

World frame: the base at the origin, x away from it, y to its left, z up from what it stands on, metres.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from aegis_envs.robot import robot_spec
from aegis_envs.units import FEATURE_NAMES, Array, to_radians

_POINTS = ("tip", "grasp", "gripper")
_HALVINGS = 12  # of the way from where the arm is to its target: 1/4000 of it


class OutsideWorkspaceError(ValueError):
    """The arm stands outside of its box and was not sent inside, so that no motion from there can be judged."""


@dataclass(frozen=True)
class Box:
    """Lowest and highest x, y and z in metres."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks that it has an inside.

        Raises:
            ValueError: If it has none.
        """
        if len(self.low) != 3 or len(self.high) != 3 or not all(np.less(self.low, self.high)):
            raise ValueError(
                "A workspace is [[x, y, z] lowest, [x, y, z] highest] in metres, each lowest below its highest; got "
                f"{list(self.low)} and {list(self.high)}."
            )


def box_of(corners: list[list[float]]) -> Box:
    """The box of an option `[[x, y, z], [x, y, z]]`.

    Raises:
        ValueError: If it is none.
    """
    if len(corners) != 2:
        raise ValueError(f"A workspace is two corners, [[x, y, z] lowest, [x, y, z] highest]; got {corners}.")
    return Box(tuple(corners[0]), tuple(corners[1]))


class Workspace:
    """Limits joint targets to those with the gripper in a box. State: MuJoCo's data, overwritten by each question."""

    def __init__(self, box: Box):
        self.box = box
        self._model = robot_spec().compile()
        self._data = mujoco.MjData(self._model)

    def points(self, joints: Array) -> Array:
        """Where the guarded points are (3, 3), metres, one a row, with the arm at `joints` (6,) in LeRobot's units."""
        self._data.qpos[:] = to_radians(joints)
        mujoco.mj_kinematics(self._model, self._data)
        sites = [self._data.site(name).xpos for name in _POINTS[:2]]
        return np.array([*sites, self._data.body(_POINTS[2]).xpos])

    def contains(self, joints: Array) -> bool:
        """Whether all guarded points are in the box."""
        points = self.points(joints)
        return bool((points >= self.box.low).all() and (points <= self.box.high).all())

    def limit(
        self, present: Mapping[str, float], action: Mapping[str, float], *, last: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """The action, or the last place inside on the straight way (in joint space) to it.

        The way begins where the arm is, or, when that is outside, at its last target: servos give way to gravity, so
        an arm that is held at a wall stands a little behind it.

        Args:
            present: Joint positions by feature name.
            action: Joint targets by feature name.
            last: The targets that the arm was last sent to, by feature name; None: none yet.

        Raises:
            ValueError: If a joint has no target.
            OutsideWorkspaceError: If all of them are outside. A target inside is let through: it is the way back.
        """
        missing = [name for name in FEATURE_NAMES if name not in action]
        if missing:
            raise ValueError(f"A workspace needs the targets of all joints; {', '.join(missing)} missing.")
        goal = joint_vector(action)
        if self.contains(goal):
            return dict(action)
        start = joint_vector(present)
        if not self.contains(start) and last is not None:
            start = joint_vector(last)
        if not self.contains(start):
            start = joint_vector(present)
            places = ", ".join(
                f"{name} {np.round(point, 3).tolist()}" for name, point in zip(_POINTS, self.points(start), strict=True)
            )
            raise OutsideWorkspaceError(
                f"The arm stands outside of its workspace {self.box} (metres): {places}. Move it inside by hand, or "
                "give a larger --robot.workspace."
            )
        inside, outside = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if self.contains(start + middle * (goal - start)) else (inside, middle)
        limited = start + inside * (goal - start)
        return {**action, **dict(zip(FEATURE_NAMES, limited.tolist(), strict=True))}


def joint_vector(joints: Mapping[str, float]) -> Array:
    """Joint positions by feature name as (6,) in `FEATURE_NAMES`' order."""
    return np.array([joints[name] for name in FEATURE_NAMES])
