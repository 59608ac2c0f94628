"""Meta-World's own scripted experts, for `aegis-record`.

An expert is told where object and goal are, which a policy has to see. Its action is recorded, and executed, clipped to
the action's range of [-1, 1]. With noise, the hand executes `a + n`, `n ~ N(0, noise^2)` on x, y and z, while `a` is
recorded (DART, arXiv 1703.09327); the gripper is left alone.
"""

import warnings
from argparse import Namespace
from typing import Any

import numpy as np
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE
from numpy.typing import NDArray

from aegis_envs.demonstrator import Demonstration, Frame, first_success
from aegis_envs.metaworld.env import MetaworldTask
from aegis_envs.metaworld.options import ACTION_SIZE, FPS, MAX_STEPS, OBS_TYPES, STATE_SIZE, check_options
from aegis_envs.metaworld.tasks import parse_tasks

NAMES = ["x", "y", "z", "gripper"]
_HAND = slice(0, 3)


class MetaworldDemonstrator:
    """Plays Meta-World's tasks for `aegis-record`; see `aegis_envs.demonstrator.Demonstrator`.

    Args:
        options: The command's options; see `aegis_envs.recordable`.

    Raises:
        ValueError: If an option is none of its valid choices.
    """

    robot_type = "sawyer"
    fps = FPS

    def __init__(self, options: Namespace):
        if options.noise < 0:
            raise ValueError(f"--noise is a standard deviation and cannot be negative; got {options.noise}.")
        size, rendering = options.image_size, options.rendering
        check_options(image_size=size, rendering=rendering, episode_length=MAX_STEPS, obs_type=OBS_TYPES[0])
        self.tasks = parse_tasks(options.task)
        self._envs = [MetaworldTask(task, image_size=size, rendering=rendering) for task in self.tasks]
        self._seed, self._noise = options.seed, options.noise
        self.features: dict[str, dict[str, Any]] = {
            ACTION: {"dtype": "float32", "shape": (ACTION_SIZE,), "names": NAMES},
            OBS_STATE: {"dtype": "float32", "shape": (STATE_SIZE,), "names": NAMES},
            OBS_IMAGE: {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]},
        }

    def demonstrate(self, episode: int) -> Demonstration:
        """Episode number `episode`; the tasks in turn."""
        env = self._envs[episode % len(self._envs)]
        frames, failures = first_success(
            lambda episode_seed: attempt(env, seed=episode_seed, noise=self._noise),
            seed=self._seed, episode=episode, task=env.task, noise=self._noise,
        )  # fmt: skip
        return Demonstration(env.task_description, frames, failures)

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        for env in self._envs:
            env.close()


def attempt(env: MetaworldTask, *, seed: int, noise: float) -> tuple[list[Frame], bool]:
    """Plays the episode of `seed` with the task's expert; returns its frames and whether it succeeded.

    Args:
        env: The task; it is reset.
        seed: The episode.
        noise: Standard deviation of the disturbance of the hand's action.
    """
    observation, _ = env.reset(seed=seed)
    disturbance = np.random.default_rng([seed, 1])
    frames = []
    while True:
        action = expert_action(env)
        frames.append(Frame(observation, action))
        executed = action.copy()
        executed[_HAND] += disturbance.normal(0.0, noise, 3)
        observation, _, terminated, truncated, info = env.step(executed)
        if terminated or truncated:
            return frames, info["is_success"]


def expert_action(env: MetaworldTask) -> NDArray[np.float32]:
    """What the task's expert does now (4,), within the action's range."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant")  # that it asks for more than the range, at each step
        action = env.expert_policy.get_action(env.full_observation)
    return np.clip(action, -1.0, 1.0).astype(np.float32)
