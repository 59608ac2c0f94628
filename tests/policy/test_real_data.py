"""Stock lerobot-train on what an SO-101 records: 640x480, two cameras, video, 30 fps. No file is edited."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.forked import run_command
from tests.policy.so101_data import DEGREES, NAMES, PERCENT, record

pytestmark = pytest.mark.slow


def _train(data: Path, out: Path, *options: str) -> CompletedProcess:
    return run_command(
        "lerobot-train",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/so101",
        f"--dataset.root={data}",
        f"--output_dir={out}",
        "--steps=2",
        "--batch_size=2",
        "--log_freq=1",
        "--num_workers=0",
        "--env_eval_freq=0",
        *options,
    )


def _saved(done: CompletedProcess, out: Path) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "checkpoints" / "last" / "pretrained_model" / "config.json").read_text())


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    """Two short episodes as video, in which nobody moved the gripper."""
    root = tmp_path_factory.mktemp("arm") / "data"
    record(root, video=True, ranges=(*DEGREES[:5], (31.7, 31.7)))
    return root


@pytest.fixture(scope="module")
def trained(arm, tiny_folder, tmp_path_factory) -> tuple[Path, dict, str]:
    out = tmp_path_factory.mktemp("run") / "run"
    done = _train(
        arm, out, "--policy.type=aegis_vla", f"--policy.backbone={tiny_folder['paligemma2']}", "--policy.chunk_size=15",
        "--policy.n_action_steps=10",
    )  # fmt: skip
    return out, _saved(done, out), done.stdout + done.stderr


def test_the_stock_command_trains_on_it(trained):
    _, config, log = trained
    assert sorted(config["input_features"]) == [
        "observation.images.front", "observation.images.wrist", "observation.state",
    ]  # fmt: skip
    assert config["input_features"]["observation.images.front"]["shape"] == [3, 480, 640]
    assert config["action_feature_names"] == NAMES and config["demonstrated_fps"] == 30
    assert "A chunk of 15 actions at 30 fps is 0.50 s, of which 0.33 s" in log
    assert "learned as a constant: action gripper.pos, observation.state gripper.pos" in log
    losses = [float(line.split("flow_loss:")[1].split()[0]) for line in log.splitlines() if "flow_loss:" in line]
    assert len(losses) == 2 and max(losses) < 10  # noise against targets of variance 1 is 2


def test_cameras_of_other_names_and_sizes_are_mapped_and_other_units_said(trained, tmp_path):
    data = tmp_path / "data"
    record(data, cameras={"top": (120, 160), "hand": (240, 320)}, ranges=PERCENT, fps=15)
    names = {
        "observation.images.top": "observation.images.front",
        "observation.images.hand": "observation.images.wrist",
    }
    out = tmp_path / "out"
    done = _train(
        data, out, f"--policy.path={trained[0] / 'checkpoints' / 'last' / 'pretrained_model'}",
        f"--rename_map={json.dumps(names)}",
    )  # fmt: skip
    assert _saved(done, out)["demonstrated_fps"] == 15
    log = " ".join((done.stdout + done.stderr).split())
    assert "looks like -100 to 100 where the checkpoint has degrees" in log
    assert "30 actions a second, the data 15" in log


def test_without_the_wrist_camera_it_is_refused_with_the_remedy(trained, tmp_path):
    record(tmp_path / "data", cameras={"front": (48, 64)})
    done = _train(
        tmp_path / "data", tmp_path / "out",
        f"--policy.path={trained[0] / 'checkpoints' / 'last' / 'pretrained_model'}",
    )  # fmt: skip
    assert done.returncode and "looks through 2 cameras" in done.stderr and "--policy.type=aegis_vla" in done.stderr


def test_one_of_the_datas_cameras_is_chosen_as_the_error_about_cameras_says(arm, tiny_folder, tmp_path):
    features = {
        "observation.images.wrist": {"type": "VISUAL", "shape": [3, 480, 640]},
        "observation.state": {"type": "STATE", "shape": [6]},
    }
    done = _train(
        arm, tmp_path / "out", "--policy.type=aegis_vla", f"--policy.backbone={tiny_folder['paligemma2']}",
        f"--policy.input_features={json.dumps(features)}",
    )  # fmt: skip
    assert sorted(_saved(done, tmp_path / "out")["input_features"]) == sorted(features)
