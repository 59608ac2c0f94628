"""What a checkpoint's configuration decides becomes ours, or contradicts ours and is refused.

A field that was left at its default takes the checkpoint's value; any other value must be the checkpoint's. What is
only a better default (learning rates) gives way to a value that was set. Both are logged.
"""

import logging
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from aegis_policy.pretrained.checkpoint import Checkpoint
from aegis_policy.pretrained.families import family_of

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis_vla import AegisVLAConfig

EMPTY_CAMERA = ".empty_camera_"  # LeRobot's name for a camera that is declared and never there


def checkpoint_of(config: "AegisVLAConfig") -> Checkpoint:
    """The checkpoint that `config.init_from` names."""
    assert config.init_from is not None, "asked of a configuration that starts from a checkpoint"
    return Checkpoint(config.init_from, config.init_from_revision)


def take_over(config: "AegisVLAConfig") -> None:
    """Sets the fields of `config` that the checkpoint it starts from decides, and its commit where none was named.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If `aegis_vla` cannot start from it, or a field contradicts it.
    """
    checkpoint = checkpoint_of(config)
    family = family_of(checkpoint)
    source = checkpoint.config()
    defaults = _defaults(config)
    taken = {}
    for name, value in family.fixes(source).items():
        own = getattr(config, name)
        if own == value:
            continue
        if own != defaults[name]:
            raise ValueError(
                f"{name} is decided by the checkpoint that is started from: {checkpoint.path} has {value}, the "
                f"configuration says {own}. Leave --policy.{name} out."
            )
        taken[name] = value
    suggested = family.suggests(source)
    # How long it acts without looking is free, but no longer than a chunk.
    suggested["n_action_steps"] = min(defaults["n_action_steps"], source.chunk_size)
    if config.backbone == defaults["backbone"]:
        suggested["backbone"] = checkpoint.tokenizer()
    taken |= {name: value for name, value in suggested.items() if getattr(config, name) == defaults[name]}
    taken = {name: value for name, value in taken.items() if getattr(config, name) != value}
    for name, value in taken.items():
        setattr(config, name, value)
    config.init_from_revision = config.init_from_revision or checkpoint.commit  # as `load_backbone` does
    logging.info("Taken over from %s: %s", checkpoint.path, taken)


def order_cameras(config: "AegisVLAConfig") -> None:
    """Shows the cameras in the checkpoint's order, those that it has never seen last.

    A camera that the data lack is left out: its tokens would be masked, and what nobody attends to and takes no
    position is the same as nothing.
    """
    source = checkpoint_of(config).config()
    known = list(source.image_features)
    own = config.input_features or {}
    cameras = [key for key in config.image_features if EMPTY_CAMERA not in key]
    strange = [key for key in cameras if key not in known]
    if strange:
        logging.warning(
            "The checkpoint was trained with the cameras %s; it will see %s after them, in this order. If one of these "
            "is one of those under another name, rename it in the dataset.",
            known,
            strange,
        )
    ordered = [key for key in known if key in cameras] + strange
    rest = {key: feature for key, feature in own.items() if key not in config.image_features}
    config.input_features = {**{key: own[key] for key in ordered}, **rest}


def _defaults(config: "AegisVLAConfig") -> dict[str, Any]:
    return {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config)}
