"""The shipped backbone is an ordinary transformers folder, small, and knows what it was taught."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)

import aegis_policy
from aegis_backbones.accuracy import accuracy_by_family, answer_with
from aegis_backbones.architecture import IMAGE_TOKENS
from aegis_backbones.questions import FAMILIES
from aegis_backbones.source import nano_scenes

FOLDER = Path(aegis_policy.__file__).parent / "assets" / "nano_vlm"
MIB = 2**20


def test_the_folder_loads_with_transformers_auto_classes():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(FOLDER)
    assert isinstance(model, PaliGemmaForConditionalGeneration) and isinstance(processor, PaliGemmaProcessor)
    assert processor.image_seq_length == IMAGE_TOKENS
    assert model.config.image_token_id == processor.image_token_id
    assert len(processor.tokenizer) == model.config.get_text_config().vocab_size
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(model.config.get_text_config(), name) == getattr(processor.tokenizer, name)


def test_the_backbone_has_one_to_three_million_parameters_and_fits_eight_mebibytes():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 8 * MIB


@pytest.mark.slow
def test_the_shipped_backbone_answers_95_in_100_of_every_family_on_held_out_scenes():
    samples = nano_scenes(count=300 * len(FAMILIES), seed=0, split="validation")
    counts = accuracy_by_family(samples, answer_with(FOLDER, samples))
    weak = {family: f"{right}/{asked}" for family, (right, asked) in counts.items() if right < 0.95 * asked}
    assert not weak, weak
