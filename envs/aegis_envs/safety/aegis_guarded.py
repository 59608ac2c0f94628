"""`AegisGuarded`: any of LeRobot's robots behind joint limits, a workspace and a watchdog.

An action passes, in this order: finite? -> joint limits -> the robot's own `max_relative_target` -> workspace. The
limits shorten a motion rather than refusing it, and what was sent is returned; one that bites is in the log at most
once a second. Of an action that is refused nothing is sent, and the watchdog counts it as none.

The cap comes before the workspace, although the robot applies it again: it shortens each joint's way by itself, and
where that bends the way out of the box, the box has to see it. The workspace only ever shortens further.
"""

import logging
import math
from collections.abc import Mapping
from threading import RLock
from time import monotonic
from typing import Any

from lerobot.robots import Robot, make_robot_from_config
from lerobot.robots.utils import ensure_safe_goal_position

from aegis_envs.safety.config_aegis_guarded import AegisGuardedConfig
from aegis_envs.safety.joint_limits import checked_limits, clip, so101_limits
from aegis_envs.safety.watchdog import Watchdog
from aegis_envs.safety.workspace import Workspace, box_of, joint_vector
from aegis_envs.units import FEATURE_NAMES

# Robots with the SO-101's servos and links; others, such as Koch's, have motors of the same names.
SO101_TYPES = ("so101_follower", "so100_follower", "aegis_so101_sim")
_SAME = 1e-6  # units
_BETWEEN_WARNINGS = 1.0  # seconds
logger = logging.getLogger(__name__)


