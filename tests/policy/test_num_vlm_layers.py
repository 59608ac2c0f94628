"""The prefix passes through the first language layers alone; the others stay as they were, for answering."""

import pytest
import torch

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.sources import ANCHOR_FILE, build_anchor, load_anchor
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts, load_processor
from tests.policy.conftest import make_batch, make_samples, train
from tests.policy.tiny_backbones import DIFFERENT, FAMILIES

FEW = 2  # of the tiny models' three


def beyond(policy: AegisVLAPolicy) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in policy.backbone.vlm.named_parameters() if policy.backbone.is_beyond(n)}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prefix_is_the_first_layers_of_the_whole_one(tiny_folder, family):
    folder = str(tiny_folder[family])
    samples = make_samples(2)
    inputs = encode_prompts(load_processor(folder), [s.images for s in samples], ["touch", "push the blue one"])
    whole, few = Backbone.load(folder).eval(), Backbone.load(folder, num_layers=FEW).eval()
    expected, prefix = whole.encode(inputs), few.encode(inputs)
    assert (len(expected.keys), len(prefix.keys), len(few.layers())) == (3, FEW, FEW)
    for one, other in zip(prefix.keys + prefix.values, expected.keys[:FEW] + expected.values[:FEW], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(prefix.next_position, expected.next_position)
    assert torch.equal(few.vlm(**inputs).logits, whole.vlm(**inputs).logits)  # the model is whole for everybody else


def test_an_error_in_the_prefix_leaves_the_model_whole(tiny_folder):
    backbone = Backbone.load(str(tiny_folder["paligemma2"]), num_layers=FEW)
    with pytest.raises(ValueError, match="input_ids"):
        backbone.encode({"attention_mask": torch.ones(1, 3, dtype=torch.long)})
    assert len(backbone.decoder.layers) == 3


@pytest.mark.parametrize("family", DIFFERENT)
def test_expert_and_training_stop_where_the_prefix_does(make_policy, family):
    policy = make_policy(family, num_vlm_layers=FEW, knowledge="none", cotraining_share=0.5, cotraining_samples=8)
    assert policy.expert.decoder.config.num_hidden_layers == len(policy.expert.decoder.layers) == FEW
    before = beyond(policy)
    first = [p.detach().clone() for p in policy.backbone.decoder.layers[0].parameters()]
    train(policy, 2)
    assert before and all(torch.equal(before[name], value) for name, value in beyond(policy).items())
    now = policy.backbone.decoder.layers[0].parameters()
    assert any(not torch.equal(*pair) for pair in zip(first, now, strict=True))


def test_a_policy_of_few_layers_answers_as_the_whole_model_does(make_policy, tiny_folder):
    policy = make_policy(num_vlm_layers=FEW)
    whole = make_policy()
    samples = make_samples(3)
    assert policy.vlm.answer(samples, max_new_tokens=4) == whole.vlm.answer(samples, max_new_tokens=4)
    assert policy.vlm.fingerprint == whole.vlm.fingerprint


def test_an_anchor_of_all_layers_fits_and_one_built_for_few_has_their_moments(tiny_folder):
    folder = tiny_folder["paligemma2"]
    few = Backbone.load(str(folder), num_layers=FEW)
    of_all = load_anchor(folder / ANCHOR_FILE, few)
    own = build_anchor(few, load_processor(str(folder)), make_samples(12))
    assert own.layers == list(few.layers()) == of_all.layers[:FEW]
    assert own.fingerprint == of_all.fingerprint
    assert not [name for name in [*own.weights, *few.linears()] if few.is_beyond(name)]
    for layer in own.layers:
        assert torch.equal(own.mean(layer), of_all.mean(layer)) and torch.equal(own.std(layer), of_all.std(layer))
    for weight in own.weights:
        assert torch.equal(own.second_moment(weight), of_all.second_moment(weight))


@pytest.mark.parametrize("projection", ["subspace", "gradient"])
def test_protection_covers_what_the_prefix_passes_through(make_policy, projection):
    energy = 0.5  # leaves something open in a model as small as this
    policy = make_policy(num_vlm_layers=FEW, projection=projection, energy=energy)
    before = beyond(policy)
    losses = train(policy, 2)
    assert all(torch.isfinite(torch.tensor(losses)))
    layers = [group["layer"] for group in policy.get_optim_params() if "layer" in group]
    assert set(policy.backbone.layers()) <= set(layers)
    assert not [layer for layer in layers if policy.backbone.is_beyond(layer + ".")]
    assert all(torch.equal(before[name], value) for name, value in beyond(policy).items())


def test_a_checkpoint_brings_the_number_of_layers_back(make_policy, tmp_path):
    policy = make_policy(num_vlm_layers=FEW)
    train(policy, 1)
    policy.save_pretrained(tmp_path)
    again = AegisVLAPolicy.from_pretrained(tmp_path)
    assert again.config.num_vlm_layers == again.backbone.depth == FEW
    noise = torch.randn(3, 5, 4)
    batch = make_batch(policy, training=False)
    assert torch.equal(
        policy.eval().predict_action_chunk(batch, noise), again.eval().predict_action_chunk(batch, noise)
    )
    samples = make_samples(2)
    assert again.vlm.answer(samples, max_new_tokens=4) == policy.vlm.answer(samples, max_new_tokens=4)
    assert not any(p.requires_grad for n, p in again.backbone.vlm.named_parameters() if again.backbone.is_beyond(n))


def test_adapters_go_into_the_layers_of_the_prefix_alone(make_policy):
    from peft import LoraConfig, get_peft_model

    policy = make_policy(num_vlm_layers=FEW, knowledge="none")
    targets = policy._get_default_peft_targets()["target_modules"]
    wrapped = get_peft_model(policy.backbone, LoraConfig(target_modules=targets.replace(r"backbone\.", "")))
    adapted = {name.split(".layers.")[1][0] for name, _ in wrapped.named_parameters() if "lora" in name}
    assert adapted == {"0", "1"}


@pytest.mark.parametrize("count", [0, 4])
def test_a_number_of_layers_that_there_is_not_is_refused(tiny_folder, count):
    with pytest.raises(ValueError, match=f"got {count} of 3 layers"):
        Backbone.load(str(tiny_folder["paligemma2"]), num_layers=count)


def test_no_layers_at_all_are_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="num_vlm_layers must be positive: got 0"):
        AegisVLAConfig(num_vlm_layers=0)


def test_layers_cannot_be_cut_from_under_an_expert_that_reads_them_all(lerobot):
    folder = lerobot("pi0").folder
    with pytest.raises(ValueError, match="reads every layer"):
        AegisVLAConfig(init_from=str(folder), num_vlm_layers=2)
