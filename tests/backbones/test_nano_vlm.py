"""The shipped backbone: a real checkpoint folder, small, that answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PaliGemmaForConditionalGeneration

from aegis_backbones.batches import Tokens, collate, to_pixel_values
from aegis_backbones.questions import FAMILIES, Question
from aegis_backbones.renderer import SceneRenderer, draw_scene
from aegis_backbones.scene_store import Scenes, as_arrays
from aegis_backbones.scenes import ALL_SHAPES
from aegis_backbones.source import nano_scenes
from aegis_backbones.tokenizer import train_tokenizer
from aegis_envs.objects import COLOURS
from aegis_policy.answering import load_vlm
from aegis_policy.knowledge.sources import load_anchor, shipped_anchor
from aegis_policy.network.backbone import Backbone, resolve_backbone

QUESTIONS = 100  # a family


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(resolve_backbone("nano"))


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def test_it_is_a_paligemma_of_one_to_three_million_parameters_in_at_most_eight_mebibytes(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(model, PaliGemmaForConditionalGeneration)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    files = [f for f in folder.iterdir() if f.name != "anchor.safetensors"]
    assert sum(f.stat().st_size for f in files) <= 8 * 2**20


def test_its_anchor_belongs_to_it_and_knows_every_language_layer():
    backbone = Backbone.load("nano")
    path = shipped_anchor("nano")
    assert path is not None
    anchor = load_anchor(path, backbone)
    assert anchor.samples >= 2000
    assert set(anchor.layers) == set(backbone.layers())
    assert all(torch.isfinite(anchor.second_moment(w)).all() for w in anchor.weights)


LEAST = dict.fromkeys(FAMILIES, 0.95)


@pytest.mark.slow
def test_it_answers_questions_about_held_out_scenes():
    samples = nano_scenes(count=QUESTIONS * len(FAMILIES), seed=0, split="validation")
    answers = load_vlm("nano").answer(samples)
    for family, least in LEAST.items():
        right = [s.accepts(a) for s, a in zip(samples, answers, strict=True) if s.family == family]
        assert len(right) == QUESTIONS
        assert sum(right) / QUESTIONS >= least, f"{family}: {sum(right)} of {QUESTIONS}"


@pytest.mark.parametrize("text", ["touch the red cube", "Grüße, 世界! 🦾", "a\tb\nc  d", "3 + 4 = 7", "\x00\x7f"])
def test_the_tokenizer_reads_and_writes_any_text(processor, text):
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


def test_training_the_tokenizer_again_gives_the_shipped_one(processor):
    again = train_tokenizer()
    for text in ("Is there a green cylinder?", "put the ball on the purple disc", "bottom left"):
        assert again(text)["input_ids"] == processor.tokenizer(text)["input_ids"]


def test_pixels_and_tokens_of_training_are_those_of_the_processor(processor):
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    question = Question("Where is the red cube?", ("top left",), "where")
    theirs = processor(
        text="<image>" + question.question, images=Image.fromarray(image), suffix="top left", return_tensors="pt"
    )
    ours = collate(image[None], [[question]], Tokens(processor.tokenizer))
    torch.testing.assert_close(ours.pixel_values, theirs["pixel_values"], atol=1e-6, rtol=0)
    images = int((theirs["input_ids"] == processor.image_token_id).sum())
    assert images == 64
    assert torch.equal(ours.tokens[0], theirs["input_ids"][0, images:])
    assert torch.equal(ours.is_answer[0], theirs["token_type_ids"][0, images:])
    assert to_pixel_values(image[None]).shape == (1, 3, 96, 96)


def test_a_scene_is_the_same_from_its_number_and_another_in_the_other_split():
    with SceneRenderer() as renderer:
        first = draw_scene(renderer, split="train", seed=3, index=5)
        draw_scene(renderer, split="train", seed=3, index=6)
        again = draw_scene(renderer, split="train", seed=3, index=5)
        other = draw_scene(renderer, split="validation", seed=3, index=5)
    assert np.array_equal(first.image, again.image)
    assert first.seen == again.seen
    assert not np.array_equal(first.image, other.image)


def test_mirroring_a_scene_exchanges_left_and_right_in_picture_and_truth():
    with SceneRenderer() as renderer:
        scenes = as_arrays([draw_scene(renderer, split="train", seed=0, index=i) for i in range(2)], width=5)
    mirrored = scenes.take(np.array([0, 1]), mirrored=np.array([True, False]))
    assert np.array_equal(mirrored.images[0], scenes.images[0][:, ::-1])
    assert np.array_equal(mirrored.images[1], scenes.images[1])
    assert mirrored.objects(1) == scenes.objects(1)
    for (_, _, u, v), (_, _, flipped_u, flipped_v) in zip(scenes.objects(0), mirrored.objects(0), strict=True):
        assert flipped_u == pytest.approx(1 - u, abs=1e-6)
        assert flipped_v == v


def test_shifting_a_scene_moves_picture_and_truth_and_forgets_what_leaves_it():
    image = np.arange(96 * 96 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 96, 96, 3)
    places = np.array([[[0.5, 0.5], [0.95, 0.5]]], np.float32)
    scenes = Scenes(image, np.array([[0, 1]], np.int8), np.array([[2, 3]], np.int8), places)
    moved = scenes.shifted(np.array([[8, -4]]))
    assert np.array_equal(moved.images[0, :92, 8:], image[0, 4:, :88])
    assert moved.objects(0) == [
        (next(iter(COLOURS)), ALL_SHAPES[2], pytest.approx(0.5 + 8 / 96), pytest.approx(0.5 - 4 / 96))
    ]


def test_the_mention_of_a_thing_is_found_at_the_token_that_ends_it(processor):
    tokens = Tokens(processor.tokenizer)
    question = "Is the red cube left or right of the ball?"
    words = processor.tokenizer.convert_ids_to_tokens(list(tokens.prompt(question)))
    assert [words[tokens.last_of(w, question)].lstrip("Ġ") for w in ("red cube", "ball")] == ["cube", "ball"]


def test_the_source_deals_the_families_evenly_and_repeats_itself():
    samples = nano_scenes(count=14, seed=1, split="train")
    assert [s.family for s in samples] == list(FAMILIES) * 2
    again = nano_scenes(count=14, seed=1, split="train")
    assert [(s.question, s.answers) for s in samples] == [(s.question, s.answers) for s in again]
