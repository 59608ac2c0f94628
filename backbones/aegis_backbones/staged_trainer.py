"""What the trainers of both backbones share: two stages, threads that share a batch, and a state that resumes exactly.

A stage has an optimizer of its own. Pictures depend on seed, stage and step alone, questions about them also on how
many workers share a batch; families that are answered worse are asked more. A checkpoint holds weights, heads,
optimizer, running errors, stage, step and seconds.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aegis_backbones.questions import FAMILIES

STAGES = ("look", "answer")
WARM_UP = 100  # steps until a stage's peak learning rate
WEIGHT_DECAY = 0.02
LARGEST_SHIFT = 8  # pixels that pictures are moved by while looking is learned

Share = tuple[tuple[Tensor | None, ...], dict[str, float]]  # gradients of all parameters, and readings


def learning_rate(peak: float, *, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, then a cosine over `progress` in [0, 1] down to a hundredth."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class StagedTrainer(ABC):
    """State: heads, optimizer of the running stage, its step and seconds so far, running error of each family.

    Args:
        parameters: All that learn, the heads' among them.
        heads: What reads the model while it is trained and is thrown away afterwards.
        peak_rates: Stage -> peak learning rate.
        seed: Of weights and batches.
        workers: Threads that share a batch.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        heads: nn.Module,
        *,
        peak_rates: Mapping[str, float],
        seed: int,
        workers: int,
    ) -> None:
        self.parameters, self.heads, self.peak_rates = list(parameters), heads, peak_rates
        self.seed, self.workers = seed, workers
        self.family_error = np.ones(len(FAMILIES))
        self.stage, self.step, self.seconds = STAGES[0], 0, 0.0
        self.optimizer = self._new_optimizer()
        self.pool = ThreadPoolExecutor(workers)

    @abstractmethod
    def _new_optimizer(self) -> torch.optim.Optimizer:
        """Of the running stage; each group's `rate` is multiplied with the learning rate."""

    @abstractmethod
    def _weights(self) -> dict[str, Tensor]:
        """What is trained of the model: the tensors themselves."""

    def start_stage(self, stage: str) -> None:
        """Begin a stage with a fresh optimizer."""
        self.stage, self.step, self.seconds = stage, 0, 0.0
        self.optimizer = self._new_optimizer()

    def _batch_generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, STAGES.index(self.stage), self.step])

    def _take_step(self, shares: Sequence[Share], progress: float) -> list[dict[str, float]]:
        """Average the shares' gradients, step, and keep count of the families; returns the readings."""
        for i, parameter in enumerate(self.parameters):
            gradients = [found for gradient, _ in shares if (found := gradient[i]) is not None]
            parameter.grad = torch.stack(gradients).sum(0).div_(len(shares)) if gradients else None
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = learning_rate(self.peak_rates[self.stage], step=self.step, progress=progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        self.optimizer.step()
        self.step += 1
        readings = [reading for _, reading in shares]
        for i, family in enumerate(FAMILIES):
            seen = [r[family] for r in readings if family in r]
            if seen:
                self.family_error[i] += 0.05 * (1.0 - float(np.mean(seen)) - self.family_error[i])
        return readings

    def save(self, path: Path) -> None:
        """Write a checkpoint in one piece."""
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "weights": self._weights(),
                "heads": self.heads.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "family_error": torch.from_numpy(self.family_error),
                "stage": self.stage,
                "step": self.step,
                "seconds": self.seconds,
                "seed": self.seed,
            },
            temporary,
        )
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: If it belongs to another seed.
        """
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(
                f"{path} was written with --seed {state['seed']}, this run has --seed {self.seed}. Use another --out, "
                "or the same seed."
            )
        with torch.no_grad():
            for name, tensor in self._weights().items():
                tensor.copy_(state["weights"][name])
        self.heads.load_state_dict(state["heads"])
        self.family_error = state["family_error"].numpy()
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])


def mean_readings(readings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each reading's mean over those who have it."""
    names = dict.fromkeys(name for reading in readings for name in reading)
    return {name: float(np.mean([r[name] for r in readings if name in r])) for name in names}
