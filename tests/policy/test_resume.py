"""A resumed run is the uninterrupted one."""

from dataclasses import replace

import pytest
import torch
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.conftest import make_batch, take_steps, train


def test_noise_depends_on_seed_and_step_and_on_nothing_drawn_in_between(make_policy):
    policy = make_policy()
    action = make_batch(policy)["action"]
    first = policy.progress.draw(action, micro_batch=0)
    torch.randn(100)
    assert all(torch.equal(a, b) for a, b in zip(first, policy.progress.draw(action, micro_batch=0), strict=True))
    policy.progress.training_steps += 1
    assert not any(torch.equal(a, b) for a, b in zip(first, policy.progress.draw(action, micro_batch=0), strict=True))


def test_held_out_batches_have_noise_of_their_own_and_the_same_in_every_evaluation(make_policy):
    policy = make_policy()
    action = make_batch(policy)["action"]

    def evaluation():
        return [torch.cat([part.flatten() for part in policy.progress.draw(action, micro_batch=None)]) for _ in "ab"]

    first = evaluation()
    assert not torch.equal(*first)
    policy.progress.training_steps += 1
    policy.progress.draw(action, micro_batch=0)  # training goes on, then comes the next
    assert all(torch.equal(a, b) for a, b in zip(first, evaluation(), strict=True))


def test_a_training_on_a_cpu_goes_on_on_another_device(make_policy, tmp_path):
    """What the step is made with there is not part of the optimizer's state. Another device: torch's without memory."""
    policy = make_policy(knowledge="none")
    trained = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, trained, range(1))
    save_optimizer_state(trained, tmp_path)
    elsewhere = [
        {**group, "params": [torch.nn.Parameter(p.to("meta")) for p in group["params"]]}
        for group in policy.get_optim_params()
    ]
    optimizer = load_optimizer_state(policy.config.get_optimizer_preset().build(elsewhere), tmp_path)
    assert {state["exp_avg"].device.type for state in optimizer.state.values()} == {"meta"}


def test_an_optimizer_of_another_projection_than_the_policys_is_refused(make_policy):
    """LeRobot takes it from the checkpoint, whatever `--policy.projection` says when a training is resumed."""
    policy = make_policy(projection="gradient")
    kept = replace(policy.config.get_optimizer_preset(), projection="update")
    with pytest.raises(ValueError, match=r"--optimizer\.projection=gradient"):
        kept.build(policy.get_optim_params())


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
