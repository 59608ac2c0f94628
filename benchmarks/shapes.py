"""Backbones of real models' shapes with random weights, and policies on them without processor, weights or VQA data.

The sizes are those of the published configurations of google/paligemma-3b-pt-224, google/paligemma2-3b-pt-224 and
HuggingFaceTB/SmolVLM2-*; the small and tiny ones are ours. Speed and memory do not depend on the values of weights.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aegis_policy.aegis import GaussianAnchor, Projector
from aegis_policy.aegis.anchor import FORMAT
from aegis_policy.aegis.subspace import SMALL
from aegis_policy.answering import VLM
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.network.backbone import Backbone
from aegis_policy.processor_aegis_vla import VLM_INPUT

# Share of the input directions that the embedded backbone's anchor closes at an energy, mean over its weights.
CLOSED = {0.97: 0.25, 0.99: 0.45}
TEXT = 20  # tokens of an instruction
IMAGE_TOKEN = 5
# Weights of one transformer layer that read the same input.
SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def _paligemma(text: dict[str, Any], vision: dict[str, Any], *, side: int = 224) -> dict[str, Any]:
    return {
        "model_type": "paligemma",
        "image_token_id": IMAGE_TOKEN,
        "projection_dim": text["hidden_size"],
        "text_config": {"vocab_size": 257216, "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, **text},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": side,
            "patch_size": 14,
            "vision_use_head": False,
            **vision,
        },
    }


def _smolvlm(text: dict[str, Any], vision: dict[str, Any], *, scale: int = 4) -> dict[str, Any]:
    return {
        "model_type": "smolvlm",
        "image_token_id": IMAGE_TOKEN,
        "pad_token_id": 2,
        "scale_factor": scale,
        "tie_word_embeddings": False,
        "text_config": {"model_type": "llama", "vocab_size": 49280, "pad_token_id": 2, **text},
        "vision_config": {"image_size": 512, "patch_size": 16, **vision},
    }


def _sizes(width: int, mlp: int, layers: int, heads: int, kv: int = 0, head: int = 0, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"num_key_value_heads": kv} if kv else {}
    return sizes | ({"head_dim": head} if head else {}) | more


_SO400M = _sizes(1152, 4304, 27, 16)
_BASE = _sizes(768, 3072, 12, 12)
SHAPES: dict[str, dict[str, Any]] = {
    "tiny-paligemma2": _paligemma(
        _sizes(32, 48, 2, 4, 2, 16, model_type="gemma2", query_pre_attn_scalar=16, vocab_size=64),
        _sizes(32, 48, 2, 2),
        side=28,
    ),
    "tiny-smolvlm2": _smolvlm(
        _sizes(32, 48, 2, 4, 2, 8, vocab_size=64), _sizes(32, 48, 2, 2, image_size=32, patch_size=8), scale=2
    ),
    "small-smolvlm2": _smolvlm(
        _sizes(192, 512, 4, 3, 1, 64, vocab_size=2048), _sizes(192, 768, 4, 4, image_size=256), scale=2
    ),
    "small-paligemma2": _paligemma(
        _sizes(256, 1024, 4, 4, 2, 64, model_type="gemma2", query_pre_attn_scalar=64, vocab_size=2048),
        _sizes(192, 768, 4, 4),
        side=112,
    ),
    "smolvlm2-256m": _smolvlm(_sizes(576, 1536, 30, 9, 3, 64), _BASE),
    "smolvlm2-500m": _smolvlm(_sizes(960, 2560, 32, 15, 5, 64), _BASE),
    "smolvlm2-2.2b": _smolvlm(
        _sizes(2048, 8192, 24, 32, 32, 64), _SO400M | {"image_size": 384, "patch_size": 14}, scale=3
    ),
    "paligemma-3b": _paligemma(_sizes(2048, 16384, 18, 8, 1, 256, model_type="gemma"), _SO400M),
    "paligemma2-3b": _paligemma(
        _sizes(2304, 9216, 26, 8, 4, 256, model_type="gemma2", query_pre_attn_scalar=256), _SO400M
    ),
}

# Width of the action expert and of its MLPs, where it is not by a policy's default ratio: pi0's.
EXPERTS = {"paligemma-3b": (1024, 4096), "paligemma2-3b": (1024, 4096)}


def with_layers(shape: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The same with so many language layers."""
    return {**shape, "text_config": {**shape["text_config"], "num_hidden_layers": layers}}


