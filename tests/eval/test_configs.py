"""The shipped configurations are what LeRobot's own commands read."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import draccus
import pytest
from lerobot.configs import NormalizationMode
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import env_to_policy_features

import lerobot_policy_aegis_vla  # noqa: F401  registers the policy and the environment
from aegis_eval.stages import as_options, config_folder
from aegis_eval.study import read_study
from aegis_policy.knowledge.recipe import PLAIN, RECOMMENDED


@pytest.mark.parametrize("name", ["default", "paper", "demo", "mini", "metaworld", "aloha", "libero"])
def test_a_training_configuration_parses_and_options_override_it(name, pytestconfig):
    file = pytestconfig.rootpath / f"configs/train/{name}.yaml"
    config = TrainPipelineConfig.from_pretrained(file, cli_args=["--policy.knowledge=none", "--steps=7"])
    assert config.policy.type == "aegis_vla"
    assert (config.policy.knowledge, config.steps) == ("none", 7)
    assert not config.policy.push_to_hub
    assert config.env_eval_freq == 0


def test_the_papers_configuration_differs_from_ours_by_the_recipe_alone(pytestconfig):
    ours, papers = (
        TrainPipelineConfig.from_pretrained(pytestconfig.rootpath / f"configs/train/{name}.yaml", cli_args=[])
        for name in ("default", "paper")
    )
    assert ours.policy.recipe == RECOMMENDED
    assert papers.policy.recipe == replace(PLAIN, projection="gradient")
    for name, value in asdict(ours.policy.recipe).items():
        setattr(papers.policy, name, value)
    papers.policy.recipe_record = ours.policy.recipe_record
    assert ours.to_dict() == papers.to_dict()


@pytest.mark.parametrize(("name", "kinds"), [("tabletop", "shown"), ("tabletop_never_shown", "never_shown")])
def test_an_evaluation_configuration_parses(name, kinds, pytestconfig, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lerobot-eval"])
    config = draccus.parse(EvalPipelineConfig, pytestconfig.rootpath / f"configs/eval/{name}.yaml", args=[])
    assert (config.env.type, config.env.kinds, config.env.phrasings) == ("aegis_tabletop", kinds, kinds)
    assert config.eval.n_episodes == 100


def test_metaworlds_configuration_evaluates_the_ten_tasks_of_mt10(pytestconfig, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lerobot-eval"])
    config = draccus.parse(EvalPipelineConfig, pytestconfig.rootpath / "configs/eval/metaworld.yaml", args=[])
    assert (config.env.type, config.env.task, config.env.image_size) == ("aegis_metaworld", "mt10", 96)


def test_alohas_configurations_have_the_horizon_and_the_camera_of_act(pytestconfig, monkeypatch):
    policy = TrainPipelineConfig.from_pretrained(pytestconfig.rootpath / "configs/train/aloha.yaml", cli_args=[]).policy
    assert (policy.chunk_size, policy.n_action_steps) == (100, 100)
    assert policy.normalization_mapping["ACTION"] is policy.normalization_mapping["STATE"] is NormalizationMode.MEAN_STD
    monkeypatch.setattr(sys, "argv", ["lerobot-eval"])
    config = draccus.parse(EvalPipelineConfig, pytestconfig.rootpath / "configs/eval/aloha.yaml", args=[])
    assert (config.env.type, config.env.episode_length) == ("aloha", 400)
    assert env_to_policy_features(config.env)["observation.images.top"].shape == (3, 480, 640)


STUDIES = [
    (path.stem, arm)
    for path in sorted((Path(__file__).parents[2] / "configs" / "compare").glob("*.yaml"))
    for arm in read_study(path).arms
    if arm.of is None
]


@pytest.mark.parametrize(("study", "arm"), STUDIES, ids=[f"{study}-{arm.name}" for study, arm in STUDIES])
def test_every_arm_of_a_study_is_one_that_lerobot_train_accepts(study, arm, pytestconfig):
    file = pytestconfig.rootpath / "configs/train" / read_study(study_file(study)).train_config
    config = TrainPipelineConfig.from_pretrained(file, cli_args=as_options(arm.options))
    for option, value in arm.options.items():
        part, name = option.split(".")
        assert getattr(getattr(config, part), name) == value


@pytest.mark.parametrize("study", sorted({study for study, _ in STUDIES}))
def test_every_set_of_a_study_is_an_environment(study, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lerobot-eval"])
    for options in read_study(study_file(study)).rollouts.sets.values():
        if options["type"] == "aegis_metaworld":
            pytest.importorskip("metaworld", reason="needs the extra metaworld: pip install -e '.[metaworld]'")
        config = EnvConfig.get_choice_class(options["type"])(**{k: v for k, v in options.items() if k != "type"})
        for task in config.create_envs(1).values():
            for environments in task.values():
                environments.close()


def study_file(name: str) -> Path:
    return config_folder() / "compare" / f"{name}.yaml"
