"""Loads a VLM whole: from safetensors, in float32, and nothing that is missing stays random in silence."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from aegis_policy.network.readable import refuse_unreadable


def load_vlm_config(source: str, *, revision: str | None = None) -> Any:
    """The configuration of the VLM behind a folder or hub id.

    Raises:
        ValueError: If there is none, or it is that of a model that an action expert cannot read.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(_cannot_load(source, "its configuration cannot be read", error)) from error
    refuse_unreadable(config)
    return config


def load_pretrained_vlm(source: str, config: Any, *, revision: str | None = None) -> PreTrainedModel:
    """The VLM with its weights in float32, whatever they are stored in.

    Args:
        source: Folder or hub id.
        config: From `load_vlm_config`.
        revision: Commit, tag or branch of a hub id.

    Raises:
        ValueError: If its weights are not there, are no safetensors, or do not fill the model that `config` describes.
    """
    try:
        vlm, report = AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, and refused below with names and shapes
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(_cannot_load(source, "its weights cannot be read", error)) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"Backbone {source!r} lacks weights that its configuration describes, and would keep random ones in their "
            f"place: {_some(missing)}. Take the whole checkpoint; if it never had them, say so in its config.json."
        )
    mismatched = [f"{name} is {tuple(has)}, not {tuple(wants)}" for name, has, wants in report["mismatched_keys"]]
    if mismatched:
        raise ValueError(
            f"Weights of backbone {source!r} have other shapes than its configuration describes: {_some(mismatched)}. "
            "Take weights and config.json of one and the same model."
        )
    return vlm


def _cannot_load(source: str, what: str, error: Exception) -> str:
    pickled = sorted(path.name for path in Path(source).glob("*.bin")) if Path(source).is_dir() else []
    remedy = (
        f" The folder has {_some(pickled)}, which can run code when opened and is not read: convert it once where you "
        "trust it (`AutoModelForImageTextToText.from_pretrained(FOLDER).save_pretrained(FOLDER)`)."
        if pickled
        else ""
    )
    return (
        f"Cannot load backbone {source!r}: {what}. It must be 'nano', a folder with config.json and safetensors, or a "
        "hub id of an image-text-to-text model (with network access, or in the local cache); code that a repository "
        f"brings is never run.{remedy} Underlying error: {error}"
    )


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
