"""Inverse kinematics of gym-aloha's two arms with mink: joints that bring each hand's fingertips to a pose.

A hand's frame has x where its fingers point and y along which they close. At rest the left hand points along the
world's x, the right one against it; a pose is a position of the fingertips, a pitch about y (90 degrees points straight
down) and a roll about x. Each solve starts from the last one's joints, so that the solution is the near one.
"""

import mink
import mujoco
import numpy as np
from gym_aloha.constants import START_ARM_POSE
from numpy.typing import NDArray

from aegis_envs.aloha.options import ARM_JOINTS, SIDES

TIP = 0.14  # metres from a hand's frame to the middle of its fingertips
_ITERATIONS = 3
_POSITION_COST = 1.0  # per metre
_ORIENTATION_COST = 0.1  # per radian
_FACING = {"left": 0.0, "right": np.pi}


class TwoArms:
    """Solves for joint targets. State: mink's configuration, where the last solve ended.

    Args:
        model: gym-aloha's; its objects stay where they are.
    """

    def __init__(self, model: mujoco.MjModel):
        self._configuration = mink.Configuration(model)
        self._limits = [mink.ConfigurationLimit(model)]
        self._tasks = {
            side: mink.FrameTask(
                f"vx300s_{side}/gripper_link",
                "body",
                position_cost=_POSITION_COST,
                orientation_cost=_ORIENTATION_COST,
                lm_damping=1e-6,
            )
            for side in SIDES
        }
        self.rest()

    def rest(self) -> dict[str, NDArray[np.float64]]:
        """Back to the joints in which an episode begins; where the fingertips are then, (3,) a side."""
        joints = self._configuration.q.copy()
        joints[: len(START_ARM_POSE)] = START_ARM_POSE
        self._configuration.update(joints)
        poses = {side: self._configuration.get_transform_frame_to_world(task.frame_name, "body")
                 for side, task in self._tasks.items()}  # fmt: skip
        return {side: pose.translation() + pose.rotation().as_matrix()[:, 0] * TIP for side, pose in poses.items()}

    def solve(self, poses: dict[str, tuple[NDArray[np.float64], float, float]]) -> dict[str, NDArray[np.float64]]:
        """Joint positions in radians, (6,) a side.

        Args:
            poses: For each side the fingertips' position (3,) in metres, pitch and roll in radians.
        """
        for side, (position, pitch, roll) in poses.items():
            turn = mink.SO3.from_z_radians(_FACING[side]) @ mink.SO3.from_y_radians(pitch)
            turn = turn @ mink.SO3.from_x_radians(roll)
            hand = position - turn.as_matrix()[:, 0] * TIP
            self._tasks[side].set_target(mink.SE3.from_rotation_and_translation(turn, hand))
        for _ in range(_ITERATIONS):
            velocity = mink.solve_ik(
                self._configuration, list(self._tasks.values()), 1.0, "daqp", damping=1e-8, limits=self._limits
            )
            self._configuration.integrate_inplace(velocity, 1.0)
        first = {"left": 0, "right": len(START_ARM_POSE) // 2}
        return {side: self._configuration.q[first[side] : first[side] + ARM_JOINTS].copy() for side in SIDES}

    def errors(self) -> dict[str, float]:
        """Metres between the last solve's targets and its solution."""
        return {
            side: float(np.linalg.norm(task.compute_error(self._configuration)[:3]))
            for side, task in self._tasks.items()
        }
