"""`aegis-compare`: arms x learning rates x seeds side by side, trained, rolled out, probed and shown on one page."""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from aegis_envs import choose_gl_backend
from aegis_eval.beginnings import require_environments
from aegis_eval.display import Display, duration, study_console
from aegis_eval.embed import check_document, embed_tables
from aegis_eval.execution import Place, pending_stages, read_pretrained, read_results, share_stages
from aegis_eval.facts import Origin
from aegis_eval.folder_lock import alone_in
from aegis_eval.jobs import JobFailed, available_cores
from aegis_eval.notes import interval_note
from aegis_eval.options import require_backbone, require_options
from aegis_eval.results import compare_results
from aegis_eval.runs import plan_runs
from aegis_eval.stages import config_folder
from aegis_eval.study import Study, read_study
from aegis_eval.submission import EXECUTORS, Failure, execute
from aegis_eval.tables import short_cells, terminal

MANY_JOBS = 64  # at once on a cluster, unless told otherwise
FOR_PEOPLE: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    console = study_console()

    def name() -> str:
        return str(arguments.study.stem) + ("-quick" if arguments.quick else "")

    def prepare() -> Place:
        study = read_study(arguments.study, quick=arguments.quick)
        if arguments.baseline is not None:
            if arguments.into:
                raise ValueError("--into makes a document's tables over the study's own baseline. Drop --baseline.")
            study = replace(study, baseline=study.arm(arguments.baseline).name)
        out = arguments.out or Path("outputs/compare") / name()
        return make_place(
            study,
            out=out,
            results=arguments.results or out / "results",
            workers=arguments.workers,
            threads=arguments.threads,
            executor=arguments.executor,
            slurm=_slurm(arguments.slurm),
        )

    return guarded(
        "aegis-compare",
        lambda: compare(
            prepare(),
            source=Origin("aegis-compare", shlex.join(["aegis-compare", *given])),
            console=console,
            only=_names(arguments.only),
            learning_rates=_numbers("--learning-rates", arguments.learning_rates, float),
            seeds=_numbers("--seeds", arguments.seeds, int),
            report_only=arguments.report_only,
            into=[(document, name()) for document in arguments.into],
        ),
        console=console,
    )


