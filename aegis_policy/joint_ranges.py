"""What a dataset's statistics give away about its joints: units other than the checkpoint's, and joints that stand.

Units are in no LeRobotDataset. What is certain: a joint beyond 100 is not in `so101_follower`'s -100 to 100
(`use_degrees=false`), which LeRobot clips. Else only ranges speak, and no policy is refused for them: fine-tuning
normalises with the new data's statistics, so that other units cost what the policy knew of positions and no more.
Where a trained policy *acts*, its own statistics hold, and an arm in other units goes elsewhere.

Legend: `A` numbers of a state or action; ranges (2, A) are lowest and highest.
"""

from collections.abc import MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

OTHER_SCALE = 8.0  # between ranges: degrees are 57 radians, percent 100 shares, millimetres 1,000 metres
_CONSTANT = 1e-6  # of a value: a few steps of float32, in which nothing moves
_STILL = 1e-4  # of a constant action, and at least so much: the deviation that stands for none

Array = NDArray[np.float64]


def unit_doubt(then: Array, now: Array) -> str | None:
    """Why two sets of ranges (2, A), lowest and highest, can hardly be in the same units; None if they can.

    Three signs, each of which one unusual joint does not give:
        - in the median over joints that move, extent *and* size differ by a factor of `OTHER_SCALE`;
        - for half of the joints the ranges are further apart than the first is wide: another zero;
        - one goes beyond 100 in a joint that has both signs, the other ends exactly at -100 or 100 and never goes
          beyond: degrees and LeRobot's clipped -100 to 100.
    """
    extents = [r[1] - r[0] for r in (then, now)]
    sizes = [np.abs(r).max(axis=0) for r in (then, now)]
    moving = (extents[0] > _CONSTANT * sizes[0]) & (extents[1] > _CONSTANT * sizes[1])
    if not moving.any():
        return None
    ratios = [float(np.median(b[moving] / a[moving])) for a, b in (extents, sizes)]
    if min(ratios) > OTHER_SCALE or max(ratios) < 1 / OTHER_SCALE:
        return f"looks like other units, {max(ratios) if min(ratios) > 1 else 1 / min(ratios):.0f} times apart"
    apart = (now[0] > then[1] + extents[0]) | (now[1] < then[0] - extents[0])
    if 2 * (apart & moving).sum() >= moving.sum() and moving.sum() > 1:
        return "looks as if its joints had another zero"
    for one, other, text in ((then, now, "-100 to 100 where the checkpoint has degrees"),
                             (now, then, "degrees where the checkpoint has -100 to 100")):  # fmt: skip
        if _beyond_100(one) and _clipped_at_100(other):
            return f"looks like {text}"
    return None


def _signed(ranges: Array) -> Array:
    return ranges[:, ranges[0] < 0]  # not a gripper, 0 to 100 in either unit


def _beyond_100(ranges: Array) -> bool:
    return bool((np.abs(_signed(ranges)) > 100.5).any())


def _clipped_at_100(ranges: Array) -> bool:
    size = np.abs(_signed(ranges))
    return bool((np.abs(size - 100) < 1e-4).any() and (size < 100 + 1e-4).all())


def steady_constants(statistics: MutableMapping[str, Any], *, acts: bool) -> list[int]:
    """Gives numbers that never change in the data a deviation, in place, so that they are normalised to about 0.

    LeRobot divides by the deviation (or the quantiles' distance) plus 1e-8, and the mean of a constant is off by a
    rounding error: the quotient is in the thousands. One gripper that nobody moved, and there is no loss but its own.
    The deviation is 1 in what is observed. What is acted is multiplied by it again, error and all, in whatever unit the
    robot has: there it is `_STILL`, above rounding and below what moves a joint.

    Args:
        statistics: Of one feature, LeRobot's: `min`, `max`, `mean`, `std`, `q01`, ..., each (A,).
        acts: Whether it is the action.

    Returns:
        Which numbers were mended.
    """
    if not {"min", "max", "mean", "std"} <= statistics.keys():
        return []
    low, high, mean = (np.asarray(statistics[name], dtype=float) for name in ("min", "max", "mean"))
    constant = high - low <= _CONSTANT * np.maximum(np.abs(low), np.abs(high))
    deviation = np.maximum(_STILL * np.abs(mean), _STILL) if acts else np.ones_like(mean)
    beside = {
        "std": deviation,
        **dict.fromkeys(("q01", "q10"), mean - deviation),
        **dict.fromkeys(("q90", "q99"), mean + deviation),
    }
    if constant.any():
        for name, value in beside.items():
            if name in statistics:
                kept = np.asarray(statistics[name])
                statistics[name] = np.where(constant, value, kept).astype(kept.dtype)
    return np.flatnonzero(constant).tolist()
