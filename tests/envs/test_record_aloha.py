"""aegis-record makes of the experts what LeRobot's own aloha environment would give a policy."""

import json
from pathlib import Path

import numpy as np
import pytest

import lerobot_policy_aegis_vla  # noqa: F401  registers the policy

pytest.importorskip("gym_aloha", reason="needs the extra aloha: pip install -e '.[aloha]'")

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import AlohaEnv as LerobotConfig
from lerobot.envs.utils import env_to_policy_features
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features

from aegis_envs.aloha.env import AlohaTask
from aegis_envs.aloha.options import IMAGE_KEY, NAMES, TASKS
from aegis_envs.record import RECORD_FILE, main
from tests.forked import run_command

SIZE = 48


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, LeRobotDataset]:
    root = tmp_path_factory.mktemp("recorded") / "data"
    options = [f"--root={root}", "--repo-id=local/test", f"--env.image_size={SIZE}", "--rendering=fast", "--episodes=2"]
    main(["--env.type=aloha", f"--env.task={','.join(TASKS)}", "--noise=0.1", *options])
    return root, LeRobotDataset("local/test", root=root)


def test_a_recording_has_the_tasks_in_turn_with_lerobots_names_and_instructions(recorded):
    root, dataset = recorded
    assert (dataset.num_episodes, dataset.fps, dataset.meta.robot_type) == (2, 50, "aloha")
    said = [dataset[int(episode["dataset_from_index"])]["task"] for episode in dataset.meta.episodes]
    assert said == list(TASKS.values())
    assert dataset.features[ACTION]["names"] == NAMES
    assert json.loads((root / RECORD_FILE).read_text())["options"]["env_type"] == "aloha"
    full = {name: feature.shape for name, feature in env_to_policy_features(LerobotConfig()).items()}
    small = {name: feature.shape for name, feature in dataset_to_policy_features(dataset.features).items()}
    assert small == {**full, IMAGE_KEY: (3, SIZE, SIZE * 4 // 3)}


def test_the_recorded_actions_lead_to_the_recorded_states_and_pictures(tmp_path):
    root = tmp_path / "data"
    main(["--env.type=aloha", f"--root={root}", f"--image-size={SIZE}", "--rendering=fast", "--episodes=1"])
    dataset = LeRobotDataset("local/aloha", root=root)
    env = AlohaTask("AlohaTransferCube-v0", image_size=SIZE)
    observation, _ = env.reset(seed=int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]))
    succeeded = False
    for frame in (dataset[i] for i in range(len(dataset))):
        np.testing.assert_array_equal(observation["agent_pos"].astype(np.float32), frame[OBS_STATE])
        picture = np.round(frame[IMAGE_KEY].numpy() * 255)
        np.testing.assert_array_equal(observation["pixels"]["top"].transpose(2, 0, 1), picture)
        observation, _, success, *_ = env.step(frame[ACTION].numpy())
        succeeded = succeeded or success
    assert succeeded
    env.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--env.task=AlohaFly-v0"], "AlohaTransferCube-v0.*'AlohaFly-v0'"),
        (["--image-size=100"], "divisible by 3"),
        (["--noise=-1"], "cannot be negative"),
    ],
)
def test_a_bad_option_ends_with_a_sentence_and_leaves_nothing_behind(options, told, tmp_path):
    with pytest.raises(SystemExit, match=f"aegis-record: .*{told}"):
        main(["--env.type=aloha", f"--root={tmp_path / 'data'}", *options])
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["aloha", "aegis_aloha"])
def test_what_is_recorded_trains_and_acts_in_lerobots_environment_and_in_ours(recorded, tmp_path, environment):
    root, _ = recorded
    configs = Path(__file__).parents[2] / "configs"
    data = ["--dataset.repo_id=local/test", f"--dataset.root={root}", f"--output_dir={tmp_path / 'run'}"]
    short = ["--steps=2", "--batch_size=2", "--log_freq=1", "--policy.knowledge=none"]
    _run("lerobot-train", f"--config_path={configs / 'train' / 'aloha.yaml'}", *data, *short)
    policy = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    options = [f"--policy.path={policy}", "--policy.device=cpu", f"--env.type={environment}"]
    options += ["--env.task=AlohaTransferCube-v0", "--env.episode_length=3", "--eval.n_episodes=1"]
    options += ["--eval.batch_size=1", "--seed=9", f"--output_dir={tmp_path / 'eval'}"]
    _run("lerobot-eval", *options)
    (task,) = json.loads((tmp_path / "eval" / "eval_info.json").read_text())["per_task"]
    assert len(task["metrics"]["successes"]) == 1


def _run(command: str, *arguments: str) -> None:
    done = run_command(command, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
