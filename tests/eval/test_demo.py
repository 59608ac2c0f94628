"""The demo's plan resumes, refuses to mix settings, and (slow) runs from nothing to its page."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_eval.demo import main
from aegis_eval.demo_plan import ARMS, DemoSettings, plan, quick
from aegis_eval.training_log import RESUMED


def jobs_by_name(settings):
    return {job.name: job for job in plan(settings)}


def test_arms_differ_in_nothing_but_their_options(tmp_path):
    jobs = jobs_by_name(DemoSettings(out=tmp_path))
    commands = [set(jobs[f"train {arm.name}"].command()) for arm in ARMS]
    shared = set.intersection(*commands)
    for arm, command in zip(ARMS, commands, strict=True):
        own = {f"--{name}={value}" for name, value in arm.options.items()}
        own.add(f"--output_dir={DemoSettings(out=tmp_path).training(arm.name)}")
        assert command - shared <= own


def test_every_arm_is_trained_rolled_out_and_probed(tmp_path):
    names = set(jobs_by_name(DemoSettings(out=tmp_path)))
    assert {f"{what} {arm.name}" for what in ("train", "rollouts", "probe") for arm in ARMS} <= names


def test_an_interrupted_training_goes_on_from_its_last_checkpoint(tmp_path):
    settings = DemoSettings(out=tmp_path)
    job = jobs_by_name(settings)["train none"]
    assert "--resume=true" not in job.command()
    checkpoints = settings.training("none") / "checkpoints"
    (checkpoints / "000200" / "pretrained_model").mkdir(parents=True)
    (checkpoints / "000200" / "pretrained_model" / "train_config.json").touch()
    (checkpoints / "last").symlink_to("000200")
    assert "--resume=true" in job.command()
    log = io.StringIO()
    job.prepare(log)
    assert f"{RESUMED} 200" in log.getvalue()


def test_a_training_without_a_checkpoint_begins_again(tmp_path):
    settings = DemoSettings(out=tmp_path)
    settings.training("none").mkdir(parents=True)
    job = jobs_by_name(settings)["train none"]
    job.prepare(io.StringIO())
    assert not settings.training("none").exists()  # lerobot-train refuses a folder that is there


def test_a_folder_with_other_settings_is_refused(tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps({"steps": 7}))
    assert main(["--out", str(tmp_path), "--quick"]) == 2
    assert "steps was 7 and is now 20" in " ".join(capsys.readouterr().out.split())


def test_settings_that_make_no_sense_are_refused(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--steps", "0"]) == 2
    assert main(["--out", str(tmp_path), "--workers", "0"]) == 2
    assert "--steps must be at least 1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quick_demo_runs_from_nothing_to_its_page_and_does_nothing_the_second_time(tmp_path):
    out = tmp_path / "demo"
    command = [str(Path(sys.executable).parent / "aegis-demo"), "--quick", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "COLUMNS": "200"})
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((out / "results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == [arm.name for arm in ARMS]
    for arm in results["arms"]:
        assert len(arm["successes"]) == quick(out, 0).eval_episodes
        assert arm["action_loss"] > 0
        assert arm["vqa"]["steps"] == [0, 10, 20]
        assert len(arm["loss"]["steps"]) == 4
        assert set(arm["probes"]) == {"nano_scenes", "tabletop"}
    for name in ("index.html", "table.md", "table.csv"):
        assert (out / name).stat().st_size > 500
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Already done" in again.stdout
