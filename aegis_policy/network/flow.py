"""Flow matching between noise and action chunks: path, time law, samplers.

One convention throughout, LeRobot's and openpi's: `t = 1` is noise, `t = 0` the action,

    x_t = t * noise + (1 - t) * action,        dx/dt = noise - action,

and times are drawn from `Beta(1.5, 1)` scaled into [0.001, 1], so that noisy times are seen more often
(pi0, arXiv 2410.24164, appendix B).
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from lerobot.policies.common.flow_matching import euler_integrate, sample_time_beta
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, H, A), t (B,)) -> dx/dt (B, H, A)

# Training times are scale * Beta(alpha, beta) + offset.
TIME_LAW = {"alpha": 1.5, "beta": 1.0, "scale": 0.999, "offset": 0.001}
SCHEDULERS: dict[str, Any] = {
    "diffusers_euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
}
SAMPLERS = ("euler", *SCHEDULERS)


def sample_time(batch: int, device: torch.device | str) -> Tensor:
    """Training times (B,), from the global random generator."""
    return sample_time_beta(batch, device, **TIME_LAW)


def interpolate(action: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Point and velocity of the straight path: (B, H, A), (B, H, A), (B,) -> `x_t`, `dx/dt`."""
    t = time[:, None, None].to(action.dtype)
    return t * noise + (1 - t) * action, noise - action


def integrate(velocity: Velocity, noise: Tensor, *, steps: int, sampler: str = "euler", **rtc: Any) -> Tensor:
    """Carries `noise` (B, H, A) from t = 1 to t = 0.

    Args:
        velocity: The learned field.
        noise: Start of the path.
        steps: Times at which the field is evaluated (Heun evaluates it twice at each but the last).
        sampler: One of `SAMPLERS`.
        **rtc: Real-time chunking, passed on to LeRobot's Euler loop.

    Raises:
        ValueError: For an unknown sampler, or real-time chunking with another sampler than LeRobot's Euler.
    """
    if sampler == "euler":
        return euler_integrate(velocity, noise, steps, **rtc)
    if sampler not in SCHEDULERS:
        raise ValueError(f"Unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}.")
    if rtc.get("rtc_enabled"):
        raise ValueError(f"Real-time chunking guides LeRobot's Euler loop only: set sampler=euler, not {sampler}.")
    scheduler = SCHEDULERS[sampler]()
    _set_uniform_times(scheduler, steps)
    x = noise
    for tick in scheduler.timesteps:
        t = (tick / scheduler.config.num_train_timesteps).to(x).expand(x.shape[0])
        x = scheduler.step(velocity(x, t), tick, x, return_dict=False)[0]
    return x


def _set_uniform_times(scheduler: Any, steps: int) -> None:
    """Times 1, 1 - 1/steps, ..., 1/steps (the schedulers append 0), whatever the scheduler's own default spacing."""
    if scheduler.order == 1:
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        return
    # The Heun scheduler spaces its own times between its largest and smallest training sigma.
    scheduler.sigma_max, scheduler.sigma_min = 1.0, 1.0 / steps
    scheduler.set_timesteps(steps)
