"""One thin adapter over every image-text-to-text model of transformers.

The prefix (images and instruction) runs through the VLM's own `forward`; what the action expert reads is the key/value
cache that this forward returns. Nothing of a VLM is copied here, and no family is named but for where the positions
of its tokens begin.

Legend: `B` batch, `T` prefix tokens, `L` language layers, `H` key/value heads, `d` head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

NANO = "nano"
# PaliGemma numbers its tokens from 1, everybody else from 0: the expert's tokens follow without a gap.
FIRST_POSITION = {"paligemma": 1}
# Whose prefix sees all of itself. Asked for it by token types, transformers evaluates a function of two indices with
# vmap: 8 ms a mask on a CPU, however small the model. The same mask, made by broadcasting, costs nothing.
SEES_ITSELF = ("paligemma",)


@dataclass(frozen=True)
class Prefix:
    """What the action expert reads of an observation.

    Attributes:
        keys: One tensor a language layer, (B, H, T, d), rotary embedding applied.
        values: The same shapes.
        mask: (B, T), true where a token is not padding.
        next_position: (B,), the rotary position of the first token after the prefix.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    next_position: Tensor

    def detach(self) -> "Prefix":
        """The same prefix, through which no gradient flows back."""
        return Prefix(
            tuple(k.detach() for k in self.keys),
            tuple(v.detach() for v in self.values),
            self.mask,
            self.next_position,
        )

    def cache(self) -> DynamicCache:
        """A fresh cache that a decoder may append to without touching the prefix."""
        cache = DynamicCache()
        for key, value in zip(self.keys, self.values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value  # `update` would copy them first; to append makes new tensors anyway
            cache.layers.append(layer)
        return cache


def resolve_backbone(name: str) -> str:
    """The folder or hub id behind a backbone's name: `"nano"` is the checkpoint that ships in this package."""
    if name != NANO:
        return name
    folder = Path(str(files("aegis_policy") / "assets" / "nano_vlm"))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The embedded backbone is missing from {folder}. Reinstall the package, or rebuild it with "
            f"`aegis-pretrain-nano --out {folder}`."
        )
    return str(folder)


class Backbone(nn.Module):
    """A vision-language model, seen as an encoder of observations.

    Args:
        vlm: Any transformers model that `AutoModelForImageTextToText` builds.
    """

    def __init__(self, vlm: PreTrainedModel):
        super().__init__()
        self.vlm = vlm
        if getattr(self.text_config, "num_kv_shared_layers", 0):
            raise ValueError(
                f"{type(vlm).__name__} shares keys and values between layers (num_kv_shared_layers="
                f"{self.text_config.num_kv_shared_layers}): an action expert that reads the cache layer by layer "
                "has nothing to read there. Choose a backbone without shared layers."
            )

    @classmethod
    def load(cls, name: str, *, revision: str | None = None, weights: bool = True) -> "Backbone":
        """Builds the VLM behind `name` in float32.

        Args:
            name: `"nano"`, a local folder or a hub id.
            revision: Commit, tag or branch of a hub id.
            weights: Whether to load its weights; without them the caller loads a checkpoint afterwards.

        Raises:
            ValueError: If there is no such model, or it is none that reads images.
        """
        source = resolve_backbone(name)
        try:
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            if not weights:
                return cls(AutoModelForImageTextToText.from_config(config, dtype=torch.float32))
            return cls(
                AutoModelForImageTextToText.from_pretrained(
                    source,
                    config=config,
                    revision=revision,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                )
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Cannot load backbone {name!r}: it must be {NANO!r}, a folder with config.json and safetensors, or a "
                f"hub id of an image-text-to-text model (with network access). Underlying error: {error}"
            ) from error

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> "Backbone":
        """Builds the VLM that a transformers configuration describes, with random weights in float32.

        Args:
            config: As `config.json` of a transformers folder has it.
        """
        built = AutoConfig.for_model(**config)
        return cls(AutoModelForImageTextToText.from_config(built, dtype=torch.float32))

    @property
    def text_config(self) -> Any:
        """Configuration of the language model inside the VLM."""
        return self.vlm.config.get_text_config(decoder=True)

    @property
    def decoder(self) -> Any:
        """The language model inside the VLM, without its head (a `PreTrainedModel`)."""
        return self.vlm.get_decoder()

    @property
    def decoder_name(self) -> str:
        """Qualified name of the language model inside `self.vlm`."""
        return next(name for name, module in self.vlm.named_modules() if module is self.decoder)

    def layers(self) -> dict[str, nn.Module]:
        """Qualified name -> transformer layer of the language model, from input to output."""
        prefix = self.decoder_name
        return {f"{prefix}.layers.{i}": layer for i, layer in enumerate(self.decoder.layers)}

    def linears(self) -> dict[str, nn.Linear]:
        """Qualified weight name -> linear map of the VLM that the prefix passes through (so without the head)."""
        head = self.vlm.get_output_embeddings()
        return {
            f"{name}.weight": module
            for name, module in self.vlm.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }

    @property
    def image_token(self) -> int:
        """Id of the tokens in whose places the features of images stand."""
        return int(self.vlm.config.image_token_id)

    def is_language(self, name: str) -> bool:
        """Whether a qualified name belongs to the language model (else: vision tower, projector)."""
        return name.startswith(self.decoder_name + ".")

    def encode(self, inputs: dict[str, Tensor]) -> Prefix:
        """Runs images and instruction through the VLM.

        Args:
            inputs: What the VLM's own processor returned, `input_ids` and `attention_mask` (B, T) among it, padded
                on the right.

        Raises:
            RuntimeError: If the VLM returns no usable cache, as under transformers' gradient checkpointing.
        """
        attention_mask = self._attention_mask(inputs["attention_mask"])
        outputs = self.vlm.base_model(**{**inputs, "attention_mask": attention_mask}, use_cache=True)
        cache = outputs.past_key_values
        mask = inputs["attention_mask"].bool()
        depth = self.text_config.num_hidden_layers
        lengths = [] if cache is None else [cache.get_seq_length(i) for i in range(len(cache.layers))]
        if lengths != [mask.shape[1]] * depth:
            raise RuntimeError(
                f"The VLM must return the keys and values of all {mask.shape[1]} prefix tokens from each of its "
                f"{depth} layers; it returned {lengths or 'none'}. Gradient checkpointing inside transformers empties "
                "the cache: switch it off. A sliding window shorter than the prefix crops it: shorten the prompt or "
                "use fewer images."
            )
        next_position = mask.sum(dim=1) + FIRST_POSITION.get(self.vlm.config.model_type, 0)
        if getattr(outputs, "rope_deltas", None) is not None:
            next_position = next_position + outputs.rope_deltas.view(-1)
        return Prefix(
            keys=tuple(layer.keys for layer in cache.layers),
            values=tuple(layer.values for layer in cache.layers),
            mask=mask,
            next_position=next_position,
        )

    def _attention_mask(self, mask: Tensor) -> Tensor:
        """What the VLM is given for (B, T): the same, or (B, 1, T, T) where a prefix sees all of itself."""
        if self.vlm.config.model_type not in SEES_ITSELF or self.text_config._attn_implementation != "sdpa":
            return mask
        return mask.bool()[:, None, None].expand(-1, 1, mask.shape[1], -1)
