"""An exponential moving average of the weights that learn (EMA), to act with and to keep.

    average <- d average + (1 - d) weights      after each step t,      d = min(decay, t / (9 + t)), 0 after the first

The growing d is that of diffusers' `EMAModel`: a short training is not held back by the weights that it began with. A
step that the optimizer leaves out (`on_nonfinite="skip"`) is none.

Averaging keeps a hard subspace: each step leaves the weights in W0 + (the open directions), which is convex, so the
average is in it as well and its response to closed inputs is W0's. (An adapter's A likewise; see `knowledge.adapters`.)

At any time a parameter holds either its live weights or their average, and the optimizer's state the other. Whoever
asks the policy or the optimizer for its state finds the averages in the policy. So `model.safetensors` is what acts,
with or without this module; what training goes on with is in the optimizer's state beside it, and a resumed run is
exact.
"""

from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from aegis_policy.aegis import AegisAdamW, is_sharded

_OTHER = "other_weights"  # key in the optimizer's state: the average while training, the live weights while acting


class WeightAverages:
    """The averages of an optimizer's parameters.

    A parameter that has no gradient yet has not moved and is its own average. State: `optimizer`, None until an
    `AegisAdamW` has been built from groups that name this as their guard; whether the averages are in force; the rest
    is in the optimizer's state.

    Args:
        decay: In (0, 1): how much of the average stays in a step, once there have been enough of them.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.optimizer: AegisAdamW | None = None
        self._skipped = 0  # steps that the optimizer had left out when this one began
        self._unmoved: dict[Any, Tensor] = {}  # weights as they were before their first step, during that step
        self._in_force = False
        self._schedule = EMAModel([], decay=decay)

    def attach(self, optimizer: AegisAdamW) -> None:
        """Called by `AegisAdamW` when it takes over the groups.

        Raises:
            ValueError: If it has sharded parameters: inside a forward pass whole weights stand in their place, with
                which a shard cannot change places.
        """
        if any(is_sharded(p) for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"ema_decay={self.decay} exchanges weights with their averages, and fully_shard computes with copies "
                "of them. Leave --policy.ema_decay out, or train under data parallelism (DistributedDataParallel)."
            )
        self.put_in_force(False)
        self.optimizer = optimizer
        optimizer.register_step_pre_hook(lambda *_: self._begin())
        optimizer.register_step_post_hook(lambda *_: self._follow())
        optimizer.register_state_dict_pre_hook(lambda *_: self.put_in_force(True))
        optimizer.register_load_state_dict_post_hook(lambda *_: self._after_load())

    def require_attached(self) -> None:
        """Refuses to train without averaging.

        Raises:
            RuntimeError: If the optimizer was not built from the policy's groups.
        """
        if self.optimizer is None:
            raise RuntimeError(
                f"ema_decay={self.decay} averages the weights after each step of the optimizer, but no AegisAdamW was "
                "built from this policy's parameter groups. With lerobot-train leave --use_policy_training_preset at "
                "true (and drop --optimizer.type). In your own loop: optimizer = policy.config.get_optimizer_preset()"
                ".build(policy.get_optim_params()). To train without averaging: --policy.ema_decay=null."
            )

    @torch.no_grad()
    def put_in_force(self, averages: bool) -> None:
        """Has the parameters hold their averages, or their live weights; before the first step they are the same."""
        if averages == self._in_force:
            return
        others = self._others()
        for parameter, other in others.items():
            held = parameter.clone()
            parameter.copy_(other)
            other.copy_(held)
        self._in_force = averages and bool(others)

    def _begin(self) -> None:
        assert self.optimizer is not None, "called by the optimizer"
        self.put_in_force(False)
        self._skipped = self.optimizer.skipped_steps
        state = self.optimizer.state
        learning = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Until its first step a weight was its own average; Adam wants its state empty before that.
        self._unmoved = {p: p.detach().clone() for p in learning if _OTHER not in state.get(p, ())}

    @torch.no_grad()
    def _follow(self) -> None:
        assert self.optimizer is not None, "called by the optimizer"
        if self.optimizer.skipped_steps > self._skipped:
            return
        state = self.optimizer.state
        moved = [p for group in self.optimizer.param_groups for p in group["params"] if "step" in state.get(p, ())]
        if not moved:
            return
        for parameter in moved:
            if _OTHER not in state[parameter]:
                state[parameter][_OTHER] = self._unmoved.get(parameter, parameter).clone()
        self._unmoved = {}
        decay = self._schedule.get_decay(max(int(state[p]["step"]) for p in moved))
        get_ema_multi_avg_fn(decay)([state[p][_OTHER] for p in moved], moved, None)

    def _after_load(self) -> None:
        self._in_force = bool(self._others())  # a state is saved with the averages in the policy

    def _others(self) -> dict[Any, Tensor]:
        if self.optimizer is None:
            return {}
        return {p: state[_OTHER] for p, state in self.optimizer.state.items() if _OTHER in state}
