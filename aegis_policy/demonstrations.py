"""A dataset meets a policy: what does not fit is refused before anything is built, what may not is said.

LeRobot checks that cameras have the names of the policy's, or some of them. The rest is here: sizes and order of state
and action, the number of cameras, the rate, the images' proportions, and units as far as ranges give them away
(`joint_ranges`).
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features

from aegis_policy.joint_ranges import steady_constants, unit_doubt
from aegis_policy.pretrained.checkpoint import Checkpoint

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis_vla import AegisVLAConfig

_SAME_PROPORTIONS = 0.05
CHOOSE_CAMERAS = (
    'Name the features to use, for a policy that is not a checkpoint yet: --policy.input_features=\'{"%s": '
    '{"type": "VISUAL", "shape": [3, 480, 640]}, "observation.state": {"type": "STATE", "shape": [6]}}\'.'
)

# What the preprocessor does to images and texts. LeRobot loads that of a checkpoint as it was saved.
_PREPROCESSING = ("prompt_form", "prompt_max_tokens", "image_options", "backbone_revision")
_NAMES = {ACTION: "action_feature_names", OBS_STATE: "state_feature_names"}


def meet_dataset(config: "AegisVLAConfig", meta: Any) -> None:
    """Holds a dataset against the policy that is to be trained on it, and notes its names and rate in `config`.

    Statistics of a joint that never moves are changed in place (`steady_constants`), for the normalisation to come.

    Args:
        config: Of a new policy, or of a checkpoint (`pretrained_path`).
        meta: LeRobot's dataset metadata; None where no data is trained on.

    Raises:
        ValueError: If state, action or cameras cannot be the policy's, or a checkpoint is to see them otherwise.
    """
    if meta is None:
        if config.demonstrated_fps:
            logging.info(
                "The demonstrations of this policy have %d actions a second, which LeRobot does not know when it acts: "
                "give --fps=%d to lerobot-rollout, and an environment of that rate to lerobot-eval.",
                config.demonstrated_fps,
                config.demonstrated_fps,
            )
        return
    require_cameras(config, meta.features)
    if config.pretrained_path:
        former = PreTrainedConfig.from_pretrained(config.pretrained_path, revision=config.pretrained_revision)
        require_preprocessor(config, former)
        require_joints(former, meta.features)
        for line in [*differences(former, meta), *_unit_doubts(config, meta)]:
            logging.warning(line)
    _mend_constants(meta)
    config.action_feature_names = joint_names(meta.features, ACTION)
    config.state_feature_names = joint_names(meta.features, OBS_STATE)
    config.demonstrated_fps = int(meta.fps)
    logging.info(
        "A chunk of %d actions at %d fps is %.2f s, of which %.2f s are carried out before the next look.",
        config.chunk_size,
        meta.fps,
        config.chunk_size / meta.fps,
        config.n_action_steps / meta.fps,
    )


def require_cameras(config: "AegisVLAConfig", features: Mapping[str, Any]) -> None:
    """Raises a ValueError where the data has fewer cameras than the policy looks through, whatever they are called."""
    wanted = sorted(config.image_features)
    offered = sorted(k for k, f in features.items() if f["dtype"] in ("image", "video"))
    if len(offered) < len(wanted):
        raise ValueError(
            f"This policy looks through {len(wanted)} cameras, {', '.join(wanted)}; the data has {len(offered)}, "
            f"{', '.join(offered) or 'none'}. A camera is not left out in silence. Record the missing one, or train a "
            "policy with the cameras that there are: --policy.type=aegis_vla in place of --policy.path."
        )


def require_preprocessor(config: "AegisVLAConfig", former: PreTrainedConfig) -> None:
    """Raises a ValueError where images or texts are to be prepared otherwise than a checkpoint's preprocessor does it.

    Args:
        config: As it was asked for.
        former: The checkpoint's configuration, as it was saved.
    """
    for name in _PREPROCESSING:
        then, now = getattr(former, name), getattr(config, name)
        if then != now:
            raise ValueError(
                f"{name} belongs to the preprocessor, which a checkpoint keeps as it was trained with: got {now!r}, "
                f"{config.pretrained_path} has {then!r}. Leave the option out, or train from the backbone with it "
                "(--policy.type=aegis_vla in place of --policy.path)."
            )


def require_joints(former: PreTrainedConfig, features: Mapping[str, Any]) -> None:
    """Raises a ValueError where the data's state or action cannot be those of the checkpoint.

    Args:
        former: The checkpoint's configuration, as it was saved.
        features: The dataset's.
    """
    data = dataset_to_policy_features(dict(features))
    action, state = former.action_feature, former.robot_state_feature
    has_state = any(f.type is FeatureType.STATE for f in data.values())
    if state is not None and not has_state:
        raise ValueError(
            f"This checkpoint reads a state of {state.shape[0]} numbers ({OBS_STATE}); the data has none, only "
            f"{sorted(data)}. Record it, or start without the checkpoint (--policy.type=aegis_vla)."
        )
    for key, known in ((ACTION, action), (OBS_STATE, state)):
        if known is None or key not in data:
            continue
        if tuple(data[key].shape) != tuple(known.shape):
            raise ValueError(
                f"`{key}` of this checkpoint has {known.shape[0]} numbers, that of the data {data[key].shape[0]} "
                f"({joint_names(features, key) or 'without names'}). Its weights cannot be used: start from its VLM "
                "with --policy.type=aegis_vla --policy.backbone=..., or record the same joints."
            )
        then, now = getattr(former, _NAMES[key], None), joint_names(features, key)
        if then and now and then != now and sorted(then) == sorted(now):
            raise ValueError(
                f"`{key}` has the same names as in this checkpoint in another order: {now} in the data, {then} in the "
                "checkpoint. Each number would be taken for another joint's. Reorder the dataset's columns to the "
                "checkpoint's."
            )


def joint_names(features: Mapping[str, Any], key: str) -> list[str] | None:
    """The names of a vector's numbers, if the dataset gives one to each."""
    names = features.get(key, {}).get("names")
    if isinstance(names, Mapping) and len(names) == 1:  # as in {"motors": [...]} of older datasets
        names = next(iter(names.values()))
    if not isinstance(names, list | tuple) or len(names) != features[key]["shape"][0]:
        return None
    return [str(name) for name in names]


