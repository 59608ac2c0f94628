"""The demo is a comparison with fewer options: it refuses nonsense and mixed settings, and (slow) runs to its page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_eval.compare import repository_study
from aegis_eval.demo import main
from aegis_eval.study import read_study


def test_a_folder_with_other_settings_is_refused(tmp_path, capsys):
    (tmp_path / "shared.json").write_text(json.dumps({"demonstrations": {"episodes": 7}}))
    assert main(["--out", str(tmp_path), "--quick"]) == 2
    assert "demonstrations.episodes was 7 and is now 6" in " ".join(capsys.readouterr().out.split())


def test_settings_that_make_no_sense_are_refused(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--steps", "0"]) == 2
    assert main(["--out", str(tmp_path), "--workers", "0"]) == 2
    told = capsys.readouterr().out
    assert "training.steps must be a whole number of at least 1" in told
    assert "--workers must be at least 1" in told


@pytest.mark.slow
def test_the_quick_demo_runs_from_nothing_to_its_page_and_does_nothing_the_second_time(tmp_path):
    out = tmp_path / "demo"
    study = read_study(repository_study("demo"), quick=True)
    command = [str(Path(sys.executable).parent / "aegis-demo"), "--quick", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "COLUMNS": "200"})
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((out / "results.json").read_text())
    assert [found["arm"] for found in results["runs"]] == [arm.name for arm in study.arms]
    for found in results["runs"]:
        assert len(found["successes"]["shown"]["touch"]) == study.rollouts.episodes
        assert found["action_loss"] > 0 and found["step_s"] > 0 and found["memory_mib"] > 100
        assert found["curves"]["vqa"]["steps"] == [0, 10, 20]
        assert len(found["curves"]["flow_loss"]["steps"]) == 4
        assert len(found["curves"]["anchor_distance"]["steps"]) == 4
        assert set(found["probes"]) == {"nano_scenes", "tabletop"}
        assert len(found["videos"]["shown"]["touch"]) == len(found["instructions"]["shown"]["touch"]) == 4
    for name in ("index.html", "table.md", "table.csv"):
        assert (out / name).stat().st_size > 500
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Already done: 3 of 3 runs" in again.stdout
