"""One adapter, every family: real architectures with random weights."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts, load_processor, to_uint8
from aegis_policy.processor_aegis_vla import vlm_inputs
from tests.policy.conftest import make_batch, make_samples, train
from tests.policy.tiny_backbones import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_training_steps_move_backbone_and_expert(make_policy, family):
    torch.manual_seed(0)
    policy = make_policy(family)
    before = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
    losses = train(policy, 10)
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = {name for name, p in policy.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert any(name.startswith("backbone") for name in moved)
    assert {n for n in before if n.startswith("expert.action")} <= moved


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_a_prompt_on_the_right_changes_nothing_that_the_expert_reads(tiny_folder, family):
    folder = str(tiny_folder[family])
    backbone, processor = Backbone.load(folder).eval(), load_processor(folder)
    samples = make_samples(2)
    images = [s.images for s in samples]
    alone = backbone.encode(encode_prompts(processor, images[:1], ["touch"]))
    together = backbone.encode(encode_prompts(processor, images, ["touch", "push the blue one to the left"]))
    length = int(alone.mask.sum())
    assert int(together.mask[0].sum()) == length
    assert together.next_position[0] == alone.next_position[0]
    for one, padded in zip(alone.keys + alone.values, together.keys + together.values, strict=True):
        torch.testing.assert_close(padded[0, :, :length], one[0, :, :length], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prefix_is_bit_for_bit_what_the_vlm_itself_makes_of_its_processors_inputs(tiny_folder, family):
    # the mask of a family whose prefix sees all of itself is not the VLM's own: it must have the same values
    folder = str(tiny_folder[family])
    backbone, processor = Backbone.load(folder).eval(), load_processor(folder)
    texts = ["touch", "push the blue one to the left"]  # of two lengths, so that there is padding
    inputs = encode_prompts(processor, [s.images for s in make_samples(2)], texts)
    assert not inputs["attention_mask"].all()
    cache = DynamicCache()  # of its own making a cache would keep the last of a sliding window alone
    backbone.vlm.base_model(**inputs, past_key_values=cache, use_cache=True)
    prefix = backbone.encode(inputs)
    for layer, key, value in zip(cache.layers, prefix.keys, prefix.values, strict=True):
        assert torch.equal(key, layer.keys)
        assert torch.equal(value, layer.values)


def test_an_images_numbers_are_rounded_to_the_nearest_of_256_and_left_as_they_were():
    image = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 254.5 / 255, 1.0, 1.1]).expand(2, 3, 1, 7)
    before = image.clone()
    assert to_uint8(image)[1, 2, 0].tolist() == [0, 0, 0, 1, 254, 255, 255]  # halves go to the even number
    assert torch.equal(image, before)
    drawn = torch.rand(3, 1, 3, 5, 4)
    assert torch.equal(to_uint8(drawn), (drawn[:, -1] * 255).round().clamp(0, 255).to(torch.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_the_prefix_leaves_it_as_it_was(make_policy, family):
    policy = make_policy(family).eval()
    batch = make_batch(policy, training=False)
    prefix = policy._encode(vlm_inputs(batch))
    lengths = [key.shape[2] for key in prefix.keys]
    noise = torch.randn(3, 5, 4)
    args = (noise, torch.full((3,), 0.5))
    first = policy.expert(*args, state=batch["observation.state"], prefix=prefix)
    second = policy.expert(*args, state=batch["observation.state"], prefix=prefix)
    assert torch.equal(first, second)
    assert [key.shape[2] for key in prefix.keys] == lengths


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_is_as_deep_and_reads_the_same_heads(make_policy, family):
    policy = make_policy(family)
    own, text = policy.expert.decoder.config, policy.backbone.text_config
    assert own.num_hidden_layers == text.num_hidden_layers
    assert own.num_key_value_heads == text.num_key_value_heads
    assert own.hidden_size < text.hidden_size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_policy_answers_questions_as_the_plain_model_does(make_policy, tiny_folder, family):
    policy = make_policy(family)
    samples = make_samples(3)
    plain = Backbone.load(str(tiny_folder[family])).vlm.eval()
    expected = []
    for sample in samples:  # one by one: no padding involved
        inputs = encode_prompts(policy.vlm.processor, [sample.images], [sample.question])
        tokens = plain.generate(**inputs, max_new_tokens=4, do_sample=False)
        text = policy.vlm.processor.tokenizer.decode(
            tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        expected.append(text.strip())
    assert policy.vlm.answer(samples, max_new_tokens=4) == expected


def test_gradient_checkpointing_inside_transformers_is_refused(tiny_folder):
    folder = str(tiny_folder["paligemma2"])
    backbone = Backbone.load(folder)
    backbone.vlm.gradient_checkpointing_enable()
    backbone.train()
    inputs = encode_prompts(load_processor(folder), [make_samples(1)[0].images], ["touch"])
    with pytest.raises(RuntimeError, match="Gradient checkpointing"):
        backbone.encode(inputs)


def test_an_unknown_backbone_is_an_error_that_says_what_may_be_given():
    with pytest.raises(ValueError, match="image-text-to-text"):
        Backbone.load("/nowhere/at/all")
