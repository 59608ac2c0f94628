"""`aegis-anchor`: runs a backbone on VQA samples and writes the anchor that training must not undo."""

import argparse
import json
import logging
from pathlib import Path

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.sources import TOKEN_STRIDES, build_anchor, longest_stride
from aegis_policy.network.prompt import load_processor
from aegis_policy.pretrained.start import load_backbone
from aegis_policy.vqa import list_vqa_sources, load_vqa_source


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.count < 1:
        raise SystemExit(f"--count must be at least 1: got {options.count}.")
    if options.token_stride is not None and options.token_stride < 1:
        raise SystemExit(f"--token-stride is a number of tokens, at least 1: got {options.token_stride}.")
    if options.batch_size < 1:
        raise SystemExit(f"--batch-size must be at least 1: got {options.batch_size}.")
    longest = longest_stride(options.count, options.batch_size)
    if options.token_stride is not None and options.token_stride > longest:
        raise SystemExit(
            f"Each batch counts other tokens, and {longest} batches do not reach all that are a --token-stride of "
            f"{options.token_stride} apart. Take a stride of at most {longest}, or a smaller --batch-size."
        )
    if options.out.exists() and not options.overwrite:
        raise SystemExit(f"{options.out} exists already: choose another --out, or give --overwrite.")
    try:
        source = load_vqa_source(options.source)
        config = AegisVLAConfig(
            backbone=options.backbone,
            backbone_revision=options.revision,
            init_from=options.init_from,
            init_from_revision=options.init_from_revision,
            image_options=options.image_options,
            device=options.device,
        )
        backbone = load_backbone(config).to(options.device)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    samples = source(count=options.count, seed=options.seed, split="train")
    processor = load_processor(config.backbone, revision=config.backbone_revision, image_options=config.image_options)
    anchor = build_anchor(
        backbone,
        processor,
        samples,
        batch_size=options.batch_size,
        unit_inputs=options.unit_inputs,
        token_stride=options.token_stride,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    anchor.save(options.out)
    size = options.out.stat().st_size / 2**20
    print(
        f"Anchor of {options.init_from or options.backbone}: {anchor.samples} samples, {len(anchor.layers)} layers, "
        f"{len(anchor.weights)} weights, {size:.1f} MiB -> {options.out}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-anchor", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backbone", default="nano", help='"nano", a folder or a hub id')
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument(
        "--image-options", type=json.loads, help="JSON: --policy.image_options of the policy that it is for"
    )
    parser.add_argument("--init-from", help="LeRobot checkpoint (pi0, pi05) whose VLM it is; --backbone: its processor")
    parser.add_argument("--init-from-revision", help="commit, tag or branch of a hub id")
    parser.add_argument("--source", default="nano_scenes", help=f"VQA source: {', '.join(list_vqa_sources())}")
    parser.add_argument("--count", type=int, default=3000, help="VQA samples")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--unit-inputs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="each token counts the same, however large its activations are",
    )
    parser.add_argument(
        "--token-stride",
        type=int,
        help="every so many tokens count in second moments; where not given all, "
        + ", ".join(f"from {many} samples on one in {stride}" for many, stride in reversed(TOKEN_STRIDES)),
    )
    parser.add_argument("--batch-size", type=int, default=32, help="samples a forward pass")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


if __name__ == "__main__":
    main()
