"""A study as figures: SVG to be placed inside an HTML page, whose colours they take over.

matplotlib cannot write CSS variables, so each figure is drawn in stand-in colours which are then replaced by
`var(--...)`: one figure serves light and dark pages.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from aegis_eval.results import Arm, Study
from aegis_eval.statistics import Rate

INK, FAINT, REFERENCE = "#010101", "#020202", "#030303"  # stand-ins: text, grid, untouched backbone
ARMS = ("#0a0101", "#0a0202", "#0a0303", "#0a0404", "#0a0505", "#0a0606")  # stand-ins: an arm each
MARKERS = ("o", "s", "^", "D", "v", "P")
_VARIABLES = {INK: "--ink", FAINT: "--line", REFERENCE: "--reference"} | {
    stand_in: f"--arm-{place}" for place, stand_in in enumerate(ARMS)
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "legend.frameon": False,
}
WIDTH, HEIGHT = 6.4, 3.5  # inches; the page scales figures to its columns


@dataclass(frozen=True)
class Plot:
    """A figure for a page: its SVG, and what it shows in one sentence."""

    svg: str
    caption: str


def all_plots(study: Study) -> dict[str, Plot]:
    """Every figure for which the study has data."""
    makers: dict[str, Callable[[Study], Plot | None]] = {
        "vqa": vqa_over_steps,
        "tradeoff": knowledge_against_success,
        "layers": anchor_distance_by_layer,
        "loss": loss_over_steps,
    }
    made = {name: make(study) for name, make in makers.items()}
    return {name: plot for name, plot in made.items() if plot is not None}


def vqa_over_steps(study: Study) -> Plot | None:
    """Accuracy of the monitor's questions while the arms train."""
    if not any(arm.vqa.steps for arm in study.arms):
        return None
    with rc_context(_STYLE):
        figure, axes = _axes()
        for place, arm in enumerate(study.arms):
            axes.plot(arm.vqa.steps, arm.vqa.values, **_look(place), label=arm.label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("questions answered rightly")
        _steps_axis(axes)
        _legend(axes, len(study.arms))
        caption = "Accuracy on the monitor's held-out questions during training, every arm from the same weights."
        return Plot(_svg(figure, "vqa"), caption)


def loss_over_steps(study: Study) -> Plot | None:
    """Action loss while the arms train."""
    if not any(arm.loss.steps for arm in study.arms):
        return None
    with rc_context(_STYLE):
        figure, axes = _axes()
        for place, arm in enumerate(study.arms):
            axes.plot(arm.loss.steps, arm.loss.values, **_look(place, marker=False), label=arm.label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set_ylabel("flow-matching loss")
        _steps_axis(axes)
        _legend(axes, len(study.arms))
        return Plot(_svg(figure, "loss"), "Action loss on the training batches, mean of each logging window.")


def knowledge_against_success(study: Study) -> Plot | None:
    """Where each arm stands between knowing and acting, with both intervals."""
    probe = next(iter(study.probes), None)
    shown = [
        (place, arm)
        for place, arm in enumerate(study.arms)
        if arm.success is not None and probe is not None and probe in arm.probes
    ]
    if not shown or probe is None:
        return None
    with rc_context(_STYLE):
        figure, axes = _axes()
        before = study.reference.probes.get(probe)
        if before is not None:
            axes.axvline(before.family().value, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.4)
            axes.annotate(
                "untouched",
                (before.family().value, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-4, -10),
                textcoords="offset points",
                ha="right",
                color=REFERENCE,
                fontsize=9,
            )
        if study.chance is not None:
            axes.axhline(study.chance, color=REFERENCE, linestyle=(0, (1, 2)), linewidth=1.4)
            axes.annotate(
                "chance",
                (0.0, study.chance),
                xytext=(4, 3),
                textcoords="offset points",
                color=REFERENCE,
                fontsize=9,
            )
        for place, arm in shown:
            _cross(axes, arm, arm.probes[probe].family(), place)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(f"knows: VQA on {probe} after training")
        axes.set_ylabel("acts: success rate")
        _legend(axes, len(shown))
        caption = "Knowing against acting; up and to the right is better. Bars are 95 % Wilson intervals."
        return Plot(_svg(figure, "tradeoff"), caption)


def anchor_distance_by_layer(study: Study) -> Plot | None:
    """How far each layer's activations have moved from the anchor at the end."""
    names = list(dict.fromkeys(layer for arm in study.arms for layer in arm.layers))
    if not names:
        return None
    with rc_context(_STYLE):
        figure, axes = _axes()
        for place, arm in enumerate(study.arms):
            heights = [arm.layers.get(name) for name in names]
            known = [(x, h) for x, h in enumerate(heights) if h is not None and h > 0]
            axes.plot([x for x, _ in known], [h for _, h in known], **_look(place), label=arm.label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xticks(range(len(names)), [_short_layer(name) for name in names])
        axes.set_xlabel("layer of the language model")
        axes.set_ylabel("squared distance (W2)")
        _legend(axes, len(study.arms))
        caption = (
            "Squared Wasserstein-2 distance of each layer's activations on robot batches from the anchor, at the "
            "end of training. Robot images differ from the anchor's images, so it is not zero before training."
        )
        return Plot(_svg(figure, "layers"), caption)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    return figure, figure.add_subplot()


def _look(place: int, *, marker: bool = True) -> dict[str, Any]:
    place %= len(ARMS)
    return {"color": ARMS[place], "marker": MARKERS[place] if marker else None}


def _cross(axes: Axes, arm: Arm, knows: Rate, place: int) -> None:
    acts = arm.success
    assert acts is not None
    axes.errorbar(
        [knows.value],
        [acts.value],
        xerr=[[knows.value - knows.low], [knows.high - knows.value]],
        yerr=[[acts.value - acts.low], [acts.high - acts.value]],
        fmt=MARKERS[place % len(MARKERS)],
        color=ARMS[place % len(ARMS)],
        elinewidth=1.4,
        markersize=8,
        label=arm.label,
    )


def _steps_axis(axes: Axes) -> None:
    axes.set_xlabel("training step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _legend(axes: Axes, entries: int) -> None:
    """Above the axes, in one row: no data is ever under it."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=entries, handlelength=1.4, columnspacing=1.4)


def _short_layer(name: str) -> str:
    """`"language_model.layers.3"` -> `"3"`."""
    return name.rsplit(".", 1)[-1]


def _svg(figure: Figure, name: str) -> str:
    """The figure's SVG element alone, in the page's colours, its ids not shared with another figure's."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    for before in ('id="', 'href="#', "url(#"):  # ids, and what refers to them
        svg = svg.replace(before, f"{before}{name}-")
    return svg
