"""LeRobot's contract, and what the policy promises beyond it."""

import pytest
import torch

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.processor_aegis_vla import vlm_inputs
from tests.policy.conftest import make_batch, train


def test_an_action_chunk_has_the_shape_that_the_robot_expects(make_policy):
    policy = make_policy()
    assert policy.predict_action_chunk(make_batch(policy, training=False)).shape == (3, 5, 4)


def test_the_queue_hands_out_one_chunk_before_it_asks_for_the_next(make_policy):
    policy = make_policy(chunk_size=5, n_action_steps=3)
    batch = make_batch(policy, training=False)
    noise = torch.randn(3, 5, 4)
    chunk = policy.predict_action_chunk(batch, noise)
    policy.reset()
    taken = [policy.select_action(batch, noise) for _ in range(3)]
    assert torch.equal(torch.stack(taken, dim=1), chunk[:, :3])
    again = policy.select_action(batch, -noise)
    assert torch.equal(again, policy.predict_action_chunk(batch, -noise)[:, 0])


@pytest.mark.parametrize(("cameras", "state_size"), [(1, 0), (1, 6), (2, 1), (3, 14)])
def test_any_number_of_cameras_and_any_state_size_trains(make_policy, cameras, state_size):
    policy = make_policy(cameras=cameras, state_size=state_size)
    train(policy, 2)
    assert policy.predict_action_chunk(make_batch(policy, training=False)).isfinite().all()


def test_the_state_reaches_the_actions_and_the_instruction_does_too(make_policy):
    policy = make_policy()
    noise = torch.randn(3, 5, 4)
    batch = make_batch(policy, training=False)
    chunk = policy.predict_action_chunk(batch, noise)
    moved = {**batch, "observation.state": batch["observation.state"] + 1}
    assert not torch.allclose(policy.predict_action_chunk(moved, noise), chunk)
    ids = batch["observation.vlm.input_ids"].clone()
    ids[:, -3] = 7
    assert not torch.allclose(policy.predict_action_chunk({**batch, "observation.vlm.input_ids": ids}, noise), chunk)


def test_padding_actions_do_not_enter_the_loss(make_policy):
    policy = make_policy(knowledge="none")
    batch = make_batch(policy)
    batch["action_is_pad"][0, 3:] = True
    noise, time = torch.randn(3, 5, 4), torch.rand(3)
    loss, _ = policy.forward(batch, noise, time)
    t = time[:, None, None]
    noisy = t * noise + (1 - t) * batch["action"]
    velocity = policy.expert(noisy, time, state=batch["observation.state"], prefix=policy._encode(vlm_inputs(batch)))
    error = (velocity - (noise - batch["action"])).square()
    torch.testing.assert_close(loss, error[~batch["action_is_pad"]].mean())


def test_a_loss_a_sample_averages_to_the_loss_of_the_batch(make_policy):
    policy = make_policy(knowledge="none")
    batch = make_batch(policy)
    noise, time = torch.randn(3, 5, 4), torch.rand(3)
    each, _ = policy.forward(batch, noise, time, reduction="none")
    assert each.shape == (3,)
    torch.testing.assert_close(each.mean(), policy.forward(batch, noise, time)[0])


def test_a_saved_policy_loads_to_the_same_action_chunk_bit_for_bit(make_policy, tmp_path):
    policy = make_policy()
    train(policy, 2)
    policy.save_pretrained(tmp_path)
    loaded = AegisVLAPolicy.from_pretrained(tmp_path)
    batch, noise = make_batch(policy, training=False), torch.randn(3, 5, 4)
    assert torch.equal(loaded.predict_action_chunk(batch, noise), policy.predict_action_chunk(batch, noise))
    assert int(loaded.progress.training_steps) == 2


def test_the_anchor_travels_in_the_checkpoint(make_policy, tmp_path):
    policy = make_policy()
    train(policy, 2)
    policy.save_pretrained(tmp_path)
    loaded = AegisVLAPolicy.from_pretrained(tmp_path)
    assert loaded.anchor.fingerprint == policy.anchor.fingerprint
    own = policy.anchor.projectors(epsilon=0.3)
    for name, projector in loaded.anchor.projectors(epsilon=0.3).items():
        assert torch.equal(projector.matrix(), own[name].matrix())


def test_frozen_and_stop_gradient_leave_every_weight_of_the_backbone_alone(make_policy):
    for knowledge in ("frozen", "stop_gradient"):
        policy = make_policy(knowledge=knowledge)
        before = {n: p.detach().clone() for n, p in policy.backbone.named_parameters()}
        train(policy, 3)
        assert all(torch.equal(p, before[n]) for n, p in policy.backbone.named_parameters())


def test_without_vision_tuning_only_language_weights_move(make_policy):
    for options in ({"knowledge": "none"}, {"projection": "subspace"}, {"projection": "gradient"}):
        policy = make_policy(tune_vision=False, **options)
        before = {n: p.detach().clone() for n, p in policy.backbone.vlm.named_parameters()}
        train(policy, 3)
        moved = [n for n, p in policy.backbone.vlm.named_parameters() if not torch.equal(p, before[n])]
        assert moved and all(policy.backbone.is_language(n) for n in moved)


def test_bad_options_are_refused_with_the_choices(make_policy):
    with pytest.raises(ValueError, match="aegis, none, stop_gradient, frozen"):
        make_policy(knowledge="amnesia")
    for two in ({"epsilon": 0.3, "energy": 0.9}, {"directions": 0.3, "energy": 0.9}):
        with pytest.raises(ValueError, match=r"Exactly one of energy, directions .* --policy\.energy=null"):
            make_policy(**two)
    with pytest.raises(ValueError, match="directions is a share"):
        make_policy(directions=30)
    with pytest.raises(ValueError, match="n_obs_steps"):
        make_policy(n_obs_steps=2)
    with pytest.raises(ValueError, match="n_action_steps"):
        make_policy(chunk_size=4, n_action_steps=5)


def test_a_missing_camera_or_instruction_is_named(make_policy):
    policy = make_policy(cameras=2)
    batch = make_batch(policy, training=False)
    with pytest.raises(ValueError, match=r"observation\.vlm"):
        policy.predict_action_chunk({k: v for k, v in batch.items() if "vlm" not in k})


def test_the_expert_is_listed_first_so_that_the_logged_rate_is_its_own(make_policy):
    policy = make_policy(optimizer_lr=2e-3, optimizer_backbone_lr=1e-5)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    assert optimizer.param_groups[0]["lr"] == 2e-3
    assert {g["lr"] for g in optimizer.param_groups[1:]} == {1e-5}
