import pytest
import torch

from aegis_policy.network.expert import masked_mse
from aegis_policy.network.flow import integrate, interpolate, sample_time


def curved(x, t):
    """A field without a closed straight path."""
    return torch.sin(3 * x) + t[:, None, None] * x


def test_the_path_is_noise_at_one_and_action_at_zero():
    action, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(interpolate(action, noise, torch.ones(2))[0], noise)
    assert torch.equal(interpolate(action, noise, torch.zeros(2))[0], action)


def test_the_velocity_is_the_derivative_of_the_path():
    action, noise = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    time, h = torch.rand(2, dtype=torch.float64), 1e-6
    later, earlier = (interpolate(action, noise, time + d)[0] for d in (h, -h))
    torch.testing.assert_close((later - earlier) / (2 * h), interpolate(action, noise, time)[1], atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("sampler", ["euler", "diffusers_euler", "heun"])
def test_every_sampler_recovers_the_action_when_the_velocity_is_known(sampler):
    action, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    result = integrate(lambda x, t: noise - action, noise, steps=7, sampler=sampler)
    torch.testing.assert_close(result, action, atol=1e-5, rtol=1e-5)


def test_lerobots_euler_and_diffusers_euler_agree():
    noise = torch.randn(2, 3, 4)
    ours, theirs = (integrate(curved, noise, steps=9, sampler=s) for s in ("euler", "diffusers_euler"))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # rounding of times through 1000 * sigma


def test_heun_is_second_order_and_euler_first():
    noise = torch.randn(2, 3, 4)
    exact = integrate(curved, noise, steps=4000)

    def error(sampler, steps):
        return (integrate(curved, noise, steps=steps, sampler=sampler) - exact).norm()

    assert error("heun", 10) < 0.3 * error("euler", 10)
    assert 1.6 < error("euler", 10) / error("euler", 20) < 2.6


def test_an_unknown_sampler_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="euler, diffusers_euler, heun"):
        integrate(curved, torch.zeros(1, 1, 1), steps=1, sampler="leapfrog")


def test_real_time_chunking_is_refused_outside_lerobots_euler():
    with pytest.raises(ValueError, match="Real-time chunking"):
        integrate(curved, torch.zeros(1, 1, 1), steps=1, sampler="heun", rtc_enabled=True)


def test_times_lie_in_the_unit_interval_and_lean_towards_noise():
    torch.manual_seed(0)
    time = sample_time(4000, "cpu")
    assert time.min() > 0 and time.max() <= 1
    assert abs(time.mean() - (0.999 * 1.5 / 2.5 + 0.001)) < 0.02  # mean of Beta(1.5, 1); 0.02 is five standard errors


def test_padding_actions_do_not_count():
    velocity, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    is_pad = torch.tensor([[False, False, True], [True, True, True]])
    loss = masked_mse(velocity, target, is_pad=is_pad)
    torch.testing.assert_close(loss[0], (velocity[0, :2] - target[0, :2]).square().mean())
    assert loss[1] == 0
