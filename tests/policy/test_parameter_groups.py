"""Each part learns at its own rate, and LeRobot's schedule scales each."""

import pytest
import torch

from aegis_policy.optimizer_aegis_adamw import AegisAdamWConfig
from tests.policy.conftest import take_steps, train
from tests.policy.test_adapters import adapted
from tests.policy.tiny_backbones import FAMILIES

WAYS = [{"projection": "subspace"}, {"projection": "gradient"}, {"knowledge": "none"}]
RATES = {"optimizer_lr": 2e-3, "optimizer_backbone_lr": 1e-4, "optimizer_vision_lr": 1e-5}


def rates(policy, optimizer) -> dict[str, set[float]]:
    """Part of the policy -> the learning rates of its parameters."""
    rate_of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    found: dict[str, set[float]] = {"expert": set(), "language": set(), "vision": set()}
    for name, p in policy.named_parameters():
        if not p.requires_grad:
            continue
        inside = name.removeprefix("backbone.vlm.")
        part = "expert" if inside == name else "language" if "language_model" in inside else "vision"
        found[part].add(rate_of[id(p)])
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["paligemma2", "qwen3_vl"])
def test_vision_language_and_expert_learn_at_their_own_rates(make_policy, family, way):
    policy = make_policy(family, **RATES, **way)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    assert optimizer.param_groups[0]["lr"] == 2e-3  # the one that LeRobot logs
    assert rates(policy, optimizer) == {"expert": {2e-3}, "language": {1e-4}, "vision": {1e-5}}


@pytest.mark.parametrize("way", WAYS)
def test_vision_learns_at_the_rate_of_the_backbone_unless_told_otherwise(make_policy, way):
    policy = make_policy(optimizer_lr=2e-3, optimizer_backbone_lr=1e-4, **way)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    assert rates(policy, optimizer) == {"expert": {2e-3}, "language": {1e-4}, "vision": {1e-4}}
    policy = make_policy(optimizer_lr=2e-3, optimizer_vision_lr=1e-5, **way)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    assert rates(policy, optimizer) == {"expert": {2e-3}, "language": {2e-3}, "vision": {1e-5}}


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_is_what_makes_tokens_of_images(make_policy, family):
    backbone = make_policy(family).backbone
    names = {n for n, _ in backbone.vlm.named_parameters()}
    vision = {n for n in names if backbone.is_vision(n)}
    assert vision == {n for n in names if "language_model" not in n and "text_model" not in n and "lm_head" not in n}
    assert vision and vision != names


def test_one_group_holds_the_unprotected_backbone_where_its_rates_are_one(make_policy):
    assert len(make_policy(knowledge="none").get_optim_params()) == 2
    assert len(make_policy(knowledge="none", optimizer_vision_lr=1e-5).get_optim_params()) == 3


@pytest.mark.parametrize("way", WAYS)
def test_lerobots_schedule_scales_each_rate_by_the_same_factor(make_policy, way):
    policy = make_policy(**RATES, **way, scheduler_warmup_steps=3, scheduler_decay_steps=20, scheduler_decay_lr=1e-6)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    scheduler = policy.config.get_scheduler_preset().build(optimizer, 20)
    factors = []
    for step in range(12):
        scaled = [g["lr"] / g["initial_lr"] for g in optimizer.param_groups]
        assert scaled == pytest.approx([scaled[0]] * len(scaled), rel=1e-12)  # products of float64 numbers
        factors.append(scaled[0])
        take_steps(policy, optimizer, range(step, step + (step == 0)))
        scheduler.step()
    assert {g["initial_lr"] for g in optimizer.param_groups} == set(RATES.values())
    assert factors[0] < 0.5 and max(factors) > 0.9 and factors[-1] < 0.7  # warm-up and decay


def test_a_rate_of_zero_leaves_vision_as_it_is_and_lets_the_rest_learn(make_policy):
    policy = make_policy(optimizer_vision_lr=0.0, optimizer_lr=1e-2)
    before = {n: p.detach().clone() for n, p in policy.backbone.vlm.named_parameters()}
    train(policy, 2)
    moved = {n for n, p in policy.backbone.vlm.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any(policy.backbone.is_vision(n) for n in moved)


def test_adapters_learn_at_the_rate_of_the_part_that_they_stand_in(make_policy):
    policy = adapted(make_policy, peft={"target_modules": ["q_proj"]}, **RATES)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    rate_of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in policy.backbone.vlm.named_parameters():
        if p.requires_grad:
            assert rate_of[id(p)] == (1e-4 if policy.backbone.is_language(name) else 1e-5)


def test_a_negative_rate_is_refused(make_policy):
    with pytest.raises(ValueError, match="optimizer_vision_lr"):
        make_policy(optimizer_vision_lr=-1e-4)


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", None)])
def test_on_a_cpu_torchs_fused_kernel_takes_the_step_and_elsewhere_torch_chooses(monkeypatch, device, fused):
    asked = []
    monkeypatch.setattr("aegis_policy.aegis.adamw.adam", lambda *_, **options: asked.append(options["fused"]))
    parameter = torch.nn.Parameter(torch.zeros(2, device=device))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = AegisAdamWConfig(on_nonfinite=None).build([parameter])
    optimizer.step()
    assert asked == [fused]
    assert {group["fused"] for group in optimizer.param_groups} == {None}  # saved: it must fit any device
