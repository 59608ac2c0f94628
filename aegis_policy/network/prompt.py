"""Images and a text -> the inputs of a VLM, through the VLM's own processor.

A processor with a chat template gets one user turn (images, then text); one without (PaliGemma) gets its image
tokens and the bare text. Policy, anchor and probes all come through here, so that the model is trained, anchored and
asked in one and the same form. Only what a policy was trained with elsewhere has a form of its own: `encode_padded`.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from lerobot.policies.common.vla_utils import resize_with_pad_torch
from torch import Tensor
from transformers import AutoProcessor

from aegis_policy.network.backbone import resolve_backbone

# Gemma 3's processor looks for the token before an image, everybody else's for that of the image.
IMAGE_MARK = {"Gemma3Processor": "boi_token"}


def load_processor(name: str, *, revision: str | None = None, image_options: Mapping[str, Any] | None = None) -> Any:
    """The processor (image processor and tokenizer) of backbone `name`.

    Args:
        name: As in `Backbone.load`.
        revision: Commit, tag or branch of a hub id.
        image_options: What its image processor is to do otherwise than the folder says, in that processor's own words:
            `{"do_image_splitting": False}` of SmolVLM, `{"max_patches": 1}` of InternVL.

    Raises:
        ValueError: If the folder or hub id has none, or its image processor knows no such option.
    """
    return _load_processor(name, revision, json.dumps(dict(image_options or {}), sort_keys=True))


@lru_cache(maxsize=4)
def _load_processor(name: str, revision: str | None, image_options: str) -> Any:
    options = json.loads(image_options)
    try:
        processor: Any = AutoProcessor.from_pretrained(
            resolve_backbone(name), revision=revision, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot load the processor of backbone {name!r}: it needs a tokenizer and an image processor in its "
            f"folder or on the hub. Underlying error: {error}"
        ) from error
    if options:
        known = sorted(processor.image_processor.valid_kwargs.__annotations__)
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"{type(processor.image_processor).__name__} of backbone {name!r} knows no image_options "
                f"{', '.join(unknown)}. It knows {', '.join(known)}."
            )
    return processor


def encode_prompts(
    processor: Any,
    images: Sequence[Sequence[Any]],
    texts: Sequence[str],
    *,
    padding_side: str = "right",
) -> dict[str, Tensor]:
    """Turns B prompts into model inputs, padded to the longest.

    Args:
        processor: From `load_processor`.
        images: One list of images a prompt (PIL, or uint8 tensors (3, height, width)), all lists of equal length.
        texts: B instructions or questions.
        padding_side: `"right"` for a prefix that is read, `"left"` for one that is continued by `generate`.

    Returns:
        The processor's tensors: `input_ids` and `attention_mask` (B, T), `pixel_values` and whatever else the model
        takes.

    Raises:
        ValueError: If the numbers of prompts differ or a prompt has no image.
    """
    counts = {len(one) for one in images}
    if len(images) != len(texts) or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"Each prompt needs one text and the same number of images, at least one: got {len(texts)} texts and "
            f"image counts {[len(one) for one in images]}."
        )
    options = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
    if getattr(processor, "chat_template", None) is None:
        prompts = [_image_mark(processor) * len(one) + text for one, text in zip(images, texts, strict=True)]
        inputs = processor(text=prompts, images=[list(one) for one in images], **options)
    else:  # the library's own way from a conversation to inputs: it knows of tokens that the template writes itself
        turns = [_user_turn(one, text) for one, text in zip(images, texts, strict=True)]
        inputs = processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=options
        )
    if not inputs["attention_mask"][:, 0 if padding_side == "right" else -1].all():
        raise ValueError(
            f"{type(processor).__name__} pads prompts on another side than the {padding_side} one that it was told: "
            "positions behind them would be wrong. Choose another backbone."
        )
    return {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor) and k != "labels"}


def _image_mark(processor: Any) -> str:
    """What a processor without a chat template looks for in a text to put an image there."""
    return getattr(processor, IMAGE_MARK.get(type(processor).__name__, "image_token"))


def _user_turn(images: Sequence[Any], text: str) -> list[dict[str, Any]]:
    shown = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def encode_padded(
    processor: Any, images: Sequence[Tensor], texts: Sequence[str], *, max_tokens: int
) -> dict[str, Tensor]:
    """The same for one of openpi's policies: images keep their proportions on black, the text is taken as it comes.

    Args:
        processor: From `load_processor`, of a PaliGemma.
        images: One tensor a camera, (B, [1,] 3, height, width), uint8 or float in [0, 1].
        texts: B texts.
        max_tokens: Longer texts are cut, the first token (`<bos>`) counted.
    """
    size = processor.image_processor.size
    views = [resize_with_pad_torch(_to_float(one), size["height"], size["width"]) * 2 - 1 for one in images]
    text = processor.tokenizer(
        [processor.tokenizer.bos_token + one for one in texts],
        add_special_tokens=False,
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=max_tokens,
        return_tensors="pt",
    )
    places = (len(texts), len(views) * processor.image_seq_length)
    ids = torch.cat([torch.full(places, processor.image_token_id), text["input_ids"]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(places, dtype=torch.long), text["attention_mask"]], dim=1),
        "token_type_ids": torch.zeros_like(ids),  # all of it is prefix: everything sees everything
        "pixel_values": torch.stack(views, dim=1).flatten(0, 1),  # (B * cameras, 3, height, width)
    }


def _to_float(image: Tensor) -> Tensor:
    if image.ndim == 5:
        image = image[:, -1]
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def to_uint8(image: Tensor) -> Tensor:
    """(B, [1,] 3, height, width), float in [0, 1] or uint8 -> uint8 (B, 3, height, width)."""
    if image.ndim == 5:
        image = image[:, -1]
    if image.dtype == torch.uint8:
        return image
    # Pixel by pixel in memory, as PIL takes images: out of the other order it gathers each anew, at far greater cost.
    rounded = torch.empty(image.shape, dtype=torch.uint8, device=image.device, memory_format=torch.channels_last)
    for one, into in zip(image, rounded, strict=True):  # a batch of float images at once would leave the CPU's cache
        scaled = (one.float() * 255).round_().clamp_(0, 255)
        if scaled.device.type == "cpu":  # numpy casts and interleaves the colours at once, in half the time
            np.stack(tuple(scaled.numpy()), axis=-1, out=into.permute(1, 2, 0).numpy(), casting="unsafe")
        else:
            into.copy_(scaled.to(torch.uint8))
    return rounded
