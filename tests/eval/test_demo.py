"""The demo is a comparison with fewer options: it refuses nonsense and mixed settings, and (slow) runs to its page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.slow  # one test of two, for what the demo made is what the comparison goes on from
def test_the_quick_demo_runs_from_nothing_to_its_page_and_a_comparison_goes_on_from_it(tmp_path):
    out = tmp_path / "demo"
    study = read_study(repository_study("demo"), quick=True)
    run = _call("aegis-demo", "--quick", "--out", out)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((out / "results.json").read_text())
    assert [found["arm"] for found in results["runs"]] == [arm.name for arm in study.arms]
    for found in results["runs"]:
        assert set(found["successes"]["shown"]) == {"touch", "lift"}
        assert {len(episodes) for episodes in found["successes"]["shown"].values()} == {study.rollouts.episodes}
        assert found["action_loss"] > 0 and found["step_s"] > 0 and found["memory_mib"] > 100
        assert found["curves"]["vqa"]["steps"] == [0, 10, 20]
        assert len(found["curves"]["flow_loss"]["steps"]) == 4
        assert len(found["curves"]["anchor_distance"]["steps"]) == 4
        assert set(found["probes"]) == {"nano_scenes", "tabletop"}
        assert len(found["videos"]["shown"]["touch"]) == len(found["instructions"]["shown"]["touch"]) == 4
    for name in ("index.html", "table.md", "table.csv"):
        assert (out / name).stat().st_size > 500

    file = tmp_path / "more.yaml"
    file.write_text(yaml.safe_dump(_more_arms(repository_study("demo")), sort_keys=False))
    run = _call("aegis-compare", file, "--quick", "--out", out, "--results", out / "results")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Already done: 1 of 4 runs" in run.stdout
    assert "Failed: broken-lr0.001-seed1000" in run.stdout
    assert "num_vlm_layers must lie between 1 and the language model's depth" in run.stdout  # the end of its log
    assert "--only broken --learning-rates 0.001 --seeds 1000" in run.stdout
    assert "Failed: lost-lr0.001-seed1000. It takes the training of broken" in run.stdout
    naive, again = (
        json.loads((out / f"results/{arm}-lr0.001-seed1000.json").read_text()) for arm in ("none", "asked_again")
    )
    assert again["successes"] == naive["successes"]
    assert [c["name"] for c in again["commands"]][-1] == "probe asked_again-lr0.001-seed1000"
    # The same weights and questions, asked in other batches.
    assert again["probes"]["tabletop"]["families"] == naive["probes"]["tabletop"]["families"]
    assert (naive["curves"]["vqa"]["steps"], again["curves"]["vqa"]["steps"]) == ([0, 10, 20], [])
    assert "Partial: 2 of 4 runs" in (out / "table.md").read_text()

    run = _call("aegis-demo", "--quick", "--out", out)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Already done: 2 of 2 runs" in run.stdout


def _call(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).parent / command
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [script, *arguments], capture_output=True, text=True, timeout=900, env=environment, check=False
    )


def _more_arms(demo: Path) -> dict:
    """The demo's naive arm and what a comparison meets beyond it: a run that fails, and arms made of another's run."""
    content = yaml.safe_load(demo.read_text())
    content["arms"] |= {
        "broken": {"options": {"policy.num_vlm_layers": 99}},  # what no option's check knows
        "asked_again": {"of": "none", "probe_options": {"batch-size": 7}},
        "lost": {"of": "broken", "probe_options": {"batch-size": 7}},
    }
    content["quick"]["arms"] = ["none", "broken", "asked_again", "lost"]
    return content
