"""How many tokens a camera costs is an option, and the same one in training, anchor, answers and checkpoint."""

import json

import draccus
import pytest
import torch
from lerobot.policies import make_pre_post_processors

from aegis_policy.aegis import GaussianAnchor
from aegis_policy.build_anchor import main as aegis_anchor
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.sources import build_anchor
from aegis_policy.modeling_aegis_vla import vlm_inputs
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts, load_processor
from aegis_policy.vqa import load_vqa_source
from tests.policy.conftest import make_batch, make_samples, train

TILES = {"do_image_splitting": True}


@pytest.mark.parametrize(
    ("family", "options", "more"),
    [
        ("smolvlm2", TILES, 1),
        ("idefics3", {"do_image_splitting": False}, -1),
        ("internvl", {"max_patches": 1}, -1),
        ("qwen2_5_vl", {"min_pixels": 112 * 112, "max_pixels": 112 * 112}, 1),
        ("llava_onevision", {"image_grid_pinpoints": [[32, 32]]}, -1),
    ],
)
def test_an_option_changes_how_many_tokens_an_image_becomes(tiny_folder, family, options, more):
    folder = str(tiny_folder[family])
    image = make_samples(1)[0].images[0].resize((64, 32))
    usual, other = (
        encode_prompts(load_processor(folder, image_options=chosen), [[image]], ["touch"])["input_ids"].shape[1]
        for chosen in (None, options)
    )
    assert (other - usual) * more > 0


def test_policy_answers_and_checkpoint_share_the_option(make_policy, tmp_path):
    policy = make_policy("smolvlm2", image_options=TILES)
    batch = make_batch(policy)
    tiles = vlm_inputs(batch)["pixel_values"].shape[1]
    assert tiles > vlm_inputs(make_batch(make_policy("smolvlm2")))["pixel_values"].shape[1] == 1
    asked = encode_prompts(policy.vlm.processor, [make_samples(1)[0].images], ["what?"])
    assert asked["pixel_values"].shape[1] == tiles
    assert all(torch.isfinite(torch.tensor(train(policy, 2))))
    preprocessor, _ = make_pre_post_processors(policy.config, dataset_stats={})
    preprocessor.save_pretrained(tmp_path)
    policy.save_pretrained(tmp_path)
    config = AegisVLAConfig.from_pretrained(tmp_path)
    assert config.image_options == TILES
    (step,) = (s for s in json.loads((tmp_path / "policy_preprocessor.json").read_text())["steps"] if "aegis" in str(s))
    assert step["config"]["image_options"] == TILES


def test_an_anchor_is_built_from_the_images_that_the_policy_sees(tiny_folder, tmp_path):
    folder, out = str(tiny_folder["smolvlm2"]), tmp_path / "anchor.safetensors"
    aegis_anchor(["--backbone", folder, "--count", "4", "--out", str(out), "--image-options", json.dumps(TILES)])
    samples = load_vqa_source("nano_scenes")(count=4, seed=0, split="train")
    backbone = Backbone.load(folder)
    expected = build_anchor(backbone, load_processor(folder, image_options=TILES), samples)
    usual = build_anchor(backbone, load_processor(folder), samples)
    found, layer = GaussianAnchor.load(out), expected.layers[0]
    assert torch.equal(found.mean(layer), expected.mean(layer))
    assert not torch.equal(found.mean(layer), usual.mean(layer))


def test_an_option_that_the_image_processor_does_not_know_is_refused_with_those_that_it_knows(make_policy):
    with pytest.raises(ValueError, match=r"knows no image_options do_image_spliting\. It knows .*do_image_splitting"):
        make_policy("smolvlm2", image_options={"do_image_spliting": False})


def test_an_option_comes_from_the_command_line_as_json():
    config = draccus.parse(AegisVLAConfig, args=['--image_options={"do_image_splitting": false}'])
    assert config.image_options == {"do_image_splitting": False}


def test_a_form_that_asks_no_image_processor_refuses_options():
    with pytest.raises(ValueError, match="asks no image processor"):
        AegisVLAConfig(prompt_form="pi0", image_options=TILES)
