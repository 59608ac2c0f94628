"""The groups in which the optimizer gets a policy's parameters: by protected layer and by learning rate.

    expert                     optimizer_lr
    language layers, and B     optimizer_backbone_lr, or optimizer_lr; the expert's own keys and values as well, which
                               learn what those of the language layers would have learned
    vision tower, projector    optimizer_vision_lr, or that of the language layers

LeRobot's schedulers multiply the rate of each group by one factor, so the ratios stay.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from aegis_policy.averaging import WeightAverages
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.protection import Protection
from aegis_policy.network.backbone import Backbone


def parameter_groups(
    config: AegisVLAConfig,
    backbone: Backbone,
    parameters: Iterable[nn.Parameter],
    *,
    reading: Iterable[nn.Parameter],
    protection: Protection | None,
    averages: WeightAverages | None,
) -> list[dict[str, Any]]:
    """One group a protected layer, one or two for what else of the backbone learns, one for the expert.

    Args:
        config: Of the policy.
        backbone: Of the policy.
        parameters: All of the policy; those that do not require gradients are left out.
        reading: Those of the expert's own keys and values.
        protection: Makes the groups of the protected layers.
        averages: Told of the optimizer that takes over the groups.
    """

    def options(name: str) -> dict[str, Any]:
        rate = config.optimizer_backbone_lr
        if config.optimizer_vision_lr is not None and backbone.is_vision(name):
            rate = config.optimizer_vision_lr
        return {} if rate is None else {"lr": rate}

    groups = [] if protection is None else protection.groups(options)
    taken = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in parameters if p.requires_grad and id(p) not in taken]
    rates = {id(p): options(name).get("lr") for name, p in backbone.vlm.named_parameters()}
    rates |= {id(p): config.optimizer_backbone_lr for p in reading}
    by_rate: dict[float | None, list[nn.Parameter]] = {}
    for p in rest:
        if id(p) in rates:
            by_rate.setdefault(rates[id(p)], []).append(p)
    groups += [{"params": ps, **({} if rate is None else {"lr": rate})} for rate, ps in by_rate.items()]
    groups.append({"params": [p for p in rest if id(p) not in rates]})
    groups = [group for group in groups if group["params"]]
    if averages is not None:
        groups[-1]["guard"] = averages
    # LeRobot logs the learning rate of the first group: let that be the expert's, which always learns.
    return groups[::-1]
