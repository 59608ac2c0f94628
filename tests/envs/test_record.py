import json
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE

from aegis_envs.record import RECORD_FILE, main
from aegis_envs.units import FEATURE_NAMES


def _record(root: Path, *extra: str, episodes: int = 3) -> LeRobotDataset:
    main([f"--root={root}", "--repo-id=local/test", "--image-size=32", f"--episodes={episodes}", *extra])
    return LeRobotDataset("local/test", root=root)


def _columns(dataset: LeRobotDataset) -> list[np.ndarray]:
    rows = [dataset[i] for i in range(len(dataset))]
    names = (ACTION, OBS_STATE, "observation.images.front")
    return [np.stack([row[name].numpy() for row in rows]) for name in names]


def test_a_recording_is_a_dataset_that_lerobot_reads(tmp_path: Path) -> None:
    dataset = _record(tmp_path / "data", "--task=touch,lift", episodes=4)
    assert dataset.num_episodes == 4 and dataset.fps == 10
    assert dataset.features[ACTION]["names"] == list(FEATURE_NAMES)
    assert dataset.meta.robot_type == "so101_follower"
    row = dataset[0]
    assert row["observation.images.front"].shape == (3, 32, 32) and row[OBS_STATE].shape == (6,)
    said = [dataset[int(e["dataset_from_index"])]["task"] for e in dataset.meta.episodes]
    lifting = ("lift ", "pick up ", "grasp ")
    assert [s.startswith(lifting) for s in said] == [False, True, False, True]
    log = json.loads((tmp_path / "data" / RECORD_FILE).read_text())
    assert log["state"] == "complete" and log["options"]["task"] == "touch,lift"


def test_an_interrupted_recording_goes_on_as_if_it_had_not_been(tmp_path: Path, capsys) -> None:
    whole = _record(tmp_path / "whole", episodes=4)
    _record(tmp_path / "parts", episodes=2)
    capsys.readouterr()
    parts = _record(tmp_path / "parts", "--resume", episodes=4)
    bar = capsys.readouterr().err
    assert "Recording:  50%" in bar and "4/4 [" in bar
    for a, b in zip(_columns(whole), _columns(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_recording_that_was_killed_is_made_again(tmp_path: Path) -> None:
    root = tmp_path / "data"
    whole = _columns(_record(root))
    log = json.loads((root / RECORD_FILE).read_text())
    (root / RECORD_FILE).write_text(json.dumps({**log, "state": "writing"}))
    next((root / "data").rglob("*.parquet")).write_bytes(b"cut off")
    for a, b in zip(whole, _columns(_record(root, "--resume")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(SystemExit, match="not overwritten"):
        _record(tmp_path)
    with pytest.raises(SystemExit, match="no recording of aegis-record"):
        _record(tmp_path, "--resume")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_recording_is_not_continued_with_other_options(tmp_path: Path) -> None:
    _record(tmp_path / "data", episodes=1)
    with pytest.raises(SystemExit, match="'seed': 0"):
        _record(tmp_path / "data", "--resume", "--seed=1", episodes=2)


def test_an_option_that_a_recording_does_not_know_had_its_default_there(tmp_path: Path) -> None:
    _record(tmp_path / "data", episodes=1)
    path = tmp_path / "data" / RECORD_FILE
    log = json.loads(path.read_text())
    del log["options"]["randomize"], log["options"]["env_type"]
    path.write_text(json.dumps(log))
    with pytest.raises(SystemExit, match="'randomize': 'none'"):
        _record(tmp_path / "data", "--resume", "--randomize=all", episodes=2)
    assert _record(tmp_path / "data", "--resume", episodes=2).num_episodes == 2


@pytest.mark.parametrize("option", ["--task=fly", "--kinds=new", "--noise=-1", "--objects=9", "--cameras=side"])
def test_a_bad_option_ends_with_a_sentence_and_leaves_nothing_behind(tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit, match="aegis-record: "):
        _record(tmp_path / "data", option)
    assert not (tmp_path / "data").exists()
