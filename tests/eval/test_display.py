"""The display says what is under way, and estimates its end from what was measured."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from aegis_eval.display import LOG_WIDTH, Activity, Display, duration, remaining_seconds, study_console
from aegis_eval.jobs import Job


def stage(folder: Path, name: str, *, expected_s=30.0, took=None, share=None) -> Job:
    job = Job(
        name=name,
        title=f"doing {name}",
        folder=folder / name.replace(" ", "-"),
        command=list,
        expected_s=expected_s,
        progress=lambda tail: share,
    )
    if took is not None:
        job.folder.mkdir(parents=True)
        job.marker.write_text(json.dumps({"seconds": took, "command": ""}))
    return job


def test_the_time_left_is_the_work_left_over_the_workers(tmp_path):
    jobs = [stage(tmp_path, f"train {name}") for name in "abcd"]
    assert remaining_seconds(jobs, [], workers=2) == 60
    assert remaining_seconds(jobs[:1], [], workers=2) == 30


def test_what_was_measured_corrects_what_was_expected_kind_by_kind(tmp_path):
    done = [stage(tmp_path, "train a", took=60.0), stage(tmp_path, "probe a", took=15.0)]
    assert remaining_seconds([*done, stage(tmp_path, "train b")], [], workers=1) == 60
    assert remaining_seconds([*done, stage(tmp_path, "probe b")], [], workers=1) == 15
    # Of a kind that was not seen yet, the mean of the others: twice and half as long as expected.
    assert remaining_seconds([*done, stage(tmp_path, "rollouts b")], [], workers=1) == 30 * (2 + 0.5) / 2


def test_a_progress_bar_tells_more_than_the_expectation(tmp_path):
    job = stage(tmp_path, "train a", expected_s=1000.0, share=0.5)
    assert remaining_seconds([job], [Activity(job, 40.0)], workers=1) == pytest.approx(40)


def test_without_a_terminal_it_prints_lines(tmp_path):
    text = io.StringIO()
    job = stage(tmp_path, "train a", share=0.25)
    with Display([job], runs=3, done=1, workers=1, console=Console(file=text, width=300)) as display:
        display.tick([Activity(job, 5.0)])
        display.run_done("naive")
    told = text.getvalue()
    assert "Already done: 1 of 3 runs" in told
    assert "doing train a" in told and "train a 25 %" in told
    assert "until " in told
    assert "done: naive (2 of 3 runs)" in told


def test_durations_are_short():
    assert [duration(s) for s in (5, 65, 700, 7500)] == ["5 s", "1 min 05 s", "11 min", "2 h 05 min"]


def test_a_log_file_is_wide_enough_for_the_tables_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert study_console().width == LOG_WIDTH
    monkeypatch.setenv("COLUMNS", "72")
    assert study_console().width == 72


def test_stages_of_one_run_wait_for_each_other(tmp_path):
    chain = [stage(tmp_path, f"{kind} a") for kind in ("train", "rollouts shown", "probe")]
    assert remaining_seconds(chain, [], workers=2) == remaining_seconds(chain, [], workers=1) == 90
