"""Real-time chunking as lerobot-rollout asks for it: set after loading, then called with what is left of a chunk."""

import pytest
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import _normalize_prev_actions_length, supports_rtc_inference

from aegis_policy.real_time_chunking import without_padding
from tests.policy.conftest import make_batch


@pytest.fixture
def guided(make_policy):
    """A policy (chunks of 5 actions of size 4) in which real-time chunking was switched on after it was built."""
    policy = make_policy()
    policy.config.rtc_config = RTCConfig(execution_horizon=3)
    policy.init_rtc_processor()
    return policy


def chunk_of(policy, **rtc):
    torch.manual_seed(0)
    noise = torch.randn(1, 5, 4)
    return policy.predict_action_chunk(make_batch(policy, 1, training=False), noise, **rtc)


def test_lerobot_accepts_the_policy_for_asynchronous_inference(make_policy):
    assert supports_rtc_inference(make_policy())


def test_the_first_chunk_is_the_unguided_one(make_policy, guided):
    guided.load_state_dict(make_policy().state_dict(), strict=False)
    unguided = chunk_of(guided, inference_delay=0, prev_chunk_left_over=None)
    guided.config.rtc_config = None
    guided.init_rtc_processor()
    assert torch.equal(unguided, chunk_of(guided))


def test_actions_that_pass_during_inference_stay_those_of_the_chunk_before_and_late_ones_are_free(guided):
    free = chunk_of(guided, inference_delay=0, prev_chunk_left_over=None)
    before = torch.randn(3, 4)
    chunk = chunk_of(guided, inference_delay=2, prev_chunk_left_over=before)

    def distance(actions):
        return (actions[0, :2] - before[:2]).norm()

    # Ten Euler steps of 1/10 with a guidance weight of at least 1 and at most 10: what is left of the error is small.
    assert distance(chunk) < 0.2 * distance(free)
    # The last two actions are beyond the horizon. They move only as far as they attend to the guided ones.
    assert (chunk[0, 3:] - free[0, 3:]).norm() < 0.5 * (chunk[0, :2] - free[0, :2]).norm()


@pytest.mark.parametrize("left", [0, 1, 2])
def test_zeros_that_lerobot_fills_up_with_guide_nothing(guided, left):
    before = torch.randn(left, 4)
    padded = _normalize_prev_actions_length(before, target_steps=3)
    expected = chunk_of(guided, inference_delay=1, prev_chunk_left_over=before if left else None)
    assert torch.equal(chunk_of(guided, inference_delay=1, prev_chunk_left_over=padded), expected)


def test_padding_is_taken_from_the_end_alone():
    inner_zero = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert torch.equal(without_padding(inner_zero), inner_zero[:3])
    assert torch.equal(without_padding(inner_zero[None]), inner_zero[None, :3])
    assert without_padding(None) is None


def test_a_horizon_longer_than_the_chunk_is_refused_before_the_robot_moves(make_policy):
    policy = make_policy()
    policy.config.rtc_config = RTCConfig()  # LeRobot's default of ten actions
    with pytest.raises(ValueError, match="predicts 5"):
        policy.init_rtc_processor()
    policy.config.rtc_config = RTCConfig(enabled=False)
    policy.init_rtc_processor()


def test_another_sampler_is_refused_before_the_robot_moves(make_policy):
    policy = make_policy(sampler="heun")
    policy.config.rtc_config = RTCConfig(execution_horizon=3)
    with pytest.raises(ValueError, match="sampler=euler"):
        policy.init_rtc_processor()
