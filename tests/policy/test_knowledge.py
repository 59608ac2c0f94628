"""The guarantee, seen from the policy: what may move, where, and who refuses."""

import shutil

import pytest
import torch

from aegis_policy.build_anchor import main as aegis_anchor
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge import sources
from aegis_policy.knowledge.drift import anchor_distances, watch_outputs
from aegis_policy.knowledge.sources import build_anchor
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.network.prompt import encode_prompts
from aegis_policy.processor_aegis_vla import vlm_inputs
from tests.policy.conftest import make_batch, make_samples, train
from tests.policy.tiny_backbones import DIFFERENT


def outputs_on(policy, samples):
    inputs = encode_prompts(policy.vlm.processor, [s.images for s in samples], [s.question for s in samples])
    with torch.no_grad(), watch_outputs(policy.backbone.layers()) as outputs:
        policy.backbone.eval().encode(inputs)
    return list(outputs.values()), inputs["attention_mask"].bool()


@pytest.mark.parametrize("family", DIFFERENT)
def test_with_every_anchor_direction_closed_the_answers_to_the_anchor_stay(make_policy, tmp_path, family):
    samples = make_samples(1)  # fewer tokens than channels, so that open directions are left
    untrained = make_policy(family)
    path = tmp_path / "anchor.safetensors"
    build_anchor(untrained.backbone, untrained.vlm.processor, samples).save(path)
    policy = make_policy(family, anchor_path=str(path), epsilon=None, energy=1.0, optimizer_lr=1e-2)
    before, mask = outputs_on(policy, samples)
    weights = {n: p.detach().clone() for n, p in policy.backbone.named_parameters() if p.requires_grad}
    train(policy, 8)
    moved = sum((policy.backbone.get_parameter(n) - w).norm() / w.norm() for n, w in weights.items()) / len(weights)
    assert moved > 0.01
    for old, new in zip(before, outputs_on(policy, samples)[0], strict=True):
        # second moments are float32: directions with less than about 1e-3 of the largest input are not closed
        assert (old - new)[mask].norm() < 1e-2 * old[mask].norm()


def test_unprotected_the_same_training_moves_them_far(make_policy):
    policy = make_policy(knowledge="none", optimizer_lr=1e-2)
    before, mask = outputs_on(policy, make_samples(1))
    train(policy, 8)
    after = outputs_on(policy, make_samples(1))[0]
    assert (before[-1] - after[-1])[mask].norm() > 0.2 * before[-1][mask].norm()


def test_under_subspace_only_anchored_linear_maps_learn(make_policy):
    policy = make_policy(projection="subspace")
    learns = {n for n, p in policy.backbone.vlm.named_parameters() if p.requires_grad}
    assert learns == set(policy.anchor.weights)
    assert not any("norm" in n or "bias" in n or "embed" in n for n in learns)


@pytest.mark.parametrize("projection", ["gradient", "update"])
def test_every_weight_that_learns_is_in_a_protected_layer(make_policy, projection):
    policy = make_policy(projection=projection)
    groups = policy.get_optim_params()
    protected = {id(p) for g in groups if "layer" in g for p in g["params"]}
    assert {id(p) for p in policy.backbone.parameters() if p.requires_grad} == protected


def test_the_anchor_gradient_is_that_of_the_distance(make_policy):
    policy = make_policy(projection="gradient").train()
    policy.config.get_optimizer_preset().build(policy.get_optim_params())
    batch = make_batch(policy)
    policy.forward(batch)[0].backward()
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    weight = policy.backbone.vlm.get_parameter(name)
    direction = torch.randn_like(weight)

    def distance(shift):
        with torch.no_grad():
            weight.add_(shift * direction)
            with watch_outputs(policy.backbone.layers()) as outputs:
                prefix = policy._encode(vlm_inputs(batch))
            weight.sub_(shift * direction)
            return anchor_distances(outputs, prefix.mask, policy.anchor).double().sum()

    h = 1e-3
    slope = (distance(h) - distance(-h)) / (2 * h)
    # central difference in float32: relative error of about 1e-3
    torch.testing.assert_close((weight.anchor_grad * direction).sum().double(), slope, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("projection", ["subspace", "gradient", "update"])
def test_the_log_names_loss_distances_and_projection(make_policy, projection):
    policy = make_policy(projection=projection)
    train(policy, 1)
    _, metrics = policy.forward(make_batch(policy))
    expected = {"flow_loss", "anchor_distance", "anchor_distance_00", "energy_shed", "projected_share", "closed_share"}
    assert expected <= set(metrics)
    assert all(isinstance(v, float) for v in metrics.values())
    total = sum(v for k, v in metrics.items() if k.startswith("anchor_distance_"))
    assert abs(total - metrics["anchor_distance"]) < 1e-4 * (1 + total)


def test_a_foreign_optimizer_is_refused_before_the_first_step(make_policy):
    policy = make_policy().train()
    torch.optim.AdamW(policy.parameters())
    with pytest.raises(RuntimeError, match="use_policy_training_preset"):
        policy.forward(make_batch(policy))


def test_a_loop_that_does_not_count_its_steps_is_refused(make_policy):
    policy = make_policy().train()
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    policy.forward(make_batch(policy))[0].backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"policy\.update\(\)"):
        policy.forward(make_batch(policy))
    policy.update()
    policy.forward(make_batch(policy))


