"""LeRobot's view of the environment: `--env.type=aegis_tabletop`."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from aegis_envs import GYM_ID, choose_gl_backend
from aegis_envs.units import JOINTS
from aegis_envs.vectors import make_vector


@EnvConfig.register_subclass("aegis_tabletop")
@dataclass
class AegisTabletopEnv(EnvConfig):
    """An SO-101 at a table with coloured objects and an instruction.

    Attributes:
        task: `touch`, `push_to`, `lift`, `place`, several of them separated by commas, or `all`. Each task is
            evaluated as a suite of its own.
        fps: Control steps a second, 10 or 20.
        episode_length: Control steps until an episode is cut off; by default each task's own limit.
        image_size: Height and width of the images in pixels.
        cameras: `front`, `wrist` or `front,wrist`.
        kinds: Colour-shape combinations of the objects asked for: `shown`, `never_shown` or `all`.
        phrasings: Instructions: `shown`, `never_shown`, `all` of these, `attributes` ("the red object", "the
            cylinder"), `shapes` ("the cylinder"), or (touch alone) `questions`.
        objects: Graspable objects on the table, 2 to 5.
        randomize: What of the world is drawn anew in each episode: `none`, `all`, or some of `lights`, `textures`,
            `camera`, `dynamics`, `latency`, `backlash`, separated by commas.
        obs_type: `pixels_agent_pos`, or `pixels` to leave the joint positions out.
    """

    task: str | None = "touch"
    fps: int = 10
    episode_length: int | None = None
    image_size: int = 96
    cameras: str = "front"
    kinds: str = "shown"
    phrasings: str = "shown"
    objects: int = 3
    randomize: str = "none"
    obs_type: str = "pixels_agent_pos"
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(len(JOINTS),))}
    )
    features_map: dict[str, str] = field(default_factory=lambda: {ACTION: ACTION})

    def __post_init__(self) -> None:
        """Checks the options and describes the observation that they give.

        Raises:
            ValueError: If an option is none of its valid choices.
        """
        choose_gl_backend()
        from aegis_envs.base import check_options, check_phrasings
        from aegis_envs.tasks import parse_tasks

        check_phrasings(self.phrasings, parse_tasks(self.task or ""))
        check_options(max_steps=self.episode_length, control_hz=self.fps, **self._shared_options)
        shape = (self.image_size, self.image_size, 3)
        for camera in self.camera_names:
            key = f"{OBS_IMAGES}.{camera}"
            self.features[key] = PolicyFeature(type=FeatureType.VISUAL, shape=shape)
            self.features_map[key] = key
        if self.obs_type == "pixels_agent_pos":
            self.features["agent_pos"] = PolicyFeature(type=FeatureType.STATE, shape=(len(JOINTS),))
            self.features_map["agent_pos"] = OBS_STATE

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras as a tuple."""
        return tuple(name.strip() for name in self.cameras.split(",") if name.strip())

    @property
    def gym_id(self) -> str:
        """The id under which gymnasium knows the environment."""
        return GYM_ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Options of `gymnasium.make`, without the task."""
        return {"max_steps": self.episode_length, "control_hz": self.fps, **self._shared_options}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Makes {task: {0: vector environment}}, a suite a task; an environment that has ended stands still."""
        from aegis_envs.tasks import parse_tasks

        suites: dict[str, dict[int, gym.vector.VectorEnv]] = {}
        for task in parse_tasks(self.task or ""):
            make = partial(
                gym.make,
                f"aegis_envs:{self.gym_id}",  # a worker process has yet to import what registers it
                task=task.name,
                disable_env_checker=self.disable_env_checker,
                **self.gym_kwargs,
            )
            suites[task.name] = {0: make_vector(make, n_envs, use_async_envs=use_async_envs)}
        return suites

    @property
    def _shared_options(self) -> dict[str, Any]:
        return {
            "cameras": self.camera_names,
            "image_size": self.image_size,
            "kinds": self.kinds,
            "phrasings": self.phrasings,
            "objects": self.objects,
            "randomize": self.randomize,
            "obs_type": self.obs_type,
        }