def make_place(
    study: Study,
    *,
    out: Path,
    results: Path,
    workers: int | None,
    threads: int,
    executor: str = "local",
    slurm: dict[str, Any] | None = None,
) -> Place:
    """Decide how many runs are under way at once.

    Raises:
        ValueError: If a number makes no sense.
    """
    if threads < 1:
        raise ValueError(f"--threads must be at least 1; received {threads}.")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1; received {workers}.")
    gpus: tuple[str, ...] = ()
    if executor == "local" and study.device.startswith("cuda"):
        import torch

        if study.device != "cuda":
            raise ValueError(
                f"Each run sees one GPU and calls it cuda; received device: {study.device}. Write `device: cuda`, and "
                "choose GPUs with CUDA_VISIBLE_DEVICES."
            )
        present = torch.cuda.device_count()
        chosen = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
        gpus = tuple(chosen[:present]) or tuple(map(str, range(present)))
        if not gpus:
            raise ValueError(
                f"The study asks for device {study.device}, and torch sees no GPU here. Use `device: cpu`."
            )
    default = MANY_JOBS if executor == "slurm" else len(gpus) or max(1, available_cores() // threads)
    return Place(
        study,
        out,
        results,
        workers=workers or default,
        threads=threads,
        executor=executor,
        slurm=slurm or {},
        gpus=gpus,
    )


def compare(
    place: Place,
    *,
    source: Origin,
    console: Console,
    only: Sequence[str] = (),
    learning_rates: Sequence[float] = (),
    seeds: Sequence[int] = (),
    report_only: bool = False,
    into: Sequence[tuple[Path, str]] = (),
) -> int:
    """Run what has no result yet and write the report; returns the exit status.

    Args:
        place: The study, where it works and how.
        source: The command, for the report.
        console: Where to show progress and the table.
        only: Arms to run; empty for all.
        learning_rates: Peak learning rates to run; empty for all.
        seeds: Training seeds to run; empty for all.
        report_only: Whether to run nothing.
        into: Documents whose tables are made anew, and the study's name in them.

    Raises:
        JobFailed: If a command that all runs need fails.
        ValueError: If results or folders hold the work of other settings, or LeRobot refuses an option of the study.
        ImportError: If an environment of the rollouts is not installed.
    """
    for document, name in into:
        try:
            check_document(document.read_text(encoding="utf-8"), name, place.study)
        except ValueError as error:
            raise ValueError(f"--into {document}: {error}") from None
    planned = plan_runs(place.study)
    wanted = plan_runs(place.study, only=only, learning_rates=learning_rates, seeds=seeds)
    if report_only:
        _report(place, source=source, console=console, into=into)
        return 0
    with alone_in(place.out):
        results = read_results(place, planned)
        pending = [run for run in wanted if run.name not in results]
        if pending:
            require_backbone(place.study)
            require_environments(place.study)
            require_options(place.study)
        stages = pending_stages(place, pending)
        with Display(
            stages, runs=len(wanted), done=len(wanted) - len(pending), workers=place.workers, console=console
        ) as display:
            share_stages(place, data=bool(pending), on_tick=display.tick)
            failures = execute(place, pending, on_tick=display.tick, on_end=lambda run: display.run_done(run.name))
        try:
            if len(failures) < len(pending) or results:
                _report(place, source=source, console=console, into=into)
        finally:
            for failure in failures:
                _tell(failure, source, console)
    return 1 if failures else 0


def guarded(program: str, work: Any, *, console: Console) -> int:
    """Call `work` and turn what ends it early into words and an exit status."""
    started = time.monotonic()
    before = signal.signal(signal.SIGTERM, _interrupt)
    choose_gl_backend()  # in this process's environment, which every command inherits
    try:
        status: int = work()
    except JobFailed as error:
        console.print(f"\n{program}: {error}", **FOR_PEOPLE)
        console.print(f"\nOnce that is mended, the same {program} goes on where it was.", **FOR_PEOPLE)
        return 1
    except (ValueError, OSError, ImportError) as error:
        console.print(f"{program}: {error}", **FOR_PEOPLE)
        return 2
    except KeyboardInterrupt:
        console.print("\nInterrupted. The same command goes on where it was.", **FOR_PEOPLE)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print(f"It took {duration(time.monotonic() - started)}.", **FOR_PEOPLE)
    return status


def _report(place: Place, *, source: Origin, console: Console, into: Sequence[tuple[Path, str]]) -> None:
    from aegis_eval.report import write_reports  # matplotlib: only once there is something to draw

    planned = plan_runs(place.study)
    results = read_results(place, planned)
    if not results:
        raise ValueError(f"There is no result in {place.results} to report on.")
    console.print("Writing the report ...", **FOR_PEOPLE)
    comparison = compare_results(place.study, list(results.values()), read_pretrained(place), planned=len(planned))
    page = write_reports(comparison, source, place.out)
    for document, name in into:
        filled = embed_tables(document.read_text(encoding="utf-8"), name, comparison)
        document.write_text(filled, encoding="utf-8")
    console.print(terminal(short_cells(comparison), title=place.study.title))
    console.print(f"{interval_note(comparison)} {place.study.rollouts.chance_note}", **FOR_PEOPLE)
    if comparison.done < comparison.planned:
        console.print(f"Partial: {comparison.done} of {comparison.planned} runs.", **FOR_PEOPLE)
    console.print(
        f"More, with paired differences and question families: {place.out / 'table.md'}, table.csv, results.json",
        **FOR_PEOPLE,
    )
    console.print(f"Page:   {page.resolve().as_uri()}", **FOR_PEOPLE)


def _tell(failure: Failure, source: Origin, console: Console) -> None:
    console.print(f"\nFailed: {failure.run.name}. {failure.reason}", **FOR_PEOPLE)
    if source.program == "aegis-compare":
        run = failure.run
        alone = f"{source.command} --only {run.arm.name} --learning-rates {run.lr:g} --seeds {run.seed}"
        console.print(f"\nOnce that is mended, to run it alone:\n\n{alone}", **FOR_PEOPLE)
    else:
        console.print(f"\nOnce that is mended, the same {source.program} goes on where it was.", **FOR_PEOPLE)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _numbers[N: (int, float)](option: str, text: str | None, kind: type[N]) -> list[N]:
    try:
        return [kind(name) for name in _names(text)]
    except ValueError as error:
        raise ValueError(f"{option} takes numbers separated by commas; received {text!r} ({error}).") from None


def _slurm(given: Sequence[str]) -> dict[str, Any]:
    """`["partition=gpu", "time=240"]` as parameters of submitit's SlurmExecutor."""
    parameters = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise ValueError(f"--slurm takes KEY=VALUE, as `--slurm partition=gpu --slurm time=240`; received {one!r}.")
        parameters[name.removeprefix("slurm_")] = yaml.safe_load(value)
    return parameters


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-compare",
        description="Train every arm of a study at every learning rate and from every seed on the same demonstrations, "
        "roll out and probe all of them, and write tables and a page. Interrupted and started again, it goes on where "
        "it was; runs whose result is there are not run again.",
    )
    parser.add_argument("study", type=Path, help="YAML file that describes the study, as configs/compare/nano.yaml")
    parser.add_argument("--out", type=Path, help="output folder (default: outputs/compare/<the study's name>)")
    parser.add_argument("--results", type=Path, help="folder of the JSON files, one a run (default: OUT/results)")
    parser.add_argument("--workers", type=int, help="runs at once (default: cores / threads, or GPUs)")
    parser.add_argument("--threads", type=int, default=1, help="threads a command (default: 1)")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="submitit's executor (default: local)")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="parameter of submitit's SlurmExecutor, as partition=gpu or time=240 (minutes); may be given again",
    )
    parser.add_argument("--only", metavar="ARM,ARM", help="run these arms only")
    parser.add_argument("--learning-rates", metavar="RATE,RATE", help="run at these peak learning rates only")
    parser.add_argument("--seeds", metavar="SEED,SEED", help="run these training seeds only")
    parser.add_argument(
        "--baseline", metavar="ARM", help="tell differences over this arm (default: the study's `baseline:`)"
    )
    parser.add_argument("--quick", action="store_true", help="shrink the study as its section `quick:` says")
    parser.add_argument(
        "--into",
        type=Path,
        action="append",
        default=[],
        metavar="DOCUMENT",
        help="also make this study's tables in a Markdown document anew, as docs/evidence.md; may be given again",
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing: tables and page from what is there")
    return parser


def repository_study(name: str) -> Path:
    """A study that comes with the repository."""
    return config_folder() / "compare" / f"{name}.yaml"


if __name__ == "__main__":
    sys.exit(main())
