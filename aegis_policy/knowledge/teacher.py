"""The backbone as it was pre-trained, kept beside the one that learns.

It is no part of the policy: nothing of it is trained or saved, a resumed run loads it again from where the backbone
came. References that compare with "what the model would have said before" share it.

What it costs: whatever does not train, and so is the same, it holds in common with the one that learns. The linear
maps that do, autocast would turn into its own dtype at every use; they are kept in that, with the same results bit for
bit. So under bfloat16 it is one copy of the protected linear maps in bfloat16, and of whatever else trains in float32.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.network.backbone import Backbone

# What autocast runs in its own dtype, and finds by the module.
LINEAR_MAPS = (nn.Linear, nn.Conv2d)


class Teacher:
    """A frozen backbone. State: the model, loaded when it is first wanted and then kept on the inputs' device.

    Args:
        load: Builds it with the weights that it had before training.
        beside: The one that learns, with what trains chosen.
    """

    def __init__(self, load: Callable[[], Backbone], beside: Backbone) -> None:
        self._load = load
        self._beside = beside
        self._backbone: Backbone | None = None
        self._in_common: set[nn.Parameter] = set()
        self._autocast: torch.dtype | None = None  # what the linear maps are kept in; None: as they were loaded

    def weights(self, device: torch.device) -> Backbone:
        """The model, for its weights: in the precision that they were loaded in."""
        if self._backbone is None:
            self._backbone = self._load().requires_grad_(False).eval().to(device)
            self._in_common = _hold_in_common(self._backbone, self._beside)
        if self._autocast is not None:
            raise RuntimeError(
                f"This teacher has been asked already, and holds its linear maps in {self._autocast} since. Take "
                "another Teacher for its weights."
            )
        return self._backbone.to(device)

    def asked(self, device: torch.device) -> Backbone:
        """The model, for its outputs: under autocast each time or never."""
        if self._autocast is None:
            model = self.weights(device)
            if torch.is_autocast_enabled(device.type):
                self._autocast = torch.get_autocast_dtype(device.type)
                _narrow(model, self._autocast, leave=self._in_common)
        assert self._backbone is not None, "loaded above"
        return self._backbone.to(device)

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each language layer puts out on the VLM's inputs: layer name -> (B, T, D)."""
        model = self.asked(inputs["input_ids"].device)
        with watch_outputs(model.layers()) as outputs:
            model.encode(dict(inputs))
        return outputs


def _hold_in_common(teacher: nn.Module, learner: nn.Module) -> set[nn.Parameter]:
    """Lets the teacher's parameters be the learner's where those are frozen and equal, and returns these."""
    named = learner.named_parameters(remove_duplicate=False)
    frozen = {n.replace(".base_layer.", "."): p for n, p in named if not p.requires_grad}  # peft puts adapters around
    in_common = set()
    for name, own in list(teacher.named_parameters(remove_duplicate=False)):
        other = frozen.get(name)
        # A sharded parameter is a kind of its own, and stays with whoever gathers it.
        if type(other) is nn.Parameter and other.device == own.device and torch.equal(other, own):
            module, _, leaf = name.rpartition(".")
            setattr(teacher.get_submodule(module), leaf, other)
            in_common.add(other)
    return in_common


def _narrow(teacher: nn.Module, dtype: torch.dtype, *, leave: set[nn.Parameter]) -> None:
    """Turns the linear maps' own parameters into `dtype`; not an output head that shares the embedding's."""
    used_by: dict[nn.Parameter, list[nn.Module]] = {}
    for module in teacher.modules():
        for parameter in module.parameters(recurse=False):
            used_by.setdefault(parameter, []).append(module)
    for parameter, modules in used_by.items():
        if parameter not in leave and all(isinstance(m, LINEAR_MAPS) for m in modules):
            parameter.data = parameter.data.to(dtype)
