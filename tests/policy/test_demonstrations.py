"""Data of a real arm meets a policy: what does not fit is refused with the remedy, what may not is said once."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.joint_ranges import steady_constants, unit_doubt
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.so101_data import DEGREES, NAMES, PERCENT, RADIANS, record

SMALL = {"front": (48, 64), "wrist": (48, 64)}


def _ranges(pairs: tuple[tuple[float, float], ...]) -> np.ndarray:
    return np.array(pairs).T


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory) -> Path:
    """A checkpoint of a policy with two cameras, in degrees, at 30 fps."""
    data = record(tmp_path_factory.mktemp("data") / "data", cameras=SMALL)
    config = AegisVLAConfig(
        backbone=str(tiny_folder["paligemma2"]), device="cpu", chunk_size=4, n_action_steps=2, push_to_hub=False
    )
    policy = make_policy(config, ds_meta=data.meta)
    folder = tmp_path_factory.mktemp("trained")
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=data.meta.stats):
        pipeline.save_pretrained(folder)
    return folder


def _fine_tune(trained: Path, data: LeRobotDataset) -> AegisVLAPolicy:
    """What lerobot-train --policy.path does before its first step."""
    config = AegisVLAConfig.from_pretrained(trained)
    config.pretrained_path = trained
    return make_policy(config, ds_meta=data.meta)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prompt_max_tokens", 96),
        ("image_options", {"size": {"height": 56, "width": 56}}),
        ("backbone_revision", "0123abc"),
        ("prompt_form", "pi0"),
    ],
)
def test_what_a_checkpoints_preprocessor_keeps_cannot_be_changed(trained, tmp_path, option, value):
    config = AegisVLAConfig.from_pretrained(trained)
    config.pretrained_path = trained
    setattr(config, option, value)
    with pytest.raises(ValueError, match=f"{option} belongs to the preprocessor.*--policy.type=aegis_vla"):
        make_policy(config, ds_meta=record(tmp_path / "more", cameras=SMALL).meta)


def test_a_checkpoint_loads_where_the_one_that_it_began_from_is_gone(trained, tmp_path):
    first = shutil.copytree(trained, tmp_path / "first")
    _fine_tune(first, record(tmp_path / "more", cameras=SMALL)).save_pretrained(tmp_path / "second")
    shutil.rmtree(first)
    config = AegisVLAConfig.from_pretrained(tmp_path / "second")
    assert config.pretrained_path == first  # LeRobot saves it
    AegisVLAPolicy.from_pretrained(tmp_path / "second")


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "root" and r.levelno == logging.WARNING]


def test_a_policy_keeps_the_names_and_the_rate_of_its_data(trained):
    config = AegisVLAConfig.from_pretrained(trained)
    assert config.action_feature_names == config.state_feature_names == NAMES
    assert config.demonstrated_fps == 30


def test_more_data_of_the_same_arm_is_taken_without_a_word(trained, tmp_path, caplog):
    nearby = tuple((low + 5, high - 8) for low, high in DEGREES)
    with caplog.at_level(logging.WARNING):
        _fine_tune(trained, record(tmp_path / "more", cameras=SMALL, ranges=nearby))
    assert _warnings(caplog) == []


def test_another_rate_names_proportions_and_units_are_said_and_taken(trained, tmp_path, caplog):
    names = [f"main_{i}" for i in range(6)]
    other = record(
        tmp_path / "other", cameras={"front": (48, 48), "wrist": (48, 64)}, ranges=RADIANS, names=names, fps=10
    )
    with caplog.at_level(logging.WARNING):
        policy = _fine_tune(trained, other)
    said = _warnings(caplog)
    assert [any(part in line for line in said) for part in ("main_0", "0.40 s instead of 0.13 s", "front has width")]
    assert sum("looks like other units, 57 times" in line for line in said) == 2  # of state and of action
    assert len(said) == 6 and policy.config.action_feature_names == names and policy.config.demonstrated_fps == 10


def test_a_missing_camera_is_refused_before_weights_are_loaded(trained, tmp_path):
    with pytest.raises(ValueError, match=r"looks through 2 cameras.*the data has 1, observation.images.front"):
        _fine_tune(trained, record(tmp_path / "one", cameras={"front": (48, 64)}))


def test_a_camera_more_than_the_policy_knows_is_left_alone(trained, tmp_path):
    policy = _fine_tune(trained, record(tmp_path / "three", cameras={**SMALL, "side": (48, 64)}))
    assert list(policy.config.image_features) == ["observation.images.front", "observation.images.wrist"]


def test_a_joint_less_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"`action` of this checkpoint has 6 numbers, that of the data 5"):
        _fine_tune(trained, record(tmp_path / "five", cameras=SMALL, ranges=DEGREES[:5]))


def test_the_same_joints_in_another_order_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"another order.*Reorder"):
        _fine_tune(trained, record(tmp_path / "order", cameras=SMALL, names=NAMES[::-1]))


def test_adapters_that_go_on_learning_meet_their_data_too(tiny_folder, tmp_path):
    data = record(tmp_path / "data", cameras=SMALL)
    config = AegisVLAConfig(
        backbone=str(tiny_folder["paligemma2"]), device="cpu", chunk_size=4, n_action_steps=2, push_to_hub=False
    )
    policy = make_policy(config, ds_meta=data.meta).wrap_with_peft(peft_cli_overrides={"method_type": "LORA"})
    policy.save_pretrained(tmp_path / "adapters")
    policy.config.save_pretrained(tmp_path / "adapters")
    assert _fine_tune(tmp_path / "adapters", data).config.demonstrated_fps == 30
    with pytest.raises(ValueError, match=r"another order.*Reorder"):
        _fine_tune(tmp_path / "adapters", record(tmp_path / "order", cameras=SMALL, names=NAMES[::-1]))


def test_a_depth_camera_is_refused_with_what_chooses_cameras():
    config = AegisVLAConfig()
    config.input_features = {
        f"observation.images.{name}": PolicyFeature(type=FeatureType.VISUAL, shape=(channels, 48, 64))
        for name, channels in (("depth", 1), ("front", 3))
    }
    config.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(6,))}
    with pytest.raises(ValueError, match=r"must be RGB.*--policy.input_features='..observation.images.front"):
        config.validate_features()


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        (DEGREES, RADIANS, "57 times"),
        (RADIANS, DEGREES, "57 times"),
        (DEGREES, PERCENT, "-100 to 100 where the checkpoint has degrees"),
        (PERCENT, DEGREES, "degrees where the checkpoint has -100 to 100"),
        (DEGREES, tuple((low + 270, high + 270) for low, high in DEGREES), "another zero"),
    ],
)
def test_ranges_give_other_units_away(then, now, says):
    assert says in (unit_doubt(_ranges(then), _ranges(now)) or "")


def test_what_ranges_cannot_tell_is_not_claimed():
    inside = tuple((low * 0.9, high * 0.9) for low, high in PERCENT)  # never at an end: may be degrees as well
    assert unit_doubt(_ranges(DEGREES), _ranges(inside)) is None
    assert unit_doubt(_ranges(DEGREES), _ranges(tuple((0.0, 0.0) for _ in DEGREES))) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_short_task_elsewhere_in_the_same_units_raises_no_alarm(seed):
    # A task uses a fifth to all of each joint's way: another one in the same units must not look like other units.
    rng = np.random.default_rng(seed)
    low, high = _ranges(DEGREES)
    width = rng.uniform(0.2, 1.0, 6) * (high - low)
    start = low + rng.uniform(0, 1, 6) * (high - low - width)
    assert unit_doubt(np.stack([low, high]), np.stack([start, start + width])) is None


def test_one_joint_that_stands_does_not_drown_the_others(tmp_path):
    ranges = (*DEGREES[:5], (31.7, 31.7))
    data = record(tmp_path / "standing", cameras={"front": (48, 64)}, ranges=ranges, frames=200)
    stats = data.meta.stats["action"]
    assert np.abs(31.7 - stats["mean"][5]) / (stats["std"][5] + 1e-8) > 10  # as LeRobot would have it
    assert steady_constants(stats, acts=False) == [5]
    action = torch.stack([data[i]["action"] for i in range(20)]).numpy()
    normalised = (action - stats["mean"]) / (stats["std"] + 1e-8)
    # A rounding error of float32 on 31.7 is below 1e-4; LeRobot's own statistics make hundreds of it.
    assert np.abs(normalised[:, 5]).max() < 1e-3 and np.abs(normalised[:, :5]).max() < 3


def test_the_error_of_an_action_that_never_moves_moves_nothing(tmp_path):
    """In metres or radians a deviation of 1 would send the network's error as it is."""
    ranges = (*DEGREES[:5], (0.04, 0.04))
    stats = record(tmp_path / "standing", cameras={"front": (48, 64)}, ranges=ranges, frames=200).meta.stats["action"]
    assert steady_constants(stats, acts=True) == [5]
    sent = 0.1 * stats["std"][5] + stats["mean"][5]  # an error of a tenth of a deviation, as of any other joint
    assert abs(sent - 0.04) < 1e-4
    assert abs(0.04 - stats["mean"][5]) / stats["std"][5] < 0.1  # rounding stays small beside it


