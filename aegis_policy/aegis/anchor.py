"""The Gaussian anchor: what a model's layers and linear maps saw on the data whose knowledge is to be kept.

    a layer           mu*, sigma*          (D,)       per-channel moments of its outputs          -> wasserstein2
    a linear weight   Sigma = E[x x^T]     (in, in)   second moment of its inputs, or of x / |x|  -> subspace_projector

Weights that read the same input (q, k and v; gate and up) share one `Sigma`. Everything is float32 and travels in its
host's `state_dict`. Means and deviations are buffers. `Sigma`, a packed upper triangle, is none: it is needed once, to
make projectors, and stays on the CPU wherever the host goes (6 GB for PaliGemma2-3B, which a GPU would hold for
nothing and DDP would broadcast before each forward pass). Sizes and names are in `spec()`, which is JSON-able:
`GaussianAnchor.from_spec(spec)` makes a module that is ready for `load_state_dict`.

Names of buffers cannot hold dots. They are `kind:name` with `~` written as `~0` and `.` as `~1` (the escape of
JSON pointers, RFC 6901).
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aegis_policy.aegis.projector import Projector
from aegis_policy.aegis.subspace import Closes, compact_projector

FORMAT = "aegis-gaussian-anchor-1"


class GaussianAnchor(nn.Module):
    """Frozen moments of a model on its anchor data; float32 whatever dtype its host is cast to.

    Made by `AnchorCollector.anchor()`, `from_moments`, `from_spec` or `load`.

    Args:
        spec: As returned by `spec()`. All moments start at zero.

    Raises:
        ValueError: If the spec is not one of this format.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        if spec.get("format") != FORMAT:
            raise ValueError(
                f"An anchor's spec has format {FORMAT!r}; received {spec.get('format')!r}. Take it from "
                "GaussianAnchor.spec()."
            )
        self.fingerprint = str(spec["fingerprint"])
        self.samples = int(spec["samples"])
        self.unit_inputs = bool(spec.get("unit_inputs", False))
        self._layer_widths: dict[str, int] = {e["name"]: int(e["width"]) for e in spec["layers"]}
        self._input_widths: dict[str, int] = {e["weights"][0]: int(e["width"]) for e in spec["inputs"]}
        self._input_of: dict[str, str] = {w: e["weights"][0] for e in spec["inputs"] for w in e["weights"]}
        for layer, width in self._layer_widths.items():
            self.register_buffer(_buffer_name("mean", layer), torch.zeros(width))
            self.register_buffer(_buffer_name("std", layer), torch.zeros(width))
        self._packed: dict[str, Tensor] = {
            _buffer_name("second_moment", name): torch.zeros(width * (width + 1) // 2, device="cpu")
            for name, width in self._input_widths.items()
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "GaussianAnchor":
        """An anchor of the given names and sizes with zero moments, ready for `load_state_dict`."""
        return cls(spec)

    @classmethod
    def from_moments(
        cls,
        layers: Mapping[str, tuple[Tensor, Tensor]],
        inputs: Sequence[tuple[Sequence[str], Tensor]],
        *,
        fingerprint: str,
        samples: int,
        unit_inputs: bool = False,
    ) -> "GaussianAnchor":
        """An anchor from finished moments.

        Args:
            layers: Layer name -> (mean (D,), standard deviation (D,)).
            inputs: One entry a distinct input: the names of the weights that read it, and its second moment
                (in, in).
            fingerprint: `fingerprint(...)` of the model that was run.
            samples: How many samples it was run on.
            unit_inputs: Whether the second moments are of `x / |x|`.

        Raises:
            ValueError: If a moment is not finite.
        """
        spec = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "samples": samples,
            "layers": [{"name": name, "width": len(mean)} for name, (mean, _) in layers.items()],
            "inputs": [{"weights": list(weights), "width": len(sigma)} for weights, sigma in inputs],
            **({"unit_inputs": True} if unit_inputs else {}),
        }
        anchor = cls(spec)
        for name, (mean, std) in layers.items():
            anchor._fill("mean", name, mean)
            anchor._fill("std", name, std)
        for weights, sigma in inputs:
            anchor._fill("second_moment", weights[0], _pack(sigma))
        return anchor

    def spec(self) -> dict[str, Any]:
        """Names, sizes, fingerprint and sample count: all that `from_spec` needs, JSON-able."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "samples": self.samples,
            "layers": [{"name": name, "width": width} for name, width in self._layer_widths.items()],
            "inputs": [
                {"weights": [w for w, owner in self._input_of.items() if owner == name], "width": width}
                for name, width in self._input_widths.items()
            ],
            **({"unit_inputs": True} if self.unit_inputs else {}),
        }

    @property
    def layers(self) -> list[str]:
        """Names of the layers whose output moments are held."""
        return list(self._layer_widths)

    @property
    def weights(self) -> list[str]:
        """Names of the linear weights whose input moments are held."""
        return list(self._input_of)

    def mean(self, layer: str) -> Tensor:
        """Per-channel mean of a layer's outputs, (D,)."""
        return self._moment("mean", layer, self._layer_widths)

    def std(self, layer: str) -> Tensor:
        """Per-channel population standard deviation of a layer's outputs, (D,)."""
        return self._moment("std", layer, self._layer_widths)

    def second_moment(self, weight: str) -> Tensor:
        """`E[x x^T]` of the inputs of a linear weight (of `x / |x|` with `unit_inputs`), (in, in), on the CPU, unpacked
        anew on each call."""
        if weight not in self._input_of:
            raise KeyError(_unknown("weight", weight, self._input_of))
        return _unpack(self._packed[_buffer_name("second_moment", self._input_of[weight])])

    @torch.no_grad()
    def projectors(
        self,
        *,
        weights: Collection[str] | None = None,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] | None = None,
        **closes: Unpack[Closes],
    ) -> dict[str, Projector]:
        """The projector of each weight (`subspace_projector`, in compact form); weights that read one input share one.

        Args:
            weights: Only these, for example to treat vision and language differently; None takes all.
            device: Where the eigen-decompositions run and the projectors are (width 9216 takes minutes on a CPU).
            progress: Called as `progress(done, total)` after each distinct input.
            closes: One of `Closes`, such as `energy=0.99`.

        Returns:
            Weight name -> `P` (in, in), float32.

        Raises:
            KeyError: If the anchor does not hold one of `weights`.
            ValueError: Unless exactly one of `Closes` is given and in range.
        """
        wanted = self.weights if weights is None else list(weights)
        for weight in wanted:
            if weight not in self._input_of:
                raise KeyError(_unknown("weight", weight, self._input_of))
        owners = list(dict.fromkeys(self._input_of[w] for w in wanted))
        by_owner: dict[str, Projector] = {}
        for done, owner in enumerate(owners, start=1):
            by_owner[owner] = compact_projector(self.second_moment(owner).to(device), **closes)
            if progress is not None:
                progress(done, len(owners))
        return {w: by_owner[self._input_of[w]] for w in wanted}

    def closed_share(self, **closes: Unpack[Closes]) -> dict[str, float]:
        """Share of the input directions that `projectors(...)` would close, per weight and as `"mean"`."""
        shares = {w: p.closed_share for w, p in self.projectors(**closes).items()}
        return shares | {"mean": sum(shares.values()) / max(len(shares), 1)}

    def check(
        self,
        model: nn.Module | Mapping[str, Tensor],
        *,
        fingerprint: str | None = None,
        layers: Collection[str] | None = None,
    ) -> None:
        """Refuse a model that this anchor does not belong to.

        Args:
            model: The model, or its named parameters, in the names that the collector was given.
            fingerprint: Of the *untrained* backbone; None skips this test (after training the weights differ
                by design).
            layers: Layer names that will be asked for; None skips this test.

        Raises:
            ValueError: If the fingerprint differs, a layer or weight is missing, or an input width does not
                fit.
        """
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise ValueError(
                "An anchor holds for the weights it was collected on. This one was collected on a model "
                f"with fingerprint {self.fingerprint[:12]}..., and this model's is {fingerprint[:12]}.... "
                "Collect an anchor on this model, or load the weights the anchor came from."
            )
        for layer in layers or ():
            if layer not in self._layer_widths:
                raise ValueError(_unknown("layer", layer, self._layer_widths))
        named = dict(model.named_parameters()) if isinstance(model, nn.Module) else model
        for weight, owner in self._input_of.items():
            if weight not in named:
                raise ValueError(
                    f"The anchor holds the inputs of {weight!r}, which this model does not have (its "
                    f"parameters are named like {_some(named)}). Collect an anchor on this model, in these "
                    "names."
                )
            width, shape = self._input_widths[owner], tuple(named[weight].shape)
            if named[weight][:1].numel() != width:
                raise ValueError(
                    f"The anchor's inputs of {weight!r} are {width} wide, and this model's weight is "
                    f"{shape}, (out, in). Collect an anchor on this model."
                )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the spec is JSON in its header."""
        tensors = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        save_file(tensors, str(path), metadata={"spec": json.dumps(self.spec())})

    @classmethod
    def load(cls, path: str | Path) -> "GaussianAnchor":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is a safetensors file of something else.
        """
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if "spec" not in metadata:
                raise ValueError(
                    f"{path} is not an anchor: its header has no spec. Write anchors with GaussianAnchor.save()."
                )
            anchor = cls(json.loads(metadata["spec"]))
            anchor.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return anchor

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return (
            f"layers={len(self.layers)}, weights={len(self.weights)}, inputs={len(self._input_widths)}, "
            f"samples={self.samples}, fingerprint={self.fingerprint[:12]}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GaussianAnchor":
        # `policy.to(torch.bfloat16)` moves the buffers, but must not round them.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            original = before[name]
            if buffer is not None and original is not None and buffer.dtype != original.dtype:
                self._buffers[name] = original.to(buffer.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: packed for name, packed in self._packed.items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # For torch they are buffers while they load, so that missing names and wrong sizes are its own errors.
        self._buffers.update(self._packed)
        try:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        finally:
            self._packed = {name: self._buffers.pop(name) for name in self._packed}  # type: ignore[misc]

    def _fill(self, kind: str, name: str, value: Tensor) -> None:
        if not torch.isfinite(value).all():
            raise ValueError(
                f"The anchor's moments are finite; the {kind} of {name!r} is not, so some unmasked "
                "activation was inf or NaN. Run the anchor pass in float32 or bfloat16, or mask the tokens "
                "that overflow."
            )
        name = _buffer_name(kind, name)
        (self._packed[name] if name in self._packed else self.get_buffer(name)).copy_(value)

    def _moment(self, kind: str, name: str, known: Collection[str]) -> Tensor:
        if name not in known:
            raise KeyError(_unknown("layer", name, known))
        return self.get_buffer(_buffer_name(kind, name))


def _buffer_name(kind: str, name: str) -> str:
    return f"{kind}:{name.replace('~', '~0').replace('.', '~1')}"


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    return f"The anchor holds no {what} {name!r}. It holds {len(known)}: {_some(known)}."


def _some(names: Collection[str]) -> str:
    shown = list(names)[:5]
    return (", ".join(map(repr, shown)) or "none") + (", ..." if len(names) > 5 else "")


def _pack(matrix: Tensor) -> Tensor:
    """Upper triangle of a symmetric matrix (n, n), row by row: (n (n + 1) / 2,), float32."""
    # A mask and not `triu_indices`: eight times less memory at width 9216.
    return matrix[torch.ones_like(matrix, dtype=torch.bool).triu()].float()


def _unpack(packed: Tensor) -> Tensor:
    """Inverse of `_pack`: (n, n), symmetric."""
    n = int(((8 * packed.numel() + 1) ** 0.5 - 1) / 2 + 0.5)
    matrix = packed.new_zeros(n, n)
    matrix[torch.ones_like(matrix, dtype=torch.bool).triu()] = packed
    return matrix + matrix.triu(1).T
