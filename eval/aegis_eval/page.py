"""A study as one HTML page that needs nothing but itself: figures, films and style are inside it."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from aegis_eval.plots import ARMS, Plot, all_plots
from aegis_eval.results import Arm, Study
from aegis_eval.scoring import ALL
from aegis_eval.statistics import Rate
from aegis_eval.tables import NOTHING, Cells, difference_cells, family_cells, summary_cells

FILMS = 4  # an arm: the first episodes, chosen by nobody


def write_page(study: Study, path: Path, *, folder: Path) -> None:
    """Write the page.

    Args:
        study: What was found.
        path: The HTML file.
        folder: What the study's video paths are relative to.
    """
    path.write_text(render_page(study, folder=folder), encoding="utf-8")


def render_page(study: Study, *, folder: Path) -> str:
    """The page's HTML."""
    plots = all_plots(study)
    body = [
        _header(study),
        _tiles(study),
        _figures([plots[name] for name in ("vqa", "tradeoff") if name in plots]),
        _summary(study),
        _families(study),
        _inside([plots[name] for name in ("layers", "loss") if name in plots]),
        _films(study, folder),
        _facts(study),
    ]
    style = (files("aegis_eval") / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(study: Study) -> str:
    return (
        f'<header>\n<p class="eyebrow">aegis-demo</p>\n<h1>{escape(study.title)}</h1>\n'
        f'<p class="lead">{escape(study.summary)}</p>\n</header>'
    )


def _tiles(study: Study) -> str:
    tiles = "\n".join(_tile(study, arm) for arm in study.arms)
    return f'<section class="tiles">\n{tiles}\n</section>'


def _tile(study: Study, arm: Arm) -> str:
    rows = []
    for probe in study.probes:
        if probe in arm.probes:
            before = study.reference.probes.get(probe)
            small = f"from {_share(before.family())}" if before else ""
            rows.append((f"VQA, {probe}", _share(arm.probes[probe].family()), small))
    if arm.success is not None:
        rows.append(("success", _share(arm.success), f"{_range(arm.success)} of {arm.success.trials} episodes"))
    listed = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{value}<small>{escape(small)}</small></dd>" for name, value, small in rows
    )
    return (
        f'<article class="tile" style="{_colour(study, arm)}">\n<h3>{escape(arm.label)}</h3>\n'
        f"<p>{escape(arm.note)}</p>\n<dl>\n{listed}\n</dl>\n</article>"
    )


def _figures(plots: Sequence[Plot]) -> str:
    figures = "\n".join(
        f"<figure>\n{plot.svg}\n<figcaption>{escape(plot.caption)}</figcaption>\n</figure>" for plot in plots
    )
    return f'<section class="figures" style="margin-top:1rem">\n{figures}\n</section>' if plots else ""


def _summary(study: Study) -> str:
    return (
        "<h2>Before and after</h2>\n"
        '<p class="note">Square brackets hold 95 % Wilson intervals. They cover the choice of questions and of initial '
        "states, not that of the training seed: there is one seed an arm. Every arm meets the same questions and "
        f"the same initial states. {escape(study.chance_note)}</p>\n"
        + _panel(_table(study, summary_cells(study)))
        + "<h2>Differences, pair by pair</h2>\n"
        '<p class="note">The same questions and initial states make pairs: percentage points with Newcombe’s 95 % '
        "interval for paired rates, and the exact McNemar test for success.</p>\n"
        + _panel(_table(study, difference_cells(study)))
    )


def _families(study: Study) -> str:
    parts = ["<h2>What is forgotten</h2>"]
    for probe, asks in study.probes.items():
        cells = family_cells(study, probe)
        if len(cells) > 1:
            parts.append(_panel(f"<h3>{escape(probe)}</h3>\n{_heat_table(cells)}"))
            parts.append(f'<p class="note">Accuracy in percent: {escape(asks)}.</p>')
    return "\n".join(parts) if len(parts) > 1 else ""


def _inside(plots: Sequence[Plot]) -> str:
    return f"<h2>Inside the training</h2>\n{_figures(plots)}" if plots else ""


