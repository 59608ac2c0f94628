"""What a checkpoint decides is taken over, what contradicts it or cannot be read is refused in words that help."""

import json

import pytest
import torch
from lerobot.policies import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from safetensors.torch import load_file, save_file

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from tests.policy.conftest import make_batch, train
from tests.policy.tiny_lerobot import FAMILIES, paligemma_processor


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_of_the_checkpoint_becomes_the_policys(lerobot, family):
    pair = lerobot(family, optimizer_lr=3e-5)
    config = pair.start(n_action_steps=2).config
    assert (config.chunk_size, config.num_inference_steps, config.padded_action_size) == (6, 4, 9)
    assert (config.expert_hidden_size, config.expert_intermediate_size) == (32, 40)
    assert config.normalization_mapping == pair.theirs.config.normalization_mapping
    assert config.prompt_form == family
    assert config.n_action_steps == 2  # how long it acts without looking is free
    assert config.optimizer_lr == 3e-5
    assert pair.start(optimizer_lr=1e-4).config.optimizer_lr == 1e-4


def test_a_contradiction_is_refused_with_both_values_and_the_remedy(lerobot):
    pair = lerobot("pi0")
    for name, value in (("chunk_size", 7), ("num_inference_steps", 5), ("padded_action_size", 16)):
        with pytest.raises(ValueError, match=rf"{name} is decided.*says {value}\. Leave --policy\.{name} out"):
            pair.start(**{name: value})
    assert pair.start(chunk_size=6).config.chunk_size == 6


def test_statistics_of_the_checkpoint_serve_until_a_dataset_brings_its_own(lerobot):
    pair = lerobot("pi0")
    config = pair.start().config
    state = {"observation.state": torch.ones(1, 5), "observation.images.base": torch.ones(1, 3, 36, 48)}
    state |= {"observation.images.wrist": torch.ones(1, 3, 36, 48), "task": ["touch"]}
    from_checkpoint = make_pre_post_processors(config)[0](dict(state))["observation.state"]
    assert torch.equal(from_checkpoint, pair.pipelines()[0](dict(state))["observation.state"])
    own = {key: {"mean": torch.zeros(n), "std": torch.ones(n)} for key, n in (("observation.state", 5), ("action", 4))}
    with_dataset = make_pre_post_processors(config, dataset_stats=own)[0](dict(state))["observation.state"]
    torch.testing.assert_close(with_dataset, torch.ones(1, 5))


def test_state_and_action_must_fit_into_the_checkpoints(lerobot):
    pair = lerobot("pi0", max_state_dim=5)
    with pytest.raises(ValueError, match="padded_action_size=9"):
        pair.start(action=10)
    with pytest.raises(ValueError, match=r"state_proj\.weight.*max_state_dim"):
        pair.start(state=6)
    pair.start(state=3, action=9)


def test_what_aegis_vla_does_not_do_is_refused(lerobot):
    with pytest.raises(ValueError, match="use_relative_actions"):
        lerobot("pi0", use_relative_actions=True).start()
    with pytest.raises(ValueError, match=r"max_period=2\.0; aegis_vla knows 4\.0"):
        lerobot("pi05", max_period=2.0).start()
    with pytest.raises(ValueError, match="time_sampling_beta_alpha=1"):
        lerobot("pi0", time_sampling_beta_alpha=1.0).start()


def test_a_processor_of_another_resolution_or_family_is_refused(lerobot, tiny_folder, tmp_path):
    paligemma_processor(tmp_path / "larger", side=42)
    pair = lerobot("pi0")
    with pytest.raises(ValueError, match=r"28 x 28 as 4 tokens.*42.*42.*and 9 tokens"):
        pair.start(backbone=str(tmp_path / "larger"))
    with pytest.raises(ValueError, match=r"28 x 28 as 4 tokens.*longest_edge.*--policy\.backbone"):
        pair.start(backbone=str(tiny_folder["smolvlm2"]))


def test_other_policies_are_refused_with_what_to_do_instead(tmp_path):
    SmolVLAConfig(device="cpu")._save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pi0 and pi05.*smolvla.*--policy\.backbone=HuggingFaceTB"):
        AegisVLAConfig(init_from=str(tmp_path), device="cpu")
    AegisVLAConfig(device="cpu")._save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"--policy\.path="):
        AegisVLAConfig(init_from=str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(ValueError, match=r"\(act\) has another architecture"):
        AegisVLAConfig(init_from=str(tmp_path), device="cpu")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        AegisVLAConfig(init_from=str(tmp_path / "nowhere"), device="cpu")


def test_a_checkpoint_with_a_tensor_missing_or_left_over_is_not_half_loaded(lerobot):
    pair = lerobot("pi0")
    tensors = load_file(pair.folder / "model.safetensors")
    name = "model.paligemma_with_expert.gemma_expert.model.layers.1.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, pair.folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks .*layers\.1\.mlp\.up_proj"):
        pair.start()
    save_file({**tensors, "model.extra_proj.weight": torch.ones(2)}, pair.folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"extra_proj\.weight"):
        pair.start()


def test_what_a_checkpoint_decides_can_be_chosen_without_one(make_policy):
    policy = make_policy(padded_action_size=7, expert_hidden_size=40, prompt_form="pi0")
    assert policy.expert.action_in.in_features == 7
    assert policy.expert.decoder.config.hidden_size == 40
    train(policy, 2)
    assert policy.predict_action_chunk(make_batch(policy, training=False)).shape == (3, 5, 4)
    with pytest.raises(ValueError, match="needs a backbone whose language model is a Gemma"):
        make_policy(time_conditioning="adaptive_norm")  # Gemma 2 has norms elsewhere
    with pytest.raises(ValueError, match="processor, pi0, pi05"):
        make_policy(prompt_form="pi1")
    with pytest.raises(ValueError, match=r"reads the robot's state"):
        make_policy(prompt_form="pi05", state_size=0)
