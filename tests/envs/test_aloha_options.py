"""What is refused, and how; none of it needs gym-aloha."""

import pytest
from lerobot.envs.configs import AlohaEnv
from lerobot.envs.factory import make_env_config
from lerobot.envs.utils import env_to_policy_features

import aegis_envs.aloha.configuration  # noqa: F401  registers `aegis_aloha`
from aegis_envs.aloha.options import FPS, IMAGE_KEY, NAMES, parse_tasks
from aegis_envs.aloha.requirements import refuse_missing


def test_tasks_are_named_one_by_one_and_each_comes_once():
    both = ("AlohaInsertion-v0", "AlohaTransferCube-v0")
    assert parse_tasks(" AlohaInsertion-v0,AlohaTransferCube-v0, AlohaInsertion-v0") == both


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ({"task": "AlohaTransferCube"}, "AlohaTransferCube-v0 or AlohaInsertion-v0.*got 'AlohaTransferCube'"),
        ({"task": " , "}, "AlohaTransferCube-v0 or"),
        ({"image_size": 640}, "48 to 480 pixels.*got 640"),
        ({"image_size": 100}, "divisible by 3.*got 100"),
        ({"rendering": "nice"}, "fast, shadows, faithful; got 'nice'"),
        ({"obs_type": "pixels"}, "pixels_agent_pos.*got 'pixels'"),
    ],
)
def test_an_option_that_is_no_choice_is_refused_with_the_choices(option, rule):
    with pytest.raises(ValueError, match=rule):
        make_env_config("aegis_aloha", **option)


def test_a_policy_sees_what_lerobots_own_environment_shows_it_as_large_as_is_asked_for(monkeypatch):
    monkeypatch.setattr("aegis_envs.aloha.requirements.find_spec", lambda name: name)  # as where it is installed
    assert env_to_policy_features(make_env_config("aegis_aloha")) == env_to_policy_features(AlohaEnv())
    small = env_to_policy_features(make_env_config("aegis_aloha", image_size=120))
    assert small[IMAGE_KEY].shape == (3, 120, 160)
    assert (AlohaEnv().fps, AlohaEnv().features["action"].shape) == (FPS, (len(NAMES),))


def test_missing_packages_are_named_with_what_to_install():
    refuse_missing([])
    with pytest.raises(ImportError, match=r"not installed: gym_aloha\. pip install .*aloha.*docs/benchmarks.md"):
        refuse_missing(["gym_aloha"])


def test_missing_packages_are_told_before_a_training_not_at_its_first_evaluation(monkeypatch):
    monkeypatch.setattr("aegis_envs.aloha.requirements.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed: gym_aloha, dm_control"):
        make_env_config("aegis_aloha")
