"""The networks as a policy's training begins: the VLM of `backbone` or out of `init_from`, the expert new or loaded."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from aegis_policy.network.adaptive_expert import AdaptiveNormExpert
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.expert import ActionExpert
from aegis_policy.network.prompt import load_processor
from aegis_policy.pretrained.checkpoint import Checkpoint, Weights
from aegis_policy.pretrained.families import Family, family_of
from aegis_policy.pretrained.take_over import checkpoint_of

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis_vla import AegisVLAConfig

EXPERTS = {"concat": ActionExpert, "adaptive_norm": AdaptiveNormExpert}


def load_backbone(config: "AegisVLAConfig", *, weights: bool = True) -> Backbone:
    """The VLM before this policy has trained it.

    Args:
        config: Of the policy. `backbone_config` is filled in where the VLM comes out of `init_from`, so that what is
            saved rebuilds without that checkpoint; `backbone_revision` where a hub id was given without one, so that
            whoever loads the backbone again (a resumed run, a reference) gets the same commit.
        weights: Whether to load its weights; without them the caller loads a checkpoint afterwards.
    """
    if config.init_from is None:
        backbone = Backbone.load(
            config.backbone, revision=config.backbone_revision, weights=weights, num_layers=config.num_vlm_layers
        )
        config.backbone_revision = config.backbone_revision or backbone.commit
        return backbone
    if config.backbone_config is None:
        config.backbone_config = _describe_vlm(config)
    backbone = Backbone.build(config.backbone_config)
    if weights:
        checkpoint = checkpoint_of(config)
        family = family_of(checkpoint)
        with checkpoint.weights() as stored:
            own = {name for name in stored if name.startswith(family.vlm_names())}
            _copy(backbone.vlm, stored, own, checkpoint, lambda name: _vlm_name(family, name, stored))
    return backbone


def make_expert(config: "AegisVLAConfig", backbone: Backbone, *, weights: bool = True) -> ActionExpert:
    """The action expert before this policy has trained it: that of `init_from`, or a new one.

    Args:
        config: Of the policy.
        backbone: What the expert reads.
        weights: Whether to load those of `init_from`; without them the caller loads a checkpoint afterwards.
    """
    expert = EXPERTS[config.time_conditioning](
        backbone,
        action_size=config.action_size,
        state_size=config.state_size,
        width_ratio=config.expert_width_ratio,
        hidden_size=config.expert_hidden_size,
        intermediate_size=config.expert_intermediate_size,
        own_keys_values=config.own_keys_values,
    )
    if config.init_from is not None and weights:
        _load_expert(expert, config)
    return expert


def _load_expert(expert: nn.Module, config: "AegisVLAConfig") -> None:
    checkpoint = checkpoint_of(config)
    family = family_of(checkpoint)
    names = family.expert_names()
    others = (family.vlm_names(), *family.unused_names())

    def stored_name(name: str) -> str:
        return next((theirs + name.removeprefix(ours) for ours, theirs in names.items() if name.startswith(ours)), name)

    with checkpoint.weights() as stored:
        own = {name for name in stored if not name.startswith(others)}
        _copy(expert, stored, own, checkpoint, stored_name, narrowed=("state_in.weight",), new="own_keys_values.")


def _describe_vlm(config: "AegisVLAConfig") -> dict[str, Any]:
    """The transformers configuration of the VLM inside the checkpoint, as JSON keeps it."""
    checkpoint = checkpoint_of(config)
    family = family_of(checkpoint)
    vlm = family.vlm_config(checkpoint.config())
    processor = load_processor(config.backbone, revision=config.backbone_revision)
    _check_processor(processor, vlm, backbone=config.backbone)
    vlm.image_token_id = processor.image_token_id
    with checkpoint.weights() as stored:
        vlm.tie_word_embeddings = _is_tied(family, stored)
    return json.loads(vlm.to_json_string(use_diff=False))


def _is_tied(family: Family, stored: Weights) -> bool:
    """Whether the head is the embedding: where a network keeps two tensors, fine-tuning moves one of them."""
    head, embedding = (family.vlm_names() + name for name in family.head_and_embedding())
    return not (head in stored and embedding in stored) or torch.equal(stored[head], stored[embedding])


def _vlm_name(family: Family, name: str, stored: Weights) -> str:
    """Of two tensors that are one, the checkpoint may hold either."""
    pair = family.head_and_embedding()
    if name in pair and family.vlm_names() + name not in stored:
        name = pair[1 - pair.index(name)]
    return family.vlm_names() + name


def _check_processor(processor: Any, vlm: Any, *, backbone: str) -> None:
    size = vlm.vision_config.image_size
    tokens = (size // vlm.vision_config.patch_size) ** 2
    made, own = getattr(processor, "image_seq_length", None), processor.image_processor.size
    if (own.get("height"), own.get("width"), made) != (size, size, tokens):
        raise ValueError(
            f"The checkpoint's VLM reads images of {size} x {size} as {tokens} tokens; the processor of {backbone!r} "
            f"makes {dict(own)} and {made} tokens of them. Name a processor that fits with --policy.backbone: the "
            "PaliGemma of that resolution."
        )


@torch.no_grad()
def _copy(
    module: nn.Module,
    stored: Mapping[str, Tensor],
    own: set[str],
    checkpoint: Checkpoint,
    stored_name: Callable[[str], str],
    *,
    narrowed: tuple[str, ...] = (),
    new: str | None = None,
) -> None:
    """Copies each tensor of `module` from the checkpoint, in the module's dtype.

    Args:
        module: What is filled.
        stored: The checkpoint's tensors.
        own: Names of those that `module` must take, all of them.
        checkpoint: For errors.
        stored_name: Our name -> the checkpoint's.
        narrowed: Our names of weights that may have fewer inputs: those that the checkpoint pads with zeros.
        new: How our names begin that no such checkpoint has: they stay as they are.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if not (new and name.startswith(new))}
    left = own - {stored_name(name) for name in state}
    if left:
        raise ValueError(
            f"{checkpoint.path} holds {sorted(left)[:5]} ({len(left)} tensors) that its configuration has no use for, "
            "so they would be lost. Take the configuration that it was trained with, or leave them out of the file."
        )
    for name, tensor in state.items():
        theirs = stored_name(name)
        if theirs not in stored:
            raise ValueError(
                f"{checkpoint.path} lacks {theirs}, which belongs to every checkpoint of its type; it has "
                f"{len(stored)} tensors. Take one that LeRobot {checkpoint.policy_type} itself saved or loads."
            )
        value = stored[theirs]
        if name in narrowed and value.shape[1] >= tensor.shape[1]:
            value = value[:, : tensor.shape[1]]
        if value.shape != tensor.shape:
            raise ValueError(
                f"{theirs} of {checkpoint.path} has shape {tuple(value.shape)}, this policy needs "
                f"{tuple(tensor.shape)}: state and action must not be larger than the checkpoint's max_state_dim and "
                "max_action_dim, and its configuration must be the one that it was trained with."
            )
        tensor.copy_(value)
