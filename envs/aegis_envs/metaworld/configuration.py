"""LeRobot's view of it: `--env.type=aegis_metaworld`, beside LeRobot's own `metaworld`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig, MetaworldEnv

from aegis_envs import choose_gl_backend
from aegis_envs.metaworld.options import FULL_SIZE, MAX_STEPS, check_options
from aegis_envs.metaworld.requirements import require_metaworld
from aegis_envs.metaworld.tasks import parse_tasks
from aegis_envs.vectors import make_vector


@EnvConfig.register_subclass("aegis_metaworld")
@dataclass
class AegisMetaworldEnv(MetaworldEnv):
    """Meta-World's tasks with LeRobot's observations, actions and instructions; see `aegis_envs.metaworld.env`.

    Attributes:
        task: Names as `reach-v3`, LeRobot's groups, `mt10`, `mt50`, or several separated by commas. Each task is
            evaluated as a suite of its own.
        episode_length: Control steps until an episode is cut off, up to 500; a success ends it earlier.
        image_size: Height and width of the image in pixels.
        rendering: `fast`, `shadows`, or `faithful` for Meta-World's shadows and multisampling at ten times the time.
    """

    task: str = "reach-v3"
    episode_length: int = MAX_STEPS
    image_size: int = FULL_SIZE
    rendering: str = "fast"

    def __post_init__(self) -> None:
        """Checks the options and describes the observation that they give.

        Raises:
            ValueError: If an option is none of its valid choices.
            ImportError: If metaworld is missing or does not work with the installed MuJoCo: a training that rolls out
                would end at its first evaluation.
        """
        super().__post_init__()
        parse_tasks(self.task or "")
        check_options(
            image_size=self.image_size,
            rendering=self.rendering,
            episode_length=self.episode_length,
            obs_type=self.obs_type,
        )
        require_metaworld()
        shape = (self.image_size, self.image_size, 3)
        for key, feature in self.features.items():
            if feature.type is FeatureType.VISUAL:
                self.features[key] = PolicyFeature(type=FeatureType.VISUAL, shape=shape)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Options of the environment, without the task."""
        return {
            "image_size": self.image_size,
            "rendering": self.rendering,
            "episode_length": self.episode_length,
            "obs_type": self.obs_type,
            "render_mode": self.render_mode,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Makes {task: {0: vector environment}}, a suite a task; an environment that has ended stands still."""
        suites: dict[str, dict[int, gym.vector.VectorEnv]] = {}
        for task in parse_tasks(self.task):
            make = partial(make_task, task, **self.gym_kwargs)
            if use_async_envs and n_envs > 1:
                # Worker processes only while their task is on, as LeRobot does it with its own environment. Imported
                # here, as it is private there: were it renamed, all else of this plugin should still be found.
                from lerobot.envs.utils import _LazyAsyncVectorEnv

                suites[task] = {0: _LazyAsyncVectorEnv([make] * n_envs)}
            else:
                suites[task] = {0: make_vector(make, n_envs, use_async_envs=False)}
        return suites


def make_task(task: str, **options: Any) -> gym.Env:
    """Makes the environment; its options are `aegis_envs.metaworld.env.MetaworldTask`'s."""
    choose_gl_backend()
    from aegis_envs.metaworld.env import MetaworldTask

    return MetaworldTask(task, **options)


def initial_states(task: str, seeds: Sequence[int]) -> list[list[float]]:
    """What the episodes of these seeds begin with: the positions of object and goal in metres, by the task.

    They are the same in LeRobot's `metaworld` as in `aegis_metaworld`.
    """
    env: Any = make_task(task)
    try:
        states = []
        for seed in seeds:
            env.start(seed)
            states.append(env.initial_state)
        return states
    finally:
        env.close()
