"""What is done about nan and inf in a training step, before the optimizer has its say (`aegis_policy.aegis.finite`).

The loss is looked at where its number is on the host anyway, for the log; gradients are noted by layer as they come.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aegis_policy.aegis import note_gradients, when_backward_ends
from aegis_policy.knowledge.trainable import layer_of


def require_finite(
    loss: Tensor,
    terms: Mapping[str, float],
    *,
    layers: Mapping[str, float],
    batch: Mapping[str, Any],
    step: int,
    on_nonfinite: str,
) -> Tensor:
    """The loss itself; one that is not finite stops the training, or gets a gradient with which no step is taken.

    Args:
        loss: With its graph.
        terms: What it is the sum of, by name.
        layers: Layer of the backbone -> some number that its activations make; empty where nobody has looked.
        batch: Looked through when something is wrong.
        step: Of the training.
        on_nonfinite: "stop" or "skip".

    Raises:
        FloatingPointError: Under "stop".
    """
    bad = {name: value for name, value in terms.items() if not _is_finite(value)}
    if not bad:
        return loss
    entries = [key for key, value in batch.items() if _holds_nonfinite(value)]
    message = f"At training step {step} {', '.join(f'{name} is {value}' for name, value in bad.items())}. "
    message += f"In the batch {', '.join(entries)} has nan or inf." if entries else "Everything in the batch is finite."
    first = next((name for name, number in layers.items() if not _is_finite(number)), None)
    if first is not None:
        message += f" The backbone's activations are not finite from layer {first!r} on."
    if on_nonfinite == "stop":
        raise FloatingPointError(
            f"{message} Leave such steps out and go on with --policy.on_nonfinite=skip; a resumed training takes its "
            "optimizer's options from the checkpoint, and needs --optimizer.on_nonfinite=skip beside it."
        )
    logging.warning(message)
    return loss * torch.nan


def note_layers(loss: Tensor, policy: nn.Module) -> None:
    """Notes each layer's gradient when the backward pass of the loss ends: clipping then hides where nan began."""

    def note() -> None:
        layers: dict[str, list[Tensor]] = {}
        for name, parameter in policy.named_parameters():
            layers.setdefault(layer_of(name.removeprefix("backbone.vlm.")), []).append(parameter)
        note_gradients(layers)

    when_backward_ends(loss, note)


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # false for nan too


def _holds_nonfinite(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())
