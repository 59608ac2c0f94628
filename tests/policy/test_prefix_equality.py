"""What the expert reads is what the VLM itself computes: checked against transformers' own forward and generate."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from aegis_policy.knowledge.answer_tokens import answer_logits, answer_tokens, ends_of_answer, say_behind
from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.expert import ActionExpert
from aegis_policy.network.prompt import encode_prompts, load_processor
from tests.policy.conftest import make_samples
from tests.policy.tiny_backbones import FAMILIES, WINDOW

WINDOWED = ("paligemma2", "gemma3")
TEXTS = ("touch", "push the blue one to the left")
# The same sums in another order (padding, one token at a time) differ by float32 rounding alone.
ROUNDING = {"atol": 2e-4, "rtol": 1e-4}


def prompts(folder, *, rows=slice(None), side="right") -> dict[str, Tensor]:
    """Two cameras, one of them so wide that families with tiles cut it into several, and texts of unequal lengths."""
    first, second = (sample.images[0] for sample in make_samples(2))
    images = [[first, second.resize((64, 32))], [second, first.resize((64, 32))]]
    return encode_prompts(load_processor(str(folder)), images[rows], TEXTS[rows], padding_side=side)


def plain_model(folder) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def generated(plain: nn.Module, inputs: dict[str, Tensor], *, count: int = 2) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The tokens that `generate` appends to one prompt, and the logits (V,) from which it chose each."""
    out = plain.generate(
        **inputs,
        max_new_tokens=count,
        min_new_tokens=count,  # also past what would end an answer
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, -count:], tuple(one[0] for one in out.logits)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_keys_and_values_are_those_of_the_models_own_forward(tiny_folder, family):
    folder = tiny_folder[family]
    inputs = prompts(folder)
    backbone = Backbone.load(str(folder)).eval()
    with watch_outputs(backbone.layers()) as outputs:
        prefix = backbone.encode(inputs)
    plain = plain_model(folder)
    own = plain(**inputs, use_cache=True, output_hidden_states=True)
    *before, last = outputs.values()
    assert all(torch.equal(*pair) for pair in zip(before, own.hidden_states[1:-1], strict=True))
    assert torch.equal(plain.get_decoder().norm(last), own.hidden_states[-1])
    length = inputs["input_ids"].shape[1]
    for key, value, layer in zip(prefix.keys, prefix.values, own.past_key_values.layers, strict=True):
        kept = layer.keys.shape[-2]  # a sliding layer's own cache forgets what no later token would see
        assert key.shape[-2] == length and kept == (WINDOW - 1 if layer.is_sliding else length)
        assert torch.equal(key[:, :, -kept:], layer.keys)
        assert torch.equal(value[:, :, -kept:], layer.values)
    assert any(layer.is_sliding for layer in own.past_key_values.layers) == (family in WINDOWED)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", range(len(TEXTS)))
