"""Options of the guard around a robot: `--robot.type=aegis_guarded --robot.robot='{type: so101_follower, ...}'`."""

from dataclasses import dataclass, field
from typing import Any

import draccus
from lerobot.robots import RobotConfig

from aegis_envs import choose_gl_backend


@RobotConfig.register_subclass("aegis_guarded")
@dataclass(kw_only=True)
class AegisGuardedConfig(RobotConfig):
    """A robot behind limits. What the robot itself offers, such as `max_relative_target`, stays an option of it.

    Attributes:
        robot: The robot that is guarded: its `type` and its options, as one would give them to `--robot.*`.
        joint_limits: Lowest and highest target a joint, in the robot's units, such as
            `{shoulder_pan: [-60, 60]}`. An SO-101's other joints keep to the ranges of its servos.
        workspace: For an SO-101 in degrees: lowest and highest [x, y, z] of the gripper in metres, such as
            `[[0.08, -0.2, 0.0], [0.4, 0.2, 0.4]]`. None: anywhere.
        watchdog_ms: Hold still when no action came for so many milliseconds, on a robot that takes joint targets only.
            None: the arm goes on to its last target.
    """

    # No RobotConfig: among whose types is this one, and draccus lists the options of all of them without an end.
    robot: dict[str, Any]
    joint_limits: dict[str, list[float]] = field(default_factory=dict)
    workspace: list[list[float]] | None = None
    watchdog_ms: float | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without the robot.

        Raises:
            ValueError: If an option has no meaning, those of the robot included, or the robot would report other units
                than the workspace reads.
        """
        choose_gl_backend()
        from aegis_envs.safety.workspace import box_of

        if self.robot.get("type") in (None, "aegis_guarded"):
            raise ValueError(
                "robot names the robot that is guarded, such as {type: so101_follower, port: /dev/ttyACM0}; got "
                f"{self.robot}."
            )
        if self.watchdog_ms is not None and self.watchdog_ms <= 0:
            raise ValueError(f"watchdog_ms must be above 0, or None for no watchdog; got {self.watchdog_ms}.")
        inner = self.inner()
        if self.workspace is not None:
            box_of(self.workspace)
            if not getattr(inner, "use_degrees", True):
                raise ValueError("A workspace is computed from degrees: leave the robot's use_degrees at true.")

    def inner(self) -> RobotConfig:
        """The configuration of the robot that is guarded.

        Raises:
            ValueError: If its options are not its type's.
        """
        try:
            return draccus.decode(RobotConfig, self.robot)
        except draccus.utils.DecodingError as error:
            raise ValueError(f"robot={self.robot} describes no robot: {error}") from error
