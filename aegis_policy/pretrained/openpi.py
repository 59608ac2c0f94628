"""What pi0 and pi0.5 have in common: a PaliGemma and a Gemma expert that is as deep and reads it layer by layer.

Both are LeRobot's ports of openpi. Their architecture is asked of LeRobot's own classes, built without memory; only
the names of tensors are written down here.

    prefix     images (resized with black padding, [-1, 1]), then the text, all of it seeing all of it
    suffix     pi0: one token of the state, then the actions; pi0.5: the actions
    time       pi0: beside each action, through an MLP; pi0.5: the scale, shift and gate of each norm of the expert
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from aegis_policy.network.expert import MAX_PERIOD, MIN_PERIOD
from aegis_policy.network.flow import TIME_LAW

_NETWORK = "paligemma_with_expert."
# Of the time law and embedding of LeRobot's openpi policies: what `aegis_vla` has as constants.
_CONSTANTS = {
    "min_period": MIN_PERIOD,
    "max_period": MAX_PERIOD,
    **{f"time_sampling_{'beta_' * (name in ('alpha', 'beta'))}{name}": value for name, value in TIME_LAW.items()},
}


@dataclass(frozen=True)
class OpenPI:
    """One of the two.

    Attributes:
        lerobot: Imports and returns LeRobot's network class and its table of Gemma variants.
        prompt_form: As in `AegisVLAConfig`.
        time_conditioning: As in `AegisVLAConfig`.
        projections: Beginnings of our expert's names -> of theirs, for all but its decoder.
    """

    lerobot: Callable[[], tuple[Any, Callable[[str], Any]]]
    prompt_form: str
    time_conditioning: str
    projections: Mapping[str, str]

    def fixes(self, source: Any) -> dict[str, Any]:
        """As in `Family`."""
        self._check(source)
        _, variant = self.lerobot()
        expert = variant(source.action_expert_variant)
        return {
            "chunk_size": source.chunk_size,
            "num_inference_steps": source.num_inference_steps,
            "padded_action_size": source.max_action_dim,
            "expert_hidden_size": expert.width,
            "expert_intermediate_size": expert.mlp_dim,
            "time_conditioning": self.time_conditioning,
            "prompt_form": self.prompt_form,
            "prompt_max_tokens": source.tokenizer_max_length,
            "normalization_mapping": source.normalization_mapping,
        }

    def suggests(self, source: Any) -> dict[str, Any]:
        """As in `Family`."""
        return {"optimizer_lr": source.optimizer_lr, "scheduler_decay_lr": source.scheduler_decay_lr}

    def vlm_config(self, source: Any) -> Any:
        """As in `Family`; LeRobot builds its network on the meta device for it."""
        network_class, _ = self.lerobot()
        with torch.device("meta"):
            network = network_class(replace(source, compile_model=False))
        both = network.paligemma_with_expert
        vlm, expert = both.paligemma.config, both.gemma_expert.config
        for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"):
            ours, theirs = getattr(vlm.text_config, name), getattr(expert, name)
            if ours != theirs:
                raise ValueError(
                    f"An expert reads the VLM layer by layer and needs its {name}: the checkpoint's VLM has {ours}, "
                    f"its expert {theirs} ({source.paligemma_variant} and {source.action_expert_variant}). Start from "
                    "a checkpoint in which they agree."
                )
        return vlm

    def vlm_names(self) -> str:
        """As in `Family`."""
        return _NETWORK + "paligemma."

    def head_and_embedding(self) -> tuple[str, str]:
        """As in `Family`: LeRobot builds both, and unties them by putting its own decoder in."""
        return "lm_head.weight", "model.language_model.embed_tokens.weight"

    def expert_names(self) -> Mapping[str, str]:
        """As in `Family`."""
        return {"decoder.": _NETWORK + "gemma_expert.model.", **self.projections}

    def unused_names(self) -> tuple[str, ...]:
        """As in `Family`: the expert speaks no words."""
        return (_NETWORK + "gemma_expert.lm_head.",)

    def _check(self, source: Any) -> None:
        if source.use_relative_actions:
            raise ValueError(
                "The checkpoint predicts actions relative to the state (use_relative_actions=true); aegis_vla predicts "
                "what the dataset holds. Start from a checkpoint with use_relative_actions=false."
            )
        for name, expected in _CONSTANTS.items():
            value = getattr(source, name)
            if value != expected:
                raise ValueError(
                    f"The checkpoint was trained with {name}={value}; aegis_vla knows {expected} only (openpi's, and "
                    "LeRobot's default). Start from a checkpoint with that value."
                )
