"""What training on many GPUs sends, holds and waits for, on paper: arithmetic from the sizes of a real architecture.

    python benchmarks/cost_model.py

Nothing here is measured. The sizes are those of PaliGemma 2 3B (224 pixels) and the default action expert, built
without memory; the speeds are the assumptions below. Data parallelism (every rank holds everything), bfloat16
autocast around float32 weights, gradients reduced in float32 by a ring: a rank sends `2 (W - 1) / W` times what is
reduced.
"""

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, PaliGemmaConfig

from aegis_policy.knowledge.trainable import choose_trainable
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.expert import ActionExpert

FLOAT = 4  # bytes
BATCH, TOKENS, IMAGE_TOKENS, CHUNK = 32, 300, 256, 17  # a rank: samples, prefix tokens, of these images, expert tokens
BF16, FP32 = 400e12, 45e12  # floating-point operations a second: what of an H100 SXM is assumed to be reached
MEMORY = 2.5e12  # bytes a second to and from a GPU's own memory, likewise
# Number of GPUs, how a node of eight reaches the next, bytes a second at which a ring then runs.
NETWORKS = (
    (8, "NVLink in one node", 370e9),
    (64, "8 cards of 400 Gb/s a node", 320e9),
    (512, "8 cards of 400 Gb/s a node", 320e9),
    (64, "1 card of 100 Gb/s a node", 11e9),
)


@dataclass
class Arm:
    """Numbers (not bytes) that one way of training handles.

    Attributes:
        trained: Parameters whose gradients are reduced while the backward pass runs.
        anchored: Parameters whose anchor gradients are reduced after it.
        projectors: Entries of all distinct projectors, at most: half of the directions closed.
        product: Floating-point operations of a step's products `dW P`, at most as well.
    """

    trained: int
    anchored: int = 0
    projectors: int = 0
    product: float = 0.0


def paligemma2_3b() -> Backbone:
    """The architecture."""
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "gemma2",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 257216,
        },
        projection_dim=2304,
    )
    return Backbone(AutoModelForImageTextToText.from_config(config))


def arms(backbone: Backbone, expert: int) -> dict[str, Arm]:
    """Each arm's numbers, from what it trains."""
    linears = {name: module.weight for name, module in backbone.linears().items()}

    def learns(knowledge: str, projection: str) -> int:
        options: dict[str, Any] = {"tune_vision": True, "answers": False, "anchored": linears}
        chosen = choose_trainable(backbone, knowledge=knowledge, projection=projection, **options)
        return sum(p.numel() for p in chosen.values())

    inputs = {_input_of(name): weight.shape[1] for name, weight in linears.items()}
    everything = learns("aegis", "gradient")
    return {
        "naive": Arm(learns("none", "gradient") + expert),
        "gradient, update": Arm(everything + expert, anchored=everything),
        "subspace": Arm(
            learns("aegis", "subspace") + expert,
            projectors=sum(width * (width // 2) for width in inputs.values()),
            product=sum(4.0 * math.prod(w.shape) * (w.shape[1] // 2) for w in linears.values()),
        ),
    }


def _input_of(name: str) -> str:
    """Weights that read the same tensor share a projector: q, k and v; gate and up."""
    for siblings in ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"):
        for sibling in siblings:
            name = name.replace(f".{sibling}.", f".{siblings[0]}.")
    return name


def forward_backward(backbone: Backbone, expert: int) -> float:
    """Floating-point operations of a rank's forward and backward pass: six a parameter and token."""
    sizes = {name: p.numel() for name, p in backbone.vlm.named_parameters() if "embed" not in name}
    language = sum(size for name, size in sizes.items() if backbone.is_language(name))
    vision = sum(sizes.values()) - language
    return 6.0 * BATCH * (language * TOKENS + vision * IMAGE_TOKENS + expert * CHUNK)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with torch.device("meta"):
        backbone = paligemma2_3b()
        action_expert = ActionExpert(backbone, action_size=7, state_size=8, width_ratio=0.75)
    expert = sum(p.numel() for p in action_expert.parameters())
    total = sum(p.numel() for p in backbone.parameters()) + expert
    found = arms(backbone, expert)
    console = Console(width=140)
    console.print(_sent(found, total, expert))
    console.print(_held(found, total))
    console.print(_time(found, forward_backward(backbone, expert) / BF16))


def _sent(found: dict[str, Arm], total: int, expert: int) -> Table:
    title = f"GB reduced; backbone {(total - expert) / 1e9:.2f} billion parameters, expert {expert / 1e9:.2f}"
    columns = ("a step, beside the backward pass", "a step, after it", "once, in the first step")
    table = Table("arm", "trained, 10^9", *columns, title=title)
    for name, arm in found.items():
        numbers = (arm.trained, arm.anchored, arm.projectors)
        table.add_row(name, f"{arm.trained / 1e9:.2f}", *(f"{FLOAT * n / 1e9:.1f}" for n in numbers))
    return table


def _held(found: dict[str, Arm], total: int) -> Table:
    """Projectors stay whole under fully_shard; it needs no buckets. The anchor's second moments are on the CPU."""
    columns = ("weights", "gradients", "DDP's buckets", "Adam", "anchor gradients", "projectors", "sum")
    sharded = ("over 8", "over 64", "over 512")
    table = Table("arm", *columns, *sharded, title="GB a rank without activations; the sum; under fully_shard")
    for name, arm in found.items():
        split = [n * FLOAT / 1e9 for n in (total, arm.trained, 2 * arm.trained, arm.anchored)]
        whole = arm.projectors * FLOAT / 1e9
        under_ddp = [split[0], split[1], split[1], *split[2:], whole]
        shares = [sum(split) / gpus + whole for gpus in (8, 64, 512)]
        table.add_row(name, *(f"{n:.1f}" for n in (*under_ddp, sum(under_ddp), *shares)))
    return table


def _time(found: dict[str, Arm], compute: float) -> Table:
    """A backward pass is two thirds of the work, and hides as much of the reduction; nothing hides the anchor's."""
    columns = ("forward, backward", "anchor's backward", "reduction", "of it exposed", "dW P", "Adam", "sum")
    table = Table("GPUs", "arm", *columns, "over naive", title=f"seconds a step, batch {BATCH} a GPU")
    for gpus, network, speed in NETWORKS:
        table.add_section()
        base = 0.0
        for name, arm in found.items():
            task, anchor = (2 * (gpus - 1) / gpus * n * FLOAT / speed for n in (arm.trained, arm.anchored))
            exposed = max(0.0, task - 2 / 3 * compute) + anchor
            again = 2 / 3 * compute if arm.anchored else 0.0
            # Read weight, gradient and both moments, write three of them; the anchor's products read and write more.
            adam = (7 * arm.trained + 12 * arm.anchored) * FLOAT / MEMORY
            product = arm.product / FP32
            everything = compute + again + exposed + product + adam
            base = base or everything
            numbers = (compute, again, task + anchor, exposed, product, adam, everything)
            where = "" if name != "naive" else f"{gpus}, {network}"
            table.add_row(where, name, *(f"{s:.2f}" for s in numbers), f"{everything / base:.2f}")
    return table


if __name__ == "__main__":
    main()