def distinct_inputs(linears: Mapping[str, nn.Linear]) -> list[tuple[list[str], int]]:
    """Weights that read one input, and its width, as the collector would find them."""
    groups: dict[str, list[str]] = {}
    for name in linears:
        owner = name
        for shared in SHARED:
            for part in shared:
                owner = owner.replace(f".{part}.", f".{shared[0]}.")
        groups.setdefault(owner, []).append(name)
    return [(names, linears[names[0]].in_features) for names in groups.values()]


class RandomAnchor(GaussianAnchor):
    """Closes random directions of each input, as many as `CLOSED` says; its moments are zero.

    Args:
        backbone: Whose linear maps and layers it knows.
    """

    def __init__(self, backbone: Backbone) -> None:
        layers = [{"name": name, "width": backbone.text_config.hidden_size} for name in backbone.layers()]
        inputs = [{"weights": names, "width": width} for names, width in distinct_inputs(backbone.linears())]
        super().__init__({"format": FORMAT, "fingerprint": "", "samples": 1, "layers": layers, "inputs": inputs})
        self._known = inputs

    def projectors(
        self, *, energy: float | None = None, device: torch.device | str = "cpu", **_: Any
    ) -> dict[str, Projector]:
        """Of the form and size that real ones have."""
        assert energy is not None, "benchmarks close directions, they do not damp them"
        made = {}
        for entry in self._known:
            projector = random_projector(entry["width"], closed=CLOSED[energy], device=device)
            made |= dict.fromkeys(entry["weights"], projector)
        return made


def random_projector(width: int, *, closed: float, device: torch.device | str = "cpu") -> Projector:
    """One that closes a share of random directions, in the form that costs least."""
    count = round(closed * width)
    few = min(count, width - count)
    basis = torch.linalg.qr(torch.randn(width, few, device=device))[0]
    projector = Projector(basis, "closed" if few == count else "open")
    return Projector(projector.matrix(), "matrix") if width <= SMALL else projector


class ShapePolicy(AegisVLAPolicy):
    """A policy on a backbone of that shape.

    State beside the policy's: a folder with the backbone's configuration, and its weights where a frozen copy of it is
    loaded to be compared with.

    Args:
        config: Its `backbone` is not asked.
        shape: A transformers configuration, such as one of `SHAPES`.
    """

    def __init__(self, config: AegisVLAConfig, shape: Mapping[str, Any]) -> None:
        folder = tempfile.TemporaryDirectory(prefix="aegis-shape-")
        (Path(folder.name) / "config.json").write_text(json.dumps(shape))
        config.backbone = folder.name
        with torch.device(config.device or "cpu"):
            super().__init__(config, from_checkpoint=True)
        self._folder = folder
        if config.penalty_weight:
            self.backbone.vlm.save_pretrained(folder.name)
        self._set_anchor(RandomAnchor(self.backbone))
        self._make_retention()

    @property
    def vlm(self) -> VLM:
        """Without a processor: nobody asks it anything."""
        return VLM(self.backbone.vlm, None)


def random_inputs(shape: Mapping[str, Any], batch: int, *, images: int, text: int = TEXT) -> dict[str, Tensor]:
    """What such a model's processor makes of so many images and text tokens a sample, as keys of a policy's batch."""
    draw = torch.Generator().manual_seed(0)
    vision = shape["vision_config"]
    side, patch = vision["image_size"], vision["patch_size"]
    tokens = (side // patch // shape.get("scale_factor", 1)) ** 2 * images
    words = torch.randint(IMAGE_TOKEN + 1, shape["text_config"]["vocab_size"], (batch, text), generator=draw)
    ids = torch.cat([torch.full((batch, tokens), IMAGE_TOKEN), words], dim=1)
    pixels = torch.randn(batch, images, 3, side, side, generator=draw)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if shape["model_type"] == "paligemma":
        inputs |= {"pixel_values": pixels.flatten(0, 1), "token_type_ids": torch.zeros_like(ids)}
    else:
        mask = torch.ones(batch, images, side, side, dtype=torch.bool)
        inputs |= {"pixel_values": pixels, "pixel_attention_mask": mask}
    return {VLM_INPUT + name: value for name, value in inputs.items()}
