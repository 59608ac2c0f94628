"""A tiny language model with random weights in transformers' format, and eyes for it: what SmolLM2's place is for."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aegis_backbones.language_model import LanguageModel
from tests.policy.tiny_backbones import byte_tokenizer

WIDTH = 48


def tiny_language(*, tied: bool = True) -> LanguageModel:
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel(model, tokenizer)


def save_language(folder: Path, *, tied: bool = True) -> Path:
    language = tiny_language(tied=tied)
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    return folder
