"""LeRobot's `metaworld` environment, with what an evaluation needs beside it.

    observation  {"pixels": (S, S, 3) uint8, "agent_pos": (4,) float64}    hand x, y, z in metres; gripper opening
    action       (4,) float32 in [-1, 1]                                   hand displacement, 1 cm a unit; gripper

Names, shapes, dtypes, camera, instruction and physics are LeRobot's own (`lerobot.envs.metaworld`), of which this is a
subclass. What differs:

- An episode is a function of its seed, whatever was played before. The first picture shows the episode's goal:
  LeRobot's shows there the goal of a draw that Meta-World has thrown away, until the first step.
- Pictures are drawn without shadows and multisampling unless asked for, and by a renderer that makes its own OpenGL
  context current: gymnasium's does not, and draws in whichever was made last when there are several simulations in a
  process. A control step with its picture on one idle core of a CPU (the command below), and the picture's mean
  difference from LeRobot's, of 255 (made smaller by averaging for 96 pixels; bounds: tests/envs/test_metaworld.py):

      rendering   ms at 96, 480 pixels   difference at 96, 480
      fast                      10,  20               7.7, 7.9   no shadows, and the table a little darker
      shadows                   31,  48               1.3, 0.6
      faithful                 105, 145               0.9, 0

      python -m timeit -n 20 -s "from aegis_envs.metaworld.configuration import make_task
      env = make_task('reach-v3', image_size=96, rendering='fast'); env.reset(seed=0)" "env.step([0, 0, 0, 0])"

- A success ends the episode and the environment stays there: LeRobot's draws the next one at once.
"""

from typing import Any, cast

import gymnasium as gym
import mujoco
import numpy as np
from lerobot.envs.metaworld import MetaworldEnv
from numpy.typing import NDArray

from aegis_envs.metaworld.options import ACTION_SIZE, FULL_SIZE, MAX_STEPS, STATE_SIZE, check_options
from aegis_envs.rendering import Cameras, averaged, suite_cameras

CAMERA = "corner2"


class MetaworldTask(MetaworldEnv):
    """One of Meta-World's tasks.

    Args:
        task: Its name, as `reach-v3`.
        image_size: Height and width of the observation's image in pixels. Up to 240 an image is drawn twice as large
            and averaged, four samples a pixel, which is what makes a small goal visible in it.
        rendering: `fast`, `shadows`, or `faithful` for Meta-World's shadows and multisampling.
        episode_length: Control steps until an episode is cut off.
        obs_type: `pixels_agent_pos`, or `pixels` to leave the state out.
        render_mode: Only `rgb_array`.

    Raises:
        ValueError: If an option is none of its valid choices.
    """

    def __init__(
        self,
        task: str,
        *,
        image_size: int = FULL_SIZE,
        rendering: str = "fast",
        episode_length: int = MAX_STEPS,
        obs_type: str = "pixels_agent_pos",
        render_mode: str = "rgb_array",
    ):
        check_options(image_size=image_size, rendering=rendering, episode_length=episode_length, obs_type=obs_type)
        super().__init__(
            task,
            camera_name=CAMERA,
            obs_type=obs_type,
            render_mode=render_mode,
            observation_width=image_size,
            observation_height=image_size,
        )
        self._rendering = rendering
        self._samples = 2 if 2 * image_size <= FULL_SIZE else 1  # a side of each pixel
        self._drawn_size = self._samples * image_size
        self._max_episode_steps = episode_length  # LeRobot's rollout asks for it by this name
        self._cameras: Cameras | None = None
        self._steps = 0
        self.full_observation: NDArray[np.float64] = np.zeros(0)  # (39,), with objects and goal: what experts see

    @property
    def initial_state(self) -> list[float]:
        """What the episode drew: positions of object and goal in metres, by the task."""
        return [float(value) for value in self._simulation._last_rand_vec]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draws object and goal. The same seed gives the same episode; without one, the next of a random row."""
        self.start(seed)
        return self._format_raw_obs(self.full_observation), self._info(False)

    def start(self, seed: int | None = None) -> None:
        """`reset` without a picture."""
        gym.Env.reset(self, seed=seed)
        simulation = self._simulation
        simulation.seed(seed if seed is not None else int(self.np_random.integers(2**31)))
        self.full_observation, _ = simulation.reset()
        mujoco.mj_forward(simulation.model, simulation.data)  # or sites, the goal among them, are drawn where they were
        self._steps = 0

    def step(self, action: NDArray[Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Moves the hand by `action` (4,) for one control step of 1/80 s.

        Raises:
            ValueError: If the action has another shape or a value that is not finite.
        """
        reward, success = self.advance(action)
        truncated = not success and self._steps >= self._max_episode_steps
        return self._format_raw_obs(self.full_observation), reward, success, truncated, self._info(success)

    def advance(self, action: NDArray[Any]) -> tuple[float, bool]:
        """`step` without a picture: the reward, and whether the task is done."""
        target = np.asarray(action, dtype=np.float32)
        if target.shape != (ACTION_SIZE,) or not np.isfinite(target).all():
            raise ValueError(
                f"An action is {ACTION_SIZE} finite numbers (x, y, z, gripper); got shape {target.shape}, "
                f"values {target}."
            )
        self.full_observation, reward, _, _, found = self._simulation.step(target)
        self._steps += 1
        return float(reward), bool(found["success"])

    def render(self) -> NDArray[np.uint8]:
        """The camera's image as it is drawn, before it is made smaller."""
        simulation = self._simulation
        if self._cameras is None:
            self._cameras = suite_cameras(simulation.model, self._rendering)
        drawn = self._cameras.frame(simulation.data, CAMERA, size=self._drawn_size)
        return np.ascontiguousarray(drawn[::-1, ::-1])  # this camera hangs upside down

    def close(self) -> None:
        """Frees the OpenGL context."""
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def _format_raw_obs(self, raw_obs: NDArray[np.float64]) -> dict[str, Any]:
        observation: dict[str, Any] = {"pixels": averaged(self.render(), self._samples)}
        if self.obs_type == "pixels_agent_pos":
            observation["agent_pos"] = raw_obs[:STATE_SIZE].copy()
        return observation

    @property
    def _simulation(self) -> Any:
        """Meta-World's own environment, made when it is first needed, in the process that needs it."""
        self._ensure_env()
        return cast(Any, self._env)

    def _info(self, success: bool) -> dict[str, Any]:
        return {"is_success": success, "task": self.task}
