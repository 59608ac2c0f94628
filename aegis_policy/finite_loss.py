"""What to say of a loss that is nan or inf: which term, which batch entry, from which layer of the backbone on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def describe(terms: Mapping[str, float], *, layers: Mapping[str, float], batch: Mapping[str, Any], step: int) -> str:
    """A sentence on each, for a loss that is not finite. Reads the batch from the device.

    Args:
        terms: Name -> value of those terms of the loss that are not finite.
        layers: Layer of the backbone -> some number that its activations make; empty where nobody has looked.
        batch: The batch.
        step: Of the training.
    """
    told = ", ".join(f"{name} is {value}" for name, value in terms.items())
    entries = [key for key, value in batch.items() if _holds_nonfinite(value)]
    first = next((name for name, number in layers.items() if not _is_finite(number)), None)
    parts = [f"At training step {step} {told}."]
    parts.append(
        f"In the batch {', '.join(entries)} has nan or inf." if entries else "Everything in the batch is finite."
    )
    if first is not None:
        parts.append(f"The backbone's activations are not finite from layer {first!r} on.")
    return " ".join(parts)


def not_finite(values: Mapping[str, float]) -> dict[str, float]:
    """Those of the values that are nan or inf."""
    return {name: value for name, value in values.items() if not _is_finite(value)}


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # false for nan too


def _holds_nonfinite(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())
