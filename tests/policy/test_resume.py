"""A resumed run is the uninterrupted one."""

import torch

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.conftest import make_batch, train


def test_noise_depends_on_seed_and_step_and_on_nothing_drawn_in_between(make_policy):
    policy = make_policy()
    action = make_batch(policy)["action"]
    first = policy.progress.draw(action, micro_batch=0)
    torch.randn(100)
    assert all(torch.equal(a, b) for a, b in zip(first, policy.progress.draw(action, micro_batch=0), strict=True))
    policy.progress.training_steps += 1
    assert not any(torch.equal(a, b) for a, b in zip(first, policy.progress.draw(action, micro_batch=0), strict=True))


def test_drawing_leaves_the_global_generator_alone(make_policy):
    policy = make_policy()
    action = make_batch(policy)["action"]
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    policy.progress.draw(action, micro_batch=0)
    assert torch.equal(torch.randn(3), expected)


def test_a_reloaded_policy_draws_on_where_the_saved_one_stopped(make_policy, tmp_path):
    policy = make_policy()
    train(policy, 2)
    policy.save_pretrained(tmp_path)
    loaded = AegisVLAPolicy.from_pretrained(tmp_path)
    action = make_batch(policy)["action"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            policy.progress.draw(action, micro_batch=0), loaded.progress.draw(action, micro_batch=0), strict=True
        )
    )
