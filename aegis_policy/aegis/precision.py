"""Which precision the method's sums and products run in, whatever the model's own dtype is."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from aegis_policy.aegis.shards import local


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype of inner products, norms and running sums: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision and integers; float32 and float64 as they are."""
    return torch.promote_types(dtype, torch.float32)


def wide(t: Tensor) -> Tensor:
    """In float32 or better; itself where it is so already."""
    return t.to(at_least_float32(t.dtype))


def largest_entry(tensors: Iterable[Tensor]) -> Tensor:
    """The largest absolute entry of all, () on the first one's device; of DTensors, of this process's parts.

    0 for none, or where this process has no part of any.
    """
    parts = [local(t) for t in tensors]
    filled = [t.detach() for t in parts if t.numel()] or [t.new_zeros(1) for t in parts[:1]]
    if not filled or any(t.device.type != "cpu" for t in filled):
        return get_total_norm(filled, float("inf"))
    # torch's norm of this order is not vectorised on a CPU: it takes over ten times as long as finding both ends
    ends = [end.double() for t in filled for end in torch.aminmax(t)]
    return torch.stack(ends).abs().max()


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry of every tensor is finite, () bool on the first one's device; true for none.

    Looks at the largest entry, see `largest_entry`: a sum of squares would overflow for large ones too.
    """
    return torch.isfinite(largest_entry(tensors))


@contextmanager
def full_precision_matmul(device_type: str) -> Iterator[None]:
    """Matrix products in full float32 inside the block: no TF32, no bfloat16, no autocast.

    Trainers switch TF32 on for speed (lerobot-train does). Its 10-bit mantissa would let 1e-3 of every step
    through a projector, on each of thousands of steps.
    """
    # `Any`: torch's stubs do not know `mkldnn.matmul`.
    mkldnn: Any = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, mkldnn.matmul)
    before = [_get_precision(b) for b in backends]
    try:
        for backend in backends:
            _set_precision(backend, "ieee")
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            _set_precision(backend, value)


def _get_precision(backend: Any) -> Any:
    # torch < 2.9 knows only `allow_tf32`, and only for CUDA.
    if hasattr(backend, "fp32_precision"):
        return backend.fp32_precision
    return "tf32" if getattr(backend, "allow_tf32", False) else "ieee"


def _set_precision(backend: Any, value: str) -> None:
    if hasattr(backend, "fp32_precision"):
        backend.fp32_precision = value
    elif hasattr(backend, "allow_tf32"):
        backend.allow_tf32 = value == "tf32"
