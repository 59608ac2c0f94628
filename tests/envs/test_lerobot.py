import numpy as np
import pytest
import torch
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env, make_env_config, make_env_pre_post_processors
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import nn

from aegis_envs.configuration_aegis_envs import AegisTabletopEnv
from aegis_envs.experts import EXPERTS, Arm, Expert
from aegis_envs.kinematics import ArmKinematics


class _Oracle(nn.Module):
    """A "policy" that asks each environment's expert: what LeRobot's rollout should count as successes."""

    def __init__(self, vector) -> None:
        super().__init__()
        self._vector, self._kinematics = vector, ArmKinematics()

    def reset(self) -> None:
        self._experts: list[Expert] = []
        self.instructions: list[str] = []

    def select_action(self, observation: dict) -> torch.Tensor:
        envs = [env.unwrapped for env in self._vector.envs]
        if not self._experts:
            self._experts = [EXPERTS[env.task](Arm(env.simulation, self._kinematics)) for env in envs]
        self.instructions = observation["task"]
        return torch.tensor(np.stack([next(expert) for expert in self._experts]), dtype=torch.float32)


class _Still(nn.Module):
    def reset(self) -> None:
        pass

    def select_action(self, observation: dict) -> torch.Tensor:
        return observation[OBS_STATE]


def _identity() -> PolicyProcessorPipeline:
    return PolicyProcessorPipeline(
        steps=[], to_transition=lambda x: x, to_output=lambda x: x
    )  # policies here work in physical units


def _rollout(config: EnvConfig, vector, policy: nn.Module, seeds: list[int]) -> dict:
    before, after = make_env_pre_post_processors(config, policy_cfg=None)
    return rollout(vector, policy, before, after, _identity(), _identity(), seeds=seeds)


def test_lerobot_finds_the_environment_by_its_type() -> None:
    assert isinstance(make_env_config("aegis_tabletop", task="lift"), AegisTabletopEnv)


def test_features_are_what_preprocessing_makes_of_an_observation() -> None:
    config = AegisTabletopEnv(task="touch", cameras="front,wrist", image_size=64)
    envs = make_env(config)
    observation, _ = envs["touch"][0].reset(seed=[0])
    tensors = preprocess_observation(observation)
    features = env_to_policy_features(config)
    assert tuple(features.pop(ACTION).shape) == (6,)
    assert {k: tuple(v.shape) for k, v in features.items()} == {k: tuple(v.shape[1:]) for k, v in tensors.items()}
    close_envs(envs)


@pytest.mark.parametrize("task", ["touch", "place"])
def test_lerobots_rollout_counts_the_experts_successes(task: str) -> None:
    config = AegisTabletopEnv(task=task)
    envs = make_env(config, n_envs=2)
    oracle = _Oracle(envs[task][0])
    result = _rollout(config, envs[task][0], oracle, seeds=[0, 1])
    assert result["success"].any(dim=1).tolist() == [True, True]
    assert result["reward"].sum() == 2  # a finished environment stands still and earns nothing more
    assert len(set(oracle.instructions)) == 2 and all(oracle.instructions)
    close_envs(envs)


def test_lerobots_rollout_counts_no_success_of_a_policy_that_stands_still() -> None:
    config = AegisTabletopEnv(task="touch")
    envs = make_env(config, n_envs=2)
    result = _rollout(config, envs["touch"][0], _Still(), seeds=[0, 1])
    assert not result["success"].any()
    assert result[ACTION].shape == (2, 30, 6)
    close_envs(envs)


def test_several_tasks_become_a_suite_each() -> None:
    envs = make_env(AegisTabletopEnv(task="all"))
    assert list(envs) == ["touch", "push_to", "lift", "place"]
    close_envs(envs)


@pytest.mark.slow
def test_worker_processes_play_the_same_episodes_as_this_one() -> None:
    config = AegisTabletopEnv(task="touch")
    together, apart = make_env(config, n_envs=2), make_env(config, n_envs=2, use_async_envs=True)
    pictures = [envs["touch"][0].reset(seed=[3, 4])[0]["pixels"]["front"].copy() for envs in (together, apart)]
    np.testing.assert_array_equal(*pictures)
    close_envs(together)
    close_envs(apart)


def test_a_bad_option_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ValueError, match="touch, push_to, lift, place"):
        AegisTabletopEnv(task="fly")
    with pytest.raises(ValueError, match="task touch, not lift"):
        AegisTabletopEnv(task="touch,lift", phrasings="questions")
    with pytest.raises(ValueError, match="10 or 20"):
        AegisTabletopEnv(fps=30)
