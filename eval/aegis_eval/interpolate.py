"""`aegis-interpolate`: a fine-tuned backbone, part of the way back to the pre-trained one (WiSE-FT, arXiv 2109.01903).

    W = (1 - weight) W_pretrained + weight W_finetuned

for every tensor of the backbone; the action expert stays as it was trained. What is written is a checkpoint like any
other.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aegis_eval.checkpoints import find_checkpoint
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.pretrained.start import load_backbone

WEIGHTS = "model.safetensors"
PREFIX = "backbone.vlm."  # of the backbone's tensors in a checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        source = Path(find_checkpoint(arguments.checkpoint))
        interpolate(source, arguments.out, weight=arguments.weight, overwrite=arguments.overwrite)
    except (ValueError, OSError) as error:
        print(f"aegis-interpolate: {error}", file=sys.stderr)
        return 2
    print(f"{source}, backbone at {arguments.weight:g} of the way from pre-trained to fine-tuned -> {arguments.out}")
    return 0


def interpolate(source: Path, out: Path, *, weight: float, overwrite: bool = False) -> None:
    """Write the checkpoint between the pre-trained backbone and a fine-tuned policy.

    Args:
        source: A `pretrained_model` folder of `aegis_vla`.
        out: The folder to write.
        weight: Share of the fine-tuned weights, in [0, 1].
        overwrite: Whether a folder that is there may be replaced.

    Raises:
        ValueError: If the weight is no share, the checkpoint holds adapters or no policy, or `out` contains it.
        FileExistsError: If `out` is there and `overwrite` is not set.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"--weight is the share of the fine-tuned weights, in [0, 1]; received {weight}.")
    if not (source / WEIGHTS).is_file() or json.loads((source / "config.json").read_text()).get("type") != "aegis_vla":
        raise ValueError(
            f"{source} is no whole checkpoint of aegis_vla (config.json of that type, {WEIGHTS}). What was trained "
            "with --peft.* holds adapters: switch them off instead (aegis-probe --adapters=off)."
        )
    if source.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--out {out} holds the checkpoint that is read, {source}: choose another.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already: choose another --out, or give --overwrite.")
    before = load_backbone(AegisVLAConfig.from_pretrained(source)).vlm.state_dict()
    with safe_open(source / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a handle is no mapping
    for name, tensor in tensors.items():
        if name.startswith(PREFIX) and tensor.is_floating_point():
            tensors[name] = torch.lerp(before[name.removeprefix(PREFIX)].to(tensor.dtype), tensor, weight)
    part = out.with_name(f"{out.name}.part")  # written beside and moved: what is there stays until all is
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(WEIGHTS))
    save_file(tensors, part / WEIGHTS, metadata=metadata)
    if out.exists():
        shutil.rmtree(out)
    part.replace(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-interpolate",
        description="Write the checkpoint between a pre-trained backbone and the policy that was trained from it.",
    )
    parser.add_argument("checkpoint", help="a training's output folder, its pretrained_model folder, or a hub id")
    parser.add_argument("--weight", type=float, default=0.5, help="share of the fine-tuned weights (default: 0.5)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
