"""The expert's own keys and values: nothing at first, learned beside the VLM, and never seen by it."""

import pytest
import torch

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.processor_aegis_vla import vlm_inputs
from tests.policy.conftest import make_batch, make_samples, take_steps, train
from tests.policy.test_adapters import adapted
from tests.policy.test_init_from import CLOSE, our_chunk, raw_batch, their_chunk
from tests.policy.tiny_backbones import FAMILIES
from tests.policy.tiny_lerobot import FAMILIES as LEROBOT

NOISE = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def maps(policy) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in policy.named_parameters() if ".own_keys_values." in name and p.requires_grad}


def shaken(policy):
    """The same policy with maps that have learned something."""
    with torch.no_grad():
        for i, p in enumerate(maps(policy).values()):
            p.normal_(std=0.1, generator=torch.Generator().manual_seed(i))
    return policy


def chunk(policy) -> torch.Tensor:
    return policy.predict_action_chunk(make_batch(policy, training=False), NOISE)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_begin_as_the_cache_is_and_reach_the_actions(make_policy, family):
    policies = []
    for own in (False, True):
        torch.manual_seed(0)
        policies.append(make_policy(family, own_keys_values=own))
    plain, own = policies
    own.load_state_dict(plain.state_dict(), strict=False)
    before = chunk(own)
    assert torch.equal(before, chunk(plain))
    assert len(maps(own)) == 2 * own.backbone.depth
    assert not torch.allclose(chunk(shaken(own)), before, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_own_maps_in_their_place_would_give_its_keys_and_values(make_policy, family):
    """So they are given what the layer's own maps are given, and turned as the layer turns."""
    policy = make_policy(family, own_keys_values=True)
    own = policy.expert.own_keys_values
    with torch.no_grad():
        prefix = policy.backbone.encode(vlm_inputs(make_batch(policy)), keep_attended=True)
        for i, layer in enumerate(policy.backbone.layers().values()):
            attention, attended = layer.self_attn, prefix.attended[i]
            keys = own.by_head(attention.k_proj(attended.hidden))
            if hasattr(attention, "k_norm"):  # Gemma 3 and Qwen3 divide keys by their size before they turn them
                keys = attention.k_norm(keys)
            # The same operations on the same numbers.
            torch.testing.assert_close(own.rotated(keys, attended.rotary), prefix.keys[i], atol=1e-6, rtol=1e-6)
            values = own.by_head(attention.v_proj(attended.hidden))
            torch.testing.assert_close(values, prefix.values[i], atol=1e-6, rtol=1e-6)


def test_the_vlm_answers_as_without_them(make_policy):
    policy = make_policy(own_keys_values=True)
    samples = make_samples(4)
    before = policy.vlm.answer(samples, max_new_tokens=6)
    assert shaken(policy).vlm.answer(samples, max_new_tokens=6) == before


@pytest.mark.parametrize("knowledge", ["frozen", "stop_gradient"])
def test_they_learn_beside_a_backbone_that_does_not(make_policy, knowledge):
    policy = make_policy(own_keys_values=True, knowledge=knowledge)
    backbone = {name: p.detach().clone() for name, p in policy.backbone.named_parameters()}
    train(policy, 2)
    assert all(p.any() for p in maps(policy).values())
    assert all(torch.equal(p, backbone[name]) for name, p in policy.backbone.named_parameters())


def test_the_action_loss_reaches_the_backbone_through_them(make_policy):
    policy = shaken(make_policy(own_keys_values=True, knowledge="none")).train()
    # The same through K and V, if what the maps were given had been cut off.
    found = []
    for cut in (False, True):
        policy.zero_grad()
        encode = policy.backbone.encode
        if cut:
            policy.backbone.encode = lambda inputs, encode=encode, **kwargs: without_graph(encode(inputs, **kwargs))
        loss, _ = policy.forward(make_batch(policy), NOISE, torch.full((3,), 0.5))
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in policy.backbone.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() > 0.01 * found[1].norm()


def without_graph(prefix):
    attended = prefix.detach().attended
    return type(prefix)(prefix.keys, prefix.values, prefix.mask, prefix.next_position, attended)


def test_gradient_checkpointing_gives_them_the_same_steps(make_policy):
    weights = []
    for on in (False, True):
        torch.manual_seed(0)
        policy = make_policy(own_keys_values=True, gradient_checkpointing=on, projection="subspace")
        train(policy, 3)
        weights.append(maps(policy))
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())


@pytest.mark.parametrize("way", [{"knowledge": "none"}, {"projection": "subspace"}, {"projection": "gradient"}])
def test_they_learn_at_the_rate_of_the_backbone(make_policy, way):
    policy = make_policy(own_keys_values=True, optimizer_lr=2e-3, optimizer_backbone_lr=1e-4, **way)
    rate_of = {id(p): group["lr"] for group in policy.get_optim_params() for p in group["params"] if "lr" in group}
    assert {rate_of.get(id(p)) for p in maps(policy).values()} == {1e-4}
    assert all(id(p) not in rate_of for n, p in policy.expert.named_parameters() if "own_keys_values" not in n)


def test_a_checkpoint_brings_them_back(make_policy, tmp_path):
    policy = make_policy(own_keys_values=True)
    train(policy, 2)
    policy.save_pretrained(tmp_path)
    again = AegisVLAPolicy.from_pretrained(tmp_path)
    assert again.config.own_keys_values
    assert torch.equal(chunk(again), chunk(policy))


def test_beside_lora_the_ones_that_peft_trains_are_read(make_policy):
    policy = adapted(make_policy, own_keys_values=True, projection="subspace", optimizer_backbone_lr=1e-3)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy.base_model.model, optimizer, range(2))
    learned = maps(policy)
    assert len(learned) == 2 * policy.backbone.depth and all(p.any() for p in learned.values())
    before = chunk(policy)
    with torch.no_grad():
        for p in learned.values():
            p.zero_()
    assert not torch.equal(chunk(policy), before)


@pytest.mark.parametrize("family", [name for name in LEROBOT if name in ("pi0", "pi05")])
def test_a_policy_that_starts_from_lerobots_begins_with_its_actions(lerobot, family):
    pair = lerobot(family)
    policy = pair.start(own_keys_values=True)
    torch.testing.assert_close(our_chunk(policy, raw_batch()), their_chunk(pair, raw_batch()), **CLOSE)