def differences(former: PreTrainedConfig, meta: Any) -> list[str]:
    """What is otherwise in the data than in that of the checkpoint, and can be meant so: one sentence each."""
    said = []
    for key, field in _NAMES.items():
        then, now = getattr(former, field, None), joint_names(meta.features, key)
        if then and now and sorted(then) != sorted(now):
            said.append(
                f"`{key}` is called {now} in the data and {then} in the checkpoint: number by number they must be the "
                "same joints. What is trained carries the data's names."
            )
    fps = getattr(former, "demonstrated_fps", None)
    if fps and fps != meta.fps:
        said.append(
            f"The checkpoint's demonstrations have {fps} actions a second, the data {meta.fps}: a chunk of "
            f"{former.chunk_size} becomes {former.chunk_size / meta.fps:.2f} s instead of "
            f"{former.chunk_size / fps:.2f} s, and what was learned about speed has to be learned anew. "
            "Act at the data's rate afterwards."
        )
    now_shapes = dataset_to_policy_features(dict(meta.features))
    for key, then_feature in former.image_features.items():
        if key not in now_shapes:
            continue
        then_ratio, now_ratio = (shape[2] / shape[1] for shape in (then_feature.shape, now_shapes[key].shape))
        if abs(now_ratio / then_ratio - 1) > _SAME_PROPORTIONS:
            said.append(
                f"{key} has width : height {now_ratio:.2f} in the data and {then_ratio:.2f} in the checkpoint's. A "
                "processor that makes images square (PaliGemma, the embedded backbone) shows things narrower or wider "
                "than the policy knows them."
            )
    return said


def _unit_doubts(config: "AegisVLAConfig", meta: Any) -> list[str]:
    try:
        former = Checkpoint(str(config.pretrained_path), config.pretrained_revision).statistics()
    except FileNotFoundError:
        return []  # LeRobot says so itself when it loads the preprocessor, which comes next
    doubts = []
    for key in _NAMES:
        then, now = former.get(key, {}), (meta.stats or {}).get(key, {})
        if not ({"min", "max"} <= then.keys() and {"min", "max"} <= now.keys()):
            continue
        then_range, now_range = (np.array([np.ravel(s["min"]), np.ravel(s["max"])], float) for s in (then, now))
        if then_range.shape == now_range.shape and (doubt := unit_doubt(then_range, now_range)):
            names = joint_names(meta.features, key) or [str(i) for i in range(now_range.shape[1])]
            ranges = ", ".join(
                f"{name} {a:.4g} to {b:.4g} (checkpoint {c:.4g} to {d:.4g})"
                for name, a, b, c, d in zip(names, *now_range, *then_range, strict=True)
            )
            doubts.append(
                f"`{key}` {doubt}: {ranges}. Training normalises with the data's own statistics and goes on, but what "
                "the checkpoint knew of positions counts for little, and the policy will act in the data's units. "
                "LeRobot's arms: --robot.use_degrees and a calibration at both ends of each joint decide."
            )
    return doubts


def _mend_constants(meta: Any) -> None:
    mended = []
    for key in _NAMES:
        if (statistics := (meta.stats or {}).get(key)) is not None:
            names = joint_names(meta.features, key)
            mended += [f"{key} {names[i] if names else i}" for i in steady_constants(statistics, acts=key == ACTION)]
    if mended:
        logging.warning(
            "Never moves in the data, and is learned as a constant: %s. Is a joint not connected?", ", ".join(mended)
        )
