"""Scripted demonstrations of gym-aloha's tasks, for `aegis-record`.

With noise, the arms execute `a + n`, `n ~ N(0, noise^2)` in degrees on each arm joint, while `a` is recorded (DART,
arXiv 1703.09327); the grippers are left alone.
"""

from argparse import Namespace
from typing import Any

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE

from aegis_envs.aloha.env import AlohaTask
from aegis_envs.aloha.experts import Expert
from aegis_envs.aloha.kinematics import TwoArms
from aegis_envs.aloha.options import ARM_JOINTS, FPS, IMAGE_KEY, NAMES, check_options, parse_tasks, width_of
from aegis_envs.demonstrator import Demonstration, Frame, first_success

_ARMS = np.arange(len(NAMES)) % (ARM_JOINTS + 1) < ARM_JOINTS  # which of an action's numbers are no gripper's
_HEIGHTS = slice(2, None, 7)  # of the objects, in their poses
_IN_THE_AIR = 0.1  # metres; hands meet at twice that


class AlohaDemonstrator:
    """Plays gym-aloha's tasks for `aegis-record`; see `aegis_envs.demonstrator.Demonstrator`.

    Args:
        options: The command's options; see `aegis_envs.recordable`.

    Raises:
        ValueError: If an option is none of its valid choices.
    """

    robot_type = "aloha"
    fps = FPS

    def __init__(self, options: Namespace):
        if options.noise < 0:
            raise ValueError(f"--noise is a standard deviation in degrees and cannot be negative; got {options.noise}.")
        size = options.image_size
        check_options(image_size=size, rendering=options.rendering)
        self.tasks = parse_tasks(options.task)
        self._envs = [AlohaTask(task, image_size=size, rendering=options.rendering) for task in self.tasks]
        self._arms = [TwoArms(env.model) for env in self._envs]
        self._seed, self._noise = options.seed, options.noise
        self.features: dict[str, dict[str, Any]] = {
            ACTION: {"dtype": "float32", "shape": (len(NAMES),), "names": NAMES},
            OBS_STATE: {"dtype": "float32", "shape": (len(NAMES),), "names": NAMES},
            IMAGE_KEY: {"dtype": "image", "shape": (size, width_of(size), 3), "names": ["height", "width", "channels"]},
        }

    def demonstrate(self, episode: int) -> Demonstration:
        """Episode number `episode`; the tasks in turn."""
        which = episode % len(self._envs)
        env, arms = self._envs[which], self._arms[which]
        frames, failures = first_success(
            lambda episode_seed: attempt(env, arms, seed=episode_seed, noise=self._noise),
            seed=self._seed, episode=episode, task=self.tasks[which], noise=self._noise,
        )  # fmt: skip
        return Demonstration(env.task_description, frames, failures)

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        for env in self._envs:
            env.close()


def attempt(env: AlohaTask, arms: TwoArms, *, seed: int, noise: float) -> tuple[list[Frame], bool]:
    """Plays the episode of `seed` with the task's expert; returns its frames and whether it succeeded.

    A success that ends with an object on the table, dropped by a hand, is none.

    Args:
        env: The task; it is reset.
        arms: Of the same model; overwritten.
        seed: The episode.
        noise: Standard deviation in degrees of the disturbance of each arm joint.
    """
    observation, _ = env.reset(seed=seed)
    expert = Expert(env.task, env.objects, arms)
    disturbance = np.random.default_rng([seed, 1])
    frames, success = [], False
    for step in range(expert.steps):
        action = expert.action(step)
        frames.append(Frame(observation, action))
        executed = action + _ARMS * np.radians(disturbance.normal(0.0, noise, len(NAMES)))
        observation, _, _, _, info = env.step(executed)
        success = success or bool(info["is_success"])
    return frames, success and is_held(env)


def is_held(env: AlohaTask) -> bool:
    """Whether every object is in the air."""
    return bool((env.objects[_HEIGHTS] > _IN_THE_AIR).all())
