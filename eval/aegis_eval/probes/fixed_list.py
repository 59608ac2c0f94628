"""Probes whose questions are a list in a file of this package, rather than made on demand."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from aegis_eval.probes.registry import Probe


@dataclass(frozen=True)
class FixedList(Probe):
    """Questions of a fixed list, so `count` is at most their number; fewer are drawn by `seed`, families in turn."""

    standard: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "count", min(self.count, sum(map(len, self.families().values()))))

    @abstractmethod
    def families(self) -> Mapping[str, Sequence[Any]]:
        """Family -> its questions, in the order of the file."""

    def samples(self) -> list[Any]:
        """Its questions, the same ones every time."""
        rng = np.random.default_rng(self.seed)
        drawn = [[family[i] for i in rng.permutation(len(family))] for family in self.families().values()]
        longest = max(map(len, drawn))
        return [family[i] for i in range(longest) for family in drawn if i < len(family)][: self.count]
