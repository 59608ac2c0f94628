"""What `knowledge=aegis` means where fields are left out."""

from dataclasses import replace

import pytest
import torch

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge import recipe
from aegis_policy.knowledge.recipe import PLAIN, RECOMMENDED, RECOMMENDED_ELSEWHERE
from tests.policy.conftest import train


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, RECOMMENDED),
        ({"energy": 0.9}, replace(RECOMMENDED, energy=0.9)),
        ({"epsilon": 0.1}, replace(RECOMMENDED, energy=None)),
        ({"directions": 0.2}, replace(RECOMMENDED, energy=None, directions=0.2)),
        ({"reference": "answers"}, replace(RECOMMENDED, reference="answers")),
        ({"reference_every": 2, "penalty_weight": 0.3}, replace(RECOMMENDED, reference_every=2, penalty_weight=0.3)),
        ({"penalty_weight": 0.0}, replace(PLAIN, energy=RECOMMENDED.energy)),
        ({"backbone": "a/vlm"}, RECOMMENDED_ELSEWHERE),
        ({"backbone": "a/vlm", "energy": 0.995}, replace(RECOMMENDED_ELSEWHERE, energy=0.995, directions=None)),
        ({"backbone": "a/vlm", "epsilon": 0.1}, replace(RECOMMENDED_ELSEWHERE, directions=None)),
        ({"backbone": "a/vlm", "penalty_weight": 0.0}, replace(PLAIN, energy=None, directions=0.3)),
        ({"backbone": "a/vlm", "projection": "subspace"}, PLAIN),
        ({"projection": "subspace"}, PLAIN),
        ({"projection": "gradient"}, replace(PLAIN, projection="gradient")),
        ({"knowledge": "none"}, PLAIN),
        ({"knowledge": "none", "penalty_weight": 1.0}, replace(PLAIN, penalty_weight=1.0)),
    ],
)
def test_what_is_given_is_taken_and_the_rest_is_the_recipe_unless_a_projection_was_named(given, meant):
    assert AegisVLAConfig(**given).recipe == meant


@pytest.mark.parametrize("form", [{"epsilon": 0.1}, {"directions": 0.3}])
def test_a_saved_configuration_says_what_was_done(tmp_path, form):
    AegisVLAConfig(**form).save_pretrained(tmp_path)
    loaded = AegisVLAConfig.from_pretrained(tmp_path)
    expected = {"epsilon": None, "directions": None} | form
    assert (loaded.projection, loaded.energy) == ("subspace", None)
    assert (loaded.epsilon, loaded.directions) == (expected["epsilon"], expected["directions"])
    assert (loaded.reference, loaded.penalty_weight) == ("features", 1.0)
    assert loaded.recipe == replace(RECOMMENDED, energy=None, directions=expected["directions"])


@pytest.mark.parametrize(
    ("given", "anew"),
    [
        ({}, {"knowledge": "none"}),
        ({}, {"knowledge": "frozen"}),
        ({}, {"projection": "gradient"}),
        ({}, {"penalty_weight": 0.0}),
        ({}, {"energy": 0.9}),
        ({"knowledge": "none"}, {"knowledge": "aegis"}),
        ({"penalty_weight": 0.0}, {"penalty_weight": 0.5}),
        ({"epsilon": 0.1}, {"epsilon": None}),
        ({"backbone": "a/vlm"}, {"energy": 0.995}),
        ({}, {"backbone": "a/vlm"}),
        ({"projection": "update", "reference_every": 2}, {"reference": "features"}),
    ],
)
def test_options_given_anew_with_a_checkpoint_mean_what_they_mean_without(tmp_path, given, anew):
    AegisVLAConfig(**given).save_pretrained(tmp_path)
    options = [f"--{name}={'null' if value is None else value}" for name, value in anew.items()]
    loaded = AegisVLAConfig.from_pretrained(tmp_path, cli_overrides=options)
    fresh = AegisVLAConfig(**{**given, **anew})
    assert loaded.recipe == fresh.recipe
    assert loaded.recipe_record == fresh.recipe_record


def test_a_checkpoint_keeps_its_recipe_when_another_is_recommended(tmp_path, monkeypatch):
    AegisVLAConfig().save_pretrained(tmp_path)
    monkeypatch.setattr(recipe, "RECOMMENDED", replace(RECOMMENDED, energy=0.5))
    assert AegisVLAConfig().energy == 0.5
    assert AegisVLAConfig.from_pretrained(tmp_path, cli_overrides=["--optimizer_lr=1e-4"]).energy == RECOMMENDED.energy


def test_a_checkpoint_from_before_the_backbone_decided_keeps_its_recipe(tmp_path):
    config = AegisVLAConfig(backbone="a/vlm", energy=0.97)
    decided_by = {k: v for k, v in config.recipe_record["decided_by"].items() if k != "backbone"}
    config.recipe_record = {"filled_in": [*config.recipe_record["filled_in"], "energy"], "decided_by": decided_by}
    config.save_pretrained(tmp_path)
    loaded = AegisVLAConfig.from_pretrained(tmp_path)
    assert (loaded.energy, loaded.directions) == (0.97, None)


@pytest.mark.parametrize("closes", [{"energy": RECOMMENDED.energy}, {"directions": 0.3}])
def test_the_penalty_moves_nothing_that_the_subspace_closes(make_policy, closes):
    policy = make_policy(penalty_weight=100.0, reference_every=1, **closes)
    before = {name: p.detach().clone() for name, p in policy.backbone.vlm.named_parameters()}
    projectors = policy.anchor.projectors(**closes)
    train(policy, 3)
    moved = 0
    for name, parameter in policy.backbone.vlm.named_parameters():
        if name not in projectors:
            assert torch.equal(parameter, before[name])
            continue
        change, projector = (parameter - before[name]).detach().double(), projectors[name].matrix().double()
        closed = torch.eye(len(projector), dtype=torch.float64) - projector
        # Each step rounds to the weight's own precision.
        assert (change @ closed).norm() <= 3e-6 * before[name].norm()
        moved += int(change.norm() > 0)
    assert moved > 10
