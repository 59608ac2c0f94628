"""The nano backbone's shape: a PaliGemma of about 1.5 million parameters.

SigLIP vision tower (4 layers, 8 x 8 patches of 12 pixels) -> linear projector -> Gemma (4 layers, width 128, 4 heads
of 32, 2 KV heads), prefix-LM: image tokens and question see each other, the answer sees what precedes it.
"""

from math import sqrt

import torch
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from aegis_backbones.scenes import IMAGE_SIZE

PATCH_SIZE = 12  # pixels
GRID = IMAGE_SIZE // PATCH_SIZE  # patches a side
IMAGE_TOKENS = GRID * GRID
WIDTH = 128


def build_processor(tokenizer: PreTrainedTokenizerFast) -> PaliGemmaProcessor:
    """PaliGemma's own processor for 96 x 96 pictures and 64 image tokens.

    It adds PaliGemma's 1,152 location and segmentation tokens to the tokenizer, so build the model afterwards.
    """
    image_processor = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    image_processor.image_seq_length = IMAGE_TOKENS
    return PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> PaliGemmaForConditionalGeneration:
    """A randomly initialised nano backbone for a tokenizer that `build_processor` has completed."""
    vision = SiglipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        vision_use_head=False,
    )
    text = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # Gemma multiplies embeddings by sqrt(width): with this they enter the first layer with unit variance.
        initializer_range=1 / sqrt(WIDTH),
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        vocab_size=len(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model
