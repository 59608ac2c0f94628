"""What happened while the arms of a comparison trained, as figures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, PercentFormatter

from aegis_eval.figure_style import (
    FAINT,
    FAMILIES,
    HEIGHT,
    INK,
    REFERENCE,
    WIDTH,
    Plot,
    arm_colour,
    arm_marker,
    small_multiples,
    steps_axis,
    style,
    to_svg,
)
from aegis_eval.point_labels import label_points
from aegis_eval.results import Comparison, Row
from aegis_eval.run_result import Curve, LayerCurve
from aegis_eval.tables import row_name

MOST_LAYER_NAMES = 14  # beside a heat map; of deeper models every second or third is named
LEAST_SHED = 1e-3  # where the scale of the energy shed begins: the paper's recipe sheds per cent, a subspace most


def inner_plots(comparison: Comparison) -> list[Plot]:
    """What happened while the arms trained: every figure for which there is data."""
    makers: Sequence[Callable[[Comparison], Plot | None]] = (vqa_over_steps, loss_over_steps)
    made = [make(comparison) for make in makers]
    made += [
        _heat_maps(
            comparison,
            "anchor_distance",
            label="squared distance (W2)",
            caption=(
                "Squared Wasserstein-2 distance of each layer's activations on robot batches from the anchor, over "
                "training. Robot images differ from the anchor's images, so it is not zero before training."
            ),
        ),
        _heat_maps(
            comparison,
            "energy_shed",
            least=LEAST_SHED,
            label="energy shed",
            caption=(
                "Share of each layer's squared step (or gradient) that the projection removed, over training; arms "
                "that project."
            ),
        ),
    ]
    return [plot for plot in made if plot is not None]


def vqa_over_steps(comparison: Comparison) -> Plot | None:
    """Accuracy of the monitor's questions while the arms train: a panel an arm and learning rate, a line a family."""
    rows = [row for row in comparison.rows if any(run.curves.vqa.steps for run in row.runs.values())]
    if not rows:
        return None
    families = list(dict.fromkeys(f for row in rows for run in row.runs.values() for f in run.curves.families))
    with style():
        figure, panels = small_multiples(len(rows))
        for axes, row in zip(panels, rows, strict=True):
            for place, family in enumerate(families):
                curve = mean_curve([run.curves.families.get(family, Curve()) for run in row.runs.values()])
                axes.plot(curve.steps, curve.values, color=FAMILIES[place % len(FAMILIES)], linewidth=1.2)
            pooled = mean_curve([run.curves.vqa for run in row.runs.values()])
            axes.plot(pooled.steps, pooled.values, color=INK, linewidth=2.2)
            _panel_title(axes, comparison, row)
            axes.set_ylim(0, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            steps_axis(axes, bins=4)
        entries = [Line2D([], [], color=INK, linewidth=2.2, label="all")] + [
            Line2D([], [], color=FAMILIES[place % len(FAMILIES)], linewidth=1.2, label=family.replace("_", " / "))
            for place, family in enumerate(families)
        ]
        figure.legend(handles=entries, loc="outside upper left", ncols=len(entries), handlelength=1.2)
        caption = (
            "Accuracy on the monitor's held-out questions over training steps, by question family"
            f"{_of_seeds(comparison)}."
        )
        return Plot(to_svg(figure, "vqa"), caption, wide=True)


def pooled_vqa_over_steps(comparison: Comparison) -> Plot | None:
    """The same of all families together, every arm in one panel: for a few arms."""
    curves = [(row, mean_curve([run.curves.vqa for run in row.runs.values()])) for row in comparison.rows]
    curves = [(row, curve) for row, curve in curves if curve.steps]
    if not curves:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        for row, curve in curves:
            marker = arm_marker(comparison.place(row))
            axes.plot(curve.steps, curve.values, color=_colour(comparison, row), marker=marker)
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylabel("questions answered rightly")
        axes.set_xlabel("training step")
        steps_axis(axes)
        middle = [(row, curve, len(curve.steps) // 2) for row, curve in curves]
        label_points(
            figure,
            axes,
            [(c.steps[k], c.values[k], row_name(comparison, row), _colour(comparison, row)) for row, c, k in middle],
            bars=[
                (*min(ends), *max(ends))
                for _, curve in curves
                for ends in zip(_vertices(curve)[:-1], _vertices(curve)[1:], strict=True)
            ],
        )
        caption = "Accuracy on the monitor's held-out questions over training, every arm from the same weights."
        return Plot(to_svg(figure, "vqa-pooled"), f"{caption[:-1]}{_of_seeds(comparison)}.")


def loss_over_steps(comparison: Comparison) -> Plot | None:
    """Action loss while the arms train: a panel an arm and learning rate, the baseline behind it."""
    rows = [row for row in comparison.rows if any(run.curves.flow_loss.steps for run in row.runs.values())]
    if not rows:
        return None
    curves = {(row.arm.name, row.lr): mean_curve([r.curves.flow_loss for r in row.runs.values()]) for row in rows}
    baseline = comparison.study.arm(comparison.study.baseline)
    with style():
        figure, panels = small_multiples(len(rows))
        for axes, row in zip(panels, rows, strict=True):
            behind = curves.get((baseline.name, row.lr), Curve())
            axes.plot(behind.steps, behind.values, color=REFERENCE, linewidth=1.0)
            curve = curves[row.arm.name, row.lr]
            axes.plot(curve.steps, curve.values, color=_colour(comparison, row), linewidth=1.6)
            _panel_title(axes, comparison, row)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
            steps_axis(axes, bins=4)
        caption = (
            f"Action loss on the training batches, mean of each logging window{_of_seeds(comparison)}; the grey line "
            f"is that of {baseline.label}."
        )
        return Plot(to_svg(figure, "loss"), caption, wide=True)


def _heat_maps(comparison: Comparison, quantity: str, *, label: str, caption: str, least: float = 0.0) -> Plot | None:
    """A quantity of each layer over steps at the largest learning rate: a panel an arm, one scale for all."""
    found: list[tuple[Row, LayerCurve]] = []
    for row in comparison.rows:
        if row.lr == max(comparison.learning_rates):
            curve = mean_layer_curve([getattr(run.curves, quantity) for run in row.runs.values()])
            if curve.steps:
                found.append((row, curve))
    if not found:
        return None
    values = np.concatenate([np.asarray(curve.values).ravel() for _, curve in found])
    scale = _scale(values, least)
    with style():
        figure, panels = small_multiples(len(found), sharey=False)
        image = None
        for axes, (row, curve) in zip(panels, found, strict=True):
            heights = np.asarray(curve.values).T  # (L, K)
            image = axes.imshow(
                heights,
                norm=scale,
                cmap="viridis",
                aspect="auto",
                origin="lower",
                interpolation="nearest",
                extent=(0, curve.steps[-1], -0.5, len(curve.layers) - 0.5),
            )
            axes.grid(False)
            names = [_short_layer(name) for name in curve.layers]
            every = max(1, -(-len(names) // MOST_LAYER_NAMES))
            axes.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
            _panel_title(axes, comparison, row)
            steps_axis(axes, bins=4)
        assert image is not None  # there is at least one panel
        bar = figure.colorbar(image, ax=panels, shrink=0.9, pad=0.01, aspect=12 * figure.get_figheight() / 2)
        bar.set_label(label)
        bar.outline.set_edgecolor(FAINT)
        rate = f" Learning rate {max(comparison.learning_rates):g}" if len(comparison.learning_rates) > 1 else ""
        seeds = _of_seeds(comparison)
        ending = f"{rate}{seeds}." if rate else f" Values are{seeds.removeprefix(',')}." if seeds else ""
        return Plot(to_svg(figure, quantity), f"{caption}{ending} Layers upward, steps to the right.", wide=True)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over the seeds, at the steps that all of them have."""
    present = [curve for curve in curves if curve.steps]
    if not present:
        return Curve()
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in present]
    steps = [step for step in present[0].steps if all(step in table for table in tables)]
    return Curve(steps, [sum(table[step] for table in tables) / len(tables) for step in steps])


def mean_layer_curve(curves: Sequence[LayerCurve]) -> LayerCurve:
    """Mean over the seeds, at the steps that all of them have; layers are the first one's."""
    present = [curve for curve in curves if curve.steps]
    if not present:
        return LayerCurve()
    layers = present[0].layers
    tables = [dict(zip(c.steps, c.values, strict=True)) for c in present if c.layers == layers]
    steps = [step for step in present[0].steps if all(step in table for table in tables)]
    means = [np.mean([table[step] for table in tables], axis=0).tolist() for step in steps]
    return LayerCurve(steps, layers, means)


def _vertices(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.steps, curve.values, strict=True))


def _scale(values: Any, least: float) -> LogNorm:
    """From the smallest positive value, but not below `least`, to the largest."""
    positive = np.maximum(values[values > 0], least)
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 10.0)
    return LogNorm(low, high if high > low else 10 * low, clip=True)


def _panel_title(axes: Axes, comparison: Comparison, row: Row) -> None:
    axes.set_title(row_name(comparison, row), color=_colour(comparison, row), fontsize=9)


def _colour(comparison: Comparison, row: Row) -> str:
    return arm_colour(comparison.place(row))


def _of_seeds(comparison: Comparison) -> str:
    return ", each arm's mean over its seeds" if len(comparison.seeds) > 1 else ""


def _short_layer(name: str) -> str:
    """`"model.language_model.layers.3"` -> `"language 3"`; what is no numbered layer keeps its last name."""
    last = name.rsplit(".", 1)[-1]
    if "projector" in name:
        return "projector"
    if last.isdigit() and last != name:
        return f"{'vision' if 'vision' in name else 'language'} {last}"
    return last.replace("_", " ")
