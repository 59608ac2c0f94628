"""Protect LeRobot's own SmolVLA in place, with `aegis_policy.aegis` and nothing else of this repository:

    python examples/lerobot_smolvla.py

A tiny SmolVLA with random weights stands for the one that you have. It is fine-tuned on a new task twice, the optimizer
alone differs, and afterwards it is asked how far its language layers have moved on the old instructions. For your own:
`SmolVLAPolicy.from_pretrained(...)` with `train_expert_only=False`, and batches from its own preprocessor.
"""

import copy
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from aegis_policy.aegis import AegisAdamW, AnchorCollector

LANGUAGE = "model.vlm_with_expert.vlm.model.text_model.layers."
LR, SIDE, WORDS = 1e-3, 64, 40


def protect(policy: nn.Module, old_batches: Iterable[dict[str, Tensor]]) -> AegisAdamW:
    """An optimizer whose steps keep off what the language layers use on `old_batches`; the expert learns freely."""
    linears = {
        f"{name}.weight": module
        for name, module in policy.named_modules()
        if name.startswith(LANGUAGE) and isinstance(module, nn.Linear) and module.weight.requires_grad
    }
    with AnchorCollector(policy, linears=linears, unit_inputs=True) as collector, torch.no_grad():
        for batch in old_batches:
            policy.forward(dict(batch))
    projectors = collector.anchor().projectors(energy=0.99)
    vlm = {id(p) for p in policy.model.vlm_with_expert.vlm.parameters()}
    free = [p for p in policy.parameters() if id(p) not in vlm and p.requires_grad]
    groups: dict[str, list[str]] = {}  # language layer -> its weights
    for name in projectors:
        groups.setdefault(LANGUAGE + name.removeprefix(LANGUAGE).split(".")[0], []).append(name)
    for name, parameter in policy.named_parameters():
        if id(parameter) in vlm:  # norms and embeddings are no linear maps of known inputs: as they are
            parameter.requires_grad_(name in projectors)
    protected = [
        {
            "layer": layer,
            "params": [policy.get_parameter(name) for name in names],
            "projectors": [projectors[name] for name in names],
        }
        for layer, names in groups.items()
    ]
    return AegisAdamW([*protected, {"params": free}], lr=LR, projection="subspace")


def naive(policy: nn.Module, old_batches: Iterable[dict[str, Tensor]]) -> torch.optim.Optimizer:
    """LeRobot's own choice: AdamW on all that trains; it has no use for the old batches."""
    return torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=LR)


def batches(instructions: list[list[int]], count: int, seed: int) -> list[dict[str, Tensor]]:
    """Random robot data as the preprocessor hands it over, four samples a batch with one of the instructions each."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        chosen = torch.randint(len(instructions), (4,), generator=draw)
        tokens = torch.tensor(instructions)[chosen]
        made.append(
            {
                "observation.images.front": torch.rand(4, 3, SIDE, SIDE, generator=draw),
                "observation.state": torch.randn(4, 6, generator=draw),
                "observation.language.tokens": tokens,
                "observation.language.attention_mask": torch.ones_like(tokens, dtype=torch.bool),
                # each instruction asks for another motion
                "action": torch.sin(tokens.float().sum(1))[:, None, None] + torch.zeros(4, 8, 6),
            }
        )
    return made


@torch.no_grad()
def language_outputs(policy: nn.Module, data: list[dict[str, Tensor]]) -> Tensor:
    """What the last language layer before the frozen one puts out on the observations' images and instructions."""
    seen: list[Tensor] = []
    layers = policy.get_submodule(LANGUAGE.removesuffix("."))
    hook = layers[-2].mlp.down_proj.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    for batch in data:
        policy.forward(dict(batch))
    hook.remove()
    return torch.cat(seen)


def tiny_smolvla(folder: Path) -> SmolVLAPolicy:
    """LeRobot's SmolVLA on a SmolVLM of random weights."""
    special = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    words = ["<pad>", "<image>", "<end_of_utterance>", *special.values(), *(f"word{i}" for i in range(WORDS))]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")),
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "end_of_utterance_token": "<end_of_utterance>", **special},
    )
    size = {"longest_edge": SIDE}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=size, max_image_size=size),
        image_seq_len=16,
    )
    processor.save_pretrained(folder)
    common = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    SmolVLMConfig(
        vision_config={**common, "num_hidden_layers": 1, "image_size": SIDE, "patch_size": 8},
        text_config={
            **common,
            "model_type": "llama",
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": len(words),
            "pad_token_id": 0,
        },
        image_token_id=1,
        scale_factor=2,
        pad_token_id=0,
    ).save_pretrained(folder)
    config = SmolVLAConfig(
        vlm_model_name=str(folder),
        num_vlm_layers=4,
        train_expert_only=False,
        chunk_size=8,
        n_action_steps=8,
        resize_imgs_with_padding=(SIDE, SIDE),
        input_features={
            "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)),
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        device="cpu",
    )
    return SmolVLAPolicy(config)


def main() -> None:
    """Fine-tune on a new instruction with either optimizer and print what has moved."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        start = tiny_smolvla(Path(folder))
    old = [[5 + i, 6 + i, 7 + i] for i in range(12)]
    known, asked, new = batches(old, 24, seed=1), batches(old, 4, seed=2), batches([[30, 31, 32]], 8, seed=3)
    before = language_outputs(start, asked)
    print(f"{'':12} {'new task: loss':>16} {'old instructions: language moved by':>38}")
    for name, make in (("AdamW", naive), ("AegisAdamW", protect)):
        policy = copy.deepcopy(start)
        optimizer = make(policy, known)
        policy.train()
        torch.manual_seed(1)
        losses = []
        for step in range(150):
            loss, _ = policy.forward(dict(new[step % len(new)]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        moved = (language_outputs(policy, asked) - before).norm() / before.norm()
        print(f"{name:12} {sum(losses[-20:]) / 20:16.3f} {100 * moved.item():36.1f} %")


if __name__ == "__main__":
    main()
