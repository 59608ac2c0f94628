"""How far fine-tuning moved what each linear map answers to visual questions, beside what a subspace would close.

    python benchmarks/responses.py CHECKPOINT [--source nano_scenes] [--samples 16] [--energy 0.97]

The backbone as it was before training runs on held-out questions. At each map `W` that has moved, and for each token's
input `x`, the change is `|dW x| / |W x|`, in percent, each token counting the same; a subspace holds it down where it
closes directions that tokens use. A row is one kind of map over all layers: the median layer, the layer with the
largest change, and in how many of its directions `energy` closes the checkpoint's own anchor.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from measure import Table
from torch import Tensor, nn
from tqdm import tqdm

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts
from aegis_policy.pretrained.start import load_backbone
from aegis_policy.vqa import load_vqa_source

BATCH = 8
LAYER = re.compile(r"\.(\d+)\.")

Changes = dict[str, float]  # weight -> mean over tokens of |dW x| / |W x|


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a pretrained_model folder of aegis_vla, trained without adapters")
    parser.add_argument("--source", default="nano_scenes", help="VQA source of the questions")
    parser.add_argument("--samples", type=int, default=16, help="questions")
    parser.add_argument("--energy", type=float, default=0.97, help="share of the anchor's energy that is closed")
    options = parser.parse_args(arguments)
    policy = AegisVLAPolicy.from_pretrained(options.checkpoint)
    if policy.config.use_peft:
        raise SystemExit(f"{options.checkpoint} was trained with adapters; this compares whole weights.")
    before = load_backbone(policy.config)
    samples = load_vqa_source(options.source)(count=options.samples, seed=0, split="validation")
    batches = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
    inputs = (
        encode_prompts(policy.vlm.processor, [s.images for s in batch], [s.question for s in batch])
        for batch in tqdm(batches, unit="batch", disable=None)
    )
    moved = changes(before, differences(before, policy.backbone), inputs)
    if not moved:
        raise SystemExit(f"No linear map of {options.checkpoint} has moved: knowledge={policy.config.knowledge}.")
    print(by_kind(moved, directions(policy, moved, energy=options.energy)).markdown())


def differences(before: Backbone, after: Backbone) -> dict[str, Tensor]:
    """Weight -> what training has added to it, (out, in), of the maps that it has moved."""
    now = after.linears()
    found = {name: now[name].weight.detach() - linear.weight.detach() for name, linear in before.linears().items()}
    return {name: difference for name, difference in found.items() if difference.any()}


@torch.no_grad()
def changes(backbone: Backbone, moved: dict[str, Tensor], inputs: Any) -> Changes:
    """Runs the backbone and compares, token by token, the answer of each map with that of what was added to it."""
    sums: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    mask: Tensor | None = None

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Linear, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            if backbone.is_language(name) and mask is not None:
                x = x[mask.reshape(-1)]
            answer = (x @ module.weight.T).norm(dim=1)
            sums[name] += float(((x @ moved[name].T).norm(dim=1) / answer.clamp(min=1e-12)).sum())
            tokens[name] += len(x)

        return hook

    linears = backbone.linears()
    handles = [linears[name].register_forward_pre_hook(watch(name)) for name in moved]
    for batch in inputs:
        mask = batch["attention_mask"].bool()
        backbone.encode(batch)
    for handle in handles:
        handle.remove()
    return {name: sums[name] / tokens[name] for name in moved if tokens[name]}


def directions(policy: AegisVLAPolicy, moved: Changes, *, energy: float) -> dict[str, str]:
    """Weight -> "closed of all" input directions; of the weights that the checkpoint's anchor holds."""
    anchor = policy.anchor
    if anchor is None:
        return {}
    held = [name for name in moved if name in anchor.weights]
    projectors = anchor.projectors(energy=energy, weights=held)
    widths = {name: linear.in_features for name, linear in policy.backbone.linears().items()}
    return {name: f"{round(p.closed_share * widths[name])} of {widths[name]}" for name, p in projectors.items()}


def by_kind(moved: Changes, closed: dict[str, str]) -> Table:
    """One row a kind of map."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in moved:
        found = list(LAYER.finditer(name))
        kinds[name[: found[-1].start()] + ".*." + name[found[-1].end() :] if found else name].append(name)
    rows = []
    for kind, names in kinds.items():
        most = max(names, key=moved.__getitem__)
        layer = LAYER.findall(most)
        rows.append(
            [
                kind.removesuffix(".weight"),
                f"{100 * median(moved[name] for name in names):.2f}",
                f"{100 * moved[most]:.2f}",
                layer[-1] if layer else "–",
                closed.get(most, "–"),
            ]
        )
    title = "Change of each map's answers to held-out visual questions, mean over tokens."
    return Table(title, ("map", "median layer (%)", "largest (%)", "in layer", "closed there"), rows)


if __name__ == "__main__":
    main()
