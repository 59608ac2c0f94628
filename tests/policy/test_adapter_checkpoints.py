"""A checkpoint of adapters: it loads, acts and answers the same, and a resumed training is the uninterrupted one."""

import json
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.optim import load_optimizer_state, save_optimizer_state
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file

from aegis_policy.answering import load_vlm
from aegis_policy.modeling_aegis_vla import FROM_BACKBONE, AegisVLAPolicy
from tests.policy.conftest import make_batch, make_samples, take_steps
from tests.policy.test_adapters import adapted


def save(policy, optimizer, folder: Path) -> None:
    """As LeRobot's `save_checkpoint` does under `--peft.*`."""
    policy.save_pretrained(folder)
    policy.config.save_pretrained(folder)
    save_optimizer_state(optimizer, folder)


def load(folder: Path, **changed) -> PeftModel:
    """As LeRobot's `make_policy` does under `--peft.*`."""
    config = PreTrainedConfig.from_pretrained(folder)
    for name, value in changed.items():
        setattr(config, name, value)
    peft_config = PeftConfig.from_pretrained(folder)
    base = AegisVLAPolicy.from_pretrained(peft_config.base_model_name_or_path, config=config)
    return PeftModel.from_pretrained(base, folder, config=peft_config, is_trainable=True)


def resume(folder: Path, **changed):
    policy = load(folder, **changed)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    return policy, load_optimizer_state(optimizer, folder)


def learned(policy) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"projection": "update", "reference_every": 2},
        {"projection": "gradient", "use_dora": True},
        {"knowledge": "none", "reference": "features", "penalty_weight": 1.0, "penalty_bound": 1e-4},
    ],
)
def test_a_resumed_training_of_adapters_is_the_uninterrupted_one(make_policy, tmp_path, options):
    policy = adapted(make_policy, optimizer_lr=1e-2, **options)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, optimizer, range(2))
    save(policy, optimizer, tmp_path)
    losses = take_steps(policy, optimizer, range(2, 4))
    torch.manual_seed(99)  # another process draws other seeds
    again, its_optimizer = resume(tmp_path)
    assert int(again.progress.training_steps) == 2
    assert take_steps(again, its_optimizer, range(2, 4)) == losses
    uninterrupted = learned(policy)
    assert learned(again).keys() == uninterrupted.keys()
    assert all(torch.equal(p, uninterrupted[n]) for n, p in learned(again).items())


def test_a_loaded_policy_acts_as_the_saved_one(make_policy, tmp_path):
    policy = adapted(make_policy, optimizer_lr=1e-2)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, optimizer, range(2))
    save(policy, optimizer, tmp_path)
    batch, noise = make_batch(policy, training=False), torch.randn(3, 5, 4)
    assert torch.equal(load(tmp_path).predict_action_chunk(batch, noise), policy.predict_action_chunk(batch, noise))


def test_a_probe_asks_what_learned_and_with_the_adapters_off_what_was_there_before(make_policy, tiny_folder, tmp_path):
    policy = adapted(make_policy, optimizer_lr=1e-2)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, optimizer, range(4))
    save(policy, optimizer, tmp_path)
    untouched = load_vlm(str(tiny_folder["paligemma2"])).model
    name = next(n for n, m in untouched.named_modules() if n.endswith("language_model.layers.1.self_attn.q_proj"))
    x = torch.randn(5, untouched.get_submodule(name).in_features)

    def difference(vlm) -> float:
        return (vlm.model.get_submodule(name)(x) - untouched.get_submodule(name)(x)).abs().max().item()

    assert difference(load_vlm(str(tmp_path))) > 1e-3
    assert difference(load_vlm(str(tmp_path), adapters=False)) == 0


def test_the_file_holds_adapters_expert_and_progress_and_nothing_of_the_backbone(make_policy, tmp_path):
    policy = adapted(make_policy)
    policy.save_pretrained(tmp_path)
    names = {n.removeprefix("base_model.model.") for n in load_file(tmp_path / "adapter_model.safetensors")}
    assert {"progress.training_steps", "progress.noise_seed"} <= names
    assert all(".lora_" in n for n in names if n.startswith("backbone."))
    assert {n.split(".")[0] for n in names} == {"backbone", "expert", "progress"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == FROM_BACKBONE


def test_acting_from_a_checkpoint_needs_no_anchor_and_training_on_does(make_policy, tmp_path):
    policy = adapted(make_policy)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, optimizer, range(1))
    save(policy, optimizer, tmp_path)
    loaded = load(tmp_path, anchor_path="/nowhere/anchor.safetensors")
    assert loaded.predict_action_chunk(make_batch(policy, training=False)).isfinite().all()
    with pytest.raises(FileNotFoundError, match="aegis-anchor"):
        loaded.get_optim_params()


def test_the_anchor_of_loaded_adapters_is_that_of_the_backbone_without_them(make_policy, tmp_path):
    policy = adapted(make_policy, optimizer_lr=1e-2)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, optimizer, range(2))
    save(policy, optimizer, tmp_path)
    again, _ = resume(tmp_path)
    for name, buffer in policy.anchor.named_buffers():
        assert torch.equal(again.anchor.get_buffer(name), buffer)


def test_unprotected_adapters_are_not_protected_afterwards(make_policy, tmp_path):
    policy = adapted(make_policy, knowledge="none", optimizer_lr=1e-2)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, optimizer, range(2))
    save(policy, optimizer, tmp_path)
    with pytest.raises(ValueError, match="without this protection"):
        load(tmp_path, knowledge="aegis").get_optim_params()


def test_adapters_on_a_trained_policy_protect_with_the_anchor_in_its_checkpoint(make_policy, tmp_path):
    trained = make_policy(optimizer_lr=1e-2)
    optimizer = trained.config.get_optimizer_preset().build(trained.get_optim_params())
    take_steps(trained, optimizer, range(2))
    trained.save_pretrained(tmp_path / "base")
    config = PreTrainedConfig.from_pretrained(tmp_path / "base")
    config.pretrained_path = tmp_path / "base"
    base = AegisVLAPolicy.from_pretrained(tmp_path / "base", config=config)
    policy = base.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    assert int(policy.progress.training_steps) == 2
    take_steps(policy, optimizer, range(2, 4))
    save(policy, optimizer, tmp_path / "adapters")
    losses = take_steps(policy, optimizer, range(4, 6))
    again, its_optimizer = resume(tmp_path / "adapters")
    assert take_steps(again, its_optimizer, range(4, 6)) == losses


def test_a_checkpoint_from_before_progress_was_a_module_loads(make_policy):
    policy = make_policy()
    state = policy.state_dict()
    for name in ("training_steps", "noise_seed"):
        state[name] = state.pop(f"progress.{name}") + 5
    expected = {name: int(state[name]) for name in ("training_steps", "noise_seed")}
    fresh = make_policy()
    assert fresh.load_state_dict(state, strict=True) is not None
    assert {name: int(fresh.progress.get_buffer(name)) for name in expected} == expected


def test_samples_are_asked_as_before(make_policy):
    """A guard against a policy whose adapters went elsewhere: answers come from the wrapped model."""
    policy = adapted(make_policy)
    assert len(policy.vlm.answer(make_samples(2), max_new_tokens=2)) == 2