def _films(study: Study, folder: Path) -> str:
    arms = [arm for arm in study.arms if arm.videos and arm.successes is not None]
    if not arms:
        return ""
    blocks = []
    for arm in arms:
        assert arm.successes is not None
        films = "\n".join(
            _film(folder / video, succeeded, told)
            for video, succeeded, told in zip(arm.videos[:FILMS], arm.successes, _told(study), strict=False)
        )
        blocks.append(
            f'<div style="{_colour(study, arm)}"><h3><span class="dot"></span>{escape(arm.label)}</h3>\n'
            f'<div class="films">\n{films}\n</div></div>'
        )
    return (
        "<h2>Rollouts</h2>\n"
        f'<p class="note">The first {FILMS} episodes of each arm: one column of pictures a method, the same initial '
        "state in the same place.</p>\n"
        '<section class="rollouts">\n' + "\n".join(blocks) + "\n</section>"
    )


def _told(study: Study) -> list[str]:
    numbers = [f"episode {episode}" for episode in range(FILMS)]
    return [f"“{told}”" for told in study.instructions] + numbers[len(study.instructions) :]


def _film(path: Path, succeeded: bool, told: str) -> str:
    data = b64encode(path.read_bytes()).decode()
    verdict = '<span class="yes">success</span>' if succeeded else '<span class="no">failure</span>'
    return (
        '<div class="film"><video muted loop autoplay playsinline preload="auto" '
        f'src="data:video/mp4;base64,{data}"></video><span>{escape(told)}: </span>{verdict}</div>'
    )


def _facts(study: Study) -> str:
    facts = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in study.facts.items())
    commands = "\n".join(
        f"<h3>{escape(name)}</h3>\n<pre>{escape(command)}</pre><p class='note'>{seconds:.0f} s</p>"
        for name, command, seconds in study.commands
    )
    listed = (
        f"<details>\n<summary>The exact commands ({len(study.commands)})</summary>\n{commands}\n</details>"
        if study.commands
        else ""
    )
    return f'<h2>How this was made</h2>\n<dl class="facts">\n{facts}\n</dl>\n{listed}'


def _table(study: Study, cells: Cells) -> str:
    """A table whose `value [low, high]` cells show the interval below the value."""
    colours = {arm.label: _colour(study, arm) for arm in (study.reference, *study.arms)}
    rows = []
    for row in cells[1:]:
        name = f'<td style="{colours[row[0]]}"><span class="dot"></span>{escape(row[0])}</td>'
        rows.append("<tr>" + name + "".join(f"<td>{_with_range(text)}</td>" for text in row[1:]) + "</tr>")
    return _framed(cells[0], rows)


def _heat_table(cells: Cells) -> str:
    """Accuracies on a tinted ground, the pooled row last."""
    rows = []
    for row in cells[1:]:
        tinted = "".join(f'<td class="heat" style="--share:{float(v) / 100:.3f}">{v}</td>' for v in row[1:-1])
        total = ' class="total"' if row[0] == ALL else ""
        name = row[0].replace("_", " / ")
        rows.append(f"<tr{total}><td>{escape(name)}</td>{tinted}<td>{row[-1]}</td></tr>")
    return _framed(cells[0], rows)


def _framed(head: Sequence[str], rows: Sequence[str]) -> str:
    headings = "".join(f"<th>{escape(text)}</th>" for text in head)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{headings}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>"
    )


def _with_range(text: str) -> str:
    value, bracket, rest = text.partition(" [")
    return f'{escape(value)}<span class="range">[{escape(rest)}</span>' if bracket else escape(text)


def _panel(content: str) -> str:
    return f'<div class="panel">{content}</div>\n'


def _share(found: Rate) -> str:
    return f"{100 * found.value:.1f} %" if found.trials else NOTHING


def _range(found: Rate) -> str:
    return f"{100 * found.low:.0f}–{100 * found.high:.0f} %"


def _colour(study: Study, arm: Arm) -> str:
    names = [a.name for a in study.arms]
    variable = f"--arm-{names.index(arm.name) % len(ARMS)}" if arm.name in names else "--reference"
    return f"--arm:var({variable})"
