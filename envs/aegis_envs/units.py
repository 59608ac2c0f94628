"""Joint units of LeRobot's `so101_follower`, and the way to MuJoCo's radians and back.

The five arm joints are in degrees, zero in the middle of their calibrated range; the gripper is 0 (closed) to 100
(open). The robot model's ranges are symmetric, so its zero is LeRobot's zero:

    q_deg = q_rad * 180 / pi                       arm joints
    g     = 100 * (q_rad - low) / (high - low)     gripper
"""

import numpy as np
from numpy.typing import NDArray

JOINTS: tuple[str, ...] = (
    "shoulder_pan",
    "shoulder_lift",
    "elbow_flex",
    "wrist_flex",
    "wrist_roll",
    "gripper",
)
FEATURE_NAMES: tuple[str, ...] = tuple(f"{joint}.pos" for joint in JOINTS)  # as in so101_follower's features
GRIPPER = JOINTS.index("gripper")
GRIPPER_RANGE = (-0.174533, 1.745329)  # radians, closed and open, of the robot model

Array = NDArray[np.float64]


def to_units(radians: Array) -> Array:
    """Joint positions (6,) in radians -> degrees, gripper 0-100."""
    low, high = GRIPPER_RANGE
    units = np.degrees(radians)
    units[GRIPPER] = 100.0 * (radians[GRIPPER] - low) / (high - low)
    return units


def to_radians(units: Array) -> Array:
    """Joint positions (6,) in degrees, gripper 0-100 -> radians."""
    low, high = GRIPPER_RANGE
    radians = np.radians(units)
    radians[GRIPPER] = low + units[GRIPPER] / 100.0 * (high - low)
    return radians
