"""Runs are planned seed by seed, known by what shapes their numbers, and never mixed with others."""

import io
from dataclasses import replace

import pytest

from aegis_eval.execution import Place, pending_stages, read_results
from aegis_eval.gather import keep_videos
from aegis_eval.provenance import as_typed
from aegis_eval.run_result import find_result, read_result
from aegis_eval.runs import Run, _contents, differences, digest, keep_settings, origin, plan_runs, run_settings
from aegis_eval.stages import config_folder, run_stages, training_folder
from aegis_eval.study import make_study
from aegis_eval.submission import startable
from aegis_eval.success import Rollouts
from aegis_eval.training_log import FROM_STEP

from .studies import made_up_run, study_content

DERIVED = {
    "naive": {"options": {"policy.knowledge": "none", "policy.energy": None}},
    "lora": {"options": {"peft.method_type": "LORA", "peft.targets": ["q", "k"]}, "learning_rates": [1e-3]},
    "wise_ft": {"of": "naive", "interpolate": 0.5},
    "off": {"of": "lora", "probe_options": {"adapters": "off"}},
}


@pytest.fixture
def study():
    return make_study(study_content() | {"arms": DERIVED})


def run_of(study, arm, lr=1e-3, seed=1000):
    return Run(study.arm(arm), lr, seed)


def commands(study, run, out):
    return {job.name.split()[0]: job.command() for job in run_stages(study, run, out)}


def settings(study, run):
    return run_settings(study, run, config_folder=config_folder())


def test_every_arm_meets_every_rate_and_seed_but_for_its_own_restriction(study):
    runs = plan_runs(study)
    assert len(runs) == 3 * (2 + 1 + 2 + 1)  # `off` inherits the restriction of lora
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len({run.name for run in runs}) == len(runs)


def test_the_same_folder_with_other_weights_is_another_run(tmp_path):
    def weights(content: bytes) -> str:
        folder = tmp_path / str(len(content))
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
        (folder / "anchor.safetensors").write_bytes(content * 2)
        backbone = make_study(study_content() | {"arms": DERIVED, "backbone": str(folder)})
        return settings(backbone, run_of(backbone, "naive"))["weights"]

    assert weights(b"old") != weights(b"newer")


def test_data_recorded_anew_in_the_same_folder_is_another_run(tmp_path):
    content = study_content() | {"dataset": {"repo_id": "local/touch", "root": str(tmp_path / "data")}}
    del content["demonstrations"]
    study = make_study(content)
    seen = [settings(study, run_of(study, "naive"))["data"]]
    for episodes in (6, 900):
        (tmp_path / "data/meta").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/meta/info.json").write_text(f'{{"total_episodes": {episodes}}}')
        _contents.cache_clear()
        seen.append(settings(study, run_of(study, "naive"))["data"])
    assert seen[0] == "" and len(set(seen)) == 3


def test_runs_can_be_chosen_by_arm_rate_and_seed_and_a_wrong_choice_is_told(study):
    assert {run.name for run in plan_runs(study, only=["lora"], seeds=[1001])} == {"lora-lr0.001-seed1001"}
    assert {run.lr for run in plan_runs(study)} == {3e-4, 1e-3}
    assert {run.lr for run in plan_runs(study, learning_rates=[3e-4])} == {3e-4}
    with pytest.raises(ValueError, match=r"--learning-rates must be some of .*received \[0.1\]"):
        plan_runs(study, learning_rates=[0.1])
    with pytest.raises(ValueError, match="no arm 'absent'"):
        plan_runs(study, only=["absent"])
    with pytest.raises(ValueError, match=r"\[1000, 1001, 1002\]; received \[7\]"):
        plan_runs(study, seeds=[7])
    with pytest.raises(ValueError, match=r"--only lora: .* rates \[0.001\] from seeds .*none of which was asked for"):
        plan_runs(study, only=["naive", "lora"], learning_rates=[3e-4])


def test_arms_differ_in_nothing_but_their_options_and_folder(study, tmp_path):
    naive, lora = (commands(study, run_of(study, arm), tmp_path)["train"] for arm in ("naive", "lora"))
    own = set(naive) ^ set(lora)
    assert {option.split("=")[0] for option in own} == {
        "--output_dir",
        "--policy.knowledge",
        "--policy.energy",
        "--peft.method_type",
        "--peft.targets",
    }
    assert "--policy.energy=null" in naive
    assert '--peft.targets=["q", "k"]' in lora


