"""Probes are looked up, asked and scored; mistakes are answered with what to do."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from aegis_backbones.questions import FAMILIES
from aegis_eval.checkpoints import find_checkpoint
from aegis_eval.monitor import VQAMonitor
from aegis_eval.probe import main, make_report, score_table
from aegis_eval.probes import Probe, find_probe, list_probes, read_probe_file, register, standard_probes
from aegis_eval.probes.tabletop import tabletop_frames
from aegis_eval.scoring import ALL, ask_all
from aegis_policy.answering import load_vlm
from aegis_policy.vqa import VQASample


def samples(count):
    image = Image.new("RGB", (8, 8))
    return [
        VQASample(images=(image,), question=f"{i}?", answers=("yes", "yeah"), family=FAMILIES[i % len(FAMILIES)])
        for i in range(count)
    ]


class Yes:
    """Says yes, except to the first family, which it gets wrong."""

    def __init__(self):
        self.batches = []

    def answer(self, samples, *, batch_size=64, max_new_tokens=8):
        self.batches.append(len(samples))
        return ["no" if s.family == FAMILIES[0] else " Yes. " for s in samples]


def test_a_score_counts_right_answers_by_family_and_over_all():
    rates = ask_all(Yes(), samples(70)).rates()
    assert (rates[FAMILIES[0]].successes, rates[FAMILIES[0]].trials) == (0, 10)
    assert (rates[FAMILIES[1]].successes, rates[FAMILIES[1]].trials) == (10, 10)
    assert (rates[ALL].successes, rates[ALL].trials) == (60, 70)


def test_every_question_is_asked_once_in_batches():
    vlm, answered = Yes(), []
    ask_all(vlm, samples(70), batch_size=32, on_progress=answered.append)
    assert vlm.batches == answered == [32, 32, 6]


def test_a_vlm_that_swallows_questions_is_an_error():
    class Mute:
        def answer(self, samples, **_):
            return []

    with pytest.raises(ValueError, match="0 answers"):
        ask_all(Mute(), samples(3))


def test_all_probes_are_registered_and_names_are_unique():
    assert list_probes() == ["nano_scenes", "tabletop", "facts", "prose"]
    assert standard_probes() == ["nano_scenes", "tabletop"]  # the embedded backbone refuses the others
    with pytest.raises(ValueError, match="already registered"):
        register(Probe(name="tabletop", version=99, source="tabletop", count=1, seed=0))


def test_an_unknown_probe_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'tabletop'"):
        find_probe("table_top")


def test_a_probe_without_questions_or_with_a_made_up_split_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        find_probe("tabletop", count=0)
    with pytest.raises(ValueError, match="split"):
        Probe(name="x", version=1, source="tabletop", count=1, seed=0, split="test")


def test_a_file_selects_probes(tmp_path):
    file = tmp_path / "probes.yaml"
    file.write_text("nano_scenes: {count: 7}\ntabletop:\n")
    first, second = read_probe_file(file)
    assert (first.name, first.count, second) == ("nano_scenes", 7, find_probe("tabletop"))
    file.write_text("nano_scenes: {counts: 7}\n")
    with pytest.raises(ValueError, match="'count' and 'seed'"):
        read_probe_file(file)
    file.write_text("- nano_scenes\n")
    with pytest.raises(ValueError, match="must map"):
        read_probe_file(file)


@pytest.mark.parametrize("name", ["standard", "quick"])
def test_the_shipped_files_select_known_probes(name, pytestconfig):
    assert [p.name for p in read_probe_file(pytestconfig.rootpath / f"configs/probes/{name}.yaml")] == standard_probes()


def test_the_report_is_plain_json_with_what_is_needed_to_repeat_it():
    probe = find_probe("tabletop", count=14)
    scores = {"tabletop": ask_all(Yes(), samples(14))}
    report = json.loads(
        json.dumps(
            make_report("nano", [probe], scores, fingerprint="0" * 64, adapters="on", seconds=1.0), allow_nan=False
        )
    )
    found = report["probes"]["tabletop"]
    assert (found["version"], found["seed"], found["count"]) == (probe.version, probe.seed, 14)
    assert found["correct"] == ("0" + "1" * 6) * 2
    assert found["accuracy"][ALL]["successes"] == 12
    assert score_table(scores, title="nano").row_count == len(FAMILIES) + 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent/folder"], "There is no folder"),
        (["nano", "--probe", "nano_scene"], "Did you mean 'nano_scenes'"),
        (["nano", "--probe", ","], "at least one probe"),
        (["nano", "--count", "0"], "at least one question"),
        (["nano", "--config", "x.yaml", "--count", "3"], "Use one"),
        (["nano", "--config", "absent.yaml"], "absent.yaml"),
        (["nano", "--out", "."], "is a folder"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained_before_anything_is_loaded(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_command_writes_scores_and_the_name_of_the_weights(tmp_path):
    out = tmp_path / "probe.json"
    assert main(["nano", "--probe", "nano_scenes", "--count", "14", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["probes"]["nano_scenes"]["accuracy"][ALL]["trials"] == 14
    assert report["fingerprint"] == load_vlm("nano").fingerprint


def test_a_checkpoint_is_found_from_any_folder_around_it(tmp_path):
    run = tmp_path / "run"
    for step in ("000010", "000020"):
        model = run / "checkpoints" / step / "pretrained_model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    assert find_checkpoint("nano") == "nano"
    assert find_checkpoint(run) == model
    assert find_checkpoint(run / "checkpoints") == model
    assert find_checkpoint(run / "checkpoints" / "000010").parent.name == "000010"
    assert find_checkpoint(model) == model
    (run / "checkpoints" / "last").symlink_to("000010")
    assert find_checkpoint(run) == run / "checkpoints" / "last" / "pretrained_model"


def test_a_folder_without_a_checkpoint_is_described(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"It holds: notes\.txt"):
        find_checkpoint(tmp_path)


def test_a_hub_id_is_the_folder_that_the_hub_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--someone--policy"
    (repository / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (repository / "refs" / name).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    assert find_checkpoint("someone/policy").name == "a" * 40
    assert find_checkpoint("someone/policy@v1").name == "b" * 40
    with pytest.raises(FileNotFoundError, match="no folder someone/other, and the hub gives nothing for it"):
        find_checkpoint("someone/other")
    with pytest.raises(FileNotFoundError, match="no folder absent, and it is no hub id"):
        find_checkpoint("absent")


def test_the_reason_that_the_hub_gives_is_told_whole(monkeypatch):
    def refuse(*_, **__):
        raise OSError("403 Client Error. (Request ID: 1)\n\nAccess to model someone/gated is restricted.")

    monkeypatch.setattr("aegis_eval.checkpoints.snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="Access to model someone/gated is restricted"):
        find_checkpoint("someone/gated")


class Counted(Probe):
    def samples(self):
        made.append(self.name)
        return samples(self.count)


made: list[str] = []


def test_the_monitor_asks_the_same_questions_at_every_step():
    made.clear()
    monitor = VQAMonitor(count=2)
    monitor.probes = [Counted(name="nano_scenes", version=1, source="none", count=14, seed=0)]
    first, second = monitor(Yes(), 100), monitor(Yes(), 200)
    assert first == second
    assert made == ["nano_scenes"]
    assert first["vqa"] == pytest.approx(12 / 14)
    assert first[f"vqa_{FAMILIES[0]}"] == 0
    assert set(first) == {"vqa", *(f"vqa_{f}" for f in FAMILIES)}


def test_the_monitor_takes_count_questions_of_each_family():
    assert VQAMonitor(count=3).probes[0].count == 3 * len(FAMILIES)


def test_further_probes_of_the_monitor_carry_their_name():
    monitor = VQAMonitor(count=1)
    monitor.probes = [
        Counted(name=name, version=1, source="none", count=7, seed=0) for name in ("nano_scenes", "tabletop")
    ]
    scores = monitor(Yes(), 0)
    assert {"vqa", "vqa_tabletop", f"vqa_tabletop_{FAMILIES[2]}"} <= set(scores)


@pytest.fixture(scope="module")
def frames():
    return tabletop_frames(count=14, seed=3, split="validation")


def test_robot_frames_are_asked_about_in_turns_of_families(frames):
    assert [s.family for s in frames] == [*FAMILIES, *FAMILIES]
    assert all(s.images[0].size == (96, 96) for s in frames)


def test_the_same_seed_gives_the_same_frames_and_questions(frames):
    again = tabletop_frames(count=7, seed=3, split="validation")
    assert [s.question for s in again] == [s.question for s in frames[:7]]
    assert [s.images[0].tobytes() for s in again] == [s.images[0].tobytes() for s in frames[:7]]


def test_splits_of_robot_frames_differ(frames):
    train = tabletop_frames(count=7, seed=3, split="train")
    assert not {s.images[0].tobytes() for s in train} & {s.images[0].tobytes() for s in frames}
    with pytest.raises(ValueError, match="split"):
        tabletop_frames(count=1, seed=0, split="test")


def test_making_robot_frames_leaves_the_global_random_generators_alone():
    def state():
        numpys = np.random.get_state()[1].tolist()  # noqa: NPY002  the global generator is what must rest
        return random.getstate(), numpys, torch.get_rng_state().tolist()

    before = state()
    tabletop_frames(count=1, seed=0, split="validation")
    assert state() == before