def test_a_missing_anchor_file_is_refused(make_policy):
    with pytest.raises(FileNotFoundError, match="aegis-anchor"):
        make_policy(anchor_path="/nowhere/anchor.safetensors")


def test_an_anchor_of_other_weights_is_refused(make_policy, tmp_path):
    policy = make_policy()
    with torch.no_grad():
        policy.backbone.vlm.get_input_embeddings().weight.add_(1)
    build_anchor(policy.backbone, policy.vlm.processor, make_samples(4)).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="fingerprint"):
        make_policy(anchor_path=str(tmp_path / "other.safetensors"))


def test_an_anchor_that_a_checkpoint_lacks_is_that_of_the_backbone_before_it_was_trained(make_policy, tmp_path):
    own = make_policy()
    folder = tmp_path / "backbone"  # without an anchor beside it
    shutil.copytree(own.config.backbone, folder, ignore=shutil.ignore_patterns("anchor.safetensors"))
    naive = make_policy(knowledge="none", backbone=str(folder), optimizer_lr=1e-2)
    assert naive.anchor is None
    train(naive, 2)
    naive.save_pretrained(tmp_path / "naive")
    own.anchor.save(folder / "anchor.safetensors")  # built when the policy had been trained already
    assert AegisVLAPolicy.from_pretrained(tmp_path / "naive").anchor is None
    config = AegisVLAConfig.from_pretrained(tmp_path / "naive", cli_overrides=["--knowledge=aegis"])
    protected = AegisVLAPolicy.from_pretrained(tmp_path / "naive", config=config)
    assert protected.anchor.fingerprint == own.anchor.fingerprint


def test_a_checkpoint_goes_on_with_the_anchor_that_it_has(make_policy, tmp_path):
    policy = make_policy()
    policy.save_pretrained(tmp_path)
    option = f"--anchor_unit_inputs={str(not policy.anchor.unit_inputs).lower()}"
    config = AegisVLAConfig.from_pretrained(tmp_path, cli_overrides=[option])
    with pytest.raises(ValueError, match="than this checkpoint has"):
        AegisVLAPolicy.from_pretrained(tmp_path, config=config)


def test_an_anchor_built_on_start_counts_each_token_the_same_and_a_file_is_taken_as_it_is(make_policy, tmp_path):
    plain_file = tmp_path / "plain.safetensors"
    untrained = make_policy()
    samples = make_samples(4)
    build_anchor(untrained.backbone, untrained.vlm.processor, samples, unit_inputs=False).save(plain_file)
    assert not make_policy(anchor_path=str(plain_file)).anchor.unit_inputs
    with pytest.raises(ValueError, match="aegis-anchor --unit-inputs"):
        make_policy(anchor_path=str(plain_file), anchor_unit_inputs=True)
    with pytest.raises(ValueError, match="projection=gradient has none"):
        make_policy(projection="gradient", anchor_unit_inputs=True)

    beside = make_policy("nano").anchor
    built = make_policy("nano", anchor_samples=4, anchor_unit_inputs=not beside.unit_inputs)
    assert built.anchor.unit_inputs is not beside.unit_inputs
    assert built.anchor.samples == 4
    unit, plain = (built.anchor, beside) if built.anchor.unit_inputs else (beside, built.anchor)
    for weight in unit.weights:
        assert unit.second_moment(weight).trace() == pytest.approx(1, rel=1e-3)
    assert any(plain.second_moment(weight).trace() > 2 for weight in plain.weights)
    built.save_pretrained(tmp_path)
    assert type(built).from_pretrained(tmp_path).anchor.unit_inputs is built.anchor.unit_inputs


def test_batches_are_never_fewer_than_the_places_that_their_tokens_are_counted_at(make_policy, monkeypatch):
    """Each batch counts other tokens: of too few, some columns of every image would be seen in none."""
    monkeypatch.setattr(sources, "TOKEN_STRIDES", ((6, 16),))
    untrained, samples = make_policy(), make_samples(6)
    backbone, processor = untrained.backbone, untrained.vlm.processor
    by_default = build_anchor(backbone, processor, samples, batch_size=2)
    of_three = build_anchor(backbone, processor, samples, batch_size=2, token_stride=3)
    one, other = by_default.state_dict(), of_three.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(SystemExit, match="at most 3"):
        aegis_anchor(["--count=6", "--batch-size=2", "--token-stride=4", "--out=anchor.safetensors"])
    with pytest.raises(SystemExit, match="--batch-size must be at least 1"):
        aegis_anchor(["--batch-size=0", "--out=anchor.safetensors"])


def test_the_anchor_does_not_depend_on_how_samples_are_batched(make_policy):
    policy = make_policy()
    samples = make_samples(6)
    one, all_at_once = (build_anchor(policy.backbone, policy.vlm.processor, samples, batch_size=b) for b in (1, 6))
    for layer in one.layers:
        torch.testing.assert_close(one.mean(layer), all_at_once.mean(layer), atol=1e-5, rtol=1e-4)
    for weight in one.weights:
        torch.testing.assert_close(one.second_moment(weight), all_at_once.second_moment(weight), atol=1e-5, rtol=1e-3)
