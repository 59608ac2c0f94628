"""A bounded penalty grows while its distance is above the bound, fades below it, and is remembered."""

import math

import pytest
import torch

from aegis_policy.knowledge.controller import GAIN, LIMIT, PenaltyController
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.conftest import make_batch, train


def test_the_scale_follows_the_excess_within_its_limits():
    controller = PenaltyController(bound=0.5)
    assert controller(torch.tensor(0.75)).item() == pytest.approx(math.exp(GAIN * 0.5))
    assert controller(torch.tensor(50.0)).item() == pytest.approx(math.exp(GAIN * 1.5))  # clipped to one gain
    assert controller(torch.tensor(0.0)).item() == pytest.approx(math.exp(GAIN * 0.5))
    for _ in range(1000):
        controller(torch.tensor(9.0))
    assert controller.log_scale.item() == pytest.approx(LIMIT)
    assert not controller(torch.tensor(9.0, requires_grad=True)).requires_grad


def test_a_weight_that_is_too_small_grows_until_it_holds(make_policy):
    def distance(steps: int = 80, **more) -> float:
        torch.manual_seed(0)
        policy = make_policy(
            knowledge="none", reference="features", penalty_weight=0.3, optimizer_lr=1e-3, **more
        ).train()
        optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
        late = []
        for step in range(steps):
            loss, metrics = policy.forward(make_batch(policy, seed=step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            policy.update()
            late.append(metrics["penalty"] / (0.3 * metrics.get("penalty_scale", 1.0)))
        return sum(late[-20:]) / 20

    fixed = distance()
    assert distance(penalty_bound=0.3 * fixed) < 0.75 * fixed


def test_a_resumed_training_goes_on_with_the_scale_it_had(make_policy, tmp_path):
    policy = make_policy(knowledge="none", reference="features", penalty_weight=1.0, penalty_bound=1e-4)
    train(policy, 3)
    policy.save_pretrained(tmp_path)
    scale = policy.penalty_controller.log_scale
    assert scale != 0
    assert torch.equal(AegisVLAPolicy.from_pretrained(tmp_path).penalty_controller.log_scale, scale)


def test_asking_does_not_adapt_and_the_log_tells_the_scale(make_policy):
    policy = make_policy(knowledge="none", reference="features", penalty_weight=1.0, penalty_bound=1e-4)
    batch = make_batch(policy)
    policy.eval()
    policy.forward(batch)
    assert policy.penalty_controller.log_scale == 0
    _, metrics = policy.train().forward(batch)
    assert metrics["penalty_scale"] == pytest.approx(policy.penalty_controller.log_scale.exp().item())


@pytest.mark.parametrize("options", [{"penalty_bound": 0.1}, {"penalty_bound": -1.0, "penalty_weight": 1.0}])
def test_a_bound_without_a_penalty_is_refused(make_policy, options):
    with pytest.raises(ValueError, match="both must be positive"):
        make_policy(knowledge="none", reference="features" if "penalty_weight" in options else "moments", **options)
