"""The policies of LeRobot that can be started from, and why others cannot."""

from collections.abc import Mapping
from typing import Any, Protocol

from aegis_policy.pretrained.checkpoint import Checkpoint
from aegis_policy.pretrained.pi0 import PI0
from aegis_policy.pretrained.pi05 import PI05

_OTHERS = {
    "aegis_vla": "is a checkpoint of this very policy, which LeRobot loads with --policy.path={path}",
    # lerobot/policies/smolvla/smolvlm_with_expert.py
    "smolvla": (
        "reads its VLM in another way: in every other layer its expert attends to the prefix alone, through "
        "projections of the VLM's keys and values of its own and at positions that begin anew; its state is a token "
        "of the VLM, image embeddings are scaled by the root of the width, and the VLM ends after its first 16 "
        "layers, to whose output its head never listened. Start from the VLM that it was made of and let a new expert "
        "learn: --policy.backbone=HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    ),
}


class Family(Protocol):
    """What has to be known of a kind of policy to start from it."""

    def fixes(self, source: Any) -> dict[str, Any]:
        """Fields of `AegisVLAConfig` that the policy's configuration `source` decides.

        Raises:
            ValueError: If `source` asks for something that `aegis_vla` does not do.
        """
        ...

    def suggests(self, source: Any) -> dict[str, Any]:
        """Fields of `AegisVLAConfig` that it only has a better default for."""
        ...

    def vlm_config(self, source: Any) -> Any:
        """Configuration of the transformers model inside the policy."""
        ...

    def vlm_names(self) -> str:
        """What the names of the VLM's tensors begin with in a checkpoint."""
        ...

    def head_and_embedding(self) -> tuple[str, str]:
        """Names, inside the VLM, of its output head and of its token embedding."""
        ...

    def expert_names(self) -> Mapping[str, str]:
        """Beginnings of the names of our expert's tensors -> beginnings of the same tensors' names in a checkpoint."""
        ...

    def unused_names(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors that a checkpoint may hold and nobody uses."""
        ...


FAMILIES: dict[str, Family] = {"pi0": PI0, "pi05": PI05}


def family_of(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint.

    Raises:
        ValueError: If `aegis_vla` cannot start from its type.
    """
    name = checkpoint.policy_type
    if name in FAMILIES:
        return FAMILIES[name]
    reason = _OTHERS.get(name, "has another architecture").format(path=checkpoint.path)
    raise ValueError(f"init_from takes {' and '.join(FAMILIES)} checkpoints. {checkpoint.path!r} ({name}) {reason}.")
