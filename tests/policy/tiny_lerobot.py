"""Tiny random-weight checkpoints of LeRobot's own pi0 and pi05, made by their own classes.

LeRobot writes the sizes of its PaliGemma down in its code. The fixture makes those numbers small and leaves the rest to
LeRobot: what runs, trains, saves and loads here is its code.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import PI0Config, PI05Config, make_pre_post_processors
from lerobot.policies.pi0 import modeling_pi0, processor_pi0
from lerobot.policies.pi05 import modeling_pi05, processor_pi05
from transformers import GemmaTokenizer, PaliGemmaProcessor, SiglipImageProcessor

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

SIDE, PATCH = 28, 14  # pixels: four tokens an image
CAMERAS = ("base", "wrist")
STATE, ACTION = 5, 4
SAMPLES, CHUNK, PADDED = 3, 6, 9
FAMILIES: dict[str, tuple[ModuleType, ModuleType, Any]] = {
    "pi0": (modeling_pi0, processor_pi0, PI0Config),
    "pi05": (modeling_pi05, processor_pi05, PI05Config),
}


def paligemma_processor(folder: Path, *, side: int = SIDE) -> int:
    """Saves what the hub's google/paligemma-3b-pt-224 has beside its weights; returns the size of the vocabulary."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, "\n", "▁", *(chr(c) for c in range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["to", "ch", "tou", "touch"]
    merges = [("t", "o"), ("c", "h"), ("to", "u"), ("tou", "ch")]
    tokenizer = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    images = SiglipImageProcessor(size={"height": side, "width": side}, image_seq_length=(side // PATCH) ** 2)
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    processor.save_pretrained(folder)
    tokenizer.add_bos_token = True  # the processor has switched it off for itself; the hub's folder has it on
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def shrink(patch: pytest.MonkeyPatch, processor: Path, *, vocabulary: int) -> None:
    """Makes the sizes in LeRobot's code small, and its tokenizer the one in `processor`."""

    def variant(name: str) -> modeling_pi0.GemmaConfig:
        width, mlp = {"gemma_2b": (64, 96), "gemma_300m": (32, 40)}[name]
        return modeling_pi0.GemmaConfig(width, depth=3, mlp_dim=mlp, num_heads=8, num_kv_heads=1, head_dim=16)

    for modeling, processing, _ in FAMILIES.values():
        vlm_class, expert_class = modeling.PaliGemmaForConditionalGenerationWithPiGemma, modeling.PiGemmaForCausalLM
        tokenizer_step = processing.TokenizerProcessorStep

        def vlm(config: Any, build: Any = vlm_class) -> Any:
            vision = config.vision_config
            vision.hidden_size, vision.intermediate_size = 32, 48
            vision.num_hidden_layers = vision.num_attention_heads = 2
            config.projection_dim = vision.projection_dim = config.text_config.hidden_size
            config.text_config.vocab_size = vocabulary
            return build(config=config)

        def expert(config: Any, build: Any = expert_class) -> Any:
            config.vocab_size = 8
            return build(config=config)

        def step(tokenizer_name: str, build: Any = tokenizer_step, **options: Any) -> Any:
            return build(tokenizer_name=str(processor), **options)

        patch.setattr(modeling, "get_gemma_config", variant)
        patch.setattr(modeling, "PaliGemmaForConditionalGenerationWithPiGemma", vlm)
        patch.setattr(modeling, "PiGemmaForCausalLM", expert)
        patch.setattr(processing, "TokenizerProcessorStep", step)


def statistics(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Of a dataset whose state and action are neither centred nor of unit size."""
    draw = torch.Generator().manual_seed(seed)

    def of(size: int) -> dict[str, torch.Tensor]:
        centre, spread = torch.randn(size, generator=draw), 0.5 + torch.rand(size, generator=draw)
        return {"mean": centre, "std": spread, "q01": centre - 2 * spread, "q99": centre + 2 * spread}

    return {"observation.state": of(STATE), "action": of(ACTION)}


def save_policy(folder: Path, family: str, *, cameras: tuple[str, ...] = CAMERAS, **options: Any) -> Any:
    """Saves a random policy and its pipelines as LeRobot's training does, and returns the policy."""
    modeling, processing, config_class = FAMILIES[family]
    images = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 36, 48)) for c in cameras}
    config = config_class(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (STATE,)), **images},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        device="cpu",
        image_resolution=(SIDE, SIDE),
        **{"chunk_size": CHUNK, "n_action_steps": CHUNK, "max_action_dim": PADDED, "num_inference_steps": 4, **options},
    )
    torch.manual_seed(0)
    policy = (modeling.PI0Policy if family == "pi0" else modeling.PI05Policy)(config)
    with torch.no_grad():
        for parameter in policy.parameters():
            # norms and biases too: a tensor in the wrong place must change what comes out
            parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.1)
    make = processing.make_pi0_pre_post_processors if family == "pi0" else processing.make_pi05_pre_post_processors
    pipelines = make(config, statistics())
    policy.save_pretrained(folder)
    for pipeline in pipelines:
        pipeline.save_pretrained(folder)
    return policy.eval()


@dataclass
class Pair:
    """One checkpoint, as LeRobot runs it, and where it lies."""

    theirs: Any
    folder: Path

    def start(self, *, cameras: tuple[str, ...] = CAMERAS, state: int = STATE, action: int = ACTION, **options: Any):
        images = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 36, 48)) for c in cameras}
        config = AegisVLAConfig(
            input_features={**images, "observation.state": PolicyFeature(FeatureType.STATE, (state,))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
            device="cpu",
            init_from=str(self.folder),
            **{"n_action_steps": 3, "knowledge": "none", **options},
        )
        return AegisVLAPolicy(config).eval()

    def pipelines(self):
        return make_pre_post_processors(self.theirs.config, pretrained_path=str(self.folder))


def raw_batch(cameras: tuple[str, ...] = CAMERAS, *, task: str = "touch the red cube", training: bool = False) -> dict:
    draw = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = {f"observation.images.{c}": torch.rand(SAMPLES, 3, 36, 48, generator=draw) for c in cameras}
    batch["observation.state"] = torch.randn(SAMPLES, STATE, generator=draw)
    batch["task"] = [task + " slowly" * i for i in range(SAMPLES)]
    if training:
        batch["action"] = torch.randn(SAMPLES, CHUNK, ACTION, generator=draw)
    return batch
