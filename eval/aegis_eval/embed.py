"""Tables of a comparison inside a document, made anew from its results.

A document says which table it wants where, in a comment that Markdown does not show:

    <!-- nano: success, of naive energy99 -->
    ... replaced by the table ...
    <!-- end -->

`nano` is the study's file without `.yaml`; without `of` the table has every arm that has run. `aegis-compare --into`
fills in those of its own study and leaves the others alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from aegis_eval.notes import difference_note, interval_note
from aegis_eval.results import Comparison
from aegis_eval.study import Study
from aegis_eval.tables import (
    UNTOUCHED,
    Cells,
    difference_cells,
    family_cells,
    markdown,
    probes_of,
    summary_cells,
    task_cells,
)

_OPENS = re.compile(r"<!-- [\w-]+: ")
_BLOCK = re.compile(
    r"(?P<open><!-- (?P<study>[\w-]+): (?P<table>[\w ]+?)(?:, of (?P<arms>[\w -]+?))? -->\n)(?P<old>.*?)"
    r"(?P<close><!-- end -->)",
    re.DOTALL,
)


def check_document(text: str, name: str, study: Study) -> None:
    """Refuses a document that has no place for a table of the study, or one for what there is not.

    Args:
        text: The document.
        name: The study's name, as its blocks call it.
        study: The study.

    Raises:
        ValueError: With the rule and the remedy.
    """
    blocks = [block for block in _BLOCK.finditer(text) if block["study"] == name]
    if not blocks:
        raise ValueError(
            f"The document has no place for a table of {name}. Write two lines where it is to stand: "
            f"`<!-- {name}: success -->` and `<!-- end -->`."
        )
    tables = [*_TABLES, *(f"{kind} {probe}" for kind in _BY_PROBE for probe in study.probes.names)]
    for block in blocks:
        if block["table"] not in tables:
            raise ValueError(f"There is no table {block['table']!r}. Tables: {', '.join(tables)}.")
        if _OPENS.search(block["old"]):
            raise ValueError(f"The place of the table {block['table']!r} has no end: write `<!-- end -->` below it.")
        for arm in (block["arms"] or "").split():
            study.arm(arm)


def embed_tables(text: str, study: str, comparison: Comparison) -> str:
    """The document with every block of the study filled in.

    Args:
        text: The document.
        study: The study's name, as its blocks call it.
        comparison: What was found.

    Raises:
        ValueError: As `check_document`.
    """
    check_document(text, study, comparison.study)

    def fill(block: re.Match[str]) -> str:
        if block["study"] != study:
            return block[0]
        return block["open"] + _table(block["table"], block["arms"], comparison) + block["close"]

    return _BLOCK.sub(fill, text)


def _table(name: str, arms: str | None, comparison: Comparison) -> str:
    if arms is not None:
        chosen = [comparison.study.arm(arm) for arm in arms.split()]
        comparison = replace(comparison, rows=[row for row in comparison.rows if row.arm in chosen])
    if name in _TABLES:
        return _TABLES[name](comparison)
    kind, probe = name.split(maxsplit=1)
    return _BY_PROBE[kind](comparison, probe)


def _progress(comparison: Comparison) -> str:
    done, planned = comparison.done, comparison.planned
    return f"{'All' if done == planned else f'{done} of'} {planned} runs have ended.\n"


def _families(comparison: Comparison, probe: str, *, retention: bool) -> str:
    if probe not in probes_of(comparison):
        return f"Nothing has been asked of {probe} yet.\n"
    return markdown(family_cells(comparison, probe, retention=retention))


def _trained(cells: Cells) -> Cells:
    """Without the row of the untouched backbone, which neither acts nor costs anything."""
    return [row for row in cells if row[0] != UNTOUCHED]


def _own(cells: Cells) -> Cells:
    """Without the columns that compare with the baseline, whose headings have a comma."""
    kept = [place for place, heading in enumerate(cells[0]) if "," not in heading]
    return [[row[place] for place in kept] for row in cells]


def _columns(cells: Cells, *beginnings: str) -> Cells:
    """The first column, and those whose heading begins with one of the words."""
    kept = [place for place, heading in enumerate(cells[0]) if place == 0 or heading.startswith(beginnings)]
    return [[row[place] for place in kept] for row in cells]


_TABLES: Mapping[str, Callable[[Comparison], str]] = {
    "overview": lambda c: markdown(_trained(_columns(_own(summary_cells(c)), "retention", "perplexity", "success"))),
    "knowledge": lambda c: markdown(_columns(summary_cells(c), "VQA", "retention", "worst", "perplexity")),
    "success": lambda c: markdown(_trained(_columns(summary_cells(c), "success"))),
    "cost": lambda c: markdown(_trained(_columns(summary_cells(c), "action", "ms", "memory"))),
    "tasks": lambda c: markdown(task_cells(c)),
    "differences": lambda c: markdown(difference_cells(c)),
    "progress": _progress,
    "note": lambda c: f"{interval_note(c)} {c.study.rollouts.chance_note}\n",
    "difference note": lambda c: f"{difference_note(c)}\n",
}
_BY_PROBE: Mapping[str, Callable[[Comparison, str], str]] = {
    "families": partial(_families, retention=False),
    "retention": partial(_families, retention=True),
}
