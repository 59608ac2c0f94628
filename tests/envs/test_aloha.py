"""gym-aloha as LeRobot has it: the same names, shapes, states and pictures, and both tasks solved by their experts."""

import numpy as np
import pytest

pytest.importorskip("gym_aloha", reason="needs the extra aloha: pip install -e '.[aloha]'")

import torch
from gym_aloha.env import AlohaEnv
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation
from lerobot.scripts.lerobot_eval import rollout
from torch import nn

from aegis_envs.aloha.demonstrations import is_held
from aegis_envs.aloha.env import AlohaTask
from aegis_envs.aloha.experts import Expert
from aegis_envs.aloha.kinematics import TwoArms
from aegis_envs.aloha.options import NAMES, TASKS

SIZE = 48
SEEDS = range(100, 103)


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    env = AlohaTask(request.param, image_size=SIZE)
    yield env
    env.close()


# Largest mean difference from LeRobot's picture, of 255. Faithful: none. Shadows: edges, which multisampling smooths.
# Fast: the shadows besides.
DIFFERENCES = {"faithful": 0.0, "shadows": 1.0, "fast": 3.0}


@pytest.mark.slow
def test_it_is_lerobots_environment_up_to_what_the_lights_do():
    """The same names, shapes, dtypes and states, after steps too, and the same picture as far as it was asked for."""
    theirs = AlohaEnv("transfer_cube", obs_type="pixels_agent_pos")
    theirs.reset(seed=3)
    action = np.linspace(-0.2, 0.3, len(NAMES), dtype=np.float32)
    expected, reward, *_ = theirs.step(action)
    previous = -1.0
    for rendering, largest in DIFFERENCES.items():
        ours = AlohaTask("AlohaTransferCube-v0", rendering=rendering)
        assert ours.observation_space == theirs.observation_space
        assert ours.action_space == theirs.action_space
        assert ours.task_description == theirs.task
        ours.reset(seed=3)
        found, our_reward, *_ = ours.step(action)
        np.testing.assert_array_equal(found["agent_pos"], expected["agent_pos"])
        assert our_reward == reward
        difference = np.abs(found["pixels"]["top"].astype(float) - expected["pixels"]["top"]).mean()
        assert previous < difference <= largest
        previous = difference
        ours.close()


@pytest.mark.slow
def test_a_seed_is_the_same_initial_state_here_and_in_lerobots_own(task):
    theirs = AlohaEnv(task.task, obs_type="pixels_agent_pos")
    for seed in (5, 6):
        theirs.reset(seed=seed)
        task.start(seed)
        np.testing.assert_array_equal(task.objects, theirs._env.physics.data.qpos[-len(task.objects) :])


def test_a_seed_is_the_same_episode_whatever_was_played_before(task):
    def course(seed: int) -> np.ndarray:
        task.start(seed)
        states = [np.concatenate([task.joints(), task.objects])]
        for step in range(20):
            task.advance(task.joints() + 0.01 * step)
            states.append(np.concatenate([task.joints(), task.objects]))
        return np.stack(states)

    first = course(3)
    assert not np.array_equal(course(4)[0], first[0])
    np.testing.assert_array_equal(course(3), first)
    task.start(8)
    drawn = []
    for _ in range(2):  # without a seed, the next of the row that 8 began
        task.start()
        drawn.append(task.objects)
    task.start(8)
    task.start()
    np.testing.assert_array_equal(task.objects, drawn[0])
    assert not np.array_equal(*drawn)


def test_both_tasks_are_solved_by_their_experts_to_the_end(task):
    arms = TwoArms(task.model)
    for seed in SEEDS:
        task.start(seed)
        expert = Expert(task.task, task.objects, arms)
        rewards = []
        for step in range(expert.steps):
            rewards.append(task.advance(expert.action(step)))
            assert max(arms.errors().values()) < 0.003  # metres: less than the fingertips are wide, 10 mm
        assert max(rewards) == 4
        assert is_held(task)


class _Expert(nn.Module):
    """Acts as the task's expert in each environment of a batch."""

    def __init__(self, vector):
        super().__init__()
        self._vector = vector

    def reset(self):
        tasks = [env.unwrapped for env in self._vector.envs]
        self._step = 0
        self._experts = [Expert(task.task, task.objects, TwoArms(task.model)) for task in tasks]

    def select_action(self, _observation):
        actions = [expert.action(min(self._step, expert.steps - 1)) for expert in self._experts]
        self._step += 1
        return torch.from_numpy(np.stack(actions))


class _LateExpert(_Expert):
    """LeRobot's rollout resets the policy before the environments, whose objects the experts must know."""

    def select_action(self, observation):
        if self._step == 0:
            _Expert.reset(self)
        return super().select_action(observation)


@pytest.mark.slow
def test_lerobots_rollout_sees_the_experts_succeed_and_the_limit_cut_others_off():
    config = make_env_config("aegis_aloha", image_size=SIZE)
    vector = make_env(config, n_envs=2)["AlohaTransferCube-v0"][0]
    played = rollout(vector, _LateExpert(vector), *[lambda x: x] * 4, seeds=[1, 2])
    assert played["success"].any(dim=1).all()
    assert played["success"].shape[1] < 270  # the first touch ends it, before the expert has drawn back
    close_envs({"": {0: vector}})
    short = make_env_config("aegis_aloha", image_size=SIZE, episode_length=3)
    vector = make_env(short, n_envs=1)["AlohaTransferCube-v0"][0]
    played = rollout(vector, _LateExpert(vector), *[lambda x: x] * 4, seeds=[1])
    assert played["success"].shape == (1, 3)
    assert not played["success"].any()
    close_envs({"": {0: vector}})


def test_what_lerobot_makes_of_an_observation_is_what_the_configuration_promises():
    config = make_env_config("aegis_aloha", image_size=SIZE)
    vector = make_env(config, n_envs=1)["AlohaTransferCube-v0"][0]
    tensors = preprocess_observation(vector.reset(seed=[0])[0])
    features = {name: feature.shape for name, feature in env_to_policy_features(config).items() if name != "action"}
    assert features == {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    assert vector.call("task_description") == ("transfer_cube",)
    assert vector.call("_max_episode_steps") == (400,)
    close_envs({"": {0: vector}})


def test_an_action_that_is_not_finite_is_refused(task):
    task.start(0)
    with pytest.raises(ValueError, match="14 finite numbers"):
        task.advance(np.full(len(NAMES), np.nan))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        task.advance(np.zeros(2))
