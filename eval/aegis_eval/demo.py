"""`aegis-demo`: record, train three arms, roll out, probe, and show it on one page."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from aegis_envs import choose_gl_backend
from aegis_eval.demo_display import Display, duration
from aegis_eval.demo_plan import DemoSettings, plan, quick
from aegis_eval.jobs import JobFailed, available_cores, run_jobs

MAX_WORKERS = 3  # as many as there are arms


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    console = Console(soft_wrap=True)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    choose_gl_backend()  # in this process's environment, which every command inherits
    try:
        settings = _settings(arguments)
        jobs = plan(settings)
        with _alone_in(settings.out):
            _same_as_before(settings)
            environment = _environment(arguments.threads)
            with Display(jobs, workers=arguments.workers, console=console) as display:
                run_jobs(
                    jobs, workers=arguments.workers, environment=environment, on_tick=display.tick, on_end=display.end
                )
            _report(settings, console)
    except JobFailed as error:
        console.print(f"\naegis-demo: {error}", markup=False, highlight=False)
        console.print("\nOnce that is mended, the same aegis-demo goes on where it was.", markup=False)
        return 1
    except (ValueError, OSError) as error:
        console.print(f"aegis-demo: {error}", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("\nInterrupted. The same command goes on where it was.", markup=False)
        return 130
    console.print(f"It took {duration(time.monotonic() - started)}.", highlight=False)
    return 0


def _report(settings: DemoSettings, console: Console) -> None:
    from aegis_eval.demo_report import gather, write_reports  # matplotlib: only once there is something to draw
    from aegis_eval.tables import summary_cells, terminal

    console.print("Writing the report ...")
    study = gather(settings, plan(settings))
    page = write_reports(study, settings)
    console.print(terminal(summary_cells(study), title=study.title))
    console.print(f"95 % Wilson intervals. {study.chance_note}", highlight=False)
    console.print(
        f"More, with paired differences and question families: {settings.out / 'table.md'}, table.csv, results.json",
        markup=False,
        highlight=False,
    )
    console.print(f"Page:   {page.resolve().as_uri()}", markup=False, highlight=False)


def _settings(arguments: argparse.Namespace) -> DemoSettings:
    base = quick(arguments.out, arguments.seed) if arguments.quick else DemoSettings(arguments.out, arguments.seed)
    given = {
        name: value
        for name in ("backbone", "steps", "episodes", "eval_episodes")
        if (value := getattr(arguments, name)) is not None
    }
    for name in ("workers", "threads"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1; received {getattr(arguments, name)}.")
    return replace(base, **given)


def _same_as_before(settings: DemoSettings) -> None:
    """Refuse to mix the results of different demos in one folder."""
    path = settings.out / "settings.json"
    content = {name: value for name, value in asdict(settings).items() if name not in ("out", "step_s")}
    if path.is_file():
        before = json.loads(path.read_text())
        changed = {name: (before.get(name), value) for name, value in content.items() if before.get(name) != value}
        if changed:
            told = ", ".join(f"{name} was {old} and is now {new}" for name, (old, new) in changed.items())
            raise ValueError(
                f"{settings.out} holds a demo with other settings ({told}). Go on with the old ones, choose another "
                f"--out, or delete {settings.out}."
            )
    path.write_text(json.dumps(content, indent=1) + "\n")


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the output folder: two demos in one would overwrite each other."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # not a POSIX system: no such lock
        except BlockingIOError:
            raise ValueError(f"Another aegis-demo is at work in {out}: wait for it, or choose another --out.") from None
        yield


def _environment(threads: int) -> dict[str, str]:
    """Variables of every command: no network, no more threads than asked for, no terminal tricks in logs."""
    return {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "110",
    }


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-demo",
        description="Record demonstrations, fine-tune the embedded vision-language model three ways, roll out and "
        "probe all of them, and write a page. Interrupted and started again, it goes on where it was.",
    )
    default = DemoSettings()
    workers = min(MAX_WORKERS, available_cores())
    parser.add_argument("--out", type=Path, default=default.out, help=f"output folder (default: {default.out})")
    parser.add_argument("--seed", type=int, default=default.seed, help=f"seed (default: {default.seed})")
    parser.add_argument("--backbone", help=f"folder of another vision-language model (default: {default.backbone})")
    parser.add_argument("--steps", type=int, help=f"training steps an arm (default: {default.steps})")
    parser.add_argument("--episodes", type=int, help=f"demonstrations (default: {default.episodes})")
    parser.add_argument("--eval-episodes", type=int, help=f"rollouts an arm (default: {default.eval_episodes})")
    parser.add_argument("--workers", type=int, default=workers, help=f"commands at once (default: {workers})")
    parser.add_argument("--threads", type=int, default=1, help="threads a command (default: 1)")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that every part runs, nothing else")
    return parser


if __name__ == "__main__":
    sys.exit(main())
