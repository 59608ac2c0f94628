"""Copies of an environment that are stepped together, for LeRobot's evaluation.

A copy whose episode has ended stands still until the next rollout: it costs no time while others of its batch go on,
and a video ends with what happened rather than with the next scene.
"""

from collections.abc import Callable

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from lerobot.envs.utils import freeze_after_episode_end


def make_vector(make: Callable[[], gym.Env], copies: int, *, use_async_envs: bool) -> gym.vector.VectorEnv:
    """Makes the copies.

    Args:
        make: Makes one; in worker processes if these are wanted.
        copies: How many.
        use_async_envs: Whether each gets a process of its own. A single copy stays in this one.
    """
    makers = [freeze_after_episode_end(make)] * copies
    if use_async_envs and copies > 1:
        return gym.vector.AsyncVectorEnv(makers, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
