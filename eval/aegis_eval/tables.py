"""A comparison as tables: for the terminal, for Markdown, for spreadsheets.

A cell is text, `"93.1 [91.2, 94.6] (92.8, 93.0, 93.5)"`: the mean over seeds, its 95 % interval, every seed's value.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from rich.table import Table

from aegis_eval.bootstrap import Estimate
from aegis_eval.results import WORST, Comparison, Row
from aegis_eval.run_result import RunResult
from aegis_eval.scoring import ALL

Cells = list[list[str]]
NOTHING = "–"
UNTOUCHED = "untouched"
_PARTS = re.compile(r"^(?P<value>.*?)(?P<range> \[[^\]]*\])?(?P<seeds> \([^)]*\))?$")


def percent(found: Estimate | None, *, seeds: bool = True, sign: str = "") -> str:
    """`"93.1 [91.2, 94.6] (92.8, 93.0, 93.5)"`, in percent or, with the sign `"+"`, in points."""
    return estimated(found, form=f"{sign}.1f", seeds=seeds, times=100)


def estimated(found: Estimate | None, *, form: str, seeds: bool = True, times: float = 1) -> str:
    """`"34.43 [30.12, 39.00] (34.40, 34.46)"`: value, interval and, where there are several, every seed's."""
    if found is None:
        return NOTHING
    value, low, high, *by_seed = (
        f"{times * one:{form}}" for one in (found.value, found.low, found.high, *found.by_seed.values())
    )
    return f"{value} [{low}, {high}]" + (f" ({', '.join(by_seed)})" if seeds and len(by_seed) > 1 else "")


def parts(text: str) -> tuple[str, str, str]:
    """Value, interval and seeds of a cell; empty where it has none."""
    found = _PARTS.match(text)
    assert found is not None  # every part may be empty
    return found["value"], (found["range"] or "").strip(), (found["seeds"] or "").strip()


def number(value: float | None, form: str) -> str:
    """A formatted number, or a dash."""
    return NOTHING if value is None else format(value, form)


def row_name(comparison: Comparison, row: Row) -> str:
    """The arm's label, with the learning rate where there are several."""
    return f"{row.arm.label}, {row.lr:g}" if len(comparison.learning_rates) > 1 else row.arm.label


def probes_of(comparison: Comparison) -> list[str]:
    """Probes that any row, or the untouched backbone, answered."""
    return list(dict.fromkeys([*comparison.untouched, *(probe for row in comparison.rows for probe in row.vqa)]))


def passages_of(comparison: Comparison) -> list[str]:
    """Probes whose passages any row, or the untouched backbone, read."""
    rows = (probe for row in comparison.rows for probe in row.perplexity)
    return list(dict.fromkeys([*comparison.untouched_perplexity, *rows]))


def sets_of(comparison: Comparison) -> list[str]:
    """Sets that any row was rolled out on."""
    return list(dict.fromkeys(name for row in comparison.rows for name in row.success))


def summary_cells(comparison: Comparison, *, seeds: bool = True) -> Cells:
    """Heading and one row an arm and learning rate; the untouched backbone first."""
    probes, sets, base = probes_of(comparison), sets_of(comparison), comparison.study.arm(comparison.study.baseline)
    passages = passages_of(comparison)
    head = [
        "arm",
        *[f"VQA {probe} (%)" for probe in probes],
        *[f"perplexity {probe}" for probe in passages],
        *[f"retention {probe} (%)" for probe in probes],
        *[f"worst family {probe} (%)" for probe in probes],
        *[f"perplexity {probe} / {UNTOUCHED}" for probe in passages],
        *[f"success {name} (%)" for name in sets],
        *[f"success {name}, over {base.label} (points)" for name in sets],
        "action loss",
        "ms a step",
        "memory (MiB)",
    ]
    untouched = [
        *[percent(comparison.untouched.get(probe, {}).get(ALL), seeds=False) for probe in probes],
        *[estimated(comparison.untouched_perplexity.get(probe), form=".2f", seeds=False) for probe in passages],
    ]
    first = [UNTOUCHED, *untouched, *[NOTHING] * (len(head) - 1 - len(untouched))]
    rows = [
        [
            row_name(comparison, row),
            *[percent(row.vqa.get(p, {}).get(ALL), seeds=seeds) for p in probes],
            *[estimated(row.perplexity.get(p), form=".2f", seeds=seeds) for p in passages],
            *[percent(row.retention.get(p, {}).get(ALL), seeds=seeds) for p in probes],
            *[percent(row.retention.get(p, {}).get(WORST), seeds=seeds) for p in probes],
            *[estimated(row.perplexity_ratio.get(p), form=".3f", seeds=seeds) for p in passages],
            *[percent(row.success.get(s), seeds=seeds) for s in sets],
            *[percent(row.success_difference.get(s), seeds=seeds, sign="+") for s in sets],
            number(row.action_loss, ".3f"),
            number(None if row.step_s is None else 1000 * row.step_s, ".0f"),
            number(row.memory_mib, ".0f"),
        ]
        for row in comparison.rows
    ]
    return [head, first, *rows]


def short_cells(comparison: Comparison) -> Cells:
    """The columns that fit a terminal: accuracy or perplexity a probe, success a set, action loss, time."""
    cells = summary_cells(comparison, seeds=False)
    kept = [
        place
        for place, heading in enumerate(cells[0])
        if heading == "arm"
        or heading.startswith(("VQA", "action", "ms"))
        or re.match(r"success [^,]*$|perplexity [^/]*$", heading)
    ]
    return [[row[place] for place in kept] for row in cells]


def task_cells(comparison: Comparison) -> Cells:
    """Heading and one row an arm and learning rate: success by task of every set."""
    columns = [(s, task) for s in sets_of(comparison) for task in _tasks_of(comparison, s)]
    head = ["arm", *[f"{task}, {name} (%)" for name, task in columns]]
    rows = [
        [row_name(comparison, row), *[percent(row.tasks.get(name, {}).get(task)) for name, task in columns]]
        for row in comparison.rows
    ]
    return [head, *rows]


def difference_cells(comparison: Comparison) -> Cells:
    """Heading and one row an arm and learning rate: paired differences from the baseline at the same rate."""
    probes, sets, base = probes_of(comparison), sets_of(comparison), comparison.study.arm(comparison.study.baseline)
    head = [
        "arm",
        *[f"VQA {probe}, over {base.label} (points)" for probe in probes],
        *[f"success {name}, over {base.label} (points)" for name in sets],
    ]
    rows = [
        [
            row_name(comparison, row),
            *[percent(row.vqa_difference.get(p), sign="+") for p in probes],
            *[percent(row.success_difference.get(s), sign="+") for s in sets],
        ]
        for row in comparison.rows
        if row.arm != base
    ]
    return [head, *rows]


def family_cells(comparison: Comparison, probe: str, *, retention: bool = False) -> Cells:
    """Heading and one row an arm and learning rate: accuracy, or retention, in percent by question family."""
    tables: list[tuple[str, Mapping[str, Estimate]]] = []
    if not retention and probe in comparison.untouched:
        tables.append((UNTOUCHED, comparison.untouched[probe]))
    for row in comparison.rows:
        found = (row.retention if retention else row.vqa).get(probe)
        if found:
            tables.append((row_name(comparison, row), found))
    families = list(dict.fromkeys(f for _, found in tables for f in found if f not in (ALL, WORST)))
    if not families:
        return []
    columns = [*families, ALL]
    rows = [
        [name, *[number(100 * found[f].value if f in found else None, ".1f") for f in columns]]
        for name, found in tables
    ]
    return [["arm", *columns], *rows]


def markdown(cells: Cells) -> str:
    """A Markdown table; all columns but the first aligned to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: Sequence[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *[text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True)],
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * widths[0]), *["-" * (w - 1) + ":" for w in widths[1:]]]
    return "\n".join([line(cells[0]), line(rule), *[line(row) for row in cells[1:]]]) + "\n"


def terminal(cells: Cells, *, title: str) -> Table:
    """The same for a terminal, intervals below their values."""
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(cells[0]):
        table.add_column(heading, justify="right" if place else "left")
    for row in cells[1:]:
        table.add_row(*[text.replace(" [", "\n[").replace(", ", ",\u00a0") for text in row])
    return table


def spreadsheet(comparison: Comparison) -> str:
    """CSV with a number a cell: a row a run, and a row an arm and learning rate (`seed` is `all`) with bounds."""
    records: list[dict[str, str]] = []
    if comparison.pretrained is not None:
        before = _pooled_vqa(comparison.untouched) | _pooled("perplexity", comparison.untouched_perplexity)
        records.append({"arm": "pretrained"} | before)
    for row in comparison.rows:
        key = {"arm": row.arm.name, "lr": f"{row.lr:g}"}
        records += [key | _run_record(row, run) for run in row.runs.values()]
        records.append(key | _row_record(row))
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _row_record(row: Row) -> dict[str, str]:
    record = {"seed": "all", "seeds": str(len(row.runs))} | _pooled_vqa(row.vqa)
    for probe, found in row.retention.items():
        for family, estimate in found.items():
            record |= _bounds(f"retention_{probe}_{family}", estimate)
    record |= _pooled("perplexity", row.perplexity) | _pooled("perplexity_ratio", row.perplexity_ratio)
    record |= _pooled("success", row.success)
    for name, tasks in row.tasks.items():
        for task, estimate in tasks.items():
            record |= _bounds(f"success_{name}_{task}", estimate)
    for name, estimate in row.success_difference.items():
        record |= _bounds(f"success_{name}_over_baseline", estimate)
    for probe, estimate in row.vqa_difference.items():
        record |= _bounds(f"vqa_{probe}_over_baseline", estimate)
    return record | _costs(row)


def _run_record(row: Row, run: RunResult) -> dict[str, str]:
    """Values of one seed, in the columns of the pooled rows."""
    record = {"seed": str(run.seed), "seeds": "1", "commit": run.commit}
    for prefix, tables in (("vqa", row.vqa), ("retention", row.retention), ("success", row.tasks)):
        for name, by_family in tables.items():
            record |= {f"{prefix}_{name}_{key}": _plain(e.by_seed.get(run.seed)) for key, e in by_family.items()}
    for prefix, found in (
        ("perplexity", row.perplexity),
        ("perplexity_ratio", row.perplexity_ratio),
        ("success", row.success),
    ):
        record |= {f"{prefix}_{name}": _plain(estimate.by_seed.get(run.seed)) for name, estimate in found.items()}
    return record | _costs(run)


def _pooled_vqa(tables: Mapping[str, Mapping[str, Estimate]]) -> dict[str, str]:
    record: dict[str, str] = {}
    for probe, found in tables.items():
        for family, estimate in found.items():
            record |= _bounds(f"vqa_{probe}_{family}", estimate)
    return record


def _pooled(prefix: str, found: Mapping[str, Estimate]) -> dict[str, str]:
    record: dict[str, str] = {}
    for name, estimate in found.items():
        record |= _bounds(f"{prefix}_{name}", estimate)
    return record


def _costs(found: Row | RunResult) -> dict[str, str]:
    return {name: _plain(getattr(found, name)) for name in ("action_loss", "step_s", "memory_mib")}


def _bounds(name: str, estimate: Estimate) -> dict[str, str]:
    return {name: _plain(estimate.value), f"{name}_low": _plain(estimate.low), f"{name}_high": _plain(estimate.high)}


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _tasks_of(comparison: Comparison, name: str) -> list[str]:
    return list(dict.fromkeys(task for row in comparison.rows for task in row.tasks.get(name, {})))
