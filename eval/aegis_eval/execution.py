"""The work of a study: what all runs share, and what is left of one run, each from where it was interrupted."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis_eval.display import Activity
from aegis_eval.folder_lock import alone_in
from aegis_eval.gather import gather_pretrained, gather_run
from aegis_eval.jobs import Job, JobFailed, Running, run_jobs
from aegis_eval.provenance import commit
from aegis_eval.run_result import RunResult, find_result
from aegis_eval.runs import (
    PRETRAINED,
    Run,
    keep_settings,
    origin,
    pretrained_settings,
    run_settings,
    shared_settings,
)
from aegis_eval.stages import config_folder, run_stages, shared_stages
from aegis_eval.study import Study


@dataclass(frozen=True)
class Place:
    """Where a study works and how.

    Attributes:
        study: What is compared.
        out: Folder of runs, logs and the report.
        results: Folder of the JSON files, one a run.
        workers: Runs at once.
        threads: Threads of each command.
        executor: `"local"` or `"slurm"`.
        slurm: Parameters of submitit's SlurmExecutor.
        gpus: The GPUs that local runs are spread over, as CUDA_VISIBLE_DEVICES names them; empty for none.
    """

    study: Study
    out: Path
    results: Path
    workers: int = 1
    threads: int = 1
    executor: str = "local"
    slurm: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()

    def result_file(self, name: str) -> Path:
        """JSON file of a run, or of `pretrained`."""
        return self.results / f"{name}.json"


def read_results(place: Place, runs: Sequence[Run]) -> dict[str, RunResult]:
    """Results that are there, by the name of the run.

    Raises:
        ValueError: If one was made with other settings.
    """
    configs = config_folder()
    found = {
        run.name: find_result(place.result_file(run.name), run_settings(place.study, run, config_folder=configs))
        for run in runs
    }
    return {name: result for name, result in found.items() if result is not None}


def read_pretrained(place: Place) -> RunResult | None:
    """The untouched backbone's result if it is there.

    Raises:
        ValueError: If it was made with other settings.
    """
    return find_result(place.result_file(PRETRAINED), pretrained_settings(place.study))


def pending_stages(place: Place, runs: Sequence[Run]) -> list[Job]:
    """The stages of the runs that have no result, each once, and what they share."""
    *making, probe = shared_stages(place.study, place.out)
    stages = [*(making if runs else []), *([probe] if read_pretrained(place) is None else [])]
    for run in runs:
        stages += run_stages(place.study, run, place.out)
    return list({job.name: job for job in stages}.values())


def share_stages(place: Place, *, data: bool, on_tick: Callable[[Sequence[Activity]], None]) -> None:
    """Record, build the anchor and ask the untouched backbone, as far as that is not done.

    Args:
        place: Where.
        data: Whether runs will need demonstrations and anchor.
        on_tick: Called with what is under way.

    Raises:
        JobFailed: If one of the commands fails.
    """
    *making, probe = shared_stages(place.study, place.out)
    asked = read_pretrained(place) is not None
    stages = [*(making if data else []), *([] if asked else [probe])]
    if not stages:
        return
    keep_settings(place.out / "shared.json", shared_settings(place.study))
    if not asked:
        keep_settings(place.out / PRETRAINED / "settings.json", pretrained_settings(place.study))
    run_jobs(
        stages,
        workers=place.workers if place.executor == "local" else len(stages),
        environment=command_environment(place.threads),
        on_tick=lambda running: on_tick([Activity(one.job, one.seconds) for one in running]),
        stamp=commit,
    )
    if not asked:
        gather_pretrained(place.study, place.out).write(place.result_file(PRETRAINED))


def finish_run(place: Place, run: Run, *, watched: int | None = None, gpu: str | None = None) -> str | None:
    """Do what is left of a run and write its result: the function of the run's job.

    Args:
        place: Where and how.
        run: The run.
        watched: Process whose end ends this run too; None: it outlives everybody.
        gpu: The one that its commands see, as CUDA_VISIBLE_DEVICES names it; None: those that this process sees.

    Returns:
        None, or why a command failed.
    """
    folder = run.folder(place.out)
    trained = origin(place.study, run)

    def watch(running: Sequence[Running]) -> None:
        if watched is not None and not _is_alive(watched):
            raise KeyboardInterrupt(f"process {watched}, which started this run, has ended")

    with ExitStack() as held:
        for one in dict.fromkeys((folder, trained.folder(place.out))):
            held.enter_context(alone_in(one))
        settings = run_settings(place.study, run, config_folder=config_folder())
        keep_settings(folder / "settings.json", settings)
        keep_settings(
            trained.folder(place.out) / "settings.json",
            run_settings(place.study, trained, config_folder=config_folder()),
        )
        try:
            run_jobs(
                run_stages(place.study, run, place.out),
                workers=1,
                environment=command_environment(place.threads) | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
                on_tick=watch,
                stamp=commit,
            )
        except JobFailed as error:
            return str(error)
        gather_run(place.study, run, place.out).write(place.result_file(run.name))
    return None


def command_environment(threads: int) -> dict[str, str]:
    """Variables of every command: no network, no more threads than asked for, no terminal tricks in logs.

    And bytecode is kept, also where images of containers switch that off: imports alone take 30 seconds of a core
    without it, 11 with it, and a run is six commands.
    """
    return {
        "PYTHONDONTWRITEBYTECODE": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "110",
    }


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
