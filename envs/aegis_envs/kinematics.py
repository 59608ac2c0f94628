"""Inverse kinematics of the arm with mink, for a gripper that points down.

A site of the gripper is brought to a position; the gripper's approach axis is kept vertical as far as the reach allows
and its closing axis turned to a yaw where one is asked for. Each solve starts from the present joints, so that the
solution is the near one.
"""

import mink
import numpy as np

from aegis_envs.robot import HOME_DEGREES, SITES, robot_spec
from aegis_envs.units import GRIPPER, Array, to_radians

_ITERATIONS = 12
_POSITION_COST = 1.0  # per metre
_TILT_COST = 0.02  # per radian: two degrees of tilt weigh as much as a millimetre
_YAW_COST = 0.02
_POSTURE_COST = 1e-3  # per radian, decides what the task leaves open


class ArmKinematics:
    """Solves for joint targets. State: mink's configuration of the arm alone, overwritten by each solve."""

    def __init__(self) -> None:
        model = robot_spec().compile()
        self._configuration = mink.Configuration(model)
        self._limits = [mink.ConfigurationLimit(model)]
        self._posture = mink.PostureTask(model, cost=_POSTURE_COST)
        self._posture.set_target(to_radians(np.array(HOME_DEGREES)))
        self._frames = {
            (site, has_yaw): mink.FrameTask(
                site,
                "site",
                position_cost=_POSITION_COST,
                orientation_cost=[_TILT_COST, _TILT_COST, _YAW_COST if has_yaw else 0.0],
                lm_damping=1e-6,
            )
            for site in SITES
            for has_yaw in (False, True)
        }

    def solve(self, joints: Array, site: str, position: Array, *, yaw: float | None = None) -> Array:
        """Joint positions (6,) in radians that bring `site` to `position`.

        Args:
            joints: Where to start, (6,) in radians; the gripper's joint is left as it is.
            site: one of robot.py's `SITES`.
            position: Where to, (3,) in metres.
            yaw: Direction of the closing axis in the table's plane, radians; any if None.
        """
        frame = self._frames[site, yaw is not None]
        cos, sin = np.cos(yaw or 0.0), np.sin(yaw or 0.0)
        upright = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        frame.set_target(mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(upright), np.asarray(position)))
        self._configuration.update(joints.copy())
        for _ in range(_ITERATIONS):
            velocity = mink.solve_ik(
                self._configuration,
                [frame, self._posture],
                1.0,
                "daqp",
                damping=1e-8,
                limits=self._limits,
            )
            self._configuration.integrate_inplace(velocity, 1.0)
        solution = self._configuration.q.copy()
        solution[GRIPPER] = joints[GRIPPER]
        return solution
