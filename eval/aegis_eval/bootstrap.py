r"""How sure a mean over training seeds and questions (or initial states) is: a two-level bootstrap.

Every seed of an arm meets the same questions, so seeds and questions are crossed: `x[s, i]` is right or wrong for seed
`s` and question `i`. One replicate draws seeds with replacement, and, once for all of them, questions with replacement
within each stratum (a question family), whose sizes are fixed by design (the pigeonhole bootstrap: Owen, Annals of
Applied Statistics 1, 2007, p. 386). Episodes of a set's tasks that begin from the same scene are drawn together: they
succeed and fail together more often than other pairs, so 50 scenes met by three tasks tell less than 150 would. A
statistic of the redrawn table is taken as often as there are replicates; its 2.5 % and 97.5 % quantiles bound the
interval.

A bootstrap knows no more seeds than there are: with S of them it sees (S - 1) / S of the variance between seeds, and
its quantiles reach no further than their values. Where seeds are all that varies, an interval over two of them holds
the true mean half of the time and one over three three quarters of it, 1 - 2 / 2^S; where questions or states vary
more, as in most rates of success here, nearly as often as it says. With one seed only questions are drawn, or, where
each of them stands for itself, nothing: its rate has Wilson's interval and its differences have Newcombe's. Outcomes
that are all the same have no variance to resample; their rate gets Wilson's interval of one seed's questions or scenes.

Shapes: S seeds, N questions, R replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from aegis_eval.statistics import compare_paired, rate

REPLICATES = 2000
SEED = 20_260_101  # the same draws for every arm: differences between arms are then not blurred by the draws
CONFIDENCE = 0.95
_BOUNDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)

Marks = Sequence[bool]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: Mean over the seeds.
        low: Lower bound.
        high: Upper bound.
        by_seed: Training seed -> its value.
        method: How the bounds were found: `bootstrap`, `Wilson` or `Newcombe`.
    """

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float] = field(default_factory=dict)
    method: str = "bootstrap"


class Design(NamedTuple):
    """How questions (or episodes) belong together.

    Attributes:
        strata: The stratum of each, whose size is fixed.
        units: What each belongs to that is drawn as one, within one stratum.
    """

    strata: tuple[str, ...]
    units: tuple[int, ...]

    @classmethod
    def of_questions(cls, families: Sequence[str]) -> Self:
        """Each stands for itself, as many a family as there are."""
        return cls(tuple(families), tuple(range(len(families))))

    @classmethod
    def of_episodes(cls, scenes: Sequence[int]) -> Self:
        """Those of one scene are drawn together, whatever their tasks."""
        return cls(("",) * len(scenes), tuple(scenes))

    @property
    def firsts(self) -> list[int]:
        """The place of each unit's first member."""
        return np.unique(self.units, return_index=True)[1].tolist()

    @property
    def clustered(self) -> bool:
        """Whether some stand for the same unit."""
        return len(set(self.units)) < len(self.units)


@dataclass(frozen=True)
class Draws:
    """Redrawn seeds (R, S) and questions (R, N), as counts."""

    seeds: FloatArray
    items: FloatArray


@lru_cache(maxsize=8)  # the same few designs again for every arm
def draw(seeds: int, design: Design) -> Draws:
    """Draw `REPLICATES` times from that many seeds, and from units within their strata."""
    generator = np.random.default_rng(SEED)
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=REPLICATES).astype(np.float64)
    names, units = np.asarray(design.strata), np.asarray(design.units)
    items = np.empty((REPLICATES, len(names)))
    for name in dict.fromkeys(design.strata):
        (places,) = np.nonzero(names == name)
        _, members = np.unique(units[places], return_inverse=True)
        count = members.max() + 1
        items[:, places] = generator.multinomial(count, np.full(count, 1 / count), size=REPLICATES)[:, members]
    return Draws(by_seed, items)


def success_estimate(outcomes: Mapping[int, Marks], design: Design) -> Estimate:
    """A rate over seeds and questions; Wilson's interval with a single seed of questions that stand for themselves.

    Args:
        outcomes: Training seed -> right or wrong, question by question.
        design: What they are drawn by.
    """
    table = _table(outcomes)  # (S, N)
    by_seed = _by_seed(outcomes, table.mean(axis=1))
    if np.ptp(table) == 0 or (len(table) == 1 and not design.clustered):
        count = len(design.firsts)
        found = rate(round(count * float(table.mean())), count)
        return Estimate(found.value, found.low, found.high, by_seed, "Wilson")
    return _estimate(float(table.mean()), _replicated(table, draw(len(table), design)), by_seed)


