"""Names beside points, where they cover each other least: a dozen arms need no legend.

Each label tries places around its point, near ones first, and takes the first with the least overlap with the points
and the labels already there. All in pixels of the drawn figure.
"""

from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

_POINT = 7.0  # pixels around a point that a label should not cover
_BAR = 3.0  # pixels across an error bar
_DISTANCES = (9.0, 18.0, 30.0, 44.0, 60.0, 80.0)
_DIRECTIONS = ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1))
_LINE_FROM = 18.0  # pixels from which a thin line joins label and point


def label_points(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[float, float, str, str]],
    *,
    bars: Sequence[tuple[float, float, float, float]] = (),
    fontsize: float = 8.5,
) -> None:
    """Write each label near its point.

    Args:
        figure: The figure, with its layout engine; nothing may move in it afterwards.
        axes: Where the points are.
        labels: x and y in data coordinates, text, colour.
        bars: Error bars to be kept free as far as possible: x0, y0, x1, y1 in data coordinates.
        fontsize: In points.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # runs the layout, so that pixels are final
    renderer = canvas.get_renderer()
    figure.set_layout_engine("none")
    inside = axes.get_window_extent(renderer)
    points = [axes.transData.transform((x, y)) for x, y, _, _ in labels]
    taken = [Bbox.from_extents(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    taken += [_bar(axes, bar) for bar in bars]
    scale = 72 / figure.dpi  # offsets are given in points
    for (x, y, text, colour), (px, py) in sorted(zip(labels, points, strict=True), key=lambda one: -one[1][1]):
        artist = axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", color=colour, fontsize=fontsize, va="center"
        )
        size = artist.get_window_extent(renderer)
        candidates = [
            _placed(px, py, size.width, size.height, direction, distance)
            for distance, direction in product(_DISTANCES, _DIRECTIONS)
        ]
        best = min(candidates, key=lambda box: _cost(box, taken, inside))
        taken.append(best)
        artist.set_position(((best.x0 - px) * scale, ((best.y0 + best.y1) / 2 - py) * scale))
        _join(axes, (x, y), (px, py), best, colour)


def _bar(axes: Axes, bar: tuple[float, float, float, float]) -> Bbox:
    (x0, y0), (x1, y1) = axes.transData.transform([bar[:2], bar[2:]])
    return Bbox.from_extents(x0 - _BAR / 2, y0 - _BAR / 2, x1 + _BAR / 2, y1 + _BAR / 2)


def _placed(x: float, y: float, width: float, height: float, direction: tuple[int, int], distance: float) -> Bbox:
    horizontal, vertical = direction
    left = {1: x + distance, 0: x - width / 2, -1: x - distance - width}[horizontal]
    centre = y + vertical * (distance + height / 2) * (1.0 if horizontal == 0 else 0.8)
    return Bbox.from_extents(left, centre - height / 2, left + width, centre + height / 2)


def _cost(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Pixels of overlap with others, and a hundred times those outside of the axes."""
    overlap = sum(_area(box, other) for other in taken)
    return overlap + 100 * (box.width * box.height - _area(box, inside))


def _area(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def _join(axes: Axes, point: tuple[float, float], pixel: tuple[float, float], box: Bbox, colour: str) -> None:
    """A thin line from a label that stands far off to its point."""
    nearest = (min(max(pixel[0], box.x0), box.x1), min(max(pixel[1], box.y0), box.y1))
    if (nearest[0] - pixel[0]) ** 2 + (nearest[1] - pixel[1]) ** 2 < _LINE_FROM**2:
        return
    end = axes.transData.inverted().transform(nearest)
    axes.plot(
        [point[0], end[0]], [point[1], end[1]], color=colour, linewidth=0.6, alpha=0.7, scalex=False, scaley=False
    )
