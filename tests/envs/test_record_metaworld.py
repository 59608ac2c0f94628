"""aegis-record makes of Meta-World's experts what LeRobot's own environment would give a policy."""

import json
from pathlib import Path

import numpy as np
import pytest

import lerobot_policy_aegis_vla  # noqa: F401  registers the policy

pytest.importorskip("metaworld", reason="needs the extra metaworld: pip install -e '.[metaworld]'")

from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import MetaworldEnv as LerobotConfig
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import close_envs, env_to_policy_features
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features

from aegis_envs.metaworld.env import MetaworldTask
from aegis_envs.metaworld.tasks import descriptions
from aegis_envs.record import RECORD_FILE, failure_shares, main
from tests.forked import run_command

TASKS = ("reach-v3", "button-press-topdown-v3")


def _record(root: Path, *extra: str, episodes: int, size: int = 48) -> LeRobotDataset:
    options = [f"--root={root}", "--repo-id=local/test", f"--env.image_size={size}", f"--episodes={episodes}"]
    main(["--env.type=metaworld", f"--env.task={','.join(TASKS)}", *options, *extra])
    return LeRobotDataset("local/test", root=root)


def _columns(dataset: LeRobotDataset) -> list[np.ndarray]:
    rows = [dataset[i] for i in range(len(dataset))]
    return [np.stack([row[name].numpy() for row in rows]) for name in (ACTION, OBS_STATE, OBS_IMAGE)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, LeRobotDataset]:
    root = tmp_path_factory.mktemp("recorded") / "data"
    return root, _record(root, "--noise=0.2", episodes=3)


def test_a_recording_has_the_tasks_in_turn_under_lerobots_names_and_descriptions(recorded):
    root, dataset = recorded
    assert (dataset.num_episodes, dataset.fps, dataset.meta.robot_type) == (3, 80, "sawyer")
    said = [dataset[int(episode["dataset_from_index"])]["task"] for episode in dataset.meta.episodes]
    assert said == [descriptions()[TASKS[k % 2]] for k in range(3)]
    actions = _columns(dataset)[0]
    assert np.abs(actions).max() <= 1
    log = json.loads((root / RECORD_FILE).read_text())
    assert (log["state"], log["options"]["env_type"]) == ("complete", "metaworld")
    assert set(log["failures"]) == set(TASKS)


def test_its_features_are_those_of_lerobots_own_environment(tmp_path):
    dataset = _record(tmp_path / "data", episodes=1, size=480)
    assert dataset_to_policy_features(dataset.features) == env_to_policy_features(LerobotConfig())


def test_the_recorded_actions_lead_to_the_recorded_states_and_to_success(tmp_path):
    dataset = _record(tmp_path / "data", episodes=1)
    actions, states, pictures = _columns(dataset)
    env = MetaworldTask(TASKS[0], image_size=48)
    observation, _ = env.reset(seed=int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]))
    for step, action in enumerate(actions):
        np.testing.assert_array_equal(observation["agent_pos"].astype(np.float32), states[step])
        np.testing.assert_array_equal(observation["pixels"].transpose(2, 0, 1), np.round(pictures[step] * 255))
        observation, _, success, *_ = env.step(action)
        assert success == (step == len(actions) - 1)
    env.close()


def test_an_interrupted_recording_goes_on_as_if_it_had_not_been(recorded, tmp_path):
    _record(tmp_path / "parts", "--noise=0.2", episodes=2)
    parts = _record(tmp_path / "parts", "--noise=0.2", "--resume", episodes=3)
    for whole, part in zip(_columns(recorded[1]), _columns(parts), strict=True):
        np.testing.assert_array_equal(whole, part)


def test_the_share_of_failures_is_told_for_all_tasks_and_each():
    told = failure_shares({"reach-v3": 0, "push-v3": 1}, tasks=("reach-v3", "push-v3"), episodes=5)
    assert told == "1 of 6 attempts of the experts failed and are left out (push-v3 33.3%)."
    assert failure_shares({}, tasks=("reach-v3",), episodes=5).startswith("0 of 5 attempts")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--env.task=fly-v3"], "50 tasks.*'fly-v3'"),
        (["--rendering=nice"], "fast, shadows, faithful; got 'nice'"),
        (["--image-size=500"], "48 to 480"),
        (["--noise=-1"], "cannot be negative"),
        (["--env.type=libero"], "aegis_tabletop, metaworld.*'libero'"),
    ],
)
def test_a_bad_option_ends_with_a_sentence_and_leaves_nothing_behind(options, told, tmp_path):
    with pytest.raises(SystemExit, match=f"aegis-record: .*{told}"):
        main(["--env.type=metaworld", f"--root={tmp_path / 'data'}", *options])
    assert not (tmp_path / "data").exists()


def test_an_environment_is_named_in_full_as_its_options_hang_on_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--env.typ=metaworld", f"--root={tmp_path / 'data'}"])
    assert "unrecognized arguments: --env.typ=metaworld" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_recorded_trains_and_acts_in_our_environment_and_in_lerobots(recorded, tmp_path):
    root, _ = recorded
    config = Path(__file__).parents[2] / "configs" / "train" / "metaworld.yaml"
    data = ["--dataset.repo_id=local/test", f"--dataset.root={root}", f"--output_dir={tmp_path / 'run'}"]
    short = ["--steps=2", "--batch_size=2", "--log_freq=1", "--policy.knowledge=none"]
    _run("lerobot-train", f"--config_path={config}", *data, *short)
    policy = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    options = [f"--policy.path={policy}", "--policy.device=cpu", "--env.type=aegis_metaworld", "--env.task=reach-v3"]
    options += ["--env.image_size=48", "--env.episode_length=3", "--eval.n_episodes=2", "--eval.batch_size=2"]
    _run("lerobot-eval", *options, "--eval.use_async_envs=false", "--seed=9", f"--output_dir={tmp_path / 'eval'}")
    (task,) = json.loads((tmp_path / "eval" / "eval_info.json").read_text())["per_task"]
    assert task["task_group"] == "reach-v3"
    assert len(task["metrics"]["successes"]) == 2
    result = _roll_out_in_lerobots_own(policy, steps=3)
    assert result[ACTION].shape == (1, 3, 4)
    assert result[ACTION].isfinite().all()


def _roll_out_in_lerobots_own(policy_folder: Path, *, steps: int) -> dict:
    """As lerobot-eval does it, but for a few steps: LeRobot's environment goes on for 500, at 0.15 s each."""
    config = PreTrainedConfig.from_pretrained(policy_folder)
    config.pretrained_path = policy_folder
    environment = LerobotConfig(task="reach-v3")
    vector = make_env(environment, n_envs=1)["reach-v3"][0]
    vector.envs[0].unwrapped._max_episode_steps = steps
    policy = make_policy(cfg=config, env_cfg=environment).eval()
    before, after = make_pre_post_processors(policy_cfg=config, pretrained_path=str(policy_folder))
    env_before, env_after = make_env_pre_post_processors(environment, policy_cfg=config)
    result = rollout(vector, policy, env_before, env_after, before, after, seeds=[9])
    close_envs({"reach-v3": {0: vector}})
    return result


def _run(command: str, *arguments: str) -> None:
    done = run_command(command, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
