"""With gradient checkpointing the same numbers come out, from less memory and more runs of each layer."""

import gc
import weakref
from functools import partial

import pytest
import torch
from lerobot.policies import make_pre_post_processors
from torch.autograd.graph import saved_tensors_hooks
from transformers.cache_utils import DynamicCache

from aegis_policy.aegis.anchor_gradient import anchor_gradient
from aegis_policy.modeling_aegis_vla import vlm_inputs
from aegis_policy.network.checkpointing import checkpointable, recompute_in_backward
from tests.policy.conftest import make_batch
from tests.policy.tiny_backbones import DIFFERENT, FAMILIES
from tests.policy.tiny_lerobot import raw_batch

FEW = 2  # of the tiny models' three language layers
OF_FEATURES = {"projection": "gradient", "reference": "features"}
OTHERS = [
    {"projection": "gradient"},
    {"projection": "update"},
    {"knowledge": "none"},
    {"knowledge": "stop_gradient"},
    {"knowledge": "frozen"},
    {"projection": "update", "reference": "answers", "reference_samples": 2},
    {"projection": "gradient", "reference": "features", "reference_samples": 2, "reference_every": 2},
    {"projection": "subspace", "reference": "features", "penalty_weight": 1.0, "reference_samples": 2},
    {"knowledge": "none", "cotraining_share": 0.4, "cotraining_samples": 20},
    {"knowledge": "none", "cotraining_share": 0.4, "cotraining_samples": 20, "num_vlm_layers": FEW},
    {"projection": "gradient", "tune_vision": False},
]


def pair(make_policy, family: str = "paligemma2", **options):
    """Two policies with the same weights: plain and checkpointed."""
    policies = []
    for on in (False, True):
        torch.manual_seed(0)
        policies.append(make_policy(family, gradient_checkpointing=on, **options).train())
    plain, checkpointed = policies
    checkpointed.load_state_dict(plain.state_dict())
    return policies


def take_steps(policy, batches: list[dict]) -> list[dict[str, torch.Tensor]]:
    """Of each step loss, gradients and anchor gradients; then the weights that they made."""
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    found = []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)  # for dropout; noise is the policy's own
        loss, _ = policy.forward(batch)
        loss.backward()
        seen = {"loss": loss.detach()}
        for name, p in policy.named_parameters():
            if p.grad is not None:
                seen[name] = p.grad.clone()
            if anchor_gradient(p) is not None:
                seen[f"anchor of {name}"] = p.anchor_grad.clone()
        found.append(seen)
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
    return [*found, {name: p.detach() for name, p in policy.named_parameters()}]


def check_same_bits(policies, batches: list[dict]) -> list[dict[str, torch.Tensor]]:
    """The same operations on the same numbers in the same order: not a bit may differ."""
    start = {name: p.detach().clone() for name, p in policies[0].named_parameters()}
    plain, checkpointed = (take_steps(policy, batches) for policy in policies)
    for one, other in zip(plain, checkpointed, strict=True):
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert any(not torch.equal(start[name], value) for name, value in plain[-1].items())
    return plain


def check_equal(make_policy, family: str, **options) -> None:
    policies = pair(make_policy, family, **options)
    first, *_ = check_same_bits(policies, [make_batch(policies[0], seed=step) for step in range(2)])
    assert any(name.startswith("anchor") for name in first) == policies[0].config.projects_on_reference


@pytest.mark.parametrize("options", [{"projection": "subspace"}, OF_FEATURES], ids=["subspace", "features"])
@pytest.mark.parametrize("family", ["nano", *FAMILIES])
def test_losses_gradients_anchor_gradients_and_steps_are_the_same_bits(make_policy, family, options):
    check_equal(make_policy, family, cameras=2, **options)


@pytest.mark.parametrize("family", ["nano", "smolvlm2", "qwen3_vl"])
def test_where_the_prefix_ends_before_the_language_model_does_too(make_policy, family):
    check_equal(make_policy, family, projection="gradient", num_vlm_layers=FEW)


@pytest.mark.parametrize("options", OTHERS)
def test_whatever_else_runs_through_the_backbone_too(make_policy, options):
    check_equal(make_policy, "paligemma2", **options)


@pytest.mark.parametrize("family", ["paligemma2", "qwen2_5_vl"])
def test_adapters_learn_the_same_and_their_dropout_draws_the_same(make_policy, family):
    policies = pair(make_policy, family, knowledge="none")
    batches = [make_batch(policies[0], seed=step) for step in range(3)]
    wrapped = []
    for policy in policies:
        torch.manual_seed(0)
        config = policy._build_peft_config({"method_type": "LORA", "r": 4})
        config.lora_dropout = 0.2
        wrapped.append(policy.wrap_with_peft(config).train())
    first, *_ = check_same_bits(wrapped, batches)
    assert any("lora_B" in name and value.any() for name, value in first.items())


def test_an_expert_whose_norms_hear_of_time_is_computed_again_too(lerobot):
    start = lerobot("pi05").start
    policies = [start(gradient_checkpointing=on).train() for on in (False, True)]
    policies[1].load_state_dict(policies[0].state_dict())
    batch = make_pre_post_processors(policies[0].config)[0](raw_batch(training=True))
    check_same_bits(policies, [batch, batch])
    assert set(policies[0].expert.decoder.layers) <= set(checkpointable(policies[0].expert))


