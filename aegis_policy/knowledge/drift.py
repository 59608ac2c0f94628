"""How far the backbone's activations on this batch are from the anchor, layer by layer.

    L_ot = sum over language layers l of W2^2(N(mu_l, sigma_l), N(mu*_l, sigma*_l))        (arXiv 2604.16067)

Moments are those of the robot batch itself: no VQA data is needed while training.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aegis_policy.aegis import GaussianAnchor, masked_moments, pooled_moments, wasserstein2


@contextmanager
def watch_outputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects what each layer puts out, (B, T, D), while the context is open."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def anchor_distances(
    outputs: Mapping[str, Tensor], mask: Tensor, anchor: GaussianAnchor, *, pooled: bool = False
) -> Tensor:
    """W2^2 to the anchor, one number a layer.

    Args:
        outputs: Layer name -> (B, T, D), from `watch_outputs`.
        mask: (B, T), true where a token counts.
        anchor: With moments for each of these layers.
        pooled: Whether the moments are those of all ranks' tokens; then every rank must call.

    Returns:
        (L,) float32, differentiable.
    """
    layers = list(outputs.values())
    moments = pooled_moments(layers, mask) if pooled else [masked_moments(one, mask) for one in layers]
    return torch.stack(
        [
            wasserstein2(mean, std, anchor.mean(name), anchor.std(name))
            for name, (mean, std) in zip(outputs, moments, strict=True)
        ]
    )
