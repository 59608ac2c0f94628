"""The frozen backbone beside the one that learns: the same answers at the price of what trains."""

import pytest
import torch
from torch import nn

from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.knowledge.teacher import LINEAR_MAPS, Teacher
from aegis_policy.modeling_aegis_vla import vlm_inputs
from aegis_policy.pretrained.start import load_backbone
from tests.policy.conftest import make_batch

AUTOCAST = torch.autocast("cpu", dtype=torch.bfloat16)
CPU = torch.device("cpu")


def teacher_of(policy) -> Teacher:
    return Teacher(lambda: load_backbone(policy.config), policy.backbone)


@pytest.mark.parametrize("family", ["paligemma2", "qwen2_5_vl", "gemma3"])
def test_under_autocast_it_answers_bit_for_bit_as_float32_weights_do(make_policy, family):
    policy = make_policy(family)
    inputs = vlm_inputs(make_batch(policy))
    whole = load_backbone(policy.config).eval()
    with AUTOCAST, torch.no_grad():
        with watch_outputs(whole.layers()) as expected:
            whole.encode(dict(inputs))
        got = (teacher := teacher_of(policy)).outputs(inputs)
    assert any(p.dtype == torch.bfloat16 for p in teacher.asked(CPU).parameters())
    assert all(p.dtype == torch.float32 for p in whole.parameters())
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_beside_a_subspace_it_costs_one_copy_of_the_protected_maps_in_bfloat16(make_policy):
    policy = make_policy()
    trains = {p for p in policy.backbone.parameters() if p.requires_grad}
    with AUTOCAST:
        (teacher := teacher_of(policy)).outputs(vlm_inputs(make_batch(policy)))
    shared = set(policy.backbone.parameters())
    own = [p for p in teacher.asked(CPU).parameters() if p not in shared]
    assert sum(p.numel() * p.element_size() for p in own) == 2 * sum(p.numel() for p in trains)
    assert len(own) == len(trains) > 10


def test_what_trains_is_never_shared_and_what_is_frozen_stays_as_it_was(make_policy):
    policy = make_policy(knowledge="none", tune_vision=False)
    before = {n: p.detach().clone() for n, p in policy.backbone.named_parameters()}
    with AUTOCAST:
        (teacher := teacher_of(policy)).outputs(vlm_inputs(make_batch(policy)))
    own = dict(teacher.asked(CPU).named_parameters())
    for name, parameter in policy.backbone.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])
        assert (own[name] is parameter) == (not parameter.requires_grad)


def test_a_frozen_parameter_that_is_not_the_pretrained_one_is_not_shared(make_policy):
    policy = make_policy()
    name, moved = next((n, p) for n, p in policy.backbone.named_parameters() if not p.requires_grad)
    with torch.no_grad():
        moved.add_(1.0)
    kept = teacher_of(policy).weights(CPU).get_parameter(name)
    assert kept is not moved
    assert torch.allclose(kept + 1.0, moved)


def test_an_output_head_that_is_the_embedding_stays_whole(make_policy):
    policy = make_policy("gemma3", knowledge="none")
    with AUTOCAST:
        (teacher := teacher_of(policy)).outputs(vlm_inputs(make_batch(policy)))
    modules = list(teacher.asked(CPU).modules())
    embeddings = {m.weight for m in modules if isinstance(m, nn.Embedding)}
    heads = [m for m in modules if isinstance(m, LINEAR_MAPS) and m.weight in embeddings]
    assert len(heads) == 1
    assert all(weight.dtype == torch.float32 for weight in embeddings)


def test_its_weights_are_not_handed_out_once_they_are_narrow(make_policy):
    policy = make_policy()
    teacher = teacher_of(policy)
    with AUTOCAST:
        teacher.outputs(vlm_inputs(make_batch(policy)))
    with pytest.raises(RuntimeError, match="bfloat16"):
        teacher.weights(CPU)


def test_beside_adapters_it_costs_nothing(make_policy):
    policy = make_policy(knowledge="none", reference="features", penalty_weight=1.0)
    policy = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4, "lora_alpha": 8})
    teacher = Teacher(lambda: load_backbone(policy.config), policy.backbone)
    shared = set(policy.backbone.parameters())
    assert all(p in shared for p in teacher.weights(CPU).parameters())
