"""aegis-compare runs what is missing, reports what there is, and a failing run stops no other one."""

import pytest
import yaml

from aegis_eval.compare import main, make_place
from aegis_eval.execution import Place
from aegis_eval.runs import PRETRAINED, plan_runs, pretrained_settings, run_settings
from aegis_eval.stages import config_folder
from aegis_eval.study import make_study
from aegis_eval.submission import least_taken

from .studies import made_up_pretrained, made_up_run, study_content


@pytest.fixture
def made_up(tmp_path):
    """A study whose results are all there but one, and nothing else of it."""
    content = study_content(("naive", "lora"), rates=(1e-3,), seeds=(1000, 1001))  # the last run is one of lora
    file = tmp_path / "made_up.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    study = make_study(yaml.safe_load(file.read_text()))
    results = tmp_path / "results"
    for run in plan_runs(study)[:-1]:
        settings = run_settings(study, run, config_folder=config_folder())
        made_up_run(run.arm.name, run.lr, run.seed, settings=settings).write(results / f"{run.name}.json")
    made_up_pretrained(settings=pretrained_settings(study)).write(results / f"{PRETRAINED}.json")
    return file


def call(file, *options):
    return main([str(file), "--out", str(file.parent / "out"), "--results", str(file.parent / "results"), *options])


def test_results_alone_make_a_report_and_it_says_that_it_is_partial(made_up, capsys):
    assert call(made_up, "--report-only") == 0
    assert "Partial: 3 of 4 runs" in " ".join(capsys.readouterr().out.split())
    assert "Partial: 3 of 4 runs" in (made_up.parent / "out" / "index.html").read_text()


def test_differences_over_another_arm(made_up):
    labels = {arm.name: arm.label for arm in make_study(yaml.safe_load(made_up.read_text())).arms}
    assert call(made_up, "--report-only", "--baseline", "lora") == 0
    told = (made_up.parent / "out" / "table.md").read_text()
    assert f"over {labels['lora']} (points)" in told
    assert f"over {labels['naive']} (points)" not in told


def test_runs_whose_results_are_there_are_not_run_again(made_up, capsys, monkeypatch):
    monkeypatch.setattr("aegis_eval.execution.run_jobs", lambda *_, **__: pytest.fail("a command was run"))
    monkeypatch.setattr("aegis_eval.submission.submitit.LocalExecutor", lambda **_: pytest.fail("a run was submitted"))
    assert call(made_up, "--only", "naive") == 0  # no demonstrations, no training: nothing of the study is here
    assert "Already done: 2 of 2 runs" in capsys.readouterr().out
    assert not (made_up.parent / "out" / "runs").exists()


def test_results_of_other_settings_are_refused(made_up, capsys):
    content = yaml.safe_load(made_up.read_text())
    content["rollouts"]["episodes"] = 7
    made_up.write_text(yaml.safe_dump(content, sort_keys=False))
    assert call(made_up, "--report-only") == 2
    assert "rollouts.episodes was 50 and is now 7" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_report_is_told(made_up, tmp_path, capsys):
    assert main([str(made_up), "--out", str(tmp_path / "empty"), "--report-only"]) == 2
    assert "no result" in capsys.readouterr().out


def test_a_second_comparison_in_one_folder_is_refused(made_up, capsys):
    from aegis_eval.folder_lock import alone_in

    with alone_in(made_up.parent / "out"):
        assert call(made_up, "--only", "naive") == 2
    assert "is at work in" in capsys.readouterr().out


@pytest.mark.parametrize(("suite", "task"), [("aegis_metaworld", "reach-v3"), ("aegis_aloha", "AlohaInsertion-v0")])
def test_an_environment_that_cannot_run_here_is_told_before_anything_is_made(
    tmp_path, capsys, monkeypatch, suite, task
):
    monkeypatch.setattr("aegis_envs.metaworld.requirements.TOO_NEW_MUJOCO", "0")  # then any version is too new
    monkeypatch.setattr("aegis_envs.aloha.requirements.find_spec", lambda name: None)  # as where it is not installed
    content = study_content(("naive",), rates=(1e-3,), seeds=(1000,))
    content["rollouts"] |= {"sets": {"suite": {"type": suite, "task": task}}, "chance": {}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert call(file) == 2
    assert "pip install" in capsys.readouterr().out
    assert not (tmp_path / "out" / "demonstrations").exists()


def test_an_option_that_lerobot_refuses_is_told_before_anything_is_made(tmp_path, capsys):
    content = study_content(("naive",), rates=(1e-3,), seeds=(1000,))
    content["rollouts"]["sets"]["shown"]["kind"] = "all"
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert call(file) == 2
    assert "rollouts.sets.shown: The fields `kind` are not valid" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out" / "demonstrations").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", "0"], "--workers must be at least 1; received 0"),
        (["--threads", "0"], "--threads must be at least 1; received 0"),
        (["--only", "absent"], "no arm 'absent'"),
        (["--slurm", "partition"], "KEY=VALUE"),
        (["--quick"], "section `quick:`"),
        (["--baseline", "absent"], "no arm 'absent'"),
        (["--baseline", "lora", "--into", "document.md"], "Drop --baseline"),
    ],
)
def test_options_that_make_no_sense_are_refused(made_up, capsys, options, told):
    assert call(made_up, *options) == 2
    assert told in " ".join(capsys.readouterr().out.split())


def test_workers_are_cores_over_threads_unless_told(tmp_path, monkeypatch):
    monkeypatch.setattr("aegis_eval.compare.available_cores", lambda: 8)
    study = make_study(study_content())

    def place(**options) -> Place:
        return make_place(study, out=tmp_path, results=tmp_path, **{"workers": None, "threads": 1} | options)

    assert place().workers == 8
    assert place(threads=3).workers == 2
    assert place(workers=5).workers == 5
    assert place(threads=9).workers == 1


@pytest.mark.parametrize(("visible", "gpus"), [("2,3", ("2", "3")), ("", ("0", "1")), ("MIG-1a", ("MIG-1a",))])
def test_runs_keep_to_the_gpus_that_the_user_has_chosen(tmp_path, monkeypatch, visible, gpus):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    study = make_study(study_content() | {"device": "cuda"})
    options = {"out": tmp_path, "results": tmp_path, "workers": None, "threads": 1}
    assert make_place(study, **options).gpus == gpus
    with pytest.raises(ValueError, match=r"device: cuda:1.*CUDA_VISIBLE_DEVICES"):
        make_place(make_study(study_content() | {"device": "cuda:1"}), **options)


def test_more_runs_than_gpus_share_them_evenly():
    taken: list[str | None] = ["3"]  # a run of another round
    for _ in range(7):
        taken.append(least_taken(("2", "3", "5", "7"), taken))
    assert sorted(filter(None, taken)) == ["2", "2", "3", "3", "5", "5", "7", "7"]
    assert least_taken((), [None]) is None
