"""LeRobot's own `pi0` and `smolvla` with random weights at a chosen size, without a hub, and `aegis_vla` beside each.

    pi0       and the `aegis_vla` that starts from it (`init_from`): the same network, the same weights
    smolvla   and an `aegis_vla` on a SmolVLM of its sizes with an expert of its sizes: of one size, not one network
              (smolvla's expert has cross-attention in every second layer and reads the state in the prefix)

LeRobot writes the sizes of its PaliGemma down in its code; they are made small there while a policy is built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import PI0Config, make_pre_post_processors
from lerobot.policies.pi0 import modeling_pi0, processor_pi0
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GemmaTokenizer,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

CAMERAS = ("base", "wrist")
HEIGHT, WIDTH = 480, 640  # pixels, of a camera
STATE = ACTION = 6
CHUNK, STEPS = 50, 10  # actions a chunk, evaluations of the flow: the defaults of both
TASK = "put the red cube into the box on the left"
WORDS = sorted(set(TASK.split()))


@dataclass(frozen=True)
class Size:
    """Of one pair's networks; the head size is `width // heads`, or `head`."""

    width: int  # of the language model
    mlp: int
    depth: int
    heads: int
    kv_heads: int
    head: int
    expert_width: int
    expert_mlp: int
    vision_width: int
    vision_mlp: int
    vision_depth: int
    vision_heads: int
    patch: int
    side: int  # pixels that the vision tower sees
    shuffle: int = 1  # SmolVLM's pixel shuffle: tokens an image = (side / patch / shuffle)^2


# smolvla derives its expert from the ratio 0.75: width 0.75 * W, MLP by its own rule.
SIZES: dict[str, dict[str, Size]] = {
    "tiny": {
        "pi0": Size(64, 96, 3, 8, 1, 16, 32, 40, 32, 48, 2, 2, 14, 28),
        "smolvla": Size(64, 128, 4, 4, 2, 16, 48, 256, 32, 64, 2, 2, 8, 32, 2),
    },
    "small": {
        "pi0": Size(256, 1024, 6, 8, 1, 32, 128, 512, 192, 768, 6, 4, 14, 224),
        "smolvla": Size(256, 1024, 6, 8, 2, 32, 192, 512, 192, 768, 6, 4, 16, 256, 2),
    },
    # As LeRobot has them: PaliGemma-3B with a 300M expert; the first 16 layers of SmolVLM2-500M.
    "full": {
        "pi0": Size(2048, 16384, 18, 8, 1, 256, 1024, 4096, 1152, 4304, 27, 16, 14, 224),
        "smolvla": Size(960, 2560, 16, 15, 5, 64, 720, 2048, 768, 3072, 12, 12, 16, 512, 4),
    },
}


class Arm(NamedTuple):
    """A policy and what stands before it."""

    policy: Any
    preprocessor: Any


def pi0_pair(size: Size, folder: Path, *, device: str) -> dict[str, Arm]:
    """LeRobot's pi0, and the `aegis_vla` that starts from it."""
    processor = folder / "paligemma"
    vocabulary = _paligemma_processor(processor, size)
    with _pi0_of(size, processor, vocabulary):
        resolution = (size.side, size.side)
        config = PI0Config(
            **_features(), device=device, image_resolution=resolution, chunk_size=CHUNK, n_action_steps=CHUNK
        )
        torch.manual_seed(0)
        theirs = modeling_pi0.PI0Policy(config)
        before, after = processor_pi0.make_pi0_pre_post_processors(config, _statistics())
        theirs.save_pretrained(folder / "pi0")
        for pipeline in (before, after):
            pipeline.save_pretrained(folder / "pi0")
        ours = AegisVLAPolicy(
            AegisVLAConfig(**_features(), device=device, init_from=str(folder / "pi0"), knowledge="none")
        )
        return {"pi0": Arm(theirs.to(device).eval(), before), "aegis_vla from pi0": _ours(ours, device)}


def smolvla_pair(size: Size, folder: Path, *, device: str) -> dict[str, Arm]:
    """LeRobot's smolvla, and an `aegis_vla` of its size."""
    vlm = folder / "smolvlm"
    _save_smolvlm(vlm, size)
    torch.manual_seed(0)
    theirs = SmolVLAPolicy(
        SmolVLAConfig(
            **_features(),
            vlm_model_name=str(vlm),
            num_vlm_layers=size.depth,
            expert_width_multiplier=size.expert_width / size.width,
            chunk_size=CHUNK,
            n_action_steps=CHUNK,
            resize_imgs_with_padding=(size.side, size.side),
            device=device,
        )
    )
    before, _ = make_pre_post_processors(theirs.config, dataset_stats=_statistics())
    ours = AegisVLAPolicy(
        AegisVLAConfig(
            **_features(),
            backbone=str(vlm),
            expert_hidden_size=size.expert_width,
            expert_intermediate_size=size.expert_mlp,
            padded_action_size=theirs.config.max_action_dim,
            chunk_size=CHUNK,
            device=device,
            knowledge="none",
        )
    )
    return {"smolvla": Arm(theirs.to(device).eval(), before), "aegis_vla on its VLM": _ours(ours, device)}


