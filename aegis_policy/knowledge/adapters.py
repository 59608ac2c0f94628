"""LeRobot's adapters (`--peft.*`) under the protection of the anchor.

LoRA (arXiv 2106.09685) adds to a frozen linear map W0 (out x in) what its A (r x in) and B (out x r) learn:

    y = W0 x + s B A x

Inputs enter through A alone. With A = A P, P the projector of W0's inputs, A x = 0 for every closed x, so the response
W0 x to it stays whatever B becomes. Hence A starts projected (B starts at 0, so this changes no output), its steps are
projected like those of a whole weight, and B is free. (Soft form: A is then a sum of steps times P and answers to P x,
in which x is shrunk by e / (e + lambda) along an eigenvector of its second moment.)

DoRA (arXiv 2402.09353) scales each output by m / n, n = ||W0 + s B A|| row by row:

    y = m / n (W0 x + s B A x)        closed x, A = A P:  y = m / n W0 x

so W0's response to a closed x moves unless m = n at all times, which is LoRA. A subspace refuses it. Projections on an
anchor gradient ask for no form: any adapter parameter has such a gradient.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from aegis_policy.aegis import SUBSPACES, Closes, GaussianAnchor, Projector
from aegis_policy.aegis.precision import accumulation_dtype
from aegis_policy.knowledge.protection import Protection

_INPUTS = re.compile(r"^(?P<module>.+)\.lora_A\.[^.]+\.weight$")
_OUTPUTS = re.compile(r"^.+\.lora_B\.[^.]+\.weight$")
# Options of peft's LoRA that leave y = W0 x + s B A x with B = 0 at the start.
_PLAIN = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "modules_to_save",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "runtime_config",
}
_PLAIN_INITS = (True, "gaussian")
# A protected A leaves the open directions by rounding, 1e-6 of its norm; an unprotected one starts with the root of the
# closed share.
_ROUNDING = 1e-4


def check_adapters(peft_config: Any, *, projection: str) -> None:
    """Refuses adapters that the projection cannot protect, before anything is wrapped.

    Args:
        peft_config: Of the peft library, complete.
        projection: As in `AegisVLAConfig`, under knowledge=aegis.

    Raises:
        ValueError: Under a subspace, for anything but plain LoRA.
    """
    if projection not in SUBSPACES:
        return
    remedy = (
        "Take plain LoRA (--peft.method_type=LORA without --peft.init_type, or with gaussian), a projection that needs "
        "no form of the adapter (--policy.projection=gradient, first_moment or update), or --policy.knowledge=none."
    )
    if str(getattr(peft_config.peft_type, "value", peft_config.peft_type)) != "LORA":
        raise ValueError(
            f"Under projection={projection} an adapter sees its inputs through one matrix A that is kept to the open "
            f"directions; {peft_config.peft_type} has another form. {remedy}"
        )
    if peft_config.use_dora:
        raise ValueError(
            "DoRA rescales what the pre-trained weight answers to closed inputs as well, by m / ||W0 + s B A||, so "
            f"projection={projection} cannot keep it. {remedy}"
        )
    plain = type(peft_config)()
    other = {
        f.name: getattr(peft_config, f.name)
        for f in fields(peft_config)
        if f.name not in _PLAIN and getattr(peft_config, f.name) != getattr(plain, f.name)
    }
    if peft_config.init_lora_weights not in _PLAIN_INITS:
        other["init_lora_weights"] = peft_config.init_lora_weights
    if other:
        raise ValueError(
            f"Under projection={projection} an adapter adds s B A to a weight, with B = 0 at the start; {other} "
            f"changes that. {remedy}"
        )


def trained_adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What peft left trainable in a model with its adapters in place: qualified name -> parameter."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def restricted_inputs(trained: Mapping[str, nn.Parameter], anchored: set[str]) -> dict[str, str]:
    """Which projector restricts which parameter of plain LoRA.

    Args:
        trained: From `trained_adapters`.
        anchored: Names of the weights whose input directions the anchor knows.

    Returns:
        Name of an A -> name of the weight that it stands beside. The B are not in it: they may go anywhere.

    Raises:
        ValueError: If a parameter is neither a B nor the A of a weight that the anchor knows.
    """
    found, strange = {}, []
    for name in trained:
        inputs = _INPUTS.match(name)
        if inputs and f"{inputs['module']}.weight" in anchored:
            found[name] = f"{inputs['module']}.weight"
        elif not _OUTPUTS.match(name):
            strange.append(name)
    if strange:
        raise ValueError(
            "Under a subspace adapters train beside linear maps whose inputs the anchor knows and nothing else in the "
            f"backbone trains; --peft.* also asks for {sorted(strange)[:3]} ({len(strange)} in all). Leave them out of "
            "--peft.target_modules and --peft.full_training_modules, or use --policy.projection=gradient."
        )
    return found


@torch.no_grad()
def open_inputs(trained: Mapping[str, nn.Parameter], projectors: Mapping[str, Projector], *, stays: bool) -> None:
    """Moves each A of adapters that have not learned yet into its open directions; those that have must be there.

    Args:
        trained: From `trained_adapters`.
        projectors: Name of an A -> its `P`.
        stays: Whether adapters that have learned still have A = A P.

    Raises:
        ValueError: If adapters have learned outside of the open directions.
    """
    fresh = not any(bool(p.any()) for name, p in trained.items() if _OUTPUTS.match(name))
    if not (fresh or stays):
        return
    for name, projector in projectors.items():
        a = trained[name]
        wide = accumulation_dtype(a.device)
        kept = a.to(wide) @ projector.to(device=a.device, dtype=wide)
        outside = torch.linalg.vector_norm(a - kept).item()
        if stays and outside <= _ROUNDING * torch.linalg.vector_norm(a).item():
            continue  # a resumed training goes on with the very numbers it had
        if not fresh:
            raise ValueError(
                "Under a subspace an adapter's A keeps to the open directions from its start; that of "
                f"{name} has {outside:.2g} of {torch.linalg.vector_norm(a).item():.2g} outside of them, and its B has "
                "learned. These adapters come from a training without this protection or with another share "
                "closed (--policy.energy, --policy.directions): go on as they were trained, or begin new ones."
            )
        a.copy_(kept)


class AdapterProtection(Protection):
    """The protection of adapters in place of the weights that they stand beside.

    Under a subspace the A of each is restricted, and moved into its open directions when an optimizer takes it over.

    Args:
        module: Whose parameters they are.
        trained: From `trained_adapters`.
        anchor: What must not be undone; of the backbone without adapters.
        projection: As in `Protection`.
        closes: As in `Protection`.

    Raises:
        ValueError: If something trains that cannot be protected.
    """

    def __init__(
        self,
        module: nn.Module,
        trained: Mapping[str, nn.Parameter],
        anchor: GaussianAnchor,
        *,
        projection: str,
        closes: Closes,
    ) -> None:
        self._trained = list(trained)
        self._weight_of: dict[str, str] = {}
        parameters = trained
        if projection in SUBSPACES:
            self._weight_of = restricted_inputs(trained, set(anchor.weights))
            parameters = {name: trained[name] for name in self._weight_of}
        super().__init__(module, parameters, anchor, projection=projection, closes=closes)

    def projectors(self) -> dict[str, Projector]:
        """Name of an A -> the projector of its weight's inputs; opens the A."""
        weights = set(self._weight_of.values())
        device = next(iter(self.parameters.values())).device
        known = self.anchor.projectors(weights=weights, device=device, **self.closes)
        projectors = {name: known[weight] for name, weight in self._weight_of.items()}
        trained = {name: self._module.get_parameter(name) for name in self._trained}  # as they are now
        # Projecting gradients alone lets A leave, and the soft form shrinks it again each time: neither can be asked to
        # stay.
        stays = self.closes.get("epsilon") is None and self.projection != "subspace_gradient"
        open_inputs(trained, projectors, stays=stays)
        return projectors
