"""Meta-World as LeRobot has it: the same names, shapes and states, repeatable, and solved by its experts."""

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="needs the extra metaworld: pip install -e '.[metaworld]'")

import mujoco
import torch
from gymnasium.vector import SyncVectorEnv
from lerobot.envs.configs import MetaworldEnv as LerobotConfig
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.metaworld import MetaworldEnv as LerobotTask
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.constants import OBS_IMAGE
from torch import nn

from aegis_envs.metaworld.configuration import initial_states
from aegis_envs.metaworld.demonstrations import expert_action
from aegis_envs.metaworld.env import MetaworldTask
from aegis_envs.metaworld.tasks import MT10, descriptions

SIZE = 48


@pytest.fixture(scope="module")
def push():
    env = MetaworldTask("push-v3", image_size=SIZE)
    yield env
    env.close()


def _physics(env: MetaworldTask) -> np.ndarray:
    data = env._simulation.data
    return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel(), data.site_xpos.ravel(), env.full_observation])


def test_a_seed_is_the_same_episode_whatever_was_played_before(push):
    first, _ = push.reset(seed=3)
    state = _physics(push)
    for seed, steps in ((99, 40), (5, 3)):
        push.reset(seed=seed)
        for _ in range(steps):
            push.advance(np.array([1.0, 0.5, -1.0, 1.0]))
    again, _ = push.reset(seed=3)
    np.testing.assert_array_equal(_physics(push), state)
    np.testing.assert_array_equal(first["pixels"], again["pixels"])
    assert not np.array_equal(push.reset(seed=4)[0]["pixels"], first["pixels"])


class _Expert(nn.Module):
    """Acts as the task's expert in each environment of a batch."""

    def __init__(self, vector: SyncVectorEnv):
        super().__init__()
        self._vector = vector

    def reset(self):
        pass

    def select_action(self, _observation):
        return torch.from_numpy(np.stack([expert_action(env.unwrapped) for env in self._vector.envs]))


def _episodes(*, batch: int, seeds: list[int]) -> tuple[list[np.ndarray], list[list[float]]]:
    """Pictures (T, C, H, W) and initial state of each episode, batch after batch as `lerobot-eval` has them played."""
    config = make_env_config("aegis_metaworld", task="reach-v3", image_size=SIZE)
    vector = make_env(config, n_envs=batch)["reach-v3"][0]
    pictures, states = [], []
    for first in range(0, len(seeds), batch):
        played = rollout(
            vector, _Expert(vector), *[lambda x: x] * 4, seeds=seeds[first : first + batch], return_observations=True
        )
        assert played["success"].any(dim=1).all()
        for row in range(batch):
            steps = int(played["done"][row].int().argmax()) + 1
            pictures.append(played["observation"][OBS_IMAGE][row, : steps + 1].numpy())
        states += [env.unwrapped.initial_state for env in vector.envs]
    vector.close()
    return pictures, states


def test_episodes_are_the_same_whatever_the_batch_size_and_however_long_the_others_of_a_batch_last():
    seeds = [8, 9, 10, 11]
    apart, states = _episodes(batch=1, seeds=seeds)
    together, states_together = _episodes(batch=2, seeds=seeds)
    assert len({len(episode) for episode in apart}) == len(seeds)  # or none would have to wait for another
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert states == states_together == initial_states("reach-v3", seeds)
    assert len({tuple(state) for state in states}) == len(seeds)


def test_the_first_picture_shows_what_the_next_ones_show(push):
    """Meta-World moves the goal in its model only; a picture shows it where it was at the last kinematics."""
    first, _ = push.reset(seed=1)
    mujoco.mj_forward(push._simulation.model, push._simulation.data)
    np.testing.assert_array_equal(push._format_raw_obs(push.full_observation)["pixels"], first["pixels"])


# Largest mean difference from LeRobot's picture, of 255. Faithful: what a solver that was warm-started elsewhere moves.
# Shadows: edges, which multisampling smooths. Fast: no shadows, and one pass of light instead of two.
DIFFERENCES = {"faithful": 0.05, "shadows": 1.0, "fast": 12.0}


