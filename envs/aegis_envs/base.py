"""The gymnasium environment: a language-conditioned task with an SO-101 on a table.

    observation  {"pixels": {camera: (H, W, 3) uint8}, "agent_pos": (6,) float32}     joint positions
    action       (6,) float32                                                          absolute joint targets

Joints are in the units of LeRobot's `so101_follower` (units.py). An episode is a function of its seed, pixels included.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from aegis_envs.episode import draw_episode
from aegis_envs.instructions import CHOICES
from aegis_envs.layout import KINDS, MAX_OBJECTS
from aegis_envs.randomization import Randomization, draw_randomization, parse_randomize
from aegis_envs.rendering import Cameras
from aegis_envs.robot import robot_spec
from aegis_envs.scene import CAMERAS, FRONT
from aegis_envs.sight import SceneObject, scene_objects
from aegis_envs.simulation import Simulation
from aegis_envs.tasks import Task, Verdict, parse_tasks
from aegis_envs.units import JOINTS, to_radians, to_units

CONTROL_HZ = 10
OBS_TYPES = ("pixels_agent_pos", "pixels")
RENDER_SIZE = 256  # pixels, of `render()`
_MAX_IMAGE_SIZE = 1024


class TabletopEnv(gym.Env[dict[str, Any], NDArray[Any]]):
    """One arm, a few objects, one instruction an episode.

    Args:
        task: A task's name, several separated by commas, or `"all"`: each episode draws one of them.
        cameras: Which of `front` and `wrist` the observation has; none leaves its images out.
        image_size: Height and width of the observation's images in pixels.
        kinds: Which colour-shape combinations are asked for: `shown`, `never_shown` or `all`.
        phrasings: Which instructions are drawn: `shown`, `never_shown`, `all` of these, `attributes` ("the red object",
            "the cylinder"), `shapes` ("the cylinder"), or (touch alone) `questions`.
        objects: How many graspable objects stand on the table.
        randomize: What of the world is drawn anew in each episode: `none`, `all`, or some of `lights`, `textures`,
            `camera`, `dynamics`, `latency`, `backlash`, separated by commas. What was drawn is
            in the `info` of `reset` (randomization.py).
        obs_type: `pixels_agent_pos`, or `pixels` to leave the joint positions out.
        max_steps: Control steps until an episode is cut off; by default each task's own limit.
        control_hz: Control steps a second.
        render_mode: Only `rgb_array`.

    Raises:
        ValueError: If an argument is none of its valid choices.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 gymnasium's own shape

    def __init__(
        self,
        task: str = "touch",
        *,
        cameras: Sequence[str] = (FRONT,),
        image_size: int = 96,
        kinds: str = "shown",
        phrasings: str = "shown",
        objects: int = 3,
        randomize: str = "none",
        obs_type: str = "pixels_agent_pos",
        max_steps: int | None = None,
        control_hz: int = CONTROL_HZ,
        render_mode: str = "rgb_array",
    ):
        check_options(
            cameras=cameras, image_size=image_size, kinds=kinds, phrasings=phrasings, objects=objects,
            randomize=randomize, obs_type=obs_type, max_steps=max_steps, control_hz=control_hz,
        )  # fmt: skip
        if render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be 'rgb_array', the only one there is; got {render_mode!r}.")
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": control_hz}
        self.tasks = parse_tasks(task)
        check_phrasings(phrasings, self.tasks)
        self.cameras = tuple(cameras)
        self.has_joints = obs_type == "pixels_agent_pos"
        self.image_size = image_size
        self.kinds, self.phrasings, self.objects, self.control_hz = kinds, phrasings, objects, control_hz
        self._randomized = parse_randomize(randomize)
        self.randomization = Randomization()
        self._limits_steps = {t.name: max_steps or round(t.seconds * control_hz) for t in self.tasks}
        self.current_task: Task = self.tasks[0]
        self.task_description = ""
        self._simulations: dict[int, tuple[Simulation, Cameras]] = {}  # by number of discs, made on first use
        self._steps = 0
        low, high = _action_limits()
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        image = spaces.Box(0, 255, (image_size, image_size, 3), dtype=np.uint8)
        margin = np.float32(10.0)  # degrees: an overloaded joint may be pressed beyond its limit
        parts: dict[str, spaces.Space] = {}
        if self.has_joints:
            parts["agent_pos"] = spaces.Box(low - margin, high + margin, dtype=np.float32)
        if self.cameras:
            parts["pixels"] = spaces.Dict(dict.fromkeys(self.cameras, image))
        self.observation_space = spaces.Dict(parts)

    @property
    def task(self) -> str:
        """Name of the current episode's task."""
        return self.current_task.name

    @property
    def _max_episode_steps(self) -> int:
        """The longest limit of the environment's tasks: how long LeRobot's rollout goes on at most."""
        return max(self._limits_steps.values())

    @property
    def simulation(self) -> Simulation:
        """The physics of the current episode, for experts and judges."""
        return self._world()[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draws a task, a scene and an instruction. The same seed gives the same episode."""
        super().reset(seed=seed)
        episode = draw_episode(
            self.np_random, self.tasks, objects=self.objects, kinds=self.kinds, phrasings=self.phrasings
        )
        self.current_task, self.task_description = episode.task, episode.instruction
        self.randomization = draw_randomization(self.np_random, self._randomized, objects=self.objects)
        self.simulation.reset(episode.layout, to_radians(episode.home), self.randomization)
        self._steps = 0
        info = self._info(Verdict.ONGOING)
        return self.observe(), info | ({"randomization": self.randomization.record()} if self._randomized else {})

    def step(self, action: NDArray[Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Moves the servos' targets to `action` (6,), clipped to their ranges, for one control step.

        Raises:
            ValueError: If the action has another shape or a value that is not finite.
        """
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (len(JOINTS),) or not np.isfinite(target).all():
            raise ValueError(
                f"An action is {len(JOINTS)} finite joint targets ({', '.join(JOINTS)}; degrees, gripper 0-100); "
                f"got shape {target.shape}, values {target}."
            )
        self.simulation.advance(to_radians(target))
        self._steps += 1
        verdict = self.current_task.judge(self.simulation)
        terminated = verdict is not Verdict.ONGOING
        truncated = not terminated and self._steps >= self._limits_steps[self.task]
        reward = float(verdict is Verdict.SUCCESS)
        return self.observe(), reward, terminated, truncated, self._info(verdict)

    def observe(self) -> dict[str, Any]:
        """The observation of the present moment."""
        simulation, cameras = self._world()
        observation: dict[str, Any] = {}
        if self.has_joints:
            observation["agent_pos"] = to_units(simulation.joints).astype(np.float32)
        if self.cameras:
            observation["pixels"] = {
                name: cameras.frame(simulation.data, name, size=self.image_size) for name in self.cameras
            }
        return observation

    def render(self) -> NDArray[np.uint8]:
        """A larger image (256, 256, 3) of the front camera, for videos."""
        simulation, cameras = self._world()
        return cameras.frame(simulation.data, FRONT, size=max(RENDER_SIZE, self.image_size))

    def scene_objects(self) -> list[SceneObject]:
        """What is on the table and where the front camera sees it; objects first, then discs."""
        return scene_objects(*self._world())

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        for _, cameras in self._simulations.values():
            cameras.close()
        self._simulations.clear()

    def _world(self) -> tuple[Simulation, Cameras]:
        discs = self.current_task.discs
        if discs not in self._simulations:
            simulation = Simulation(
                objects=self.objects,
                discs=discs,
                image_size=max(RENDER_SIZE, self.image_size),
                control_hz=self.control_hz,
                table_patterns="textures" in self._randomized,
            )
            self._simulations[discs] = (simulation, Cameras(simulation.model))
        return self._simulations[discs]

    def _info(self, verdict: Verdict) -> dict[str, Any]:
        return {"is_success": verdict is Verdict.SUCCESS, "verdict": verdict.value, "task": self.task}


def check_phrasings(phrasings: str, tasks: Sequence[Task]) -> None:
    """Raises a ValueError where a task cannot be put as a question."""
    others = [task.name for task in tasks if not task.templates.questions]
    if phrasings == "questions" and others:
        raise ValueError(
            f"phrasings=questions are answered by touching: use them with task touch, not {', '.join(others)}."
        )


def check_options(
    *, cameras: Sequence[str], image_size: int, kinds: str, phrasings: str, objects: int, randomize: str,
    obs_type: str, max_steps: int | None, control_hz: int,
) -> None:  # fmt: skip
    """Raises a ValueError with the valid choices if an option of the environment is none of them."""
    if obs_type not in OBS_TYPES:
        raise ValueError(f"obs_type must be one of {', '.join(OBS_TYPES)}; got {obs_type!r}.")
    if obs_type == "pixels" and not cameras:
        raise ValueError("obs_type 'pixels' without cameras leaves nothing to see; name a camera.")
    if len(set(cameras)) != len(cameras) or not set(cameras) <= set(CAMERAS):
        raise ValueError(f"cameras must be some of {', '.join(CAMERAS)}, each once; got {tuple(cameras)}.")
    if not 16 <= image_size <= _MAX_IMAGE_SIZE:
        raise ValueError(f"image_size must be 16 to {_MAX_IMAGE_SIZE} pixels; got {image_size}.")
    if kinds not in KINDS:
        raise ValueError(f"kinds must be one of {', '.join(KINDS)}; got {kinds!r}.")
    if phrasings not in CHOICES:
        raise ValueError(f"phrasings must be one of {', '.join(CHOICES)}; got {phrasings!r}.")
    if not 2 <= objects <= MAX_OBJECTS:
        raise ValueError(
            f"objects must be 2 to {MAX_OBJECTS}: with one there is nothing to tell apart, and more find no room "
            f"within the arm's reach; got {objects}."
        )
    parse_randomize(randomize)
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, or None for each task's own limit; got {max_steps}.")
    if control_hz not in (10, 20):
        raise ValueError(f"control_hz must be 10 or 20, which whole physics steps make up; got {control_hz}.")


def _action_limits() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest joint targets (6,) in LeRobot's units, from the robot model's servos."""
    model = robot_spec().compile()
    low, high = (to_units(limit.copy()).astype(np.float32) for limit in model.actuator_ctrlrange.T)
    return low, high
