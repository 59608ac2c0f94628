"""Writes a comparison's files: results.json, table.csv, table.md and index.html."""

from pathlib import Path

from aegis_eval.facts import Origin
from aegis_eval.notes import difference_note, interval_note
from aegis_eval.page import render_page
from aegis_eval.probes import find_probe
from aegis_eval.results import Comparison
from aegis_eval.tables import (
    difference_cells,
    family_cells,
    markdown,
    probes_of,
    spreadsheet,
    summary_cells,
    task_cells,
)


def write_reports(comparison: Comparison, source: Origin, folder: Path) -> Path:
    """Write JSON, CSV, Markdown and the page into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    comparison.write(folder / "results.json")
    (folder / "table.csv").write_text(spreadsheet(comparison))
    (folder / "table.md").write_text(render_markdown(comparison, source), encoding="utf-8")
    page = folder / "index.html"
    page.write_text(render_page(comparison, source, folder=folder), encoding="utf-8")
    return page


def render_markdown(comparison: Comparison, source: Origin) -> str:
    """The tables as one Markdown document."""
    study = comparison.study
    parts = [f"# {study.title}\n\n{study.summary}\n"]
    if comparison.done < comparison.planned:
        parts.append(f"Partial: {comparison.done} of {comparison.planned} runs.\n")
    parts += [
        f"Command: `{source.command}`\n",
        markdown(summary_cells(comparison)),
        f"{interval_note(comparison)} {study.rollouts.chance_note}\n",
        "## Success by task\n",
        markdown(task_cells(comparison)),
    ]
    differences = difference_cells(comparison)
    if len(differences) > 1:
        parts += [
            "## Differences over the same questions and initial states\n",
            markdown(differences),
            f"{difference_note(comparison)}\n",
        ]
    for probe in probes_of(comparison):
        for retention in (False, True):
            cells = family_cells(comparison, probe, retention=retention)
            if cells:
                parts += [
                    f"## {'Retention' if retention else 'VQA accuracy'} in percent: {probe}\n",
                    f"{find_probe(probe).description.capitalize()}.\n",
                    markdown(cells),
                ]
    return "\n".join(parts)
