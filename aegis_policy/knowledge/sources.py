"""Where the anchor of a policy comes from: a file, the folder of the backbone, or VQA passes on start."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from aegis_policy.aegis import AnchorCollector, GaussianAnchor, fingerprint, take_from_first
from aegis_policy.aegis.precision import accumulation_dtype
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.network.backbone import Backbone, resolve_backbone
from aegis_policy.network.prompt import encode_prompts, load_processor
from aegis_policy.vqa import VQASample, load_vqa_source

ANCHOR_FILE = "anchor.safetensors"

# (samples, n): of so many samples every n-th token tells of the directions as well as all do, for less
# (docs/performance.md).
TOKEN_STRIDES = ((3000, 24), (2000, 16), (1000, 8))


def find_anchor(config: AegisVLAConfig, pristine: Callable[[], Backbone]) -> GaussianAnchor | None:
    """The configured anchor, the shipped one, or one built now if this training needs it.

    Args:
        config: Of the policy.
        pristine: The backbone before this policy has trained it; asked for where there is or must be an anchor.
    """
    # The anchor beside `backbone` is not that of a VLM that comes out of another policy.
    path = config.anchor_path or (None if config.init_from else shipped_anchor(config.backbone))
    if path:
        anchor = load_anchor(path, pristine())
        if config.anchor_unit_inputs in (None, anchor.unit_inputs):
            return anchor
        if config.anchor_path:
            switch = "--unit-inputs" if config.anchor_unit_inputs else "--no-unit-inputs"
            raise ValueError(
                f"anchor_unit_inputs={config.anchor_unit_inputs} asks for another anchor than {path}, which has "
                f"{anchor.unit_inputs}. Build one with `aegis-anchor {switch} --out FILE`, or leave the option out."
            )
    if not config.needs_anchor:
        return None
    samples = load_vqa_source(config.anchor_source)(count=config.anchor_samples, seed=0, split="train")
    processor = load_processor(config.backbone, revision=config.backbone_revision, image_options=config.image_options)
    backbone = pristine().to(config.device)
    anchor = build_anchor(backbone, processor, samples, unit_inputs=config.anchor_unit_inputs is not False)
    # Each rank has run the same samples; rounding may differ from one kind of processor to another.
    take_from_first(anchor.state_dict().values(), device=next(backbone.parameters()).device)
    return anchor


def check_kept_anchor(config: AegisVLAConfig, anchor: GaussianAnchor) -> None:
    """Raises a ValueError where another anchor is asked for than the one that came with a checkpoint."""
    if config.anchor_unit_inputs not in (None, anchor.unit_inputs):
        raise ValueError(
            f"anchor_unit_inputs={config.anchor_unit_inputs} asks for another anchor than this checkpoint has, which "
            f"was made with {anchor.unit_inputs}. Leave the option out."
        )


def load_anchor(path: str | Path, backbone: Backbone) -> GaussianAnchor:
    """Reads an anchor and checks that it was built from this very backbone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another backbone's.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no anchor at {path}. Build one with `aegis-anchor --backbone BACKBONE --out {path}`, or leave "
            "--policy.anchor_path out to have one built on start."
        )
    anchor = GaussianAnchor.load(path)
    anchor.check(backbone.vlm, fingerprint=fingerprint(backbone.vlm.state_dict()), layers=backbone.layers())
    return anchor


def shipped_anchor(name: str) -> Path | None:
    """The anchor file in the folder of backbone `name`, if it has one."""
    path = Path(resolve_backbone(name)) / ANCHOR_FILE
    return path if path.is_file() else None


@torch.no_grad()
def build_anchor(
    backbone: Backbone,
    processor: Any,
    samples: Sequence[VQASample],
    *,
    batch_size: int = 32,
    unit_inputs: bool = True,
    token_stride: int | None = None,
) -> GaussianAnchor:
    """Runs the backbone on VQA samples and keeps the statistics of its activations, streaming.

    Args:
        backbone: The pre-trained VLM; left in the mode in which it came.
        processor: The VLM's own, from `load_processor`.
        samples: Images and questions; the answers are not used.
        batch_size: Samples a forward pass.
        unit_inputs: Whether each token counts the same in second moments, see `AnchorCollector`.
        token_stride: Every so many tokens count in second moments, see `AnchorCollector`. None: by `TOKEN_STRIDES`, at
            most one in as many as there are batches, all tokens of fewer samples.
    """
    if not samples:
        raise ValueError("An anchor is built from VQA samples: got none.")
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()

    def prepare(start: int, size: int = batch_size) -> dict[str, torch.Tensor]:
        batch = samples[start : start + size]
        inputs = encode_prompts(processor, [s.images for s in batch], [s.question for s in batch])
        return {k: v.to(device) for k, v in inputs.items()}

    mask: torch.Tensor | None = None
    layers, linears = backbone.layers(), _reached(backbone, prepare(0, size=1))
    language = {site for site in [*layers, *linears] if backbone.is_language(site)}  # asked at each site of each batch
    collector = AnchorCollector(
        backbone.vlm,
        layers=layers,
        linears=linears,
        mask_of=lambda site: mask if site in language else None,
        unit_inputs=unit_inputs,
        token_stride=token_stride or min(token_stride_of(len(samples)), longest_stride(len(samples), batch_size)),
        dtype=accumulation_dtype(device),
    )
    progress = tqdm(total=len(samples), desc="Building the anchor", unit="sample")
    with collector, progress, torch.autocast(device.type, enabled=False):
        for start in range(0, len(samples), batch_size):
            inputs = prepare(start)
            mask = inputs["attention_mask"].bool()
            backbone.encode(inputs)
            progress.update(len(mask))
    backbone.train(was_training)
    anchor = collector.anchor(samples=len(samples))
    logging.info("Anchor: %d samples, %d layers, %d weights", anchor.samples, len(anchor.layers), len(anchor.weights))
    return anchor


def longest_stride(samples: int, batch_size: int) -> int:
    """The longest token stride that reaches every token: the number of batches, of which each counts others.

    An image is rows of patches: what a longer stride misses may be a column of every image.
    """
    return -(-samples // batch_size)


def token_stride_of(samples: int) -> int:
    """Every so many tokens count in the second moments of an anchor of so many samples."""
    return next((stride for many, stride in TOKEN_STRIDES if samples >= many), 1)


def _reached(backbone: Backbone, inputs: dict[str, torch.Tensor]) -> dict[str, nn.Linear]:
    """The linear maps that the prefix really passes through: a vision tower may carry a pooling head that it skips."""
    seen: set[str] = set()
    linears = backbone.linears()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.add(name)

    handles = [linear.register_forward_hook(note(name)) for name, linear in linears.items()]
    try:
        backbone.encode(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: linear for name, linear in linears.items() if name in seen}
