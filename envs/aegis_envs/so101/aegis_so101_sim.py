"""`AegisSO101Sim`: the table of `aegis_tabletop` behind LeRobot's robot interface, in real time.

    observation  {"shoulder_pan.pos": float, ..., "front": (H, W, 3) uint8}     as so101_follower's
    action       {"shoulder_pan.pos": float, ...}                               absolute joint targets

Joints are in so101_follower's units (degrees, gripper 0-100; units.py). Time does not wait for the policy: while it
thinks, the servos go on to the last target. A target takes effect at once, as on the servos' bus; aegis_tabletop, for
which a control step is the smallest unit of time, spreads it over the step.

An episode begins with its first action and ends with the environment's verdict or after its time. The next scene is
laid out when the arm is sent back, from elsewhere, to exactly where it stood when it was first looked at: that is how
LeRobot's `episodic` strategy resets a robot between two episodes.
"""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.robots.utils import ensure_safe_goal_position
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

from aegis_envs.base import TabletopEnv
from aegis_envs.so101.config_aegis_so101_sim import AegisSO101SimConfig
from aegis_envs.so101.real_time import RealTime
from aegis_envs.so101.report import TIMEOUT, UNFINISHED, EpisodeRecord, Report
from aegis_envs.tasks import Verdict
from aegis_envs.units import FEATURE_NAMES, Array, to_radians, to_units

_SAME_PLACE = 1e-6  # degrees: rounding of an interpolation that ends at its target
logger = logging.getLogger(__name__)


