"""A comparison as one HTML page that needs nothing but itself: figures, films, style and script are inside it."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from aegis_eval.bootstrap import Estimate
from aegis_eval.facts import Origin, facts, seconds_of, shown_commands
from aegis_eval.figure_style import ARMS, Plot
from aegis_eval.films import chosen_films, film_html
from aegis_eval.notes import difference_note, interval_note
from aegis_eval.plots import inner_plots, pooled_vqa_over_steps
from aegis_eval.probes import find_probe
from aegis_eval.results import Comparison, Row
from aegis_eval.scoring import ALL
from aegis_eval.tables import (
    Cells,
    difference_cells,
    family_cells,
    parts,
    probes_of,
    row_name,
    summary_cells,
    task_cells,
)
from aegis_eval.tradeoffs import tradeoffs

MOST_TILES = 4  # more arms than that are better read in the table


def render_page(comparison: Comparison, source: Origin, *, folder: Path) -> str:
    """The page's HTML.

    Args:
        comparison: What was found.
        source: The command that made it.
        folder: What the video paths are relative to.
    """
    body = [
        _header(comparison, source),
        _tiles(comparison),
        _figures([*_first(comparison), *tradeoffs(comparison)]),
        _summary(comparison),
        _families(comparison),
        _section("Inside the training", inner_plots(comparison)),
        _films(comparison, folder),
        _made(comparison, source),
    ]
    package = files("aegis_eval")
    style = (package / "page.css").read_text(encoding="utf-8")
    script = (package / "page.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(comparison.study.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _header(comparison: Comparison, source: Origin) -> str:
    partial = (
        f'<p class="partial">Partial: {comparison.done} of {comparison.planned} runs have ended. Every number here is '
        "that of the runs there are.</p>\n"
        if comparison.done < comparison.planned
        else ""
    )
    return (
        f'<header>\n<p class="eyebrow">{escape(source.program)}</p>\n<h1>{escape(comparison.study.title)}</h1>\n'
        f'<p class="lead">{escape(comparison.study.summary)}</p>\n{partial}</header>'
    )


def _tiles(comparison: Comparison) -> str:
    if len(comparison.rows) > MOST_TILES:
        return ""
    tiles = "\n".join(_tile(comparison, row) for row in comparison.rows)
    return f'<section class="tiles">\n{tiles}\n</section>'


def _tile(comparison: Comparison, row: Row) -> str:
    rows = []
    for probe, found in row.vqa.items():
        before = comparison.untouched.get(probe, {}).get(ALL)
        rows.append((f"VQA, {probe}", _share(found[ALL]), f"from {_share(before)}" if before else ""))
    for probe, estimate in row.perplexity.items():
        start = comparison.untouched_perplexity.get(probe)
        rows.append((f"perplexity, {probe}", f"{estimate.value:.1f}", f"from {start.value:.1f}" if start else ""))
    for name, acts in row.success.items():
        rows.append((f"success, {name.replace('_', ' ')}", _share(acts), _range(acts)))
    listed = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{value}<small>{escape(small)}</small></dd>" for name, value, small in rows
    )
    return (
        f'<article class="tile" style="{_colour(comparison, row)}">\n<h3>{escape(row_name(comparison, row))}</h3>\n'
        f"<p>{escape(row.arm.note)}</p>\n<dl>\n{listed}\n</dl>\n</article>"
    )


def _figures(plots: Sequence[Plot]) -> str:
    figures = "\n".join(
        f'<figure{" class=wide" if plot.wide else ""}>\n<div class="scroll">{plot.svg}</div>\n'
        f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
        for plot in plots
    )
    return f'<section class="figures">\n{figures}\n</section>' if plots else ""


def _first(comparison: Comparison) -> list[Plot]:
    """Of a few arms, how they forget, before everything else."""
    plot = pooled_vqa_over_steps(comparison) if len(comparison.rows) <= MOST_TILES else None
    return [] if plot is None else [plot]


def _section(title: str, plots: Sequence[Plot]) -> str:
    return f"<h2>{escape(title)}</h2>\n{_figures(plots)}" if plots else ""


def _summary(comparison: Comparison) -> str:
    parts_ = [
        "<h2>Before and after</h2>\n",
        f'<p class="note">{escape(interval_note(comparison))} {escape(comparison.study.rollouts.chance_note)}</p>\n',
        _panel(_table(comparison, summary_cells(comparison))),
    ]
    tasks = task_cells(comparison)
    if len(tasks[0]) > 2:
        parts_.append("<h2>Success by task</h2>\n" + _panel(_table(comparison, tasks)))
    differences = difference_cells(comparison)
    if len(differences) > 1:
        parts_ += [
            "<h2>Differences, pair by pair</h2>\n",
            f'<p class="note">{escape(difference_note(comparison))}</p>\n',
            _panel(_table(comparison, differences)),
        ]
    return "".join(parts_)


def _families(comparison: Comparison) -> str:
    blocks = []
    for probe in probes_of(comparison):
        for retention in (False, True):
            cells = family_cells(comparison, probe, retention=retention)
            # With few arms the accuracies say it all.
            if len(cells) > 1 and (not retention or len(comparison.rows) > MOST_TILES):
                what = "retention" if retention else "accuracy"
                blocks.append(_panel(f"<h3>{escape(probe)}, {what}</h3>\n{_heat_table(comparison, cells)}"))
        blocks.append(f'<p class="note">In percent: {escape(find_probe(probe).description)}.</p>')
    return "<h2>What is forgotten</h2>\n" + "\n".join(blocks) if blocks else ""


def _films(comparison: Comparison, folder: Path) -> str:
    chosen = chosen_films(comparison, folder=folder)
    if not chosen:
        return ""
    blocks = []
    for row, films in chosen:
        shown = "\n".join(film_html(film) for film in films)
        blocks.append(
            f'<div style="{_colour(comparison, row)}"><h3><span class="dot"></span>'
            f'{escape(row_name(comparison, row))}</h3>\n<div class="films">\n{shown}\n</div></div>'
        )
    several = len(comparison.learning_rates) > 1
    rate = f" at learning rate {max(comparison.learning_rates):g}" if several else ""
    seed = ", of its first seed" if len(comparison.seeds) > 1 else ""
    return (
        "<h2>Rollouts</h2>\n"
        f'<p class="note">The first episodes of each arm{rate}{seed}, as far as films were kept and fit into this '
        "page: the same initial state in the same place.</p>\n"
        '<section class="rollouts">\n' + "\n".join(blocks) + "\n</section>"
    )


def _made(comparison: Comparison, source: Origin) -> str:
    listed = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(comparison, source).items())
    commands, note = shown_commands(comparison)
    typed = "\n".join(
        f"<h3>{escape(one.name)}</h3>\n<pre>{escape(one.command)}</pre><p class='note'>{seconds_of(one)}</p>"
        for one in commands
    )
    details = (
        f"<details>\n<summary>The exact commands ({len(commands)})</summary>\n"
        f'<p class="note">{escape(note)}</p>\n{typed}\n</details>'
        if commands
        else ""
    )
    return f'<h2>How this was made</h2>\n<dl class="facts">\n{listed}\n</dl>\n{_notes(comparison)}{details}'


def _notes(comparison: Comparison) -> str:
    """What each arm does, where no tile says so."""
    if len(comparison.rows) <= MOST_TILES or not any(arm.note for arm in comparison.study.arms):
        return ""
    noted = "\n".join(f"<dt>{escape(arm.label)}</dt><dd>{escape(arm.note)}</dd>" for arm in comparison.study.arms)
    return f'<h3>The arms</h3>\n<dl class="facts">\n{noted}\n</dl>\n'


def _table(comparison: Comparison, cells: Cells) -> str:
    """A table whose cells show interval and seeds below the value."""
    colours = {row_name(comparison, row): _colour(comparison, row) for row in comparison.rows}
    rows = []
    for row in cells[1:]:
        colour = colours.get(row[0], "--arm:var(--reference)")
        name = f'<td style="{colour}"><span class="dot"></span>{escape(row[0])}</td>'
        rows.append("<tr>" + name + "".join(f"<td>{_stacked(text)}</td>" for text in row[1:]) + "</tr>")
    return _framed(cells[0], rows)


def _heat_table(comparison: Comparison, cells: Cells) -> str:
    """Percentages on a tinted ground, those of all questions last."""
    colours = {row_name(comparison, row): _colour(comparison, row) for row in comparison.rows}
    rows = []
    for row in cells[1:]:
        colour = colours.get(row[0], "--arm:var(--reference)")
        tinted = "".join(f'<td class="heat" style="--share:{_tint(v):.3f}">{v}</td>' for v in row[1:])
        rows.append(f'<tr><td style="{colour}"><span class="dot"></span>{escape(row[0])}</td>{tinted}</tr>')
    return _framed([heading.replace("_", " / ") for heading in cells[0]], rows)


def _tint(text: str) -> float:
    """Depth of a tint in [0, 1] for a percentage; none for a dash."""
    try:
        return min(max(float(text) / 100, 0.0), 1.0)
    except ValueError:
        return 0.0


def _framed(head: Sequence[str], rows: Sequence[str]) -> str:
    headings = "".join(f"<th>{escape(text)}</th>" for text in head)
    return (
        f'<div class="scroll"><table class="sortable">\n<thead><tr>{headings}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>"
    )


def _stacked(text: str) -> str:
    value, interval, seeds = parts(text)
    small = "".join(f'<span class="range">{escape(part)}</span>' for part in (interval, seeds) if part)
    return escape(value) + small


def _panel(content: str) -> str:
    return f'<div class="panel">{content}</div>\n'


def _share(found: Estimate) -> str:
    return f"{100 * found.value:.1f} %"


def _range(found: Estimate) -> str:
    return f"{100 * found.low:.0f}–{100 * found.high:.0f} %"


def _colour(comparison: Comparison, row: Row) -> str:
    return f"--arm:var(--arm-{comparison.place(row) % len(ARMS)})"
