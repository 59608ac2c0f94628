"""One thin adapter over every image-text-to-text model of transformers.

The prefix (images and instruction) runs through the VLM's own `forward`; what the action expert reads is the key/value
cache that this forward fills. Nothing of a VLM is copied here, and no family is named but in the three tables below.

Legend: `B` batch, `T` prefix tokens, `L` language layers, `H` key/value heads, `d` head size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from aegis_policy.network.checkpointing import checkpointable
from aegis_policy.network.loading import load_pretrained_vlm, load_vlm_config
from aegis_policy.network.readable import refuse_unreadable

NANO = "nano"
# PaliGemma numbers its tokens from 1, everybody else from 0: the expert's tokens follow without a gap.
FIRST_POSITION = {"paligemma": 1}
# `token_type_ids` of what follows a prompt and sees only what came before. To PaliGemma 0 is its prompt, to Gemma 3 an
# image is 1, and both look ahead within.
ANSWER_TYPE = {"paligemma": 1}
# Whose prefix sees all of itself. Asked for it by token types, transformers evaluates a function of two indices with
# vmap: 8 ms a mask on a CPU, however small the model. The same mask, made by broadcasting, costs nothing.
SEES_ITSELF = ("paligemma",)


class Attended(NamedTuple):
    """What the attention of a language layer was given.

    Attributes:
        hidden: (B, T, D).
        rotary: Cosines and sines of the tokens' positions, (B, T, d) or what else the family rotates by.
    """

    hidden: Tensor
    rotary: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prefix:
    """What the action expert reads of an observation.

    Attributes:
        keys: One tensor a language layer, (B, H, T, d), rotary embedding applied.
        values: The same shapes.
        mask: (B, T), true where a token is not padding.
        next_position: (B,), the rotary position of the first token after the prefix.
        attended: What the attention of each language layer was given, if it was asked for.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    next_position: Tensor
    attended: tuple[Attended, ...] = ()

    def detach(self) -> "Prefix":
        """The same prefix, through which no gradient flows back."""
        return Prefix(
            tuple(k.detach() for k in self.keys),
            tuple(v.detach() for v in self.values),
            self.mask,
            self.next_position,
            tuple(Attended(x.hidden.detach(), x.rotary) for x in self.attended),
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
        num_layers: How many of its language layers the prefix passes through; None: all. The others stay where they
            are, for answering.

    Raises:
        ValueError: If an action expert cannot read it, or it has fewer layers.
    """

    def __init__(self, vlm: PreTrainedModel, *, num_layers: int | None = None):
        super().__init__()
        refuse_unreadable(vlm.config)
        self.vlm = vlm
        # Idefics3 and SmolVLM put image features among the embeddings without a cast: under autocast those are half.
        if isinstance(connector := getattr(vlm.base_model, "connector", None), nn.Module):
            connector.register_forward_hook(self._in_the_embeddings_dtype)
        total = len(self.decoder.layers)
        if num_layers is not None and not 1 <= num_layers <= total:
            raise ValueError(
                f"num_vlm_layers must lie between 1 and the language model's depth: got {num_layers} of {total} layers "
                f"of {type(vlm).__name__}. Leave it out to use all."
            )
        self.depth = num_layers or total

    @classmethod
    def load(
        cls, name: str, *, revision: str | None = None, weights: bool = True, num_layers: int | None = None
    ) -> "Backbone":
        """Builds the VLM behind `name` in float32.

        Args:
            name: `"nano"`, a local folder or a hub id.
            revision: Commit, tag or branch of a hub id.
            weights: Whether to load its weights; without them the caller loads a checkpoint afterwards.
            num_layers: Language layers that the prefix passes through; None: all.

        Raises:
            ValueError: If there is no such model, it is none that an expert can read, or its weights are not whole.
        """
        source = resolve_backbone(name)
        config = load_vlm_config(source, revision=revision)
        if not weights:
            vlm = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        else:
            vlm = load_pretrained_vlm(source, config, revision=revision)
        return cls(vlm, num_layers=num_layers)

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
    def commit(self) -> str | None:
        """The commit of the hub that it was loaded from; None for a folder."""
        return getattr(self.vlm.config, "_commit_hash", None)

    @property
    def decoder(self) -> Any:
        """The language model inside the VLM, without its head (a `PreTrainedModel`)."""
        return self.vlm.get_decoder()

    @cached_property
    def decoder_name(self) -> str:
        """Qualified name of the language model inside `self.vlm`; what wraps layers inside leaves it as it is."""
        decoder = self.decoder  # asked once: modules are many
        return next(name for name, module in self.vlm.named_modules() if module is decoder)

    def layers(self) -> dict[str, nn.Module]:
        """Qualified name -> transformer layer of the language model that the prefix passes, from input to output."""
        prefix = self.decoder_name
        return {f"{prefix}.layers.{i}": layer for i, layer in enumerate(self.decoder.layers[: self.depth])}

    def is_beyond(self, name: str) -> bool:
        """Whether a qualified name belongs to a language layer behind those that the prefix passes through."""
        prefix = f"{self.decoder_name}.layers."
        return name.startswith(prefix) and int(name.removeprefix(prefix).partition(".")[0]) >= self.depth

    def layers_to_recompute(self) -> list[nn.Module]:
        """Transformer layers of towers and language model, for `recompute_in_backward`.

        Raises:
            ValueError: If the language model's layers are none that transformers says may be run again.
        """
        found = checkpointable(self.vlm)
        missing = [name for name, layer in self.layers().items() if not any(layer is other for other in found)]
        if missing:
            raise ValueError(
                "Gradient checkpointing runs those layers again that transformers marks for it; those of "
                f"{type(self.vlm).__name__} from {missing[0]!r} on are not. Set --policy.gradient_checkpointing=false."
            )
        return found

    def linears(self) -> dict[str, nn.Linear]:
        """Qualified weight name -> linear map of the VLM that the prefix passes through (so without the head)."""
        head = self.vlm.get_output_embeddings()
        return {
            f"{name}.weight": module
            for name, module in self.vlm.named_modules()
            if isinstance(module, nn.Linear) and module is not head and not self.is_beyond(name)
        }

    @property
    def image_token(self) -> int:
        """Id of the tokens in whose places the features of images stand."""
        return int(self.vlm.config.image_token_id)

    @property
    def answer_type(self) -> int:
        """The `token_type_ids` of an answer's tokens, for a model that is given some."""
        return ANSWER_TYPE.get(self.vlm.config.model_type, 0)

    def is_language(self, name: str) -> bool:
        """Whether a qualified name belongs to the language model (else: vision tower, projector)."""
        return name.startswith(self.decoder_name + ".")

    def is_vision(self, name: str) -> bool:
        """Whether a qualified name belongs to what makes tokens of images: neither language model nor its head."""
        head = self.vlm.get_output_embeddings()
        heads = () if head is None else (f"{n}." for n, module in self.vlm.named_modules() if module is head)
        return not (self.is_language(name) or name.startswith(tuple(heads)))

    def encode(self, inputs: dict[str, Tensor], *, keep_attended: bool = False) -> Prefix:
        """Runs images and instruction through the VLM.

        Args:
            inputs: What the VLM's own processor returned, `input_ids` and `attention_mask` (B, T) among it, padded
                on the right.
            keep_attended: Whether the prefix holds what each layer's attention was given, too.

        Raises:
            RuntimeError: If the VLM returns no usable cache, as under transformers' gradient checkpointing.
        """
        attention_mask = self._attention_mask(inputs["attention_mask"])
        cache = DynamicCache()  # without a configuration: layers with a sliding window keep all keys as well
        with self._first_layers(), self._watch_attention(keep_attended) as attended:
            outputs = self.vlm.base_model(
                **{**inputs, "attention_mask": attention_mask}, past_key_values=cache, use_cache=True
            )
        mask = inputs["attention_mask"].bool()
        lengths = [0 if layer.keys is None else layer.keys.shape[-2] for layer in cache.layers]
        if lengths != [mask.shape[1]] * self.depth:
            raise RuntimeError(
                f"The VLM must keep the keys and values of all {mask.shape[1]} prefix tokens in each of its "
                f"{self.depth} layers; it kept {lengths or 'none'}. Gradient checkpointing inside transformers empties "
                "the cache: use --policy.gradient_checkpointing=true in its place."
            )
        next_position = mask.sum(dim=1) + FIRST_POSITION.get(self.vlm.config.model_type, 0)
        if getattr(outputs, "rope_deltas", None) is not None:
            next_position = next_position + outputs.rope_deltas.view(-1)
        return Prefix(
            keys=tuple(layer.keys for layer in cache.layers),
            values=tuple(layer.values for layer in cache.layers),
            mask=mask,
            next_position=next_position,
            attended=tuple(attended),
        )

    def _attention_mask(self, mask: Tensor) -> Tensor:
        """What the VLM is given for (B, T): the same, or (B, 1, T, T) where a prefix sees all of itself."""
        config = self.text_config
        windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if (
            self.vlm.config.model_type not in SEES_ITSELF
            or config._attn_implementation != "sdpa"
            or (windows and config.sliding_window < mask.shape[1])
        ):
            return mask
        return mask.bool()[:, None, None].expand(-1, 1, mask.shape[1], -1)

    @contextmanager
    def _first_layers(self) -> Iterator[None]:
        """While open, the language model ends where the prefix does."""
        whole = self.decoder.layers
        self.decoder.layers = whole[: self.depth]
        try:
            yield
        finally:
            self.decoder.layers = whole

    @contextmanager
    def _watch_attention(self, wanted: bool) -> Iterator[list[Attended]]:
        """While open, what the attention of each language layer is given is put into the list, if it is wanted."""
        seen: list[Attended] = []

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(Attended(args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"]))

        layers = self.layers().values() if wanted else ()
        hooks = [layer.get_submodule("self_attn").register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _in_the_embeddings_dtype(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.to(self.vlm.get_input_embeddings().weight.dtype)
