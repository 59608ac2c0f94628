"""Collecting an anchor: hooks that watch a model's own forward passes over the anchor data.

with AnchorCollector(model, layers={...}, linears={...}, mask_of=...) as collector, torch.no_grad():
    for batch in anchor_data:
        model(**batch)
anchor = collector.anchor()
"""

import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from aegis_policy.aegis.anchor import GaussianAnchor
from aegis_policy.aegis.fingerprint import fingerprint as fingerprint_of
from aegis_policy.aegis.statistics import ActivationStatistics, SecondMoment


class AnchorCollector:
    """Watches layers' outputs and linear maps' inputs while it is entered; nothing in the model changes.

    Linear maps that are fed the very same tensor object (q, k and v; gate and up) share one second moment,
    which is found out in the first forward pass. State: the streaming moments, the hooks while entered, the
    number of samples.

    Args:
        model: The model that will be run; its weights give the fingerprint.
        layers: Layer name -> module. Its output counts, the first element if that is a tuple: (B, T, D) or
            any (..., D).
        linears: Qualified weight name, such as `"layers.0.mlp.up_proj.weight"` -> the `nn.Linear` whose
            weight it is.
        mask_of: Called with a layer or weight name at each forward pass; returns the mask of the tokens that
            this site sees (True where a token counts, shape `x.shape[:-1]`) or None to count all. None means
            no mask anywhere.
        dtype: Of the second moments' running sums; MPS has no float64.
        unit_inputs: Whether second moments are of `x / |x|`, so that each token counts the same. In a language model a
            few tokens can have activations hundreds of times those of all others, and their directions alone
            are then all the energy that a subspace closes.
        token_stride: Second moments, most of an anchor's cost, take in every so many tokens of a pass, of the next
            pass others. Layers' outputs count in full.

    Raises:
        ValueError: If a module is not part of `model`, a linear is no `nn.Linear`, nothing is watched, or the stride is
            below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module] | None = None,
        linears: Mapping[str, nn.Linear] | None = None,
        mask_of: Callable[[str], Tensor | None] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        unit_inputs: bool = False,
        token_stride: int = 1,
    ) -> None:
        self.model = model
        self.samples = 0
        self._layers = dict(layers or {})
        self._linears = dict(linears or {})
        self._mask_of = mask_of or (lambda site: None)
        self._dtype = dtype
        self._unit_inputs = unit_inputs
        self._token_stride = token_stride
        if token_stride < 1:
            raise ValueError(f"token_stride is a number of tokens, at least 1; received {token_stride}.")
        self._check_sites()
        self._outputs: dict[str, ActivationStatistics] = {}
        self._inputs: dict[str, SecondMoment] = {}
        self._owner: dict[str, str] = {}
        # Which site took in the tensor object with this id; the weak reference tells a live object from a
        # reused id.
        self._taken: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._handles: list[RemovableHandle] = []
        self._first_site = next(iter([*self._layers, *self._linears]))

    def __enter__(self) -> Self:
        for name, module in self._layers.items():
            self._handles.append(module.register_forward_hook(self._layer_hook(name)))
        for name, linear in self._linears.items():
            hook = self._linear_hook(name)
            self._handles.append(linear.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._taken.clear()

    def anchor(self, *, samples: int | None = None, fingerprint: str | None = None) -> GaussianAnchor:
        """The anchor of everything seen so far.

        Args:
            samples: Recorded with the anchor; by default the summed leading dimension of what the first site
                saw.
            fingerprint: By default that of `model.state_dict()` as it is now.

        Raises:
            ValueError: If a site saw no unmasked token, or a moment is not finite.
        """
        for site in [*self._layers, *self._linears]:
            moments = self._outputs.get(site) if site in self._layers else self._inputs.get(self._owner.get(site, ""))
            if moments is None or moments.count == 0:
                raise ValueError(
                    f"Every site of an anchor sees at least one unmasked token; {site!r} saw none. Run the "
                    "model inside `with collector:`, and check the mask and that the forward pass reaches "
                    "this module."
                )
        groups: dict[str, list[str]] = {owner: [] for owner in self._inputs}
        for weight in self._linears:
            groups[self._owner[weight]].append(weight)
        return GaussianAnchor.from_moments(
            {name: (self._outputs[name].mean, self._outputs[name].std) for name in self._layers},
            [(sorted(names, key=lambda w: w != owner), self._inputs[owner].value) for owner, names in groups.items()],
            fingerprint=fingerprint_of(self.model.state_dict()) if fingerprint is None else fingerprint,
            samples=self.samples if samples is None else samples,
            unit_inputs=self._unit_inputs,
        )

    def _layer_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            if not isinstance(y, Tensor):
                raise ValueError(
                    f"A layer returns a tensor or a tuple that begins with one; {name!r} returned "
                    f"{type(y).__name__}. Watch a module inside it instead."
                )
            if name not in self._outputs:
                self._outputs[name] = ActivationStatistics(y.shape[-1])
            self._outputs[name].update(y.detach(), self._mask_of(name))
            self._count_samples(name, y)

        return hook

    def _linear_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["input"]
            reference, taker = self._taken.get(id(x), (None, ""))
            fed_to = taker if reference is not None and reference() is x else None
            owner = self._owner.setdefault(name, fed_to or name)
            if owner == name:
                if name not in self._inputs:
                    self._inputs[name] = SecondMoment(
                        x.shape[-1], dtype=self._dtype, unit=self._unit_inputs, every=self._token_stride
                    )
                self._inputs[name].update(x.detach(), self._mask_of(name))
                self._taken[id(x)] = (weakref.ref(x), name)
            elif fed_to != owner:
                raise RuntimeError(
                    f"{name!r} and {owner!r} were fed the same tensor before and are not now, so one second "
                    "moment cannot stand for both. Watch them with two collectors."
                )
            self._count_samples(name, x)

        return hook

    def _count_samples(self, site: str, x: Tensor) -> None:
        if site == self._first_site:
            self.samples += x.shape[0]

    def _check_sites(self) -> None:
        if not self._layers and not self._linears:
            raise ValueError("A collector watches at least one layer or linear map; received none.")
        inside = set(map(id, self.model.modules()))
        for name, module in [*self._layers.items(), *self._linears.items()]:
            if id(module) not in inside:
                raise ValueError(f"{name!r} is not a module of the model given; take it from model.named_modules().")
        for name, linear in self._linears.items():
            if not isinstance(linear, nn.Linear):
                raise ValueError(
                    f"Second moments are of nn.Linear inputs; {name!r} is {type(linear).__name__}. Leave it "
                    "out, and freeze it when training in a subspace."
                )
