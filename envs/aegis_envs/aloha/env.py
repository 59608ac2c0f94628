"""gym-aloha's environment, which is LeRobot's `aloha`, without the pictures that nobody looks at.

    observation  {"pixels": {"top": (S, 4/3 S, 3) uint8}, "agent_pos": (14,) float64}
    action       (14,) float32: six joints of the left arm in radians, its gripper in [0, 1] (1 open), the right arm's

Names, shapes, dtypes, camera and physics are gym-aloha's own (`gym_aloha.env`), of which this is a subclass. What
differs:

- gym-aloha draws three pictures of 480 x 640 pixels at every step and shows one. A control step with its picture, the
  best of three by the command below on two cores of a CPU that six processes shared (LeRobot's: with `AlohaEnv` in its
  place), and the picture's mean difference from LeRobot's, of 255 (made smaller by averaging for 120 rows; bounds:
  tests/envs/test_aloha.py):

      rendering           ms at 120, 480 rows   difference at 120, 480
      fast                       42,  36               1.6, 1.4   no shadows
      shadows                    96, 101               0.8, 0.5
      faithful                  214, 238               0.3, 0.0
      LeRobot's `aloha`               750

      python -m timeit -n 10 -r 3 -s "from aegis_envs.aloha.configuration import make_task
      env = make_task('AlohaTransferCube-v0', image_size=120, rendering='fast'); env.reset(seed=0)
      action = env.unwrapped.joints()" "env.step(action)"

- Without a seed, `reset` draws from the environment's own generator, which gym-aloha does not use. With one, both begin
  an episode in the same state: gym-aloha makes a new generator of the seed at each reset.
"""

from typing import Any, cast

import gymnasium as gym
import mujoco
import numpy as np
from dm_control.rl import control
from gym_aloha.constants import DT
from gym_aloha.env import AlohaEnv
from gym_aloha.tasks.sim import BOX_POSE, InsertionTask, TransferCubeTask
from gym_aloha.utils import sample_box_pose, sample_insertion_pose
from numpy.typing import NDArray

from aegis_envs.aloha.options import ARM_JOINTS, CAMERA, FULL_SIZE, NAMES, SIDES, TASKS, check_options, width_of
from aegis_envs.rendering import Cameras, averaged, suite_cameras

_ROBOT = 2 * (ARM_JOINTS + 2)  # positions before the objects': two fingers an arm
_SUCCESS = 4  # gym-aloha's reward of a solved task


class _WithoutPictures:
    """What a simulated task observes, its three cameras left out."""

    def get_observation(self, physics: Any) -> dict[str, NDArray[np.float64]]:
        return {"qpos": cast(Any, self).get_qpos(physics)}


class _TransferCube(_WithoutPictures, TransferCubeTask):
    pass


class _Insertion(_WithoutPictures, InsertionTask):
    pass


_SIMULATED = {"transfer_cube": _TransferCube, "insertion": _Insertion}


class AlohaTask(AlohaEnv):
    """One of gym-aloha's tasks.

    Args:
        task: LeRobot's name of it, as `AlohaTransferCube-v0`.
        image_size: Rows of the observation's image; it has four thirds as many columns. Up to 240 an image is drawn
            twice as large and averaged.
        rendering: `fast`, `shadows`, or `faithful` for gym-aloha's shadows and multisampling.
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
        render_mode: str = "rgb_array",
    ):
        check_options(image_size=image_size, rendering=rendering)
        self._size = (image_size, width_of(image_size))
        self._samples = 2 if 2 * image_size <= FULL_SIZE else 1  # a side of each pixel
        self._rendering = rendering
        self._cameras: Cameras | None = None
        super().__init__(
            TASKS[task],
            obs_type="pixels_agent_pos",
            render_mode=render_mode,
            observation_height=self._size[0],
            observation_width=self._size[1],
        )
        self.task_description = self.task  # what LeRobot's rollouts tell a policy in its own environment

    @property
    def model(self) -> mujoco.MjModel:
        """The simulated world."""
        return self._env.physics.model.ptr

    @property
    def objects(self) -> NDArray[np.float64]:
        """Poses of the objects, (7,) for the cube or (14,) for peg and socket: positions in metres and quaternions."""
        return np.array(self._env.physics.data.qpos[_ROBOT:])

    def joints(self) -> NDArray[np.float64]:
        """The arms' joints in radians and grippers in [0, 1], (14,): what an action is a target for."""
        return np.array(self._env.task.get_qpos(self._env.physics))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draws where the objects are. The same seed gives the same episode; without one, the next of a random row."""
        self.start(seed)
        return self._observation(), {"is_success": False}

    def start(self, seed: int | None = None) -> None:
        """`reset` without a picture."""
        gym.Env.reset(self, seed=seed)
        drawn = seed if seed is not None else int(self.np_random.integers(2**31))
        if self.task == "transfer_cube":
            BOX_POSE[0] = sample_box_pose(drawn)  # where gym-aloha's task looks for it
        else:
            BOX_POSE[0] = np.concatenate(sample_insertion_pose(drawn))
        self._env.reset()

    def step(self, action: NDArray[Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Gives the arms the targets `action` (14,) for one control step of 1/50 s.

        Raises:
            ValueError: If the action has another shape or a value that is not finite.
        """
        reward = self.advance(action)
        success = reward == _SUCCESS
        return self._observation(), reward, success, False, {"is_success": success}

    def advance(self, action: NDArray[Any]) -> float:
        """`step` without a picture: the reward, 0 to 4, of which 4 is success."""
        target = np.asarray(action, dtype=np.float32)
        if target.shape != (len(NAMES),) or not np.isfinite(target).all():
            raise ValueError(
                f"An action is {len(NAMES)} finite numbers ({', '.join(SIDES)}: six joints and the gripper); got shape "
                f"{target.shape}, values {target}."
            )
        return float(self._env.step(target).reward)

    def render(self) -> NDArray[np.uint8]:
        """The camera's image as it is drawn, before it is made smaller."""
        if self._cameras is None:
            self._cameras = suite_cameras(self.model, self._rendering)
        height, width = (self._samples * pixels for pixels in self._size)
        return self._cameras.frame(self._env.physics.data.ptr, CAMERA, size=(height, width))

    def close(self) -> None:
        """Frees the OpenGL context."""
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def _make_env_task(self, task_name: str) -> control.Environment:
        physics = super()._make_env_task(task_name).physics
        return control.Environment(physics, _SIMULATED[task_name](), float("inf"), control_timestep=DT)

    def _observation(self) -> dict[str, Any]:
        return {"pixels": {CAMERA: averaged(self.render(), self._samples)}, "agent_pos": self.joints()}
