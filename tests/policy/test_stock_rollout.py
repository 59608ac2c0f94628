"""Stock lerobot-rollout runs a checkpoint on the simulated SO-101: sync, real-time chunking, recorded and guarded."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.utils import env_to_policy_features
from lerobot.policies import make_pre_post_processors
from lerobot.scripts import lerobot_rollout
from lerobot.utils.constants import ACTION, OBS_STATE

from aegis_envs.configuration_aegis_envs import AegisTabletopEnv
from aegis_envs.units import FEATURE_NAMES
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

pytestmark = pytest.mark.slow

# A chunk is 1.6 s: an inference may take that long on a busy machine before LeRobot drops all that it brings.
RTC = ["--inference.type=rtc", "--inference.rtc.execution_horizon=8", "--inference.queue_threshold=8"]
SECONDS = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained policy of the table: where its actions lead does not matter here, that they arrive does."""
    features = env_to_policy_features(AegisTabletopEnv(task="touch"))
    policy = AegisVLAPolicy(
        AegisVLAConfig(
            input_features={k: f for k, f in features.items() if k != ACTION},
            output_features={ACTION: features[ACTION]},
            device="cpu",
            chunk_size=16,
            n_action_steps=3,
            num_inference_steps=2,
        )
    )
    stats = {name: {"mean": torch.zeros(6), "std": torch.full((6,), 20.0)} for name in (OBS_STATE, ACTION)}
    folder = tmp_path_factory.mktemp("policy")
    for part in (policy, *make_pre_post_processors(policy.config, dataset_stats=stats)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def lerobot_rollout_command(checkpoint, tmp_path, monkeypatch):
    """Runs the command at 10 policy steps and 30 actions a second; returns the robot's report."""

    def run(*options: str, robot: str | None = None) -> dict:
        report = tmp_path / "report.json"
        robot = robot or f"--robot.type=aegis_so101_sim --robot.seed=3 --robot.report={report}"
        command = ["lerobot-rollout", f"--policy.path={checkpoint}", "--task=touch something", *robot.split(" --")]
        command = command[:3] + [part if part.startswith("--") else f"--{part}" for part in command[3:]]
        command += ["--fps=10", "--interpolation_multiplier=3", "--play_sounds=false", *options]
        monkeypatch.setattr(sys, "argv", command)
        lerobot_rollout.main()
        return json.loads(report.read_text())

    return run


@pytest.mark.parametrize("inference", [["--inference.type=sync"], RTC], ids=["sync", "rtc"])
def test_actions_arrive_for_as_long_as_the_rollout_lasts(lerobot_rollout_command, inference, caplog) -> None:
    report = lerobot_rollout_command(f"--duration={SECONDS}", "--return_to_initial_position=false", *inference)
    (episode,) = report["episodes"]
    sent = np.array(episode["sent_at_s"])
    assert episode["seed"] == 3 and episode["verdict"] in ("success", "failure", "timeout", "unfinished")
    # More than one inference brings, by number (3 actions, interpolated) or by time (a chunk of 1.6 s). How many more
    # depends on what else the machine does.
    assert len(sent) > 3 * 3 and sent[-1] > SECONDS / 2
    # No more than was asked for: a tick begins 1/30 s after the one before at the earliest, its action comes in it.
    assert len(sent) <= 30 * sent[-1] + 2
    # LeRobot goes on after a failed inference, up to ten of them: none may have failed.
    assert "RTC inference error" not in caplog.text


def test_episodes_are_recorded_and_each_gets_a_scene_of_its_own(lerobot_rollout_command, tmp_path) -> None:
    root = tmp_path / "dataset"
    report = lerobot_rollout_command(
        "--strategy.type=episodic", "--dataset.repo_id=local/rollout_test", f"--dataset.root={root}",
        "--dataset.push_to_hub=false", "--dataset.video=false", "--dataset.fps=30", "--dataset.no_stamp=true",
        "--dataset.num_episodes=2", "--dataset.episode_time_s=1", "--dataset.reset_time_s=0.2",
    )  # fmt: skip
    assert [episode["seed"] for episode in report["episodes"]] == [3, 4]
    dataset = LeRobotDataset("local/rollout_test", root=root)
    assert dataset.num_episodes == 2
    assert dataset.features[ACTION]["names"] == dataset.features[OBS_STATE]["names"] == list(FEATURE_NAMES)
    assert dataset[0]["observation.images.front"].shape == (3, 96, 96)
    assert dataset[0]["task"] == "touch something"


def test_a_guarded_robot_runs_under_the_same_command(lerobot_rollout_command, tmp_path) -> None:
    inner = f"{{type: aegis_so101_sim, seed: 3, report: {tmp_path / 'report.json'}}}"
    robot = f"--robot.type=aegis_guarded --robot.robot={inner} --robot.watchdog_ms=500"
    report = lerobot_rollout_command("--duration=1", "--robot.joint_limits={shoulder_pan: [-20, 20]}", robot=robot)
    assert report["episodes"][0]["sent_at_s"]
