"""lerobot-eval from a checkpoint rolls out what the policy in memory does, action for action."""

import sys

import pytest
import torch
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import close_envs, env_to_policy_features
from lerobot.policies import make_pre_post_processors
from lerobot.scripts import lerobot_eval
from lerobot.utils.constants import ACTION, OBS_STATE

from aegis_envs.configuration_aegis_envs import AegisTabletopEnv
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

pytestmark = pytest.mark.slow

SEED = 7
STATS = {name: {"mean": torch.zeros(6), "std": torch.full((6,), 20.0)} for name in (OBS_STATE, ACTION)}


@pytest.fixture
def recorded(monkeypatch) -> list[torch.Tensor]:
    """The actions of every rollout, each begun from one random state: making a policy draws numbers, loading too."""
    actions: list[torch.Tensor] = []
    original = lerobot_eval.rollout

    def seeded(*arguments, **options):
        torch.manual_seed(SEED)
        result = original(*arguments, **options)
        actions.append(result["action"])
        return result

    monkeypatch.setattr(lerobot_eval, "rollout", seeded)
    return actions


@pytest.mark.parametrize("adapters", [False, True])
def test_lerobot_eval_from_a_checkpoint_takes_the_actions_of_the_policy_in_memory(
    recorded, tmp_path, monkeypatch, adapters
):
    environment = AegisTabletopEnv(task="touch")
    features = env_to_policy_features(environment)
    policy = AegisVLAPolicy(
        AegisVLAConfig(
            input_features={k: f for k, f in features.items() if k != ACTION},
            output_features={ACTION: features[ACTION]},
            device="cpu",
            chunk_size=4,
            n_action_steps=2,
            num_inference_steps=2,
        )
    )
    if adapters:
        policy = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
        with torch.no_grad():
            for name, p in policy.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
    policy.eval()
    before, after = make_pre_post_processors(policy.config, dataset_stats=STATS)
    envs = make_env(environment, n_envs=2, use_async_envs=False)
    env_before, env_after = make_env_pre_post_processors(environment, policy_cfg=policy.config)
    with torch.no_grad():
        lerobot_eval.rollout(envs["touch"][0], policy, env_before, env_after, before, after, seeds=[SEED, SEED + 1])
    close_envs(envs)
    for part in (policy, before, after):
        part.save_pretrained(tmp_path / "policy")
    policy.config.save_pretrained(tmp_path / "policy")  # peft leaves it to LeRobot

    options = [f"--policy.path={tmp_path / 'policy'}", "--policy.device=cpu", "--env.type=aegis_tabletop"]
    options += ["--env.task=touch", "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false"]
    options += [f"--seed={SEED}", f"--output_dir={tmp_path / 'eval'}"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *options])
    lerobot_eval.main()

    in_memory, from_checkpoint = recorded
    assert in_memory.shape[0] == 2
    assert in_memory.std() > 0
    assert torch.equal(in_memory, from_checkpoint)