def test_an_arm_may_have_an_anchor_of_its_own_and_is_then_another_run(tmp_path):
    arms = {
        "shared": {"options": {"policy.knowledge": "aegis"}},
        "small": {"options": {"policy.knowledge": "aegis"}, "anchor": {"count": 50}},
        "same": {"options": {"policy.knowledge": "aegis"}, "anchor": {}},
        "half": {"of": "small", "interpolate": 0.5},
        "energy": {"options": {"policy.knowledge": "aegis"}, "anchor": {"unit_inputs": False}},
        "some": {"options": {"policy.knowledge": "aegis"}, "anchor": {"token_stride": 4}},
    }
    study = make_study(study_content() | {"arms": arms})
    assert "--unit-inputs" in commands(study, run_of(study, "small"), tmp_path)["anchor"]
    assert settings(study, run_of(study, "small"))["anchor"]["unit_inputs"] is True
    assert "--no-unit-inputs" in commands(study, run_of(study, "energy"), tmp_path)["anchor"]
    assert "unit_inputs" not in settings(study, run_of(study, "energy"))["anchor"]  # as kept results have it
    assert "--token-stride=1" in commands(study, run_of(study, "small"), tmp_path)["anchor"]
    assert "token_stride" not in settings(study, run_of(study, "small"))["anchor"]  # likewise
    assert "--token-stride=4" in commands(study, run_of(study, "some"), tmp_path)["anchor"]
    assert settings(study, run_of(study, "some"))["anchor"]["token_stride"] == 4
    for arm in ("small", "half"):
        found = commands(study, run_of(study, arm), tmp_path)
        assert "--count=50" in found["anchor"] and "--source=nano_scenes" in found["anchor"]
        (built,) = (o.removeprefix("--out=") for o in found["anchor"] if o.startswith("--out="))
        assert f"--policy.anchor_path={built}" in found["train"]
        assert "small" in built
        assert settings(study, run_of(study, arm))["anchor"]["count"] == 50
    assert "anchor" not in commands(study, run_of(study, "shared"), tmp_path)
    assert settings(study, run_of(study, "shared"))["anchor"] == settings(study, run_of(study, "same"))["anchor"]


def test_runs_of_one_arm_differ_in_rate_seed_and_folder(study, tmp_path):
    one = commands(study, run_of(study, "naive", 3e-4, 1000), tmp_path)["train"]
    other = commands(study, run_of(study, "naive", 1e-3, 1001), tmp_path)["train"]
    assert {o.split("=")[0] for o in set(one) ^ set(other)} == {"--output_dir", "--policy.optimizer_lr", "--seed"}


def test_all_arms_are_rolled_out_from_the_same_states_and_asked_the_same_questions(study, tmp_path):
    naive, lora = (commands(study, run_of(study, arm), tmp_path) for arm in ("naive", "lora"))
    for stage, own in (("rollouts", {"--policy.path", "--output_dir"}), ("probe", {"--out"})):
        different = set(naive[stage]) ^ set(lora[stage])
        assert {o.split("=")[0] for o in different if o.startswith("--")} <= own


def test_interpolated_weights_are_rolled_out_and_asked_in_the_place_of_the_trained_ones(study, tmp_path, monkeypatch):
    monkeypatch.setattr("aegis_eval.stages.lerobot_script", lambda name: name)
    run = run_of(study, "wise_ft")
    found = commands(study, run, tmp_path)
    assert list(found) == ["train", "interpolate", "rollouts", "probe"]
    assert found["train"] == commands(study, run_of(study, "naive"), tmp_path)["train"]
    weights = str(run.folder(tmp_path) / "interpolate" / "pretrained_model")
    assert f"--out={weights}" in found["interpolate"] and "--weight=0.5" in found["interpolate"]
    assert f"--policy.path={weights}" in found["rollouts"]
    assert found["probe"][1] == weights


def test_an_arm_that_only_asks_otherwise_shares_training_and_rollouts(study, tmp_path):
    own, others = (run_stages(study, run_of(study, arm), tmp_path) for arm in ("off", "lora"))
    assert [job.folder for job in own[:-1]] == [job.folder for job in others[:-1]]
    assert own[-1].folder != others[-1].folder
    assert "--adapters=off" in own[-1].command()


def test_an_interrupted_training_goes_on_from_its_last_checkpoint(study, tmp_path):
    run = run_of(study, "naive")
    job = run_stages(study, run, tmp_path)[0]
    assert "--resume=true" not in job.command()
    checkpoints = training_folder(run, tmp_path) / "checkpoints"
    (checkpoints / "000200" / "pretrained_model").mkdir(parents=True)
    (checkpoints / "000200" / "pretrained_model" / "train_config.json").touch()
    (checkpoints / "last").symlink_to("000200")
    assert "--resume=true" in job.command()
    log = io.StringIO()
    job.prepare(log)
    assert f"{FROM_STEP} 200" in log.getvalue()


def test_a_training_without_a_checkpoint_begins_again(study, tmp_path):
    run = run_of(study, "naive")
    training_folder(run, tmp_path).mkdir(parents=True)
    log = io.StringIO()
    run_stages(study, run, tmp_path)[0].prepare(log)
    assert f"{FROM_STEP} 0" in log.getvalue()  # what an attempt before it has logged counts no more
    assert not training_folder(run, tmp_path).exists()  # lerobot-train refuses a folder that is there


