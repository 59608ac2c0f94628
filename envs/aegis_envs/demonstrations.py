"""One demonstration: an expert plays one episode, possibly disturbed.

With noise, the arm executes `a + s n`, `n ~ N(0, noise^2)` on each arm joint, while the expert's undisturbed `a` is
recorded (DART, arXiv 1703.09327). The data then holds states off the expert's path together with the way back, which is
what a policy with errors of its own needs. The scale `s` is 1 in free space and fades with the gripper's height to
`TABLE_SCALE` at the table: where it works on an object, what would be a detour above ruins the episode.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis_envs.base import TabletopEnv
from aegis_envs.experts import EXPERTS, Arm
from aegis_envs.kinematics import ArmKinematics
from aegis_envs.units import GRIPPER

TABLE_SCALE = 0.15
FREE_HEIGHT = 0.06  # metres of the fingertips above the table from which on the disturbance is whole
ATTEMPTS = 50  # episodes that an expert may fail in a row before something must be wrong


class Frame(NamedTuple):
    """What a policy sees and what the expert does about it."""

    observation: dict[str, Any]
    action: NDArray[np.float32]  # (6,)


class Demonstration(NamedTuple):
    """A successful episode."""

    instruction: str
    frames: list[Frame]
    failures: int  # episodes that the expert failed before this one


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
    for failures in range(ATTEMPTS):
        episode_seed = int(np.random.SeedSequence([seed, episode, failures]).generate_state(1)[0])
        frames, success = attempt(env, kinematics, seed=episode_seed, noise=noise)
        if success:
            return Demonstration(env.task_description, frames, failures)
    raise RuntimeError(
        f"The expert failed {ATTEMPTS} episodes of {env.task!r} in a row with noise {noise}; try less noise."
    )
