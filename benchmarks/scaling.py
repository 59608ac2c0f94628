"""How a training step grows with the language layers, the batch, the cameras and the chunk: naive beside the subspace.

    python benchmarks/scaling.py [--backbone small-paligemma2] [--vary layers,batch] [--out outputs/scaling]

From one step of the shape (`shapes.SHAPES`, random weights) as `step.py` takes it, one thing changes at a time. With
`--out` the times and their ratio are drawn too, OUT.png.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from measure import Table, in_own_process, interleave, make_parser, milliseconds, parse, ratio, report
from shapes import SHAPES, with_layers
from step import ARMS, Training, add_training_options, peak_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

VARIED = {"layers": (2, 4, 8), "batch": (2, 8, 16), "images": (1, 2, 3), "chunk": (8, 32, 64)}
BASE, OTHER = "naive", "subspace"


def point(options: argparse.Namespace, axis: str, value: int) -> dict[str, Any]:
    """Seconds of a step and MiB at the peak where `axis` is `value`, by arm."""
    shape: dict[str, Any] = SHAPES[options.backbone]
    changed = argparse.Namespace(**vars(options))
    if axis == "layers":
        shape = with_layers(shape, value)
    else:
        setattr(changed, axis, value)
    trainings = {arm: Training(arm, changed, shape=shape) for arm in (BASE, options.arm)}
    times = interleave({arm: training.round for arm, training in trainings.items()}, rounds=options.rounds)
    trainings.clear()
    memory = {arm: in_own_process(peak_of, arm, changed, shape) for arm in times}
    return {"axis": axis, "value": value, "seconds": times, "peak_mib": memory}


def draw(points: Sequence[dict[str, Any]], options: argparse.Namespace, path: Path) -> None:
    """One column an axis: above the times, below their ratio."""
    axes = list(dict.fromkeys(p["axis"] for p in points))
    figure, panels = plt.subplots(2, len(axes), figsize=(3.2 * len(axes), 4.8), squeeze=False, sharex="col")
    for column, axis in enumerate(axes):
        chosen = [p for p in points if p["axis"] == axis]
        values = [p["value"] for p in chosen]
        for arm in (BASE, options.arm):
            times = [1000 * statistics.median(p["seconds"][arm]) for p in chosen]
            panels[0][column].plot(values, times, marker="o", label=arm)
        ratios = [[a / b for a, b in zip(p["seconds"][options.arm], p["seconds"][BASE], strict=True)] for p in chosen]
        middle = [statistics.median(r) for r in ratios]
        spread = [[m - min(r) for m, r in zip(middle, ratios, strict=True)]]
        spread.append([max(r) - m for m, r in zip(middle, ratios, strict=True)])
        panels[1][column].errorbar(values, middle, yerr=spread, marker="o", color="black", capsize=3)
        panels[1][column].axhline(1, color="grey", linewidth=0.8)
        panels[1][column].set_xlabel(axis)
        panels[0][column].set_ylim(bottom=0)
    panels[0][0].set_ylabel("ms a step")
    panels[0][0].legend()
    panels[1][0].set_ylabel(f"{options.arm} over {BASE}\n(median, least and most)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    points = [point(options, axis, value) for axis in options.vary for value in VARIED[axis]]
    rows = [
        [
            f"{p['axis']} {p['value']}",
            *(milliseconds(p["seconds"][arm]) for arm in (BASE, options.arm)),
            ratio(p["seconds"][options.arm], p["seconds"][BASE]),
            f"{p['peak_mib'][BASE]:.0f}",
            f"{p['peak_mib'][options.arm] - p['peak_mib'][BASE]:+.0f}",
        ]
        for p in points
    ]
    layers = SHAPES[options.backbone]["text_config"]["num_hidden_layers"]
    title = (
        f"`{options.backbone}`: {layers} language layers, batch {options.batch}, {options.images} camera(s), chunk "
        f"{options.chunk}, but for what a row says; {options.dtype} on {options.device}, {options.rounds} rounds."
    )
    header = ("changed", f"{BASE}, ms", f"{options.arm}, ms", "ratio", f"{BASE}, peak MiB", "more")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        draw(points, options, options.out.with_suffix(".png"))
    report([Table(title, header, rows)], options, points=points)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__file__, __doc__, rounds=2)
    parser.add_argument("--vary", type=lambda s: s.split(","), default=list(VARIED), help=f"some of {','.join(VARIED)}")
    parser.add_argument("--arm", default=OTHER, choices=[arm for arm in ARMS if arm != BASE], help="beside naive")
    add_training_options(parser, backbone="small-paligemma2", batch=4, chunk=16)
    options = parse(parser, arguments)
    if options.backbone not in SHAPES:
        parser.error(f"--backbone is one of {', '.join(SHAPES)}; received {options.backbone}")
    if unknown := sorted(set(options.vary) - set(VARIED)):
        parser.error(f"--vary is some of {', '.join(VARIED)}; received {', '.join(unknown)}")
    return options


if __name__ == "__main__":
    main()