def difference_estimate(first: Mapping[int, Marks], second: Mapping[int, Marks], design: Design) -> Estimate | None:
    """Rate of `first` minus rate of `second` over the same seeds and questions; Newcombe's interval where a rate has
    Wilson's.

    Seeds that only one of them has are left out; None if they share none.
    """
    shared = [seed for seed in first if seed in second]
    if not shared:
        return None
    difference = _table({s: first[s] for s in shared}) - _table({s: second[s] for s in shared})  # (S, N)
    by_seed = dict(zip(shared, difference.mean(axis=1).tolist(), strict=True))
    if np.ptp(difference) == 0 or (len(shared) == 1 and not design.clustered):
        pairs = compare_paired(*([marks[shared[0]][i] for i in design.firsts] for marks in (first, second)))
        return Estimate(pairs.difference, pairs.low, pairs.high, by_seed, "Newcombe")
    return _estimate(float(difference.mean()), _replicated(difference, draw(len(shared), design)), by_seed)


def retention_estimates(outcomes: Mapping[int, Marks], before: Marks, strata: Sequence[str]) -> dict[str, Estimate]:
    """Rate after over rate before, on the same questions: by stratum, over all (`all`) and the least (`worst`).

    A stratum of which nothing was right before has no retention and is left out. The least is each seed's own, which
    may be another stratum's each time. Redrawn questions blur the strata, and the least of them lies lower the more
    they are blurred: its interval reaches rather too far down.

    Args:
        outcomes: Training seed -> right or wrong after training.
        before: Right or wrong before it.
        strata: Each question's stratum.
    """
    table, untouched = _table(outcomes), np.asarray(before, dtype=np.float64)
    draws = draw(len(table), Design.of_questions(strata))
    names = np.asarray(strata)
    values: dict[str, tuple[FloatArray, ...]] = {}  # -> by seed (S,), replicates (R, S)
    for name in dict.fromkeys(strata):
        within = names == name
        if untouched[within].any():
            values[name] = _ratio(table, untouched, draws, within)
    if not values:
        return {}
    counts = {name: int(untouched[names == name].sum()) for name in values}  # right before
    values["worst"] = tuple(np.min([values[name][i] for name in counts], axis=0) for i in (0, 1))
    values["all"] = _ratio(table, untouched, draws, np.ones(len(names), dtype=bool))
    counts |= {"worst": min(counts.values()), "all": int(untouched.sum())}
    found: dict[str, Estimate] = {}
    for name, (by_seed, replicates) in values.items():
        value = float(by_seed.mean())
        drawn = (draws.seeds * replicates).sum(axis=1) / len(table)  # (R,)
        if np.ptp(drawn) == 0 and value <= 1:
            same = rate(round(counts[name] * value), counts[name])
            found[name] = Estimate(same.value, same.low, same.high, _by_seed(outcomes, by_seed), "Wilson")
        else:
            found[name] = _estimate(value, drawn, _by_seed(outcomes, by_seed))
    return found


def _ratio(
    table: FloatArray, untouched: FloatArray, draws: Draws, within: NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """Retention on some of the questions: of each seed (S,), and of each seed on each replicate's questions (R, S)."""
    after, then = draws.items[:, within] @ table[:, within].T, draws.items[:, within] @ untouched[within]
    # A replicate may draw none of the few questions that were right before; it counts one instead of dividing by zero.
    replicates = after / np.maximum(then, 1.0)[:, None]
    return table[:, within].sum(axis=1) / untouched[within].sum(), replicates


def _replicated(table: FloatArray, draws: Draws) -> FloatArray:
    """Mean over the drawn seeds and questions of each replicate: (S, N) -> (R,)."""
    return ((draws.seeds @ table) / len(table) * draws.items).sum(axis=1) / draws.items.sum(axis=1)


def _table(outcomes: Mapping[int, Marks]) -> FloatArray:
    """(S, N) zeros and ones.

    Raises:
        ValueError: If seeds did not meet the same number of questions.
    """
    lengths = {seed: len(marks) for seed, marks in outcomes.items()}
    if not lengths or len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise ValueError(f"Every seed must meet the same questions, at least one; received by seed: {lengths}.")
    return np.asarray([list(marks) for marks in outcomes.values()], dtype=np.float64)


def _by_seed(outcomes: Mapping[int, Marks], values: FloatArray) -> dict[int, float]:
    return dict(zip(outcomes, values.tolist(), strict=True))


def _estimate(value: float, replicates: FloatArray, by_seed: Mapping[int, float]) -> Estimate:
    low, high = np.quantile(replicates, _BOUNDS)
    return Estimate(value, float(low), float(high), dict(by_seed))
