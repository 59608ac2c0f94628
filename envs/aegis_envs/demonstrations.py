"""One demonstration: an expert plays one episode, possibly disturbed.

With noise, the arm executes `a + s n`, `n ~ N(0, noise^2)` on each arm joint, while the expert's undisturbed `a` is
recorded (DART, arXiv 1703.09327). The data then holds states off the expert's path together with the way back, which is
what a policy with errors of its own needs. The scale `s` is 1 in free space and fades with the gripper's height to
`TABLE_SCALE` at the table: where it works on an object, what would be a detour above ruins the episode.
"""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from numpy.typing import NDArray

from aegis_envs.base import TabletopEnv
from aegis_envs.demonstrator import Demonstration, Frame, first_success
from aegis_envs.experts import EXPERTS, Arm
from aegis_envs.kinematics import ArmKinematics
from aegis_envs.tasks import parse_tasks
from aegis_envs.units import FEATURE_NAMES, GRIPPER

TABLE_SCALE = 0.15
FREE_HEIGHT = 0.06  # metres of the fingertips above the table from which on the disturbance is whole
ROBOT_TYPE = "so101_follower"


class TabletopDemonstrator:
    """Plays the table's tasks for `aegis-record`; see `aegis_envs.demonstrator.Demonstrator`.

    Args:
        options: The command's options; see `aegis_envs.recordable`.

    Raises:
        ValueError: If an option is none of its valid choices.
    """

    robot_type = ROBOT_TYPE

    def __init__(self, options: Namespace):
        if options.noise < 0:
            raise ValueError(f"--noise is a standard deviation in degrees and cannot be negative; got {options.noise}.")
        cameras = tuple(name.strip() for name in options.cameras.split(",") if name.strip())
        self._envs = [
            TabletopEnv(
                task.name,
                cameras=cameras,
                image_size=options.image_size,
                kinds=options.kinds,
                phrasings=options.phrasings,
                objects=options.objects,
                randomize=options.randomize,
                control_hz=options.fps,
            )
            for task in parse_tasks(options.task)
        ]
        self._seed, self._noise = options.seed, options.noise
        self._kinematics = ArmKinematics()
        self.tasks = tuple(env.task for env in self._envs)
        self.fps = options.fps
        joints = {"dtype": "float32", "shape": (len(FEATURE_NAMES),), "names": list(FEATURE_NAMES)}
        image = {
            "dtype": "image",
            "shape": (options.image_size, options.image_size, 3),
            "names": ["height", "width", "channels"],
        }
        self.features: dict[str, dict[str, Any]] = {
            ACTION: joints,
            OBS_STATE: dict(joints),
            **{f"{OBS_IMAGES}.{camera}": dict(image) for camera in cameras},
        }

    def demonstrate(self, episode: int) -> Demonstration:
        """Episode number `episode`; the tasks in turn."""
        env = self._envs[episode % len(self._envs)]
        return demonstrate(env, self._kinematics, seed=self._seed, episode=episode, noise=self._noise)

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        for env in self._envs:
            env.close()


def attempt(env: TabletopEnv, kinematics: ArmKinematics, *, seed: int, noise: float) -> tuple[list[Frame], bool]:
    """Plays the episode of `seed` with the task's expert; returns its frames and whether it succeeded.

    Args:
        env: The environment; it is reset.
        kinematics: The arm's inverse kinematics, shared between episodes.
        seed: The episode.
        noise: Standard deviation of the disturbance of each arm joint in free space, degrees.
    """
    observation, _ = env.reset(seed=seed)
    disturbance = np.random.default_rng([seed, 1])
    expert: Iterator[NDArray[np.float64]] = EXPERTS[env.task](Arm(env.simulation, kinematics))
    frames = []
    while True:
        action = next(expert).astype(np.float32)
        frames.append(Frame(observation, action))
        height = env.simulation.site("tip")[0][2]
        scale = np.clip(height / FREE_HEIGHT, TABLE_SCALE, 1.0)
        executed = action + disturbance.normal(0.0, noise * scale, action.shape).astype(np.float32)
        executed[GRIPPER] = action[GRIPPER]  # a grasp that slips is no small error
        observation, _, terminated, truncated, info = env.step(executed)
        if terminated or truncated:
            return frames, info["is_success"]


def demonstrate(env: TabletopEnv, kinematics: ArmKinematics, *, seed: int, episode: int, noise: float) -> Demonstration:
    """Demonstration number `episode` of a recording with `seed`: a pure function of both.

    Raises:
        RuntimeError: If the expert fails `ATTEMPTS` times in a row.
    """
    frames, failures = first_success(
        lambda episode_seed: attempt(env, kinematics, seed=episode_seed, noise=noise),
        seed=seed, episode=episode, task=env.task, noise=noise,
    )  # fmt: skip
    return Demonstration(env.task_description, frames, failures, env.randomization.record())