def test_the_digest_changes_with_what_shapes_the_numbers_and_with_nothing_else(study):
    run = run_of(study, "naive")
    before = digest(settings(study, run))
    relabelled = replace(
        study,
        title="another",
        arms=tuple(replace(arm, label=f"another {arm.name}", note="another") for arm in study.arms),
        training=replace(study.training, save_freq=7),
        rollouts=replace(study.rollouts, videos=9, chance={}),
    )
    assert digest(settings(relabelled, run_of(relabelled, "naive"))) == before
    for other in (
        replace(study, training=replace(study.training, steps=999)),
        replace(study, rollouts=replace(study.rollouts, seed=7)),
        replace(study, demonstrations={**study.demonstrations, "seed": 7}),
        replace(study, train_config="default.yaml"),
    ):
        assert digest(settings(other, run_of(other, "naive"))) != before
    assert digest(settings(study, run_of(study, "naive", seed=1001))) != before


def test_settings_that_changed_are_named():
    before, now = {"training": {"steps": 7, "log_freq": 1}}, {"training": {"steps": 20, "log_freq": 1}}
    assert differences(before, now) == "training.steps was 7 and is now 20"
    assert differences(now, now) == ""


def test_a_folder_with_other_settings_is_refused(tmp_path):
    keep_settings(tmp_path / "settings.json", {"steps": 7})
    keep_settings(tmp_path / "settings.json", {"steps": 7})
    with pytest.raises(ValueError, match="steps was 7 and is now 8"):
        keep_settings(tmp_path / "settings.json", {"steps": 8})


def test_a_result_survives_its_json_and_one_of_other_settings_is_refused(tmp_path):
    result = made_up_run("naive", 1e-3, 1000, settings={"steps": 7})
    result.write(tmp_path / "run.json")
    assert read_result(tmp_path / "run.json") == result
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]  # no part is left
    assert find_result(tmp_path / "absent.json", {}) is None
    assert find_result(tmp_path / "run.json", {"steps": 7}) == result
    with pytest.raises(ValueError, match="steps was 7 and is now 8"):
        find_result(tmp_path / "run.json", {"steps": 8})


def test_a_result_can_be_read_where_its_backbone_is_not_and_not_with_another_one(tmp_path):
    result = made_up_run("naive", 1e-3, 1000, settings={"weights": "a1b2"})
    result.write(tmp_path / "run.json")
    assert find_result(tmp_path / "run.json", {"weights": "", "data": ""}) == result
    with pytest.raises(ValueError, match="weights was 'a1b2'"):
        find_result(tmp_path / "run.json", {"weights": "c3d4"})


def test_a_run_whose_result_is_there_needs_no_folder_and_is_not_run_again(study, tmp_path):
    place = Place(study, out=tmp_path / "out", results=tmp_path / "results")
    runs = plan_runs(study, only=["naive"], seeds=[1000])
    done = runs[0]
    made_up_run("naive", done.lr, done.seed, end=(0.5, 0.5, 1, True), settings=settings(study, done)).write(
        place.result_file(done.name)
    )
    found = read_results(place, runs)
    assert list(found) == [done.name]
    pending = [run for run in runs if run.name not in found]
    assert not any(done.name in job.name for job in pending_stages(place, pending))


def test_no_two_runs_work_on_one_training_and_derived_ones_come_after_it(study, tmp_path):
    place = Place(study, out=tmp_path, results=tmp_path, workers=9)
    naive, wise, lora, off = (run_of(study, arm) for arm in ("naive", "wise_ft", "lora", "off"))
    assert startable(place, [wise, naive, lora, off], []) == [naive, lora]
    assert startable(place, [wise, off], [lora]) == [wise]
    assert startable(replace(place, workers=1), [naive, lora], []) == [naive]
    assert startable(replace(place, workers=1, executor="slurm"), [naive, lora], []) == [naive, lora]
    assert origin(study, wise) == naive


def test_a_command_is_recorded_without_the_folder_of_its_environment():
    assert as_typed("'/some where/bin/lerobot-train' --task='touch the cube' --seed=1") == (
        "lerobot-train '--task=touch the cube' --seed=1"
    )


def test_films_are_named_by_task_seed_and_outcome_and_the_others_deleted(tmp_path):
    films = [tmp_path / f"eval_episode_{i}.mp4" for i in range(3)]
    for i, film in enumerate(films):
        film.write_bytes(bytes([i]))
    found = Rollouts(successes=[False, True, True, False], videos=films)
    for _ in range(2):  # a comparison that goes on reads its rollouts again
        kept = keep_videos(found, 2, task="reach-v3", start_seed=100)
        assert [film.name for film in kept] == ["reach-v3_seed100_failure.mp4", "reach-v3_seed101_success.mp4"]
        assert [film.read_bytes() for film in kept] == [b"\0", b"\1"]
        assert sorted(tmp_path.iterdir()) == kept