def test_a_new_policy_is_trained_on_statistics_that_are_mended(tiny_folder, tmp_path, caplog):
    data = record(tmp_path / "data", cameras={"front": (48, 64)}, ranges=(*DEGREES[:5], (31.7, 31.7)))
    config = AegisVLAConfig(backbone=str(tiny_folder["paligemma2"]), device="cpu", chunk_size=4, n_action_steps=2)
    with caplog.at_level(logging.WARNING):
        make_policy(config, ds_meta=data.meta)
    assert "Never moves in the data, and is learned as a constant: action gripper.pos" in _warnings(caplog)[0]
    # Those that lerobot-train hands to the preprocessor next.
    assert data.meta.stats["action"]["std"][5] == pytest.approx(1e-4 * 31.7, rel=1e-3)


def test_acting_without_a_camera_is_refused_at_the_first_observation(trained):
    config = AegisVLAConfig.from_pretrained(trained)
    preprocessor, _ = make_pre_post_processors(config, pretrained_path=str(trained))
    seen = {
        "observation.images.front": torch.rand(1, 3, 48, 64),
        "observation.state": torch.zeros(1, 6),
        "task": ["go"],
    }
    with pytest.raises(ValueError, match=r"lacks \['observation.images.wrist'\].*--rename_map"):
        preprocessor(seen)
    preprocessor({**seen, "observation.images.wrist": torch.rand(1, 3, 480, 640)})  # of any size
