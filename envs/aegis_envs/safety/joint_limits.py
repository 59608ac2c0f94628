"""Keeps joint targets within limits."""

from collections.abc import Mapping

from aegis_envs.robot import robot_spec
from aegis_envs.units import FEATURE_NAMES, to_units

Limits = dict[str, tuple[float, float]]


def so101_limits() -> Limits:
    """The ranges of the SO-101's servos, by feature name, in degrees and gripper percent."""
    low, high = (to_units(limit.copy()) for limit in robot_spec().compile().actuator_ctrlrange.T)
    return {name: (float(a), float(b)) for name, a, b in zip(FEATURE_NAMES, low, high, strict=True)}


def checked_limits(limits: Mapping[str, list[float]], features: tuple[str, ...]) -> Limits:
    """Limits of an option, by feature name; a joint may be named with or without `.pos`.

    Raises:
        ValueError: If a joint is not the robot's, or its limits are no range.
    """
    checked: Limits = {}
    for joint, limit in limits.items():
        name = joint if joint in features else f"{joint}.pos"
        if name not in features:
            raise ValueError(f"joint_limits names {joint!r}; the robot has {', '.join(features)}.")
        if len(limit) != 2 or not limit[0] < limit[1]:
            raise ValueError(f"The limits of {joint} must be [lowest, highest]; got {limit}.")
        checked[name] = (float(limit[0]), float(limit[1]))
    return checked


def clip(action: Mapping[str, float], limits: Limits) -> dict[str, float]:
    """The action with each limited joint's target within its limits."""
    return {
        name: min(max(value, limits[name][0]), limits[name][1]) if name in limits else value
        for name, value in action.items()
    }
