"""LIBERO's configurations and LeRobot's `libero`: what a policy reads, with or without the package."""

import sys
from pathlib import Path

import draccus
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation
from lerobot.policies import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

import lerobot_policy_aegis_vla  # noqa: F401  registers the policy
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

CONFIGS = Path(__file__).parents[2] / "configs"
CAMERAS = (f"{OBS_IMAGES}.image", f"{OBS_IMAGES}.image2")
# As LeRobot's documentation gives lerobot/libero.
DATASET = {
    **{camera: PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for camera in CAMERAS},
    OBS_STATE: PolicyFeature(FeatureType.STATE, (8,)),
    ACTION: PolicyFeature(FeatureType.ACTION, (7,)),
}


@pytest.fixture
def evaluation(monkeypatch) -> EvalPipelineConfig:
    monkeypatch.setattr(sys, "argv", ["lerobot-eval"])
    return draccus.parse(EvalPipelineConfig, CONFIGS / "eval" / "libero.yaml", args=[])


def _observation(batch: int) -> dict:
    """What LeRobot's vector environment gives (lerobot.envs.libero): pictures upside down, the state in parts."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, batch, 256, 256, 3), generator=generator, dtype=torch.uint8).numpy()
    turned = [0.0, 0.0, 0.5**0.5, 0.5**0.5]  # x, y, z, w: 90 degrees about z
    return {
        "pixels": {"image": pixels[0], "image2": pixels[1]},
        "robot_state": {
            "eef": {
                "pos": torch.tensor([[0.1, 0.2, 0.3]] * batch).numpy(),
                "quat": torch.tensor([turned] * batch).numpy(),
            },
            "gripper": {"qpos": torch.tensor([[0.04, -0.04]] * batch).numpy()},
        },
    }


def test_the_pictures_of_the_evaluation_have_the_size_and_names_of_the_data_set(evaluation):
    assert evaluation.env.type == "libero"
    features = env_to_policy_features(evaluation.env)
    for camera in CAMERAS:
        assert features[camera] == DATASET[camera]
    assert features[ACTION] == DATASET[ACTION]
    assert evaluation.env.task.split(",") == ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
    assert (
        evaluation.eval.batch_size == evaluation.eval.n_episodes
    )  # or a task's episodes would not be those of its numbers


def test_lerobots_processors_make_the_state_of_eight_and_turn_the_pictures_round(evaluation):
    raw = _observation(batch=1)
    before, _ = make_env_pre_post_processors(evaluation.env, policy_cfg=None)
    made = before(preprocess_observation(raw))
    torch.testing.assert_close(made[OBS_STATE], torch.tensor([[0.1, 0.2, 0.3, 0, 0, torch.pi / 2, 0.04, -0.04]]))
    for camera, picture in zip(CAMERAS, raw["pixels"].values(), strict=True):
        turned = torch.from_numpy(picture[0, ::-1, ::-1].copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(made[camera][0], turned)


def _policy() -> tuple[AegisVLAPolicy, PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """The training configuration's policy for the data set's features, untrained and on the embedded backbone."""
    options = ["--policy.device=cpu", "--policy.dtype=float32", "--policy.num_inference_steps=2"]
    config = TrainPipelineConfig.from_pretrained(CONFIGS / "train" / "libero.yaml", cli_args=options).policy
    config.input_features = {name: feature for name, feature in DATASET.items() if name != ACTION}
    config.output_features = {ACTION: DATASET[ACTION]}
    ones = {name: {"mean": torch.zeros(size), "std": torch.ones(size)} for name, size in ((OBS_STATE, 8), (ACTION, 7))}
    return AegisVLAPolicy(config).eval(), *make_pre_post_processors(config, dataset_stats=ones)


def test_a_policy_for_the_data_set_acts_on_what_the_processors_make(evaluation):
    policy, before, after = _policy()
    assert (policy.config.chunk_size, policy.config.n_action_steps) == (50, 10)
    env_before, _ = make_env_pre_post_processors(evaluation.env, policy_cfg=policy.config)
    observation = preprocess_observation(_observation(batch=2))
    observation["task"] = ["put the bowl on the plate"] * 2
    with torch.inference_mode():
        action = after(policy.select_action(before(env_before(observation))))
    assert action.shape == (2, 7)
    assert action.isfinite().all()


@pytest.mark.slow
def test_a_policy_acts_in_the_real_environment(evaluation):
    """Where LIBERO and its pictures are installed; docs/benchmarks.md says how."""
    pytest.importorskip("libero", reason="needs the extra libero: pip install -e '.[libero]'")
    from libero.libero import get_assets_path

    if not Path(get_assets_path()).is_dir():
        pytest.skip("LIBERO's assets are not here and come from the hub")
    evaluation.env.task, evaluation.env.task_ids = "libero_spatial", [0]
    policy, before, after = _policy()
    env_before, _ = make_env_pre_post_processors(evaluation.env, policy_cfg=policy.config)
    suites = make_env(evaluation.env, n_envs=1)
    vector = suites["libero_spatial"][0]
    observation, _ = vector.reset(seed=[0])
    observation = preprocess_observation(observation)
    observation["task"] = list(vector.call("task_description"))
    with torch.inference_mode():
        action = after(policy.select_action(before(env_before(observation))))
    assert env_before(observation)[OBS_STATE].shape == (1, 8)
    vector.step(action.numpy())
    close_envs(suites)
