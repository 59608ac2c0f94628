"""`aegis-probe`: what does this checkpoint still know?"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from aegis_envs import choose_gl_backend
from aegis_eval.checkpoints import find_checkpoint
from aegis_eval.probes import Probe, find_probe, list_probes, read_probe_file, standard_probes
from aegis_eval.scoring import ALL, Score
from aegis_eval.surprise import Surprise

SCHEMA = 1  # of the JSON file; goes up when a reader of an older file would misread it


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    console = Console(stderr=True)
    try:
        probes = _chosen_probes(arguments)
        _check_writable(arguments.out)
        checkpoint = find_checkpoint(arguments.checkpoint)
    except (ValueError, OSError) as error:
        console.print(f"aegis-probe: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    choose_gl_backend()
    # Loads torch and transformers: not for --help or a mistake on the command line.
    from aegis_policy.answering import load_vlm

    started = time.perf_counter()
    try:
        with console.status(f"Loading {checkpoint}"):
            vlm = load_vlm(str(checkpoint), device=arguments.device, adapters=arguments.adapters == "on")
    except ValueError as error:
        console.print(f"aegis-probe: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    try:
        scores = {probe.name: _run(vlm, probe, arguments.batch_size, console) for probe in probes}
    except ValueError as error:
        console.print(f"aegis-probe: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    graded = {name: score for name, score in scores.items() if isinstance(score, Score)}
    surprised = {name: score for name, score in scores.items() if isinstance(score, Surprise)}
    if graded:
        Console().print(score_table(graded, title=str(checkpoint)))
    if surprised:
        Console().print(surprise_table(surprised, title=str(checkpoint)))
    if arguments.out is not None:
        report = make_report(
            checkpoint,
            probes,
            scores,
            fingerprint=vlm.fingerprint,
            adapters=arguments.adapters,
            seconds=time.perf_counter() - started,
        )
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        console.print(f"Wrote {arguments.out}", markup=False, soft_wrap=True)
    return 0


def score_table(scores: dict[str, Score], *, title: str) -> Table:
    """Accuracy by question family with 95 % Wilson intervals, one block of rows a probe."""
    rows = {
        probe: {
            family: (f"{100 * r.value:.1f} %", f"{100 * r.low:.1f} - {100 * r.high:.1f}", r.successes, r.trials)
            for family, r in score.rates().items()
        }
        for probe, score in scores.items()
    }
    return _table(title, ("accuracy", "interval", "right", "asked"), rows, caption="95 % Wilson intervals")


def surprise_table(scores: dict[str, Surprise], *, title: str) -> Table:
    """Perplexity by family with 95 % bootstrap intervals over passages, one block of rows a probe."""
    rows = {
        probe: {
            family: (f"{p.value:.2f}", f"{p.low:.2f} - {p.high:.2f}", p.passages, p.tokens)
            for family, p in score.perplexities().items()
        }
        for probe, score in scores.items()
    }
    return _table(title, ("perplexity", "interval", "passages", "tokens"), rows, caption="95 % bootstrap intervals")


def _table(
    title: str, headings: Sequence[str], rows: Mapping[str, Mapping[str, Sequence[object]]], *, caption: str
) -> Table:
    """Probe -> family -> cells, one block of rows a probe; the family of all in bold."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("probe")
    table.add_column("family")
    for heading in headings:
        table.add_column(heading, justify="right")
    for probe, families in rows.items():
        table.add_section()
        for family, cells in families.items():
            whole = family == ALL
            table.add_row(probe if whole else "", family, *map(str, cells), style="bold" if whole else None)
    return table


def make_report(
    checkpoint: str | Path,
    probes: Sequence[Probe],
    scores: Mapping[str, Score | Surprise],
    *,
    fingerprint: str,
    adapters: str,
    seconds: float,
) -> dict[str, Any]:
    """Everything there is to know about one run of the command, as plain data."""
    return {
        "schema": SCHEMA,
        "checkpoint": str(checkpoint),
        "fingerprint": fingerprint,
        "adapters": adapters,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "interval": "Wilson, 95 %",
        "probes": {
            probe.name: {
                "version": probe.version,
                "source": probe.source,
                "split": probe.split,
                "seed": probe.seed,
                "count": probe.count,
                "description": probe.description,
                **scores[probe.name].to_dict(),
            }
            for probe in probes
        },
    }


def _run(vlm: Any, probe: Probe, batch_size: int, console: Console) -> Score | Surprise:
    with console.status(f"{probe.name}: making {probe.count} questions"):
        samples = probe.samples()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{probe.name}: asking", total=len(samples))
        return probe.ask(
            vlm, samples, batch_size=batch_size, on_progress=lambda answered: progress.advance(task, answered)
        )


def _chosen_probes(arguments: argparse.Namespace) -> list[Probe]:
    if arguments.config is not None:
        given = [option for option in ("probe", "count", "seed") if getattr(arguments, option) is not None]
        if given:
            raise ValueError(
                f"--config names probes, counts and seeds; received --{' --'.join(given)} beside it. Use one."
            )
        return read_probe_file(arguments.config)
    names = standard_probes() if arguments.probe is None else [n for n in arguments.probe.split(",") if n]
    if not names:
        raise ValueError(f"--probe names at least one probe. Probes: {', '.join(list_probes())}.")
    return [find_probe(name, count=arguments.count, seed=arguments.seed) for name in dict.fromkeys(names)]


def _check_writable(out: Path | None) -> None:
    if out is not None and out.is_dir():
        raise IsADirectoryError(f"--out is the JSON file to write; {out} is a folder.")


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="aegis-probe",
        description="Ask a checkpoint questions about images or the world and report its accuracy by question family.",
    )
    parser.add_argument(
        "checkpoint",
        help="a training's output folder, a pretrained_model folder, a plain vision-language model, a hub id or 'nano'",
    )
    parser.add_argument(
        "--probe", help=f"comma-separated, of {','.join(list_probes())} (default: {','.join(standard_probes())})"
    )
    parser.add_argument("--count", type=int, help="questions a probe (default: the probe's own number)")
    parser.add_argument("--seed", type=int, help="seed of the questions (default: the probe's own)")
    parser.add_argument("--config", type=Path, help="YAML file that selects probes (configs/probes/*.yaml)")
    parser.add_argument(
        "--adapters",
        choices=("on", "off"),
        default="on",
        help="whether a checkpoint's adapters (--peft.*) are in force while it answers (default: on)",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--batch-size", type=int, default=64, help="questions a forward pass (default: 64)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