class AegisGuarded(Robot):
    """Passes everything on to a robot, actions after they were limited.

    State: the robot, its watchdog while connected, the last targets within the limits, when a limit was last in the
    log. The robot is called by one thread at a time.

    Raises:
        ValueError: If a limit does not fit the robot's joints, or a watchdog cannot hold all that moves.
    """

    config_class = AegisGuardedConfig
    name = "aegis_guarded"

    def __init__(self, config: AegisGuardedConfig):
        super().__init__(config)
        self.config = config
        inner = config.inner()
        self.robot = make_robot_from_config(inner)
        self.name = self.robot_type = self.robot.name  # what a recorded dataset says it was made with
        features = tuple(name for name in self.robot.action_features if name.endswith(".pos"))
        is_so101 = inner.type in SO101_TYPES and features == FEATURE_NAMES
        in_degrees = getattr(inner, "use_degrees", True)
        self._limits = so101_limits() if is_so101 and in_degrees else {}
        self._limits |= checked_limits(config.joint_limits, features)
        self._cap: float | dict[str, float] | None = getattr(inner, "max_relative_target", None)
        self._workspace: Workspace | None = None
        if config.workspace is not None:
            if not is_so101:
                raise ValueError(
                    f"A workspace is found from the SO-101's links, {', '.join(SO101_TYPES)}; the robot is "
                    f"{inner.type}. Leave --robot.workspace out, and limit its joints with --robot.joint_limits."
                )
            self._workspace = Workspace(box_of(config.workspace))
        others = [name for name in self.robot.action_features if not name.endswith(".pos")]
        if config.watchdog_ms is not None and others:
            raise ValueError(
                f"A watchdog sends joints to where they are; {inner.type} also takes {', '.join(others)}, which it "
                "could not stop. Leave --robot.watchdog_ms out."
            )
        self.watchdog: Watchdog | None = None
        self._target: dict[str, float] | None = None
        self._lock = RLock()
        self._warned_at = -_BETWEEN_WARNINGS

    @property
    def cameras(self) -> Any:
        """The robot's."""
        return getattr(self.robot, "cameras", {})

    @property
    def observation_features(self) -> dict[str, Any]:
        """The robot's."""
        return self.robot.observation_features

    @property
    def action_features(self) -> dict[str, Any]:
        """The robot's."""
        return self.robot.action_features

    @property
    def is_connected(self) -> bool:
        """Whether the robot is."""
        return self.robot.is_connected

    @property
    def is_calibrated(self) -> bool:
        """Whether the robot is."""
        return self.robot.is_calibrated

    def calibrate(self) -> None:
        """Calibrates the robot."""
        self.robot.calibrate()

    def configure(self) -> None:
        """Configures the robot."""
        self.robot.configure()

    def connect(self, calibrate: bool = True) -> None:
        """Connects the robot and lets the watchdog loose: it begins to watch with the first action."""
        self.robot.connect(calibrate)
        self._target = None
        if self.config.watchdog_ms is not None:
            self.watchdog = Watchdog(self.config.watchdog_ms / 1000, self._hold)
            self.watchdog.start()

    def get_observation(self) -> dict[str, Any]:
        """The robot's observation."""
        with self._lock:
            return self.robot.get_observation()

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Sends the action as far as the limits allow, and returns what the robot says was sent.

        Raises:
            ValueError: If a target is not finite, or one is missing that the workspace needs.
            OutsideWorkspaceError: If the arm, its last target and the new one are all outside of the workspace.
        """
        bad = {name: value for name, value in action.items() if not math.isfinite(value)}
        if bad:
            raise ValueError(f"Joint targets must be finite; got {bad}. Nothing was sent. Is the policy's output nan?")
        limited = clip(action, self._limits)
        with self._lock:
            if self._workspace is not None:
                limited = self._kept_inside(self._workspace, limited)
            self._warn(action, limited)
            sent = self.robot.send_action(limited)
            self._target = limited
            if self.watchdog is not None:
                self.watchdog.feed()
        return sent

    def disconnect(self) -> None:
        """Calls the watchdog off and disconnects the robot."""
        if self.watchdog is not None:
            self.watchdog.stop()
        with self._lock:
            self.robot.disconnect()

    def _kept_inside(self, workspace: Workspace, action: Mapping[str, float]) -> dict[str, float]:
        """The action as far as cap and workspace allow; the way to it begins within the joint limits, and so stays."""
        present = present_positions(self.robot)
        beginnings = [present] if self._target is None else [present, self._target]
        # An arm that has been outside from the start is not held to it: its first way in is free.
        if self._cap is not None and any(workspace.contains(joint_vector(pose)) for pose in beginnings):
            motors = {name.removesuffix(".pos"): (target, present[name]) for name, target in action.items()}
            capped = ensure_safe_goal_position(motors, self._cap)
            action = {f"{motor}.pos": target for motor, target in capped.items()}
        return workspace.limit(clip(present, self._limits), action, last=self._target)

    def _hold(self) -> None:
        with self._lock:
            if self.watchdog is None or not self.watchdog.is_stale:
                return  # an action came while this waited for the lock
            logger.warning("No action for %.0f ms: the arm holds where it is.", self.config.watchdog_ms)
            self.robot.send_action(present_positions(self.robot))

    def _warn(self, action: Mapping[str, float], limited: Mapping[str, float]) -> None:
        changed = [name for name in action if abs(action[name] - limited[name]) > _SAME]
        if changed and monotonic() - self._warned_at >= _BETWEEN_WARNINGS:
            self._warned_at = monotonic()
            shown = ", ".join(f"{name} {action[name]:.1f} -> {limited[name]:.1f}" for name in changed)
            logger.warning("Limited: %s.", shown)


def present_positions(robot: Robot) -> dict[str, float]:
    """Joint positions by feature name, without the cameras where the robot has a way to leave them out."""
    if hasattr(robot, "joint_positions"):  # the simulated arm
        return robot.joint_positions()
    if hasattr(robot, "bus"):  # LeRobot's arms of bus servos, so101_follower among them
        # A bus loses a packet now and then: as often as the robot's own reading of an observation, this tries again.
        retries = getattr(robot.config, "num_read_retries", None)
        options = {} if retries is None else {"num_retry": retries}
        return {f"{motor}.pos": value for motor, value in robot.bus.sync_read("Present_Position", **options).items()}
    return {name: value for name, value in robot.get_observation().items() if name.endswith(".pos")}
