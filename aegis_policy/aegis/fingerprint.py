"""A name for a set of weights: SHA-256 over names, shapes and float32 values."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted names, the shapes and the values as float32 on the CPU.

    The same weights give the same fingerprint on every device and in any order, and in any dtype that holds
    them exactly: a bfloat16 checkpoint and its float32 copy agree, a float32 checkpoint and its bfloat16
    rounding do not.

    Args:
        tensors: Name -> tensor, for example `model.state_dict()`.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        values = tensor.to(device="cpu", dtype=torch.float32).contiguous().reshape(-1)
        digest.update(values.numpy())
    return digest.hexdigest()
