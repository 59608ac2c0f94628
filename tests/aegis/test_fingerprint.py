import hashlib
import struct

import torch

from aegis_policy.aegis import fingerprint


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.randn(3, generator=generator)}


def test_the_same_weights_have_the_same_name_in_any_order_layout_and_exact_dtype() -> None:
    rounded = {k: v.bfloat16() for k, v in weights().items()}
    name = fingerprint(rounded)
    assert name == fingerprint({k: v.float() for k, v in rounded.items()})
    assert name == fingerprint({k: v.double() for k, v in rounded.items()})
    assert name == fingerprint(dict(reversed(rounded.items())))
    transposed = rounded["a.weight"].T.contiguous().T  # other strides, the same values
    assert name == fingerprint(rounded | {"a.weight": transposed})


def test_any_change_changes_it() -> None:
    original = weights()
    nudged = weights()
    nudged["a.weight"][2, 3] = torch.nextafter(nudged["a.weight"][2, 3], torch.tensor(9.0))
    reshaped = weights() | {"a.weight": original["a.weight"].reshape(4, 3)}
    renamed = {k.replace("a.", "b."): v for k, v in original.items()}
    names = [fingerprint(w) for w in (original, nudged, reshaped, renamed, {})]
    assert len(set(names)) == len(names)


def test_it_is_sha256_over_name_shape_and_little_endian_float32() -> None:
    expected = hashlib.sha256(b'["w", [2]]' + struct.pack("<2f", 1, 2)).hexdigest()
    assert fingerprint({"w": torch.tensor([1.0, 2.0])}) == expected


def test_scalars_and_integers_count() -> None:
    assert fingerprint({"steps": torch.tensor(3)}) != fingerprint({"steps": torch.tensor(4)})
