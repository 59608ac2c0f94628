"""Jobs run once, in an order that respects their needs, and failures say how to go on."""

import sys
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest

from aegis_eval.jobs import Job, JobFailed, read_marker, run_jobs


def python_job(folder: Path, name: str, code: str, **options) -> Job:
    return Job(name=name, title=name, folder=folder / name, command=lambda: [sys.executable, "-c", code], **options)


def run(jobs, *, workers=2):
    ended = []
    run_jobs(
        jobs,
        workers=workers,
        environment={"GREETING": "hello"},
        on_tick=lambda running: None,
        on_end=lambda job, seconds: ended.append(job.name),
    )
    return ended


def test_a_job_waits_for_what_it_needs(tmp_path):
    made = tmp_path / "made"
    jobs = [
        python_job(tmp_path, "make", f"open({str(made)!r}, 'w')"),
        python_job(tmp_path, "use", f"open({str(made)!r})", needs=("make",)),
    ]
    assert run(jobs) == ["make", "use"]


def test_a_job_that_is_done_is_not_run_again(tmp_path):
    count = tmp_path / "calls"
    jobs = [python_job(tmp_path, "count", f"open({str(count)!r}, 'a').write('x')")]
    run(jobs)
    assert run(jobs) == []
    assert count.read_text() == "x"
    assert read_marker(jobs[0])["seconds"] >= 0


# One after the other, the first would wait in vain.
MEET = """
import pathlib, time
pathlib.Path({here!r}).touch()
ends = time.monotonic() + 60
while not pathlib.Path({there!r}).exists():
    assert time.monotonic() < ends, "alone"
    time.sleep(0.01)
"""


def test_independent_jobs_run_side_by_side(tmp_path):
    met = {name: str(tmp_path / f"{name}-is-there") for name in "ab"}
    jobs = [python_job(tmp_path, here, MEET.format(here=met[here], there=met[there])) for here, there in ("ab", "ba")]
    assert sorted(run(jobs)) == ["a", "b"]


def test_jobs_see_the_variables_given(tmp_path):
    jobs = [python_job(tmp_path, "greet", "import os; print(os.environ['GREETING'])")]
    run(jobs)
    assert "hello" in jobs[0].log.read_text()


def test_a_failure_shows_the_log_and_the_command_and_can_be_retried(tmp_path):
    needed = tmp_path / "needed"
    jobs = [python_job(tmp_path, "read", f"print('looking'); open({str(needed)!r})")]
    with pytest.raises(JobFailed, match=r"(?s)looking.*FileNotFoundError.*-c"):
        run(jobs)
    needed.touch()
    assert run(jobs) == ["read"]


def test_a_marker_says_how_many_attempts_there_were_and_under_what_the_last_one_ran(tmp_path):
    ready = tmp_path / "ready"
    job = python_job(tmp_path, "try", f"open({str(ready)!r})")
    with pytest.raises(JobFailed):
        run([job])
    ready.touch()
    run_jobs([job], workers=1, environment={}, on_tick=lambda running: None, stamp=lambda: {"commit": "abc"})
    marker = read_marker(job)
    assert (marker["attempts"], marker["commit"]) == (2, "abc")


def test_a_failure_ends_what_runs_beside_it(tmp_path):
    jobs = [
        python_job(tmp_path, "long", "import time; time.sleep(60)"),
        python_job(tmp_path, "fail", "import time; time.sleep(0.5); raise SystemExit(3)"),
    ]
    started = time.monotonic()
    with pytest.raises(JobFailed, match="status 3"):
        run(jobs)
    assert time.monotonic() - started < 20
    assert not jobs[0].done


def test_a_need_that_is_no_earlier_job_is_refused(tmp_path):
    with pytest.raises(ValueError, match="absent"):
        run([python_job(tmp_path, "use", "", needs=("absent",))])


def test_the_memory_of_a_job_is_its_own(tmp_path):
    # A process is born with what the one that starts it holds, and this one has run other tests.
    born_with = getrusage(RUSAGE_SELF).ru_maxrss // 2**10
    jobs = [
        python_job(tmp_path, "large", f"bytearray({born_with + 200} * 2**20)"),
        python_job(tmp_path, "small", "", needs=("large",)),
    ]
    run(jobs)
    large, small = (read_marker(job)["peak_mib"] for job in jobs)
    assert large > born_with + 200 > small