def test_the_models_next_token_goes_on_from_the_prefix_as_generate_does(tiny_folder, family, row):
    folder = tiny_folder[family]
    inputs = prompts(folder, rows=slice(row, row + 1))
    tokens, expected = generated(plain_model(folder), inputs)
    backbone = Backbone.load(str(folder)).eval()
    prefix = backbone.encode(inputs)
    assert torch.allclose(_next_logits(backbone, prefix, tokens[:1]), expected[1], **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_with_the_language_models_weights_says_what_the_model_says(tiny_folder, family):
    folder = tiny_folder[family]
    backbone, plain = Backbone.load(str(folder)).eval(), plain_model(folder)
    if family in WINDOWED:  # the expert sees the whole prefix in every layer: let the model do so too
        backbone.text_config.sliding_window = plain.config.get_text_config().sliding_window = 4096
    alone = [generated(plain, prompts(folder, rows=slice(row, row + 1))) for row in range(len(TEXTS))]
    first_tokens = torch.stack([tokens[:1] for tokens, _ in alone])  # (B, 1)
    expected = torch.stack([logits[1] for _, logits in alone])
    prefix = backbone.encode(prompts(folder))  # both at once: the shorter one is padded
    hidden = _as_expert(backbone)(
        backbone.vlm.get_input_embeddings()(first_tokens), torch.zeros(len(TEXTS)), state=None, prefix=prefix
    )
    assert torch.allclose(backbone.vlm.get_output_embeddings()(hidden[:, 0]), expected, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_answer_is_read_as_a_generated_one(tiny_folder, family):
    folder = str(tiny_folder[family])
    backbone, processor = Backbone.load(folder).eval(), load_processor(folder)
    sample = make_samples(1)[0]
    tokens, counts = answer_tokens(processor, ["red"], end=ends_of_answer(backbone, processor)[0])
    prompt = encode_prompts(processor, [sample.images], [sample.question], padding_side="left")
    inputs = say_behind(prompt, tokens, counts, token_type=backbone.answer_type)
    answer = tokens[0]
    at_once = answer_logits(backbone, inputs, len(answer))[0]
    cache = backbone.encode(prompt)
    step_by_step = [backbone.vlm(**prompt).logits[0, -1]]
    step_by_step += [_next_logits(backbone, cache, answer[:seen]) for seen in range(1, len(answer))]
    assert len(answer) == 4
    assert torch.allclose(at_once, torch.stack(step_by_step), **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_questions_of_unequal_length_are_answered_together_as_each_alone(make_policy, tiny_folder, family):
    folder = tiny_folder[family]
    policy, plain = make_policy(family), plain_model(folder)
    questions = ("where?", "what is it that lies on the left of the red cube?", "how many?")
    samples = [replace(s, question=q) for s, q in zip(make_samples(3), questions, strict=True)]
    expected = []
    for sample in samples:
        inputs = encode_prompts(policy.vlm.processor, [sample.images], [sample.question])
        tokens = plain.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected.append(policy.vlm.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    assert policy.vlm.answer(samples, max_new_tokens=6) == expected
    assert len(set(expected)) > 1


def test_a_token_that_the_template_writes_is_not_written_twice(tiny_folder):
    """Gemma 3's template begins with <bos>, and so does whatever its tokenizer reads."""
    processor = load_processor(str(tiny_folder["gemma3"]))
    assert processor.tokenizer("touch")["input_ids"][0] == processor.tokenizer.bos_token_id
    ids = prompts(tiny_folder["gemma3"])["input_ids"]
    assert (ids == processor.tokenizer.bos_token_id).sum(dim=1).tolist() == [1, 1]


def test_a_processor_without_a_template_gets_its_mark_of_an_image_and_the_bare_text(tiny_folder):
    processor = load_processor(str(tiny_folder["gemma3"]))
    template, processor.chat_template = processor.chat_template, None
    try:
        inputs = encode_prompts(processor, [[Image.new("RGB", (8, 8))] * 2], ["touch"])
    finally:
        processor.chat_template = template  # the processor is shared
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.count("<start_of_image>") == 2 and text.endswith("\n\ntouch")


def _next_logits(backbone: Backbone, prefix, tokens: Tensor) -> Tensor:
    """The model's own decoder and head on tokens (n,) behind a prefix of one prompt: logits (V,) after the last."""
    ones = torch.ones(1, len(tokens), dtype=torch.long)
    hidden = backbone.decoder(
        input_ids=tokens[None],
        attention_mask=torch.cat([prefix.mask.long(), ones], dim=1),
        position_ids=prefix.next_position[:, None] + torch.arange(len(tokens)),
        past_key_values=prefix.cache(),
        use_cache=True,
    ).last_hidden_state
    return backbone.vlm.get_output_embeddings()(hidden[0, -1])


def _as_expert(backbone: Backbone) -> ActionExpert:
    """An expert that is the language model: what it is given are embeddings, what it returns hidden states."""
    width = backbone.text_config.hidden_size
    expert = ActionExpert(backbone, action_size=width, state_size=0, width_ratio=1.0).eval()
    own = backbone.decoder.state_dict()
    expert.decoder.load_state_dict({k: v for k, v in own.items() if not k.startswith("embed_tokens.")})
    expert.action_in = expert.action_out = nn.Identity()
    expert.time_mlp = nn.Linear(2 * width, width, bias=False)
    expert.time_mlp.weight.copy_(torch.eye(width, 2 * width))  # the embedding passes, the time is dropped
    return expert