@pytest.mark.parametrize(
    ("family", "dtype", "reference"),
    [*((family, torch.bfloat16, "moments") for family in DIFFERENT), ("paligemma2", torch.float16, "answers")],
)
def test_under_autocast_the_repeated_run_is_in_half_as_well(make_policy, family, dtype, reference):
    found = []
    for policy in pair(make_policy, family, projection="update", reference=reference):
        policy.config.get_optimizer_preset().build(policy.get_optim_params())
        with torch.autocast("cpu", dtype):
            loss, _ = policy.forward(make_batch(policy))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in policy.parameters() if p.grad is not None)])
        found[-1] += [p.anchor_grad for p in policy.parameters() if anchor_gradient(p) is not None]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("family", "projection", "runs", "depth"),
    [*((family, "gradient", 3, None) for family in DIFFERENT), ("paligemma2", "subspace", 2, FEW)],
)
def test_each_layer_runs_once_more_for_each_backward_pass(make_policy, family, projection, runs, depth):
    policies = pair(make_policy, family, projection=projection, num_vlm_layers=depth)
    # The distance is the backbone's: its backward pass does not come through the expert.
    for policy, of_backbone, of_expert in zip(policies, (1, runs), (1, 2), strict=True):
        policy.config.get_optimizer_preset().build(policy.get_optim_params())
        counts: dict[str, int] = {}
        wanted: dict[str, int] = {}
        layers = {f"backbone {i}": layer for i, layer in enumerate(policy.backbone.layers_to_recompute())}
        experts = {f"expert {i}": layer for i, layer in enumerate(policy.expert.decoder.layers)}
        beyond = list(policy.backbone.decoder.layers)[policy.backbone.depth :]
        for name, layer in (layers | experts).items():
            mlp = next(module for child, module in layer.named_children() if "mlp" in child)
            mlp.register_forward_pre_hook(partial(count, counts, name))
            if not any(layer is other for other in beyond):
                wanted[name] = of_expert if name in experts else of_backbone
        policy.forward(make_batch(policy))[0].backward()
        assert counts == wanted


def count(counts: dict[str, int], name: str, *_) -> None:
    counts[name] = counts.get(name, 0) + 1


@pytest.mark.parametrize("family", DIFFERENT)
def test_less_is_kept_for_the_backward_pass(make_policy, family):
    kept = []
    for policy in pair(make_policy, family):
        policy.config.get_optimizer_preset().build(policy.get_optim_params())
        held: dict[int, int] = {}
        parameters = {p.data_ptr() for p in policy.parameters()}

        def pack(tensor: torch.Tensor, held=held, parameters=parameters) -> torch.Tensor:
            if tensor.data_ptr() not in parameters:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = policy.forward(make_batch(policy))
        kept.append(sum(held.values()))
        del loss
    # Layers this narrow keep about ten times their input; embeddings, norms and what the expert reads stay either way.
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("family", ["paligemma2", "qwen3_vl"])
def test_names_and_layers_are_as_before_and_what_the_expert_reads_has_its_gradient(make_policy, family):
    policy = make_policy(family).train()
    layers = policy.backbone.layers_to_recompute()
    names = list(policy.state_dict())
    with recompute_in_backward(layers):
        assert list(policy.state_dict()) == names
        prefix = policy.backbone.encode(vlm_inputs(make_batch(policy)))
    assert not any("forward" in vars(layer) for layer in layers)
    assert all(key.requires_grad and value.requires_grad for key, value in zip(prefix.keys, prefix.values, strict=True))
    layers[-1].forward = own = layers[-1].forward  # somebody else's wrapper
    with recompute_in_backward(layers):
        assert vars(layers[-1])["forward"] is not own
    assert vars(layers[-1])["forward"] is own


def test_nothing_is_held_after_the_backward_pass(make_policy):
    policy = make_policy(projection="gradient", gradient_checkpointing=True).train()
    policy.config.get_optimizer_preset().build(policy.get_optim_params())
    seen = []
    encode = policy.backbone.encode

    def watched(inputs, **options):
        prefix = encode(inputs, **options)
        seen.append(weakref.ref(prefix.keys[1]))
        return prefix

    policy.backbone.encode = watched
    gc.collect()
    gc.disable()  # what frees a graph on a device is that nothing refers to it, not the collector's next round
    try:
        loss, _ = policy.forward(make_batch(policy))
        loss.backward()
        del loss
        assert [reference() for reference in seen] == [None]
        loss, _ = policy.forward(make_batch(policy))
        del loss  # nor where no backward pass has come
        assert [reference() for reference in seen] == [None, None]
    finally:
        gc.enable()


def test_a_cache_that_is_given_by_position_is_refused(make_policy):
    policy = make_policy()
    layer = next(iter(policy.backbone.layers().values()))
    with recompute_in_backward([layer]), pytest.raises(TypeError, match="by position"):
        layer.forward(torch.zeros(1, 1, 32), DynamicCache())


def test_layers_that_transformers_does_not_mark_are_refused(make_policy):
    policy = make_policy()
    policy.backbone.decoder.layers[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"PaliGemmaForConditionalGeneration from '.*layers\.1' on"):
        policy.backbone.layers_to_recompute()
