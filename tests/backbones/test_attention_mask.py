"""PaliGemma's mask: prompt and image see each other, the answer sees what precedes it, training or not.

A robot policy runs the prefix without labels and reads its KV cache, while questions are answered by `generate`: the
knowledge is the same only if all of these see with the same mask.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from aegis_backbones.architecture import IMAGE_TOKENS, build_model, build_processor
from aegis_backbones.batches import Tokens, answer_loss, collate, to_pixel_values
from aegis_backbones.questions import Question
from aegis_backbones.tokenizer import train_tokenizer

PROCESSOR = build_processor(train_tokenizer())
QUESTIONS = ["What colour is the cube?", "Is the red ball to the left or to the right of the green disc?"]
ANSWERS = ["red", "top left"]
# Two float32 evaluations that differ in the order of sums: logits here are of order one.
ROUNDING = 2e-5


@pytest.fixture()
def model():
    return build_model(PROCESSOR.tokenizer, seed=0).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)


def inputs_of(images: np.ndarray, **options):
    return PROCESSOR(
        text=[f"<image>{q}" for q in QUESTIONS],
        images=[[Image.fromarray(i)] for i in images],
        return_tensors="pt",
        padding=True,
        **options,
    )


def hidden(model, inputs, **options) -> torch.Tensor:
    """The last layer's states; labels, which the processor always adds, are left out."""
    wanted = {k: v for k, v in inputs.items() if k != "labels"} | options
    with torch.no_grad():
        return model.model(**{k: v for k, v in wanted.items() if v is not None}).last_hidden_state


def test_without_an_answer_all_token_types_are_zero_and_all_labels_ignored(images):
    inputs = inputs_of(images)
    assert inputs["token_type_ids"].sum() == 0 and (inputs["labels"] == -100).all()


def test_the_prefix_is_bidirectional_in_training_as_in_inference(model, images):
    """A change of the question's last token moves the states of image tokens: causal attention would not let it."""
    inputs = inputs_of(images)
    changed = dict(inputs)
    changed["input_ids"] = inputs["input_ids"].clone()
    changed["input_ids"][:, -2] += 1
    for mode in (model.eval(), model.train()):
        difference = (hidden(mode, inputs) - hidden(mode, changed))[1, :IMAGE_TOKENS].abs().max()
        assert difference > 1e-3


def test_training_and_inference_see_the_prefix_alike(model, images):
    inputs = inputs_of(images)
    assert torch.equal(hidden(model.train(), inputs), hidden(model.eval(), inputs))


def test_in_inference_missing_token_types_mean_prefix_and_in_training_they_are_refused(model, images):
    inputs = inputs_of(images)
    assert torch.equal(hidden(model.eval(), inputs), hidden(model.eval(), inputs, token_type_ids=None))
    with pytest.raises(ValueError, match="token_type_ids"):
        hidden(model.train(), inputs, token_type_ids=None)


def test_the_prefix_does_not_see_the_answer(model, images):
    """So the states, and the KV cache, of a prompt are the same whether its answer follows or not."""
    alone, followed = inputs_of(images), inputs_of(images, suffix=ANSWERS)
    for row in range(2):
        prompt = alone["attention_mask"][row].bool()
        prompt_of_pair = followed["attention_mask"][row].bool() & (followed["token_type_ids"][row] == 0)
        a, b = hidden(model, alone)[row][prompt], hidden(model, followed)[row][prompt_of_pair]
        assert torch.allclose(a, b, atol=ROUNDING)


def test_padding_on_the_left_changes_nothing_but_positions(model, images):
    single = PROCESSOR(
        text=f"<image>{QUESTIONS[0]}", images=[[Image.fromarray(images[0])]], return_tensors="pt", padding=True
    )
    batch = inputs_of(images)
    padded = hidden(model, batch)[0][batch["attention_mask"][0].bool()]
    assert torch.allclose(hidden(model, single)[0], padded, atol=ROUNDING)  # rotary positions are relative


def test_pixels_are_those_of_the_processor(images):
    # 255/2 against two roundings of the processor's rescale and normalise.
    assert torch.allclose(to_pixel_values(images), inputs_of(images)["pixel_values"], atol=1e-6)


def test_the_fast_training_loss_is_the_models_own_loss_on_the_processors_batch(model, images):
    questions = [[Question(q, (a,), "colour")] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    batch = collate(images, questions, Tokens(PROCESSOR.tokenizer))
    features = model.get_image_features(batch.pixel_values).pooler_output
    fast = answer_loss(model, batch, features).loss
    own = model(**inputs_of(images, suffix=ANSWERS)).loss
    assert torch.allclose(fast, own, atol=ROUNDING)


def test_generate_continues_with_the_likeliest_token_of_a_plain_forward(model, images):
    inputs = inputs_of(images)
    inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        generated = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    assert torch.equal(logits.argmax(-1), generated)
