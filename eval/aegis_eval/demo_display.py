"""How far the demo is: bars on a terminal, a line now and then in a log file."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aegis_eval.jobs import Job, Running, read_marker, remaining_seconds

LINE_EVERY_S = 30.0  # without a terminal


class Display:
    """Shows which job runs, its share, and the time left.

    State: seconds measured and expected of the jobs that ended in this call, from which the pace is estimated.
    """

    def __init__(self, jobs: Sequence[Job], *, workers: int, console: Console) -> None:
        """Remember the jobs; nothing is shown before `__enter__`."""
        self.jobs = jobs
        self.workers = workers
        self.console = console
        self._started = time.monotonic()
        self._last_line = 0.0
        self._measured = sum(read_marker(job)["seconds"] for job in jobs if job.done)
        self._expected = sum(job.expected_s for job in jobs if job.done)
        self._seen: set[str] = set()
        # No thread of its own: jobs are forked from this process.
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        done = [job.name for job in self.jobs if job.done]
        if done:
            self.console.print(f"Already done: {', '.join(done)}.", highlight=False)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def tick(self, running: list[Running]) -> None:
        """Show what runs."""
        for one in running:
            if one.job.name not in self._seen:
                self._seen.add(one.job.name)
                place = 1 + [job.name for job in self.jobs].index(one.job.name)
                self._say(f"[{place}/{len(self.jobs)}] {one.job.title}  (log: {one.job.log})")
        if self._live:
            self._live.update(self._picture(running), refresh=True)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._say(self._line(running))

    def end(self, job: Job, seconds: float) -> None:
        """Note that a job has ended well."""
        self._measured += seconds
        self._expected += job.expected_s
        self._say(f"    done: {job.title}, {duration(seconds)}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line(self, running: Sequence[Running]) -> str:
        parts = [
            f"{one.job.name} {100 * share:.0f} %" if (share := one.share()) is not None else one.job.name
            for one in running
        ]
        return f"    {self._summary(running)}: {', '.join(parts)}"

    def _picture(self, running: Sequence[Running]) -> Group:
        grid = Table.grid(padding=(0, 2))
        for one in running:
            share = one.share()
            bar = ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None, width=30)
            text = f"{100 * share:3.0f} %" if share is not None else ""
            grid.add_row(Text(one.job.title), bar, text, duration(one.seconds))
        return Group(grid, Text(self._summary(running), style="bold"))

    def _summary(self, running: Sequence[Running]) -> str:
        pace = self._measured / self._expected if self._expected else 1.0
        left = remaining_seconds(self.jobs, running, workers=self.workers, pace=pace)
        done = sum(job.done for job in self.jobs)
        return f"{done} of {len(self.jobs)} stages done, about {duration(left)} left"


def duration(seconds: float) -> str:
    """`"3 min 20 s"`; whole minutes from ten minutes on."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest:02d} s"
