"""Restricting what several steps add up to, once for all of them.

A projector is linear, so the steps of k iterations can be restricted together, which takes a k-th of the products:

    W <- W0 + (W - W0) P      after every k-th step, W0 being the weight before its first

That is what restricting each step would have left, but for where the gradients in between are taken: there a weight is
off what is open by less than k steps. So whoever acts with the weights, asks them or saves them goes through
`put_in_force` and gets restricted ones. Rounding does not add up, for each projection begins at W0.

What it costs: W0, in bfloat16 where that holds it exactly, as it does for a model that was published in it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from aegis_policy.aegis.precision import wide
from aegis_policy.aegis.projection import ProjectionReport, report_of
from aegis_policy.aegis.restrictions import Restrictions
from aegis_policy.aegis.shards import is_sharded

_ORIGIN = "origin"  # key in the optimizer's state: W0


class Accumulation:
    """What the protected weights of one optimizer have moved since they were last restricted.

    State: `pending`, steps since then; the live weights while restricted ones are in force; the origins are in the
    optimizer's state, so that they are saved and move with it.

    Args:
        every: Steps between two projections, at least 2.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.pending = 0
        self._live: dict[Tensor, Tensor] = {}

    @property
    def due(self) -> bool:
        """Whether the steps that are pending are as many as go together."""
        return self.pending >= self.every

    def require_whole(self, params: Iterable[Tensor]) -> None:
        """Refuses sharded parameters.

        Raises:
            ValueError: With the remedy.
        """
        if any(is_sharded(p) for p in params):
            raise ValueError(
                f"projection_every={self.every} exchanges weights with restricted ones to act with, and fully_shard "
                "computes with copies of them. Leave it at 1, or train under data parallelism "
                "(DistributedDataParallel)."
            )

    @staticmethod
    def origins(params: Iterable[Tensor], state: Mapping[Tensor, Mapping[str, Any]]) -> dict[Tensor, Tensor]:
        """What is to become the origins of those that have none, before their first step; for `begin`."""
        new = [p for p in params if _ORIGIN not in state.get(p, ())]
        return {p: _narrowest(p.detach().clone(memory_format=torch.preserve_format)) for p in new}

    @staticmethod
    def begin(origins: Mapping[Tensor, Tensor], state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Keeps them, after the first step: Adam wants its state empty before that."""
        for p, origin in origins.items():
            state[p][_ORIGIN] = origin

    def restrict(
        self,
        layers: Mapping[str, Iterable[Tensor]],
        state: Mapping[Tensor, Mapping[str, Any]],
        restrictions: Restrictions,
    ) -> dict[str, ProjectionReport]:
        """Takes off what is closed, of whatever has moved since its origin.

        Args:
            layers: Their protected parameters.
            state: Of the optimizer.
            restrictions: Of the optimizer.

        Returns:
            What it did, by layer; shares are of the whole way from the origin.
        """
        reports = {}
        for layer, params in layers.items():
            moved = [p for p in params if _ORIGIN in state.get(p, ())]
            norms = []
            for p in moved:
                origin = wide(state[p][_ORIGIN])
                allowed, squares = restrictions.apply(p, wide(p.detach()) - origin)
                p.copy_(allowed.add_(origin))
                norms.append(squares)
            if moved:
                reports[layer] = report_of(norms, moved)
        return reports

    def hold(self, layers: Mapping[str, Iterable[Tensor]], state: Mapping[Tensor, Mapping[str, Any]]) -> bool:
        """Copies the live weights, before restricted ones take their place; False if there is nothing to do."""
        if self._live or not self.pending:
            return False
        params = [p for members in layers.values() for p in members]
        self._live = {p: p.detach().clone() for p in params if _ORIGIN in state.get(p, ())}
        return True

    def release(self) -> None:
        """Puts the live weights back, bit for bit."""
        for p, live in self._live.items():
            p.copy_(live)
        self._live = {}

    def after_load(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """What has been loaded was saved restricted; torch has cast the origins to their parameter's dtype."""
        self.pending = 0
        self._live = {}
        for entries in state.values():
            if _ORIGIN in entries:
                entries[_ORIGIN] = _narrowest(entries[_ORIGIN])


def _narrowest(weight: Tensor) -> Tensor:
    """In bfloat16 where that changes no bit."""
    narrow = weight.to(torch.bfloat16)
    return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight
