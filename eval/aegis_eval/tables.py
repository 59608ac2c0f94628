"""A study as tables: for the terminal, for Markdown, for spreadsheets."""

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from aegis_eval.results import Arm, Study
from aegis_eval.scoring import ALL
from aegis_eval.statistics import PairedComparison, Rate

Cells = list[list[str]]
NOTHING = "–"


def percent(found: Rate | None) -> str:
    """`"93.1 [91.2, 94.6]"`, in percent with the 95 % Wilson interval."""
    if found is None or not found.trials:
        return NOTHING
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def points(found: PairedComparison | None) -> str:
    """`"-4.2 [-6.0, -2.5]"`, a paired difference in percentage points with its 95 % interval."""
    if found is None:
        return NOTHING
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def number(value: float | None, form: str) -> str:
    """A formatted number, or a dash."""
    return NOTHING if value is None else format(value, form)


def summary_cells(study: Study) -> Cells:
    """Heading and one row an arm: accuracy a probe, success, action loss, time."""
    head = ["arm", *[f"VQA {probe} (%)" for probe in study.probes], "success (%)", "action loss", "ms a step"]
    return [head, *[_summary_row(study, arm) for arm in (study.reference, *study.arms)]]


def _summary_row(study: Study, arm: Arm) -> list[str]:
    accuracies = [percent(arm.probes[p].family()) if p in arm.probes else NOTHING for p in study.probes]
    milliseconds = None if arm.step_s is None else 1000 * arm.step_s
    return [
        arm.label,
        *accuracies,
        percent(arm.success),
        number(arm.action_loss, ".3f"),
        number(milliseconds, ".0f"),
    ]


def difference_cells(study: Study) -> Cells:
    """Heading and one row an arm: paired differences from the untouched backbone and from the first arm."""
    first = study.arms[0]
    head = [
        "arm",
        *[f"VQA {probe}, change (points)" for probe in study.probes],
        *[f"VQA {probe}, over {first.label} (points)" for probe in study.probes],
        f"success, over {first.label} (points)",
        "McNemar p",
    ]
    rows = []
    for arm in study.arms:
        success = study.success_difference(arm)
        rows.append(
            [
                arm.label,
                *[points(study.probe_difference(arm, probe)) for probe in study.probes],
                *[points(study.probe_difference(arm, probe, other=first)) for probe in study.probes],
                points(success),
                number(success.p_value if success else None, ".3f"),
            ]
        )
    return [head, *rows]


def family_cells(study: Study, probe: str) -> Cells:
    """Heading and one row a question family: accuracy in percent, an arm a column."""
    arms = [arm for arm in (study.reference, *study.arms) if probe in arm.probes]
    families = [*study.reference.probes[probe].names(), ALL] if arms else []
    head = ["family", *[arm.label for arm in arms], "questions"]
    rows = []
    for family in families:
        found = [arm.probes[probe].family(family) for arm in arms]
        rows.append([family, *[f"{100 * f.value:.1f}" for f in found], str(found[0].trials)])
    return [head, *rows]


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


def spreadsheet(study: Study) -> str:
    """CSV with a number a cell: one row an arm, rates as shares with their bounds."""
    columns: dict[str, list[str]] = {"arm": []}
    arms = (study.reference, *study.arms)
    columns["arm"] = [arm.name for arm in arms]
    for probe in study.probes:
        names = study.reference.probes[probe].names() if probe in study.reference.probes else []
        for family in (ALL, *names):
            rates = [arm.probes[probe].family(family) if probe in arm.probes else None for arm in arms]
            columns |= _rate_columns(f"vqa_{probe}_{family}", rates)
    columns |= _rate_columns("success", [arm.success for arm in arms])
    columns["action_loss"] = [_plain(arm.action_loss) for arm in arms]
    columns["step_s"] = [_plain(arm.step_s) for arm in arms]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _rate_columns(name: str, rates: Sequence[Rate | None]) -> dict[str, list[str]]:
    return {
        name: [_plain(r.value if r else None) for r in rates],
        f"{name}_low": [_plain(r.low if r else None) for r in rates],
        f"{name}_high": [_plain(r.high if r else None) for r in rates],
        f"{name}_n": [str(r.trials) if r else "" for r in rates],
    }


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
