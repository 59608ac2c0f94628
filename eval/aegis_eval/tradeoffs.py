"""What is kept against success: the figure that a comparison is made for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil, inf
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from aegis_eval.bootstrap import Estimate
from aegis_eval.figure_style import HEIGHT, REFERENCE, WIDTH, Plot, arm_colour, arm_marker, style, to_svg
from aegis_eval.point_labels import label_points
from aegis_eval.results import Comparison, Row
from aegis_eval.scoring import ALL
from aegis_eval.tables import probes_of, sets_of

_NAMED = 12  # points of a panel whose names fit beside them; more are numbered, with the names below
_KEY_ROW = 0.19  # inches
_MARGIN = 0.05  # of the range, around the points of the trade-off
_KNEE = 0.005  # share lost up to which the trade-off's scale is about linear: beyond, it is logarithmic in what is lost
_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0, 1.01, 1.02, 1.05, 1.1)
type _Point = tuple[Row, Estimate, Estimate]  # an arm at a rate, what it keeps, how it acts


def tradeoffs(comparison: Comparison) -> list[Plot]:
    """Retention of the first probe against success, one figure a set of instructions; a panel a learning rate."""
    probe = next(iter(probes_of(comparison)), None)
    found = [_tradeoff(comparison, name, probe) for name in sets_of(comparison)] if probe else []
    return [plot for plot in found if plot is not None]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one exceeds in one coordinate without falling behind in the other, by descending x."""
    front: list[tuple[float, float]] = []
    best = -inf
    for x, y in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if y > best:
            front.append((x, y))
            best = y
    return front


def _tradeoff(comparison: Comparison, name: str, probe: str) -> Plot | None:
    shown = [
        (row, row.retention[probe][ALL], row.success[name])
        for row in comparison.rows
        if ALL in row.retention.get(probe, {}) and name in row.success
    ]
    if not shown:
        return None
    rates = sorted({row.lr for row, _, _ in shown})
    front = pareto_front([(knows.value, acts.value) for _, knows, acts in shown])
    numbered = max(Counter(row.lr for row, _, _ in shown).values()) > _NAMED
    with style():
        panels = len(rates)
        columns = 2 * min(panels, 2)
        arms = {comparison.place(row): row.arm.label for row, _, _ in shown}
        height = (HEIGHT if panels == 1 else 1.3 * HEIGHT) + (_KEY_ROW * ceil(len(arms) / columns) if numbered else 0)
        figure = Figure(figsize=(WIDTH * min(panels, 2), height), layout="constrained")
        if numbered:
            _key(figure, arms, columns)
        grid = list(figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False).flat)
        chance = comparison.study.rollouts.chance.get(name)
        _limits(grid[0], shown, chance)
        for axes, lr in zip(grid, rates, strict=True):
            _references(axes, chance)
            _draw_front(axes, front)
            for row, knows, acts in shown:
                if row.lr == lr:
                    _cross(axes, comparison, row, knows, acts)
            axes.set_xlabel(f"knows: share of VQA kept, {probe}")
            if panels > 1:
                axes.set_title(f"learning rate {lr:g}")
        grid[0].set_ylabel(f"acts: success, {name}")
        for axes, lr in zip(grid, rates, strict=True):  # when all is drawn, for then nothing moves any more
            _label(figure, axes, comparison, [one for one in shown if one[0].lr == lr], numbered=numbered)
        several = " of all learning rates" if panels > 1 else ""
        caption = (
            f"Instructions {name.replace('_', ' ')}: what is kept against success; up and to the right is better. Bars "
            f"are 95 % intervals, the stepped line is the Pareto front{several}. The scale across stretches what is "
            "near 100 %."
        )
        return Plot(to_svg(figure, f"tradeoff-{name}"), caption, wide=panels > 1)


def _limits(axes: Axes, shown: Sequence[_Point], chance: float | None) -> None:
    """The range of the points and of what they are measured against, not of zero to one: arms lie close together."""
    across = [1.0, *(value for _, knows, _ in shown for value in (knows.low, knows.high))]
    up = [*([chance] if chance is not None else []), *(v for _, _, acts in shown for v in (acts.low, acts.high))]
    axes.set_xscale("function", functions=(stretched, unstretched))
    least, most = stretched(min(across)), stretched(max(across))
    margin = _MARGIN * max(most - least, 1.0)
    axes.set_xlim(unstretched(least - margin), unstretched(most + margin))
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    margin = _MARGIN * max(max(up) - min(up), 0.05)
    axes.set_ylim(min(up) - margin, max(up) + margin)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def stretched(kept: Any) -> Any:
    """Where a share kept lies across: logarithmic in what is lost or won, but for the last half a per cent."""
    return np.arcsinh((np.asarray(kept) - 1.0) / _KNEE)


def unstretched(place: Any) -> Any:
    """The share kept that lies there."""
    return 1.0 + _KNEE * np.sinh(place)


def _label(figure: Figure, axes: Axes, comparison: Comparison, shown: Sequence[_Point], *, numbered: bool) -> None:
    """Names or numbers beside the points of one panel."""
    labels, bars = [], []
    for row, knows, acts in shown:
        place = comparison.place(row)
        text = str(place + 1) if numbered else row.arm.label
        labels.append((knows.value, acts.value, text, arm_colour(place)))
        bars.append((knows.low, acts.value, knows.high, acts.value))
        bars.append((knows.value, acts.low, knows.value, acts.high))
    label_points(figure, axes, labels, bars=bars)


def _key(figure: Figure, arms: Mapping[int, str], columns: int) -> None:
    """Number, mark and name of each arm, below the panels."""
    handles = [
        Line2D([], [], color=arm_colour(place), marker=arm_marker(place), linestyle="", label=f"{place + 1}  {label}")
        for place, label in sorted(arms.items())
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5, handletextpad=0.3)


def _references(axes: Axes, chance: float | None) -> None:
    axes.axvline(1.0, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.annotate(
        "untouched",
        (1.0, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),  # over the axes, where no mark can lie
        textcoords="offset points",
        ha="center",
        color=REFERENCE,
        fontsize=8.5,
    )
    if chance is not None:
        axes.axhline(chance, color=REFERENCE, linestyle=(0, (1, 2)), linewidth=1.2)
        axes.annotate(
            "chance",
            (0.0, chance),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=REFERENCE,
            fontsize=8.5,
        )


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    if len(front) > 1:
        # At a given share kept, the front is the best success of those that keep at least as much.
        axes.step([x for x, _ in front], [y for _, y in front], where="post", color=REFERENCE, linewidth=1.0, alpha=0.8)


def _cross(axes: Axes, comparison: Comparison, row: Row, knows: Estimate, acts: Estimate) -> None:
    place = comparison.place(row)
    axes.errorbar(
        [knows.value],
        [acts.value],
        xerr=_reach(knows),
        yerr=_reach(acts),
        fmt=arm_marker(place),
        color=arm_colour(place),
        elinewidth=0.9,
        markersize=7,
    )


def _reach(found: Estimate) -> list[list[float]]:
    """Lengths of an error bar; the interval of a minimum or a ratio may lie beside its value by a rounding."""
    return [[max(found.value - found.low, 0.0)], [max(found.high - found.value, 0.0)]]