def test_it_is_lerobots_environment_up_to_what_the_lights_do():
    """The same names, shapes, dtypes, instruction and states, and the same picture as far as it was asked for."""
    theirs = LerobotTask("push-v3", obs_type="pixels_agent_pos")
    action = np.array([0.3, -0.2, -0.5, 1.0], dtype=np.float32)
    theirs.reset(seed=3)
    expected, reward, *_ = theirs.step(action)
    theirs.close()
    previous = -1.0
    for rendering, largest in DIFFERENCES.items():
        ours = MetaworldTask("push-v3", rendering=rendering)
        assert ours.observation_space == theirs.observation_space
        assert ours.action_space == theirs.action_space
        assert ours.task_description == theirs.task_description
        ours.reset(seed=3)
        found, our_reward, *_ = ours.step(action)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        # The kinematics were computed once more, which warm-starts the solver elsewhere: far below a pixel.
        np.testing.assert_allclose(found["agent_pos"], expected["agent_pos"], atol=1e-6)
        assert our_reward == pytest.approx(reward, abs=1e-4)
        difference = np.abs(found["pixels"].astype(int) - expected["pixels"]).mean()
        assert previous < difference < largest
        previous = difference
        ours.close()


def test_features_are_what_preprocessing_makes_of_an_observation_and_lerobots_own():
    config = make_env_config("aegis_metaworld", task="reach-v3", image_size=SIZE)
    vector = make_env(config)["reach-v3"][0]
    assert isinstance(vector, SyncVectorEnv)
    tensors = preprocess_observation(vector.reset(seed=[0])[0])
    features = env_to_policy_features(config)
    assert tuple(features.pop("action").shape) == (4,)
    assert {k: tuple(v.shape) for k, v in features.items()} == {k: tuple(v.shape[1:]) for k, v in tensors.items()}
    vector.close()
    assert env_to_policy_features(make_env_config("aegis_metaworld")) == env_to_policy_features(LerobotConfig())


def _course(env: MetaworldTask, *, seed: int) -> np.ndarray:
    """Everything that is measured in the first steps of an episode that the expert plays."""
    env.start(seed)
    states = [np.append(_physics(env), env.initial_state)]
    for _ in range(20):
        env.advance(expert_action(env))
        states.append(np.append(_physics(env), env.initial_state))
    return np.stack(states)


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(descriptions()))
def test_in_every_task_a_seed_is_the_same_course_as_in_an_environment_that_played_nothing(task):
    used = MetaworldTask(task)
    _course(used, seed=99)
    np.testing.assert_array_equal(_course(used, seed=3), _course(MetaworldTask(task), seed=3))


@pytest.mark.parametrize("task", MT10)
def test_every_task_of_mt10_is_solved_by_its_expert(task):
    env = MetaworldTask(task)
    for seed in range(3):
        env.start(seed)
        if any(env.advance(expert_action(env))[1] for _ in range(300)):
            return
    pytest.fail(f"The expert of {task} failed three episodes.")


def test_a_success_ends_the_episode_and_a_limit_cuts_it_off():
    env = MetaworldTask("reach-v3", image_size=SIZE, episode_length=150)
    env.reset(seed=0)
    ended = False
    while not ended:
        _, _, ended, cut, info = env.step(expert_action(env))
        assert not cut
    assert info == {"is_success": True, "task": "reach-v3"}
    short = MetaworldTask("reach-v3", image_size=SIZE, episode_length=2)
    short.reset(seed=0)
    assert [short.step(np.zeros(4))[2:4] for _ in range(2)] == [(False, False), (False, True)]
    with pytest.raises(ValueError, match="4 finite numbers"):
        short.step(np.full(4, np.nan))
    for one in (env, short):
        one.close()


def test_several_tasks_become_a_suite_each():
    envs = make_env(make_env_config("aegis_metaworld", task="mt10"), n_envs=2)
    assert tuple(envs) == MT10
    assert [vector[0].call("task_description")[0] for vector in envs.values()] == [descriptions()[t] for t in MT10]
    close_envs(envs)


@pytest.mark.slow
def test_worker_processes_play_the_same_episodes_as_this_one():
    config = make_env_config("aegis_metaworld", task="reach-v3", image_size=SIZE)
    together, apart = make_env(config, n_envs=2), make_env(config, n_envs=2, use_async_envs=True)
    pictures = [envs["reach-v3"][0].reset(seed=[3, 4])[0]["pixels"].copy() for envs in (together, apart)]
    np.testing.assert_array_equal(*pictures)
    close_envs(together)
    close_envs(apart)
