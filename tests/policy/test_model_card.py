"""A policy's card says which model was fine-tuned, how its knowledge was kept, and what is left of it."""

import pytest
from huggingface_hub import ModelCard

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.model_card import tell_knowledge
from tests.policy.conftest import train

LEROBOTS = "---\nlibrary_name: lerobot\n---\n\n# A policy\n\n## Evaluation\n\nnone\n"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(ModelCard, "validate", lambda self: None)  # asks the hub


def card_of(policy):
    return policy.generate_model_card("someone/data", "aegis_vla", None, None)


def test_lerobots_card_has_our_section_in_its_place(make_policy, offline):
    card = card_of(make_policy(repo_id="someone/policy"))
    assert card.text.index("## Model Details") < card.text.index("## Knowledge") < card.text.index("## Evaluation")
    assert "aegis-ask someone/policy" in card.text
    assert "`knowledge=aegis`, `projection=subspace`, `directions=0.3`, `reference=features`" in card.text
    assert "nothing is on record" in card.text
    assert card.data.base_model is None and card.data.library_name == "lerobot"  # the backbone is a folder here


def test_the_last_answers_are_told_with_their_step_and_those_before_the_first_are_not(
    make_policy, offline, monkeypatch
):
    shares = iter([0.9, 0.75])  # before the first step, and after the second
    monitor = lambda vlm, step: {"vqa": next(shares)}  # noqa: E731
    monkeypatch.setattr("aegis_policy.modeling_aegis_vla.load_monitor", lambda name, count: monitor)
    policy = make_policy(probe_freq=2)
    train(policy, 1)
    assert "nothing is on record" in card_of(policy).text
    train(policy, 2)
    assert "vqa 75.0% right after 2 steps" in card_of(policy).text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"knowledge": "none"}, "`knowledge=none`\n"),
        ({"knowledge": "none", "use_peft": True}, "`knowledge=none`, `use_peft=True`\n"),
        ({"knowledge": "none", "cotraining_share": 0.5}, "`knowledge=none`, `cotraining_share=0.5`\n"),
        ({"projection": "subspace", "energy": 0.9}, "`knowledge=aegis`, `projection=subspace`, `energy=0.9`\n"),
        ({"projection": "update"}, "`projection=update`, `reference=moments`, `penalty_weight=0"),
    ],
)
def test_how_the_backbone_was_trained_is_told_in_the_options_own_names(options, told):
    card = tell_knowledge(ModelCard(LEROBOTS), AegisVLAConfig(device="cpu", **options), {}, step=0)
    assert told in card.text


def test_a_backbone_on_the_hub_is_the_model_that_was_fine_tuned():
    config = AegisVLAConfig(backbone="someone/model", device="cpu")
    card = tell_knowledge(ModelCard(LEROBOTS), config, {"vqa": 0.972, "vqa_left_right": 0.985}, step=2000)
    again = ModelCard(str(card))
    assert again.data.base_model == "someone/model"
    assert "[someone/model](https://huggingface.co/someone/model)" in again.text
    assert "vqa 97.2%, left right 98.5% right after 2,000 steps" in again.text


def test_a_card_without_lerobots_headings_has_the_section_at_its_end():
    card = tell_knowledge(ModelCard("# A policy\n"), AegisVLAConfig(device="cpu"), {}, step=0)
    assert card.text.startswith("# A policy\n\n## Knowledge\n") and "`nano`" in card.text
    assert card.data.base_model is None
