"""The shipped configurations are what LeRobot's own commands read."""

import sys

import draccus
import pytest
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig

import lerobot_policy_aegis_vla  # noqa: F401  registers the policy and the environment


@pytest.mark.parametrize("name", ["default", "paper", "demo"])
def test_a_training_configuration_parses_and_options_override_it(name, pytestconfig):
    file = pytestconfig.rootpath / f"configs/train/{name}.yaml"
    config = TrainPipelineConfig.from_pretrained(file, cli_args=["--policy.knowledge=none", "--steps=7"])
    assert config.policy.type == "aegis_vla"
    assert (config.policy.knowledge, config.steps) == ("none", 7)
    assert not config.policy.push_to_hub
    assert config.env_eval_freq == 0


def test_the_papers_configuration_differs_from_ours_by_the_projection_alone(pytestconfig):
    ours, papers = (
        TrainPipelineConfig.from_pretrained(pytestconfig.rootpath / f"configs/train/{name}.yaml", cli_args=[])
        for name in ("default", "paper")
    )
    assert (ours.policy.projection, papers.policy.projection) == ("subspace", "gradient")
    papers.policy.projection = "subspace"
    assert ours.to_dict() == papers.to_dict()


@pytest.mark.parametrize(("name", "kinds"), [("tabletop", "shown"), ("tabletop_never_shown", "never_shown")])
def test_an_evaluation_configuration_parses(name, kinds, pytestconfig, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lerobot-eval"])
    config = draccus.parse(EvalPipelineConfig, pytestconfig.rootpath / f"configs/eval/{name}.yaml", args=[])
    assert (config.env.type, config.env.kinds, config.env.phrasings) == ("aegis_tabletop", kinds, kinds)
    assert config.eval.n_episodes == 100
