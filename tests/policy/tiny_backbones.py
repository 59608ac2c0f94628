"""Tiny random-weight checkpoints of real architectures, each with the real processor class of its family."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: it reads any text.

    Args:
        *special: Tokens of their own.
        **named: The same, under the attribute by which a processor asks for them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *alphabet]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=named,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def _save(folder: Path, model: PreTrainedModel, processor) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# Shorter than every prompt of the tests: a sliding layer sees only a part of them.
WINDOW = 12


def _text(tokenizer: PreTrainedTokenizerFast, **extra) -> dict:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        **extra,
    }


def _siglip(patch: int) -> dict:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": patch,
        "vision_use_head": False,
    }


def _paligemma(folder: Path, **text) -> Path:
    processor = PaliGemmaProcessor(
        image_processor=SiglipImageProcessor(size={"height": 32, "width": 32}, image_seq_length=4),
        tokenizer=byte_tokenizer("<image>"),
    )
    config = PaliGemmaConfig(
        vision_config=_siglip(16),
        text_config=_text(processor.tokenizer, head_dim=16, **text),
        projection_dim=32,
        image_token_id=processor.image_token_id,
    )
    return _save(folder, PaliGemmaForConditionalGeneration(config), processor)


def paligemma(folder: Path) -> Path:
    return _paligemma(folder, model_type="gemma")


def paligemma2(folder: Path) -> Path:
    return _paligemma(folder, model_type="gemma2", query_pre_attn_scalar=16, sliding_window=WINDOW)


def gemma3(folder: Path) -> Path:
    tokenizer = byte_tokenizer(
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 32, "width": 32}, image_seq_length=4),
        tokenizer=tokenizer,
        image_seq_length=4,
        # As the real one does, it writes the first token itself.
        chat_template="{{ bos_token }}" + CHAT.replace("IMAGE", "<start_of_image>"),
    )
    config = Gemma3Config(
        vision_config=_siglip(8),
        text_config=_text(
            tokenizer,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    return _save(folder, Gemma3ForConditionalGeneration(config), processor)


_IDEFICS_SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
# Images are cut into tiles of 32 pixels, as the hub's processors of this line do by default.
_TILES = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


def _idefics_parts(tokenizer: PreTrainedTokenizerFast) -> dict:
    vision = {k: v for k, v in _siglip(8).items() if k not in ("model_type", "vision_use_head")}
    return {
        "vision_config": vision,
        "text_config": _text(tokenizer, model_type="llama"),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": 0,
    }


def idefics3(folder: Path) -> Path:
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**_TILES),
        tokenizer=byte_tokenizer(*_IDEFICS_SPECIAL),
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    config = Idefics3Config(**_idefics_parts(processor.tokenizer))
    return _save(folder, Idefics3ForConditionalGeneration(config), processor)


def smolvlm2(folder: Path) -> Path:
    tokenizer = byte_tokenizer(*_IDEFICS_SPECIAL)
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**_TILES, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**_TILES),
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    config = SmolVLMConfig(**_idefics_parts(tokenizer))
    return _save(folder, SmolVLMForConditionalGeneration(config), processor)


def internvl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    size = {"height": 32, "width": 32}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, max_patches=3),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    vision = {k: v for k, v in _siglip(8).items() if k not in ("model_type", "vision_use_head")}
    config = InternVLConfig(
        vision_config=vision,
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return _save(folder, InternVLForConditionalGeneration(config), processor)


def llava_onevision(folder: Path) -> Path:
    tokenizer = byte_tokenizer("<image>", "<video>")
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    config = LlavaOnevisionConfig(
        vision_config=_siglip(8),
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    return _save(folder, LlavaOnevisionForConditionalGeneration(config), processor)


_QWEN_SPECIAL = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
)


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(_QWEN_SPECIAL)), strict=True))


def qwen2_5_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(*_QWEN_SPECIAL)
    pixels = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        text_config=_text(
            tokenizer, rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
        ),
        **_qwen_ids(tokenizer),
    )
    return _save(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(*_QWEN_SPECIAL)
    size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}
    patches = {"size": size, "patch_size": 16}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**patches),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    config = Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config=_text(
            tokenizer,
            head_dim=16,
            rope_parameters={"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4},
        ),
        **_qwen_ids(tokenizer),
    )
    return _save(folder, Qwen3VLForConditionalGeneration(config), processor)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "gemma3": gemma3,
    "smolvlm2": smolvlm2,
    "idefics3": idefics3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "llava_onevision": llava_onevision,
}
# Where a whole training is run, these stand for the others, whose masks, positions and tiles are like one of theirs.
DIFFERENT = ("paligemma2", "gemma3", "smolvlm2", "qwen2_5_vl", "qwen3_vl")
