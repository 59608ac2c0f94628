"""Which projector restricts which parameter's moves: a weight's step `D` (out, in) becomes `D P`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aegis_policy.aegis.precision import accumulation_dtype, at_least_float32, full_precision_matmul
from aegis_policy.aegis.projector import Projector
from aegis_policy.aegis.ranks import world_size


class Restrictions:
    """The projectors of an optimizer's parameters.

    State: a projector a parameter, which follows its device and precision when it is used; whether they are those of
    rank 0; `closed_share`, the share of input directions that are closed, mean over parameters, 0 without any.
    """

    def __init__(self) -> None:
        self.closed_share = 0.0
        self._projectors: dict[Tensor, Projector] = {}
        self._agreed = True

    def __contains__(self, p: Tensor) -> bool:
        return p in self._projectors

    def add(self, params: Sequence[Tensor], projectors: Sequence[Projector | Tensor | None]) -> None:
        """Takes more of them.

        Args:
            params: Weights (out, in); more dimensions count as (out, rest).
            projectors: Parallel to them, `P` (in, in) itself or its compact form; None restricts nothing.
        """
        matrices = {id(q): Projector(q, "matrix") for q in projectors if isinstance(q, Tensor)}  # shared as given
        for p, projector in zip(params, projectors, strict=True):
            if projector is not None:
                self._projectors[p] = projector if isinstance(projector, Projector) else matrices[id(projector)]
        self._agreed = False
        self._measure()

    def agree(self) -> None:
        """Takes over those of rank 0, once: eigenvectors from another kind of processor would let replicas drift."""
        if self._agreed or world_size() == 1:
            return
        agreed: dict[Projector, Projector] = {}  # those that share one go on sharing it
        for p in self._projectors:
            own = self.of(p)
            if own not in agreed:
                agreed[own] = own.of_first_rank()
            self._projectors[p] = agreed[own]
        self._agreed = True
        self._measure()

    def of(self, p: Tensor) -> Projector:
        """A parameter's projector on its device and in its precision; moved once, for all that share it."""
        source = self._projectors[p]
        moved = source.to(device=p.device, dtype=at_least_float32(p.dtype))
        if moved is not source:
            for other, projector in self._projectors.items():
                if projector is source and other.device == p.device and other.dtype == p.dtype:
                    self._projectors[other] = moved
        return moved

    def apply(self, p: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
        """A move of this process's rows of `p` times its projector, and the squared norms (2,) before and after."""
        acc = accumulation_dtype(p.device)
        with full_precision_matmul(p.device.type):
            allowed = (move.flatten(1) @ self.of(p)).view(move.shape)
        squares = torch.stack([torch.linalg.vector_norm(x, dtype=acc).square() for x in (move, allowed)])
        return allowed, squares

    def _measure(self) -> None:
        shared = {id(p): p.closed_share for p in self._projectors.values()}
        shares = [shared[id(p)] for p in self._projectors.values()]
        self.closed_share = sum(shares) / max(len(shares), 1)
