"""Which VLMs an action expert can read, told from their configuration: before weights are fetched.

The expert is one more decoder of the language model's kind. It reads keys and values of every layer, and its tokens
follow the prefix in rotary position. What has no such keys, or no such positions, is refused here by name.
"""

from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

# Kinds of layers, as transformers names them, that keep keys and values of the tokens they saw.
READABLE_LAYERS = ("full_attention", "sliding_attention")


def refuse_unreadable(config: Any) -> None:
    """Refuses a model that an expert cannot read.

    Args:
        config: The VLM's (a `PreTrainedConfig`).

    Raises:
        ValueError: If it reads no images, or its language model is built otherwise.
    """
    kind = config.model_type
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"A backbone reads images and text (transformers' AutoModelForImageTextToText): a {kind!r} model does "
            "not. Choose one that does, such as PaliGemma, SmolVLM, Gemma 3 or Qwen-VL."
        )
    text = config.get_text_config(decoder=True)
    others = sorted(set(getattr(text, "layer_types", None) or ()) - set(READABLE_LAYERS))
    reasons = {
        "it is an encoder-decoder": config.is_encoder_decoder or text.is_encoder_decoder,
        "its images enter through cross-attention and are no tokens of the prefix": (
            getattr(text, "cross_attention_layers", None) or hasattr(text, "cross_layer_interval")
        ),
        f"it has layers of another kind than {' and '.join(READABLE_LAYERS)}: {', '.join(others)}": others,
        f"its last layers share keys and values (num_kv_shared_layers={getattr(text, 'num_kv_shared_layers', 0)})": (
            getattr(text, "num_kv_shared_layers", 0)
        ),
        "it has no rotary positions, or no keys and values of its own": (
            getattr(text, "rope_parameters", None) is None or getattr(text, "num_key_value_heads", None) is None
        ),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found is not None:
        raise ValueError(
            f"The action expert reads the keys and values that every layer of the language model keeps of the prefix. "
            f"A {kind!r} model cannot be read so: {found}. Choose a decoder-only backbone, such as PaliGemma, SmolVLM, "
            "Gemma 3 or Qwen-VL."
        )