class AegisSO101Sim(Robot):
    """A simulated SO-101 at a table.

    State while connected: the environment, its real time, the episode's record, where the arm was first seen.

    Args:
        config: See there.
        clock: Seconds, from any origin; the wall clock unless a test says otherwise.
    """

    config_class = AegisSO101SimConfig
    name = "aegis_so101_sim"

    def __init__(self, config: AegisSO101SimConfig, *, clock: Callable[[], float] = perf_counter):
        super().__init__(config)
        self.config = config
        self._clock = clock
        self._env: TabletopEnv | None = None
        self._episode: EpisodeRecord | None = None
        self._began = 0.0
        self._was_away = False  # whether the last target was elsewhere than where the arm was first seen
        self.report = Report(config.report)

    # --- what LeRobot asks before connecting ------------------------------------------------------------------------

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the views: LeRobot counts them for its image writers."""
        return self.config.camera_names

    @property
    def observation_features(self) -> dict[str, Any]:
        """Six joint positions and an image a camera."""
        shape = (self.config.image_size, self.config.image_size, 3)
        return {**self.action_features, **dict.fromkeys(self.cameras, shape)}

    @property
    def action_features(self) -> dict[str, Any]:
        """Six joint targets."""
        return dict.fromkeys(FEATURE_NAMES, float)

    @property
    def is_calibrated(self) -> bool:
        """Always: the model's zero is in the middle of its ranges."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    # --- acting -----------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether there is a scene."""
        return self._env is not None

    @property
    def instruction(self) -> str:
        """What the present scene asks."""
        return self._record.instruction

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Lays out the first scene, draws it once (the first image is slow) and starts the clock.

        Raises:
            OSError: If the report cannot be written.
        """
        config = self.config
        self.report.write()  # now rather than after an episode; and a former run's is not taken for this one's
        self._env = TabletopEnv(
            config.task, cameras=config.camera_names, image_size=config.image_size, kinds=config.kinds,
            phrasings=config.phrasings, objects=config.objects, randomize=config.randomize,
        )  # fmt: skip
        self._first_seen: Array | None = None
        self._next_seed = config.seed
        try:
            self._lay_out()
        except Exception:
            self._env.close()
            self._env = None
            raise
        if config.instruction is None:
            logger.warning(
                "This scene asks %r. The policy is told what --task says: give it these words, or choose scenes by "
                "--robot.instruction.",
                self.instruction,
            )

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        """Joint positions and images of now."""
        self._time.catch_up()
        observation = self._environment.observe()
        joints = observation["agent_pos"].astype(np.float64)
        if self._first_seen is None:
            self._first_seen = joints
        return {**_named(joints), **observation["pixels"]} if self.cameras else _named(joints)

    @check_if_not_connected
    def joint_positions(self) -> dict[str, float]:
        """Joint positions of now, without drawing an image."""
        self._time.catch_up()
        return _named(to_units(self._environment.simulation.joints))

    @check_if_not_connected
    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Sets the servos' targets.

        Returns:
            The targets that were set, within the servos' ranges and `max_relative_target`.

        Raises:
            ValueError: If a joint is missing or a target is not finite.
        """
        target = _targets(action)
        self._time.catch_up()
        if not self._record.sent_at_s:
            self._time.restart()
            self._began = self._clock()
        self._record.sent_at_s.append(self._clock() - self._began)
        is_home = self._first_seen is not None and np.abs(target - self._first_seen).max() <= _SAME_PLACE
        if is_home and self._was_away:
            self._lay_out()
            return dict(action)
        self._was_away = not is_home
        simulation = self._environment.simulation
        sent = to_units(np.clip(to_radians(self._limited(target)), *simulation.limits))
        simulation.aim(to_radians(sent))
        return _named(sent)

    @check_if_not_connected
    def disconnect(self) -> None:
        """Ends the episode, writes the report and frees the OpenGL contexts."""
        try:
            self._time.catch_up()
            self._end()
            if not self.report.episodes:
                logger.warning("No action arrived while the robot was connected.")
        finally:
            self._environment.close()
            self._env = None

    # --- episodes ---------------------------------------------------------------------------------------------------

    @property
    def _environment(self) -> TabletopEnv:
        assert self._env is not None, "guarded by check_if_not_connected"
        return self._env

    @property
    def _record(self) -> EpisodeRecord:
        assert self._episode is not None, "there is one as long as the robot is connected"
        return self._episode

    def _lay_out(self) -> None:
        """Ends the episode and begins the next scene; the arm is put to that scene's start."""
        self._end()
        seed = self.config.next_seed(self._next_seed)
        self._next_seed = seed + 1
        env = self._environment
        env.reset(seed=seed)
        self._was_away = False
        self._episode = EpisodeRecord(seed, env.task, env.task_description, randomization=env.randomization.record())
        self._time = RealTime(env.simulation, self._judge, clock=self._clock)
        logger.info("Scene of seed %d: %r.", seed, self.instruction)

    def _judge(self, seconds: float) -> None:
        record, env = self._record, self._environment
        if record.verdict != UNFINISHED or not record.sent_at_s:
            return
        verdict = env.current_task.judge(env.simulation)
        record.seconds = seconds
        if verdict is not Verdict.ONGOING:
            record.verdict = verdict.value
        elif seconds >= (self.config.episode_seconds or env.current_task.seconds):
            record.verdict = TIMEOUT
        if record.verdict != UNFINISHED:
            logger.info("Verdict on seed %d after %.1f s: %s.", record.seed, seconds, record.verdict)

    def _end(self) -> None:
        """Takes the present episode into the report, once."""
        if self._episode is not None:
            self.report.add(self._episode)
            self._episode = None

    def _limited(self, target: Array) -> Array:
        limit = self.config.max_relative_target
        if limit is None:
            return target
        if isinstance(limit, dict):
            limit = {f"{joint.removesuffix('.pos')}.pos": float(value) for joint, value in limit.items()}
        else:
            limit = float(limit)
        present = to_units(self._environment.simulation.joints)
        pairs = {name: (float(t), float(p)) for name, t, p in zip(FEATURE_NAMES, target, present, strict=True)}
        return _targets(ensure_safe_goal_position(pairs, limit))


def _named(joints: Array) -> dict[str, Any]:
    return {name: float(value) for name, value in zip(FEATURE_NAMES, joints, strict=True)}


def _targets(action: dict[str, Any]) -> Array:
    """Joint targets (6,) of an action, in the joints' order.

    Raises:
        ValueError: If a joint is missing or a target is not finite.
    """
    missing = [name for name in FEATURE_NAMES if name not in action]
    if missing:
        raise ValueError(f"An action names all of {', '.join(FEATURE_NAMES)}; {', '.join(missing)} missing.")
    target = np.array([float(action[name]) for name in FEATURE_NAMES])
    if not np.isfinite(target).all():
        raise ValueError(f"Joint targets must be finite; got {_named(target)}. Is the policy's output nan?")
    return target
