"""LeRobot's view of it: `--env.type=aegis_aloha`, beside LeRobot's own `aloha`."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TimeLimit
from lerobot.envs.configs import AlohaEnv, EnvConfig

from aegis_envs import choose_gl_backend
from aegis_envs.aloha.options import FULL_SIZE, MAX_STEPS, check_options, parse_tasks, width_of
from aegis_envs.aloha.requirements import require_aloha
from aegis_envs.vectors import make_vector


@EnvConfig.register_subclass("aegis_aloha")
@dataclass
class AegisAlohaEnv(AlohaEnv):
    """gym-aloha's tasks with LeRobot's observations and actions; see `aegis_envs.aloha.env`.

    Attributes:
        task: `AlohaTransferCube-v0`, `AlohaInsertion-v0`, or both separated by a comma. Each is a suite of its own.
        episode_length: Control steps until an episode is cut off; a success ends it earlier.
        image_size: Height of the image in pixels; its width is four thirds of it.
        rendering: `fast`, `shadows`, or `faithful` for gym-aloha's shadows and multisampling.
    """

    task: str | None = "AlohaTransferCube-v0"
    episode_length: int = MAX_STEPS
    image_size: int = FULL_SIZE
    rendering: str = "fast"

    def __post_init__(self) -> None:
        """Checks the options and describes the observation that they give.

        Raises:
            ValueError: If an option is none of its valid choices.
            ImportError: If gym-aloha is missing: a training that rolls out would end at its first evaluation.
        """
        parse_tasks(self.task or "")
        check_options(image_size=self.image_size, rendering=self.rendering)
        if self.obs_type != "pixels_agent_pos":
            raise ValueError(f"obs_type must be pixels_agent_pos, picture and joints; got {self.obs_type!r}.")
        require_aloha()
        self.observation_height, self.observation_width = self.image_size, width_of(self.image_size)
        super().__post_init__()

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Options of the environment, without the task."""
        return {
            "image_size": self.image_size,
            "rendering": self.rendering,
            "episode_length": self.episode_length,
            "render_mode": self.render_mode,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Makes {task: {0: vector environment}}, a suite a task; an environment that has ended stands still."""
        suites: dict[str, dict[int, gym.vector.VectorEnv]] = {}
        for task in parse_tasks(self.task or ""):
            make = partial(make_task, task, **self.gym_kwargs)
            suites[task] = {0: make_vector(make, n_envs, use_async_envs=use_async_envs)}
        return suites


def make_task(task: str, *, episode_length: int = MAX_STEPS, **options: Any) -> gym.Env:
    """Makes the environment; the other options are `aegis_envs.aloha.env.AlohaTask`'s."""
    choose_gl_backend()
    from aegis_envs.aloha.env import AlohaTask

    return TimeLimit(AlohaTask(task, **options), episode_length)
