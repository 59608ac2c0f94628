"""Runs commands that need each other's results, a few at a time, and goes on where it was stopped.

A job is one subprocess with a folder: its log, and a marker once it has succeeded. Started again, marked jobs
are not run again. Jobs start in the order of the list as soon as what they need is there and a worker free.
"""

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

POLL_S = 0.5
TAIL_BYTES = 8192
TAIL_LINES = 25
_MAXRSS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
_COMMAND = "# command: "  # before each attempt's output in a log


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: Unique, short.
        title: What it does, for the progress display.
        folder: Where its log and marker go.
        command: Makes the command when the job starts, so that it can look at what an interrupted run left.
        needs: Names of the jobs that must be done before.
        expected_s: Rough duration on one core, for the estimate of what is left.
        progress: Share done, read from the tail of the log; None while unknown.
        prepare: Called before the command is made; may write a note to the log.
    """

    name: str
    title: str
    folder: Path
    command: Callable[[], list[str]]
    needs: tuple[str, ...] = ()
    expected_s: float = 60.0
    progress: Callable[[str], float | None] = lambda tail: None
    prepare: Callable[[IO[str]], None] = lambda log: None

    @property
    def log(self) -> Path:
        """Standard output and error of every attempt."""
        return self.folder / "log.txt"

    @property
    def marker(self) -> Path:
        """Exists once the job has succeeded; holds the first attempt's command, the number of attempts, and of the last
        one how long it took, its peak memory and what it was stamped with.
        """
        return self.folder / "done.json"

    @property
    def done(self) -> bool:
        """Whether it has succeeded."""
        return self.marker.is_file()


@dataclass
class Running:
    """A job under way; `peak_mib` is its largest resident memory in MiB, known once it has ended
    (Linux counts what this process held when it forked, so it is never less than that).
    """

    job: Job
    process: subprocess.Popen[bytes]
    command: list[str]
    stamp: Mapping[str, Any]
    started: float = field(default_factory=time.monotonic)
    peak_mib: float | None = None

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def share(self) -> float | None:
        """Share done, if the log tells."""
        return self.job.progress(read_tail(self.job.log))

    def ended(self) -> bool:
        """Whether the process has ended; reaps it together with what it used."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_mib = usage.ru_maxrss / _MAXRSS_PER_MIB
        return self.process.returncode is not None


class JobFailed(RuntimeError):
    """A command ended with an error; the message holds the end of its log and how to run it alone."""

    def __init__(self, job: Job, command: Sequence[str], status: int) -> None:
        """Read the end of the log while it is there."""
        tail = "\n".join(read_tail(job.log).replace("\r", "\n").rstrip().splitlines()[-TAIL_LINES:])
        super().__init__(
            f"'{job.name}' ended with status {status}. The end of {job.log}:\n\n{tail}\n\n"
            f"Its command, to run it alone:\n\n{shlex.join(command)}"
        )


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    environment: dict[str, str],
    on_tick: Callable[[list[Running]], None],
    on_end: Callable[[Job, float], None] = lambda job, seconds: None,
    stamp: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Run every job that is not done yet.

    Args:
        jobs: In order of preference.
        workers: How many may run at once.
        environment: Variables set for every command, beside the present ones.
        on_tick: Called about twice a second with what is running.
        on_end: Called with a job that has just succeeded and its seconds.
        stamp: What to keep in a job's marker beside what is measured; called when the job starts.

    Raises:
        JobFailed: When a command fails; what else runs is ended first.
        ValueError: If jobs share a name, or need a name that is none of them.
    """
    _check(jobs)
    waiting = [job for job in jobs if not job.done]
    running: list[Running] = []
    try:
        while waiting or running:
            finished = {job.name for job in jobs if job.done}
            for job in [j for j in waiting if finished.issuperset(j.needs)][: workers - len(running)]:
                waiting.remove(job)
                running.append(_start(job, environment, stamp()))
            on_tick(running)
            time.sleep(POLL_S)
            for one in [r for r in running if r.ended()]:
                running.remove(one)
                _finish(one)
                on_end(one.job, one.seconds)
    finally:
        _end_all(running)


def read_tail(path: Path) -> str:
    """The last few kilobytes of a log; empty if there is none yet."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def read_marker(job: Job) -> dict[str, Any]:
    """What the marker of a job that is done holds; older ones lack `attempts` and the stamp."""
    content: dict[str, Any] = json.loads(job.marker.read_text())
    return content


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check(jobs: Sequence[Job]) -> None:
    names = [job.name for job in jobs]
    if len(set(names)) != len(names):
        raise ValueError(f"Jobs need names of their own; received {names}.")
    for place, job in enumerate(jobs):
        unknown = set(job.needs) - set(names[:place])
        if unknown:
            raise ValueError(f"{job.name!r} needs {sorted(unknown)}; a job needs only jobs before it.")


def _start(job: Job, environment: dict[str, str], stamp: Mapping[str, Any]) -> Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log:
        job.prepare(log)
        command = job.command()
        log.write(f"\n{_COMMAND}{shlex.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    return Running(job, process, command, stamp)


def _finish(one: Running) -> None:
    status = one.process.returncode
    if status != 0:
        raise JobFailed(one.job, one.command, status)
    commands = _commands(one.job)
    content = {
        **one.stamp,
        "command": commands[0],  # a resumed job's later ones depend on what it left
        "attempts": len(commands),
        "seconds": round(one.seconds, 1),
        "peak_mib": None if one.peak_mib is None else round(one.peak_mib),
    }
    # Written beside and moved: a marker is whole or not there.
    part = one.job.marker.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(one.job.marker)


def _commands(job: Job) -> list[str]:
    """That of each attempt."""
    with job.log.open(errors="replace") as log:
        return [line.removeprefix(_COMMAND).rstrip("\n") for line in log if line.startswith(_COMMAND)]


def _end_all(running: Sequence[Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        try:
            one.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Run in the child: a killed parent takes it along, or two trainings would later write to one folder."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
