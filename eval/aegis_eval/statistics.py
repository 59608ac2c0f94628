"""How sure a measured rate is, and whether two rates over the same trials differ.

Wilson (1927) interval of a rate `p = k / n`, with `z` the normal quantile of the confidence level:

    centre = (p + z^2 / 2n) / (1 + z^2 / n)
    half-width = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

Two arms on the same initial states give pairs, not two independent samples. With `a` trials on which
both succeed, `b` only the first, `c` only the second and `d` neither: the exact McNemar test (a binomial
test of `b` against `b + c` at 1/2) and Newcombe's interval of the difference `(b - c) / n` (Statistics in
Medicine 17, 1998, p. 2635, method 10), which joins the two Wilson intervals through the correlation of
the pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist


@dataclass(frozen=True)
class Rate:
    """A rate with its Wilson interval.

    Attributes:
        successes: Number of successes k.
        trials: Number of trials n; may be zero, then the rate is nan and the interval [0, 1].
        low: Lower bound.
        high: Upper bound.
    """

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The observed rate k / n."""
        return self.successes / self.trials if self.trials else float("nan")

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON; the rate of no trials is left out, since JSON has no nan."""
        observed = {"rate": self.value} if self.trials else {}
        return {
            "successes": self.successes,
            "trials": self.trials,
            **observed,
            "low": self.low,
            "high": self.high,
        }

    def __str__(self) -> str:
        if not self.trials:
            return "-"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.trials}"


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a rate; `(0, 1)` when nothing was tried.

    Raises:
        ValueError: If the counts are impossible or the confidence is outside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"A rate needs 0 <= successes <= trials; received {successes} of {trials}.")
    z = _quantile(confidence)
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    shrink = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z / shrink * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # At 0 and n the bound is exactly 0 or 1; the formula misses it by one rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def rate(successes: int, trials: int, *, confidence: float = 0.95) -> Rate:
    """A rate together with its Wilson interval."""
    low, high = wilson_interval(successes, trials, confidence=confidence)
    return Rate(successes, trials, low, high)


@dataclass(frozen=True)
class PairedComparison:
    """Two arms over the same trials.

    Attributes:
        trials: Number of pairs n.
        first_only: Pairs in which only the first arm succeeds.
        second_only: Pairs in which only the second arm succeeds.
        difference: Rate of the first minus rate of the second.
        low: Lower bound of the difference (Newcombe).
        high: Upper bound of the difference (Newcombe).
        p_value: Exact two-sided McNemar test of no difference.
    """

    trials: int
    first_only: int
    second_only: int
    difference: float
    low: float
    high: float
    p_value: float


def compare_paired(first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95) -> PairedComparison:
    """Compare two arms whose i-th outcomes come from the same initial state (or the same question).

    Raises:
        ValueError: If the sequences are empty or of different length.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"A paired comparison needs the outcomes of both arms on the same trials; received {len(first)} "
            f"and {len(second)} outcomes. Run both with the same start seed and number of episodes."
        )
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    b = pairs.count((True, False))
    c = pairs.count((False, True))
    low, high = newcombe_paired_interval(
        pairs.count((True, True)), b, c, pairs.count((False, False)), confidence=confidence
    )
    return PairedComparison(
        trials=len(pairs),
        first_only=b,
        second_only=c,
        difference=(b - c) / len(pairs),
        low=low,
        high=high,
        p_value=mcnemar_exact(b, c),
    )


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar p-value from the two discordant counts; 1 when there are none."""
    discordant = first_only + second_only
    tail = sum(comb(discordant, i) for i in range(min(first_only, second_only) + 1))
    # Integers before the division: exact, and no overflow however many trials.
    return min(1.0, 2 * tail / 2**discordant)


def newcombe_paired_interval(
    both: int, first_only: int, second_only: int, neither: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's method 10 for the difference of two paired rates, `(first_only - second_only) / n`."""
    a, b, c, d = both, first_only, second_only, neither
    n = a + b + c + d
    p1, p2 = (a + b) / n, (a + c) / n
    low1, high1 = wilson_interval(a + b, n, confidence=confidence)
    low2, high2 = wilson_interval(a + c, n, confidence=confidence)
    phi = _corrected_correlation(a, b, c, d)
    down1, up1, down2, up2 = p1 - low1, high1 - p1, p2 - low2, high2 - p2
    below = sqrt(max(down1**2 - 2 * phi * down1 * up2 + up2**2, 0.0))
    above = sqrt(max(up1**2 - 2 * phi * up1 * down2 + down2**2, 0.0))
    return p1 - p2 - below, p1 - p2 + above


def _corrected_correlation(a: int, b: int, c: int, d: int) -> float:
    """Correlation of the pairs; a positive numerator is moved towards zero by n/2 (Newcombe's correction)."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    covariance = float(a * d - b * c)
    if covariance > 0:
        covariance = max(covariance - (a + b + c + d) / 2, 0.0)
    return covariance / sqrt(margins)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share in (0, 1), for example 0.95; received {confidence}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)
