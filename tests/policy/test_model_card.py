"""A policy's card says which model was fine-tuned, how its knowledge was kept, and what is left of it."""

import pytest
from huggingface_hub import ModelCard

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.model_card import tell_knowledge

LEROBOTS = "---\nlibrary_name: lerobot\n---\n\n# A policy\n\n## Evaluation\n\nnone\n"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(ModelCard, "validate", lambda self: None)  # asks the hub


def test_lerobots_card_has_our_section_in_its_place(make_policy, offline):
    policy = make_policy(repo_id="someone/policy")
    card = policy.generate_model_card("someone/data", "aegis_vla", None, None)
    assert card.text.index("## Model Details") < card.text.index("## Knowledge") < card.text.index("## Evaluation")
    assert "aegis-ask someone/policy" in card.text
    assert "`knowledge=aegis`, `projection=subspace`, `energy=0.97`, `reference=features`" in card.text
    assert "nobody asked while it trained" in card.text
    assert card.data.base_model is None and card.data.library_name == "lerobot"  # the backbone is a folder here


def test_a_backbone_on_the_hub_is_the_model_that_was_fine_tuned():
    config = AegisVLAConfig(backbone="someone/model", device="cpu", knowledge="none")
    card = tell_knowledge(ModelCard(LEROBOTS), config, {"vqa": 0.972, "vqa_left_right": 0.985})
    again = ModelCard(str(card))
    assert again.data.base_model == "someone/model"
    assert "[someone/model](https://huggingface.co/someone/model)" in again.text
    assert "vqa 97.2%, left right 98.5% right" in again.text
    assert "`knowledge=none`\n" in again.text


def test_a_card_without_lerobots_headings_has_the_section_at_its_end():
    card = tell_knowledge(ModelCard("# A policy\n"), AegisVLAConfig(device="cpu"), {})
    assert card.text.startswith("# A policy\n\n## Knowledge\n") and "`nano`" in card.text
    assert card.data.base_model is None
