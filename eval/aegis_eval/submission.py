"""Every run is one job of submitit: processes on this machine, or jobs of SLURM.

submitit's local executor starts a process at each submit, so the next run is submitted when a worker is free; its SLURM
executor gets all runs that can start as one array, and SLURM does the scheduling.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import submitit

from aegis_eval.display import Activity
from aegis_eval.execution import Place, finish_run
from aegis_eval.runs import Run, origin
from aegis_eval.stages import run_stages

EXECUTORS = ("local", "slurm")
POLL_S = 1.0
NO_LIMIT_MIN = 365 * 24 * 60  # submitit's local executor ends jobs after a time; none of ours has one
ENDING_S = 30.0  # that cancelled jobs have to end their commands


@dataclass(frozen=True)
class Failure:
    """A run without a result, and why."""

    run: Run
    reason: str


@dataclass
class _Submitted:
    """A run whose job is under way; `seen` holds when each of its stages was first met."""

    run: Run
    job: submitit.Job[str | None]
    gpu: str | None = None
    seen: dict[str, float] = field(default_factory=dict)

    def activity(self, place: Place) -> Activity | None:
        """The stage at which it is; None while it waits in a queue or writes its result."""
        for stage in run_stages(place.study, self.run, place.out):
            if not stage.done:
                if not stage.log.is_file():
                    return None
                now = time.monotonic()
                return Activity(stage, now - self.seen.setdefault(stage.name, now))
        return None


def execute(
    place: Place,
    runs: Sequence[Run],
    *,
    on_tick: Callable[[Sequence[Activity]], None],
    on_end: Callable[[Run], None],
) -> list[Failure]:
    """Run all of `runs`; one that fails does not stop the others.

    Args:
        place: Where and how.
        runs: Those without a result, in order of preference.
        on_tick: Called about once a second with the stages under way.
        on_end: Called with a run that has just got its result.

    Returns:
        The runs that failed.
    """
    waiting = list(runs)
    active: list[_Submitted] = []
    failures: list[Failure] = []
    executor = _make_executor(place) if runs else None
    try:
        while waiting or active:
            ready = startable(place, waiting, [one.run for one in active])
            waiting = [run for run in waiting if run not in ready]
            active += _submit(place, executor, ready, taken=[one.gpu for one in active])
            on_tick([found for one in active if (found := one.activity(place)) is not None])
            time.sleep(POLL_S)
            for one in [one for one in active if one.job.done()]:
                active.remove(one)
                reason = _failure(one.job)
                if reason is None:
                    on_end(one.run)
                    continue
                failures.append(Failure(one.run, reason))
                lost = [run for run in waiting if origin(place.study, run) == one.run]
                failures += [Failure(run, f"It takes the training of {one.run.name}, which failed.") for run in lost]
                waiting = [run for run in waiting if run not in lost]
    finally:
        _cancel([one.job for one in active])
    return failures


def startable(place: Place, waiting: Sequence[Run], active: Sequence[Run]) -> list[Run]:
    """Runs that can be submitted now.

    A run that takes another's training waits for that run, and no two runs work on one training at once.
    """
    room = len(waiting) if place.executor == "slurm" else place.workers - len(active)
    trainings = {origin(place.study, run).name for run in active}
    to_come = {run.name for run in waiting}
    chosen: list[Run] = []
    for run in waiting:
        training = origin(place.study, run).name
        if len(chosen) < room and training not in trainings and (training == run.name or training not in to_come):
            chosen.append(run)
            trainings.add(training)
    return chosen


def _make_executor(place: Place) -> Any:
    folder = place.out / "jobs"
    if place.executor == "slurm":
        executor = submitit.SlurmExecutor(folder=folder)
        executor.update_parameters(**{"job_name": "aegis-compare", "array_parallelism": place.workers, **place.slurm})
        return executor
    local = submitit.LocalExecutor(folder=folder)
    local.update_parameters(timeout_min=NO_LIMIT_MIN)
    return local


def _submit(place: Place, executor: Any, runs: Sequence[Run], *, taken: Sequence[str | None]) -> list[_Submitted]:
    if not runs:
        return []
    if place.executor == "slurm":
        with executor.batch():
            jobs = [executor.submit(finish_run, place, run) for run in runs]
        return [_Submitted(run, job) for run, job in zip(runs, jobs, strict=True)]
    submitted: list[_Submitted] = []
    for run in runs:
        # Not by the executor's own option, which knows GPUs by their numbers only: MIG's parts have names.
        gpu = least_taken(place.gpus, [*taken, *(one.gpu for one in submitted)])
        submitted.append(_Submitted(run, executor.submit(finish_run, place, run, watched=os.getpid(), gpu=gpu), gpu))
    return submitted


def least_taken(gpus: Sequence[str], taken: Sequence[str | None]) -> str | None:
    """The GPU on which the fewest runs are under way, None where there is none: more runs than GPUs share them evenly.

    Args:
        gpus: Their numbers or names.
        taken: That of each run under way.
    """
    return min(gpus, key=Counter(taken).__getitem__, default=None)


def _failure(job: submitit.Job[str | None]) -> str | None:
    """Why a job has failed; None if it has not."""
    error = job.exception()
    return job.result() if error is None else f"{error}\nIts own log: {job.paths.stderr}"


def _cancel(jobs: Sequence[submitit.Job[str | None]]) -> None:
    for job in jobs:
        job.cancel(check=False)
    ends = time.monotonic() + ENDING_S
    while time.monotonic() < ends and not all(job.done() for job in jobs):
        time.sleep(0.2)
