"""How far a study is: bars on a terminal, a line now and then in a log file."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import mean

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aegis_eval.jobs import Job, read_marker, read_tail

LOG_WIDTH = 160  # characters: a log file has no width, and the tables want one
LINE_EVERY_S = 30.0  # without a terminal
TELLING_SHARE = 0.1  # below it a progress bar says little: the command's start-up is in it


def study_console() -> Console:
    """The console of a command that runs a study: as wide as the terminal, or in a log file as the tables need."""
    console = Console(soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


@dataclass(frozen=True)
class Activity:
    """A stage under way and its seconds so far."""

    job: Job
    seconds: float

    def share(self) -> float | None:
        """Share done, if the log tells."""
        return self.job.progress(read_tail(self.job.log))


class Display:
    """Shows what is under way, its share, and when the study will end.

    State: what was announced, and the number of runs done.
    """

    def __init__(self, jobs: Sequence[Job], *, runs: int, done: int, workers: int, console: Console) -> None:
        """Nothing is shown before `__enter__`.

        Args:
            jobs: Every stage of the study that is to be run or has been, each once.
            runs: Number of runs of the study.
            done: How many have their result already.
            workers: How many stages are under way at once.
            console: Where to show it.
        """
        self.jobs = jobs
        self.runs = runs
        self.done = done
        self.workers = workers
        self.console = console
        self._last_line = 0.0
        self._seen: set[str] = set()
        # No thread of its own: jobs are forked from this process.
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        already = [job.name for job in self.jobs if job.done]
        if self.done or already:
            self.say(f"Already done: {', '.join([f'{self.done} of {self.runs} runs', *already])}.")
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def tick(self, active: Sequence[Activity]) -> None:
        """Show what is under way."""
        for one in active:
            if one.job.name not in self._seen:
                self._seen.add(one.job.name)
                self.say(f"{one.job.title}  (log: {one.job.log})")
        if self._live:
            self._live.update(self._picture(active), refresh=True)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.say(self._line(active))

    def run_done(self, name: str) -> None:
        """Note that a run has its result."""
        self.done += 1
        self.say(f"    done: {name} ({self.done} of {self.runs} runs)")

    def say(self, text: str) -> None:
        """Print a line above what is under way."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line(self, active: Sequence[Activity]) -> str:
        parts = [
            f"{one.job.name} {100 * share:.0f} %" if (share := one.share()) is not None else one.job.name
            for one in active
        ]
        return f"    {self._summary(active)}: {', '.join(parts) or 'waiting'}"

    def _picture(self, active: Sequence[Activity]) -> Group:
        grid = Table.grid(padding=(0, 2))
        for one in active:
            share = one.share()
            bar = ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None, width=30)
            text = f"{100 * share:3.0f} %" if share is not None else ""
            grid.add_row(Text(one.job.title), bar, text, duration(one.seconds))
        return Group(grid, Text(self._summary(active), style="bold"))

    def _summary(self, active: Sequence[Activity]) -> str:
        left = remaining_seconds(self.jobs, active, workers=self.workers)
        ends = datetime.now() + timedelta(seconds=left)
        stages = sum(job.done for job in self.jobs)
        return (
            f"{self.done} of {self.runs} runs, {stages} of {len(self.jobs)} stages done, about {duration(left)} left, "
            f"until {ends:%H:%M}{f' on {ends:%A}' if ends.date() != datetime.now().date() else ''}"
        )


def remaining_seconds(jobs: Sequence[Job], active: Sequence[Activity], *, workers: int) -> float:
    """Rough time left: work that is left, spread over the workers, and never less than what is left of one run, whose
    stages wait for each other.

    A stage is expected to take what stages of its kind (the first word of the name) took so far, scaled by the rough
    expectations that the plan has of both; before there is any, as much as the plan expects.

    Args:
        jobs: All stages.
        active: Those under way.
        workers: How many are under way at once.
    """
    paces: dict[str, list[float]] = {}
    for job in jobs:
        if job.done:
            paces.setdefault(_kind(job), []).append(read_marker(job)["seconds"] / job.expected_s)
    overall = mean(one for found in paces.values() for one in found) if paces else 1.0

    def expected(job: Job) -> float:
        return job.expected_s * (mean(paces[_kind(job)]) if _kind(job) in paces else overall)

    under_way = {one.job.name for one in active}
    left: dict[str, float] = {}  # by run

    def add(job: Job, seconds: float) -> None:
        left[_run(job)] = left.get(_run(job), 0.0) + seconds

    for job in jobs:
        if job.name not in under_way and not job.done:
            add(job, expected(job))
    for one in active:
        share = one.share()
        by_share = one.seconds * (1 - share) / share if share and share > TELLING_SHARE else None
        add(one.job, max(expected(one.job) - one.seconds if by_share is None else by_share, 1.0))
    return max(sum(left.values()) / workers, max(left.values(), default=0.0))


def duration(seconds: float) -> str:
    """`"3 min 20 s"`; whole minutes from ten minutes on, `"2 h 05 min"` from an hour on."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest:02d} s"


def _run(job: Job) -> str:
    """The run whose stage it is; what all runs share stands for itself."""
    return job.name.rsplit(" ", 1)[-1]


def _kind(job: Job) -> str:
    return job.name.split(" ", 1)[0]