PAIRS = {"pi0": pi0_pair, "smolvla": smolvla_pair}


def observation(batch: int) -> dict[str, Any]:
    """What a robot or an environment hands over: camera images in [0, 1], state, instruction."""
    draw = torch.Generator().manual_seed(1)
    images = {f"observation.images.{c}": torch.rand(batch, 3, HEIGHT, WIDTH, generator=draw) for c in CAMERAS}
    return {**images, "observation.state": torch.randn(batch, STATE, generator=draw), "task": [TASK] * batch}


def _ours(policy: AegisVLAPolicy, device: str) -> Arm:
    before, _ = make_pre_post_processors(policy.config, dataset_stats=_statistics())
    return Arm(policy.to(device).eval(), before)


def _features() -> dict[str, Any]:
    images = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for c in CAMERAS}
    return {
        "input_features": {**images, "observation.state": PolicyFeature(FeatureType.STATE, (STATE,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
    }


def _statistics() -> dict[str, dict[str, torch.Tensor]]:
    of = {"mean": torch.zeros(STATE), "std": torch.ones(STATE)}
    return {"observation.state": of, "action": of}


def _paligemma_processor(folder: Path, size: Size) -> int:
    """Saves a processor as google/paligemma-3b-pt-224 has it, with few words; returns the size of its vocabulary."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, "\n", "▁", *(chr(c) for c in range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    images = SiglipImageProcessor(
        size={"height": size.side, "width": size.side}, image_seq_length=(size.side // size.patch) ** 2
    )
    PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.add_bos_token = True  # the processor has switched it off for itself; the hub's folder has it on
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@contextmanager
def _pi0_of(size: Size, processor: Path, vocabulary: int) -> Iterator[None]:
    """LeRobot's pi0 is of this size and takes its tokenizer from `processor` while the context is open."""
    vlm_class = modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma
    expert_class, tokenizer_step = modeling_pi0.PiGemmaForCausalLM, processor_pi0.TokenizerProcessorStep

    def variant(name: str) -> modeling_pi0.GemmaConfig:
        width, mlp = (size.width, size.mlp) if name == "gemma_2b" else (size.expert_width, size.expert_mlp)
        return modeling_pi0.GemmaConfig(width, size.depth, mlp, size.heads, size.kv_heads, size.head)

    def vlm(config: Any) -> Any:
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size = size.vision_width, size.vision_mlp
        vision.num_hidden_layers, vision.num_attention_heads = size.vision_depth, size.vision_heads
        config.projection_dim = vision.projection_dim = size.width
        config.text_config.vocab_size = vocabulary
        return vlm_class(config=config)

    def expert(config: Any) -> Any:
        config.vocab_size = 8
        return expert_class(config=config)

    def step(tokenizer_name: str, **options: Any) -> Any:
        return tokenizer_step(tokenizer_name=str(processor), **options)

    with (
        patch.object(modeling_pi0, "get_gemma_config", variant),
        patch.object(modeling_pi0, "PaliGemmaForConditionalGenerationWithPiGemma", vlm),
        patch.object(modeling_pi0, "PiGemmaForCausalLM", expert),
        patch.object(processor_pi0, "TokenizerProcessorStep", step),
    ):
        yield


def _save_smolvlm(folder: Path, size: Size) -> None:
    """A random SmolVLM and its processor, which neither splits images nor enlarges them beyond the tower's size."""
    special = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    control = ["<pad>", "<image>", "<end_of_utterance>", *special.values()]
    vocabulary = [*control, *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "end_of_utterance_token": "<end_of_utterance>", **special},
    )
    longest = {"longest_edge": size.side}
    images = SmolVLMImageProcessor(size=longest, max_image_size=longest, do_image_splitting=False)
    processor = SmolVLMProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=longest, max_image_size=longest),
        image_seq_len=(size.side // size.patch // size.shuffle) ** 2,
        chat_template="{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}",
    )
    processor.save_pretrained(folder)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_mlp,
            "num_hidden_layers": size.vision_depth,
            "num_attention_heads": size.vision_heads,
            "image_size": size.side,
            "patch_size": size.patch,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": size.width,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.head,
            "vocab_size": len(vocabulary),
            "pad_token_id": 0,
        },
        image_token_id=1,
        scale_factor=size.shuffle,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
