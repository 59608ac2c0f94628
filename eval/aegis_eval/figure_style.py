"""How figures look: SVG to be placed inside an HTML page, whose colours they take over.

matplotlib cannot write CSS variables, so each figure is drawn in stand-in colours which are then replaced by
`var(--...)`: one figure serves light and dark pages.
"""

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, FAINT, REFERENCE = "#010101", "#020202", "#030303"  # stand-ins: text, grid, untouched backbone
ARMS = tuple(f"#0a01{place:02x}" for place in range(1, 9))  # stand-ins: arms in turn, eight hues
FAMILIES = tuple(f"#0a02{place:02x}" for place in range(1, 9))  # stand-ins: question families in turn
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # seven against eight hues: 56 arms before both repeat together
_VARIABLES = (
    {INK: "--ink", FAINT: "--line", REFERENCE: "--reference"}
    | {stand_in: f"--arm-{place}" for place, stand_in in enumerate(ARMS)}
    | {stand_in: f"--family-{place}" for place, stand_in in enumerate(FAMILIES)}
)
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
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "legend.frameon": False,
}
WIDTH, HEIGHT = 6.4, 3.6  # inches of one panel; the page scales figures to its columns
PANELS = 5  # small multiples side by side
PANEL_HEIGHT = 1.9  # inches of a row of small multiples


@dataclass(frozen=True)
class Plot:
    """A figure for a page: its SVG, what it shows in one sentence, and whether it wants the page's whole width."""

    svg: str
    caption: str
    wide: bool = False


def style() -> AbstractContextManager[None]:
    """Context in which figures are drawn."""
    return rc_context(_STYLE)


def arm_colour(place: int) -> str:
    """Colour of the arm at that place of the study."""
    return ARMS[place % len(ARMS)]


def arm_marker(place: int) -> str:
    """Marker of the arm at that place of the study."""
    return MARKERS[place % len(MARKERS)]


def small_multiples(count: int, *, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of `count` small panels with shared axes, left to right and top to bottom."""
    columns = min(PANELS, max(count, 2))
    rows = ceil(count / columns)
    figure = Figure(figsize=(2 * WIDTH, 0.5 + PANEL_HEIGHT * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    # A panel above an unused one is the lowest of its column.
    for lowest in axes[max(0, count - columns) : count]:
        lowest.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def steps_axis(axes: Axes, *, bins: int = 8) -> None:
    """Format an axis of training steps."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=bins))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def to_svg(figure: Figure, name: str) -> str:
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
